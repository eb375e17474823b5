/* Plans for several machines: dealing held to what the engine deals, chance to counting all cases, messages to what ranks/wire.h says
 * and what was once measured, times to sums made by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "engine/ranks.h"
#include "plan/ranks.h"
#include "plan/speed.h"

static void near(double found, double expected, double tolerance, const char *what) {
    if (!(fabs(found - expected) <= tolerance * fabs(expected))) {
        fail_msg("%s: expected %.9g, found %.9g", what, expected, found);
    }
}

static struct plan_input input_of(const char *name, const char *quant, int machines, double ram_gb) {
    struct plan_input in = {0};
    assert_true(plan_arch_builtin(&in.arch, name));
    assert_int_equal(plan_quant_parse(&in.quant, quant, NULL), 0);
    plan_weights_from_quant(&in.weights, &in.arch, &in.quant);
    in.machine = (struct plan_machine){.nodes = machines,
                                       .parallel = PLAN_PARALLEL_RANKS,
                                       .hit_rate = -1,
                                       .ram_bytes = ram_gb * 1e9,
                                       .ram_gb_s = 200,
                                       .network_gb_s = 1.25,
                                       .network_s = 30e-6};
    in.wish = (struct plan_wish){.kv = KV_BF16, .context = 8192, .seqs = 1, .batched_tokens = 512, .utilization = 0.9};
    return in;
}

static void test_dealt_as_the_engine_deals(void **state) {
    (void)state;
    static const double ram_gb[] = {20, 60, 180, 200, 400, 4000};
    for (int count = 2; count <= 9; count++) {
        for (size_t i = 0; i < sizeof ram_gb / sizeof *ram_gb; i++) {
            struct plan_input in = input_of("deepseek-v3", "int4", count, ram_gb[i]);
            double each = plan_usable_ram(&in.machine, &in.wish), routed = in.weights.bytes[PLAN_ROUTED];
            double memory[16], shares[16], room = 0;
            uint8_t owner[256];
            int sizes[PLAN_MAX_RANKS], dealt[16] = {0}, sum = 0;
            for (int r = 0; r < count; r++) memory[r] = each;
            memory[0] -= plan_weights_total(&in.weights) - routed;
            for (int r = 0; r < count; r++) room += memory[r];
            engine_ranks_share(memory, count, room < routed ? 0 : routed, shares);
            engine_ranks_deal(shares, count, 256, owner);
            plan_ranks_deal(&in, false, sizes);
            for (int e = 0; e < 256; e++) dealt[owner[e]]++;
            for (int r = 0; r < count; r++) {
                sum += sizes[r];
                if (abs(sizes[r] - dealt[r]) > 1)
                    fail_msg("%d machines of %g GB: %d for %d, expected %d", count, ram_gb[i], sizes[r], r, dealt[r]);
            }
            assert_int_equal(sum, 256);
        }
    }
}

/* Every set of `met` of at most 12 experts. */
static double count_all(const int *sizes, int count, int met) {
    int experts = 0, cases = 0, sum = 0;
    for (int r = 0; r < count; r++) experts += sizes[r];
    for (int set = 0; set < 1 << experts; set++) {
        int most = 0, first = 0;
        if (__builtin_popcount((unsigned)set) != met) continue;
        for (int r = 0; r < count; r++) {
            int n = __builtin_popcount((unsigned)set >> first & ((1u << sizes[r]) - 1));
            most = n > most ? n : most;
            first += sizes[r];
        }
        sum += most;
        cases++;
    }
    return (double)sum / cases;
}

