#include "backend/cpu/attention.h"
#include "backend/cpu/engram.h"
#include "backend/cpu/streams.h"

#include <math.h>

void attn_load_page(struct cpu *cpu, int layer, const struct batch_seq *seq, int page_pos, int n_tokens, int worker) {
    const uint8_t *page = kv_cache_page(cpu, layer, seq->pages[page_pos / KV_PAGE_TOKENS]);
    kv_cache_load(cpu, page, n_tokens, cpu->workers[worker].page);
}

float attn_softmax(struct cpu *cpu, float *score, int visible, int tokens, float *max, float *sum) {
    if (visible > tokens) visible = tokens;
    float keep = cpu->kern.softmax_step(score, visible, cpu->softmax_scale, max, sum);
    for (int t = visible; t < tokens; t++) score[t] = 0;
    return keep;
}

struct finish_task {
    struct cpu *cpu;
    int layer;
};

/* Rotates a row's queries and its key, norms the latent, and writes both to the cache. */
static void finish_row(void *context, int row, int worker) {
    (void)worker;
    const struct finish_task *task = context;
    struct cpu *cpu = task->cpu;
    const struct model *m = cpu->model;
    for (int head = 0; head < m->heads; head++) cpu_rope_apply(cpu, row, q_of(cpu, row, head) + m->nope_dim);
    float *latent = cpu->kv_a + (size_t)row * (size_t)model_latent_dim(m);
    float mean =
        cpu->kern.rms_norm(latent, cpu->weights->layers[task->layer].kv_a_norm, m->kv_lora, (float)m->norm_eps, latent);
    if (!isfinite(mean)) cpu_note_fault(cpu, task->layer, "attn_in", row);
    cpu_rope_apply(cpu, row, latent + m->kv_lora);
    if (m->index_topk) attn_index_finish(cpu, task->layer, row);
    int pos = cpu->pos[row];
    const struct batch_seq *seq = &cpu->batch->seqs[cpu->seq[row]];
    uint8_t *page = kv_cache_page(cpu, task->layer, seq->pages[pos / KV_PAGE_TOKENS]);
    kv_cache_store(cpu, page + (size_t)(pos % KV_PAGE_TOKENS) * cpu->row_bytes, latent);
}

/* q, or q_a, kv_a and the indexer read the same input: one pass of the pool. */
static void project_in(struct cpu *cpu, const struct layer *layer) {
    const struct model *m = cpu->model;
    int n = cpu->batch->n_rows;
    bool low_rank = m->q_kind == Q_LOW_RANK;
    const struct mat *q = low_rank ? &layer->q_a : &layer->q;
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, cpu->normed, (size_t)m->hidden, n);
    float **to_q = low_rank ? cpu_row_pointers(cpu, cpu->q_a, (size_t)m->q_lora, n)
                            : cpu_row_pointers(cpu, cpu->q, q_stride(cpu), n);
    float **to_kv = cpu_row_pointers(cpu, cpu->kv_a, (size_t)model_latent_dim(m), n);
    struct linear jobs[4] = {{.w = q, .x = x, .y = to_q, .n = n}, {.w = &layer->kv_a, .x = x, .y = to_kv, .n = n}};
    jobs[0].q = cpu_quantize(cpu, q, x, n);
    jobs[1].q = cpu_quantize_like(cpu, &jobs[0], &layer->kv_a, x, n);
    cpu_linear_each(cpu, jobs, 2 + attn_index_jobs(cpu, layer, x, &jobs[0], jobs + 2));
}

/* The heads' queries, and the indexer's where a row is sparse. */
static void project_low_rank(struct cpu *cpu, const struct layer *layer) {
    const struct model *m = cpu->model;
    int n = cpu->batch->n_rows;
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, cpu->q_a, (size_t)m->q_lora, n);
    struct linear jobs[2] = {
        {.w = &layer->q_b, .x = x, .y = cpu_row_pointers(cpu, cpu->q, q_stride(cpu), n), .n = n},
        {.w = &layer->indexer.q, .x = x, .n = n},
    };
    jobs[0].q = cpu_quantize(cpu, jobs[0].w, x, n);
    if (cpu->has_sparse) {
        jobs[1].q = cpu_quantize_like(cpu, &jobs[0], jobs[1].w, x, n);
        jobs[1].y = cpu_row_pointers(cpu, cpu->index_q, (size_t)model_index_q_dim(m), n);
    }
    cpu_linear_each(cpu, jobs, 1 + cpu->has_sparse);
}

void cpu_attn_in(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct model *m = cpu->model;
    const struct layer *w = &cpu->weights->layers[layer];
    struct finish_task task = {cpu, layer};
    int n = cpu->batch->n_rows;
    if (cpu->failure.code) return;
    stage_begin(cpu);
    engram_add(cpu, layer);
    streams_begin(cpu, layer, STREAMS_ATTENTION);
    if (model_is_hybrid(m)) {
        attn_hybrid_in(cpu, layer);
        return;
    }
    project_in(cpu, w);
    if (m->q_kind == Q_LOW_RANK) {
        cpu_norm_rows(cpu, cpu->q_a, m->q_lora, (size_t)m->q_lora, w->q_a_norm, cpu->q_a, n, layer, "attn_in");
        project_low_rank(cpu, w);
    }
    pool_run(cpu->pool, n, finish_row, &task);
    cpu_linear_show(cpu, &w->kv_b, cpu->kv_a, (size_t)model_latent_dim(m), n);
    attn_absorb(cpu, layer);
}

void cpu_attn(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    if (cpu->failure.code) return;
    stage_begin(cpu);
    if (model_is_hybrid(cpu->model)) {
        attn_hybrid_middle(cpu, layer);
        return;
    }
    attn_index(cpu, layer);
    attn_absorbed(cpu, layer);
    attn_expanded(cpu, layer);
}

void cpu_attn_out(struct backend *backend, int layer) {
    struct cpu *cpu = (struct cpu *)backend;
    int n = cpu->batch->n_rows;
    const struct mat *o = &cpu->weights->layers[layer].o;
    if (cpu->failure.code) return;
    const bool is_hybrid = model_is_hybrid(cpu->model);
    float *from = is_hybrid ? cpu->o_low : cpu->attended;
    stage_begin(cpu);
    if (is_hybrid) attn_hybrid_out(cpu, layer);
    const float *const *x = (const float *const *)cpu_row_pointers(cpu, from, (size_t)o->cols, n);
    struct linear job = {.w = o, .x = x, .n = n};
    job.y = cpu_row_pointers(cpu, streams_target(cpu), (size_t)cpu->model->hidden, n);
    job.q = cpu_quantize(cpu, o, x, n);
    cpu_linear_sum(cpu, &job, 1);
    streams_end(cpu);
}
