#include "backend/cpu/attention.h"

#include <math.h>
#include <string.h>

struct expanded_task {
    struct cpu *cpu;
    int layer;
    const int *seqs; /* indices in batch->seqs */
};

/* kv_b of one head: where in w its W_UK [nope][kv_lora] and W_UV [v][kv_lora] begin. */
struct head_weight {
    struct mat w;
    int key, value;
};

/* y[i] = rows [first, first + count) of w times x[i], for n <= KV_PAGE_TOKENS rows at fixed strides. */
static void multiply(const struct kern *kern, const struct mat *w, int first, int count, const float *x,
                     size_t x_stride, float *y, size_t y_stride, int n) {
    const float *from[KV_PAGE_TOKENS];
    float *to[KV_PAGE_TOKENS];
    for (int i = 0; i < n; i++) {
        from[i] = x + (size_t)i * x_stride;
        to[i] = (float *)((uintptr_t)(y + (size_t)i * y_stride) - (uintptr_t)first * sizeof(float)); /* as at row 0 */
    }
    kern->gemm[w->format](w, first, first + count, from, n, to);
}

/* Straight from the weights where their own kernel takes fp32; else widened into the worker's memory. Widening FP8 once is
 * dearer than doing it for every page only where the matrix unit or products of bf16 would be left idle. */
static struct head_weight load_weight(const struct cpu *cpu, int layer, int head, int worker) {
    const struct model *m = cpu->model;
    const struct mat *kv_b = &cpu->weights->layers[layer].kv_b;
    int rows = m->nope_dim + m->v_dim, first = head * rows;
    const bool fp8_pays = cpu->kern.tile_order || cpu->kern.pair_order;
    if (q8_group(kv_b) == 0 && (kv_b->format != MAT_FP8 || fp8_pays)) {
        return (struct head_weight){*kv_b, first, first + m->nope_dim};
    }
    cpu->kern.decode_rows(kv_b, first, first + rows, cpu->workers[worker].weight);
    return (struct head_weight){f32_matrix(cpu->workers[worker].weight, rows, m->kv_lora), 0, m->nope_dim};
}

/* Keys [W_UK c | r] and values W_UV c of the loaded page for one head. */
static void expand_page(struct cpu *cpu, const struct head_weight *weight, int tokens, int worker) {
    const struct model *m = cpu->model;
    struct worker_scratch *scratch = &cpu->workers[worker];
    size_t latent = (size_t)model_latent_dim(m), key_dim = (size_t)model_q_head_dim(m);
    multiply(&cpu->kern, &weight->w, weight->key, m->nope_dim, scratch->page, latent, scratch->key, key_dim, tokens);
    multiply(&cpu->kern, &weight->w, weight->value, m->v_dim, scratch->page, latent, scratch->value, (size_t)m->v_dim,
             tokens);
    for (int t = 0; t < tokens; t++) {
        memcpy(scratch->key + (size_t)t * key_dim + m->nope_dim, scratch->page + (size_t)t * latent + m->kv_lora,
               (size_t)m->rope_dim * sizeof(float));
    }
    if (!cpu->in_pairs) return;
    cpu->kern.to_bf16(scratch->key, tokens * (int)key_dim, scratch->key16);
    cpu->kern.to_bf16(scratch->value, tokens * m->v_dim, scratch->value16);
}

static void score_block_in_pairs(struct cpu *cpu, int first, int n, int head, int tokens, int worker) {
    struct worker_scratch *scratch = &cpu->workers[worker];
    const int dim = model_q_head_dim(cpu->model);
    for (int i = 0; i < n; i++)
        cpu->kern.to_bf16(q_of(cpu, first + i, head), dim, scratch->query16 + (size_t)i * (size_t)dim);
    cpu->kern.pair_dots(&(struct kern_pair_dots){.q = scratch->query16,
                                                 .q_stride = (size_t)dim,
                                                 .n_q = n,
                                                 .k = scratch->key16,
                                                 .k_stride = (size_t)dim,
                                                 .n_k = tokens,
                                                 .dim = dim,
                                                 .out = scratch->score,
                                                 .out_stride = KV_PAGE_TOKENS});
}

static void score_block(struct cpu *cpu, int first, int n, int head, int tokens, int worker) {
    struct worker_scratch *scratch = &cpu->workers[worker];
    const int dim = model_q_head_dim(cpu->model);
    cpu->kern.dots(&(struct kern_dots){.q = q_of(cpu, first, head),
                                       .q_stride = q_stride(cpu),
                                       .n_q = n,
                                       .k = scratch->key,
                                       .k_stride = (size_t)dim,
                                       .n_k = tokens,
                                       .dim = dim,
                                       .out = scratch->score,
                                       .out_stride = KV_PAGE_TOKENS});
}

/* Rows [first, first + n) of one head against the expanded page. */
static void attend_block(struct cpu *cpu, int first, int n, int head, int page_pos, int tokens, int worker) {
    const struct model *m = cpu->model;
    struct worker_scratch *scratch = &cpu->workers[worker];
    float keep[ATTENTION_ROWS_TILES];
    (cpu->in_pairs ? score_block_in_pairs : score_block)(cpu, first, n, head, tokens, worker);
    for (int i = 0; i < n; i++) {
        size_t state = (size_t)(first + i) * (size_t)m->heads + (size_t)head;
        keep[i] = attn_softmax(cpu, scratch->score + (size_t)i * KV_PAGE_TOKENS, cpu->pos[first + i] - page_pos + 1,
                               tokens, &cpu->max[state], &cpu->sum[state]);
    }
    float *acc = attended_of(cpu, first, head);
    if (!cpu->in_pairs) {
        cpu->kern.page_sum(acc, attended_stride(cpu), page_pos == 0 ? NULL : keep, scratch->score, KV_PAGE_TOKENS,
                           scratch->value, (size_t)m->v_dim, n, tokens, m->v_dim);
        return;
    }
    cpu->kern.pair_sum(&(struct kern_pair_sum){.acc = acc,
                                               .acc_stride = attended_stride(cpu),
                                               .keep = page_pos == 0 ? NULL : keep,
                                               .p = scratch->score,
                                               .p_stride = KV_PAGE_TOKENS,
                                               .v = scratch->value16,
                                               .v_stride = (size_t)m->v_dim,
                                               .m = n,
                                               .n_t = tokens,
                                               .n_c = m->v_dim});
}

/* All rows of the sequence that can see the page, in blocks. */
static void attend_page(struct cpu *cpu, const struct batch_seq *seq, int head, int page_pos, int tokens, int worker) {
    int skip = page_pos > seq->first_pos ? page_pos - seq->first_pos : 0;
    int most = cpu->kern.tile_order ? ATTENTION_ROWS_TILES : ATTENTION_ROWS;
    for (int i = skip; i < seq->n_rows; i += most) {
        int n = seq->n_rows - i < most ? seq->n_rows - i : most;
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
    struct head_weight weight = load_weight(cpu, task->layer, head, worker);
    reset_softmax(cpu, seq, head);
    for (int page_pos = 0; page_pos < end; page_pos += KV_PAGE_TOKENS) {
        int tokens = end - page_pos < KV_PAGE_TOKENS ? end - page_pos : KV_PAGE_TOKENS;
        attn_load_page(cpu, task->layer, seq, page_pos, tokens, worker);
        expand_page(cpu, &weight, tokens, worker);
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
