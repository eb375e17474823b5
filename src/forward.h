/* forward.h - THE model: one pass of a batch through the stages of a backend. */
#ifndef MOEBIUS_FORWARD_H
#define MOEBIUS_FORWARD_H

#include "backend/backend.h"

/* Looks at a pass from outside, for `logits --hidden --experts`; any function may be NULL. The arrays are the
 * backend's and valid during the call only. */
struct forward_tap {
    void *context;
    /* After the embedding (index 0) and after each layer (index layer + 1): [n_rows][hidden] fp32. */
    void (*hidden)(void *context, int index, const float *residual, int n_rows);
    /* After the routing of an expert layer: [n_rows][top_k]. */
    void (*routing)(void *context, int layer, const int32_t *ids, const float *weights, int n_rows);
};

/* Starts `batch`: everything but the backend's end(). */
void forward_begin(struct backend *backend, const struct model *model, const struct batch *batch,
                   const struct forward_tap *tap);
/* Runs `batch`; the logits are then in backend->ops->logits(). `tap` may be NULL. */
int forward(struct backend *backend, const struct model *model, const struct batch *batch,
            const struct forward_tap *tap, struct mo_error *error);

#endif
