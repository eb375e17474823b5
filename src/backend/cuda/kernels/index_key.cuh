/* backend/cuda/kernels/index_key.cuh - the indexer's keys in the cache (struct index_keys of params_listed.h). Includes: device.cuh,
 * csa2.cuh, params_listed.h. */
#ifndef MOEBIUS_CUDA_INDEX_KEY_CUH
#define MOEBIUS_CUDA_INDEX_KEY_CUH

#include "csa2.cuh"
#include "../params_listed.h"

/* V4.1's in their own bytes: 4 bits a value, and their scales behind these. */
DEVICE int index_is_csa2(const struct index_keys *k) {
    return k->csa2 && k->fp8;
}
DEVICE int index_key_bytes(const struct index_keys *k) {
    if (index_is_csa2(k)) return k->dim / 2 + ceil_div_int(k->dim, CSA2_GROUP);
    return k->fp8 ? k->dim : 2 * k->dim;
}

/* Key `at` of a page, and (fp8, but for V4.1's) its scale. */
DEVICE uint8_t *index_key_at(const struct index_keys *k, int page, int at) {
    return k->data + (size_t)page * k->page_bytes + (size_t)at * (size_t)index_key_bytes(k);
}
DEVICE float *index_scale_at(const struct index_keys *k, int page, int at) {
    return (float *)(k->data + (size_t)page * k->page_bytes + ((size_t)k->dim << k->page_shift)) + at;
}

/* Stores a finished key, which is in shared memory: a warp. */
DEVICE void store_index_key(const struct index_keys *k, int page, int at, const float *key) {
    uint8_t *out = index_key_at(k, page, at);
    if (k->csa2) {
        store_csa2_key(out, key, k->dim, k->fp8);
        return;
    }
    if (!k->fp8) {
        for (int i = LANE; i < k->dim; i += 32) ((uint16_t *)out)[i] = bf16_bits(key[i]);
        return;
    }
    store_fp8_group(out, index_scale_at(k, page, at), key, k->dim);
}

#endif
