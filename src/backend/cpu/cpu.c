#include "backend/cpu/attention.h"
#include "backend/cpu/engram.h"
#include "backend/cpu/streams.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STAGE_ALIGN = 64 };

void stage_begin(struct cpu *cpu) {
    cpu->stage.used = 0;
}

void *stage_alloc(struct cpu *cpu, size_t n) {
    struct stage_scratch *stage = &cpu->stage;
    void *block = stage->base + stage->used;
    stage->used += (n + STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN;
    assert(stage->used <= stage->size);
    return block;
}

float **cpu_row_pointers(struct cpu *cpu, float *base, size_t stride, int n) {
    float **rows = stage_alloc(cpu, (size_t)n * sizeof *rows);
    for (int i = 0; i < n; i++) rows[i] = base + (size_t)i * stride;
    return rows;
}

void cpu_note_fault(struct cpu *cpu, int layer, const char *stage, int row) {
    if (atomic_exchange(&cpu->fault.seen, 1)) return;
    cpu->fault.layer = layer;
    cpu->fault.stage = stage;
    cpu->fault.row = row;
}

struct norm_task {
    struct cpu *cpu;
    const float *in, *weight;
    float *out;
    int width, layer;
    size_t stride;
    const char *stage;
};

static void norm_row(void *context, int row, int worker) {
    (void)worker;
    const struct norm_task *task = context;
    const float *in = task->in + (size_t)row * task->stride;
    float *out = task->out + (size_t)row * (size_t)task->width;
    float mean = task->cpu->kern.rms_norm(in, task->weight, task->width, (float)task->cpu->model->norm_eps, out);
    if (!isfinite(mean)) cpu_note_fault(task->cpu, task->layer, task->stage, row);
}

void cpu_norm_rows(struct cpu *cpu, const float *in, int width, size_t stride, const float *weight, float *out, int n,
                   int layer, const char *stage) {
    struct norm_task task = {cpu, in, weight, out, width, layer, stride, stage};
    pool_run(cpu->pool, n, norm_row, &task);
}

/* Does a query that has so many tokens before and with it see a choice of them in some layer? */
static bool sees_choice(const struct cpu *cpu, int tokens) {
    const struct index_shape shape = model_index_shape(cpu->model);
    return shape.topk && tokens / shape.tokens_a_key > shape.topk;
}

static void cpu_begin(struct backend *backend, const struct batch *batch) {
    struct cpu *cpu = (struct cpu *)backend;
    assert(batch->n_rows >= 1 && batch->n_rows <= cpu->options.max_rows);
    assert(batch->n_seqs <= cpu->options.max_seqs && batch->n_logits <= cpu->options.max_logits);
    cpu->batch = batch;
    cpu->failure.code = 0;
    cpu->has_sparse = false;
    atomic_store(&cpu->fault.seen, 0);
    for (int s = 0; s < batch->n_seqs; s++) {
        const struct batch_seq *seq = &batch->seqs[s];
        for (int i = 0; i < seq->n_rows; i++) {
            cpu->pos[seq->first_row + i] = seq->first_pos + i;
            cpu->seq[seq->first_row + i] = s;
        }
        const bool is_sparse = sees_choice(cpu, seq->first_pos + seq->n_rows); /* its last row sees most */
        cpu->has_sparse |= is_sparse;
        cpu->expanded[s] = seq->n_rows >= cpu->expanded_from && !is_sparse;
    }
    cpu_rope_prepare(cpu);
    engram_begin(cpu);
}

static void embed_row(void *context, int row, int worker) {
    (void)worker;
    struct cpu *cpu = context;
    int token = cpu->batch->token[row];
    size_t width = model_residual_dim(cpu->model);
    cpu->kern.decode_rows(&cpu->weights->embed, token, token + 1, cpu->x + (size_t)row * width);
    streams_spread(cpu, row);
}

static void cpu_embed(struct backend *backend) {
    struct cpu *cpu = (struct cpu *)backend;
    stage_begin(cpu);
    moe_predict_first(cpu);
    pool_run(cpu->pool, cpu->batch->n_rows, embed_row, cpu);
}

/* Rows that want logits are gathered into `normed` first. */
static void cpu_head(struct backend *backend) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct model *m = cpu->model;
    size_t hidden = (size_t)m->hidden;
    int n = cpu->batch->n_logits;
    if (cpu->failure.code) return;
    stage_begin(cpu);
    if (model_is_hybrid(m)) streams_read(cpu, &cpu->weights->head_mixer, cpu->batch->logits_row, n, cpu->target);
    for (int i = 0; i < n; i++) {
        int row = cpu->batch->logits_row[i];
        const float *x = cpu->target + (size_t)(model_is_hybrid(m) ? i : row) * hidden;
        float mean = cpu->kern.rms_norm(x, cpu->weights->final_norm, m->hidden, (float)m->norm_eps,
                                        cpu->normed + (size_t)i * hidden);
        if (!isfinite(mean)) cpu_note_fault(cpu, m->layers - 1, "feed-forward", row);
    }
    cpu_linear(cpu, &cpu->weights->head, cpu->normed, hidden, cpu->logits, (size_t)m->vocab, n);
    for (int i = 0; i < n; i++) {
        float sum = 0;
        for (int v = 0; v < m->vocab; v++) sum += cpu->logits[(size_t)i * (size_t)m->vocab + (size_t)v] * 0;
        if (sum != 0) cpu_note_fault(cpu, m->layers, "head", cpu->batch->logits_row[i]); /* NaN * 0, Inf * 0 */
    }
}

