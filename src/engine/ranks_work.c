/* engine/ranks_work.c - a rank that is not the first, from hello to goodbye (engine/ranks.h). What goes wrong here is said by rank 0;
 * what goes wrong between them ends all. */
#include "engine/ranks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "engine/numa.h"
#include "engine/selftest.h"
#include "engine/turn.h"

static const double ALIVE_S = 1;
enum { TOUCH_BYTES = 64 << 20, PAGE = 4096 };

/* The connection is what failed: nobody is left who could be told. */
static int give_up_unless_ended(int code, const struct mo_error *error) {
    if (code && !ranks_ended()) ranks_give_up(error);
    return code;
}

/* ---- bringing the experts into memory ---- */

/* Rank 0 hears that we are alive, and may have ended the program meanwhile. */
static int say_alive(void *context, struct mo_error *error) {
    double *said_s = context, now = clock_now_s();
    struct wire_head head;
    int rank = 0;
    size_t bytes;
    if (now - *said_s < ALIVE_S) return 0;
    *said_s = now;
    int code = ranks_has_message() ? ranks_receive(&rank, &head, sizeof head, &bytes, 0, error)
                                   : ranks_send_kind(0, WIRE_ALIVE, error);
    return give_up_unless_ended(code, error);
}

static int touch(const struct mat *mat, double *said_s, struct mo_error *error) {
    uintptr_t at = (uintptr_t)mat->data / PAGE * PAGE, end = (uintptr_t)mat->data + mat_data_bytes(mat);
    for (; at < end; at += TOUCH_BYTES) {
        size_t n = end - at < TOUCH_BYTES ? end - at : TOUCH_BYTES;
        if (madvise((void *)at, n, MADV_POPULATE_READ) && errno == EINVAL) { /* before Linux 5.14 */
            for (size_t i = 0; i < n; i += PAGE) (void)*(volatile const uint8_t *)(at + i);
        }
        int code = say_alive(said_s, error);
        if (code) return code;
    }
    return 0;
}

static int touch_experts(const struct engine *engine, struct mo_error *error) {
    const struct model *m = &engine->model;
    double said_s = clock_now_s();
    for (int l = m->dense_layers; l < m->layers; l++) {
        for (int e = 0; e < m->experts; e++) {
            const struct mlp *expert = &engine->weights.layers[l].experts[e];
            if (engine->split.owner[e] != engine->split.self) continue;
            int code = touch(&expert->gate, &said_s, error);
            if (!code) code = touch(&expert->up, &said_s, error);
            if (!code) code = touch(&expert->down, &said_s, error);
            if (code) return code;
        }
    }
    return 0;
}

/* ---- from hello to goodbye ---- */

static int say_hello(const struct engine *engine, struct mo_error *error) {
    struct wire_hello hello;
    int code = engine_ranks_hello(engine, &hello, error);
    if (code) return code;
    ranks_set_host(ranks_self(), hello.host);
    return give_up_unless_ended(ranks_send(0, &hello, sizeof hello, error), error);
}

static int hear_plan(struct engine *engine, struct wire_plan *plan, struct mo_error *error) {
    int rank = 0;
    size_t bytes;
    int code = give_up_unless_ended(ranks_receive(&rank, plan, sizeof *plan, &bytes, -1, error), error);
    if (code) return code;
    if (plan->head.kind != WIRE_PLAN || bytes != sizeof *plan) {
        return mo_error_set(error, MO_E_CORRUPT, "expected a plan, found a message of kind %u", plan->head.kind);
    }
    if (plan->max_rows < 1 || plan->piece_pairs < 1) {
        return mo_error_set(error, MO_E_CORRUPT, "a plan of %d rows, %d pairs", plan->max_rows, plan->piece_pairs);
    }
    engine->split =
        (struct ranks_split){.count = ranks_count(), .self = ranks_self(), .piece_pairs = plan->piece_pairs};
    memcpy(engine->split.owner, plan->owner, sizeof plan->owner);
    memcpy(engine->split.on_host, plan->on_host, sizeof plan->on_host);
    return 0;
}

/* What is put into another order is read for that, the others are read. */
static int bring_experts(struct engine *engine, const struct backend_options *backend, struct mo_error *error) {
    const struct timespec slice = {.tv_nsec = 20000000};
    double said_s = clock_now_s();
    int code = engine_turn_choose(engine, backend, error);
    if (code) return code;
    code = engine_numa_place(engine, say_alive, &said_s, error);
    if (code) return code;
    engine_turn_begin_alone(engine);
    if (!engine->will_turn) return touch_experts(engine, error);
    while (!code && !turner_adopt(engine->turner)) {
        nanosleep(&slice, NULL);
        code = say_alive(&said_s, error);
    }
    return code;
}

/* Its attention is not used, so that costs as little as it can. */
static int open_backend(struct engine *engine, const struct wire_plan *plan, struct mo_error *error) {
    const struct backend_options options = {.threads = engine->options.threads,
                                            .affinity = engine_numa_affinity(&engine->options),
                                            .max_rows = plan->max_rows,
                                            .max_logits = 1,
                                            .max_seqs = 1,
                                            .n_pages = 1,
                                            .kv = KV_F32,
                                            .compute = (enum compute)plan->compute,
                                            .attention = ATTENTION_EXPANDED,
                                            .ranks = &engine->split};
    int code = cpu_backend_open(&engine->backend, &engine->model, &engine->weights, &options, error);
    if (!code) code = engine_selftest(engine, &options, error);
    return code ? code : bring_experts(engine, &options, error);
}

static int prepare(struct engine *engine, struct mo_error *error) {
    struct wire_plan plan;
    int code = engine_ranks_check(&engine->options, error);
    if (!code) code = engine_open_weights(engine, error);
    if (!code) code = say_hello(engine, error);
    if (!code) code = hear_plan(engine, &plan, error);
    return code ? code : open_backend(engine, &plan, error);
}

static void say_failed(const struct mo_error *why) {
    struct wire_failed failed = {.head = {WIRE_MAGIC, WIRE_FAILED}, .code = why->code};
    struct mo_error error;
    if (ranks_ended()) return;
    gethostname(failed.host, sizeof failed.host - 1);
    memcpy(failed.text, why->message, sizeof failed.text);
    give_up_unless_ended(ranks_send(0, &failed, sizeof failed, &error), &error);
}

int engine_ranks_work(const struct engine_options *options, struct mo_error *error) {
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the engine");
    engine->options = *options;
    engine->gpu = -1;
    int code = prepare(engine, error);
    if (code) {
        say_failed(error);
    } else {
        code = ranks_send_kind(0, WIRE_READY, error);
        if (!code) code = cpu_backend_work(engine->backend, error);
        give_up_unless_ended(code, error);
    }
    engine_close(engine);
    return 1;
}
