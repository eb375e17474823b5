/* A checkpoint's bytes into the kernels' order (params.h), on the device: the host only copies. A thread writes one lane's
 * share of a tile. */
#include "e4m3.cuh"
#include "gguf.cuh"
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

/* Whose values these are: 2^(byte - 127). */
DEVICE uint32_t fp4_exponent(const struct raw_matrix *m, int row, int k) {
    return m->scale[(size_t)(row - m->row0) * (size_t)(m->cols / 32) + (size_t)(k / 32)];
}

DEVICE const uint8_t *raw_block(const struct raw_matrix *m, int row, int k) {
    return gguf_block(m->data, m->format, m->cols, row - m->row0, k);
}

/* The stored bits of a value; `row` is the whole matrix's. */
DEVICE uint32_t raw_code(const struct raw_matrix *m, int row, int k) {
    size_t at = (size_t)(row - m->row0) * (size_t)m->cols + (size_t)k;
    if (is_gguf(m->format)) return gguf_code(m->format, raw_block(m, row, k), k % gguf_values(m->format));
    switch (m->format) {
    case RAW_F32:
        return ((const uint32_t *)m->data)[at];
    case RAW_F16:
    case RAW_BF16:
        return ((const uint16_t *)m->data)[at];
    case RAW_FP8:
        return m->data[at];
    case RAW_FP4:
        return m->data[at / 2] >> at % 2 * 4 & 15u;
    case RAW_AWQ:
        return awq_code(m, (const uint32_t *)m->data, row, k);
    default:
        return (uint32_t)block_code(m, row - m->row0, k);
    }
}

