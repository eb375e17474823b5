/* backend/cpu/streams.c - V4's residual stream is several, mixed by hyper-connections. A block (attention, or the feed-forward) reads one
 * row, the streams' sum by weights `before`. Its output is added to every stream by `after`, and the streams to each other by `among`.
 * A mixer makes these of the streams themselves: all of them, normed as one row, times a matrix. Source: transformers 5.23,
 * models/deepseek_v4, DeepseekV4HyperConnection and DeepseekV4HyperHead.
 * V4.1's mixers say what the next block reads by (NeMo AutoModel 0.7, models/deepseek_v41): the first block reads the first stream, the
 * head what the last mixer says.
 *
 * The norm has no weights, so its factor is applied to the products: the same to fp32's rounding, and no second copy of the streams. */
#include "backend/cpu/streams.h"

#include <math.h>
#include <string.h>
#include "base/numbers.h"

enum {
    MIX_TOKENS = 16,    /* a task's, whose streams are multiplied by the same rows of the matrix */
    TASKS_A_THREAD = 2, /* as products have (linear.c) */
    MIX_COLUMNS =
        512, /* of a row's streams that a task mixes: one token has eight tasks or more in the published models */
};

/* n rows of the batch by one mixer. */
struct mixing {
    struct cpu *cpu;
    const struct mixer *mixer;
    const int32_t *rows; /* [n]; NULL: the first n */
    int n, numbers;      /* of each row: `before` alone [streams], or all [model_mix_dim] */
    int parts;           /* in which the matrix is multiplied */
    float *mix;          /* [n][numbers] products, then before, after [streams], among [to stream][from stream] */
    float *out;          /* [n][hidden] */
    int layer;           /* whose mixer it is, and the stage that is blamed for it; NULL: nobody is */
    const char *stage;
};

static size_t stride_of(const struct cpu *cpu) {
    return model_residual_dim(cpu->model);
}

static const float *streams_of(const struct mixing *m, int i) {
    return m->cpu->x + (size_t)(m->rows ? m->rows[i] : i) * stride_of(m->cpu);
}

/* ---- the numbers to mix by ---- */

/* Some rows of the matrix times some tokens. */
static void multiply_part(void *context, int index, int worker) {
    (void)worker;
    const struct mixing *m = context;
    const struct mat *w = &m->mixer->mix;
    const float *x[MIX_TOKENS];
    float *y[MIX_TOKENS];
    int first = index / m->parts * MIX_TOKENS, n = smaller(MIX_TOKENS, m->n - first), part = index % m->parts;
    int r0 = m->numbers * part / m->parts, r1 = m->numbers * (part + 1) / m->parts;
    for (int i = 0; i < n; i++) {
        x[i] = streams_of(m, first + i);
        y[i] = m->mix + (size_t)(first + i) * (size_t)m->numbers;
    }
    kern_gemm_unrounded(&m->cpu->kern, w->format)(w, r0, r1, x, n, y);
}

/* One token alone is spread over the threads as well: its matrix is 1.5 MB in the published models. */
static void multiply(struct mixing *m) {
    int groups = (m->n + MIX_TOKENS - 1) / MIX_TOKENS, wanted = TASKS_A_THREAD * pool_threads(m->cpu->pool);
    m->parts = smaller(m->numbers, (wanted + groups - 1) / groups);
    if (q8_group(&m->mixer->mix)) m->parts = 1; /* rows in panels */
    pool_run(m->cpu->pool, groups * m->parts, multiply_part, m);
}

/* What the norm multiplies a row by. */
static float norm_factor(const struct cpu *cpu, const float *x) {
    const int n = (int)stride_of(cpu);
    const struct mat row = {.format = MAT_F32, .rows = 1, .cols = n, .data = x};
    float squares, *to = &squares;
    cpu->kern.gemm[MAT_F32](&row, 0, 1, &x, 1, &to);
    return 1 / sqrtf(squares / (float)n + (float)cpu->model->norm_eps);
}

static float sigmoid(float x) {
    return 1 / (1 + expf(-x));
}

/* Divides n values, `step` apart, by their sum. */
static void divide_by_sum(float *x, int n, int step, float eps) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i * step];
    for (int i = 0; i < n; i++) x[i * step] /= sum + eps;
}

static void softmax(float *x, int n) {
    float max = x[0];
    for (int i = 1; i < n; i++) max = fmaxf(max, x[i]);
    for (int i = 0; i < n; i++) x[i] = expf(x[i] - max);
    divide_by_sum(x, n, 1, 0);
}

