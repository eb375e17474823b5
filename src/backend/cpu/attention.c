#include <math.h>
#include <string.h>
#include "backend/cpu/cpu.h"

/* Multi-head latent attention, DeepSeek-V2 (arXiv 2405.04434) section 2.1. The cache holds, per token, the normed latent c
 * and the rotated shared key r. Two forms give the same result:
 *   absorbed  score = (q_nope W_UK) c + q_rope r;  out = W_UV (sum of p c)   - less to read: decode, short chunks
 *   expanded  k = [W_UK c | r], v = W_UV c per cached token; plain attention - less to compute: long chunks
 * Both walk the pages in order with a running softmax, so a row's result does not depend on its batch. */

static size_t q_stride(const struct cpu *cpu) {
    return (size_t)cpu->model->heads * (size_t)model_q_head_dim(cpu->model);
}

static size_t q_latent_stride(const struct cpu *cpu) {
    return (size_t)cpu->model->heads * (size_t)model_latent_dim(cpu->model);
}

static size_t acc_stride(const struct cpu *cpu) {
    return (size_t)cpu->model->heads * (size_t)cpu->model->kv_lora;
}

static size_t attended_stride(const struct cpu *cpu) {
    return (size_t)cpu->model->heads * (size_t)cpu->model->v_dim;
}

static float *q_of(const struct cpu *cpu, int row, int head) {
    return cpu->q + (size_t)row * q_stride(cpu) + (size_t)head * (size_t)model_q_head_dim(cpu->model);
}

static float *q_latent_of(const struct cpu *cpu, int row, int head) {
    return cpu->q_latent + (size_t)row * q_latent_stride(cpu) + (size_t)head * (size_t)model_latent_dim(cpu->model);
}

static float *acc_of(const struct cpu *cpu, int row, int head) {
    return cpu->acc + (size_t)row * acc_stride(cpu) + (size_t)head * (size_t)cpu->model->kv_lora;
}

static float *attended_of(const struct cpu *cpu, int row, int head) {
    return cpu->attended + (size_t)row * attended_stride(cpu) + (size_t)head * (size_t)cpu->model->v_dim;
}

static struct mat f32_matrix(const float *data, int rows, int cols) {
    return (struct mat){.format = MAT_F32, .rows = rows, .cols = cols, .data = data};
}

/* y[i] = w x[i] for n rows at fixed strides; n is at most KV_PAGE_TOKENS. */
static void multiply(const struct kern *kern, const struct mat *w, const float *x, size_t x_stride, float *y,
                     size_t y_stride, int n) {
    const float *from[KV_PAGE_TOKENS];
    float *to[KV_PAGE_TOKENS];
    for (int i = 0; i < n; i++) {
        from[i] = x + (size_t)i * x_stride;
        to[i] = y + (size_t)i * y_stride;
    }
    kern->gemm[MAT_F32](w, 0, w->rows, from, n, to);
}

/* Part of kv_b for one head, widened into the worker's memory: W_UK [nope][kv_lora], then W_UV [v][kv_lora]. */
static const float *load_key_weight(const struct cpu *cpu, int layer, int head, int worker) {
    const struct model *m = cpu->model;
    int first = head * (m->nope_dim + m->v_dim);
    float *out = cpu->workers[worker].weight;
    cpu->kern.decode_rows(&cpu->weights->layers[layer].kv_b, first, first + m->nope_dim, out);
    return out;
}

static const float *load_value_weight(const struct cpu *cpu, int layer, int head, int worker) {
    const struct model *m = cpu->model;
    int first = head * (m->nope_dim + m->v_dim) + m->nope_dim;
    float *out = cpu->workers[worker].weight + (size_t)m->nope_dim * (size_t)m->kv_lora;
    cpu->kern.decode_rows(&cpu->weights->layers[layer].kv_b, first, first + m->v_dim, out);
    return out;
}

/* What the tasks below know. */
struct attn_task {
    struct cpu *cpu;
    int layer;
    int heads_per_task, head_groups; /* cpu_attn */
};

/* Rotates a row's queries and its key, norms the latent, and writes both to the cache. */
static void finish_row(void *context, int row, int worker) {
    (void)worker;
    const struct attn_task *task = context;
    struct cpu *cpu = task->cpu;
    const struct model *m = cpu->model;
    for (int head = 0; head < m->heads; head++) cpu_rope_apply(cpu, row, q_of(cpu, row, head) + m->nope_dim);
    float *latent = cpu->kv_a + (size_t)row * (size_t)model_latent_dim(m);
    float mean =
        cpu->kern.rms_norm(latent, cpu->weights->layers[task->layer].kv_a_norm, m->kv_lora, (float)m->norm_eps, latent);
    if (!isfinite(mean)) cpu_note_fault(cpu, task->layer, "attn_in", row);
    cpu_rope_apply(cpu, row, latent + m->kv_lora);
    int pos = cpu->pos[row];
    const struct batch_seq *seq = &cpu->batch->seqs[cpu->seq[row]];
    uint8_t *page = kv_cache_page(cpu, task->layer, seq->pages[pos / KV_PAGE_TOKENS]);
    kv_cache_store(cpu, page + (size_t)(pos % KV_PAGE_TOKENS) * cpu->row_bytes, latent);
}

