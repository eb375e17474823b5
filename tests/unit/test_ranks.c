/* Who gets which experts (engine/ranks.h), and what `bench` tells of the exchange. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "cmd/bench/experts.h"
#include "engine/ranks.h"

enum { EXPERTS = 256 };

static void count(const uint8_t *owner, int experts, int ranks, int *n) {
    memset(n, 0, (size_t)ranks * sizeof *n);
    for (int e = 0; e < experts; e++) {
        assert_true(owner[e] < ranks);
        n[owner[e]]++;
    }
}

static void test_alike(void **state) {
    (void)state;
    uint8_t owner[EXPERTS];
    double shares[RANKS_MAX];
    int n[RANKS_MAX];
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++) {
        for (int r = 0; r < ranks; r++) shares[r] = 1;
        engine_ranks_deal(shares, ranks, EXPERTS, owner);
        count(owner, EXPERTS, ranks, n);
        for (int r = 0; r < ranks; r++) {
            assert_true(n[r] == EXPERTS / ranks || n[r] == EXPERTS / ranks + 1);
        }
        for (int e = 1; e < EXPERTS && ranks > 1; e++) assert_int_not_equal(owner[e], owner[e - 1]);
    }
    engine_ranks_deal(shares, 17, 16, owner); /* more ranks than experts */
    count(owner, 16, 17, n);
    for (int r = 0; r < 17; r++) assert_int_equal(n[r], r < 16);
}

/* Any stretch of experts is shared out as all of them are: at most two away from what is due. */
static void test_by_share(void **state) {
    (void)state;
    const double shares[4] = {3, 0, 1, 4};
    uint8_t owner[EXPERTS];
    int n[4];
    engine_ranks_deal(shares, 4, EXPERTS, owner);
    count(owner, EXPERTS, 4, n);
    assert_int_equal(n[0], 96);
    assert_int_equal(n[1], 0);
    assert_int_equal(n[2], 32);
    assert_int_equal(n[3], 128);
    for (int to = 1; to <= EXPERTS; to++) {
        count(owner, to, 4, n);
        for (int r = 0; r < 4; r++) assert_true(abs((int)(shares[r] / 8 * to) - n[r]) <= 2);
    }
}

static void test_by_memory(void **state) {
    (void)state;
    const double enough[3] = {60, 40, 200}, uneven[3] = {-5, 30, 90};
    double shares[3];
    engine_ranks_share(enough, 3, 100, shares);
    for (int r = 0; r < 3; r++) assert_true(shares[r] == 1); /* alike, where that fits: all bandwidths add up */
    engine_ranks_share(uneven, 3, 100, shares);
    assert_true(shares[0] == 0 && shares[2] == 3 * shares[1] && shares[1] > 0);
}

static void test_bench_tells(void **state) {
    (void)state;
    struct engine *engine = calloc(1, sizeof *engine);
    struct bench_experts e;
    assert_non_null(engine);
    engine->has_ranks = true;
    ranks_stats_add(&(struct ranks_stats){.exchanges = 5, .sent_bytes = 7, .received_bytes = 9, .wait_s = 1});
    bench_experts_begin(&e, engine);
    ranks_stats_add(&(struct ranks_stats){.exchanges = 3, .sent_bytes = 100, .received_bytes = 1000, .wait_s = 0.5});
    bench_experts_end(&e, engine, 1);
    json_t *told = bench_ranks_json(&e);
    assert_int_equal(json_integer_value(json_object_get(told, "exchanges")), 3);
    assert_int_equal(json_integer_value(json_object_get(told, "sent_bytes")), 100);
    assert_int_equal(json_integer_value(json_object_get(told, "received_bytes")), 1000);
    assert_true(json_real_value(json_object_get(told, "wait_s")) == 0.5);
    json_decref(told);
    e.has_ranks = false;
    told = bench_ranks_json(&e);
    assert_true(json_is_null(told));
    free(engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alike),
        cmocka_unit_test(test_by_share),
        cmocka_unit_test(test_by_memory),
        cmocka_unit_test(test_bench_tells),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
