#include "engine/selftest.h"

#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "engine/cards.h"
#include "expert/store.h"
#include "selftest/selftest.h"

/* The first matrix of a layer is as good as any: either all have bytes or none. */
static bool has_bytes(const struct engine *engine) {
    return engine->weights.layers[0].o.data != NULL;
}

static int fail_with(struct mo_error *error, const struct mo_error *why, const char *advice) {
    if (why->code != MO_E_INTERNAL) { /* it did not compute wrong: it failed */
        *error = *why;
        return mo_error_prefix(error, "self-test");
    }
    return mo_error_set(
        error, why->code,
        "self-test: %s. Answers would be wrong, so nothing was started. %s; --no-self-test starts all the same. "
        "Please report this line",
        why->message, advice);
}

/* The best level below that passes, as advice; else none does. */
static void advise_level(const struct selftest *test, enum cpu_level failed, char *advice, size_t size) {
    struct selftest_report unused = {0};
    struct kern kern;
    for (int level = (int)failed - 1; level >= CPU_REF; level--) {
        if (!cpu_offers((enum cpu_level)level)) continue;
        kern_init(&kern, (enum cpu_level)level);
        if (selftest_kernels(test, &kern, &unused, NULL)) continue;
        snprintf(advice, size, "MOEBIUS_CPU=%s passes this test; `moebius check` says more", kern.name);
        return;
    }
}

static int test_level(const struct selftest *test, struct selftest_report *report, struct mo_error *error) {
    enum cpu_level level;
    struct kern kern;
    struct mo_error why = {0};
    char advice[128] = "`moebius check` says more";
    int code = cpu_level_get(&level, error);
    if (code || level == CPU_REF) return code; /* plain C is what others are compared with */
    level = kern_level(level, test->compute == COMPUTE_F32);
    kern_init(&kern, level);
    code = selftest_kernels(test, &kern, report, &why);
    if (!code) return 0;
    if (code == MO_E_INTERNAL) advise_level(test, level, advice, sizeof advice);
    return fail_with(error, &why, advice);
}

static int test_card(const struct engine *engine, const struct selftest *test, const struct backend_options *backend,
                     struct selftest_report *report, struct mo_error *error) {
    struct mo_error why = {0}, named;
    char cards[CARDS_NAME_BYTES];
    int code = selftest_card(test, engine->backend, backend, report, &why);
    if (!code) return 0;
    if (code != MO_E_INTERNAL) return fail_with(error, &why, "");
    mo_error_set(&named, code, "%s%s, with a %s cache, %s", engine_cards_name(engine, cards),
                 engine->cpu_layers ? " and the CPU's experts" : "", test->kv == KV_FP8 ? "fp8" : "bf16", why.message);
    return fail_with(error, &named, "--device cpu computes without the card");
}

static int run(struct engine *engine, const struct backend_options *backend, struct selftest_report *report,
               struct mo_error *error) {
    const struct selftest test = {&engine->model,   &engine->weights, backend->kv,
                                  backend->compute, engine->parts,    engine->n_parts};
    int code = test_level(&test, report, error); /* the CPU first: a card is held against it */
    if (code || engine->gpu < 0) return code;
    return test_card(engine, &test, backend, report, error);
}

int engine_selftest(struct engine *engine, const struct backend_options *backend, struct mo_error *error) {
    struct selftest_report report = {0};
    double start = clock_now_s();
    char cards[CARDS_NAME_BYTES];
    if (engine->options.no_self_test) return 0;
    if (engine->gpu >= 0 && !has_bytes(engine)) {
        log_info("the self-test is left out: the weights were made on their way to %s, and the CPU has nothing to "
                 "compare it with",
                 engine_cards_name(engine, cards));
        return 0;
    }
    int code = run(engine, backend, &report, error);
    if (engine->store) store_stats_begin(engine->store); /* a card's experts may have come from there */
    if (!code && report.overflowed) {
        log_warn("the self-test of %s ended early: on the CPU, too, these weights lead to numbers that are not finite",
                 engine_cards_name(engine, cards));
    }
    engine->self_test_s = clock_now_s() - start;
    return code;
}

double engine_selftest_bytes(const struct engine *engine, const struct backend_options *backend) {
    if (engine->options.no_self_test) return 0;
    double card = engine->gpu >= 0 ? (double)selftest_card_bytes(&engine->model, backend) : 0;
    return (double)selftest_kernels_bytes(&engine->model) + card;
}