/* q_latent = [q_nope W_UK | q_rope] of one head, for the rows of every absorbed sequence. */
static void absorb_head(void *context, int head, int worker) {
    const struct attn_task *task = context;
    struct cpu *cpu = task->cpu;
    const struct model *m = cpu->model;
    const float *weight = load_key_weight(cpu, task->layer, head, worker);
    for (int s = 0; s < cpu->batch->n_seqs; s++) {
        const struct batch_seq *seq = &cpu->batch->seqs[s];
        if (cpu->expanded[s]) continue;
        cpu->kern.weighted_sum(q_latent_of(cpu, seq->first_row, head), q_latent_stride(cpu), NULL,
                               q_of(cpu, seq->first_row, head), q_stride(cpu), weight, (size_t)m->kv_lora, seq->n_rows,
                               m->nope_dim, m->kv_lora);
        for (int row = seq->first_row; row < seq->first_row + seq->n_rows; row++) {
            memcpy(q_latent_of(cpu, row, head) + m->kv_lora, q_of(cpu, row, head) + m->nope_dim,
                   (size_t)m->rope_dim * sizeof(float));
        }
    }
}

/* q, or q_a, and kv_a read the same input: one pass of the pool. */
static void project_in(struct cpu *cpu, const struct layer *layer) {
    const struct model *m = cpu->model;
    int n = cpu->batch->n_rows;
    bool low_rank = m->q_kind == Q_LOW_RANK;
    const struct mat *q = low_rank ? &layer->q_a : &layer->q;
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, cpu->normed, (size_t)m->hidden, n);
    float **to_q = low_rank ? cpu_row_pointers(cpu, cpu->q_a, (size_t)m->q_lora, n)
                            : cpu_row_pointers(cpu, cpu->q, q_stride(cpu), n);
    float **to_kv = cpu_row_pointers(cpu, cpu->kv_a, (size_t)model_latent_dim(m), n);
    struct linear jobs[2] = {{.w = q, .x = x, .y = to_q, .n = n}, {.w = &layer->kv_a, .x = x, .y = to_kv, .n = n}};
    jobs[0].q = cpu_quantize(cpu, q, x, n);
    jobs[1].q = cpu_quantize_like(cpu, &jobs[0], &layer->kv_a, x, n);
    cpu_linear_each(cpu, jobs, 2);
}

void cpu_attn_in(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct model *m = cpu->model;
    const struct layer *w = &cpu->weights->layers[layer];
    struct attn_task task = {.cpu = cpu, .layer = layer};
    int n = cpu->batch->n_rows;
    stage_begin(cpu);
    cpu_norm_rows(cpu, cpu->x, m->hidden, (size_t)m->hidden, w->attn_norm, cpu->normed, n, layer - 1,
                  layer == 0 ? "embed" : "feed-forward");
    project_in(cpu, w);
    if (m->q_kind == Q_LOW_RANK) {
        cpu_norm_rows(cpu, cpu->q_a, m->q_lora, (size_t)m->q_lora, w->q_a_norm, cpu->q_a, n, layer, "attn_in");
        cpu_linear(cpu, &w->q_b, cpu->q_a, (size_t)m->q_lora, cpu->q, q_stride(cpu), n);
    }
    pool_run(cpu->pool, n, finish_row, &task);
    bool any_absorbed = false;
    for (int s = 0; s < cpu->batch->n_seqs; s++) any_absorbed |= !cpu->expanded[s];
    if (any_absorbed) pool_run(cpu->pool, m->heads, absorb_head, &task);
}

/* One block of query rows of one sequence and head against one page. */
struct block {
    int first, n; /* rows of the batch */
    int head;
    const float *query; /* of the first row */
    size_t query_stride;
    const struct mat *keys; /* [tokens of the page][query dims] */
    const float *values;
    size_t value_stride;
    int value_dim;
    float *acc; /* of the first row */
    size_t acc_stride;
    int page_pos; /* position of the page's first token */
};