/* Sinkhorn and Knopp: sums of rows and columns go to 1, so that mixing makes no stream grow. among [from][to] */
static void balance(const struct hybrid_model *h, float *among) {
    const int s = h->streams;
    const float eps = (float)h->mix_eps;
    for (int i = 0; i < s; i++) softmax(among + i * s, s);
    for (int i = 0; i < s * s; i++) among[i] += eps;
    for (int round = 0; round < h->sinkhorn_iterations; round++) {
        for (int from = 0; round > 0 && from < s; from++) divide_by_sum(among + from * s, s, 1, eps);
        for (int to = 0; to < s; to++) divide_by_sum(among + to, s, s, eps);
    }
}

/* Products of a row, in place. */
static void weigh(const struct mixing *m, const float *x, float *mix) {
    const struct hybrid_model *h = &m->cpu->model->hybrid;
    const int s = h->streams;
    const float factor = norm_factor(m->cpu, x), *base = m->mixer->base, *scale = m->mixer->scale;
    float among[MODEL_MAX_STREAMS * MODEL_MAX_STREAMS];
    for (int i = 0; i < s; i++) mix[i] = sigmoid(mix[i] * factor * scale[0] + base[i]) + (float)h->mix_eps;
    if (m->numbers == s) return;
    for (int i = s; i < 2 * s; i++) mix[i] = 2 * sigmoid(mix[i] * factor * scale[1] + base[i]);
    mix += 2 * s;
    base += 2 * s;
    for (int i = 0; i < s * s; i++) among[i] = mix[i] * factor * scale[2] + base[i];
    balance(h, among);
    for (int i = 0; i < s * s; i++) mix[i] = among[i % s * s + i / s];
}

/* ---- before a block ---- */

/* V4.1: a block reads by what the last mixer said; what this one says is kept for the next. */
static void change_before(const struct cpu *cpu, int row, float *mix) {
    const int s = model_streams(cpu->model);
    float *before = cpu->before + (size_t)row * (size_t)s;
    for (int i = 0; i < s; i++) {
        const float next = mix[i];
        mix[i] = before[i];
        before[i] = next;
    }
}

/* V4.1: without a mixer. */
static void read_row(void *context, int index, int worker) {
    (void)worker;
    const struct mixing *m = context;
    const struct cpu *cpu = m->cpu;
    const int hidden = cpu->model->hidden, s = model_streams(cpu->model), row = m->rows ? m->rows[index] : index;
    const float *before = cpu->before + (size_t)row * (size_t)s;
    float *out = m->out + (size_t)index * (size_t)hidden;
    cpu->kern.weighted_sum(out, (size_t)hidden, NULL, before, (size_t)s, streams_of(m, index), (size_t)hidden, 1, s,
                           hidden);
}

/* Numbers that are not finite, of streams that are: the mixer's own. */
static void blame_mixer(const struct mixing *m, int index, const float *x, const float *mix) {
    float of_mix = 0, of_streams = 0;
    for (int i = 0; i < m->numbers; i++) of_mix += mix[i] * 0; /* NaN * 0, Inf * 0 */
    if (!m->stage || of_mix == 0) return;
    for (size_t i = 0; i < stride_of(m->cpu); i++) of_streams += x[i] * 0;
    if (of_streams == 0) cpu_note_fault(m->cpu, m->layer, m->stage, m->rows ? m->rows[index] : index);
}

static void collapse_row(void *context, int index, int worker) {
    (void)worker;
    const struct mixing *m = context;
    const struct cpu *cpu = m->cpu;
    const int hidden = cpu->model->hidden, s = model_streams(cpu->model);
    const float *x = streams_of(m, index);
    float *mix = m->mix + (size_t)index * (size_t)m->numbers, *out = m->out + (size_t)index * (size_t)hidden;
    weigh(m, x, mix);
    blame_mixer(m, index, x, mix);
    if (model_is_csa2(cpu->model)) change_before(cpu, index, mix);
    cpu->kern.weighted_sum(out, (size_t)hidden, NULL, mix, (size_t)s, x, (size_t)hidden, 1, s, hidden);
}

static void collapse(struct mixing *m) {
    multiply(m);
    pool_run(m->cpu->pool, m->n, collapse_row, m);
}

