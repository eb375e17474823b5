/* Parts of the scheduler on their own: who owns which page, which are found again, and stop strings and rules of lines
 * in a text that comes in pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "sched/kv.h"
#include "sched/lines.h"
#include "sched/stop.h"

/* ---- pages ---- */

static void test_pages(void **state) {
    (void)state;
    struct kv_pages kv;
    struct kv_seq a, b;
    assert_int_equal(kv_pages_for(0), 0);
    assert_int_equal(kv_pages_for(1), 1);
    assert_int_equal(kv_pages_for(64), 1);
    assert_int_equal(kv_pages_for(65), 2);
    assert_int_equal(kv_pages_init(&kv, 5, NULL), 0);
    assert_int_equal(kv_seq_init(&a, 300, PREFIX_ROOT, NULL), 0);
    assert_int_equal(kv_seq_init(&b, 300, PREFIX_ROOT, NULL), 0);
    assert_int_equal(kv_seq_grow(&kv, &a, 65), 0);
    assert_int_equal(kv_seq_grow(&kv, &a, 128), 0);
    assert_int_equal(a.n_pages, 2);
    assert_int_equal(kv_seq_grow(&kv, &b, 193), MO_E_LIMIT); /* 4 pages of 3: nothing changes */
    assert_int_equal(b.n_pages, 0);
    assert_int_equal(kv.n_free, 3);
    assert_int_equal(kv_seq_grow(&kv, &b, 192), 0);
    assert_int_equal(kv.n_free, 0);
    bool used[5] = {false};
    for (int i = 0; i < 5; i++) {
        int32_t page = i < 2 ? a.pages[i] : b.pages[i - 2];
        assert_in_range(page, 0, 4);
        assert_false(used[page]);
        used[page] = true;
    }
    kv_seq_release(&kv, &b);
    assert_int_equal(kv.n_free, 3);
    assert_int_equal(kv_seq_grow(&kv, &b, 1), 0);
    kv_seq_free(&kv, &a);
    kv_seq_free(&kv, &b);
    kv_seq_free(&kv, &b); /* a zeroed one */
    assert_int_equal(kv.n_free, 5);
    kv_pages_free(&kv);
}

/* ---- pages found by their tokens ---- */

enum { TEXT = 5 * 64 };

static void fill_text(int32_t *tokens, int seed) {
    for (int i = 0; i < TEXT; i++) tokens[i] = seed + i % 7;
}

/* A sequence with all of the text computed. */
static void compute(struct kv_pages *kv, struct kv_seq *seq, const int32_t *tokens, int n_tokens) {
    assert_int_equal(kv_seq_init(seq, TEXT, PREFIX_ROOT, NULL), 0);
    kv_seq_share(kv, seq, tokens, n_tokens - 1);
    assert_int_equal(kv_seq_grow(kv, seq, n_tokens), 0);
    kv_seq_publish(kv, seq, tokens, n_tokens);
}

static int found(const struct kv_pages *kv, const int32_t *tokens, int n_tokens) {
    int n_used;
    return kv_find(kv, PREFIX_ROOT, tokens, n_tokens, &n_used);
}

static void test_shared_pages(void **state) {
    (void)state;
    struct kv_pages kv;
    struct kv_seq a, b;
    int32_t text[TEXT];
    int n_used;
    fill_text(text, 1);
    assert_int_equal(kv_pages_init(&kv, 6, NULL), 0);
    compute(&kv, &a, text, 200);
    assert_int_equal(found(&kv, text, 200), 3);
    assert_int_equal(found(&kv, text, 191), 2);     /* full pages only */
    assert_int_equal(found(&kv, text + 1, 200), 0); /* the same tokens elsewhere are others */
    compute(&kv, &b, text, 193);
    assert_int_equal(b.n_known, 3);
    assert_memory_equal(a.pages, b.pages, 3 * sizeof *a.pages);
    assert_int_equal(kv.n_free, 1);
    kv_seq_release(&kv, &a);
    assert_int_equal(kv.n_free, 2);
    assert_int_equal(kv_find(&kv, PREFIX_ROOT, text, 200, &n_used), 3);
    assert_int_equal(n_used, 3);
    kv_seq_free(&kv, &b);
    assert_int_equal(kv_find(&kv, PREFIX_ROOT, text, 200, &n_used), 3);
    assert_int_equal(n_used, 0);
    kv_seq_free(&kv, &a);
    kv_pages_free(&kv);
}

