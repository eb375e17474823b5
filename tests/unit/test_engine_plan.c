/* What is set aside before the cache takes the rest: pages on their way to the disk, and exchanges with other ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include "backend/cpu/moe.h"
#include "cache/disk.h"
#include "engine_plan.h"

enum { RANKS = 2, PIECE_PAIRS = 1024 };

struct planned {
    int n_pages;
    double scratch;
    double exchange, page; /* bytes */
};

/* More sequences than there is room for. */
static struct planned plan_of(const char *cache_folder, int n_ranks) {
    struct engine *engine = calloc(1, sizeof *engine);
    struct backend_options backend;
    struct mo_error error = {0};
    assert_non_null(engine);
    engine_options_init(&engine->options);
    engine->options.model = "models/demo";
    engine->options.threads = 1;
    engine->options.max_model_len = 2048;
    engine->options.max_num_seqs = 512;
    engine->options.cache_folder = cache_folder;
    engine->gpu = -1;
    if (engine_open_weights(engine, &error)) fail_msg("%s", error.message);
    engine->split = (struct ranks_split){.count = n_ranks, .piece_pairs = PIECE_PAIRS};
    if (engine_plan(engine, &backend, &error)) fail_msg("%s", error.message);
    struct planned planned = {.n_pages = engine->n_pages,
                              .scratch = engine_plan_scratch(engine, &backend),
                              .page = (double)kv_pool_bytes(&engine->model, backend.kv, 1, 1)};
    if (n_ranks) planned.exchange = (double)exchange_bytes(&engine->model, &backend);
    engine_close(engine);
    return planned;
}

static void test_slots(void **state) {
    (void)state;
    struct planned without = plan_of(NULL, 0), with = plan_of("/somewhere", 0);
    assert_true(without.n_pages > 100 && without.n_pages < 512 * 32); /* what fits, not what is wanted */
    assert_true(with.scratch - without.scratch == (double)disk_memory_bytes((size_t)with.page));
    assert_int_equal(without.n_pages - with.n_pages, DISK_WRITE_SLOTS + DISK_READ_SLOTS);
}

static void test_exchanges(void **state) {
    (void)state;
    struct planned alone = plan_of(NULL, 0), together = plan_of(NULL, RANKS);
    assert_true(together.exchange > 1 << 20);
    assert_true(together.scratch - alone.scratch >= together.exchange);
    assert_true((alone.n_pages - together.n_pages + 1) * alone.page >= together.exchange);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_exchanges),
    };
    setenv("MOEBIUS_MEMORY", "0.25", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
