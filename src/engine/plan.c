#include "engine/plan.h"

#include "base/memory.h"
#include "cache/disk.h"
#include "engine/cards.h"
#include "engine/device.h"
#include "engine/experts.h"
#include "engine/numa.h"
#include "engine/offload.h"
#include "engine/selftest.h"
#include "engine/turn.h"
#include "plan/memory.h"

static const double GIB = 1 << 30;

double engine_plan_scratch(const struct engine *engine, const struct backend_options *backend) {
    const struct engine_options *o = &engine->options;
    size_t grammars = engine->grammars ? grammar_cache_bytes(o->max_grammars, o->max_num_seqs) : 0;
    size_t slots = o->cache_folder ? disk_memory_bytes(kv_pool_bytes(&engine->model, backend->kv, 1, 1)) : 0;
    return (double)cpu_backend_scratch_bytes(&engine->model, backend) + (double)(grammars + slots) +
           engine_selftest_bytes(engine, backend);
}

/* What weights and scratch leave for the cache. */
static double cache_budget(const struct engine *engine, double scratch) {
    double mapped =
        engine->weights.made
            ? 0
            : (double)weights_file_bytes(&engine->checkpoint, &engine->model) + /* what was made is taken already */
                  engine_turn_more(engine);
    mapped -= engine->ranks_bytes; /* other processes have these */
    return plan_cache_budget(memory_available_bytes(), engine->options.memory_utilization, mapped, scratch);
}

static int check_scratch(const struct engine *engine, double scratch, struct mo_error *error) {
    double memory = memory_available_bytes() * engine->options.memory_utilization;
    if (scratch <= memory) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY,
                        "a batch of %d tokens needs %.2f GiB of scratch, %.2f GiB are available; a smaller "
                        "--max-num-batched-tokens makes it smaller",
                        engine->options.max_num_batched_tokens, scratch / GIB, memory / GIB);
}

/* Whose experts the CPU could compute. */
static bool has_more_layers(const struct engine *engine) {
    return engine->gpu >= 0 && engine->cpu_layers < model_moe_layers(&engine->model);
}

/* Near parts for so many pages; 0: as many as these. */
static int near_for(const struct engine *engine, int n_pages) {
    const struct engine_options *o = &engine->options;
    if (!model_is_hybrid(&engine->model) || !o->only_scheduled) return 0;
    int n = (int)cache_near_parts(n_pages, engine->model.hybrid.window, o->max_num_seqs, o->max_num_batched_tokens);
    return n < n_pages ? n : 0;
}

