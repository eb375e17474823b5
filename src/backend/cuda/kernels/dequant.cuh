/* backend/cuda/kernels/dequant.cuh - a lane's share of a weight tile, and its way to mma operands. All steps are exact: a
 * weight's integer (or e4m3) value fits in bf16; its scale is applied to the fp32 sum of its group. GGUF's: blocks.cuh.
 * Includes: blocks.cuh. */
#ifndef MOEBIUS_CUDA_DEQUANT_CUH
#define MOEBIUS_CUDA_DEQUANT_CUH

#include "blocks.cuh"

DEVICE int slab_quads(const int format) {
    return format == WEIGHT_BF16 ? 4 : format == WEIGHT_FP8 || format == WEIGHT_INT8 ? 2 : 1;
}

DEVICE uint32_t load_scale_bits(const struct device_matrix *w, const uint8_t *scale, int tile, int group, int row,
                                const int format) {
    size_t at = ((size_t)tile * (size_t)w->scale_groups + (size_t)group) * TILE_ROWS + (size_t)row;
    if (format == WEIGHT_INT4 || format == WEIGHT_INT8) return constant_u16((const uint16_t *)scale + at);
    return constant_u32((const uint32_t *)scale + at);
}

/* `data` and `scale` are the matrix's own (of an expert, say). */
DEVICE void slab_load(struct slab *s, const struct device_matrix *w, const uint8_t *data, const uint8_t *scale,
                      int tile, int index, const int format) {
    if (is_blocks(format)) {
        blocks_load(s, w, data, scale, tile, index, format);
        return;
    }
    const int quads = slab_quads(format);
    const uint8_t *at = data + ((size_t)tile * (size_t)w->slabs + (size_t)index) * (size_t)(quads * 512) + LANE * 16;
    UNROLL
    for (int i = 0; i < 4; i++) {
        if (i < quads) s->w[i] = load_once(at + i * 512);
    }
    if (format == WEIGHT_BF16) return;
    int k = index * SLAB_COLS, group = k >> w->group_shift, row = LANE / 4;
    s->scale[0][0] = load_scale_bits(w, scale, tile, group, row, format);
    s->scale[0][1] = load_scale_bits(w, scale, tile, group, row + 8, format);
    s->scale[1][0] = s->scale[0][0];
    s->scale[1][1] = s->scale[0][1];
    if (w->group_shift != 5) return;
    group = min_int(group + 1, w->scale_groups - 1); /* past the last column the weights are zero */
    s->scale[1][0] = load_scale_bits(w, scale, tile, group, row, format);
    s->scale[1][1] = load_scale_bits(w, scale, tile, group, row + 8, format);
}

DEVICE float scale_value(uint32_t bits, const int format) {
    return format == WEIGHT_FP8 ? bits_float(bits) : half_value(bits & 0xffff);
}

/* Two e4m3 bytes -> two bf16: their bits moved into bf16's places are 2^-120 of the value. */
DEVICE uint32_t widen_fp8(uint32_t word, uint32_t pick) {
    uint32_t spread = permute_bytes(word, 0, pick); /* each byte to the top of a half */
    uint32_t bits = (spread & 0x80008000u) | ((spread >> 4) & 0x07f007f0u);
    return fma_bf16x2(bits, 0x7b807b80u, 0x80008000u); /* * 2^120 - 0 */
}

/* Two bytes q + 128 -> two bf16: 2^23 + byte is an fp32 with the byte as its last bits. */
DEVICE uint32_t widen_int8(uint32_t word, int first) {
    float low = bits_float(permute_bytes(word, 0x4b000000u, 0x7440u | (uint32_t)first)) - 8388736.0f;
    float high = bits_float(permute_bytes(word, 0x4b000000u, 0x7440u | (uint32_t)(first + 1))) - 8388736.0f;
    return permute_bytes(float_bits(low), float_bits(high), 0x7632u);
}

/* Nibbles `index` and `index + 4` -> bf16, less `zero` (a bf16 pair): 0x4300 | n is 128 + n. */
DEVICE uint32_t widen_int4(uint32_t word, int index, uint32_t minus_zero) {
    uint32_t bits = ((word >> (4 * index)) & 0x000f000fu) | 0x43004300u;
    return fma_bf16x2(bits, 0x3f803f80u, minus_zero);
}

/* The mma operand of step i (columns 16 i .. 16 i + 15). */
DEVICE void slab_operand(uint32_t *a, const struct slab *s, int i, const int format) {
    if (format == WEIGHT_BF16) {
        UNROLL
        for (int j = 0; j < 4; j++) a[j] = s->w[i].v[j];
    } else if (format == WEIGHT_FP8) {
        const uint32_t *word = &s->w[i / 2].v[i % 2 * 2];
        a[0] = widen_fp8(word[0], 0x1404u), a[1] = widen_fp8(word[0], 0x3424u);
        a[2] = widen_fp8(word[1], 0x1404u), a[3] = widen_fp8(word[1], 0x3424u);
    } else if (format == WEIGHT_INT8) {
        const uint32_t *word = &s->w[i / 2].v[i % 2 * 2];
        a[0] = widen_int8(word[0], 0), a[1] = widen_int8(word[0], 2);
        a[2] = widen_int8(word[1], 0), a[3] = widen_int8(word[1], 2);
    } else {
        uint32_t zero[2] = {0xc308c308u, 0xc308c308u}; /* -(128 + 8) */
        if (format == WEIGHT_AWQ) {
            UNROLL
            for (int h = 0; h < 2; h++) zero[h] = (s->scale[i / 2][h] >> 16) * 0x00010001u | 0xc300c300u;
        }
        UNROLL
        for (int j = 0; j < 4; j++) a[j] = widen_int4(s->w[0].v[i], j, zero[j % 2]);
    }
}

#endif