const float *streams_read(struct cpu *cpu, const struct mixer *mixer, const int32_t *rows, int n, float *out) {
    const int s = model_streams(cpu->model);
    const bool is_head = mixer == &cpu->weights->head_mixer;
    struct mixing m = {.cpu = cpu, .mixer = mixer, .rows = rows, .n = n, .numbers = s, .out = out};
    m.layer = cpu->model->layers;
    m.stage = is_head ? "head" : NULL;
    if (model_is_csa2(cpu->model)) {
        pool_run(cpu->pool, n, read_row, &m);
        return out;
    }
    m.mix = stage_alloc(cpu, (size_t)n * (size_t)s * sizeof *m.mix);
    collapse(&m);
    return out;
}

void streams_begin(struct cpu *cpu, int layer, enum streams_block block) {
    const struct model *model = cpu->model;
    const struct layer *w = &cpu->weights->layers[layer];
    const bool attends = block == STREAMS_ATTENTION;
    const int n = cpu->batch->n_rows;
    if (model_is_hybrid(model)) {
        collapse(&(struct mixing){.cpu = cpu,
                                  .mixer = attends ? &w->attn_mixer : &w->ffn_mixer,
                                  .n = n,
                                  .numbers = model_mix_dim(model),
                                  .mix = cpu->mix,
                                  .out = cpu->target,
                                  .layer = layer,
                                  .stage = attends ? "attn_in" : "route"});
    }
    cpu_norm_rows(cpu, cpu->target, model->hidden, (size_t)model->hidden, attends ? w->attn_norm : w->ffn_norm,
                  cpu->normed, n, attends ? layer - 1 : layer,
                  !attends     ? "attention"
                  : layer == 0 ? "embed"
                               : "feed-forward");
}

/* ---- after it ---- */

static void clear_row(void *context, int index, int worker) {
    (void)worker;
    const struct cpu *cpu = context;
    const size_t hidden = (size_t)cpu->model->hidden;
    memset(cpu->target + (size_t)index * hidden, 0, hidden * sizeof *cpu->target);
}

float *streams_target(struct cpu *cpu) {
    if (model_is_hybrid(cpu->model)) pool_run(cpu->pool, cpu->batch->n_rows, clear_row, cpu);
    return cpu->target;
}

static int column_tasks(const struct cpu *cpu) {
    return (cpu->model->hidden + MIX_COLUMNS - 1) / MIX_COLUMNS;
}

/* Some columns of a row's streams. */
static void mix_columns(void *context, int index, int worker) {
    (void)worker;
    const struct cpu *cpu = context;
    const int s = model_streams(cpu->model), tasks = column_tasks(cpu), row = index / tasks;
    const int first = index % tasks * MIX_COLUMNS, n = smaller(MIX_COLUMNS, cpu->model->hidden - first);
    const size_t hidden = (size_t)cpu->model->hidden;
    const float *after = cpu->mix + (size_t)row * (size_t)model_mix_dim(cpu->model) + s, *among = after + s;
    const float *added = cpu->target + (size_t)row * hidden + first;
    float *x = cpu->x + (size_t)row * stride_of(cpu) + first;
    float mixed[MODEL_MAX_STREAMS * MIX_COLUMNS];
    cpu->kern.weighted_sum(mixed, MIX_COLUMNS, NULL, among, (size_t)s, x, hidden, s, s, n);
    for (int i = 0; i < s; i++) {
        cpu->kern.add_scaled(mixed + (size_t)i * MIX_COLUMNS, after[i], added, n);
        memcpy(x + (size_t)i * hidden, mixed + (size_t)i * MIX_COLUMNS, (size_t)n * sizeof *x);
    }
}

void streams_end(struct cpu *cpu) {
    if (!model_is_hybrid(cpu->model)) return;
    pool_run(cpu->pool, cpu->batch->n_rows * column_tasks(cpu), mix_columns, cpu);
}

/* ---- the two ends ---- */

void streams_spread(struct cpu *cpu, int row) {
    const size_t hidden = (size_t)cpu->model->hidden;
    float *x = cpu->x + (size_t)row * stride_of(cpu);
    for (int i = 1; i < model_streams(cpu->model); i++) memcpy(x + (size_t)i * hidden, x, hidden * sizeof *x);
    if (!model_is_csa2(cpu->model)) return;
    float *before = cpu->before + (size_t)row * (size_t)model_streams(cpu->model);
    for (int i = 0; i < model_streams(cpu->model); i++) before[i] = i == 0;
}
