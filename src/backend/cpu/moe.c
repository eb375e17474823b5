#include <assert.h>
#include <math.h>
#include <string.h>
#include "backend/cpu/moe.h"
#include "backend/cpu/streams.h"

/* SiLU(gate) * up, a row a task. */
struct silu_task {
    const struct kern *kern;
    float *gate, *up;
    int width;
    float limit; /* 0: none */
};

/* V4: gate is `limit` at most, up is that either way. NaN stays NaN. */
static void clamp(float *gate, float *up, int n, float limit) {
    for (int i = 0; i < n; i++) {
        gate[i] = gate[i] > limit ? limit : gate[i];
        up[i] = up[i] > limit ? limit : up[i];
        up[i] = up[i] < -limit ? -limit : up[i];
    }
}

static void silu_row(void *context, int index, int worker) {
    (void)worker;
    const struct silu_task *task = context;
    size_t at = (size_t)index * (size_t)task->width;
    if (task->limit > 0) clamp(task->gate + at, task->up + at, task->width, task->limit);
    task->kern->silu_mul(task->gate + at, task->up + at, task->width);
}

static void silu_rows(struct cpu *cpu, float *gate, float *up, int width, int n) {
    struct silu_task task = {&cpu->kern, gate, up, width, (float)cpu->model->hybrid.swiglu_limit};
    pool_run(cpu->pool, n, silu_row, &task);
}

void cpu_ffn_dense(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct layer *w = &cpu->weights->layers[layer];
    size_t hidden = (size_t)cpu->model->hidden, width = (size_t)cpu->model->dense_width;
    int n = cpu->batch->n_rows;
    if (cpu->failure.code) return;
    stage_begin(cpu);
    streams_begin(cpu, layer, STREAMS_FEED_FORWARD);
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, cpu->normed, hidden, n);
    float **gate = cpu_row_pointers(cpu, cpu->gate, width, n), **up = cpu_row_pointers(cpu, cpu->up, width, n);
    struct linear in[2] = {{.w = &w->dense.gate, .x = x, .y = gate, .n = n},
                           {.w = &w->dense.up, .x = x, .y = up, .n = n}};
    in[0].q = cpu_quantize(cpu, in[0].w, x, n);
    in[1].q = cpu_quantize_like(cpu, &in[0], in[1].w, x, n);
    cpu_linear_each(cpu, in, 2);
    silu_rows(cpu, cpu->gate, cpu->up, (int)width, n);
    struct linear down = {.w = &w->dense.down, .x = (const float *const *)gate, .n = n};
    down.y = cpu_row_pointers(cpu, streams_target(cpu), hidden, n);
    down.q = cpu_quantize(cpu, down.w, down.x, n);
    cpu_linear_sum(cpu, &down, 1);
    streams_end(cpu);
}

static void softmax(float *scores, int n) {
    float max = scores[0], sum = 0;
    for (int i = 1; i < n; i++) max = scores[i] > max ? scores[i] : max;
    for (int i = 0; i < n; i++) sum += scores[i] = expf(scores[i] - max);
    for (int i = 0; i < n; i++) scores[i] /= sum;
}

/* Index of the largest value not yet taken, ties to the lowest; taken entries are marked. */
static int take_largest(const float *values, uint8_t *taken, int n) {
    int best = -1;
    for (int i = 0; i < n; i++) {
        if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
    }
    taken[best] = 1;
    return best;
}

enum { MAX_ROUTED = 4096 }; /* as config.c allows */

/* What a group is ranked by: its best expert (V2), or the sum of its best two (V3). */
static float group_score(const struct model *model, const float *choice) {
    int size = model->experts / model->groups;
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < size; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return model->gate_kind == GATE_SIGMOID_GROUPED ? first + second : first;
}

/* Marks the experts of every group outside of the best as taken. */
static void limit_groups(const struct model *model, const float *choice, uint8_t *taken) {
    float rank[MAX_ROUTED];
    uint8_t kept[MAX_ROUTED] = {0};
    int size = model->experts / model->groups;
    for (int g = 0; g < model->groups; g++) rank[g] = group_score(model, choice + (size_t)g * (size_t)size);
    for (int i = 0; i < model->top_groups; i++) take_largest(rank, kept, model->groups);
    for (int i = 0; i < model->experts; i++) taken[i] = !kept[i / size];
}

/* log(1 + exp(x)), where exp does not overflow. */
static float softplus(float x) {
    return fmaxf(x, 0) + log1pf(expf(-fabsf(x)));
}

