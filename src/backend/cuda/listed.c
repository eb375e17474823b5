/* backend/cuda/listed.c - attention to listed rows of the cache: V3.2's that its indexer chose; V4's compressed rows and window. */
#include "backend/cuda/cuda.h"

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* Rows in the list, in a layer that has most. */
static int most_keys(const struct model *m, int pos) {
    const struct index_shape shape = model_index_shape(m);
    const int chosen = smaller((pos + 1) / shape.tokens_a_key, shape.topk);
    if (!model_is_hybrid(m)) return chosen;
    const int dense = (pos + 1) / RATIO_DENSE;
    return (chosen > dense ? chosen : dense) + smaller(pos + 1, m->hybrid.window);
}

int cuda_listed_splits(const struct cuda *cuda, int pos) {
    return (most_keys(cuda->model, pos) + SPLIT_TOKENS - 1) / SPLIT_TOKENS;
}