static void test_busiest(void **state) {
    (void)state;
    static const int sizes[][4] = {{6, 6}, {4, 3, 3}, {1, 5, 6}, {3, 3, 3, 3}, {0, 6, 5}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int count = i == 0 ? 2 : i == 3 ? 4 : 3, experts = 0;
        for (int r = 0; r < count; r++) experts += sizes[i][r];
        for (int met = 1; met <= experts; met++) {
            near(plan_ranks_busiest(sizes[i], count, met), count_all(sizes[i], count, met), 1e-9, "busiest");
        }
        double between = plan_ranks_busiest(sizes[i], count, 2.5);
        near(between, (count_all(sizes[i], count, 2) + count_all(sizes[i], count, 3)) / 2, 1e-9, "between");
    }
    int many[PLAN_MAX_RANKS], all[2] = {2048, 2048};
    for (int r = 0; r < PLAN_MAX_RANKS; r++) many[r] = 4;
    double busiest = plan_ranks_busiest(many, PLAN_MAX_RANKS, 8); /* seldom more than 2 */
    assert_true(busiest > 1.2919 && busiest < 1.31);              /* 0.7081: all on different ones */
    near(plan_ranks_busiest(all, 2, 4096), 2048, 1e-9, "all of them");
    assert_true(plan_ranks_busiest(all, 2, 1000) > 500 && plan_ranks_busiest(all, 2, 1000) < 520);
}

/* wire.h: 28 KB to the other rank, half of 229 KB back; over 58 layers 8.3 MB a token, 7 ms of a 10 Gbit/s line. */
static void test_messages(void **state) {
    (void)state;
    struct plan_input in = input_of("deepseek-v3", "int4", 2, 256);
    const int sizes[2] = {128, 128};
    struct plan_exchange e;
    double none = 1;
    for (int i = 0; i < 8; i++) none *= (128.0 - i) / (256 - i);
    plan_ranks_exchange(&in.arch, sizes, 2, 1, &e);
    near(e.pieces, 1, 0, "pieces");
    near(e.sent_bytes, (1 - none) * (64 + 64 + 4 * 7168), 1e-12, "sent");
    near(e.received_bytes, (1 - none) * 64 + 4 * 4 * 7168, 1e-12, "received");
    near(58 * (e.sent_bytes + e.received_bytes), 8.3e6, 0.01, "a token");
    plan_ranks_exchange(&in.arch, sizes, 2, 512, &e);
    near(e.pieces, 4, 0, "pieces of 512 rows");
}

/* DESIGN.md, 6d: what `bench` counted on two ranks with Coder-V2-Lite's shape, one row, eight, and a prompt's piece (1,024 pairs). */
static void test_messages_as_measured(void **state) {
    (void)state;
    struct plan_input in = input_of("deepseek-coder-v2-lite", "int4", 2, 256);
    const int sizes[2] = {32, 32};
    static const struct {
        int rows;
        double sent, received;
    } measured[] = {{1, 8e3, 22e3}, {8, 65e3, 198e3}, {512, 2.8e6, 4.0e6}};
    for (size_t i = 0; i < 3; i++) {
        struct plan_exchange e;
        plan_ranks_exchange(&in.arch, sizes, 2, measured[i].rows, &e);
        near(e.received_bytes / e.pieces, measured[i].received, 0.15, "received");
        if (i < 2)
            near(e.sent_bytes, measured[i].sent, 0.05, "sent"); /* pieces send a row anew where it is wanted again */
    }
}

static void test_memory(void **state) {
    (void)state;
    struct plan_input in = input_of("deepseek-v3", "int4", 2, 256);
    struct plan_memory m;
    plan_memory(&in, &m);
    double routed = in.weights.bytes[PLAN_ROUTED], rest = plan_weights_total(&in.weights) - routed;
    assert_true(m.fits && m.place == PLAN_IN_RAM);
    near(m.ram.need_bytes, rest + routed / 2 + m.kv_bytes + m.scratch_bytes, 1e-9, "first");
    near(m.other.need_bytes, routed / 2 + 3 * 1024 * (8 + 4 * 7168.0), 1e-9, "other");
    near(m.headroom_bytes, 248e9 - m.ram.need_bytes, 1e-9, "headroom");
    near(m.cache_tokens, floor((248e9 - m.ram.need_bytes + m.kv_bytes) / m.kv_bytes_per_token), 1e-9, "tokens");
    in.machine.ram_bytes = 186e9; /* the first has no room for a half: by memory */
    plan_memory(&in, &m);
    assert_true(m.other.need_bytes > m.ram.need_bytes - rest + 4e9);
    in.machine.ram_bytes = 150e9;
    in.machine.ssd_gb_s = 7; /* --expert-cache does not go with it */
    plan_memory(&in, &m);
    assert_false(m.fits);
    in.machine.nodes = 3;
    plan_memory(&in, &m);
    assert_true(m.fits);
}

