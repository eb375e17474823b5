#include "forward.h"

static void feed_forward(struct backend *backend, const struct model *model, int layer, int n_rows,
                         const struct forward_tap *tap) {
    if (model_layer_is_dense(model, layer)) {
        backend->ops->ffn_dense(backend, layer);
        return;
    }
    backend->ops->route(backend, layer);
    if (tap && tap->routing) {
        const int32_t *ids;
        const float *weights;
        backend->ops->routing(backend, &ids, &weights);
        tap->routing(tap->context, layer, ids, weights, n_rows);
    }
    backend->ops->experts(backend, layer);
}

static void tap_hidden(struct backend *backend, int index, int n_rows, const struct forward_tap *tap) {
    if (tap && tap->hidden) tap->hidden(tap->context, index, backend->ops->residual(backend), n_rows);
}

void forward_begin(struct backend *backend, const struct model *model, const struct batch *batch,
                   const struct forward_tap *tap) {
    const struct backend_ops *ops = backend->ops;
    ops->begin(backend, batch);
    ops->embed(backend);
    tap_hidden(backend, 0, batch->n_rows, tap);
    for (int layer = 0; layer < model->layers; layer++) {
        ops->attn_in(backend, layer);
        ops->attn(backend, layer);
        ops->attn_out(backend, layer);
        feed_forward(backend, model, layer, batch->n_rows, tap);
        tap_hidden(backend, layer + 1, batch->n_rows, tap);
    }
    if (batch->n_logits > 0) ops->head(backend);
    if (batch->pick) ops->pick(backend);
}

int forward(struct backend *backend, const struct model *model, const struct batch *batch,
            const struct forward_tap *tap, struct mo_error *error) {
    forward_begin(backend, model, batch, tap);
    return backend->ops->end(backend, error);
}
