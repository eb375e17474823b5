/* backend/cuda/kernels/blocks.cuh - GGUF's blocks on the card: planes of bits and codes of scales (params.h), and their way to
 * mma operands. Integers are exact in bf16; scale and low are applied in fp32 to exact sums, of products and of activations, of 32 k,
 * or of 16 where blocks have scales for as few. How many bits a value has is known when a kernel is compiled, how its scales lie is
 * not: one kernel takes several kinds of blocks. Includes: device.cuh. */
#ifndef MOEBIUS_CUDA_BLOCKS_CUH
#define MOEBIUS_CUDA_BLOCKS_CUH

#include "device.cuh"

/* One lane's part of 16 rows x 64 k. scale[i][h]: raw bits for columns [32 i, 32 i + 32) and row g + 8 h. Of blocks w[0] is the
 * first plane, w[1] the second, and scale[0][h] and scale[1][h] are the codes and what lies beside them. */
struct slab {
    struct quad w[4];
    uint32_t scale[2][2];
};

DEVICE int is_blocks(const int format) {
    return format >= WEIGHT_BITS4;
}
/* Scales of 16 k each. */
DEVICE int is_fine(const int format) {
    return format == WEIGHT_BITS6 || format == WEIGHT_BITS3;
}
DEVICE int has_low(int coding, const int format) {
    return format != WEIGHT_BITS6 && (coding == CODE_HALF_LOW || coding >= CODE_BYTE_LOW);
}
/* Bits of a value, and bytes of all planes of a tile. */
DEVICE int planes_bits(int coding, const int format) {
    return format == WEIGHT_BITS4   ? 4
           : format == WEIGHT_BITS5 ? 5
           : format == WEIGHT_BITS6 ? 6
                                    : (coding == CODE_NIBBLE_LOW ? 2 : 3);
}
DEVICE int planes_bytes(int coding, const int format) {
    return planes_bits(coding, format) * (TILE_ROWS * SLAB_COLS / 8);
}

/* --- planes ------------------------------------------------------------------------------------------------------------ */

/* A lane's share of a tile from the card's memory, or (many.cuh) from the block's: macros, as loads from the two differ. */
#define LOAD_PLANES(s, at, coding, format, load_quad, load_pair, load_word)                                            \
    do {                                                                                                               \
        const uint8_t *plane = (at);                                                                                   \
        if ((format) != WEIGHT_BITS3) {                                                                                \
            (s)->w[0] = load_quad(plane + LANE * 16);                                                                  \
            plane += 512;                                                                                              \
        }                                                                                                              \
        if (is_fine(format)) {                                                                                         \
            struct pair two = load_pair(plane + LANE * 8);                                                             \
            uint32_t *to = (s)->w[(format) == WEIGHT_BITS6].v;                                                         \
            to[0] = two.v[0];                                                                                          \
            to[1] = two.v[1];                                                                                          \
            plane += 256;                                                                                              \
        }                                                                                                              \
        if ((format) == WEIGHT_BITS5) (s)->w[1].v[0] = load_word(plane + LANE * 4);                                    \
        if ((format) == WEIGHT_BITS3) (s)->w[1].v[0] = (coding) == CODE_BYTE ? load_word(plane + LANE * 4) : 0;        \
    } while (0)

/* gguf_iq4_values of model/format.h plus 128, four a word. */
DEVICE uint32_t iq4_bytes(int i) {
    return i == 0 ? 0x3f2d1801u : i == 1 ? 0x766a5d4fu : i == 2 ? 0xa6998d81u : 0xf1d9c5b5u;
}
/* Four nibbles -> their bytes of the table. */
DEVICE uint32_t look_up_iq4(uint32_t nibbles) {
    uint32_t low = permute_bytes(iq4_bytes(0), iq4_bytes(1), nibbles & 0x7777u);
    uint32_t high = permute_bytes(iq4_bytes(2), iq4_bytes(3), nibbles & 0x7777u);
    return permute_bytes(low, high, 0x3210u | (nibbles & 0x8888u) >> 1);
}
/* Byte `index` of two words, less 128, as a pair of bf16: 2^23 + byte is an fp32 with the byte as its last bits. */
DEVICE uint32_t widen_bytes(uint32_t low_word, uint32_t high_word, int index) {
    float low = bits_float(permute_bytes(low_word, 0x4b000000u, 0x7440u | (uint32_t)index)) - 8388736.0f;
    float high = bits_float(permute_bytes(high_word, 0x4b000000u, 0x7440u | (uint32_t)index)) - 8388736.0f;
    return permute_bytes(float_bits(low), float_bits(high), 0x7632u);
}

/* Two values of step i as integers, each in 16 bits. */
DEVICE uint32_t plane_bits(const struct slab *s, int i, int j, const int format) {
    int two = 2 * (i % 2 * 4 + j), one = i * 4 + j;
    if (format == WEIGHT_BITS3)
        return (s->w[0].v[i / 2] >> two & 0x00030003u) | (s->w[1].v[0] >> one & 0x00010001u) << 2;
    uint32_t bits = s->w[0].v[i] >> 4 * j & 0x000f000fu;
    if (format == WEIGHT_BITS5) bits |= (s->w[1].v[0] >> one & 0x00010001u) << 4;
    if (format == WEIGHT_BITS6) bits |= (s->w[1].v[i / 2] >> two & 0x00030003u) << 4;
    return bits;
}

