/* backend/cuda/kernels/rope.cuh - what follows the projections of a row: rotation of queries and key, the latent's norm, and
 * the cache row. One block a row, or, for few rows, the last blocks of the projections. `scratch` is shared memory:
 * 8 + kv_lora + rope values. Includes: rows.cuh. */
#ifndef MOEBIUS_CUDA_ROPE_CUH
#define MOEBIUS_CUDA_ROPE_CUH

#include "rows.cuh"

/* Pair i of `rope` values, rotated by the row's angle. */
DEVICE void rotate(const struct rope_params *p, int row, int i, float a, float b, float *out) {
    turn_pair(p->rotation + ((size_t)row * (size_t)(p->rope / 2) + (size_t)i) * 2, a, b, out);
}

DEVICE void store_row(const struct rope_params *p, int row, const float *latent) {
    int at = p->pos[row] % PAGE_TOKENS;
    uint8_t *out = p->cache + ((size_t)p->page[row] * PAGE_TOKENS + (size_t)at) * p->row_bytes;
    store_latent(out, latent, p->kv_lora, p->rope, p->fp8);
}

/* The latent normed and the key rotated, in shared memory. */
DEVICE void finish_latent(const struct rope_params *p, int row, float *latent, float *squares) {
    const float *from = p->kv_a + (size_t)row * (size_t)(p->kv_lora + p->rope);
    float mean = norm_row(from, p->kv_norm, p->kv_lora, p->eps, latent, squares);
    if (!is_finite(mean) && THREAD == 0) note_fault(p->fault, p->fault_key, row);
    for (int i = THREAD; i < p->rope / 2; i += BLOCK_THREADS) {
        rotate(p, row, i, from[p->kv_lora + 2 * i], from[p->kv_lora + 2 * i + 1], latent + p->kv_lora + 2 * i);
    }
    barrier();
}

DEVICE void cache_latent(const struct rope_params *p, float *scratch, int row) {
    float *latent = scratch + BLOCK_WARPS;
    finish_latent(p, row, latent, scratch);
    store_row(p, row, latent);
}

/* The rotated part of the row's queries, heads [first, first + n). */
DEVICE void rotate_queries(const struct rope_params *p, int row, int first, int n) {
    int pairs = p->rope / 2, head_dim = p->nope + p->rope, width = p->kv_lora + p->rope;
    for (int i = THREAD; i < n * pairs; i += BLOCK_THREADS) {
        int head = first + i / pairs, j = i % pairs;
        size_t at = (size_t)row * (size_t)p->heads + (size_t)head;
        const float *q = p->q + at * (size_t)head_dim + (size_t)(p->nope + 2 * j);
        float out[2];
        rotate(p, row, j, q[0], q[1], out);
        *(uint32_t *)(p->q_latent + at * (size_t)width + (size_t)(p->kv_lora + 2 * j)) = pack_bf16(out[0], out[1]);
    }
}

DEVICE void rope_row(const struct rope_params *p, float *scratch, int row) {
    cache_latent(p, scratch, row);
    rotate_queries(p, row, 0, p->heads);
}

#endif
