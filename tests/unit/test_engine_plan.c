/* What is set aside before the cache takes the rest: pages on their way to the disk, and exchanges with other ranks;
 * and that `plan` counts V4's cache as the engine does, and a card's scratch as its backend. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include "backend/cpu/moe.h"
#include "base/file.h"
#include "cache/disk.h"
#include "engine/plan.h"
#include "model/synth.h"
#include "plan/memory.h"

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

static double planned_cache(const char *config, const struct engine_options *o, int context) {
    struct plan_input in = {.machine = {.nodes = 1}};
    struct plan_memory memory;
    struct mo_error error = {0};
    char *text;
    size_t size;
    if (file_read(config, 1 << 20, &text, &size, &error)) fail_msg("%s", error.message);
    if (plan_arch_parse(&in.arch, text, size, config, &error)) fail_msg("%s", error.message);
    free(text);
    in.wish = (struct plan_wish){.kv = (enum kv_format)(o->kv - 1),
                                 .context = context,
                                 .seqs = o->max_num_seqs,
                                 .batched_tokens = o->max_num_batched_tokens,
                                 .utilization = 1};
    plan_memory_at(&in, PLAN_IN_RAM, &memory);
    return memory.kv_bytes;
}

/* V4's cache: what `plan` says is what a server takes, with few pages, which all have a near part, and with many. */
static void test_near_parts(void **state) {
    (void)state;
    const int contexts[] = {64, 512, 1024, 4096};
    for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++) {
        struct engine *engine = calloc(1, sizeof *engine);
        struct backend_options backend;
        struct mo_error error = {0};
        assert_non_null(engine);
        engine_options_init(&engine->options);
        engine->options.model = "tests/golden/data/v4-tiny";
        engine->options.threads = 1;
        engine->options.max_model_len = contexts[i];
        engine->options.max_num_seqs = 3;
        engine->options.only_scheduled = true;
        engine->gpu = -1;
        if (engine_open_weights(engine, &error)) fail_msg("%s", error.message);
        if (engine_plan(engine, &backend, &error)) fail_msg("%s", error.message);
        assert_int_equal(engine->n_pages, 3 * contexts[i] / 64);
        assert_true(engine->n_near < engine->n_pages && (engine->n_near > 0) == (contexts[i] > 512));
        double taken = (double)kv_pool_bytes(&engine->model, backend.kv, engine->n_pages, engine->n_near);
        assert_true(taken == planned_cache("tests/golden/data/v4-tiny/config.json", &engine->options, contexts[i]));
        engine_close(engine);
    }
}

/* ---- a card ---- */

/* Some layers of a published shape, whose weights are only described. */
struct described {
    struct plan_arch arch;
    struct model model;
    struct weights weights;
};

static void describe(const char *name, struct described *d) {
    struct mo_error error = {0};
    struct recipe recipe;
    json_t *config = NULL;
    int code = recipe_parse(&recipe, "fp8", 128, &error);
    if (!code) code = synth_config(&config, name, 5, &error);
    const struct synth synth = {.config = config, .recipe = &recipe, .seed = 1, .name = name};
    if (!code) code = synth_model(&synth, &d->model, &error);
    if (!code) code = synth_later(&synth, &d->model, &d->weights, &error);
    if (code || !plan_arch_builtin(&d->arch, name)) fail_msg("%s: %s", name, error.message);
    d->arch.hybrid.tables = d->model.hybrid.engram.n_layers; /* of these layers, and whether one names candidates */
    if (d->model.hybrid.candidate_layer < 0) d->arch.hybrid.candidate_blocks = 0;
    json_decref(config);
}

/* What `plan` counts for a card is what the backend takes there. */
static void test_card_scratch(void **state) {
    (void)state;
    static const char *const names[] = {"deepseek-v2-lite",  "deepseek-v2",     "deepseek-v3",        "deepseek-v3.2",
                                        "deepseek-v4-flash", "deepseek-v4-pro", "deepseek-v4.1-flash"};
    static const struct plan_wish wishes[] = {
        {KV_BF16, 4096, 1, 512, 0.9},   {KV_BF16, 32768, 1, 2048, 0.9}, {KV_FP8, 8192, 16, 2048, 0.9},
        {KV_FP8, 131072, 2, 4096, 0.9}, {KV_BF16, 2048, 64, 128, 0.9},  {KV_BF16, 512, 1, 16, 0.9},
    };
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        struct described d = {0};
        describe(names[n], &d);
        const struct cuda_part whole = cuda_whole(&d.model, 0);
        for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++) {
            const struct plan_wish *w = &wishes[i];
            const struct backend_options options = {.max_rows = w->batched_tokens,
                                                    .max_logits = w->seqs,
                                                    .max_seqs = w->seqs,
                                                    .kv = w->kv,
                                                    .n_pages = w->context / KV_PAGE_TOKENS * w->seqs};
            struct cuda_bytes taken;
            struct mo_error error = {0};
            if (cuda_backend_bytes(&d.model, &d.weights, &options, &whole, &taken, &error))
                fail_msg("%s", error.message);
            const double planned = plan_scratch_bytes(&d.arch, w, true), difference = planned - (double)taken.scratch;
            if (fabs(difference) > 0.01 * (double)taken.scratch + 1e6) {
                fail_msg("%s, %d x %d tokens, %d a step: planned %.1f MB, taken %.1f MB", names[n], w->seqs, w->context,
                         w->batched_tokens, planned * 1e-6, (double)taken.scratch * 1e-6);
            }
        }
        weights_free(&d.weights);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_exchanges),
        cmocka_unit_test(test_near_parts),
        cmocka_unit_test(test_card_scratch),
    };
    setenv("MOEBIUS_MEMORY", "0.25", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
