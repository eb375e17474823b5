/* backend/cuda/listed.c - attention to listed rows of the cache: V3.2's that its indexer chose; V4's and V4.1's compressed rows and window.
 * And the indexer (kernels/index.cu). */
#include "backend/cuda/cuda.h"

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* Rows in the list, in a layer that has most. */
static int most_keys(const struct model *m, int pos) {
    const struct index_shape shape = model_index_shape(m);
    const int chosen = smaller((pos + 1) / shape.tokens_a_key, shape.topk);
    if (!model_is_hybrid(m)) return chosen;
    const int dense = model_is_csa2(m) ? 0 : (pos + 1) / RATIO_DENSE;
    return (chosen > dense ? chosen : dense) + smaller(pos + 1, m->hybrid.window);
}

int cuda_listed_splits(const struct cuda *cuda, int pos) {
    return (most_keys(cuda->model, pos) + SPLIT_TOKENS - 1) / SPLIT_TOKENS;
}

/* --- the indexer ---------------------------------------------------------------------------------------------------------- */

struct index_keys cuda_index_keys(const struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    const struct cache_view cache = cuda_cache_of(cuda, cuda_rows_layer(cuda, layer));
    const int ratio = model_tokens_a_key(m, layer);
    return (struct index_keys){.data = cache.keys,
                               .page_bytes = cache.key_page_bytes,
                               .ratio = ratio,
                               .dim = model_index_shape(m).dim,
                               .fp8 = cuda_cache_is_fp8(cuda),
                               .page_shift = ratio == 1   ? 6
                                             : ratio == 2 ? 5
                                                          : 4,
                               .csa2 = model_is_csa2(m)};
}

/* Keys always; queries and the weights of their heads where a row has a choice. */
static void project_index(struct cuda *cuda, const struct device_layer *w, int layer) {
    const struct device_scratch *s = &cuda->scratch;
    const bool chooses = cuda->step.index_chunks > 0;
    const struct weight *of_x[2] = {&w->index_k, &w->index_weights}, *of_q = &w->index_q;
    const int n = cuda->batch->n_rows, before = fault_key(layer, FAULT_BEFORE);
    struct linear_params p = cuda_linear_begin(cuda);
    cuda_linear_add_normed(&p, of_x[0], s->x, w->attn_norm, s->index_k, n, before);
    if (chooses) cuda_linear_add_normed(&p, of_x[1], s->x, w->attn_norm, s->index_weight, n, before);
    cuda_linear_run(cuda, &p, of_x, n);
    if (!chooses) return;
    p = cuda_linear_begin(cuda);
    cuda_linear_add_normed(&p, of_q, s->q_a, w->q_a_norm, s->index_q, n, fault_key(layer, FAULT_ATTN_IN));
    cuda_linear_run(cuda, &p, &of_q, n);
}

void cuda_index_in(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    const struct device_layer *w = &cuda->weights.layers[layer];
    project_index(cuda, w, layer);
    struct index_rows_params p = {.keys = cuda_index_keys(cuda, layer),
                                  .k = cuda->scratch.index_k,
                                  .q = cuda->scratch.index_q,
                                  .k_norm = w->index_k_norm,
                                  .k_bias = w->index_k_bias,
                                  .rotation = cuda->step.rotation,
                                  .pos = cuda->step.pos,
                                  .page = cuda->step.page,
                                  .fault = cuda->scratch.fault,
                                  .heads = m->index_heads,
                                  .rope = m->rope_dim,
                                  .topk = m->index_topk,
                                  .fault_key = fault_key(layer, FAULT_ATTN_IN)};
    cuda_launch(cuda, KERNEL_INDEX_ROWS, cuda->batch->n_rows, 0, &p);
}

static size_t score_shared_bytes(const struct index_shape *shape) {
    const size_t heads = ((size_t)shape->heads + 15) / 16 * 16, row = (size_t)(shape->dim + INDEX_PAD) * 2;
    return (2 * heads + INDEX_TILE) * row + heads * sizeof(float);
}

/* V4.1: the candidates' layer says which blocks later choices look at. */
static void narrow(const struct cuda *cuda, int layer, struct index_params *p) {
    const struct hybrid_model *h = &cuda->model->hybrid;
    if (!cuda->is_narrowed || layer < h->candidate_layer) return;
    p->candidate = cuda->scratch.candidate;
    p->blocks = h->candidate_blocks;
    p->block_keys = h->candidate_rows;
    p->is_narrowed = layer > h->candidate_layer;
}