/* Logits to scores. */
static void score_experts(const struct model *model, float *scores) {
    int n = model->experts;
    switch (model->gate_kind) {
    case GATE_SIGMOID_GROUPED:
        for (int i = 0; i < n; i++) scores[i] = 1 / (1 + expf(-scores[i]));
        break;
    case GATE_SQRT_SOFTPLUS:
        for (int i = 0; i < n; i++) scores[i] = sqrtf(softplus(scores[i]));
        break;
    default:
        softmax(scores, n);
    }
}

/* Of those chosen, by their scores alone: a bias takes part in choosing only. */
static void weigh_experts(const struct model *model, const float *scores, const int32_t *ids, float *weights) {
    float sum = 0;
    for (int i = 0; i < model->top_k; i++) sum += weights[i] = scores[ids[i]];
    float factor = (float)model->routed_scale / (model->norm_topk ? sum + 1e-20f : 1);
    for (int i = 0; i < model->top_k; i++) weights[i] *= factor;
}

void cpu_choose_experts(const struct model *model, const float *bias, float *scores, int32_t *ids, float *weights) {
    float choice[MAX_ROUTED];
    uint8_t taken[MAX_ROUTED] = {0};
    int n = model->experts;
    assert(n <= MAX_ROUTED);
    score_experts(model, scores);
    for (int i = 0; i < n; i++) choice[i] = scores[i] + (bias ? bias[i] : 0);
    if (model->groups > 1) limit_groups(model, choice, taken);
    for (int i = 0; i < model->top_k; i++) ids[i] = take_largest(choice, taken, n);
    weigh_experts(model, scores, ids, weights);
}

void cpu_listed_experts(const struct model *model, const int32_t *listed, float *scores, int32_t *ids, float *weights) {
    score_experts(model, scores);
    memcpy(ids, listed, (size_t)model->top_k * sizeof *ids);
    weigh_experts(model, scores, ids, weights);
}

const int32_t *cpu_experts_of_token(const struct cpu *cpu, int layer, int row) {
    const int32_t *table = cpu->weights->layers[layer].router_table;
    return table ? table + (size_t)cpu->batch->token[row] * (size_t)cpu->model->top_k : NULL;
}

struct route_task {
    struct cpu *cpu;
    int layer;
};

static void route_row(void *context, int row, int worker) {
    (void)worker;
    const struct route_task *task = context;
    struct cpu *cpu = task->cpu;
    const struct model *m = cpu->model;
    float *scores = cpu->score + (size_t)row * (size_t)m->experts;
    float sum = 0;
    for (int i = 0; i < m->experts; i++) sum += fabsf(scores[i]);
    if (!isfinite(sum)) cpu_note_fault(cpu, task->layer, "route", row);
    const float *bias = cpu->weights->layers[task->layer].router_bias;
    const int32_t *listed = cpu_experts_of_token(cpu, task->layer, row);
    int32_t *ids = cpu->expert_id + (size_t)row * (size_t)m->top_k;
    float *weights = cpu->expert_weight + (size_t)row * (size_t)m->top_k;
    if (listed) {
        cpu_listed_experts(m, listed, scores, ids, weights);
    } else {
        cpu_choose_experts(m, bias, scores, ids, weights);
    }
}

void cpu_route(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct layer *w = &cpu->weights->layers[layer];
    const struct model *m = cpu->model;
    int n = cpu->batch->n_rows;
    struct route_task task = {cpu, layer};
    if (cpu->failure.code) return;
    stage_begin(cpu);
    streams_begin(cpu, layer, STREAMS_FEED_FORWARD);
    cpu_linear_unrounded(cpu, &w->router, cpu->normed, (size_t)m->hidden, cpu->score, (size_t)m->experts, n);
    pool_run(cpu->pool, n, route_row, &task);
}

/* Is pair i one that a token's table lists a second time? */
static bool is_repeated(const int32_t *ids, int i, int top_k) {
    for (int j = i / top_k * top_k; j < i; j++) {
        if (ids[j] == ids[i]) return true;
    }
    return false;
}

static struct assignment assign(struct cpu *cpu) {
    const struct model *m = cpu->model;
    int pairs = cpu->batch->n_rows * m->top_k;
    struct assignment a = {
        stage_alloc(cpu, (size_t)(m->experts + 2) * sizeof(int)),
        stage_alloc(cpu, (size_t)pairs * sizeof(int)),
        stage_alloc(cpu, (size_t)pairs * sizeof(float)),
    };
    int *next = a.first + 1; /* counting sort: next[e] runs from first[e] to first[e + 1] while pairs are placed */
    memset(a.first, 0, (size_t)(m->experts + 2) * sizeof(int));
    for (int i = 0; i < pairs; i++) next[cpu->expert_id[i] + 1] += !is_repeated(cpu->expert_id, i, m->top_k);
    for (int e = 0; e < m->experts; e++) next[e + 1] += next[e];
    for (int i = 0; i < pairs; i++) {
        int *at = &next[cpu->expert_id[i]];
        if (is_repeated(cpu->expert_id, i, m->top_k)) {
            a.weight[*at - 1] += cpu->expert_weight[i];
            continue;
        }
        a.row[*at] = i / m->top_k;
        a.weight[(*at)++] = cpu->expert_weight[i];
    }
    return a;
}

