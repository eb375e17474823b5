/* backend/cuda/kernels/listed.cuh - how long a row's list of cached rows is (params_listed.h), and where its results are.
 * Includes: device.cuh, params_listed.h. */
#ifndef MOEBIUS_CUDA_LISTED_CUH
#define MOEBIUS_CUDA_LISTED_CUH

#include "device.cuh"
#include "../params_listed.h"

/* Rows that stand for several tokens, or for one, without the window. */
DEVICE int far_seen(const struct listed_rows *l, int row) {
    return l->ratio ? (l->pos[row] + 1) / l->ratio : 0;
}
DEVICE int window_keys(const struct listed_rows *l, int row) {
    return min_int(l->pos[row] + 1, l->window);
}
DEVICE int listed_keys(const struct listed_rows *l, int row) {
    return min_int(far_seen(l, row), l->topk) + window_keys(l, row);
}

/* Results of a row: slots slot_first[row] + [0, this). */
DEVICE int listed_slots(const struct listed_rows *l, int row) {
    if (l->slot_count[row] == 0) return 0;
    return l->splits == 1 ? 1 : ceil_div_int(listed_keys(l, row), SPLIT_TOKENS);
}

#endif
