#include "backend/cpu/cpu.h"

#include "base/numbers.h"

enum { TASKS_A_THREAD = 2 }; /* so that one that is late does not keep all others waiting for long */

/* The kernels write y[t][r] for r in [r0, r1). Into a block that starts at r0 they are handed a pointer r0 floats
 * before it; only the block itself is touched. */
static float *before_block(float *block, int r0) {
    return (float *)((uintptr_t)block - (uintptr_t)r0 * sizeof(float));
}

/* The rows of a task, where there are few threads. */
static int largest_block_rows(const struct kern *kern, const struct mat *w) {
    if (mat_is_words(w->format)) return w->turned ? LINEAR_BLOCK_PANELS : LINEAR_BLOCK_AWQ;
    if (kern->tile_order && (w->format == MAT_BF16 || w->format == MAT_FP8)) return LINEAR_BLOCK_TILES;
    if (w->format == MAT_FP8 || (w->format == MAT_BF16 && kern->pair_order)) return LINEAR_BLOCK_FP8;
    if (w->format == MAT_FP4 || gguf_is_blocks(w->format)) return LINEAR_BLOCK_GGUF;
    return mat_is_integer(w->format) ? LINEAR_BLOCK_PANELS : LINEAR_BLOCK;
}

/* ... where they are `halvings` times halved. */
static int block_rows(const struct kern *kern, const struct mat *w, int halvings) {
    int rows = largest_block_rows(kern, w) >> halvings;
    return rows > LINEAR_BLOCK_MIN ? rows : LINEAR_BLOCK_MIN;
}

static int end_of(const struct linear *job) {
    return job->to ? job->to : job->w->rows;
}

static int count_blocks(const struct kern *kern, const struct linear *job, int halvings) {
    int rows = block_rows(kern, job->w, halvings);
    return (end_of(job) - job->from + rows - 1) / rows;
}

/* Many threads want small tasks: halves them until every thread has two. */
static int choose_halvings(const struct cpu *cpu, const struct linear *jobs, int n_jobs) {
    int halvings = 0, wanted = TASKS_A_THREAD * pool_threads(cpu->pool);
    for (; LINEAR_BLOCK_MAX >> halvings > LINEAR_BLOCK_MIN; halvings++) {
        int tasks = 0;
        for (int i = 0; i < n_jobs; i++) tasks += count_blocks(&cpu->kern, &jobs[i], halvings);
        if (tasks >= wanted) break;
    }
    return halvings;
}

/* Where the weights of rows from r0 on begin, for formats that are told what comes next; else NULL. */
static const void *weights_at(const struct mat *w, int r0) {
    if (gguf_is_blocks(w->format)) return gguf_rows_at(w, r0);
    if (w->format == MAT_FP4) return fp4_row_at(w, r0);
    if (mat_is_words(w->format) && w->turned) return words_rows_at(w, r0);
    if (!mat_is_integer(w->format)) return NULL;
    return (const uint8_t *)w->data + (size_t)(r0 / BLOCK_ROWS) * block_panel_bytes(w);
}

static void multiply(const struct kern *kern, const struct linear *job, int r0, int r1, float *const *y,
                     const void *next) {
    if (job->q) {
        kern->gemm_q8[job->w->format](job->w, r0, r1, job->q, job->n, y, next);
    } else {
        const enum mat_format format = job->w->format;
        (job->is_unrounded ? kern_gemm_unrounded(kern, format) : kern->gemm[format])(job->w, r0, r1, job->x, job->n, y);
    }
}

static int block_end(const struct linear *job, int r0, int rows) {
    return smaller(r0 + rows, end_of(job));
}

/* Quantising, a row a task. */
struct quantize_task {
    const struct kern *kern;
    const float *const *x;
    struct q8_row *q;
    int cols, group;
};

static void quantize_row(void *context, int index, int worker) {
    (void)worker;
    const struct quantize_task *task = context;
    task->kern->quantize(task->x[index], task->cols, task->group, &task->q[index]);
}

/* Bytes of one row's values, and of its scales or sums, at the given group. */
static size_t quantized_values(int cols) {
    return round_up((size_t)cols, Q8_GROUP_MAX);
}

static size_t quantized_words(int cols, int group) {
    return round_up(quantized_values(cols) / (size_t)group * 4, 64);
}

size_t cpu_quantized_bytes(int n, int cols) {
    size_t row = quantized_values(cols) + 2 * quantized_words(cols, Q8_GROUP_MIN);
    return (size_t)n * (row + sizeof(struct q8_row)) + 128;
}

const struct q8_row *cpu_quantize(struct cpu *cpu, const struct mat *w, const float *const *x, int n) {
    int group = q8_group(w);
    if (!group || cpu->options.compute == COMPUTE_F32) return NULL;
    size_t values = quantized_values(w->cols), words = quantized_words(w->cols, group);
    struct q8_row *q = stage_alloc(cpu, (size_t)n * sizeof *q);
    uint8_t *at = stage_alloc(cpu, (size_t)n * (values + 2 * words));
    for (int i = 0; i < n; i++, at += values + 2 * words) {
        q[i] = (struct q8_row){(int8_t *)at, (float *)(at + values), (int32_t *)(at + values + words)};
    }
    struct quantize_task task = {&cpu->kern, x, q, w->cols, group};
    pool_run(cpu->pool, n, quantize_row, &task);
    return q;
}

const struct q8_row *cpu_quantize_like(struct cpu *cpu, const struct linear *other, const struct mat *w,
                                       const float *const *x, int n) {
    return q8_group(other->w) == q8_group(w) ? other->q : cpu_quantize(cpu, w, x, n);
}