static void test_a_card_for_the_rest(void **state) {
    (void)state;
    struct plan_input in = input_of("deepseek-v3", "int4", 2, 256);
    struct plan_memory m;
    struct plan_speed s;
    assert_int_equal(plan_gpu_parse(&in.machine.gpu, "rtx-4090", NULL), 0);
    plan_memory(&in, &m);
    assert_true(m.fits && m.place == PLAN_IN_GPU_RAM);
    near(m.ram.need_bytes, in.weights.bytes[PLAN_ROUTED] / 2, 1e-9, "RAM of the first");
    plan_decode(&in, &m, 1, 0, &s);
    int waits = 0;
    for (int i = 0; i < s.n_parts; i++) waits += !strncmp(s.parts[i].what, "rows to the other", 17);
    assert_int_equal(waits, 1);
    assert_false(plan_prefill_known(&in, &m)); /* experts are not streamed to a card then */
}

static void test_speed(void **state) {
    (void)state;
    struct plan_input in = input_of("deepseek-v3", "int4", 2, 256);
    struct plan_memory m;
    struct plan_speed s;
    struct plan_exchange e;
    const int sizes[2] = {128, 128};
    plan_memory(&in, &m);
    plan_decode(&in, &m, 1, 0, &s);
    plan_ranks_exchange(&in.arch, sizes, 2, 1, &e);
    double fixed = plan_weights_fixed_bytes(&in.arch, &in.weights);
    double routed = 58 * 8 * plan_weights_expert_bytes(&in.arch, &in.weights);
    double way = 58 * (2 * 30e-6 + (e.sent_bytes + e.received_bytes) / 1.25e9);
    near(s.limit_s, (fixed + routed / 2) / 200e9 + way, 1e-6, "limit");
    struct plan_input one = in;
    struct plan_speed alone;
    one.machine.nodes = 1;
    plan_decode(&one, &m, 1, 0, &alone);
    double routed_share = 0; /* that the formula of one machine goes by */
    for (int i = 0; i < alone.n_parts; i++) {
        if (!strcmp(alone.parts[i].what, "routed experts, RAM")) routed_share = alone.parts[i].share;
    }
    double busiest = plan_ranks_busiest(sizes, 2, 8);
    assert_true(busiest > 5 && busiest < 5.2); /* 8 of 256, two halves: 5.09 */
    near(s.expected_s, alone.expected_s - routed / 200e9 / routed_share * (1 - busiest / 8) + way, 1e-6, "expected");
    assert_true(s.expected_s > s.limit_s);
    for (int n = 3; n < 60;
         n += 7) { /* more machines are never slower to read, and 64 sequences never faster to send */
        in.machine.nodes = n;
        plan_decode(&in, &m, 1, 0, &alone);
        assert_true(isfinite(alone.expected_s) && alone.expected_s > way);
    }
}

static void test_networks(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double gb_s, us;
    } good[] = {{"1.25,50", 1.25, 50},     {"10gbit", 1.25, 50}, {"10gbit,30", 1.25, 30}, {"400gbit,2", 50, 2},
                {"1250MB/s,20", 1.25, 20}, {"5GB/s", 5, 50},     {"100mbit", 0.0125, 50}};
    static const char *const bad[] = {"5",        "gbit", "10gbit,", "10furlong,3", "-1,3",      "10gbit,x",
                                      "10gbit,0", "",     "10gbits", "nan,1",       "1e999gbit", "1e-320,1"};
    struct plan_machine machine;
    struct mo_error error;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(plan_network_parse(&machine, good[i].text, &error), 0);
        near(machine.network_gb_s, good[i].gb_s, 1e-12, good[i].text);
        near(machine.network_s, good[i].us * 1e-6, 1e-12, good[i].text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(plan_network_parse(&machine, bad[i], &error), MO_E_INVALID);
        assert_non_null(strstr(error.message, "--network"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dealt_as_the_engine_deals),
        cmocka_unit_test(test_busiest),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_messages_as_measured),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_a_card_for_the_rest),
        cmocka_unit_test(test_speed),
        cmocka_unit_test(test_networks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