double engine_plan_cache_bytes(const struct engine *engine, const struct backend_options *backend, int64_t n_tokens) {
    int n_pages = (int)((n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
    return (double)kv_pool_bytes(&engine->model, backend->kv, n_pages, near_for(engine, n_pages));
}

/* The most pages whose cache takes no more than that. */
static int pages_within(const struct engine *engine, const struct backend_options *backend, double bytes) {
    int low = 1, high = 1 << 28;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        if (engine_plan_cache_bytes(engine, backend, (int64_t)middle * KV_PAGE_TOKENS) <= bytes) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

int engine_plan_check_context(const struct engine *engine, struct mo_error *error) {
    const int asked = engine->options.max_model_len, context = engine->model.context;
    if (asked <= context) return 0;
    return mo_error_set(error, MO_E_INVALID, "--max-model-len %d is longer than the model's context of %d tokens",
                        asked, context);
}

static int settle_context(struct engine *engine, const struct backend_options *backend, int fit_pages,
                          struct mo_error *error) {
    struct engine_options *o = &engine->options;
    int context = engine->model.context;
    int64_t fit_tokens = (int64_t)fit_pages * KV_PAGE_TOKENS;
    if (o->max_model_len > fit_tokens) {
        return mo_error_set(error, MO_E_NO_MEMORY,
                            "--max-model-len %d needs %.2f GiB of cache, %.2f GiB are left beside the "
                            "weights; %lld tokens would fit (--kv-cache-dtype fp8 makes the cache smaller%s)",
                            o->max_model_len, engine_plan_cache_bytes(engine, backend, o->max_model_len) / GIB,
                            engine_plan_cache_bytes(engine, backend, fit_tokens) / GIB, (long long)fit_tokens,
                            has_more_layers(engine) ? ", --n-cpu-moe N leaves experts in the machine's memory" : "");
    }
    if (!o->max_model_len) o->max_model_len = context < fit_tokens ? context : (int)fit_tokens;
    return 0;
}

static int cache_bytes_left(const struct engine *engine, const struct backend_options *backend, double *bytes,
                            struct mo_error *error) {
    if (engine->gpu >= 0) return engine_device_left(engine, backend, bytes, error);
    double scratch = engine_plan_scratch(engine, backend);
    *bytes = cache_budget(engine, scratch);
    int code = check_scratch(engine, (double)cpu_backend_scratch_bytes(&engine->model, backend), error);
    return code || !engine->store ? code : engine_experts_leave(engine, scratch, bytes, error);
}

/* For all sequences. */
static int64_t pages_of(const struct engine_options *o, int64_t tokens) {
    return (tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS * o->max_num_seqs;
}

/* The lists of a card's step grow with the cache: rather too many pages than too few. */
static int most_pages(const struct engine *engine) {
    const struct engine_options *o = &engine->options;
    int64_t tokens = o->max_model_len ? o->max_model_len : engine->model.context;
    int64_t pages = pages_of(o, tokens);
    return pages < 1 << 16 ? (int)pages : 1 << 16;
}

void engine_plan_options(const struct engine *engine, struct backend_options *backend) {
    const struct engine_options *o = &engine->options;
    *backend = (struct backend_options){
        .threads = o->threads,
        .affinity = engine_numa_affinity(o),
        .max_rows = o->max_num_batched_tokens,
        .max_logits = o->max_logits,
        .max_seqs = o->max_num_seqs,
        .kv = (enum kv_format)(o->kv - 1),
        .compute = (enum compute)o->compute,
        .attention = (enum attention)o->attention,
        .batch_invariant = o->batch_invariant,
        .take_cache = o->take_cache,
        .copies_pages = o->cache_folder != NULL,
        .cpu_layers = engine->cpu_layers,
        .link_rows = engine_offload_link_rows(engine),
        .ranks = engine->split.count > 1 ? &engine->split : NULL,
        .n_pages = most_pages(engine),
    };
}

/* Whether steps of this length leave what was asked for: a context, an expert cache, experts on the card. */
static bool steps_fit(const struct engine *engine) {
    struct engine most = *engine;
    struct backend_options backend;
    const int asked = engine->options.max_model_len;
    double left;
    most.cpu_layers = engine_offload_most(engine);
    if (most.n_parts && engine_cards_split(&most, NULL)) return false;
    engine_plan_options(&most, &backend);
    if (cache_bytes_left(&most, &backend, &left, NULL)) return false;
    if (left < engine_plan_cache_bytes(engine, &backend, asked)) return false;
    return engine->gpu >= 0 || engine_plan_scratch(engine, &backend) <= memory_available_bytes() * PLAN_LONG_STEP_SHARE;
}

void engine_plan_lengthen_steps(struct engine *engine) {
    struct engine_options *o = &engine->options;
    const int before = o->max_num_batched_tokens;
    if (!o->may_lengthen_steps || before >= PLAN_LONG_STEP_TOKENS) return;
    o->max_num_batched_tokens = PLAN_LONG_STEP_TOKENS;
    if (!steps_fit(engine)) o->max_num_batched_tokens = before;
}

int engine_plan(struct engine *engine, struct backend_options *backend, struct mo_error *error) {
    const struct engine_options *o = &engine->options;
    int code = engine->n_parts ? engine_cards_split(engine, error) : 0;
    engine_plan_options(engine, backend);
    double left;
    if (!code) code = cache_bytes_left(engine, backend, &left, error);
    if (code) return code;
    int fit_pages = pages_within(engine, backend, left);
    code = settle_context(engine, backend, fit_pages, error);
    if (code) return code;
    int64_t pages = pages_of(o, o->max_model_len);
    engine->n_pages = backend->n_pages = pages < fit_pages ? (int)pages : fit_pages;
    engine->n_near = backend->n_near = near_for(engine, engine->n_pages);
    return 0;
}
