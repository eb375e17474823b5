/* backend/cuda/kernels/rope.cuh - what follows the projections of a row: rotation of queries and key, the latent's norm, and
 * the cache row. One block a row, or, for few rows, the last blocks of the projections. `scratch` is shared memory:
 * 8 + kv_lora + rope values. Includes: device.cuh. */
#ifndef MOEBIUS_CUDA_ROPE_CUH
#define MOEBIUS_CUDA_ROPE_CUH

#include "device.cuh"

/* fp32 -> e4m3, to nearest even, at most 448; NaN stays one. The same as f32_to_e4m3 of model/format.h. */
DEVICE uint8_t e4m3_bits(float value) {
    uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu, sign = bits >> 24 & 0x80;
    if (magnitude > 0x7f800000u) return (uint8_t)(sign | 0x7f);
    float size = bits_float(magnitude);
    if (size >= 448.0f) return (uint8_t)(sign | 0x7e);
    if (size < 0.015625f) return (uint8_t)(sign | (uint32_t)rintf(size * 512.0f)); /* below 2^-6: steps of 2^-9 */
    uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
    return (uint8_t)(sign | ((rounded >> 20) - ((127 - 7) << 3)));
}

/* Pair i of `rope` values, rotated by the row's angle. */
DEVICE void rotate(const struct rope_params *p, int row, int i, float a, float b, float *out) {
    const float *r = p->rotation + ((size_t)row * (size_t)(p->rope / 2) + (size_t)i) * 2;
    out[0] = a * r[0] - b * r[1];
    out[1] = a * r[1] + b * r[0];
}

/* One group of the latent in e4m3 with its scale behind the values; a warp does a group. */
DEVICE void store_fp8_group(const struct rope_params *p, uint8_t *out, const float *latent, int group) {
    int first = group * CACHE_GROUP, n = min_int(p->kv_lora - first, CACHE_GROUP);
    float amax = 0;
    for (int i = LANE; i < n; i += 32) {
        float size = fabsf(latent[first + i]);
        if (!(size <= amax)) amax = size;
    }
    UNROLL
    for (int step = 16; step > 0; step /= 2) {
        float other = shuffle_xor_f32(amax, step);
        if (!(other <= amax)) amax = other;
    }
    float scale = amax == 0 ? 1 : divide(amax, 448);
    for (int i = LANE; i < n; i += 32) out[first + i] = e4m3_bits(divide(latent[first + i], scale));
    if (LANE == 0) *(float *)(out + p->kv_lora + group * 4) = scale;
}

DEVICE void store_row(const struct rope_params *p, int row, const float *latent) {
    int at = p->pos[row] % PAGE_TOKENS;
    uint8_t *out = p->cache + ((size_t)p->page[row] * PAGE_TOKENS + (size_t)at) * p->row_bytes;
    uint16_t *plain = (uint16_t *)out;
    int first = 0;
    if (p->fp8) {
        int groups = ceil_div_int(p->kv_lora, CACHE_GROUP);
        for (int group = WARP; group < groups; group += BLOCK_WARPS) store_fp8_group(p, out, latent, group);
        plain = (uint16_t *)(out + p->kv_lora + groups * 4);
        first = p->kv_lora;
    }
    for (int i = first + THREAD; i < p->kv_lora + p->rope; i += BLOCK_THREADS) plain[i - first] = bf16_bits(latent[i]);
}

/* The latent normed and the key rotated, in shared memory. */
DEVICE void finish_latent(const struct rope_params *p, int row, float *latent, float *squares) {
    const float *from = p->kv_a + (size_t)row * (size_t)(p->kv_lora + p->rope);
    float sum = 0;
    for (int i = THREAD; i < p->kv_lora; i += BLOCK_THREADS) sum = fmaf(from[i], from[i], sum);
    sum = warp_sum(sum);
    if (LANE == 0) squares[WARP] = sum;
    barrier();
    float mean = 0;
    for (int i = 0; i < BLOCK_WARPS; i++) mean += squares[i];
    mean = divide(mean, (float)p->kv_lora);
    if (!is_finite(mean) && THREAD == 0) note_fault(p->fault, p->fault_key, row);
    float factor = inverse_root(mean + p->eps);
    for (int i = THREAD; i < p->kv_lora; i += BLOCK_THREADS) latent[i] = from[i] * factor * p->kv_norm[i];
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