struct moe moe_begin_pairs(struct cpu *cpu, int layer, struct assignment assignment, const float *const *x,
                           const struct q8_row *q) {
    const struct model *m = cpu->model;
    int pairs = assignment.first[m->experts];
    struct moe moe = {.cpu = cpu, .w = &cpu->weights->layers[layer], .assignment = assignment, .x = x, .q = q};
    moe.pair_x = stage_alloc(cpu, (size_t)pairs * sizeof *moe.pair_x);
    moe.pair_q = moe.q ? stage_alloc(cpu, (size_t)pairs * sizeof *moe.pair_q) : NULL;
    for (int i = 0; i < pairs; i++) {
        moe.pair_x[i] = moe.x[moe.assignment.row[i]];
        if (moe.q) moe.pair_q[i] = moe.q[moe.assignment.row[i]];
    }
    moe.gate = cpu_row_pointers(cpu, cpu->gate, (size_t)m->expert_width, pairs);
    moe.up = cpu_row_pointers(cpu, cpu->up, (size_t)m->expert_width, pairs);
    return moe;
}

struct moe moe_begin(struct cpu *cpu, int layer) {
    int n_rows = cpu->batch->n_rows;
    float **x = cpu_row_pointers(cpu, cpu->normed, (size_t)cpu->model->hidden, n_rows);
    const float *const *rows = (const float *const *)x;
    const struct q8_row *q = cpu_quantize(cpu, &cpu->weights->layers[layer].experts[0].gate, rows, n_rows);
    return moe_begin_pairs(cpu, layer, assign(cpu), rows, q);
}

int moe_rows(const struct moe *moe, int expert) {
    return moe->assignment.first[expert + 1] - moe->assignment.first[expert];
}

/* Experts of one layer may differ in format: what is quantised for one serves all that want the same groups, and the rest
 * takes fp32. */
static const struct q8_row *if_it_serves(const struct q8_row *q, const struct mat *made_for, const struct mat *w) {
    return q8_group(made_for) == q8_group(w) ? q : NULL;
}

void moe_list_gate_up(const struct moe *moe, int e, const struct mlp *expert, struct linear jobs[2]) {
    int at = moe->assignment.first[e], rows = moe_rows(moe, e);
    const struct q8_row *rows_q = moe->q ? moe->pair_q + at : NULL;
    jobs[0] = (struct linear){.w = &expert->gate, .x = moe->pair_x + at, .y = moe->gate + at, .n = rows};
    jobs[1] = (struct linear){.w = &expert->up, .x = moe->pair_x + at, .y = moe->up + at, .n = rows};
    jobs[0].q = if_it_serves(rows_q, &moe->w->experts[0].gate, &expert->gate);
    jobs[1].q = if_it_serves(rows_q, &moe->w->experts[0].gate, &expert->up);
}

int moe_list_shared_gate_up(const struct moe *moe, struct linear jobs[2]) {
    struct cpu *cpu = moe->cpu;
    const struct layer *w = moe->w;
    int n_rows = cpu->batch->n_rows;
    size_t width = (size_t)cpu->model->expert_width * (size_t)cpu->model->shared_experts;
    if (!width) return 0;
    jobs[0] = (struct linear){.w = &w->shared.gate, .x = moe->x, .n = n_rows};
    jobs[0].y = cpu_row_pointers(cpu, cpu->shared_gate, width, n_rows);
    bool serves = q8_group(jobs->w) == q8_group(&w->experts[0].gate);
    jobs[0].q = serves ? moe->q : cpu_quantize(cpu, jobs->w, moe->x, n_rows);
    jobs[1] = (struct linear){.w = &w->shared.up, .x = moe->x, .n = n_rows};
    jobs[1].y = cpu_row_pointers(cpu, cpu->shared_up, width, n_rows);
    jobs[1].q = cpu_quantize_like(cpu, &jobs[0], jobs[1].w, moe->x, n_rows);
    return 2;
}

void moe_silu(const struct moe *moe, int from, int to) {
    size_t at = (size_t)from * (size_t)moe->cpu->model->expert_width;
    silu_rows(moe->cpu, moe->cpu->gate + at, moe->cpu->up + at, moe->cpu->model->expert_width, to - from);
}

void moe_shared_silu(const struct moe *moe) {
    const struct model *m = moe->cpu->model;
    if (!m->shared_experts) return;
    silu_rows(moe->cpu, moe->cpu->shared_gate, moe->cpu->shared_up, m->expert_width * m->shared_experts,
              moe->cpu->batch->n_rows);
}

