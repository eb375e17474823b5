/* Random weights in the kernels' own order, for benches of models that nobody has downloaded: distinct, incompressible, of the
 * size that keeps a residual stream finite. No host memory, and as quick as the card writes. */
#include "../params_bench.h"
#include "blocks.cuh"
#include "layout.cuh"

/* The finaliser of SplitMix64 (Steele, Lea, Flood 2014) over a counter. */
DEVICE uint64_t hash_at(uint64_t stream, uint64_t at) {
    uint64_t z = stream + (at + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

DEVICE struct quad random_quad(uint64_t stream, uint64_t at) {
    uint64_t low = hash_at(stream, 2 * at), high = hash_at(stream, 2 * at + 1);
    struct quad q = {{(uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32)}};
    return q;
}

DEVICE uint32_t bf16_word(uint32_t word, float step) {
    float low = (float)(int16_t)(word & 0xffff) + 0.5f, high = (float)(int16_t)(word >> 16) + 0.5f;
    return pack_bf16(low * step, high * step);
}

/* Random bits as weights that there are: no NaN in FP8, no -128 in INT8. */
DEVICE uint32_t legal_word(uint32_t word, int format, float step) {
    if (format == WEIGHT_BF16) return bf16_word(word, step);
    if (format != WEIGHT_FP8 && format != WEIGHT_INT8) return word;
    uint32_t out = 0;
    for (int i = 0; i < 32; i += 8) {
        uint32_t byte = word >> i & 0xff;
        if (format == WEIGHT_FP8) byte -= (byte & 0x7f) == 0x7f;
        if (format == WEIGHT_INT8) byte += byte == 0;
        out |= byte << i;
    }
    return out;
}

/* What lies past the last row or column becomes zero. */
DEVICE uint32_t clear_outside(const struct generate_params *p, uint32_t value, int word, int tile, int slab) {
    int bits = format_bits(p->format);
    for (int slot = 0; slot < 32 / bits; slot++) {
        struct origin from = origin_of(word, slot, bits);
        int row = LANE / 4 + (p->tile_rows == TILE_ROWS ? 8 * from.half : 0);
        int k = slab * SLAB_COLS + from.step * 16 + LANE % 4 * 4 + from.column;
        if (tile * p->tile_rows + row < p->to.rows && k < p->to.cols) continue;
        uint32_t mask = (bits == 16 ? 0xffffu : bits == 8 ? 0xffu : 0xfu) << (slot * bits);
        value = (value & ~mask) | format_zero(p->format) << (slot * bits);
    }
    return value;
}

/* A warp a tile. */
KERNEL(generate_tiles, generate_params) {
    int at = BLOCK * BLOCK_WARPS + WARP, tile = at / p.to.slabs, slab = at % p.to.slabs, blocks = is_blocks(p.format);
    int words = blocks ? planes_bits(p.to.coding, p.format) : format_bits(p.format);
    if (tile >= p.to.row_tiles) return;
    /* what lies outside meets activations that are zero: blocks, whose scales are numbers, may be anything there */
    int edge = !blocks && ((tile + 1) * p.tile_rows > p.to.rows || (slab + 1) * SLAB_COLS > p.to.cols);
    uint8_t *to = (uint8_t *)p.to.data + (size_t)at * (size_t)(words * 128) + LANE * 16;
    for (int w = 0; w < words; w += 4) {
        if (w * 128 + LANE * 16 >= words * 128) continue; /* planes are no whole number of quads a lane */
        struct quad q = random_quad(p.stream, ((uint64_t)at * 4 + (uint64_t)(w / 4)) * 32 + (uint64_t)LANE);
        for (int i = 0; i < 4; i++) {
            q.v[i] = legal_word(q.v[i], p.format, p.step);
            if (edge) q.v[i] = clear_outside(&p, q.v[i], w + i, tile, slab);
        }
        *(struct quad *)(to + w * 128) = q;
    }
}

/* A chunk's numbers of one row: codes of about one size, and d and dmin that fit them. */
DEVICE void generate_chunk(const struct generate_params *p, int at, int row) {
    const struct device_matrix *to = &p->to;
    uint8_t *chunk = (uint8_t *)to->scale + (size_t)(at / TILE_ROWS) * (size_t)to->chunk_bytes;
    for (int i = 0; i < beside_at(to) / (4 * TILE_ROWS); i++) {
        uint64_t word = hash_at(~p->stream, (uint64_t)at * 4 + (uint64_t)i);
        uint32_t codes =
            p->scale_low | p->scale_low << 16 | ((uint32_t)word & 0x80008000u); /* CODE_HALF: either sign */
        if (to->coding == CODE_EXPONENT) { /* this one or the next */
            codes = p->scale_low * 0x01010101u;
            for (int j = 0; j < 4; j++) codes += (uint32_t)((word >> 16 * j & 0xffff) < p->scale_span) << 8 * j;
        } else if (to->coding == CODE_BYTE_LOW) { /* 32 to 63, and minimums of the same size */
            codes = ((uint32_t)word & 0x1f1fu) + 0x2020u;
            codes |= codes << 16;
        } else if (to->coding == CODE_BYTE) { /* 64 to 127, either sign */
            codes = ((uint32_t)word & 0x3f3f3f3fu) + 0x40404040u;
            codes ^= ((uint32_t)(word >> 32) & 0x01010101u) * 0xffu;
        }
        ((uint32_t *)chunk)[i * TILE_ROWS + row] = codes;
    }
    chunk += beside_at(to);
    if (beside_bytes(to->coding) == 4) ((uint32_t *)chunk)[row] = p->scale_low | p->low_bits << 16;
    if (beside_bytes(to->coding) == 2) ((uint16_t *)chunk)[row] = (uint16_t)p->scale_low;
}

/* A thread a scale; those of INT4 and INT8 have either sign, as the values' own mean is not quite zero. */
KERNEL(generate_scales, generate_params) {
    int at = BLOCK * BLOCK_THREADS + THREAD, tile = at / TILE_ROWS / p.to.scale_groups, row = at % TILE_ROWS;
    if (tile >= p.to.row_tiles) return;
    if (is_blocks(p.format)) {
        generate_chunk(&p, at, row);
        return;
    }
    uint64_t word = hash_at(~p.stream, (uint64_t)at);
    uint32_t bits = p.scale_low + (uint32_t)((word >> 32) * p.scale_span >> 32);
    int outside = tile * p.tile_rows + (p.tile_rows == TILE_ROWS ? row : row % 8) >= p.to.rows;
    if (p.format == WEIGHT_FP8) {
        ((uint32_t *)p.to.scale)[at] = outside ? 0 : bits;
    } else {
        ((uint16_t *)p.to.scale)[at] = (uint16_t)(outside ? 0 : bits | (uint32_t)(word & 1) << 15);
    }
}

/* Rows that are looked up one by one, bf16: eight values a thread. */
KERNEL(generate_rows, generate_params) {
    size_t first = ((size_t)BLOCK * BLOCK_THREADS + (size_t)THREAD) * 8;
    struct quad q = random_quad(p.stream, first / 8);
    UNROLL
    for (int i = 0; i < 8; i++) {
        uint32_t word = bf16_word(q.v[i / 2], p.step);
        if (first + (size_t)i < p.count) {
            ((uint16_t *)p.to.data)[first + (size_t)i] = (uint16_t)(i % 2 ? word >> 16 : word);
        }
    }
}