/* Scores, running softmax, and the weighted sum. Tokens past a row's own position get weight 0. */
static void attend_block(struct cpu *cpu, const struct block *b, int worker) {
    float *score = cpu->workers[worker].score, keep[ATTENTION_ROWS];
    int heads = cpu->model->heads, tokens = b->keys->rows;
    multiply(&cpu->kern, b->keys, b->query, b->query_stride, score, KV_PAGE_TOKENS, b->n);
    for (int i = 0; i < b->n; i++) {
        int row = b->first + i, visible = cpu->pos[row] - b->page_pos + 1;
        if (visible > tokens) visible = tokens;
        float *s = score + (size_t)i * KV_PAGE_TOKENS;
        size_t state = (size_t)row * (size_t)heads + (size_t)b->head;
        keep[i] = cpu->kern.softmax_step(s, visible, cpu->softmax_scale, &cpu->max[state], &cpu->sum[state]);
        for (int t = visible; t < tokens; t++) s[t] = 0;
    }
    cpu->kern.weighted_sum(b->acc, b->acc_stride, b->page_pos == 0 ? NULL : keep, score, KV_PAGE_TOKENS, b->values,
                           b->value_stride, b->n, tokens, b->value_dim);
}

/* All rows of the sequence that can see the page, in blocks. `b` has everything but the rows. */
static void attend_page(struct cpu *cpu, const struct batch_seq *seq, struct block *b, float *query_base,
                        float *acc_base, int worker) {
    int skip = b->page_pos > seq->first_pos ? b->page_pos - seq->first_pos : 0;
    for (int i = skip; i < seq->n_rows; i += ATTENTION_ROWS) {
        b->first = seq->first_row + i;
        b->n = seq->n_rows - i < ATTENTION_ROWS ? seq->n_rows - i : ATTENTION_ROWS;
        b->query = query_base + (size_t)b->first * b->query_stride;
        b->acc = acc_base + (size_t)b->first * b->acc_stride;
        attend_block(cpu, b, worker);
    }
}

static void reset_softmax(struct cpu *cpu, const struct batch_seq *seq, int head) {
    for (int row = seq->first_row; row < seq->first_row + seq->n_rows; row++) {
        size_t state = (size_t)row * (size_t)cpu->model->heads + (size_t)head;
        cpu->max[state] = -INFINITY;
        cpu->sum[state] = 0;
    }
}

static void divide_by_sum(struct cpu *cpu, const struct batch_seq *seq, int head, float *base, size_t stride, int n) {
    for (int row = seq->first_row; row < seq->first_row + seq->n_rows; row++) {
        float inverse = 1 / cpu->sum[(size_t)row * (size_t)cpu->model->heads + (size_t)head];
        float *values = base + (size_t)row * stride;
        for (int i = 0; i < n; i++) values[i] *= inverse;
    }
}

/* Tokens of the page that starts at page_pos, up to the sequence's last row. */
static int page_tokens(const struct batch_seq *seq, int page_pos) {
    int left = seq->first_pos + seq->n_rows - page_pos;
    return left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS;
}

static void load_page(struct cpu *cpu, const struct attn_task *task, const struct batch_seq *seq, int page_pos,
                      int worker) {
    const uint8_t *page = kv_cache_page(cpu, task->layer, seq->pages[page_pos / KV_PAGE_TOKENS]);
    kv_cache_load(cpu, page, page_tokens(seq, page_pos), cpu->workers[worker].page);
}

static void finish_absorbed_head(struct cpu *cpu, const struct attn_task *task, const struct batch_seq *seq, int head,
                                 int worker) {
    const struct model *m = cpu->model;
    divide_by_sum(cpu, seq, head, cpu->acc + (size_t)head * (size_t)m->kv_lora, acc_stride(cpu), m->kv_lora);
    struct mat weight = f32_matrix(load_value_weight(cpu, task->layer, head, worker), m->v_dim, m->kv_lora);
    for (int i = 0; i < seq->n_rows; i += KV_PAGE_TOKENS) {
        int row = seq->first_row + i, n = seq->n_rows - i < KV_PAGE_TOKENS ? seq->n_rows - i : KV_PAGE_TOKENS;
        multiply(&cpu->kern, &weight, acc_of(cpu, row, head), acc_stride(cpu), attended_of(cpu, row, head),
                 attended_stride(cpu), n);
    }
}

/* A group of heads shares each page once it is widened. */
static void attend_absorbed(struct cpu *cpu, const struct attn_task *task, const struct batch_seq *seq, int head0,
                            int head1, int worker) {
    const struct model *m = cpu->model;
    int end = seq->first_pos + seq->n_rows, latent = model_latent_dim(m);
    for (int head = head0; head < head1; head++) reset_softmax(cpu, seq, head);
    for (int page_pos = 0; page_pos < end; page_pos += KV_PAGE_TOKENS) {
        load_page(cpu, task, seq, page_pos, worker);
        const float *page = cpu->workers[worker].page;
        struct mat keys = f32_matrix(page, page_tokens(seq, page_pos), latent);
        for (int head = head0; head < head1; head++) {
            struct block block = {
                .head = head,
                .page_pos = page_pos,
                .keys = &keys,
                .query_stride = q_latent_stride(cpu),
                .values = page,
                .value_stride = (size_t)latent,
                .value_dim = m->kv_lora,
                .acc_stride = acc_stride(cpu),
            };
            attend_page(cpu, seq, &block, q_latent_of(cpu, 0, head), acc_of(cpu, 0, head), worker);
        }
    }
    for (int head = head0; head < head1; head++) finish_absorbed_head(cpu, task, seq, head, worker);
}

