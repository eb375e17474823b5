/* backend/cpu/moe_store.c - an expert layer whose experts are read when they are needed (expert/store.h).
 *
 * The experts of a step are taken in ascending order, in waves that fit the slots. Within a wave gate and up of those that are
 * there are computed while the others are read, then of the others as they come, then down of all in ascending order; the next
 * wave is on its way meanwhile. Behind them stand those that the next layer will probably want. */
#include <string.h>
#include "backend/cpu/moe.h"
#include "backend/cpu/streams.h"
#include "base/numbers.h"

enum {
    PROMPT_SHARE_PERCENT = 75, /* a layer that wanted so many of its experts: the next one will want all of them */
};

/* Experts [from, to) of the list are at work. */
struct wave {
    struct moe *moe;
    struct store *store;
    const int *experts;
    int layer, from, to;
    struct linear *jobs; /* [2 * (to - from) + 2] */
    bool *computed;      /* [to - from] */
};

/* Gate and up of those that are there by now, with n_jobs others listed already. */
static void compute_present(struct wave *wave, int n_jobs) {
    struct cpu *cpu = wave->moe->cpu;
    for (int i = wave->from; i < wave->to; i++) {
        int e = wave->experts[i];
        bool *computed = &wave->computed[i - wave->from];
        if (*computed || !store_is_there(wave->store, wave->layer, e)) continue;
        if (store_wait(wave->store, wave->layer, e, NULL)) continue; /* it failed: whoever waits for it says so */
        moe_list_gate_up(wave->moe, e, store_expert(wave->store, wave->layer, e), wave->jobs + n_jobs);
        n_jobs += 2;
        *computed = true;
    }
    size_t mark = cpu->stage.used;
    if (n_jobs) cpu_linear_each(cpu, wave->jobs, n_jobs);
    cpu->stage.used = mark;
}

static int compute_gate_up(struct wave *wave, struct mo_error *error) {
    int n_shared = wave->from == 0 ? moe_list_shared_gate_up(wave->moe, wave->jobs) : 0;
    compute_present(wave, n_shared);
    for (int i = wave->from; i < wave->to; i++) {
        if (wave->computed[i - wave->from]) continue;
        int code = store_wait(wave->store, wave->layer, wave->experts[i], error);
        if (code) return code;
        compute_present(wave, 0);
    }
    return 0;
}

static int compute_wave(struct moe *moe, const int *experts, int layer, int from, int to, struct mo_error *error) {
    struct cpu *cpu = moe->cpu;
    const int *first = moe->assignment.first;
    int first_pair = first[experts[from]], end_pair = first[experts[to - 1] + 1], n = to - from;
    size_t mark = cpu->stage.used;
    struct wave wave = {moe, cpu->options.store, experts, layer, from, to, NULL, NULL};
    wave.jobs = stage_alloc(cpu, (size_t)(2 * n + 2) * sizeof *wave.jobs);
    wave.computed = memset(stage_alloc(cpu, (size_t)n), 0, (size_t)n);
    int code = compute_gate_up(&wave, error);
    if (!code) {
        moe_silu(moe, first_pair, end_pair);
        struct moe_down down = moe_begin_down(moe, first_pair, end_pair);
        for (int i = 0; i < n; i++) {
            int e = experts[from + i];
            moe_list_down(moe, &down, e, store_expert(wave.store, layer, e), &wave.jobs[i]);
        }
        cpu_linear_sum(cpu, wave.jobs, n);
    }
    cpu->stage.used = mark;
    return code;
}

static void ask(struct cpu *cpu, int layer, const int *experts, int from, int to) {
    for (int i = from; i < to; i++) store_ask(cpu->options.store, layer, experts[i]);
}

static void release(struct cpu *cpu, int layer, const int *experts, int from, int to) {
    for (int i = from; i < to; i++) store_release(cpu->options.store, layer, experts[i]);
}

/* ---- what the next layer will want ---- */

/* Known where a table lists them. */
static void predict_listed(struct cpu *cpu, int layer) {
    const size_t k = (size_t)cpu->model->top_k, n = (size_t)cpu->batch->n_rows;
    size_t mark = cpu->stage.used;
    int32_t *ids = stage_alloc(cpu, n * k * sizeof *ids);
    for (size_t i = 0; i < n; i++) memcpy(ids + i * k, cpu_experts_of_token(cpu, layer, (int)i), k * sizeof *ids);
    store_predict(cpu->options.store, layer, ids, (int)(n * k));
    cpu->stage.used = mark;
}

