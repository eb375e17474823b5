#include "engine/numa.h"

#include <unistd.h>
#include "base/log.h"
#include "base/numa_pages.h"
#include "base/progress.h"
#include "engine/turn.h"
#include "model/slots.h"

enum { LOOK_MATRICES = 512 }; /* of all, evenly: a second or less, where all would take minutes */
static const double WORTH_SAYING_GB = 0.005;
static const double BAD_SHARE = 0.1; /* of pages in the wrong place; below that it is not worth the time */

int engine_numa_settle(struct engine_options *o, struct mo_error *error) {
    struct numa_choice *choice = &o->numa_choice;
    numa_settle((enum numa_use)o->numa, choice);
    if (!choice->why_not.code || choice->wished == NUMA_AUTO) return 0;
    return mo_error_set(error, choice->why_not.code, "--numa: %s", choice->why_not.message);
}

static void say(const struct numa_choice *choice) {
    const bool is_said = choice->wished != NUMA_AUTO && choice->wished != NUMA_AS_IT_IS;
    if (choice->use == NUMA_DISTRIBUTE)
        log_info("memory nodes: pages and threads go over all %d (--numa isolate: one; --numa numactl: as the system "
                 "has it)",
                 __builtin_popcountll(choice->nodes));
    if (choice->use == NUMA_ISOLATE)
        log_info("memory nodes: threads stay on node %d, and so does memory while its %.2f GB have room",
                 __builtin_ctzll(choice->nodes), choice->memory_bytes * 1e-9);
    if (choice->wished == NUMA_AUTO && choice->has_several && choice->is_bound)
        log_info("memory nodes: pages go where this process was told to put them (numactl)");
    if (is_said && !choice->has_several)
        log_info("--numa: this process has one memory node, there is nothing to choose");
    if (choice->why_not.code)
        log_warn("several memory nodes: weights may all lie on one of them, and be read at its speed alone: %s",
                 choice->why_not.message);
}

enum affinity engine_numa_affinity(const struct engine_options *o) {
    if (o->cpu_strict) return AFFINITY_PROCESSOR;
    return o->numa_choice.use == NUMA_DISTRIBUTE ? AFFINITY_NODE : AFFINITY_ANY;
}

/* ---- weights that are in memory already ---- */

struct placing {
    const struct engine *engine;
    struct slot *slots;
    int n_slots;
    int n_ours;   /* matrices */
    double bytes; /* of these */
    int (*tick)(void *context, struct mo_error *error);
    void *context;
};

/* NULL: read by nobody here, a few rows at a time, or by way of memory that is our own. */
static const struct mat *mat_of(const struct engine *engine, const struct slot *slot) {
    const bool is_routed = slot->role >= ROLE_EXPERT_GATE;
    if (!slot->cols || slot->role == ROLE_ENGRAM_TABLE || (is_routed && engine->store)) return NULL;
    if (!engine_computes_here(engine, slot->layer, is_routed ? slot->expert : -1)) return NULL;
    const struct mat *mat = weights_matrix(&engine->weights, slot->role, slot->layer, slot->expert);
    return mat->data && !mat->turned && !(engine->will_turn && mat_can_turn(mat->format)) ? mat : NULL;
}

static void count_ours(struct placing *p) {
    for (int i = 0; i < p->n_slots; i++) {
        const struct mat *mat = mat_of(p->engine, &p->slots[i]);
        if (!mat) continue;
        p->n_ours++;
        p->bytes += (double)mat_data_bytes(mat);
    }
}

/* Every `step`-th of our matrices. */
static int go_over(const struct placing *p, int step, bool moves, struct numa_tally *tally, struct mo_error *error) {
    struct numa_pages *pages = numa_pages_open(p->engine->options.numa_choice.nodes, moves);
    struct progress progress;
    double done = 0;
    int n = 0, code = pages ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list of pages");
    progress_begin(&progress, "moving weights to their memory nodes", "GB", 1e-9, p->bytes);
    for (int i = 0; i < p->n_slots && !code; i++) {
        const struct mat *mat = mat_of(p->engine, &p->slots[i]);
        if (!mat || n++ % step) continue;
        numa_pages_add(pages, mat->data, mat_data_bytes(mat));
        progress_update(&progress, done += (double)mat_data_bytes(mat));
        if (p->tick) code = p->tick(p->context, error);
    }
    progress_end(&progress);
    *tally = numa_pages_close(pages);
    return code;
}

static void say_moved(const struct engine *engine, const struct numa_tally *tally) {
    const double page_gb = (double)sysconf(_SC_PAGESIZE) * 1e-9;
    const double wrong = (double)tally->wrong * page_gb, moved = (double)tally->moved * page_gb;
    if (wrong < WORTH_SAYING_GB) return;
    log_info("%s: %.2f of %.2f GB that were in memory lay on the wrong memory nodes; %.2f GB were moved", engine->path,
             wrong, (double)tally->seen * page_gb, moved);
    if (moved < 0.9 * wrong)
        log_warn("%s: %.2f GB stay on the wrong memory nodes, and are read more slowly: another process has them "
                 "mapped, or there is no room (echo 1 > /proc/sys/vm/drop_caches before the start has them read anew)",
                 engine->path, wrong - moved);
}

static int place(struct placing *p, struct mo_error *error) {
    const struct engine *engine = p->engine;
    struct numa_tally tally;
    count_ours(p);
    if (p->bytes > engine->options.numa_choice.memory_bytes) {
        log_info(
            "%s: %.2f GB of weights, more than the %.2f GB of this process's memory nodes: pages stay where they are",
            engine->path, p->bytes * 1e-9, engine->options.numa_choice.memory_bytes * 1e-9);
        return 0;
    }
    int code = go_over(p, 1 + p->n_ours / LOOK_MATRICES, false, &tally, error);
    if (code || (double)tally.wrong <= BAD_SHARE * (double)tally.seen) return code;
    code = go_over(p, 1, true, &tally, error);
    if (!code) say_moved(engine, &tally);
    return code;
}

int engine_numa_place(const struct engine *engine, int (*tick)(void *context, struct mo_error *error), void *context,
                      struct mo_error *error) {
    struct placing p = {.engine = engine, .tick = tick, .context = context};
    say(&engine->options.numa_choice);
    if (!engine->options.numa_choice.nodes || engine->weights.made || engine->weights.later) return 0;
    struct arena *arena = arena_create();
    if (!arena) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list of matrices");
    int code = slots_list(&engine->model, arena, &p.slots, &p.n_slots, error);
    if (!code) code = place(&p, error);
    arena_destroy(arena);
    return code;
}
