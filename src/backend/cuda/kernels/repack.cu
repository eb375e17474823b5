/* A checkpoint's bytes into the kernels' order (params.h), on the device: the host only copies. A thread writes one lane's
 * share of a tile. */
#include "layout.cuh"

DEVICE int awq_shift(int row) {
    int j = row % 8; /* nibble j holds row awq_order[j]: 0 2 4 6 1 3 5 7 */
    return 4 * (j % 2 ? 4 + j / 2 : j / 2);
}

/* Where a value of our own 32 x 128 blocks lies (model/format.h). */
DEVICE int block_code(const struct raw_matrix *m, int row, int k) {
    int int4 = m->format == RAW_INT4, values = int4 ? 2048 : 4096, tile_bytes = values / 4, lines = tile_bytes / 64;
    int within = k % 64, line = within / 4 % lines;
    size_t block = (size_t)values + (size_t)(128 / m->group) * 64;
    size_t at = ((size_t)(row / 32) * (size_t)ceil_div_int(m->cols, 128) + (size_t)(k / 128)) * block;
    at += (size_t)((row % 32 / 16 * 2 + k % 128 / 64) * tile_bytes + line * 64 + row % 16 * 4 + within % 4);
    int byte = m->data[at];
    return int4 ? (within >= 32 ? byte >> 4 : byte & 15) : byte;
}
DEVICE uint32_t block_scale(const struct raw_matrix *m, int row, int k) {
    size_t values = m->format == RAW_INT4 ? 2048 : 4096, block = values + (size_t)(128 / m->group) * 64;
    size_t at = ((size_t)(row / 32) * (size_t)ceil_div_int(m->cols, 128) + (size_t)(k / 128)) * block + values;
    at += (size_t)(k % 128 / m->group * 64 + row % 32 * 2);
    return *(const uint16_t *)(m->data + at);
}

DEVICE uint32_t awq_code(const struct raw_matrix *m, const uint32_t *words, int row, int line) {
    return words[(size_t)line * (size_t)(m->all_rows / 8) + (size_t)(row / 8)] >> awq_shift(row) & 15;
}
DEVICE uint32_t awq_scale(const struct raw_matrix *m, int row, int group) {
    return ((const uint16_t *)m->scale)[(size_t)group * (size_t)m->all_rows + (size_t)row];
}
DEVICE float fp8_scale(const struct raw_matrix *m, int row, int k) {
    int at = row / m->scale_rows * m->scale_stride + k / m->scale_cols;
    return ((const float *)m->scale)[at];
}

/* The stored bits of a value; `row` is the whole matrix's. */
DEVICE uint32_t raw_code(const struct raw_matrix *m, int row, int k) {
    size_t at = (size_t)(row - m->row0) * (size_t)m->cols + (size_t)k;
    switch (m->format) {
    case RAW_F32:
        return ((const uint32_t *)m->data)[at];
    case RAW_F16:
    case RAW_BF16:
        return ((const uint16_t *)m->data)[at];
    case RAW_FP8:
        return m->data[at];
    case RAW_AWQ:
        return awq_code(m, (const uint32_t *)m->data, row, k);
    default:
        return (uint32_t)block_code(m, row - m->row0, k);
    }
}

DEVICE float e4m3_value(uint32_t bits) {
    return bits_float((bits & 0x80) << 24 | (bits & 0x7f) << 20) * 0x1p120f;
}

DEVICE float raw_value(const struct raw_matrix *m, int row, int k) {
    uint32_t code = raw_code(m, row, k);
    int group = m->group ? k / m->group : 0;
    switch (m->format) {
    case RAW_F32:
        return bits_float(code);
    case RAW_F16:
        return half_value(code);
    case RAW_BF16:
        return bf16_value((uint16_t)code);
    case RAW_FP8:
        return e4m3_value(code) * fp8_scale(m, row, k);
    case RAW_AWQ:
        return (float)((int)code - (int)awq_code(m, m->zeros, row, group)) * half_value(awq_scale(m, row, group));
    case RAW_INT4:
        return (float)((int)code - 8) * half_value(block_scale(m, row - m->row0, k));
    default:
        return (float)((int)code - 128) * half_value(block_scale(m, row - m->row0, k));
    }
}

/* One thread's place: a lane of a tile of a group's matrix. */
struct place {
    int group, tile, slab, lane;
};
DEVICE int find_place(const struct repack_params *p, struct place *at, int per_tile) {
    size_t i = (size_t)BLOCK * BLOCK_THREADS + (size_t)THREAD;
    at->lane = (int)(i % 32);
    i /= 32;
    at->slab = (int)(i % (size_t)per_tile);
    i /= (size_t)per_tile;
    at->tile = p->first_tile + (int)(i % (size_t)p->n_tiles);
    i /= (size_t)p->n_tiles;
    at->group = (int)i;
    return i < (size_t)p->groups;
}