/* Two e2m1 values of step i as bf16: their bits moved into bf16's places are 2^-126 of the value. */
DEVICE uint32_t widen_fp4(uint32_t word, int j) {
    uint32_t bits = word >> 4 * j & 0x000f000fu;
    return fma_bf16x2((bits & 0x00080008u) << 12 | (bits & 0x00070007u) << 6, 0x7e807e80u, 0x80008000u);
}

/* The mma operand of step i (columns 16 i .. 16 i + 15). */
DEVICE void blocks_operand(uint32_t *a, const struct slab *s, int i, int coding, const int format) {
    if (format == WEIGHT_BITS4 && (coding == CODE_HALF || coding == CODE_BYTE_32)) {
        uint32_t low = look_up_iq4(s->w[0].v[i] & 0xffff), high = look_up_iq4(s->w[0].v[i] >> 16);
        UNROLL
        for (int j = 0; j < 4; j++) a[j] = widen_bytes(low, high, j);
        return;
    }
    if (format == WEIGHT_BITS4 && coding == CODE_EXPONENT) {
        UNROLL
        for (int j = 0; j < 4; j++) a[j] = widen_fp4(s->w[0].v[i], j);
        return;
    }
    uint32_t zero = format == WEIGHT_BITS5   ? (coding == CODE_HALF ? 16 : 0)
                    : format == WEIGHT_BITS6 ? 32
                    : format == WEIGHT_BITS3 ? (coding == CODE_BYTE ? 4 : 0)
                                             : 0;
    UNROLL
    for (int j = 0; j < 4; j++) { /* 0x4300 | n is 128 + n */
        uint32_t bits = plane_bits(s, i, j, format) | 0x43004300u;
        a[j] = fma_bf16x2(bits, 0x3f803f80u, 0xc300c300u | zero * 0x00010001u); /* * 1 - (128 + zero) */
    }
}

/* --- scales ------------------------------------------------------------------------------------------------------------ */

/* A word of codes is of 128 k, not of 64. */
DEVICE int is_of_128(int coding) {
    return coding == CODE_BYTE_32 || coding == CODE_EXPONENT;
}
DEVICE int beside_bytes(int coding) {
    return coding == CODE_HALF || coding == CODE_EXPONENT ? 0 : coding == CODE_BYTE || coding == CODE_BYTE_32 ? 2 : 4;
}
DEVICE const uint8_t *chunk_of(const struct device_matrix *w, const uint8_t *scale, int tile, int slab) {
    size_t chunk = (size_t)tile * (size_t)w->scale_groups + (size_t)((slab * SLAB_COLS) >> w->group_shift);
    return scale + chunk * (size_t)w->chunk_bytes;
}
/* Where in its chunk a slab's codes and what lies beside them begin. */
DEVICE int codes_at(const struct device_matrix *w, int slab) {
    if (w->group_shift == 6) return 0;
    return (is_of_128(w->coding) ? slab % 4 / 2 : slab % 4) * 64;
}
DEVICE int beside_at(const struct device_matrix *w) {
    return w->chunk_bytes - TILE_ROWS * beside_bytes(w->coding);
}
/* Codes of 128 k: those of the slab's half. */
DEVICE uint32_t codes_of_slab(uint32_t codes, int slab, int coding, const int format) {
    /* the same as is_of_128(); but for this form linear_bits5_many spills a register on 8.0 */
    return coding == CODE_BYTE_32 || (format == WEIGHT_BITS4 && coding == CODE_EXPONENT) ? codes >> (slab % 2 * 16) : codes;
}

/* From the card's memory; tile and slab of a matrix. */
DEVICE void blocks_load(struct slab *s, const struct device_matrix *w, const uint8_t *data, const uint8_t *scale,
                        int tile, int slab, const int format) {
    size_t at = (size_t)tile * (size_t)w->slabs + (size_t)slab;
    LOAD_PLANES(s, data + at * (size_t)planes_bytes(w->coding, format), w->coding, format, load_once, load_once_pair,
                load_once_word);
    const uint8_t *chunk = chunk_of(w, scale, tile, slab), *beside = chunk + beside_at(w);
    int bytes = beside_bytes(w->coding);
    UNROLL
    for (int h = 0; h < 2; h++) {
        int row = LANE / 4 + 8 * h;
        uint32_t codes = constant_u32((const uint32_t *)(chunk + codes_at(w, slab)) + row);
        s->scale[0][h] = codes_of_slab(codes, slab, w->coding, format);
        s->scale[1][h] = bytes == 4   ? constant_u32((const uint32_t *)beside + row)
                         : bytes == 2 ? constant_u16((const uint16_t *)beside + row)
                                      : 0;
    }
}

