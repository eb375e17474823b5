/* backend/cuda/attn_hybrid.c - attention of DeepSeek-V4 and V4.1 as launches: backend/cpu/attn_hybrid.c says what it is. All that a row's
 * compressors, cache and queries need is made in attn_in; attention goes over lists (listed.c), and what it leaves is finished by a
 * kernel of its own, as a sink takes its share last. */
#include "backend/cuda/cuda.h"
#include "backend/cuda/params_hybrid.h"

static bool is_indexed(const struct cuda *cuda, int layer) {
    return cuda->step.index_chunks > 0 && model_layer_indexes(cuda->model, layer);
}

static const float *rotation_of(const struct cuda *cuda, int layer) {
    return cuda->model->hybrid.ratio[layer] ? cuda->step.far_rotation : cuda->step.rotation;
}

/* ---- in ---- */

/* What products read: rows that are normed on the way. */
struct normed_rows {
    const float *x, *gain;
    int fault;
};

/* One product, or two of which the second may be NULL. */
static void multiply(struct cuda *cuda, const struct normed_rows *from, const struct weight *first, float *y,
                     const struct weight *second, float *z) {
    const struct weight *matrices[2] = {first, second};
    struct linear_params p = cuda_linear_begin(cuda);
    const int n = cuda->batch->n_rows;
    cuda_linear_add_normed(&p, first, from->x, from->gain, y, n, from->fault);
    if (second) cuda_linear_add_normed(&p, second, from->x, from->gain, z, n, from->fault);
    cuda_linear_run(cuda, &p, matrices, n);
}

static size_t gates_at(const struct cuda *cuda, int ratio, int dim) {
    return (size_t)cuda->options.max_rows * (size_t)model_compress_dim(ratio, dim);
}

/* Values and gates of a compressor's rows; a row of one token has no gates. */
static void multiply_compressor(struct cuda *cuda, const struct normed_rows *from, const struct weight *w, int ratio,
                                int dim, float *values) {
    struct weight gate = *w;
    if (ratio == 1) {
        multiply(cuda, from, w, values, NULL, NULL);
        return;
    }
    gate.m.data += w->m.data_step;
    gate.m.scale += w->m.scale_step;
    multiply(cuda, from, w, values, &gate, values + gates_at(cuda, ratio, dim));
}

static void project_in(struct cuda *cuda, const struct device_layer *w, int layer) {
    const struct model *m = cuda->model;
    const struct device_scratch *s = &cuda->scratch;
    const int ratio = model_makes_rows(m, layer);
    const bool indexed = is_indexed(cuda, layer);
    const struct normed_rows x = {s->x, w->attn_norm, fault_key(layer, FAULT_BEFORE)};
    const struct normed_rows q_a = {s->q_a, w->q_a_norm, fault_key(layer, FAULT_ATTN_IN)};
    multiply(cuda, &x, &w->q, s->q_a, &w->kv_a, s->kv_a);
    if (ratio) multiply_compressor(cuda, &x, &w->compress, ratio, model_latent_dim(m), s->compress);
    if (ratio == RATIO_SPARSE)
        multiply_compressor(cuda, &x, &w->index_compress, ratio, m->hybrid.index_dim, s->index_compress);
    if (indexed) multiply(cuda, &x, &w->index_weights, s->index_weight, NULL, NULL);
    multiply(cuda, &q_a, &w->q_b, s->q, indexed ? &w->index_q : NULL, s->index_q);
}

static struct compress_part compress_part_of(const struct cuda *cuda, int ratio, int dim, float *values,
                                             const float *bias, size_t state_at) {
    return (struct compress_part){.values = values,
                                  .gates = values + gates_at(cuda, ratio, dim),
                                  .bias = bias,
                                  .state_at = state_at,
                                  .dim = dim,
                                  .blocks = (dim + BLOCK_THREADS - 1) / BLOCK_THREADS};
}

/* As many sequences as there can be: those that are not there have no rows. */
static void compress(struct cuda *cuda, const struct device_layer *w, int layer) {
    const struct model *m = cuda->model;
    const struct device_scratch *s = &cuda->scratch;
    const struct cache_view cache = cuda_cache_of(cuda, layer);
    const int ratio = model_makes_rows(m, layer), dim = model_latent_dim(m), rows = cuda->batch->n_rows;
    const int seqs = rows < cuda->options.max_seqs ? rows : cuda->options.max_seqs;
    const bool overlaps = ratio == RATIO_SPARSE;
    struct compress_params p = {.seqs = cuda->step.seqs,
                                .near = cuda->step.near,
                                .near_cache = cache.near,
                                .near_bytes = cache.near_bytes,
                                .sums_at = KV_PAGE_TOKENS * cuda->row_bytes,
                                .near_pages = cuda->near_pages,
                                .ratio = ratio,
                                .overlaps = overlaps};
    if (ratio <= 1) return;
    p.part[0] = compress_part_of(cuda, ratio, dim, s->compress, w->compress_bias, 0);
    if (overlaps) {
        p.part[1] = compress_part_of(cuda, ratio, m->hybrid.index_dim, s->index_compress, w->index_compress_bias,
                                     cache_state_floats(dim, 0, true));
    }
    cuda_launch(cuda, KERNEL_COMPRESS_SUMS, seqs * (p.part[0].blocks + p.part[1].blocks), 0, &p);
}

