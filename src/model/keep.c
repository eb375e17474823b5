/* model/keep.c - matrices that are made when they are asked for (weights->later), made once and kept: what the CPU computes with
 * while the others are on their way to a card. */
#include <string.h>
#include "base/arena.h"
#include "base/memory.h"
#include "base/progress.h"
#include "model/weights.h"

struct keeper {
    struct weights *weights;
    size_t bytes; /* so far */
    bool is_counting;
    struct progress progress;
};

/* A copy of `bytes` in the weights' own memory, or NULL. */
static const void *copy(const struct weights *weights, const void *from, size_t bytes) {
    void *to = arena_alloc(weights->arena, bytes);
    if (to) memcpy(to, from, bytes);
    return to;
}

static int keep(struct keeper *k, struct mat *mat, struct mo_error *error) {
    struct weights_later *later = k->weights->later;
    struct mat made;
    if (mat->data) return 0;
    k->bytes += mat_bytes(mat);
    if (k->is_counting) return 0;
    int code = later->make(later, mat, &made, error);
    if (code) return code;
    size_t data = mat_data_bytes(&made), scales = mat_bytes(&made) - data;
    made.data = copy(k->weights, made.data, data);
    if (scales) mat_set_scales(&made, copy(k->weights, mat_scales(&made), scales));
    if (!made.data || (scales && !mat_scales(&made)))
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %zu bytes of weights", data + scales);
    *mat = made;
    progress_update(&k->progress, (double)k->bytes);
    return 0;
}

static int keep_layer(struct keeper *k, struct layer *layer, int experts, struct mo_error *error) {
    int code = keep(k, &layer->router, error);
    for (int e = 0; e < experts && !code; e++) {
        struct mlp *expert = &layer->experts[e];
        code = keep(k, &expert->gate, error);
        if (!code) code = keep(k, &expert->up, error);
        if (!code) code = keep(k, &expert->down, error);
    }
    return code;
}

static int keep_layers(struct keeper *k, const struct model *model, int n, struct mo_error *error) {
    int code = 0;
    k->bytes = 0;
    for (int l = model->dense_layers; l < model->dense_layers + n && !code; l++) {
        code = keep_layer(k, &k->weights->layers[l], model->experts, error);
    }
    return code;
}

int weights_keep(struct weights *weights, const struct model *model, int n_layers, struct mo_error *error) {
    struct keeper k = {.weights = weights, .is_counting = true};
    double available = memory_available_bytes();
    keep_layers(&k, model, n_layers, NULL);
    if ((double)k.bytes > available) {
        return mo_error_set(error, MO_E_NO_MEMORY,
                            "the routed experts of %d layers take %.3f GB, and %.3f GB of memory are free (a file of "
                            "`moebius quantize` is mapped and needs less)",
                            n_layers, (double)k.bytes * 1e-9, available * 1e-9);
    }
    k.is_counting = false;
    progress_begin(&k.progress, "quantizing", "GB", 1e-9, (double)k.bytes);
    int code = keep_layers(&k, model, n_layers, error);
    progress_end(&k.progress);
    return code;
}
