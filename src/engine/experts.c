#include "engine/experts.h"

#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "base/memory.h"
#include "engine/offload.h"
#include "engine/plan.h"

static const double GIB = 1 << 30;

static bool is_auto(const struct engine_options *o) {
    return !o->expert_cache || !strcmp(o->expert_cache, "auto");
}

static int parse_size(const char *text, double *bytes, struct mo_error *error) {
    char *end;
    double gib = strtod(text, &end);
    if (end == text || *end || !(gib >= 0 && gib <= 1 << 20)) {
        return mo_error_set(error, MO_E_INVALID, "--expert-cache: expected auto or a number of GiB, found \"%s\"",
                            text);
    }
    *bytes = gib * GIB;
    return 0;
}

static bool computes_experts(const struct engine *engine) {
    return engine->gpu < 0 || engine->cpu_layers;
}

static double memory_bytes(const struct engine *engine) {
    return memory_available_bytes() * engine->options.memory_utilization;
}

/* What the host holds besides experts, cache and scratch. */
static double rest_bytes(const struct engine *engine) {
    return engine->gpu < 0 ? (double)store_rest_bytes(engine->store) : 0;
}

static double least_bytes(const struct engine *engine) {
    return (double)store_slot_bytes(engine->store) * STORE_MIN_SLOTS;
}

/* A model that does not fit, and nobody said what to do: the kernel's page cache is the worse choice, but a choice. */
static void choose_freely(struct engine *engine) {
    struct mo_error reason = {0};
    if (engine->options.like || engine->weights.made || engine->weights.later || !computes_experts(engine)) return;
    double needed = engine->gpu < 0 ? (double)weights_file_bytes(&engine->checkpoint, &engine->model)
                                    : engine_offload_bytes(engine);
    if (!engine->model.experts || needed <= memory_bytes(engine)) return;
    if (store_open(&engine->store, &engine->model, &engine->weights, &engine->checkpoint, &reason)) {
        log_warn("the weights do not fit into memory, and their experts cannot be cached: %s", reason.message);
    }
}

int engine_experts_check_made(const struct engine_options *options, struct mo_error *error) {
    double bytes;
    if (is_auto(options)) return 0;
    int code = parse_size(options->expert_cache, &bytes, error);
    if (code || bytes == 0) return code;
    return mo_error_set(error, MO_E_UNSUPPORTED,
                        "--expert-cache: with --quantization or --like the weights are made in memory: no file has "
                        "experts that could be read one by one; `moebius quantize` makes one");
}

int engine_experts_choose(struct engine *engine, struct mo_error *error) {
    if (ranks_count() > 1) return 0; /* those that are ours are mapped */
    if (is_auto(&engine->options)) {
        choose_freely(engine);
        return 0;
    }
    int code = parse_size(engine->options.expert_cache, &engine->expert_bytes, error);
    if (code || engine->expert_bytes == 0) return code;
    if (!computes_experts(engine)) {
        return mo_error_set(
            error, MO_E_UNSUPPORTED,
            "--expert-cache is for experts that the CPU computes: add --expert-device cpu or --n-cpu-moe N");
    }
    code = store_open(&engine->store, &engine->model, &engine->weights, &engine->checkpoint, error);
    return code ? mo_error_prefix(error, "--expert-cache") : 0;
}

int engine_experts_leave(const struct engine *engine, double scratch, double *bytes, struct mo_error *error) {
    double room = memory_bytes(engine) - rest_bytes(engine) - scratch, least = least_bytes(engine);
    double wanted = engine->expert_bytes > 0 ? engine->expert_bytes : least;
    if (room < wanted) {
        return mo_error_set(error, MO_E_NO_MEMORY,
                            "--expert-cache: %.2f GiB do not fit beside %.2f GiB of other weights and %.2f GiB of "
                            "scratch: %.2f GiB are left",
                            wanted / GIB, rest_bytes(engine) / GIB, scratch / GIB, room > 0 ? room / GIB : 0);
    }
    *bytes = engine->expert_bytes > 0 || engine->options.max_model_len ? room - wanted : room / 4;
    return 0;
}

/* What the plan has left. */
static double free_bytes(const struct engine *engine, const struct backend_options *backend) {
    double cache = (double)kv_pool_bytes(&engine->model, backend->kv, backend->n_pages, backend->n_near);
    double scratch = engine_plan_scratch(engine, backend);
    double left = memory_bytes(engine) - rest_bytes(engine) - scratch - (engine->gpu < 0 ? cache : 0);
    return left > least_bytes(engine) ? left : least_bytes(engine);
}

int engine_experts_start(struct engine *engine, struct backend_options *backend, struct mo_error *error) {
    struct store *store = engine->store;
    if (!store) return 0;
    double bytes = engine->expert_bytes > 0 ? engine->expert_bytes : free_bytes(engine, backend);
    int records = engine->gpu < 0 ? store_records(store) : engine->cpu_layers * engine->model.experts;
    double all = (double)records * (double)store_slot_bytes(store);
    if (bytes > all) bytes = all;
    if (bytes > memory_bytes(engine)) {
        return mo_error_set(error, MO_E_NO_MEMORY, "--expert-cache: %.2f GiB are more than the %.2f GiB that there are",
                            bytes / GIB, memory_bytes(engine) / GIB);
    }
    int code = store_start(store, (size_t)bytes, backend->take_cache, NULL, error);
    if (code) return code;
    if (engine->gpu < 0) store_touch_rest(store);
    log_info("%d of %d experts fit into %.2f of %.2f GiB; the others are read from disk when they are needed "
             "(--expert-cache)",
             store_slots(store), records, (double)store_slots(store) * (double)store_slot_bytes(store) / GIB,
             engine_offload_bytes(engine) / GIB);
    backend->store = store;
    backend->predict_experts = true;
    return 0;
}
