/* Guesses at the tokens to come: what followed the longest and latest match, and how many are worth a row. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "sched/draft.h"

enum { MOST = 4 };

static void expect(const char *text, int n_text, const char *guess, int n_guess) {
    int32_t tokens[64], draft[MOST];
    for (int i = 0; i < n_text; i++) tokens[i] = text[i];
    assert_int_equal(draft_find(tokens, n_text, draft, MOST), n_guess);
    for (int i = 0; i < n_guess; i++) assert_int_equal(draft[i], guess[i]);
}
#define EXPECT(text, guess) expect(text, sizeof text - 1, guess, sizeof guess - 1)

static void test_find(void **state) {
    (void)state;
    EXPECT("a", "");
    EXPECT("ab", "");
    EXPECT("abcda", "");                                     /* one token is not enough */
    EXPECT("abcdefab", "cdef");                              /* what followed */
    EXPECT("abcd--abef--ab", "ef--");                        /* the latest place of those where as many match */
    EXPECT("xabcd--yabef--xab", "cd--");                     /* but first the longest */
    EXPECT("0123456789ab!123456789ab?0123456789ab", "?012"); /* more than DRAFT_MATCH_MAX do not count */
    EXPECT("ababab", "abab");                                /* it goes on as its own copy */
    EXPECT("aaa", "aaaa");
    EXPECT("xyzxy", "zxyz");
}

static void test_adapt(void **state) {
    (void)state;
    assert_int_equal(draft_adapt(2, 2, 8), 4);
    assert_int_equal(draft_adapt(5, 5, 8), 8);
    assert_int_equal(draft_adapt(8, 3, 8), 4);
    assert_int_equal(draft_adapt(8, 0, 8), 1);
    assert_int_equal(draft_adapt(1, 0, 1), 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_find), cmocka_unit_test(test_adapt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