DEVICE float raw_value(const struct raw_matrix *m, int row, int k) {
    if (is_gguf(m->format)) return gguf_value_at(m->data, m->format, m->cols, row - m->row0, k);
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
    case RAW_FP4:
        return e2m1_value(code) * exponent_value(fp4_exponent(m, row, k));
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

/* Word w of a lane's share of a tile: where it lies, which bits of values it holds, and its number among words like it. */
struct lane_word {
    int at, bits, shift, index;
};
DEVICE struct lane_word lane_word_of(const struct repack_params *p, int w, int lane) {
    struct lane_word plain = {w / 4 * 512 + lane * 16 + w % 4 * 4, format_bits(p->format), 0, w};
    struct lane_word four = {lane * 16 + w * 4, 4, 0, w};
    struct lane_word two = {lane * 8 + w * 4, 2, 0, w}, one = {256 + lane * 4, 1, 2, 0};
    if (!is_blocks(p->format)) return plain;
    if (p->format == WEIGHT_BITS3) return w < 2 ? two : one;
    if (w < 4) return four;
    two.at += 512 - 16;
    two.shift = 4;
    two.index = w - 4;
    one.at = 512 + lane * 4;
    one.shift = 4;
    return p->format == WEIGHT_BITS6 ? two : one;
}

KERNEL(repack_tiles, repack_params) {
    struct place at;
    if (!find_place(&p, &at, p.to.slabs)) return;
    int words = is_blocks(p.format) ? planes_bits(p.to.coding, p.format) : format_bits(p.format);
    uint8_t *to = (uint8_t *)p.to.data + (size_t)at.group * p.to.data_step;
    to += ((size_t)at.tile * (size_t)p.to.slabs + (size_t)at.slab) * (size_t)(words * 128);
    for (int w = 0; w < words; w++) {
        struct lane_word here = lane_word_of(&p, w, at.lane);
        uint32_t word = 0, mask = (1u << here.bits) - 1;
        for (int slot = 0; slot < 32 / here.bits; slot++) {
            struct origin from = origin_of(here.index, slot, here.bits);
            if (!(p.halves >> from.half & 1)) continue; /* the other matrix's */
            int row = tile_row(&p, at.tile, at.lane / 4 + 8 * from.half);
            int k = at.slab * SLAB_COLS + from.step * 16 + at.lane % 4 * 4 + from.column;
            word |= (tile_code(&p, at.group, row, k) >> here.shift & mask) << (slot * here.bits);
        }
        uint32_t *out = (uint32_t *)(to + here.at);
        *out = p.halves == 2 ? *out | word : word;
    }
}

/* fp16 bits of a block's d, or (low) of m or dmin. */
DEVICE uint32_t block_half(const struct repack_params *p, int row, int k, int low) {
    if (k >= p->to.cols) return 0;
    const uint8_t *block = raw_block(&p->from, row, k);
    uint32_t bits = low ? gguf_m(p->from.format, block) : gguf_d(p->from.format, block);
    if ((bits & 0x7c00) == 0x7c00) atomic_min_u32(p->fault, p->number);
    return bits;
}
/* The scale of the 16 or 32 k at k, as a block has it, and its minimum. */
DEVICE uint32_t small_scale(const struct repack_params *p, int row, int k, int each) {
    return (uint32_t)gguf_scale(p->from.format, raw_block(&p->from, row, k), k % 256 / each) & 0xff;
}
DEVICE uint32_t small_minimum(const struct repack_params *p, int row, int k, int each) {
    return (uint32_t)gguf_minimum(p->from.format, raw_block(&p->from, row, k), k % 256 / each);
}

/* The exponent of the 32 k at k. */
DEVICE uint32_t block_exponent(const struct repack_params *p, int row, int k) {
    if (k >= p->to.cols) return 0;
    uint32_t e = p->from.format == RAW_FP4 ? fp4_exponent(&p->from, row, k) : raw_block(&p->from, row, k)[0];
    if (e == 255) atomic_min_u32(p->fault, p->number);
    return e;
}

/* A word of codes: those from k on (enum scale_coding). */
DEVICE uint32_t codes_word(const struct repack_params *p, int row, int k) {
    uint32_t word = 0;
    int coding = p->to.coding;
    if (coding == CODE_HALF || coding == CODE_HALF_LOW) {
        return block_half(p, row, k, 0) | block_half(p, row, k + 32, 0) << 16;
    }
    if (coding == CODE_BYTE_LOW) {
        return small_scale(p, row, k, 32) | small_scale(p, row, k + 32, 32) << 8 | small_minimum(p, row, k, 32) << 16 |
               small_minimum(p, row, k + 32, 32) << 24;
    }
    if (coding == CODE_EXPONENT) {
        for (int i = 0; i < 4; i++) word |= block_exponent(p, row, k + i * 32) << 8 * i;
        return word;
    }
    int each = coding == CODE_BYTE_32 ? 32 : 16;
    for (int i = 0; i < 4; i++) {
        uint32_t code = small_scale(p, row, k + i * each, each);
        if (coding == CODE_NIBBLE_LOW) code |= small_minimum(p, row, k + i * each, each) << 4;
        word |= code << 8 * i;
    }
    return word;
}

/* A row of a chunk of scales. */
DEVICE void repack_chunk(const struct repack_params *p, const struct place *at, int row) {
    const struct device_matrix *to = &p->to;
    uint8_t *chunk = (uint8_t *)chunk_of(to, to->scale, at->tile, 0) + (size_t)at->slab * (size_t)to->chunk_bytes;
    int k = at->slab << to->group_shift, source = p->row_offset + row, bytes = beside_bytes(to->coding);
    int rows = beside_at(to) / (4 * TILE_ROWS), span = is_of_128(to->coding) ? 128 : 64;
    for (int i = 0; i < rows; i++) {
        ((uint32_t *)chunk)[i * TILE_ROWS + at->lane] = row < 0 ? 0 : codes_word(p, source, k + i * span);
    }
    if (!bytes) return;
    uint32_t beside = 0;
    if (row >= 0 && to->coding == CODE_HALF_LOW) {
        beside = block_half(p, source, k, 1) | block_half(p, source, k + 32, 1) << 16;
    } else if (row >= 0) {
        beside = block_half(p, source, k, 0) | block_half(p, source, k, 1) << 16;
    }
    chunk += beside_at(to);
    if (bytes == 4) {
        ((uint32_t *)chunk)[at->lane] = beside;
    } else {
        ((uint16_t *)chunk)[at->lane] = (uint16_t)beside;
    }
}

/* The scale that goes with INT4's and INT8's values. */
DEVICE uint32_t half_scale(const struct repack_params *p, int row, int k) {
    return is_gguf(p->from.format) ? block_half(p, row, k, 0) : block_scale(&p->from, row - p->from.row0, k);
}

/* Scales as [row tile][group][16]; a thread has one of 32 / 2 rows of a group: lanes 16 and up rest. */
KERNEL(repack_scales, repack_params) {
    struct place at;
    if (!find_place(&p, &at, p.to.scale_groups) || at.lane >= TILE_ROWS || !(p.halves >> at.lane / 8 & 1)) return;
    int row = tile_row(&p, at.tile, at.lane), group = at.slab,
        k = p.to.group_shift == 31 ? 0 : group << p.to.group_shift;
    int source = p.row_offset + row;
    size_t to = ((size_t)at.tile * (size_t)p.to.scale_groups + (size_t)group) * TILE_ROWS + (size_t)at.lane;
    if (is_blocks(p.format)) {
        repack_chunk(&p, &at, row);
    } else if (p.format == WEIGHT_FP8) {
        ((float *)p.to.scale)[to] = row < 0 ? 0 : fp8_scale(&p.from, source, k);
    } else if (p.format == WEIGHT_AWQ) {
        uint32_t bits =
            row < 0 ? 0 : awq_scale(&p.from, source, group) | awq_code(&p.from, p.from.zeros, source, group) << 16;
        ((uint32_t *)p.to.scale)[to] = bits;
    } else {
        ((uint16_t *)p.to.scale)[to] = (uint16_t)(row < 0 ? 0 : half_scale(&p, source, k));
    }
}

/* A row of blocks as it lies in the file. */
DEVICE void copy_blocks(const struct repack_params *p, int row) {
    size_t bytes = (size_t)(p->from.cols / gguf_values(p->from.format)) * (size_t)gguf_bytes(p->from.format);
    const uint8_t *from = p->from.data + (size_t)(row - p->from.row0) * bytes;
    uint8_t *to = (uint8_t *)p->to.data + (size_t)row * bytes;
    for (size_t i = (size_t)THREAD; i < bytes; i += BLOCK_THREADS) to[i] = from[i];
}

/* Rows as they are, in fp32, bf16 or blocks: embedding and router. A block a row. */
KERNEL(repack_rows, repack_params) {
    size_t at = (size_t)(p.from.row0 + BLOCK) * (size_t)p.from.cols;
    for (int k = THREAD; k < p.from.cols; k += BLOCK_THREADS) {
        float value = raw_value(&p.from, p.from.row0 + BLOCK, k);
        if (!is_finite(value)) atomic_min_u32(p.fault, p.number);
        if (p.target == REPACK_ROWS_BLOCKS) continue;
        if (p.target == REPACK_ROWS_BF16) {
            ((uint16_t *)p.to.data)[at + k] = bf16_bits(value);
        } else {
            ((float *)p.to.data)[at + k] = value;
        }
    }
    if (p.target == REPACK_ROWS_BLOCKS) copy_blocks(&p, p.from.row0 + BLOCK);
}
