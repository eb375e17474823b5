/* Traces of choices: what they say of shares, held to sums made by hand; and caches asked about them, held to every possible way of
 * keeping experts where there are few enough to try them all. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>
#include "expert/trace.h"
#include "random_below.h"

enum { EXPERTS = 6, TOKENS = 40 };

static void assert_near(double a, double b) {
    if (fabs(a - b) > 1e-9) fail_msg("expected %.12g, found %.12g", b, a);
}

static void add(struct trace *trace, const int32_t *ids, bool begins) {
    const struct model *m = trace->model;
    for (int l = 0; l < trace->layers; l++) trace_record(trace, trace->n, l, ids + l * m->top_k, 1);
    trace_add(trace, 1, begins);
}

static void test_shares(void **state) {
    (void)state;
    const struct model model = {.layers = 2, .dense_layers = 1, .experts = 4, .top_k = 2};
    static const int32_t ids[5][2] = {{0, 1}, {1, 0}, {3, 0}, {2, 0}, {0, 3}};
    struct trace trace;
    struct trace_use use;
    assert_int_equal(trace_open(&trace, &model, 5, NULL), 0);
    for (int t = 0; t < 5; t++) add(&trace, ids[t], t == 0 || t == 3);
    assert_int_equal(trace.choice[2], 0); /* ascending: 1, 0 was given */
    assert_int_equal(trace_use_of(&trace, 0, &use, NULL), 0);
    assert_near(use.most, 1); /* expert 0: always; 1 and 3: twice; 2: once */
    assert_near(use.median, 0.4);
    assert_near(use.least, 0.2);
    assert_near(use.entropy, (0.5 * 1 + 2 * 0.2 * log2(5) + 0.1 * log2(10)) / 2);
    assert_int_equal(use.covers[0], 1);
    assert_int_equal(use.covers[1], 3);
    assert_int_equal(use.covers[2], 3);
    assert_near(use.reuse, 4.0 / 6); /* 2, 1 and 1 of 2: the fourth token begins another text */
    assert_near(use.by_shares, (1 + 0.16 + 0.16 + 0.04) / 2);
    assert_near(use.by_chance, 0.5);
    assert_near(trace_distinct(&trace, 2), (2 + 3) / 2.0);
    assert_near(trace_distinct(&trace, 5), 4);
    assert_near(trace_distinct(&trace, 6), 0);
    trace_close(&trace);
}

static void test_no_experts(void **state) {
    (void)state;
    const struct model model = {.layers = 2, .dense_layers = 2};
    struct trace trace;
    struct mo_error error;
    assert_int_equal(trace_open(&trace, &model, 5, &error), MO_E_UNSUPPORTED);
    trace_close(&trace);
}

/* The most hits that any way of keeping at most `slots` of EXPERTS finds: best[s] for what is there now, a set of bits. */
static int most_hits(const int *asked, int n, int slots) {
    int best[1 << EXPERTS];
    for (int s = 0; s < 1 << EXPERTS; s++) best[s] = __builtin_popcount((unsigned)s) <= slots ? 0 : -1000;
    for (int i = 0; i < n; i++) {
        int next[1 << EXPERTS];
        for (int s = 0; s < 1 << EXPERTS; s++) next[s] = -1000;
        for (int s = 0; s < 1 << EXPERTS; s++) {
            int bit = 1 << asked[i], hits = best[s] + !!(s & bit), all = s | bit;
            for (int to = all;; to = (to - 1) & all) { /* anything may be kept of what was there and what came */
                bool fits = __builtin_popcount((unsigned)to) <= slots;
                if (fits && hits > next[to]) next[to] = hits;
                if (!to) break;
            }
        }
        memcpy(best, next, sizeof best);
    }
    int most = 0;
    for (int s = 0; s < 1 << EXPERTS; s++) most = best[s] > most ? best[s] : most;
    return most;
}

static void test_best_is_best(void **state) {
    (void)state;
    const struct model model = {.layers = 3, .dense_layers = 1, .experts = EXPERTS / 2, .top_k = 1};
    for (int round = 0; round < 30; round++) {
        struct trace trace;
        int asked[TOKENS];
        assert_int_equal(trace_open(&trace, &model, TOKENS, NULL), 0);
        for (int t = 0; t < TOKENS; t++) {
            const int32_t ids[2] = {random_below(3) * random_below(2), random_below(3)};
            add(&trace, ids, t == 0);
            if (t < TOKENS / 2) continue;
            asked[2 * (t - TOKENS / 2)] = ids[0];
            asked[2 * (t - TOKENS / 2) + 1] = 3 + ids[1];
        }
        for (int slots = 1; slots <= EXPERTS; slots++) {
            struct trace_hits best, fixed, ours, cold;
            assert_int_equal(trace_best(&trace, slots, &best, NULL), 0);
            assert_int_equal(best.asked, TOKENS);
            assert_int_equal(best.hits, most_hits(asked, TOKENS, slots));
            assert_int_equal(trace_fixed(&trace, slots, &fixed, NULL), 0);
            assert_true(fixed.hits <= best.hits && fixed.asked == TOKENS);
            if (slots < STORE_MIN_SLOTS) continue;
            assert_int_equal(trace_replay(&trace, slots, &cold, &ours, NULL), 0);
            assert_true(ours.hits <= best.hits && ours.asked == TOKENS && cold.asked == 2 * TOKENS);
            if (slots == EXPERTS) assert_true(cold.asked - cold.hits <= EXPERTS); /* each is missed once */
        }
        trace_close(&trace);
    }
}

/* What is wanted every time stays, whatever passes by: store.h's rule, which a cache that forgets the oldest does not have. */
static void test_replay_keeps_what_is_used(void **state) {
    (void)state;
    const struct model model = {.layers = 1, .experts = 64, .top_k = 2};
    struct trace trace;
    struct trace_hits cold, warm;
    assert_int_equal(trace_open(&trace, &model, 200, NULL), 0);
    for (int t = 0; t < 200; t++) add(&trace, (const int32_t[]){0, 1 + t % 63}, t == 0);
    assert_int_equal(trace_replay(&trace, 3, &cold, &warm, NULL), 0);
    assert_int_equal(cold.hits, 199);
    assert_int_equal(warm.hits, 100);
    assert_near(trace_hit_rate(&warm), 0.5);
    trace_close(&trace);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_no_experts),
        cmocka_unit_test(test_best_is_best),
        cmocka_unit_test(test_replay_keeps_what_is_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