/* Pages without known tokens are taken first, then those that were left longest ago, the end of a text before its start. */
static void test_page_age(void **state) {
    (void)state;
    struct kv_pages kv;
    struct kv_seq a, b, c;
    int32_t old[TEXT], new[TEXT];
    fill_text(old, 1);
    fill_text(new, 100);
    assert_int_equal(kv_pages_init(&kv, 5, NULL), 0);
    compute(&kv, &a, old, 128);
    compute(&kv, &b, new, 128);
    kv_seq_free(&kv, &a);
    kv_seq_free(&kv, &b);
    assert_int_equal(kv_seq_init(&c, TEXT, PREFIX_ROOT, NULL), 0);
    assert_int_equal(kv_seq_grow(&kv, &c, 64), 0);
    assert_int_equal(found(&kv, old, 128) + found(&kv, new, 128), 4);
    assert_int_equal(kv_seq_grow(&kv, &c, 128), 0);
    assert_int_equal(found(&kv, old, 128), 1);
    assert_int_equal(kv_seq_grow(&kv, &c, 192), 0);
    assert_int_equal(found(&kv, old, 128), 0);
    assert_int_equal(found(&kv, new, 128), 2);
    kv_seq_free(&kv, &c);
    kv_pages_free(&kv);
}

/* A page whose parent was taken for something else is no child of what stands there now. */
static void test_lost_parent(void **state) {
    (void)state;
    struct kv_pages kv;
    struct kv_seq a, b;
    int32_t text[TEXT], other[TEXT];
    fill_text(text, 1);
    fill_text(other, 50);
    memcpy(other + 64, text + 64, 64 * sizeof *other); /* the same second page */
    assert_int_equal(kv_pages_init(&kv, 4, NULL), 0);
    compute(&kv, &a, text, 128);
    prefix_remove(&kv.tree, a.pages[0]);
    prefix_add(&kv.tree, a.pages[0], PREFIX_ROOT, other);
    assert_int_equal(found(&kv, other, 128), 1);
    kv_seq_free(&kv, &a);
    compute(&kv, &b, other, 129);
    assert_int_equal(found(&kv, other, 128), 2);
    kv_seq_free(&kv, &b);
    kv_pages_free(&kv);
}

/* What was computed under a salt is found under the same salt only. */
static void test_salts(void **state) {
    (void)state;
    static const uint64_t roots[] = {PREFIX_ROOT, PREFIX_SALTED | 5, PREFIX_SALTED | 6};
    struct kv_pages kv;
    struct kv_seq seq;
    int32_t text[TEXT];
    int n_used;
    fill_text(text, 1);
    assert_int_equal(kv_pages_init(&kv, 6, NULL), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(kv_find(&kv, roots[i], text, 128, &n_used), 0);
        assert_int_equal(kv_seq_init(&seq, TEXT, roots[i], NULL), 0);
        for (int again = 0; again < 2; again++) {
            assert_int_equal(kv_seq_share(&kv, &seq, text, 128), again * 2);
            assert_int_equal(kv_seq_grow(&kv, &seq, 128), 0);
            kv_seq_publish(&kv, &seq, text, 128);
            kv_seq_release(&kv, &seq);
        }
        assert_int_equal(kv_find(&kv, roots[i], text, 128, &n_used), 2);
        kv_seq_free(&kv, &seq);
    }
    kv_pages_free(&kv);
}

/* Two sequences computed the same at the same time: one of the pages is found, the other is free for anybody. */
static void test_computed_twice(void **state) {
    (void)state;
    struct kv_pages kv;
    struct kv_seq a, b;
    int32_t text[TEXT];
    fill_text(text, 1);
    assert_int_equal(kv_pages_init(&kv, 4, NULL), 0);
    assert_int_equal(kv_seq_init(&a, TEXT, PREFIX_ROOT, NULL), 0);
    assert_int_equal(kv_seq_init(&b, TEXT, PREFIX_ROOT, NULL), 0);
    assert_int_equal(kv_seq_grow(&kv, &a, 128), 0);
    assert_int_equal(kv_seq_grow(&kv, &b, 128), 0);
    kv_seq_publish(&kv, &a, text, 128);
    kv_seq_publish(&kv, &b, text, 128);
    assert_int_equal(b.n_known, 2);
    kv_seq_free(&kv, &a);
    kv_seq_free(&kv, &b);
    assert_int_equal(found(&kv, text, 128), 2);
    compute(&kv, &a, text, 128);
    assert_int_equal(a.pages[0], 0);
    kv_seq_free(&kv, &a);
    kv_pages_free(&kv);
}

/* ---- stop strings ---- */

struct stop_case {
    const char *text;
    const char *stop[3];
    const char *kept, *kept_with; /* without and with the stop string */
    int found;
};
static const struct stop_case stop_cases[] = {
    {"hello world", {"wor"}, "hello ", "hello wor", 0},
    {"hello world", {"xyz"}, "hello world", "hello world", -1},
    {"ababababc", {"ababc"}, "abab", "ababababc", 0},
    {"aaaaaab", {"aaab"}, "aaa", "aaaaaab", 0},
    {"abcd", {"abcd", "bc"}, "a", "abc", 1},      /* the one that ends first */
    {"xabc", {"c", "bc", "abc"}, "x", "xabc", 2}, /* of those that end together, the longest */
    {"abab", {"abx"}, "abab", "abab", -1},        /* held back at the end, then let go */
    {"a", {"a"}, "", "a", 0},
    {"", {"a"}, "", "", -1},
    {"\xe4\xb8\xad\xe4\xb8\xad!", {"\xe4\xb8\xad!"}, "\xe4\xb8\xad", "\xe4\xb8\xad\xe4\xb8\xad!", 0},
    {"one two\n\n", {"\n\n"}, "one two", "one two\n\n", 0},
};

