#include "engine_turn.h"

#include "base/log.h"
#include "base/memory.h"
#include "engine_plan.h"
#include "ranks/ranks.h"

enum { THREADS_BESIDE = 4 }; /* requests: a step waits for its slowest thread, and each of these delays one */

/* Of blocks that are read as they lie, or not by the CPU's kernels, or only in part. */
static bool stays(const struct engine *engine) {
    return engine->options.no_repack || !engine->checkpoint.gguf || engine->weights.made || engine->weights.later ||
           engine->gpu >= 0 || engine->store || ranks_count() > 1;
}

/* Turned blocks lie in memory for good; what the file has besides is read from it again and again where it does not fit, and
 * should not have less room than the blocks as they lie would leave it. */
static double room_bytes(const struct engine *engine, const struct backend_options *backend, double turned) {
    const double available = memory_available_bytes(), file = (double)engine->checkpoint.total_bytes;
    const double beside =
        engine_plan_scratch(engine, backend) + (double)kv_pool_bytes(&engine->model, backend->kv, engine->n_pages);
    const double rest = file > turned ? file - turned : 0;
    const double in_all = available - beside - rest, ours = available * engine->options.memory_utilization - beside;
    return in_all < ours ? in_all : ours;
}

int engine_turn_choose(struct engine *engine, const struct backend_options *backend, struct mo_error *error) {
    size_t bytes = 0;
    if (stays(engine)) return 0;
    int code = turn_bytes(&engine->model, &engine->weights, &bytes, error);
    if (code || !bytes) return code;
    const double room = room_bytes(engine, backend, (double)bytes);
    engine->will_turn = (double)bytes <= room;
    if (!engine->will_turn) {
        log_info("%s: its blocks stay as they lie, which is slower: another order takes %.2f GB, and %.2f GB are left "
                 "beside the cache and other weights",
                 engine->path, (double)bytes * 1e-9, room > 0 ? room * 1e-9 : 0);
    }
    return 0;
}

static void begin(struct engine *engine, int threads) {
    struct mo_error reason;
    if (!engine->will_turn) return;
    if (!turner_begin(&engine->turner, &engine->model, &engine->weights, threads, &reason)) return;
    engine->will_turn = false;
    log_warn("%s: its blocks stay as they lie, which is slower: %s", engine->path, reason.message);
}

void engine_turn_begin(struct engine *engine) {
    const int threads = engine->options.threads;
    begin(engine, threads < THREADS_BESIDE ? threads : THREADS_BESIDE);
}

void engine_turn_now(struct engine *engine) {
    begin(engine, engine->options.threads);
    turner_wait(engine->turner);
}