static int cpu_end(struct backend *backend, struct mo_error *error) {
    struct cpu *cpu = (struct cpu *)backend;
    const struct numeric_fault *fault = &cpu->fault;
    if (cpu->failure.code && error) *error = cpu->failure;
    if (cpu->failure.code) return cpu->failure.code;
    if (!atomic_load(&cpu->fault.seen)) return 0;
    int row = fault->row, token = cpu->batch->token[row];
    char where[32];
    snprintf(where, sizeof where, fault->layer < 0 ? "before layer 0" : "in layer %d", fault->layer);
    return mo_error_set(error, MO_E_NUMERIC, "NaN or infinity %s, stage %s (batch row %d, position %d, token %d)",
                        fault->layer == cpu->model->layers ? "after the last layer" : where, fault->stage, row,
                        cpu->pos[row], token);
}

static int cpu_fault_row(struct backend *backend) {
    const struct cpu *cpu = (struct cpu *)backend;
    return cpu->failure.code ? -1 : cpu->fault.row;
}

static const float *cpu_logits(struct backend *backend) {
    return ((struct cpu *)backend)->logits;
}

/* V4: what the head would read of the streams. */
static const float *cpu_residual(struct backend *backend) {
    struct cpu *cpu = (struct cpu *)backend;
    if (!model_is_hybrid(cpu->model)) return cpu->x;
    stage_begin(cpu);
    return streams_read(cpu, &cpu->weights->head_mixer, NULL, cpu->batch->n_rows, cpu->target);
}

static const float *cpu_streams(struct backend *backend) {
    return ((struct cpu *)backend)->x;
}

static void cpu_routing(struct backend *backend, const int32_t **ids, const float **weights) {
    *ids = ((struct cpu *)backend)->expert_id;
    *weights = ((struct cpu *)backend)->expert_weight;
}

static void cpu_close(struct backend *backend) {
    struct cpu *cpu = (struct cpu *)backend;
    pool_destroy(cpu->pool);
    kv_cache_close(cpu);
    arena_destroy(cpu->arena);
    free(cpu);
}

static void cpu_observe(struct backend *backend, const struct linear_observer *observer) {
    ((struct cpu *)backend)->observer = observer;
}

static const struct backend_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    .begin = cpu_begin,
    .embed = cpu_embed,
    .attn_in = cpu_attn_in,
    .attn = cpu_attn,
    .attn_out = cpu_attn_out,
    .ffn_dense = cpu_ffn_dense,
    .route = cpu_route,
    .experts = cpu_experts,
    .head = cpu_head,
    .end = cpu_end,
    .fault_row = cpu_fault_row,
    .logits = cpu_logits,
    .residual = cpu_residual,
    .streams = cpu_streams,
    .routing = cpu_routing,
    .page_out = cpu_page_out,
    .page_in = cpu_page_in,
    .observe = cpu_observe,
};

