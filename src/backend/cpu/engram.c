/* backend/cpu/engram.c - see engram.h. Source: NVIDIA's NeMo AutoModel 0.7, models/deepseek_v41/engram.py, class
 * DeepseekV41Engram. */
#include "backend/cpu/engram.h"

#include <math.h>

static const struct engram_model *engram_of(const struct cpu *cpu) {
    return &cpu->model->hybrid.engram;
}

/* ---- which rows ---- */

/* A row of the batch in one of the tables: those of the first layer that has one come first. */
static void find_rows(void *context, int index, int worker) {
    (void)worker;
    struct cpu *cpu = context;
    const int n = cpu->batch->n_rows, row = index % n;
    engram_lookup_find(&cpu->engram.lookup, cpu->batch, &cpu->batch->seqs[cpu->seq[row]], index / n, row);
}

void engram_begin(struct cpu *cpu) {
    const int n_layers = engram_of(cpu)->n_layers;
    if (n_layers) pool_run(cpu->pool, n_layers * cpu->batch->n_rows, find_rows, cpu);
}

/* ---- what they say ---- */

struct task {
    struct cpu *cpu;
    int layer, which;
};

static size_t kv_stride(const struct cpu *cpu) {
    return model_residual_dim(cpu->model) + (size_t)cpu->model->hidden;
}

static size_t value_stride(const struct cpu *cpu) {
    return (size_t)engram_columns(engram_of(cpu)) * (size_t)engram_of(cpu)->dim;
}

/* Rows of one length of n-grams. */
static void gather(void *context, int index, int worker) {
    (void)worker;
    const struct task *task = context;
    const struct cpu *cpu = task->cpu;
    const struct engram_model *e = engram_of(cpu);
    const int lengths = e->max_tokens - 1, row = index / lengths, first = index % lengths * e->heads;
    float *out = cpu->engram.values + (size_t)row * value_stride(cpu) + (size_t)first * (size_t)e->dim;
    engram_lookup_values(&cpu->engram.lookup, task->which, row, first, e->heads, out);
}

static float dot(const struct cpu *cpu, const float *a, const float *b) {
    const struct mat row = {.format = MAT_F32, .rows = 1, .cols = cpu->model->hidden, .data = a};
    float sum, *to = &sum;
    cpu->kern.gemm[MAT_F32](&row, 0, 1, &b, 1, &to);
    return sum;
}

/* How much of the value a stream takes. The key is used up. */
static float weigh(const struct cpu *cpu, const struct engram *w, int stream, const float *x, float *key,
                   float squares_x, float squares_key) {
    const int hidden = cpu->model->hidden;
    const float n = (float)hidden, eps = (float)cpu->model->norm_eps;
    const float *q_weight = w->q_weight + (size_t)stream * (size_t)hidden;
    const float *k_weight = w->k_weight + (size_t)stream * (size_t)hidden;
    for (int i = 0; i < hidden; i++) key[i] *= q_weight[i] * k_weight[i];
    const float norms = sqrtf(squares_x / n + eps) * sqrtf(squares_key / n + eps);
    const float fit = dot(cpu, x, key) / norms / sqrtf(n);
    return 1 / (1 + expf(-copysignf(sqrtf(fmaxf(fabsf(fit), 1e-6f)), fit)));
}

/* One stream of a row. */
static void add_value(void *context, int index, int worker) {
    (void)worker;
    const struct task *task = context;
    struct cpu *cpu = task->cpu;
    const int streams = model_streams(cpu->model), row = index / streams, stream = index % streams;
    const size_t hidden = (size_t)cpu->model->hidden;
    float *x = cpu->x + ((size_t)row * (size_t)streams + (size_t)stream) * hidden;
    float *kv = cpu->engram.kv + (size_t)row * kv_stride(cpu), *key = kv + (size_t)stream * hidden;
    const float *value = kv + (size_t)streams * hidden;
    const float squares_x = dot(cpu, x, x), squares_key = dot(cpu, key, key);
    if (!isfinite(squares_x)) {
        cpu_note_fault(cpu, task->layer - 1, task->layer == 0 ? "embed" : "feed-forward", row);
    } else if (!isfinite(squares_key) || (stream == 0 && !isfinite(dot(cpu, value, value)))) {
        cpu_note_fault(cpu, task->layer, "engram", row);
    }
    const float gate = weigh(cpu, &cpu->weights->layers[task->layer].engram, stream, x, key, squares_x, squares_key);
    cpu->kern.add_scaled(x, gate, value, cpu->model->hidden);
}

void engram_add(struct cpu *cpu, int layer) {
    struct task task = {cpu, layer, model_engram_of(cpu->model, layer)};
    const int n = cpu->batch->n_rows;
    if (task.which < 0) return;
    pool_run(cpu->pool, n * (engram_of(cpu)->max_tokens - 1), gather, &task);
    cpu_linear(cpu, &cpu->weights->layers[layer].engram.kv, cpu->engram.values, value_stride(cpu), cpu->engram.kv,
               kv_stride(cpu), n);
    pool_run(cpu->pool, n * model_streams(cpu->model), add_value, &task);
    stage_begin(cpu);
}