struct each_task {
    const struct cpu *cpu;
    const struct linear *jobs;
    const int *first; /* [n_jobs + 1] index of each job's first block */
    int n_jobs, halvings;
};

/* The job that block `index` belongs to. */
static int find_job(const struct each_task *task, int index) {
    int low = 0, high = task->n_jobs;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (task->first[middle] <= index) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* What this thread will probably read after task `index`: the others take one each in the meantime. */
static const void *guess_next(const struct each_task *task, int index) {
    index += pool_threads(task->cpu->pool);
    if (index >= task->first[task->n_jobs]) return NULL;
    int which = find_job(task, index);
    const struct linear *job = &task->jobs[which];
    int rows = block_rows(&task->cpu->kern, job->w, task->halvings);
    return weights_at(job->w, job->from + (index - task->first[which]) * rows);
}

static void run_each(void *context, int index, int worker) {
    (void)worker;
    const struct each_task *task = context;
    int which = find_job(task, index);
    const struct linear *job = &task->jobs[which];
    const struct kern *kern = &task->cpu->kern;
    int rows = block_rows(kern, job->w, task->halvings), r0 = job->from + (index - task->first[which]) * rows;
    multiply(kern, job, r0, block_end(job, r0, rows), job->y, guess_next(task, index));
}

static void show(const struct cpu *cpu, const struct linear *jobs, int n_jobs) {
    const struct linear_observer *observer = cpu->observer;
    for (int i = 0; observer && i < n_jobs; i++) observer->input(observer->context, jobs[i].w, jobs[i].x, jobs[i].n);
}

void cpu_linear_each(struct cpu *cpu, const struct linear *jobs, int n_jobs) {
    show(cpu, jobs, n_jobs);
    int *first = stage_alloc(cpu, (size_t)(n_jobs + 1) * sizeof *first), halvings = choose_halvings(cpu, jobs, n_jobs);
    first[0] = 0;
    for (int i = 0; i < n_jobs; i++) first[i + 1] = first[i] + count_blocks(&cpu->kern, &jobs[i], halvings);
    struct each_task task = {cpu, jobs, first, n_jobs, halvings};
    pool_run(cpu->pool, first[n_jobs], run_each, &task);
}

struct sum_task {
    const struct cpu *cpu;
    const struct linear *jobs;
    float **block; /* [threads][max_rows] pointers into the worker's block */
    int n_jobs, rows;
};

static void run_sum(void *context, int index, int worker) {
    const struct sum_task *task = context;
    const struct cpu *cpu = task->cpu;
    int r0 = index * task->rows, r1 = block_end(&task->jobs[0], r0, task->rows);
    float **block = task->block + (size_t)worker * (size_t)cpu->options.max_rows;
    float *sum = cpu->workers[worker].sum;
    for (int i = 0; i < cpu->batch->n_rows; i++) block[i] = before_block(sum + (size_t)i * LINEAR_BLOCK_MAX, r0);
    for (int j = 0; j < task->n_jobs; j++) {
        const struct linear *job = &task->jobs[j];
        multiply(&cpu->kern, job, r0, r1, block, j + 1 < task->n_jobs ? weights_at(task->jobs[j + 1].w, r0) : NULL);
        for (int i = 0; i < job->n; i++) {
            float scale = job->scale ? job->scale[i] : 1;
            cpu->kern.add_scaled(job->y[i] + r0, scale, sum + (size_t)i * LINEAR_BLOCK_MAX, r1 - r0);
        }
    }
}

void cpu_linear_sum(struct cpu *cpu, const struct linear *jobs, int n_jobs) {
    show(cpu, jobs, n_jobs);
    size_t n = (size_t)pool_threads(cpu->pool) * (size_t)cpu->options.max_rows;
    int halvings = choose_halvings(cpu, jobs, 1), rows = block_rows(&cpu->kern, jobs[0].w, halvings);
    struct sum_task task = {cpu, jobs, stage_alloc(cpu, n * sizeof(float *)), n_jobs, rows};
    pool_run(cpu->pool, count_blocks(&cpu->kern, &jobs[0], halvings), run_sum, &task);
}

void cpu_linear_show(struct cpu *cpu, const struct mat *w, float *x, size_t x_stride, int n) {
    if (!cpu->observer) return;
    show(cpu, &(struct linear){.w = w, .x = (const float *const *)cpu_row_pointers(cpu, x, x_stride, n), .n = n}, 1);
}

static struct linear linear_of_rows(struct cpu *cpu, const struct mat *w, float *x, size_t x_stride, float *y,
                                    size_t y_stride, int n) {
    const float *const *from = (const float *const *)cpu_row_pointers(cpu, x, x_stride, n);
    struct linear job = {.w = w, .x = from, .y = cpu_row_pointers(cpu, y, y_stride, n), .n = n};
    job.q = cpu_quantize(cpu, w, from, n);
    return job;
}

void cpu_linear(struct cpu *cpu, const struct mat *w, float *x, size_t x_stride, float *y, size_t y_stride, int n) {
    struct linear job = linear_of_rows(cpu, w, x, x_stride, y, y_stride, n);
    cpu_linear_each(cpu, &job, 1);
}

void cpu_linear_unrounded(struct cpu *cpu, const struct mat *w, float *x, size_t x_stride, float *y, size_t y_stride,
                          int n) {
    struct linear job = linear_of_rows(cpu, w, x, x_stride, y, y_stride, n);
    job.is_unrounded = true;
    cpu_linear_each(cpu, &job, 1);
}
