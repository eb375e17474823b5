/* backend/cuda/kernels/gguf.cuh - the blocks of GGUF files, as they lie there: model/format.h says what their bytes mean. One
 * value at a time: for bringing them in order, and for rows that are looked up. Includes: blocks.cuh. */
#ifndef MOEBIUS_CUDA_GGUF_CUH
#define MOEBIUS_CUDA_GGUF_CUH

#include "blocks.cuh"

DEVICE int is_gguf(int format) {
    return format >= RAW_Q4_0;
}
DEVICE int gguf_values(int format) {
    return format <= RAW_IQ4_NL ? 32 : 256;
}
DEVICE int gguf_bytes(int format) {
    switch (format) {
    case RAW_MXFP4:
        return 17;
    case RAW_Q4_1:
        return 20;
    case RAW_Q5_0:
        return 22;
    case RAW_Q5_1:
        return 24;
    case RAW_Q8_0:
        return 34;
    case RAW_Q2_K:
        return 84;
    case RAW_Q3_K:
        return 110;
    case RAW_Q4_K:
        return 144;
    case RAW_Q5_K:
        return 176;
    case RAW_Q6_K:
        return 210;
    case RAW_IQ4_XS:
        return 136;
    default: /* Q4_0, IQ4_NL */
        return 18;
    }
}
DEVICE int gguf_has_low(int format) {
    return format == RAW_Q4_1 || format == RAW_Q5_1 || format == RAW_Q2_K || format == RAW_Q4_K || format == RAW_Q5_K;
}

/* --- numbers ------------------------------------------------------------------------------------------------------------- */

DEVICE uint32_t gguf_nibble(const uint8_t *bytes, int i) {
    return i < 16 ? bytes[i] & 15u : bytes[i - 16] >> 4;
}
DEVICE uint32_t gguf_bit(const uint8_t *bytes, int i) {
    return bytes[i / 8] >> i % 8 & 1u;
}
DEVICE uint32_t gguf_two_bits(const uint8_t *bytes, int i) {
    return bytes[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3u;
}
DEVICE uint32_t gguf_four_bits(const uint8_t *bytes, int i) {
    return bytes[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15u;
}

/* Value i's stored bits, never negative (Q8_0: plus 128). */
DEVICE uint32_t gguf_code(int format, const uint8_t *at, int i) {
    switch (format) {
    case RAW_MXFP4:
        return gguf_nibble(at + 1, i);
    case RAW_Q4_1:
        return gguf_nibble(at + 4, i);
    case RAW_Q5_0:
        return gguf_nibble(at + 6, i) | gguf_bit(at + 2, i) << 4;
    case RAW_Q5_1:
        return gguf_nibble(at + 8, i) | gguf_bit(at + 4, i) << 4;
    case RAW_Q8_0:
        return at[2 + i] ^ 0x80u;
    case RAW_Q2_K:
        return gguf_two_bits(at + 16, i);
    case RAW_Q3_K:
        return gguf_two_bits(at + 32, i) | (at[i % 32] >> i / 32 & 1u) << 2;
    case RAW_Q4_K:
        return gguf_four_bits(at + 16, i);
    case RAW_Q5_K:
        return gguf_four_bits(at + 48, i) | (at[16 + i % 32] >> i / 32 & 1u) << 4;
    case RAW_Q6_K:
        return (at[i / 128 * 64 + i % 64] >> i % 128 / 64 * 4 & 15u) | gguf_two_bits(at + 128, i) << 4;
    case RAW_IQ4_XS:
        return gguf_nibble(at + 8 + i / 32 * 16, i % 32);
    default: /* Q4_0, IQ4_NL */
        return gguf_nibble(at + 2, i);
    }
}
/* What that stands for. */
DEVICE int gguf_integer(int format, uint32_t code) {
    if (format == RAW_IQ4_NL || format == RAW_IQ4_XS)
        return (int)(iq4_bytes((int)code / 4) >> code % 4 * 8 & 0xff) - 128;
    int zero = format == RAW_Q4_0   ? 8
               : format == RAW_Q5_0 ? 16
               : format == RAW_Q8_0 ? 128
               : format == RAW_Q3_K ? 4
               : format == RAW_Q6_K ? 32
                                    : 0;
    return (int)code - zero;
}

/* --- scales -------------------------------------------------------------------------------------------------------------- */

/* fp16 bits of d, and of m or dmin. */
DEVICE uint32_t gguf_d(int format, const uint8_t *at) {
    return *(const uint16_t *)(at + (format == RAW_Q2_K   ? 80
                                     : format == RAW_Q3_K ? 108
                                     : format == RAW_Q6_K ? 208
                                                          : 0));
}
DEVICE uint32_t gguf_m(int format, const uint8_t *at) {
    return gguf_has_low(format) ? *(const uint16_t *)(at + (format == RAW_Q2_K ? 82 : 2)) : 0;
}
/* Number j of a block of 256's scales (Q2_K, Q4_K, Q5_K: and of its minimums). */
DEVICE int gguf_scale(int format, const uint8_t *at, int j) {
    if (format == RAW_Q2_K) return at[j] & 15;
    if (format == RAW_Q6_K) return (int8_t)at[192 + j];
    if (format == RAW_Q3_K)
        return (int)((at[96 + j % 8] >> j / 8 * 4 & 15u) | (at[104 + j % 4] >> j / 4 * 2 & 3u) << 4) - 32;
    if (format == RAW_IQ4_XS) {
        uint32_t high = *(const uint16_t *)(at + 2);
        return (int)((at[4 + j / 2] >> j % 2 * 4 & 15u) | (high >> 2 * j & 3u) << 4) - 32;
    }
    const uint8_t *s = at + 4;
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
}
DEVICE int gguf_minimum(int format, const uint8_t *at, int j) {
    if (format == RAW_Q2_K) return at[j] >> 4;
    const uint8_t *s = at + 4;
    return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

DEVICE float e2m1_value(uint32_t code) {
    return bits_float((code & 8) << 28 | (code & 7) << 22) * 0x1p126f;
}

/* Value i of a block, with plain C's roundings. */
DEVICE float gguf_value(int format, const uint8_t *at, int i) {
    if (format == RAW_MXFP4) return e2m1_value(gguf_code(format, at, i)) * exponent_value(at[0]);
    float scale = half_value(gguf_d(format, at)), low = half_value(gguf_m(format, at));
    if (gguf_values(format) == 256) {
        int j = i / (format == RAW_Q2_K || format == RAW_Q3_K || format == RAW_Q6_K ? 16 : 32);
        scale = scale * (float)gguf_scale(format, at, j);
        if (gguf_has_low(format)) low = -(low * (float)gguf_minimum(format, at, j));
    }
    float value = scale * (float)gguf_integer(format, gguf_code(format, at, i));
    return gguf_has_low(format) ? value + low : value;
}

/* The block of (row, k) of a matrix of `cols` columns. */
DEVICE const uint8_t *gguf_block(const uint8_t *data, int format, int cols, int row, int k) {
    int values = gguf_values(format);
    return data + ((size_t)row * (size_t)(cols / values) + (size_t)(k / values)) * (size_t)gguf_bytes(format);
}
DEVICE float gguf_value_at(const uint8_t *data, int format, int cols, int row, int k) {
    return gguf_value(format, gguf_block(data, format, cols, row, k), k % gguf_values(format));
}

#endif
