/* backend/cuda/kernels/csa2.cuh - what V4.1 keeps of a row, a compressed row and an index key: narrow formats that are part of the model
 * (KV_CSA2 of model/cache_row.h). Here they are packed, or values rounded to them, which bf16 holds exactly; bits are those of
 * backend/cpu/cache_round.c. The lanes of a warp have a value each of a group. Includes: e4m3.cuh, rows.cuh. */
#ifndef MOEBIUS_CUDA_CSA2_CUH
#define MOEBIUS_CUDA_CSA2_CUH

#include "e4m3.cuh"
#include "rows.cuh"

enum { CSA2_GROUP = 32, CSA2_FAR_GROUP = 16 }; /* values of a row, and of a key, with one scale; of a compressed row */

DEVICE float e2m1_value(uint32_t bits) {
    return bits_float((bits & 8) << 28 | (bits & 7) << 22) * 0x1p126f;
}
/* 2^(bits - 127) */
DEVICE float e8m0_value(uint32_t bits) {
    return bits == 255 ? NAN : bits_float(bits ? bits << 23 : 1 << 22);
}

/* The smallest power of two that is not below a positive number. */
DEVICE uint32_t e8m0_bits(float value) {
    return is_finite(value) ? (float_bits(value) + 0x7fffff) >> 23 : 255;
}

/* To nearest even, at most 6, and no -0. */
DEVICE uint32_t e2m1_bits(float value) {
    float size = fabsf(value);
    uint32_t code = size < 2 ? (uint32_t)rintf(size * 2) : size < 4 ? (uint32_t)rintf(size) + 2 : 7;
    if (size >= 4 && size <= 5) code = 6;
    return code && value < 0 ? code | 8 : code;
}

/* The largest size among so many lanes, at least `least`; NaN if one is. Bits without their sign order as sizes do, NaN above all. */
DEVICE float largest_size(float value, const int lanes, float least) {
    int bits = (int)(float_bits(value) & 0x7fffffffu);
    UNROLL
    for (int step = lanes / 2; step > 0; step /= 2) bits = max_int(bits, shuffle_xor_i32(bits, step));
    float size = bits_float((uint32_t)bits);
    return size <= least ? least : size;
}

DEVICE uint32_t row_scale_bits(float value) {
    return e8m0_bits(times(largest_size(value, CSA2_GROUP, 1e-4f), 1 / 448.0f));
}
DEVICE uint32_t far_scale_bits(float value) {
    return e4m3_bits(divide_exactly(largest_size(value, CSA2_FAR_GROUP, 6 * 0x1p-9f), 6));
}
DEVICE uint32_t key_scale_bits(float value) {
    return e8m0_bits(times(largest_size(value, CSA2_GROUP, 6 * 0x1p-126f), 1 / 6.0f));
}

/* A value of an index key, or of the indexer's query, as its group of lanes rounds it. */
DEVICE float round_key_value(float value) {
    float scale = e8m0_value(key_scale_bits(value));
    return e2m1_value(e2m1_bits(divide_exactly(value, scale))) * scale;
}

/* A token's row; the whole block. */
DEVICE void store_csa2_row(uint8_t *out, const float *values, int n, int packed) {
    for (int first = WARP * 32; first < n; first += BLOCK_THREADS) {
        int i = first + LANE;
        float value = i < n ? values[i] : 0;
        uint32_t power = row_scale_bits(value), code = e4m3_bits(divide_exactly(value, e8m0_value(power)));
        if (packed && i < n) out[i] = (uint8_t)code;
        if (packed && LANE == 0) out[n + first / CSA2_GROUP] = (uint8_t)power;
        if (!packed && i < n) ((uint16_t *)out)[i] = bf16_bits(e4m3_value(code) * e8m0_value(power));
    }
}

/* Codes of 4 bits, the lower number first. */
DEVICE void store_nibbles(uint8_t *out, int i, int n, uint32_t code) {
    uint32_t next = (uint32_t)shuffle_xor_i32((int)code, 1);
    if (i < n && i % 2 == 0) out[i / 2] = (uint8_t)(code | next << 4);
}

/* A compressed row; the whole block. */
DEVICE void store_csa2_far(uint8_t *out, const float *values, int n, int packed) {
    for (int first = WARP * 32; first < n; first += BLOCK_THREADS) {
        int i = first + LANE;
        float value = i < n ? values[i] : 0;
        uint32_t bits = far_scale_bits(value);
        uint32_t code = e2m1_bits(divide_exactly(value, e4m3_value(bits)));
        if (packed) {
            store_nibbles(out, i, n, code);
            if (i < n && i % CSA2_FAR_GROUP == 0) out[n / 2 + i / CSA2_FAR_GROUP] = (uint8_t)bits;
        } else if (i < n) {
            ((uint16_t *)out)[i] = bf16_bits(e2m1_value(code) * e4m3_value(bits));
        }
    }
}

/* An index key; a warp. */
DEVICE void store_csa2_key(uint8_t *out, const float *key, int n, int packed) {
    for (int first = 0; first < n; first += 32) {
        int i = first + LANE;
        float value = i < n ? key[i] : 0;
        uint32_t power = key_scale_bits(value), code = e2m1_bits(divide_exactly(value, e8m0_value(power)));
        if (packed) {
            store_nibbles(out, i, n, code);
            if (LANE == 0) out[n / 2 + first / CSA2_GROUP] = (uint8_t)power;
        } else if (i < n) {
            ((uint16_t *)out)[i] = bf16_bits(e2m1_value(code) * e8m0_value(power));
        }
    }
}

/* Values c .. c + 3 of a token's row as bf16, which is exact, as is all that follows. */
DEVICE struct pair csa2_row_values(const uint8_t *row, int n, int c) {
    uint32_t word = *(const uint32_t *)(row + c);
    float scale = e8m0_value(row[n + c / CSA2_GROUP]), v[4];
    UNROLL
    for (int j = 0; j < 4; j++) v[j] = e4m3_value(word >> (8 * j)) * scale;
    struct pair out = {{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])}};
    return out;
}

/* Four codes of 4 bits. */
DEVICE struct pair widen_nibbles(uint32_t codes, float scale) {
    float v[4];
    UNROLL
    for (int j = 0; j < 4; j++) v[j] = e2m1_value(codes >> (4 * j)) * scale;
    struct pair out = {{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])}};
    return out;
}

DEVICE struct pair csa2_far_values(const uint8_t *row, int n, int c) {
    return widen_nibbles(*(const uint16_t *)(row + c / 2), e4m3_value(row[n / 2 + c / CSA2_FAR_GROUP]));
}

/* Of a key, whose bytes begin anywhere. */
DEVICE struct pair csa2_key_values(const uint8_t *key, int n, int c) {
    uint32_t codes = (uint32_t)key[c / 2] | (uint32_t)key[c / 2 + 1] << 8;
    return widen_nibbles(codes, e8m0_value(key[n / 2 + c / CSA2_GROUP]));
}

#endif