/* Keys [W_UK c | r] and values W_UV c of the loaded page for one head. */
static void expand_page(struct cpu *cpu, const struct mat *key_weight, const struct mat *value_weight, int tokens,
                        int worker) {
    const struct model *m = cpu->model;
    struct worker_scratch *scratch = &cpu->workers[worker];
    size_t latent = (size_t)model_latent_dim(m), key_dim = (size_t)model_q_head_dim(m);
    multiply(&cpu->kern, key_weight, scratch->page, latent, scratch->key, key_dim, tokens);
    multiply(&cpu->kern, value_weight, scratch->page, latent, scratch->value, (size_t)m->v_dim, tokens);
    for (int t = 0; t < tokens; t++) {
        memcpy(scratch->key + (size_t)t * key_dim + m->nope_dim, scratch->page + (size_t)t * latent + m->kv_lora,
               (size_t)m->rope_dim * sizeof(float));
    }
}

static void attend_expanded(struct cpu *cpu, const struct attn_task *task, const struct batch_seq *seq, int head,
                            int worker) {
    const struct model *m = cpu->model;
    struct worker_scratch *scratch = &cpu->workers[worker];
    int end = seq->first_pos + seq->n_rows;
    struct mat key_weight = f32_matrix(load_key_weight(cpu, task->layer, head, worker), m->nope_dim, m->kv_lora);
    struct mat value_weight = f32_matrix(load_value_weight(cpu, task->layer, head, worker), m->v_dim, m->kv_lora);
    reset_softmax(cpu, seq, head);
    for (int page_pos = 0; page_pos < end; page_pos += KV_PAGE_TOKENS) {
        int tokens = page_tokens(seq, page_pos);
        load_page(cpu, task, seq, page_pos, worker);
        expand_page(cpu, &key_weight, &value_weight, tokens, worker);
        struct mat keys = f32_matrix(scratch->key, tokens, model_q_head_dim(m));
        struct block block = {
            .head = head,
            .page_pos = page_pos,
            .keys = &keys,
            .query_stride = q_stride(cpu),
            .values = scratch->value,
            .value_stride = (size_t)m->v_dim,
            .value_dim = m->v_dim,
            .acc_stride = attended_stride(cpu),
        };
        attend_page(cpu, seq, &block, q_of(cpu, 0, head), attended_of(cpu, 0, head), worker);
    }
    divide_by_sum(cpu, seq, head, attended_of(cpu, 0, head), attended_stride(cpu), m->v_dim);
}

static void attend(void *context, int index, int worker) {
    const struct attn_task *task = context;
    struct cpu *cpu = task->cpu;
    int s = index / task->head_groups, head0 = index % task->head_groups * task->heads_per_task;
    int head1 = head0 + task->heads_per_task < cpu->model->heads ? head0 + task->heads_per_task : cpu->model->heads;
    const struct batch_seq *seq = &cpu->batch->seqs[s];
    if (!cpu->expanded[s]) {
        attend_absorbed(cpu, task, seq, head0, head1, worker);
        return;
    }
    for (int head = head0; head < head1; head++) attend_expanded(cpu, task, seq, head, worker);
}

void cpu_attn(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    int heads = cpu->model->heads, wanted = 4 * pool_threads(cpu->pool); /* tasks, to even out long and short ones */
    struct attn_task task = {.cpu = cpu, .layer = layer};
    task.heads_per_task = heads * cpu->batch->n_seqs / wanted;
    if (task.heads_per_task < 1) task.heads_per_task = 1;
    if (task.heads_per_task > heads) task.heads_per_task = heads;
    task.head_groups = (heads + task.heads_per_task - 1) / task.heads_per_task;
    stage_begin(cpu);
    pool_run(cpu->pool, cpu->batch->n_seqs * task.head_groups, attend, &task);
}

void cpu_attn_out(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    int n = cpu->batch->n_rows;
    const struct mat *o = &cpu->weights->layers[layer].o;
    stage_begin(cpu);
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, cpu->attended, attended_stride(cpu), n);
    struct linear job = {.w = o, .x = x, .n = n, .y = cpu_row_pointers(cpu, cpu->x, (size_t)cpu->model->hidden, n)};
    job.q = cpu_quantize(cpu, o, x, n);
    cpu_linear_sum(cpu, &job, 1);
}