/* Row of the group's matrix that is row r of a tile, or -1: not from this source. */
DEVICE int tile_row(const struct repack_params *p, int tile, int r) {
    if (p->halves != 3 && r / 8 + 1 != p->halves) return -1;
    int row = p->halves == 3 ? tile * TILE_ROWS + r : tile * 8 + r % 8;
    return row < p->to.rows ? row : -1;
}

/* What a lane stores for (row, k): bits of the target's format; padding is zero in value. */
DEVICE uint32_t tile_code(const struct repack_params *p, int group, int row, int k) {
    if (row < 0 || k >= p->to.cols) return format_zero(p->format);
    int source = group * p->group_rows + p->row_offset + (p->transposed ? k : row), col = p->transposed ? row : k;
    uint32_t code = p->format == WEIGHT_BF16 && p->from.format != RAW_BF16 ? bf16_bits(raw_value(&p->from, source, col))
                                                                           : raw_code(&p->from, source, col);
    int is_nan =
        p->format == WEIGHT_BF16 ? (code & 0x7fff) >= 0x7f80 : p->format == WEIGHT_FP8 && (code & 0x7f) == 0x7f;
    if (is_nan) atomic_min_u32(p->fault, p->number);
    return code;
}

KERNEL(repack_tiles, repack_params) {
    struct place at;
    if (!find_place(&p, &at, p.to.slabs)) return;
    int bits = format_bits(p.format);
    uint8_t *to = (uint8_t *)p.to.data + (size_t)at.group * p.to.data_step;
    to += ((size_t)at.tile * (size_t)p.to.slabs + (size_t)at.slab) * (size_t)(bits * 128) + (size_t)at.lane * 16;
    for (int w = 0; w < bits; w++) {
        uint32_t word = 0;
        for (int slot = 0; slot < 32 / bits; slot++) {
            struct origin from = origin_of(w, slot, bits);
            if (!(p.halves >> from.half & 1)) continue; /* the other matrix's */
            int row = tile_row(&p, at.tile, at.lane / 4 + 8 * from.half);
            int k = at.slab * SLAB_COLS + from.step * 16 + at.lane % 4 * 4 + from.column;
            word |= tile_code(&p, at.group, row, k) << (slot * bits);
        }
        uint32_t *out = (uint32_t *)(to + w / 4 * 512) + w % 4;
        *out = p.halves == 2 ? *out | word : word;
    }
}

/* Scales as [row tile][group][16]; a thread has one of 32 / 2 rows of a group: lanes 16 and up rest. */
KERNEL(repack_scales, repack_params) {
    struct place at;
    if (!find_place(&p, &at, p.to.scale_groups) || at.lane >= TILE_ROWS || !(p.halves >> at.lane / 8 & 1)) return;
    int row = tile_row(&p, at.tile, at.lane), group = at.slab,
        k = p.to.group_shift == 31 ? 0 : group << p.to.group_shift;
    int source = p.row_offset + row;
    size_t to = ((size_t)at.tile * (size_t)p.to.scale_groups + (size_t)group) * TILE_ROWS + (size_t)at.lane;
    if (p.format == WEIGHT_FP8) {
        ((float *)p.to.scale)[to] = row < 0 ? 0 : fp8_scale(&p.from, source, k);
    } else if (p.format == WEIGHT_AWQ) {
        uint32_t bits =
            row < 0 ? 0 : awq_scale(&p.from, source, group) | awq_code(&p.from, p.from.zeros, source, group) << 16;
        ((uint32_t *)p.to.scale)[to] = bits;
    } else {
        ((uint16_t *)p.to.scale)[to] = (uint16_t)(row < 0 ? 0 : block_scale(&p.from, source - p.from.row0, k));
    }
}

/* Rows as they are, in fp32 or bf16: embedding and router. A block a row. */
KERNEL(repack_rows, repack_params) {
    size_t at = (size_t)(p.from.row0 + BLOCK) * (size_t)p.from.cols;
    for (int k = THREAD; k < p.from.cols; k += BLOCK_THREADS) {
        float value = raw_value(&p.from, p.from.row0 + BLOCK, k);
        if (!is_finite(value)) atomic_min_u32(p.fault, p.number);
        if (p.target == REPACK_ROWS_BF16) {
            ((uint16_t *)p.to.data)[at + k] = bf16_bits(value);
        } else {
            ((float *)p.to.data)[at + k] = value;
        }
    }
}
