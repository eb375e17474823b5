#include <assert.h>
#include <math.h>
#include <string.h>
#include "backend/cpu/cpu.h"

/* SiLU(gate) * up, a row a task. */
struct silu_task {
    const struct kern *kern;
    float *gate, *up;
    int width;
};

static void silu_row(void *context, int index, int worker) {
    (void)worker;
    const struct silu_task *task = context;
    size_t at = (size_t)index * (size_t)task->width;
    task->kern->silu_mul(task->gate + at, task->up + at, task->width);
}

static void silu_rows(struct cpu *cpu, float *gate, float *up, int width, int n) {
    struct silu_task task = {&cpu->kern, gate, up, width};
    pool_run(cpu->pool, n, silu_row, &task);
}

void cpu_ffn_dense(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct layer *w = &cpu->weights->layers[layer];
    size_t hidden = (size_t)cpu->model->hidden, width = (size_t)cpu->model->dense_width;
    int n = cpu->batch->n_rows;
    stage_begin(cpu);
    cpu_norm_rows(cpu, cpu->x, (int)hidden, hidden, w->ffn_norm, cpu->normed, n, layer, "attention");
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, cpu->normed, hidden, n);
    float **gate = cpu_row_pointers(cpu, cpu->gate, width, n), **up = cpu_row_pointers(cpu, cpu->up, width, n);
    struct linear in[2] = {{.w = &w->dense.gate, .x = x, .y = gate, .n = n},
                           {.w = &w->dense.up, .x = x, .y = up, .n = n}};
    in[0].q = cpu_quantize(cpu, in[0].w, x, n);
    in[1].q = cpu_quantize_like(cpu, &in[0], in[1].w, x, n);
    cpu_linear_each(cpu, in, 2);
    silu_rows(cpu, cpu->gate, cpu->up, (int)width, n);
    struct linear down = {
        .w = &w->dense.down, .x = (const float *const *)gate, .n = n, .y = cpu_row_pointers(cpu, cpu->x, hidden, n)};
    down.q = cpu_quantize(cpu, down.w, down.x, n);
    cpu_linear_sum(cpu, &down, 1);
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

void cpu_choose_experts(const struct model *model, const float *bias, float *scores, int32_t *ids, float *weights) {
    float choice[MAX_ROUTED];
    uint8_t taken[MAX_ROUTED] = {0};
    int n = model->experts;
    assert(n <= MAX_ROUTED);
    if (model->gate_kind == GATE_SIGMOID_GROUPED) {
        for (int i = 0; i < n; i++) scores[i] = 1 / (1 + expf(-scores[i]));
    } else {
        softmax(scores, n);
    }
    for (int i = 0; i < n; i++) choice[i] = scores[i] + (bias ? bias[i] : 0);
    if (model->groups > 1) limit_groups(model, choice, taken);
    float sum = 0;
    for (int i = 0; i < model->top_k; i++) {
        ids[i] = take_largest(choice, taken, n);
        weights[i] = scores[ids[i]]; /* the bias takes part in choosing only */
        sum += weights[i];
    }
    float factor = (float)model->routed_scale / (model->norm_topk ? sum + 1e-20f : 1);
    for (int i = 0; i < model->top_k; i++) weights[i] *= factor;
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
    size_t at = (size_t)row * (size_t)m->top_k;
    cpu_choose_experts(m, cpu->weights->layers[task->layer].router_bias, scores, cpu->expert_id + at,
                       cpu->expert_weight + at);
}

void cpu_route(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct layer *w = &cpu->weights->layers[layer];
    const struct model *m = cpu->model;
    int n = cpu->batch->n_rows;
    struct route_task task = {cpu, layer};
    stage_begin(cpu);
    cpu_norm_rows(cpu, cpu->x, m->hidden, (size_t)m->hidden, w->ffn_norm, cpu->normed, n, layer, "attention");
    cpu_linear(cpu, &w->router, cpu->normed, (size_t)m->hidden, cpu->score, (size_t)m->experts, n);
    pool_run(cpu->pool, n, route_row, &task);
}

/* The batch's (row, expert) pairs sorted by expert: pair i of the sorted list is row row[i], slot slot[i]. */
struct assignment {
    int *first;    /* [experts + 1] */
    int *row;      /* [n_rows * top_k] */
    float *weight; /* [n_rows * top_k] */
};

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
    for (int i = 0; i < pairs; i++) next[cpu->expert_id[i] + 1]++;
    for (int e = 0; e < m->experts; e++) next[e + 1] += next[e];
    for (int i = 0; i < pairs; i++) {
        int at = next[cpu->expert_id[i]]++;
        a.row[at] = i / m->top_k;
        a.weight[at] = cpu->expert_weight[i];
    }
    return a;
}

/* Experts of one layer may differ in format: what is quantised for one serves all that want the same groups, and the rest
 * takes fp32. */
static const struct q8_row *if_it_serves(const struct q8_row *q, const struct mat *made_for, const struct mat *w) {
    return q8_group(made_for) == q8_group(w) ? q : NULL;
}

