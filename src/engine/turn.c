#include "engine/turn.h"

#include "base/log.h"
#include "base/memory.h"
#include "engine/plan.h"
#include "ranks/ranks.h"

enum { THREADS_BESIDE = 4 }; /* requests: a step waits for its slowest thread, and each of these delays one */

/* Weights that are read as they lie: what an expert cache reads is not asked for often enough to be worth the turning. */
static bool stays(const struct engine *engine) {
    return engine->options.no_repack || engine->weights.made || engine->weights.later || engine->store;
}

/* Is the processor's work here all of the model, or routed experts alone? */
static bool has_rest(const struct engine *engine) {
    return engine->gpu < 0 && ranks_self() == 0;
}

bool engine_computes_here(const void *context, int layer, int expert) {
    const struct engine *engine = context;
    const bool is_on_card = engine->gpu >= 0 && layer >= engine->model.dense_layers + engine->cpu_layers;
    if (expert < 0) return has_rest(engine);
    if (is_on_card) return false;
    return engine->split.count < 2 || engine->split.owner[expert] == engine->split.self;
}

static struct turn_choice choice_of(const struct engine *engine) {
    return (struct turn_choice){engine_computes_here, engine};
}

/* Of the machine's memory, which other ranks may share. */
static double memory_share(const struct engine *engine) {
    return engine->split.count > 1 ? 1.0 / engine->split.on_host[engine->split.self] : 1;
}

/* Turned blocks lie in memory for good; what the file has besides is read from it again and again where it does not fit, and
 * should not have less room than the blocks as they lie would leave it. To a card experts go as they lie: then that is all of it. */
static double room_bytes(const struct engine *engine, const struct backend_options *backend, double turned) {
    const bool is_all = has_rest(engine);
    const double available = memory_available_bytes() * memory_share(engine);
    const double file =
        is_all ? (double)weights_file_bytes(&engine->checkpoint, &engine->model) - engine->ranks_bytes : 0;
    const double cache =
        is_all ? (double)kv_pool_bytes(&engine->model, backend->kv, engine->n_pages, engine->n_near) : 0;
    const double beside = engine_plan_scratch(engine, backend) + cache;
    const bool is_sent = backend->link_rows && backend->link_rows <= backend->max_rows;
    const double rest = is_sent ? turned : file > turned ? file - turned : 0;
    const double in_all = available - beside - rest, ours = available * engine->options.memory_utilization - beside;
    return in_all < ours ? in_all : ours;
}

/* Has it matrices that no fast kernel reads as they lie (mat_must_turn)? */
static bool must_turn(const struct model *model) {
    return model->quant == QUANT_GPTQ || model->quant == QUANT_PACKED || model->quant == QUANT_INT8;
}

static int refuse_room(const struct engine *engine, double bytes, double room, struct mo_error *error) {
    return mo_error_set(
        error, MO_E_NO_MEMORY,
        "%s: its weights are put into another order in memory, which takes %.2f GB, and %.2f GB are left "
        "beside the cache (a file of `moebius quantize` is mapped and needs less)",
        engine->path, bytes * 1e-9, room > 0 ? room * 1e-9 : 0);
}

double engine_turn_more(const struct engine *engine) {
    size_t bytes, more = 0;
    struct mo_error ignored;
    if (stays(engine)) return 0;
    return turn_bytes(&engine->model, &engine->weights, choice_of(engine), &bytes, &more, &ignored) ? 0 : (double)more;
}

int engine_turn_choose(struct engine *engine, const struct backend_options *backend, struct mo_error *error) {
    const bool is_made = engine->weights.made || engine->weights.later, must = must_turn(&engine->model) && !is_made;
    size_t bytes = 0;
    if (must && engine->options.no_repack) {
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "--no-repack: no kernel reads the weights of %s as they lie in its files", engine->path);
    }
    if (stays(engine)) return 0;
    int code = turn_bytes(&engine->model, &engine->weights, choice_of(engine), &bytes, NULL, error);
    if (code || !bytes) return code;
    const double room = room_bytes(engine, backend, (double)bytes);
    engine->will_turn = (double)bytes <= room;
    if (must && !engine->will_turn) return refuse_room(engine, (double)bytes, room, error);
    if (!engine->will_turn) {
        log_info("%s: its weights stay as they lie, which is slower: another order takes %.2f GB, and %.2f GB are left "
                 "beside the cache and other weights",
                 engine->path, (double)bytes * 1e-9, room > 0 ? room * 1e-9 : 0);
    }
    return 0;
}

int engine_turn_first(struct engine *engine, struct mo_error *error) {
    if (!engine->will_turn || !must_turn(&engine->model)) return 0;
    int code = turner_begin(&engine->turner, &engine->model, &engine->weights, choice_of(engine),
                            engine->options.threads, error);
    if (!code) turner_wait(engine->turner);
    return code;
}

static void begin(struct engine *engine, int threads) {
    struct mo_error reason;
    if (!engine->will_turn || engine->turner) return;
    if (!turner_begin(&engine->turner, &engine->model, &engine->weights, choice_of(engine), threads, &reason)) return;
    engine->will_turn = false;
    log_warn("%s: its weights stay as they lie, which is slower: %s", engine->path, reason.message);
}

void engine_turn_begin(struct engine *engine) {
    const int threads = engine->options.threads;
    begin(engine, threads < THREADS_BESIDE ? threads : THREADS_BESIDE);
}

void engine_turn_begin_alone(struct engine *engine) {
    begin(engine, engine->options.threads);
}

void engine_turn_now(struct engine *engine) {
    engine_turn_begin_alone(engine);
    turner_wait(engine->turner);
}
