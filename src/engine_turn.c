#include "engine_turn.h"

#include "base/log.h"
#include "base/memory.h"
#include "engine_plan.h"
#include "ranks/ranks.h"

/* Of blocks that are read as they lie, or not by the CPU's kernels, or only in part. */
static bool stays(const struct engine *engine) {
    return engine->options.no_repack || !engine->checkpoint.gguf || engine->weights.made || engine->weights.later ||
           engine->gpu >= 0 || engine->store || ranks_count() > 1;
}

int engine_turn_choose(struct engine *engine, const struct backend_options *backend, struct mo_error *error) {
    size_t bytes = 0;
    if (stays(engine)) return 0;
    int code = turn_bytes(&engine->model, &engine->weights, &bytes, error);
    if (code || !bytes) return code;
    const double beside =
        engine_plan_scratch(engine, backend) + (double)kv_pool_bytes(&engine->model, backend->kv, engine->n_pages);
    const double room = memory_available_bytes() * engine->options.memory_utilization - beside;
    engine->will_turn = (double)bytes <= room;
    if (!engine->will_turn) {
        log_info("%s: its blocks stay as they lie, which is slower: another order takes %.2f GB, and %.2f GB are left "
                 "beside the cache",
                 engine->path, (double)bytes * 1e-9, room > 0 ? room * 1e-9 : 0);
    }
    return 0;
}

int engine_turn_begin(struct engine *engine, struct mo_error *error) {
    if (!engine->will_turn) return 0;
    return turner_begin(&engine->turner, &engine->model, &engine->weights, engine->options.threads, error);
}

int engine_turn_now(struct engine *engine, struct mo_error *error) {
    int code = engine_turn_begin(engine, error);
    if (!code) turner_wait(engine->turner);
    return code;
}