/* Gate and up of every expert that has rows, and of the shared one. Returns how many jobs were written. */
static int list_gate_up(struct cpu *cpu, const struct layer *w, const struct assignment *a, struct linear *jobs,
                        const float *const *x, const struct q8_row *q) {
    const struct model *m = cpu->model;
    int n_rows = cpu->batch->n_rows, pairs = n_rows * m->top_k, n = 0;
    size_t width = (size_t)m->expert_width;
    const float **pair_x = stage_alloc(cpu, (size_t)pairs * sizeof *pair_x);
    struct q8_row *pair_q = q ? stage_alloc(cpu, (size_t)pairs * sizeof *pair_q) : NULL;
    for (int i = 0; i < pairs; i++) {
        pair_x[i] = x[a->row[i]];
        if (q) pair_q[i] = q[a->row[i]];
    }
    float **gate = cpu_row_pointers(cpu, cpu->gate, width, pairs), **up = cpu_row_pointers(cpu, cpu->up, width, pairs);
    for (int e = 0; e < m->experts; e++) {
        int at = a->first[e], rows = a->first[e + 1] - at;
        if (!rows) continue;
        const struct mlp *expert = &w->experts[e];
        const struct q8_row *rows_q = q ? pair_q + at : NULL;
        jobs[n++] = (struct linear){.w = &expert->gate, .x = pair_x + at, .y = gate + at, .n = rows};
        jobs[n++] = (struct linear){.w = &expert->up, .x = pair_x + at, .y = up + at, .n = rows};
        jobs[n - 2].q = if_it_serves(rows_q, &w->experts[0].gate, &expert->gate);
        jobs[n - 1].q = if_it_serves(rows_q, &w->experts[0].gate, &expert->up);
    }
    if (!m->shared_experts) return n;
    size_t shared = width * (size_t)m->shared_experts;
    struct linear *job = &jobs[n];
    job[0] = (struct linear){.w = &w->shared.gate, .x = x, .n = n_rows};
    job[0].y = cpu_row_pointers(cpu, cpu->shared_gate, shared, n_rows);
    job[0].q = q8_group(job->w) == q8_group(&w->experts[0].gate) ? q : cpu_quantize(cpu, job->w, x, n_rows);
    job[1] = (struct linear){.w = &w->shared.up, .x = x, .n = n_rows};
    job[1].y = cpu_row_pointers(cpu, cpu->shared_up, shared, n_rows);
    job[1].q = cpu_quantize_like(cpu, &job[0], job[1].w, x, n_rows);
    return n + 2;
}

/* Down of the same, into the residual stream: for every row in ascending order of expert, then the shared one. */
static int list_down(struct cpu *cpu, const struct layer *w, const struct assignment *a, struct linear *jobs) {
    const struct model *m = cpu->model;
    int n_rows = cpu->batch->n_rows, pairs = n_rows * m->top_k, n = 0;
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, cpu->gate, (size_t)m->expert_width, pairs);
    const struct q8_row *q = cpu_quantize(cpu, &w->experts[0].down, x, pairs);
    float **residual = cpu_row_pointers(cpu, cpu->x, (size_t)m->hidden, n_rows);
    float **y = stage_alloc(cpu, (size_t)pairs * sizeof *y);
    for (int i = 0; i < pairs; i++) y[i] = residual[a->row[i]];
    for (int e = 0; e < m->experts; e++) {
        int at = a->first[e], rows = a->first[e + 1] - at;
        if (!rows) continue;
        jobs[n++] = (struct linear){.w = &w->experts[e].down,
                                    .x = x + at,
                                    .q = if_it_serves(q ? q + at : NULL, &w->experts[0].down, &w->experts[e].down),
                                    .y = y + at,
                                    .scale = a->weight + at,
                                    .n = rows};
    }
    if (!m->shared_experts) return n;
    size_t shared = (size_t)m->expert_width * (size_t)m->shared_experts;
    struct linear job = {.w = &w->shared.down, .y = residual, .n = n_rows};
    job.x = (const float *const *)cpu_row_pointers(cpu, cpu->shared_gate, shared, n_rows);
    job.q = cpu_quantize(cpu, job.w, job.x, n_rows);
    jobs[n++] = job;
    return n;
}

void cpu_experts(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct layer *w = &cpu->weights->layers[layer];
    const struct model *m = cpu->model;
    int n_rows = cpu->batch->n_rows;
    stage_begin(cpu);
    struct assignment a = assign(cpu);
    struct linear *jobs = stage_alloc(cpu, (size_t)(2 * m->experts + 2) * sizeof *jobs);
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, cpu->normed, (size_t)m->hidden, n_rows);
    const struct q8_row *q = cpu_quantize(cpu, &w->experts[0].gate, x, n_rows);
    cpu_linear_each(cpu, jobs, list_gate_up(cpu, w, &a, jobs, x, q));
    silu_rows(cpu, cpu->gate, cpu->up, m->expert_width, n_rows * m->top_k);
    if (m->shared_experts) {
        silu_rows(cpu, cpu->shared_gate, cpu->shared_up, m->expert_width * m->shared_experts, n_rows);
    }
    cpu_linear_sum(cpu, jobs, list_down(cpu, w, &a, jobs));
}
