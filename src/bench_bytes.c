#include "bench_bytes.h"

#include <math.h>
#include <stdlib.h>

static size_t mlp_bytes(const struct mlp *mlp) {
    return mlp->gate.rows ? mat_bytes(&mlp->gate) + mat_bytes(&mlp->up) + mat_bytes(&mlp->down) : 0;
}

static size_t attention_bytes(const struct model *model, const struct layer *layer) {
    size_t q = model->q_kind == Q_LOW_RANK ? mat_bytes(&layer->q_a) + mat_bytes(&layer->q_b) : mat_bytes(&layer->q);
    const struct indexer *indexer = &layer->indexer;
    size_t index =
        model->index_topk ? mat_bytes(&indexer->q) + mat_bytes(&indexer->k) + mat_bytes(&indexer->weights) : 0;
    return q + mat_bytes(&layer->kv_a) + mat_bytes(&layer->kv_b) + mat_bytes(&layer->o) + index;
}

static size_t fixed_bytes(const struct model *model, const struct weights *weights) {
    size_t total = mat_bytes(&weights->head);
    for (int i = 0; i < model->layers; i++) {
        const struct layer *layer = &weights->layers[i];
        total += attention_bytes(model, layer);
        total += model_layer_is_dense(model, i) ? mlp_bytes(&layer->dense)
                                                : mat_bytes(&layer->router) + mlp_bytes(&layer->shared);
    }
    return total;
}

int bench_bytes_open(struct bench_bytes *bytes, const struct model *model, const struct weights *weights,
                     enum kv_format kv, struct mo_error *error) {
    *bytes = (struct bench_bytes){.model = model, .weights = weights, .fixed = fixed_bytes(model, weights)};
    bytes->cache_key = cache_key_bytes(model->index_dim, kv) * (size_t)model->layers;
    bytes->cache_row = kv_row_bytes(model, kv) * (size_t)model->layers - bytes->cache_key;
    bytes->seen = calloc((size_t)model->experts + 1, sizeof *bytes->seen);
    return bytes->seen ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory to count experts");
}

void bench_bytes_close(struct bench_bytes *bytes) {
    free(bytes->seen);
}

double bench_cache_bytes(const struct bench_bytes *bytes, double rows, int batch, int depth) {
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
        total += mat_operations(&w->q) + mat_operations(&w->q_a) + mat_operations(&w->q_b);
        total += mat_operations(&w->kv_a) + mat_operations(&w->kv_b) + mat_operations(&w->o);
        total += mat_operations(&w->indexer.q) + mat_operations(&w->indexer.k) + mat_operations(&w->indexer.weights);
        total += mlp_operations(&w->dense) + mlp_operations(&w->shared) + mat_operations(&w->router);
        if (!model_layer_is_dense(model, i)) total += model->top_k * mlp_operations(&w->experts[0]);
    }
    return total;
}