struct moe_down moe_begin_down(const struct moe *moe, int from, int to) {
    struct cpu *cpu = moe->cpu;
    struct moe_down down = {.from = from, .x = (const float *const *)moe->gate + from};
    down.q = cpu_quantize(cpu, &moe->w->experts[0].down, down.x, to - from);
    down.target = cpu_row_pointers(cpu, cpu->target, (size_t)cpu->model->hidden, cpu->batch->n_rows);
    down.y = stage_alloc(cpu, (size_t)(to - from) * sizeof *down.y);
    for (int i = from; i < to; i++) down.y[i - from] = down.target[moe->assignment.row[i]];
    return down;
}

void moe_list_down(const struct moe *moe, const struct moe_down *down, int e, const struct mlp *expert,
                   struct linear *job) {
    int at = moe->assignment.first[e] - down->from;
    *job = (struct linear){.w = &expert->down,
                           .x = down->x + at,
                           .q = if_it_serves(down->q ? down->q + at : NULL, &moe->w->experts[0].down, &expert->down),
                           .y = down->y + at,
                           .scale = moe->assignment.weight ? moe->assignment.weight + moe->assignment.first[e] : NULL,
                           .n = moe_rows(moe, e)};
}

int moe_list_shared_down(const struct moe *moe, float *const *target, struct linear *job) {
    struct cpu *cpu = moe->cpu;
    int n_rows = cpu->batch->n_rows;
    size_t width = (size_t)cpu->model->expert_width * (size_t)cpu->model->shared_experts;
    if (!width) return 0;
    *job = (struct linear){.w = &moe->w->shared.down, .y = target, .n = n_rows};
    job->x = (const float *const *)cpu_row_pointers(cpu, cpu->shared_gate, width, n_rows);
    job->q = cpu_quantize(cpu, job->w, job->x, n_rows);
    return 1;
}

void moe_compute_pairs(const struct moe *moe, float *y) {
    struct cpu *cpu = moe->cpu;
    int experts = cpu->model->experts, pairs = moe->assignment.first[experts], n = 0;
    if (!pairs) return;
    struct linear *jobs = stage_alloc(cpu, (size_t)(2 * experts) * sizeof *jobs);
    for (int e = 0; e < experts; e++) {
        if (!moe_rows(moe, e)) continue;
        moe_list_gate_up(moe, e, &moe->w->experts[e], jobs + n);
        n += 2;
    }
    cpu_linear_each(cpu, jobs, n);
    moe_silu(moe, 0, pairs);
    struct moe_down down = moe_begin_down(moe, 0, pairs);
    for (int i = 0; i < pairs; i++) down.y[i] = y + (size_t)i * (size_t)cpu->model->hidden;
    n = 0;
    for (int e = 0; e < experts; e++) {
        if (moe_rows(moe, e)) moe_list_down(moe, &down, e, &moe->w->experts[e], &jobs[n++]);
    }
    cpu_linear_each(cpu, jobs, n);
}

/* Gate and up of every expert that has rows, and of the shared one; then down of the same, into the block's target: for
 * every row in ascending order of expert, then the shared one. */
static void compute_resident(struct cpu *cpu, int layer) {
    int experts = cpu->model->experts, n = 0;
    struct moe moe = moe_begin(cpu, layer);
    struct linear *jobs = stage_alloc(cpu, (size_t)(2 * experts + 2) * sizeof *jobs);
    for (int e = 0; e < experts; e++) {
        if (!moe_rows(&moe, e)) continue;
        moe_list_gate_up(&moe, e, &moe.w->experts[e], jobs + n);
        n += 2;
    }
    n += moe_list_shared_gate_up(&moe, jobs + n);
    cpu_linear_each(cpu, jobs, n);
    int pairs = moe.assignment.first[experts];
    moe_silu(&moe, 0, pairs);
    moe_shared_silu(&moe);
    struct moe_down down = moe_begin_down(&moe, 0, pairs);
    n = 0;
    for (int e = 0; e < experts; e++) {
        if (moe_rows(&moe, e)) moe_list_down(&moe, &down, e, &moe.w->experts[e], &jobs[n++]);
    }
    n += moe_list_shared_down(&moe, down.target, &jobs[n]);
    cpu_linear_sum(cpu, jobs, n);
}

void cpu_experts(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    if (cpu->failure.code) return;
    stage_begin(cpu);
    streams_target(cpu);
    if (cpu->options.ranks) {
        moe_compute_with_ranks(cpu, layer);
    } else if (cpu->options.store) {
        moe_compute_from_store(cpu, layer);
    } else {
        compute_resident(cpu, layer);
    }
    streams_end(cpu);
}
