/* backend/cuda/kernels/rows.cuh - what becomes of a row before it is cached: its norm, its rotation, and the formats that it is stored in
 * (model/cache_row.h). Includes: device.cuh. */
#ifndef MOEBIUS_CUDA_ROWS_CUH
#define MOEBIUS_CUDA_ROWS_CUH

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

/* (a, b) turned by the angle whose cos and sin are `angle`, or back by it. */
DEVICE void turn_pair(const float *angle, float a, float b, float *out) {
    out[0] = a * angle[0] - b * angle[1];
    out[1] = a * angle[1] + b * angle[0];
}
DEVICE void turn_pair_back(const float *angle, float a, float b, float *out) {
    out[0] = a * angle[0] + b * angle[1];
    out[1] = b * angle[0] - a * angle[1];
}

/* A row divided by its root mean square, times its gains; returns the mean square. The whole block; a barrier comes after it. `squares`
 * is shared memory [BLOCK_WARPS]. */
DEVICE float norm_row(const float *from, const float *gain, int n, float eps, float *to, float *squares) {
    float sum = 0;
    for (int i = THREAD; i < n; i += BLOCK_THREADS) sum = fmaf(from[i], from[i], sum);
    sum = warp_sum(sum);
    if (LANE == 0) squares[WARP] = sum;
    barrier();
    float mean = 0;
    for (int i = 0; i < BLOCK_WARPS; i++) mean += squares[i];
    mean = divide(mean, (float)n);
    float factor = inverse_root(mean + eps);
    for (int i = THREAD; i < n; i += BLOCK_THREADS) to[i] = from[i] * factor * gain[i];
    return mean;
}

/* A group of values in e4m3, and their scale; a warp. */
DEVICE void store_fp8_group(uint8_t *out, float *scale_at, const float *values, int n) {
    float amax = 0;
    for (int i = LANE; i < n; i += 32) {
        float size = fabsf(values[i]);
        if (!(size <= amax)) amax = size;
    }
    UNROLL
    for (int step = 16; step > 0; step /= 2) {
        float other = shuffle_xor_f32(amax, step);
        if (!(other <= amax)) amax = other;
    }
    float scale = divide(amax, 448);
    if (scale < 0x1p-126f) scale = 1; /* 0, or too small for divide(); a NaN stays one */
    for (int i = LANE; i < n; i += 32) out[i] = e4m3_bits(divide(values[i], scale));
    if (LANE == 0) *scale_at = scale;
}

/* A row of the cache, [kv_lora | rope]; the whole block. */
DEVICE void store_latent(uint8_t *out, const float *latent, int kv_lora, int rope, int fp8) {
    uint16_t *plain = (uint16_t *)out;
    int first = 0;
    if (fp8) {
        int groups = ceil_div_int(kv_lora, CACHE_GROUP);
        float *scales = (float *)(out + kv_lora);
        for (int group = WARP; group < groups; group += BLOCK_WARPS) {
            int from = group * CACHE_GROUP;
            store_fp8_group(out + from, scales + group, latent + from, min_int(kv_lora - from, CACHE_GROUP));
        }
        plain = (uint16_t *)(scales + groups);
        first = kv_lora;
    }
    for (int i = first + THREAD; i < kv_lora + rope; i += BLOCK_THREADS) plain[i - first] = bf16_bits(latent[i]);
}

#endif