/* What compressors have left at the end of a window: rotated as at its beginning. */
static struct cached_rows compressed_rows(const struct cuda *cuda, int ratio, int dim, const float *values,
                                          const float *gain) {
    const size_t rotations = (size_t)cuda->batch->n_rows * (size_t)cuda->model->rope_dim;
    const bool second = ratio == cuda_window_ratios(cuda->model)[1];
    return (struct cached_rows){.values = values,
                                .gain = gain,
                                .rotation = cuda->step.window_rotation + (second ? rotations : 0),
                                .stride = (size_t)model_compress_dim(ratio, dim),
                                .dim = dim};
}

/* V4.1: index keys of compressed rows, of which those of windows that do not end are nobody's. The rows are normed on the way. */
static void multiply_keys(struct cuda *cuda, const struct device_layer *w, int layer) {
    const struct device_scratch *s = &cuda->scratch;
    const struct normed_rows rows = {s->compress, w->compress_norm, fault_key(layer, FAULT_ATTN_IN)};
    if (model_is_csa2(cuda->model) && model_makes_rows(cuda->model, layer))
        multiply(cuda, &rows, &w->index_k, s->index_k, NULL, NULL);
}

static struct cached_rows made_keys(const struct cuda *cuda, const struct device_layer *w, int ratio) {
    const struct device_scratch *s = &cuda->scratch;
    const int dim = cuda->model->hybrid.index_dim;
    if (model_is_csa2(cuda->model)) return compressed_rows(cuda, ratio, dim, s->index_k, w->index_k_norm);
    return compressed_rows(cuda, ratio, dim, s->index_compress, w->index_compress_norm);
}

static void finish_rows(struct cuda *cuda, const struct device_layer *w, int layer) {
    const struct model *m = cuda->model;
    const struct device_scratch *s = &cuda->scratch;
    const struct cache_view cache = cuda_cache_of(cuda, layer);
    const int made = model_makes_rows(m, layer), dim = model_latent_dim(m);
    const bool indexed = is_indexed(cuda, layer);
    struct hybrid_rows_params p = {.own = {s->kv_a, w->kv_a_norm, rotation_of(cuda, layer), (size_t)dim, dim, 0},
                                   .q = s->q,
                                   .q_latent = s->q_latent,
                                   .index_q = indexed ? s->index_q : NULL,
                                   .pos = cuda->step.pos,
                                   .page = cuda->step.page,
                                   .near = cuda->step.near,
                                   .pages = cache.pages,
                                   .near_cache = cache.near,
                                   .row_bytes = cuda->row_bytes,
                                   .far_bytes = cuda->far_bytes,
                                   .page_bytes = cache.page_bytes,
                                   .near_bytes = cache.near_bytes,
                                   .fault = cuda->scratch.fault,
                                   .heads = m->heads,
                                   .kv_lora = m->kv_lora,
                                   .rope = m->rope_dim,
                                   .fp8 = cuda_cache_is_fp8(cuda),
                                   .ratio = m->hybrid.ratio[layer],
                                   .near_pages = cuda->near_pages,
                                   .index_heads = m->hybrid.index_heads,
                                   .topk = m->hybrid.index_topk,
                                   .csa2 = model_is_csa2(m),
                                   .fault_key = fault_key(layer, FAULT_ATTN_IN),
                                   .eps = (float)m->norm_eps};
    int blocks = 1 + (m->heads + BLOCK_WARPS - 1) / BLOCK_WARPS + indexed;
    if (model_layer_chooses(m, layer)) p.keys = cuda_index_keys(cuda, layer);
    if (made) {
        p.compressed = compressed_rows(cuda, made, dim, s->compress, w->compress_norm);
        blocks++;
    }
    if (cache_has_keys(made)) {
        p.key = made_keys(cuda, w, made);
        blocks++;
    }
    cuda_launch(cuda, KERNEL_HYBRID_ROWS, cuda->batch->n_rows * blocks, 0, &p);
}

void cuda_hybrid_attn_in(struct cuda *cuda, int layer) {
    const struct device_layer *w = &cuda->weights.layers[layer];
    project_in(cuda, w, layer);
    compress(cuda, w, layer);
    multiply_keys(cuda, w, layer);
    finish_rows(cuda, w, layer);
}

/* ---- attention and out ---- */

void cuda_hybrid_attn(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    if (is_indexed(cuda, layer)) cuda_index(cuda, layer);
    cuda_listed_attn(cuda, layer);
    const struct hybrid_merge_params p = {.rows = cuda_listed_rows(cuda, layer),
                                          .partial = cuda->scratch.partial,
                                          .sinks = cuda->weights.layers[layer].sinks,
                                          .rotation = rotation_of(cuda, layer),
                                          .attended = cuda->scratch.attended,
                                          .heads = m->heads,
                                          .dim = m->v_dim,
                                          .rope = m->rope_dim};
    cuda_launch(cuda, KERNEL_HYBRID_MERGE, cuda->batch->n_rows * ((m->heads + BLOCK_WARPS - 1) / BLOCK_WARPS), 0, &p);
}

/* Heads are projected in groups. */
void cuda_hybrid_attn_out(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    const struct weight *o_a = &cuda->weights.layers[layer].o_a;
    const int n = cuda->batch->n_rows;
    struct linear_params p = cuda_linear_begin(cuda);
    struct linear_job *job = cuda_linear_add(&p, o_a, n, m->hybrid.o_groups);
    job->x_kind = X_BF16;
    job->x = cuda->scratch.attended;
    job->x_stride = (size_t)m->heads * (size_t)m->v_dim;
    job->x_step = (size_t)o_a->m.cols;
    job->y = cuda->scratch.o_low;
    job->y_stride = (size_t)m->hybrid.o_groups * (size_t)m->hybrid.o_lora;
    job->y_step = (size_t)m->hybrid.o_lora;
    job->y_kind = Y_BF16;
    cuda_linear_run(cuda, &p, &o_a, n);
}
