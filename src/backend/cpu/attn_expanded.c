#include "backend/cpu/attention.h"

#include <math.h>
#include <string.h>

struct expanded_task {
    struct cpu *cpu;
    int layer;
    const int *seqs; /* indices in batch->seqs */
};

/* y[i] = w x[i] for n <= KV_PAGE_TOKENS rows at fixed strides. */
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

/* kv_b of one head, widened into the worker's memory: W_UK [nope][kv_lora], then W_UV [v][kv_lora]. */
static void load_weight(const struct cpu *cpu, int layer, int head, int worker, struct mat *key, struct mat *value) {
    const struct model *m = cpu->model;
    int rows = m->nope_dim + m->v_dim;
    float *out = cpu->workers[worker].weight;
    cpu->kern.decode_rows(&cpu->weights->layers[layer].kv_b, head * rows, (head + 1) * rows, out);
    *key = f32_matrix(out, m->nope_dim, m->kv_lora);
    *value = f32_matrix(out + (size_t)m->nope_dim * (size_t)m->kv_lora, m->v_dim, m->kv_lora);
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

/* Rows [first, first + n) of one head against the expanded page. */
static void attend_block(struct cpu *cpu, int first, int n, int head, int page_pos, int tokens, int worker) {
    const struct model *m = cpu->model;
    struct worker_scratch *scratch = &cpu->workers[worker];
    int dim = model_q_head_dim(m);
    float keep[ATTENTION_ROWS];
    cpu->kern.dots(q_of(cpu, first, head), q_stride(cpu), n, scratch->key, (size_t)dim, tokens, dim, scratch->score,
                   KV_PAGE_TOKENS);
    for (int i = 0; i < n; i++) {
        size_t state = (size_t)(first + i) * (size_t)m->heads + (size_t)head;
        keep[i] = attn_softmax(cpu, scratch->score + (size_t)i * KV_PAGE_TOKENS, cpu->pos[first + i] - page_pos + 1,
                               tokens, &cpu->max[state], &cpu->sum[state]);
    }
    cpu->kern.weighted_sum(attended_of(cpu, first, head), attended_stride(cpu), page_pos == 0 ? NULL : keep,
                           scratch->score, KV_PAGE_TOKENS, scratch->value, (size_t)m->v_dim, n, tokens, m->v_dim);
}

/* All rows of the sequence that can see the page, in blocks. */
static void attend_page(struct cpu *cpu, const struct batch_seq *seq, int head, int page_pos, int tokens, int worker) {
    int skip = page_pos > seq->first_pos ? page_pos - seq->first_pos : 0;
    for (int i = skip; i < seq->n_rows; i += ATTENTION_ROWS) {
        int n = seq->n_rows - i < ATTENTION_ROWS ? seq->n_rows - i : ATTENTION_ROWS;
        attend_block(cpu, seq->first_row + i, n, head, page_pos, tokens, worker);
    }
}

static void reset_softmax(struct cpu *cpu, const struct batch_seq *seq, int head) {
    for (int row = seq->first_row; row < seq->first_row + seq->n_rows; row++) {
        size_t state = (size_t)row * (size_t)cpu->model->heads + (size_t)head;
        cpu->max[state] = -INFINITY;
        cpu->sum[state] = 0;
    }
}

static void divide_by_sum(struct cpu *cpu, const struct batch_seq *seq, int head) {
    for (int row = seq->first_row; row < seq->first_row + seq->n_rows; row++) {
        float inverse = 1 / cpu->sum[(size_t)row * (size_t)cpu->model->heads + (size_t)head];
        float *values = attended_of(cpu, row, head);
        for (int i = 0; i < cpu->model->v_dim; i++) values[i] *= inverse;
    }
}

/* One head of one sequence. */
static void attend(void *context, int index, int worker) {
    const struct expanded_task *task = context;
    struct cpu *cpu = task->cpu;
    int head = index % cpu->model->heads;
    const struct batch_seq *seq = &cpu->batch->seqs[task->seqs[index / cpu->model->heads]];
    int end = seq->first_pos + seq->n_rows;
    struct mat key, value;
    load_weight(cpu, task->layer, head, worker, &key, &value);
    reset_softmax(cpu, seq, head);
    for (int page_pos = 0; page_pos < end; page_pos += KV_PAGE_TOKENS) {
        int tokens = end - page_pos < KV_PAGE_TOKENS ? end - page_pos : KV_PAGE_TOKENS;
        attn_load_page(cpu, task->layer, seq, page_pos, tokens, worker);
        expand_page(cpu, &key, &value, tokens, worker);
        attend_page(cpu, seq, head, page_pos, tokens, worker);
    }
    divide_by_sum(cpu, seq, head);
}

void attn_expanded(struct cpu *cpu, int layer) {
    int *seqs = stage_alloc(cpu, (size_t)cpu->batch->n_seqs * sizeof *seqs), n = 0;
    for (int s = 0; s < cpu->batch->n_seqs; s++) {
        if (cpu->expanded[s]) seqs[n++] = s;
    }
    struct expanded_task task = {cpu, layer, seqs};
    if (n) pool_run(cpu->pool, n * cpu->model->heads, attend, &task);
}