/* What should be held: the longest end of the text that begins a stop string, short of all of it. */
static size_t expected_held(const struct stop_case *c, const char *text, size_t size) {
    for (size_t n = size; n > 0; n--) {
        for (int i = 0; i < 3 && c->stop[i]; i++) {
            if (strlen(c->stop[i]) > n && memcmp(c->stop[i], text + size - n, n) == 0) return n;
        }
    }
    return 0;
}

/* Bit i of `cuts`: a piece ends after byte i. */
static void check_stop_split(const struct stop_case *c, unsigned cuts, bool include) {
    size_t sizes[3], size = strlen(c->text), n_out = 0, begin = 0;
    char out[64], held[64];
    struct stop_matcher matcher = {.strings = c->stop, .sizes = sizes, .include = include, .held = held};
    for (; matcher.n < 3 && c->stop[matcher.n]; matcher.n++) sizes[matcher.n] = strlen(c->stop[matcher.n]);
    int found = -1;
    for (size_t i = 0; i < size && found < 0; i++) {
        if (!(cuts >> i & 1) && i + 1 < size) continue;
        size_t n;
        found = stop_matcher_push(&matcher, c->text + begin, i + 1 - begin, out + n_out, &n);
        n_out += n;
        begin = i + 1;
        if (found < 0) assert_int_equal(n_out + expected_held(c, c->text, begin), begin);
    }
    if (found < 0) n_out += stop_matcher_finish(&matcher, out + n_out);
    const char *kept = include ? c->kept_with : c->kept;
    assert_int_equal(found, c->found);
    assert_int_equal(n_out, strlen(kept));
    assert_memory_equal(out, kept, n_out);
}

static void test_stop_every_split(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof stop_cases / sizeof *stop_cases; i++) {
        unsigned n = (unsigned)strlen(stop_cases[i].text);
        for (unsigned cuts = 0; cuts < 1u << n; cuts++) {
            check_stop_split(&stop_cases[i], cuts, false);
            check_stop_split(&stop_cases[i], cuts, true);
        }
    }
}

/* ---- lines ---- */

static const struct {
    const char *text;
    int min_indent;
    const char *kept;
    bool ended;
} line_cases[] = {
    {"  a\n  b", 2, "  a\n  b", false},
    {"a\n  b\n c\n  d", 2, "a\n  b\n ", true}, /* the first line may begin anywhere; blanks before the end stay */
    {"a\n\tb\n\n\tc", 1, "a\n\tb\n", true},    /* an empty line begins too early */
    {"\n\nb", 0, "\n\nb", false},
    {"a\n   ", 4, "a\n   ", false}, /* nothing can be said yet */
    {"a\n    \n    b", 4, "a\n    \n    b", false},
    {"a\nb", 1, "a\n", true},
    {"a b c", 9, "a b c", false},
};

static void test_lines_every_split(void **state) {
    (void)state;
    for (size_t c = 0; c < sizeof line_cases / sizeof *line_cases; c++) {
        const char *text = line_cases[c].text, *kept = line_cases[c].kept;
        size_t size = strlen(text);
        for (unsigned cuts = 0; cuts < 1u << size; cuts++) {
            struct line_rule rule = {.min_indent = line_cases[c].min_indent};
            char out[64];
            size_t n_out = 0, begin = 0;
            for (size_t i = 0; i < size; i++) {
                if (!(cuts >> i & 1) && i + 1 < size) continue;
                size_t n = line_rule_push(&rule, text + begin, i + 1 - begin);
                memcpy(out + n_out, text + begin, n);
                n_out += n;
                begin = i + 1;
            }
            assert_int_equal(n_out, strlen(kept));
            assert_memory_equal(out, kept, n_out);
            assert_int_equal(rule.ended, line_cases[c].ended);
            assert_int_equal(rule.has_break, strchr(kept, '\n') != NULL);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_shared_pages),
        cmocka_unit_test(test_page_age),
        cmocka_unit_test(test_lost_parent),
        cmocka_unit_test(test_salts),
        cmocka_unit_test(test_computed_twice),
        cmocka_unit_test(test_stop_every_split),
        cmocka_unit_test(test_lines_every_split),
    };
    return cmocka_run_group_tests_name("stop", tests, NULL, NULL);
}