/* Rows of one sequence from which expanding the cache costs less than absorbing: per query and key the absorbed form takes
 * 2 (latent + kv_lora) operations a head, the expanded one 2 (q + v), plus 2 kv_lora (nope + v) once a key. */
int attention_expanded_rows(const struct model *m, enum attention attention) {
    if (attention == ATTENTION_ABSORBED || model_is_hybrid(m)) return INT32_MAX;
    if (attention == ATTENTION_EXPANDED) return 0;
    int64_t saved = model_latent_dim(m) + m->kv_lora - model_q_head_dim(m) - m->v_dim;
    int64_t once = (int64_t)m->kv_lora * (m->nope_dim + m->v_dim);
    if (saved <= 0) return INT32_MAX;
    return (int)(once / saved) + 1;
}

/* Bytes from the arena, counted; a failed allocation is remembered, so that a list of them needs one check. Without an
 * arena nothing is allocated: that is how cpu_backend_scratch_bytes counts. */
static void *take(struct cpu *cpu, size_t n, bool *failed) {
    if (__builtin_add_overflow(cpu->scratch_bytes, n, &cpu->scratch_bytes)) cpu->scratch_bytes = SIZE_MAX;
    if (!cpu->arena) return NULL;
    void *block = arena_alloc(cpu->arena, n);
    *failed |= !block;
    return block;
}

static float *floats(struct cpu *cpu, size_t a, size_t b, size_t c, bool *failed) {
    size_t n;
    if (__builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, c, &n) ||
        __builtin_mul_overflow(n, sizeof(float), &n)) {
        *failed = true;
        return NULL;
    }
    return take(cpu, n, failed);
}

/* Are there contexts of which the indexer leaves something out? */
static bool may_be_sparse(const struct model *m) {
    const struct index_shape shape = model_index_shape(m);
    return shape.topk && shape.topk < m->context / shape.tokens_a_key;
}

