#include "cmd/bench/bytes.h"

#include <math.h>
#include <stdlib.h>

static size_t mlp_bytes(const struct mlp *mlp) {
    return mlp->gate.rows ? mat_bytes(&mlp->gate) + mat_bytes(&mlp->up) + mat_bytes(&mlp->down) : 0;
}

/* Matrices of a layer's attention and hyper-connections, one after another; NULL after the last. Some have no rows. */
static const struct mat *attention_matrix(const struct layer *layer, int i) {
    const struct mat *const all[] = {&layer->q,
                                     &layer->q_a,
                                     &layer->q_b,
                                     &layer->kv_a,
                                     &layer->kv_b,
                                     &layer->o_a,
                                     &layer->o,
                                     &layer->indexer.q,
                                     &layer->indexer.k,
                                     &layer->indexer.weights,
                                     &layer->compressor.kv,
                                     &layer->compressor.gate,
                                     &layer->index_compressor.kv,
                                     &layer->index_compressor.gate,
                                     &layer->attn_mixer.mix,
                                     &layer->ffn_mixer.mix,
                                     &layer->engram.kv};
    return i < (int)(sizeof all / sizeof *all) ? all[i] : NULL;
}

static size_t attention_bytes(const struct layer *layer) {
    size_t bytes = 0;
    const struct mat *mat;
    for (int i = 0; (mat = attention_matrix(layer, i)); i++) bytes += mat->rows ? mat_bytes(mat) : 0;
    return bytes;
}

static size_t fixed_bytes(const struct model *model, const struct weights *weights) {
    size_t total = mat_bytes(&weights->head);
    if (weights->head_mixer.mix.rows) total += mat_bytes(&weights->head_mixer.mix);
    for (int i = 0; i < model->layers; i++) {
        const struct layer *layer = &weights->layers[i];
        total += attention_bytes(layer);
        total += model_layer_is_dense(model, i) ? mlp_bytes(&layer->dense)
                                                : mat_bytes(&layer->router) + mlp_bytes(&layer->shared);
    }
    return total;
}

int bench_bytes_open(struct bench_bytes *bytes, const struct model *model, const struct weights *weights,
                     enum kv_format kv, struct mo_error *error) {
    *bytes = (struct bench_bytes){.model = model, .weights = weights, .fixed = fixed_bytes(model, weights), .kv = kv};
    bytes->cache_key = cache_key_bytes(model->index_dim, kv) * (size_t)model->layers;
    bytes->cache_row = kv_row_bytes(model, kv) * (size_t)model->layers - bytes->cache_key;
    bytes->seen = calloc((size_t)model->experts + 1, sizeof *bytes->seen);
    return bytes->seen ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory to count experts");
}

void bench_bytes_close(struct bench_bytes *bytes) {
    free(bytes->seen);
}

/* What a sequence's rows that are being made are summed up to. */
static double sum_bytes(const struct bench_bytes *bytes, int layer) {
    const struct model *m = bytes->model;
    const int ratio = model_makes_rows(m, layer), dim = m->hybrid.index_dim;
    const enum kv_format kv = cache_layout(model_is_csa2(m), bytes->kv);
    return (double)(cache_near_bytes(m->kv_lora, m->rope_dim, dim, ratio, kv) -
                    cache_near_bytes(m->kv_lora, m->rope_dim, dim, 0, kv));
}

/* Index keys that an indexer looks at for one sequence: all, or (V4.1) those of its candidates. */
static double keys_at_most(const struct model *m, int layer) {
    const struct hybrid_model *h = &m->hybrid;
    const bool is_narrowed = h->candidate_layer >= 0 && layer > h->candidate_layer;
    return is_narrowed ? (double)h->candidate_blocks * h->candidate_rows : INFINITY;
}

/* Of what they see, `own` tokens are each sequence's alone. */
static double hybrid_cache_bytes(const struct bench_bytes *bytes, double rows, int batch, int depth) {
    const struct model *m = bytes->model;
    const struct hybrid_model *h = &m->hybrid;
    const enum kv_format kv = cache_layout(model_is_csa2(m), bytes->kv);
    const double row = (double)cache_row_bytes(m->kv_lora, m->rope_dim, kv);
    const double compressed = (double)cache_compressed_bytes(m->kv_lora, m->rope_dim, kv);
    const double key = (double)cache_key_bytes(h->index_dim, kv);
    const double own = batch > 1 ? (rows - depth) / (batch - 1) : depth, window = fmin(depth, h->window);
    double total = 0;
    for (int i = 0; i < m->layers; i++) {
        const int ratio = h->ratio[i];
        const double n = ratio ? rows / ratio : 0;
        const bool chooses = ratio && model_layer_chooses(m, i) && depth / ratio > h->index_topk;
        total += (window + (batch - 1) * fmin(own, window)) * row + batch * sum_bytes(bytes, i);
        total += (chooses ? fmin(n, (double)batch * h->index_topk) : n) * compressed;
        if (chooses && model_layer_indexes(m, i)) total += fmin(n, batch * keys_at_most(m, i)) * key;
    }
    return total;
}

double bench_cache_bytes(const struct bench_bytes *bytes, double rows, int batch, int depth) {
    if (model_is_hybrid(bytes->model)) return hybrid_cache_bytes(bytes, rows, batch, depth);
    int most = bytes->model->index_topk;
    if (!most || depth <= most) return rows * (double)bytes->cache_row;
    return rows * (double)bytes->cache_key + fmin(rows, (double)batch * most) * (double)bytes->cache_row;
}

void bench_bytes_begin(struct bench_bytes *bytes) {
    bytes->experts = 0;
}

void bench_bytes_add_experts(void *context, int layer, const int32_t *ids, const float *weights, int n_rows) {
    (void)weights;
    struct bench_bytes *bytes = context;
    const struct mlp *experts = bytes->weights->layers[layer].experts;
    bytes->stamp++; /* a new one for each layer and pass, so that nothing has to be cleared */
    for (int i = 0; i < n_rows * bytes->model->top_k; i++) {
        if (bytes->seen[ids[i]] == bytes->stamp) continue;
        bytes->seen[ids[i]] = bytes->stamp;
        bytes->experts += mlp_bytes(&experts[ids[i]]);
    }
}

static double mat_operations(const struct mat *mat) {
    return 2.0 * mat->rows * mat->cols;
}

static double mlp_operations(const struct mlp *mlp) {
    return mat_operations(&mlp->gate) + mat_operations(&mlp->up) + mat_operations(&mlp->down);
}

double bench_prompt_operations(const struct model *model, const struct weights *weights) {
    double total = 0;
    for (int i = 0; i < model->layers; i++) {
        const struct layer *w = &weights->layers[i];
        const struct mat *mat;
        for (int k = 0; (mat = attention_matrix(w, k)); k++) total += mat_operations(mat);
        total += mlp_operations(&w->dense) + mlp_operations(&w->shared) + mat_operations(&w->router);
        if (!model_layer_is_dense(model, i)) total += model->top_k * mlp_operations(&w->experts[0]);
    }
    return total;
}