/* Of as many chunks as the step has, those that a layer scores. */
static int chunks_scored(const struct index_params *p, int chunks) {
    const int64_t most = ((int64_t)p->blocks * p->block_keys + INDEX_CHUNK - 1) / INDEX_CHUNK;
    return p->is_narrowed && most < chunks ? (int)most : chunks;
}

void cuda_index(struct cuda *cuda, int layer) {
    const struct index_shape shape = model_index_shape(cuda->model);
    const int n = cuda->batch->n_rows;
    struct index_params p = {.keys = cuda_index_keys(cuda, layer),
                             .q = cuda->scratch.index_q,
                             .weight = cuda->scratch.index_weight,
                             .pos = cuda->step.pos,
                             .first_page = cuda->step.first_page,
                             .page_table = cuda->step.page_table,
                             .score = cuda->scratch.index_score,
                             .chosen = cuda->scratch.chosen,
                             .fault = cuda->scratch.fault,
                             .heads = shape.heads,
                             .topk = shape.topk,
                             .stride = cuda->index_stride,
                             .fault_key = fault_key(layer, FAULT_ATTENTION)};
    narrow(cuda, layer, &p);
    for (p.first_row = 0; p.first_row < n; p.first_row += INDEX_WAVE) {
        p.n_rows = smaller(n - p.first_row, INDEX_WAVE);
        const int chunks = cuda_index_chunks(cuda, p.first_row, p.n_rows); /* one wave: step.index_chunks */
        if (!chunks) continue;
        cuda_launch(cuda, KERNEL_INDEX_SCORE, p.n_rows * chunks_scored(&p, chunks), score_shared_bytes(&shape), &p);
        cuda_launch(cuda, KERNEL_INDEX_CHOOSE, p.n_rows, CHOICE_SHARED, &p);
        if (p.candidate && !p.is_narrowed) cuda_launch(cuda, KERNEL_INDEX_NARROW, p.n_rows, CHOICE_SHARED, &p);
    }
}

/* --- attention ------------------------------------------------------------------------------------------------------------ */

struct listed_rows cuda_listed_rows(const struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    struct listed_rows rows = {.pos = cuda->step.pos,
                               .slot_first = cuda->step.slot_first,
                               .slot_count = cuda->step.slot_count,
                               .ratio = 1,
                               .topk = model_index_shape(m).topk,
                               .splits = cuda->step.listed_splits};
    if (!model_is_hybrid(m)) return rows;
    rows.ratio = m->hybrid.ratio[layer];
    rows.window = m->hybrid.window;
    if (!model_layer_chooses(m, layer)) rows.topk = INT32_MAX; /* all of them */
    return rows;
}

void cuda_listed_attn(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    const struct cache_view cache = cuda_cache_of(cuda, layer), far = cuda_cache_of(cuda, cuda_rows_layer(cuda, layer));
    const int values = model_value_dim(m), tiles = (m->heads + QUERY_TILE - 1) / QUERY_TILE;
    const struct listed_params p = {.attn = {.page_table = cuda->step.page_table,
                                             .slot_first = cuda->step.slot_first,
                                             .q_latent = cuda->scratch.q_latent,
                                             .cache = far.pages,
                                             .partial = cuda->scratch.partial,
                                             .row_bytes = cuda->row_bytes,
                                             .heads = m->heads,
                                             .kv_lora = values,
                                             .rope = model_latent_dim(m) - values,
                                             .scale = cuda->softmax_scale},
                                    .rows = cuda_listed_rows(cuda, layer),
                                    .first_page = cuda->step.first_page,
                                    .near = cuda->step.near,
                                    .chosen = cuda->scratch.chosen,
                                    .near_cache = cache.near,
                                    .page_bytes = far.page_bytes,
                                    .near_bytes = cache.near_bytes,
                                    .far_bytes = cuda->far_bytes,
                                    .near_pages = cuda->near_pages,
                                    .scaled = m->kv_lora};
    cuda_launch(cuda,
                cuda->options.kv == KV_CSA2  ? KERNEL_LISTED_CSA2
                : cuda->options.kv == KV_FP8 ? KERNEL_LISTED_FP8
                                             : KERNEL_LISTED_BF16,
                cuda->batch->n_rows * tiles * p.rows.splits, cuda_attn_shared_bytes(cuda) + LISTED_SHARED, &p);
}