/* V4.1: are there contexts with more blocks than candidates? */
static bool has_candidates(const struct model *m) {
    const struct hybrid_model *h = &m->hybrid;
    if (!model_is_csa2(m) || h->candidate_layer < 0) return false;
    const int rows = m->context / h->ratio[h->candidate_layer];
    return (int64_t)h->candidate_blocks * h->candidate_rows < rows;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static void open_worker(struct cpu *cpu, struct worker_scratch *w, bool *failed) {
    const struct model *m = cpu->model;
    size_t kv_lora = (size_t)m->kv_lora, latent = (size_t)model_latent_dim(m), page = KV_PAGE_TOKENS;
    w->page = floats(cpu, page, latent, 1, failed);
    if (!model_is_hybrid(m)) {
        w->weight = floats(cpu, (size_t)(m->nope_dim + m->v_dim), kv_lora, 1, failed);
        w->key = floats(cpu, page, (size_t)model_q_head_dim(m), 1, failed);
        w->value = floats(cpu, page, (size_t)m->v_dim, 1, failed);
    }
    w->score = floats(cpu, ATTENTION_ROWS_TILES, page, 1, failed);
    size_t widest = larger(latent, (size_t)model_q_head_dim(m));
    w->query16 = take(cpu, ATTENTION_ROWS * widest * sizeof(uint16_t), failed);
    w->key16 = take(cpu, page * widest * sizeof(uint16_t), failed);
    w->value16 = take(cpu, page * (size_t)m->v_dim * sizeof(uint16_t), failed);
    w->sum = floats(cpu, (size_t)cpu->options.max_rows, LINEAR_BLOCK_MAX, 1, failed);
    if (!may_be_sparse(m)) return;
    const struct index_shape shape = model_index_shape(m);
    w->index_key = floats(cpu, page, (size_t)shape.dim, 1, failed);
    w->index_dots = floats(cpu, page, (size_t)shape.heads, 1, failed);
}

static void open_workers(struct cpu *cpu, bool *failed) {
    struct worker_scratch counted;
    cpu->workers = take(cpu, (size_t)cpu->options.threads * sizeof *cpu->workers, failed);
    for (int i = 0; i < cpu->options.threads && !*failed; i++) {
        open_worker(cpu, cpu->workers ? &cpu->workers[i] : &counted, failed);
    }
}

static void open_indexer(struct cpu *cpu, bool *failed) {
    const struct model *m = cpu->model;
    size_t rows = (size_t)cpu->options.max_rows;
    const struct index_shape shape = model_index_shape(m);
    const struct hybrid_model *h = &m->hybrid;
    if (m->index_topk || model_is_csa2(m)) cpu->index_k = floats(cpu, rows, (size_t)shape.dim, 1, failed);
    if (!may_be_sparse(m)) return;
    const int keys = m->context / shape.tokens_a_key;
    cpu->index_stride = (keys + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
    cpu->index_q = floats(cpu, rows, (size_t)shape.heads, (size_t)shape.dim, failed);
    cpu->index_weight = floats(cpu, rows, (size_t)shape.heads, 1, failed);
    cpu->index_score = floats(cpu, INDEX_ROWS, (size_t)cpu->index_stride, 1, failed);
    cpu->chosen = (int32_t *)floats(cpu, rows, (size_t)shape.topk, 1, failed);
    if (has_candidates(m)) cpu->candidate = (int32_t *)floats(cpu, rows, (size_t)h->candidate_blocks, 1, failed);
}

static void open_hybrid(struct cpu *cpu, bool *failed) {
    const struct model *m = cpu->model;
    const struct hybrid_model *h = &m->hybrid;
    size_t rows = (size_t)cpu->options.max_rows, latent = (size_t)model_latent_dim(m);
    cpu->far_frequency = take(cpu, (size_t)m->rope_dim * sizeof *cpu->far_frequency, failed);
    cpu->far_rotation = floats(cpu, rows, (size_t)m->rope_dim, 1, failed);
    cpu->ones = floats(cpu, latent, 1, 1, failed);
    for (size_t i = 0; cpu->ones && i < latent; i++) cpu->ones[i] = 1;
    cpu->acc = floats(cpu, rows, (size_t)m->heads, latent, failed);
    cpu->q_latent = cpu->q; /* nothing to absorb */
    cpu->attended = cpu->acc;
    cpu->o_low = floats(cpu, rows, (size_t)h->o_groups, (size_t)h->o_lora, failed);
    const size_t compressed = model_is_csa2(m) ? latent : 2 * latent;
    cpu->compress.kv = floats(cpu, rows, compressed, 1, failed);
    cpu->compress.gate = floats(cpu, rows, compressed, 1, failed);
    if (model_is_csa2(m)) return;
    cpu->index_compress.kv = floats(cpu, rows, 2 * (size_t)h->index_dim, 1, failed);
    cpu->index_compress.gate = floats(cpu, rows, 2 * (size_t)h->index_dim, 1, failed);
}

/* What the absorbed and the expanded form take. */
static void open_latent(struct cpu *cpu, bool *failed) {
    const struct model *m = cpu->model;
    size_t rows = (size_t)cpu->options.max_rows, heads = (size_t)m->heads;
    cpu->attended = floats(cpu, rows, heads, (size_t)m->v_dim, failed);
    if (cpu->options.attention == ATTENTION_EXPANDED && !may_be_sparse(m)) return;
    cpu->q_latent = floats(cpu, rows, heads, (size_t)model_latent_dim(m), failed);
    cpu->acc = floats(cpu, rows, heads, (size_t)m->kv_lora, failed);
}

static void open_streams(struct cpu *cpu, bool *failed) {
    const struct model *m = cpu->model;
    size_t rows = (size_t)cpu->options.max_rows, logits = (size_t)cpu->options.max_logits, hidden = (size_t)m->hidden;
    cpu->target = cpu->x = floats(cpu, rows, (size_t)model_streams(m), hidden, failed);
    if (!model_is_hybrid(m)) return;
    cpu->target = floats(cpu, larger(rows, logits), hidden, 1, failed);
    cpu->mix = floats(cpu, rows, (size_t)model_mix_dim(m), 1, failed);
    if (model_is_csa2(m)) cpu->before = floats(cpu, rows, (size_t)m->hybrid.streams, 1, failed);
}

/* The lookup is opened in cpu_backend_open. */
static void open_engram(struct cpu *cpu, bool *failed) {
    const struct engram_model *e = &cpu->model->hybrid.engram;
    const size_t rows = (size_t)cpu->options.max_rows, columns = (size_t)engram_columns(e);
    if (!e->n_layers) return;
    cpu->engram.lookup.rows = (int32_t *)floats(cpu, rows, (size_t)e->n_layers, columns, failed);
    cpu->engram.values = floats(cpu, rows, columns, (size_t)e->dim, failed);
    cpu->engram.kv = floats(cpu, rows, (size_t)model_streams(cpu->model) + 1, (size_t)cpu->model->hidden, failed);
}

static void open_activations(struct cpu *cpu, bool *failed) {
    const struct model *m = cpu->model;
    size_t rows = (size_t)cpu->options.max_rows, heads = (size_t)m->heads, hidden = (size_t)m->hidden;
    size_t routed = (size_t)m->top_k * (size_t)m->expert_width, dense = m->dense_layers ? (size_t)m->dense_width : 0;
    size_t shared = (size_t)m->shared_experts * (size_t)m->expert_width;
    cpu->rotation = floats(cpu, rows, (size_t)m->rope_dim, 1, failed);
    open_streams(cpu, failed);
    cpu->normed = floats(cpu, larger(rows, (size_t)cpu->options.max_logits), hidden, 1, failed);
    cpu->q_a = floats(cpu, rows, (size_t)m->q_lora, 1, failed);
    cpu->q = floats(cpu, rows, heads, (size_t)model_q_head_dim(m), failed);
    cpu->kv_a = floats(cpu, rows, (size_t)model_latent_dim(m), 1, failed);
    cpu->max = floats(cpu, rows, heads, 1, failed);
    cpu->sum = floats(cpu, rows, heads, 1, failed);
    open_indexer(cpu, failed);
    if (model_is_hybrid(m)) {
        open_hybrid(cpu, failed);
    } else {
        open_latent(cpu, failed);
    }
    open_engram(cpu, failed);
    cpu->gate = floats(cpu, rows, larger(routed, dense), 1, failed);
    cpu->up = floats(cpu, rows, larger(routed, dense), 1, failed);
    cpu->shared_gate = floats(cpu, rows, shared, 1, failed);
    cpu->shared_up = floats(cpu, rows, shared, 1, failed);
    cpu->score = floats(cpu, rows, (size_t)m->experts, 1, failed);
    cpu->expert_id = (int32_t *)floats(cpu, rows, (size_t)m->top_k, 1, failed);
    cpu->expert_weight = floats(cpu, rows, (size_t)m->top_k, 1, failed);
    cpu->logits = floats(cpu, (size_t)cpu->options.max_logits, (size_t)m->vocab, 1, failed);
}

/* The most that any stage asks of stage_alloc: the experts stage lists everything twice, the others less. */
static size_t stage_bytes(const struct cpu *cpu) {
    const struct model *m = cpu->model;
    size_t rows = larger((size_t)cpu->options.max_rows, (size_t)cpu->options.max_logits);
    size_t pairs = rows * (size_t)m->top_k, threads = (size_t)cpu->options.threads;
    size_t lists = (8 * rows + 8 * pairs + threads * rows) * sizeof(void *) + pairs * sizeof(struct q8_row);
    size_t ahead = cpu->options.predict_experts ? PREDICTED_ROWS * (size_t)(m->hidden + m->top_k) * 4 : 0;
    if (model_is_hybrid(m)) lists += (rows * (size_t)m->hybrid.streams + pairs) * sizeof(float);
    size_t jobs = (2 * (size_t)m->experts + 8) * (sizeof(struct linear) + 4 * sizeof(int)) + pairs * 2 * sizeof(int);
    int n = (int)rows, width = m->dense_width > m->hidden ? m->dense_width : m->hidden;
    int attended = m->heads * m->v_dim;
    size_t quantized = cpu_quantized_bytes(n, m->hidden) * 3 + cpu_quantized_bytes(n, width) +
                       cpu_quantized_bytes(n, attended) + cpu_quantized_bytes(n, m->q_lora + 1) +
                       cpu_quantized_bytes((int)pairs, m->expert_width + 1) +
                       cpu_quantized_bytes(n, m->shared_experts * m->expert_width + 1);
    if (model_index_shape(m).topk) {
        lists += 5 * rows * sizeof(void *);
        quantized += cpu_quantized_bytes(n, m->q_lora);
    }
    if (model_is_hybrid(m)) {
        const size_t groups = (size_t)m->hybrid.o_groups;
        lists += 10 * rows * sizeof(void *) + groups * (rows * sizeof(void *) + sizeof(struct linear) + 256);
        quantized += 5 * cpu_quantized_bytes(n, m->hidden) + cpu_quantized_bytes(n, (int)groups * m->hybrid.o_lora) +
                     groups * cpu_quantized_bytes(n, attended / (int)groups);
    }
    const struct engram_model *e = &m->hybrid.engram;
    if (e->n_layers) quantized += cpu_quantized_bytes(n, engram_columns(e) * e->dim);
    size_t exchange = cpu->options.ranks ? exchange_stage_bytes(m, &cpu->options) : 0;
    return lists + jobs + ahead + exchange + quantized + attn_absorbed_stage_bytes(m, &cpu->options) + 64 * STAGE_ALIGN;
}

static int open_memory(struct cpu *cpu, struct mo_error *error) {
    bool failed = false;
    cpu->frequency = take(cpu, (size_t)cpu->model->rope_dim * sizeof *cpu->frequency, &failed);
    cpu->cache_layers = take(cpu, (size_t)cpu->model->layers * sizeof *cpu->cache_layers, &failed);
    cpu->pos = take(cpu, (size_t)cpu->options.max_rows * sizeof *cpu->pos, &failed);
    cpu->seq = take(cpu, (size_t)cpu->options.max_rows * sizeof *cpu->seq, &failed);
    cpu->expanded = take(cpu, (size_t)cpu->options.max_seqs * sizeof *cpu->expanded, &failed);
    cpu->stage.size = stage_bytes(cpu);
    cpu->stage.base = take(cpu, cpu->stage.size, &failed);
    if (cpu->options.ranks) cpu->exchange = take(cpu, exchange_bytes(cpu->model, &cpu->options), &failed);
    open_workers(cpu, &failed);
    open_activations(cpu, &failed);
    if (!failed) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY,
                        "no memory for a batch of %d rows (--max-num-batched-tokens makes it smaller)",
                        cpu->options.max_rows);
}

size_t cpu_backend_scratch_bytes(const struct model *model, const struct backend_options *options) {
    struct cpu cpu = {.model = model, .options = *options};
    return open_memory(&cpu, NULL) ? SIZE_MAX : cpu.scratch_bytes;
}

int cpu_backend_open(struct backend **backend, const struct model *model, const struct weights *weights,
                     const struct backend_options *options, struct mo_error *error) {
    enum cpu_level level;
    int code = cpu_level_get(&level, error);
    if (code) return code;
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CPU backend");
    *cpu = (struct cpu){.backend = {.ops = &cpu_ops}, .model = model, .weights = weights, .options = *options};
    cpu->options.kv = cache_layout(model_is_csa2(model), options->kv);
    kern_init(&cpu->kern, kern_level(level, options->compute == COMPUTE_F32));
    cpu->in_pairs = cpu->kern.pair_order && options->kv != KV_F32;
    cpu->magnitude = (float)model_rope_magnitude(model);
    cpu->softmax_scale = (float)model_softmax_scale(model);
    cpu->expanded_from = attention_expanded_rows(model, options->attention);
    const char *prefetch = getenv("MOEBIUS_EXPERT_PREFETCH");
    cpu->predicts = options->predict_experts && !(prefetch && !strcmp(prefetch, "0"));
    cpu->arena = arena_create();
    code = cpu->arena ? open_memory(cpu, error) : mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CPU backend");
    if (!code && model->hybrid.engram.n_layers) {
        code =
            engram_lookup_open(&cpu->engram.lookup, model, weights, options->max_rows, cpu->engram.lookup.rows, error);
    }
    if (!code) code = kv_cache_open(cpu, error);
    if (!code) code = pool_create(&cpu->pool, options->threads, error);
    if (code) {
        cpu_close(&cpu->backend);
        return code;
    }
    pool_pin(cpu->pool, options->affinity);
    model_rope_frequencies(model, &model->rope, cpu->frequency);
    if (model_is_hybrid(model)) model_rope_frequencies(model, &model->hybrid.rope, cpu->far_frequency);
    *backend = &cpu->backend;
    return 0;
}