void moe_predict_first(struct cpu *cpu) {
    if (cpu->predicts && model_layer_is_hashed(cpu->model, 0)) predict_listed(cpu, 0);
}

/* By its own router, on a residual stream that lacks this layer's experts and its own attention: the earlier it is asked, the more
 * of the reading is hidden. Whether the numbers are finite is asked by those who compute with them. */
static int choose_by_router(struct cpu *cpu, int layer, int32_t *ids) {
    const struct model *m = cpu->model;
    const struct layer *w = &cpu->weights->layers[layer];
    size_t hidden = (size_t)m->hidden, experts = (size_t)m->experts, k = (size_t)m->top_k;
    int n = cpu->batch->n_rows;
    float *normed = stage_alloc(cpu, (size_t)n * hidden * sizeof *normed);
    float *weights = stage_alloc(cpu, k * sizeof *weights);
    const float *x = model_is_hybrid(m) ? streams_read(cpu, &w->ffn_mixer, NULL, n, normed) : cpu->x;
    for (size_t i = 0; i < (size_t)n; i++) {
        cpu->kern.rms_norm(x + i * hidden, w->ffn_norm, m->hidden, (float)m->norm_eps, normed + i * hidden);
    }
    cpu_linear_unrounded(cpu, &w->router, normed, hidden, cpu->score, experts, n);
    for (size_t i = 0; i < (size_t)n; i++) {
        cpu_choose_experts(m, w->router_bias, cpu->score + i * experts, ids + i * k, weights);
    }
    return n * m->top_k;
}

static void predict(struct cpu *cpu, int layer, int n_wanted) {
    const struct model *m = cpu->model;
    bool is_short = cpu->batch->n_rows <= PREDICTED_ROWS;
    if (!cpu->predicts || layer >= m->layers) return;
    if (model_layer_is_hashed(m, layer)) {
        predict_listed(cpu, layer);
        return;
    }
    if (!is_short && n_wanted * 100 < m->experts * PROMPT_SHARE_PERCENT) return;
    size_t mark = cpu->stage.used;
    int n = is_short ? PREDICTED_ROWS * m->top_k : m->experts;
    int32_t *ids = stage_alloc(cpu, (size_t)n * sizeof *ids);
    if (is_short) n = choose_by_router(cpu, layer, ids);
    for (int e = 0; !is_short && e < n; e++) ids[e] = e;
    store_predict(cpu->options.store, layer, ids, n);
    cpu->stage.used = mark;
}

/* ---- a layer ---- */

static int compute_waves(struct moe *moe, const int *experts, int n, int layer, struct mo_error *error) {
    struct cpu *cpu = moe->cpu;
    int code = 0, wave = store_visit(cpu->options.store, layer, experts, n), asked = smaller(wave, n);
    ask(cpu, layer, experts, 0, asked);
    predict(cpu, layer + 1, n);
    for (int from = 0; from < n && !code; from += wave) {
        int to = smaller(from + wave, n), next = smaller(to + wave, n);
        ask(cpu, layer, experts, to, next);
        asked = next;
        code = compute_wave(moe, experts, layer, from, to, error);
        release(cpu, layer, experts, from, code ? asked : to);
    }
    return code;
}

static void compute_shared_down(const struct moe *moe) {
    struct cpu *cpu = moe->cpu;
    struct linear job;
    float **target = cpu_row_pointers(cpu, cpu->target, (size_t)cpu->model->hidden, cpu->batch->n_rows);
    moe_shared_silu(moe);
    if (moe_list_shared_down(moe, target, &job)) cpu_linear_sum(cpu, &job, 1);
}

void moe_compute_from_store(struct cpu *cpu, int layer) {
    struct moe moe = moe_begin(cpu, layer);
    int *experts = stage_alloc(cpu, (size_t)cpu->model->experts * sizeof *experts), n = 0;
    for (int e = 0; e < cpu->model->experts; e++) {
        if (moe_rows(&moe, e)) experts[n++] = e;
    }
    if (compute_waves(&moe, experts, n, layer, &cpu->failure)) return;
    compute_shared_down(&moe);
}