/* Of 32 k of rows g and g + 8, [step][row]; where steps have no scales of their own, that of step 0. */
struct half_scales {
    float scale[2][2], low[2][2];
};
/* 2^(e - 127), of an e below 255. */
DEVICE float exponent_value(uint32_t e) {
    return bits_float(e ? e << 23 : 0x00400000u);
}
DEVICE float signed_byte(uint32_t bits) {
    return (float)(int8_t)(bits & 0xff);
}
DEVICE void fine_scales(struct half_scales *out, uint32_t codes, uint32_t beside, int h, int coding, const int format) {
    float d = half_value(beside & 0xffff), dmin = half_value(beside >> 16);
    UNROLL
    for (int step = 0; step < 2; step++) {
        uint32_t code = codes >> 8 * step & 0xff;
        int is_byte = format == WEIGHT_BITS6 || coding == CODE_BYTE;
        out->scale[step][h] = d * (is_byte ? signed_byte(code) : (float)(code & 15));
        out->low[step][h] = -(dmin * (float)(code >> 4));
    }
}
DEVICE void coarse_scales(struct half_scales *out, uint32_t codes, uint32_t beside, int half, int h, int coding,
                          const int format) {
    if (format == WEIGHT_BITS4 && coding == CODE_EXPONENT) {
        out->scale[0][h] = exponent_value(codes >> 8 * half & 0xff);
        out->low[0][h] = 0;
        return;
    }
    if (coding == CODE_HALF || coding == CODE_HALF_LOW) {
        out->scale[0][h] = half_value(codes >> 16 * half & 0xffff);
        out->low[0][h] = half_value(beside >> 16 * half & 0xffff);
        return;
    }
    float d = half_value(beside & 0xffff);
    uint32_t code = codes >> 8 * half & 0xff;
    out->scale[0][h] = d * (coding == CODE_BYTE_32 ? signed_byte(code) : (float)code);
    out->low[0][h] = -(half_value(beside >> 16) * (float)(codes >> (16 + 8 * half) & 0xff));
}
DEVICE void find_scales(struct half_scales *out, const struct slab *s, int half, int coding, const int format) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        if (is_fine(format)) {
            fine_scales(out, s->scale[0][h] >> 16 * half, s->scale[1][h], h, coding, format);
        } else {
            coarse_scales(out, s->scale[0][h], s->scale[1][h], half, h, coding, format);
        }
    }
}

/* --- products of 32 k: every variant goes through these, so all add in one order ------------------------------------------ */

/* part += scale * (the sum of products). */
DEVICE void add_products(float *part, uint32_t (*a)[4], const struct pair *b, const struct half_scales *scales,
                         const int format) {
    float sum[4] = {0, 0, 0, 0};
    UNROLL
    for (int step = 0; step < 2; step++) {
        mma_bf16(sum, a[step], b[step].v[0], b[step].v[1]);
        if (step == 0 && !is_fine(format)) continue;
        UNROLL
        for (int c = 0; c < 4; c++) {
            part[c] = fmaf(sum[c], scales->scale[is_fine(format) ? step : 0][c / 2], part[c]);
            sum[c] = 0;
        }
    }
}

/* Sums of activations, where the matrix unit leaves its results: by a matrix of ones. sums[step], or of both steps sums[1]. */
DEVICE void sum_activations(float (*sums)[4], const struct pair *b, const int format) {
    const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    UNROLL
    for (int c = 0; c < 4; c++) sums[0][c] = sums[1][c] = 0;
    mma_bf16(sums[is_fine(format) ? 0 : 1], ones, b[0].v[0], b[0].v[1]);
    mma_bf16(sums[1], ones, b[1].v[0], b[1].v[1]);
}
/* part += low * (the sum of activations). */
DEVICE void add_lows(float *part, float (*sums)[4], const struct half_scales *scales, const int format) {
    UNROLL
    for (int c = 0; c < 4; c++) {
        if (is_fine(format)) part[c] = fmaf(sums[0][c], scales->low[0][c / 2], part[c]);
        part[c] = fmaf(sums[1][c], scales->low[is_fine(format) ? 1 : 0][c / 2], part[c]);
    }
}

/* part[token tile] += one slab times the block's activations; `xs` is at the slab's first column. */
DEVICE void multiply_blocks(float (*part)[4], const struct slab *s, const uint16_t *xs, int stride, int coding,
                            const int format, const int tiles, const int most_tiles) {
    UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t a[2][4];
        struct half_scales scales;
        blocks_operand(a[0], s, 2 * half, coding, format);
        blocks_operand(a[1], s, 2 * half + 1, coding, format);
        find_scales(&scales, s, half, coding, format);
        UNROLL
        for (int j = 0; j < most_tiles; j++) {
            if (j >= tiles) continue;
            const uint16_t *x = xs + (j * 8 + LANE / 4) * stride + half * 32 + LANE % 4 * 4;
            struct pair b[2] = {*(const struct pair *)x, *(const struct pair *)(x + 16)};
            float sums[2][4];
            add_products(part[j], a, b, &scales, format);
            if (!has_low(coding, format)) continue;
            sum_activations(sums, b, format);
            add_lows(part[j], sums, &scales, format);
        }
    }
}

#endif
