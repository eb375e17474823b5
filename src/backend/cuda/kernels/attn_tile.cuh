/* backend/cuda/kernels/attn_tile.cuh - what a block of absorbed attention does with a tile of keys in shared memory, wherever they come
 * from: scores of 16 queries, one step of their running softmaxes, and the values added up; and how splits are merged. attn.cu
 * walks along a sequence, listed.cu along a list of rows: the same keys in the same order give the same bits. Includes: cache.cuh,
 * csa2.cuh, merge.cuh. */
#ifndef MOEBIUS_CUDA_ATTN_TILE_CUH
#define MOEBIUS_CUDA_ATTN_TILE_CUH

#include "cache.cuh"
#include "csa2.cuh"
#include "merge.cuh"

enum {
    SCORE_STRIDE = TOKEN_TILE + 4,
    WEIGHT_STRIDE = TOKEN_TILE + 8,
    VALUE_PAIRS = MAX_KV_LORA / 16 / BLOCK_WARPS, /* pairs of 8 value columns that a warp owns, at most */
    SPLIT_TILES = SPLIT_TOKENS / TOKEN_TILE,
};

/* Where things are in shared memory, and what rows are like. */
struct attn_tile {
    const struct attn_params *p;
    int width, stride;       /* values of a row, and between rows of shared memory */
    uint16_t *query;         /* [16][stride] */
    uint16_t *tile, *other;  /* [TOKEN_TILE][stride]; fp8: one */
    uint8_t *raw;            /* [TOKEN_TILE][row_bytes] fp8 */
    float *score;            /* [2][16][SCORE_STRIDE] halves of the sums */
    uint16_t *weight;        /* [16][WEIGHT_STRIDE] bf16 */
    float *max, *sum, *keep; /* [16] */
};

/* Returns where shared memory is free. */
DEVICE unsigned char *lay_out(struct attn_tile *b, unsigned char *shared, const int fp8) {
    size_t row = (size_t)b->stride * 2;
    b->query = (uint16_t *)shared;
    shared += QUERY_TILE * row;
    b->tile = (uint16_t *)shared;
    shared += TOKEN_TILE * row;
    b->other = (uint16_t *)shared;
    b->raw = shared;
    shared += fp8 ? TOKEN_TILE * b->p->row_bytes : TOKEN_TILE * row;
    b->score = (float *)shared;
    b->max = b->score + 2 * QUERY_TILE * SCORE_STRIDE;
    b->sum = b->max + QUERY_TILE;
    b->keep = b->sum + QUERY_TILE;
    b->weight = (uint16_t *)(b->keep + QUERY_TILE);
    return (unsigned char *)(b->weight + QUERY_TILE * WEIGHT_STRIDE);
}

/* An fp8 row's first `kv_lora` values with their scales, as bf16; the rope part is bf16 already. */
DEVICE void widen_tile(const struct attn_tile *b, int kv_lora) {
    int pieces = b->width / 4;
    for (int i = THREAD; i < TOKEN_TILE * pieces; i += BLOCK_THREADS) {
        int t = i / pieces, c = i % pieces * 4;
        const uint8_t *row = b->raw + (size_t)t * b->p->row_bytes;
        struct pair out;
        if (c < kv_lora) {
            out = fp8_latent(row, kv_lora, c);
        } else { /* four bytes at a time: a multiple of 8 comes before it in some models only */
            const uint32_t *rope = (const uint32_t *)(row + rope_offset(kv_lora, 1) + (c - kv_lora) * 2);
            out.v[0] = rope[0];
            out.v[1] = rope[1];
        }
        *(struct pair *)(b->tile + t * b->stride + c) = out;
    }
}

/* V4.1's rows, of which the first `far` are compressed ones. */
DEVICE void widen_csa2_tile(const struct attn_tile *b, int far) {
    int pieces = b->width / 4;
    for (int i = THREAD; i < TOKEN_TILE * pieces; i += BLOCK_THREADS) {
        int t = i / pieces, c = i % pieces * 4;
        const uint8_t *row = b->raw + (size_t)t * b->p->row_bytes;
        *(struct pair *)(b->tile + t * b->stride + c) =
            t < far ? csa2_far_values(row, b->width, c) : csa2_row_values(row, b->width, c);
    }
}

/* Scores of 16 queries and 32 tokens: a warp has 8 tokens and half of the columns. */
DEVICE void score_tile(const struct attn_tile *b, const uint16_t *tile) {
    int steps = b->width / 16, half = WARP / 4, first = half ? steps / 2 : 0, end = half ? steps : steps / 2;
    const uint16_t *key = tile + (WARP % 4 * 8 + LANE / 4) * b->stride + LANE % 4 * 2;
    const uint16_t *query = b->query + (LANE % 16) * b->stride + LANE / 16 * 8;
    float sum[4] = {0, 0, 0, 0};
    for (int i = first; i < end; i++) {
        uint32_t a[4];
        load_tiles(a, query + i * 16);
        mma_bf16(sum, a, *(const uint32_t *)(key + i * 16), *(const uint32_t *)(key + i * 16 + 8));
    }
    float *score = b->score + half * QUERY_TILE * SCORE_STRIDE + WARP % 4 * 8 + LANE % 4 * 2;
    UNROLL
    for (int i = 0; i < 4; i++) score[(LANE / 4 + i / 2 * 8) * SCORE_STRIDE + i % 2] = sum[i];
}

/* One online step for query q, a warp's; a lane has a token, of which those up to `last` are seen. */
DEVICE void softmax_step(const struct attn_tile *b, int q, int t0, int last) {
    float s = b->score[q * SCORE_STRIDE + LANE] + b->score[(QUERY_TILE + q) * SCORE_STRIDE + LANE];
    s = t0 + LANE <= last ? s * b->p->scale : -INFINITY;
    float old = b->max[q], max = fmaxf(old, warp_max(s));
    float weight = max == -INFINITY ? 0.0f : expf(s - max), keep = old == max ? 1.0f : expf(old - max);
    float sum = warp_sum(weight);
    b->weight[q * WEIGHT_STRIDE + LANE] = bf16_bits(weight);
    warp_barrier(); /* all lanes have read the old maximum: shuffles do not promise that */
    if (LANE) return;
    b->keep[q] = keep;
    b->max[q] = max;
    b->sum[q] = fmaf(b->sum[q], keep, sum);
}

DEVICE void scale_values(float (*acc)[2][4], float low, float high) {
    UNROLL
    for (int j = 0; j < VALUE_PAIRS; j++) {
        UNROLL
        for (int i = 0; i < 8; i++) acc[j][i / 4][i % 4] *= i % 4 < 2 ? low : high;
    }
}

/* acc = acc * keep + weights x values; a warp owns pairs warp, warp + 8, ... of 16 columns. */
DEVICE void add_values(const struct attn_tile *b, const uint16_t *tile, float (*acc)[2][4]) {
    scale_values(acc, b->keep[LANE / 4], b->keep[LANE / 4 + 8]);
    UNROLL
    for (int step = 0; step < TOKEN_TILE / 16; step++) {
        uint32_t a[4], v[4];
        load_tiles(a, b->weight + (LANE % 16) * WEIGHT_STRIDE + step * 16 + LANE / 16 * 8);
        UNROLL
        for (int j = 0; j < VALUE_PAIRS; j++) {
            int c = (j * BLOCK_WARPS + WARP) * 16;
            if (c >= b->p->kv_lora) continue;
            load_tiles_turned(v, tile + (step * 16 + LANE % 16) * b->stride + c + LANE / 16 * 8);
            mma_bf16(acc[j][0], a, v[0], v[1]);
            mma_bf16(acc[j][1], a, v[2], v[3]);
        }
    }
}

/* Takes a finished split into the block's result; the running softmax begins anew. */
DEVICE void merge_split(const struct attn_tile *b, int is_first, struct softmax *state, float (*total)[2][4],
                        float (*acc)[2][4]) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        int q = LANE / 4 + 8 * h;
        float keep = 0, take = 1;
        if (is_first) {
            state[h].max = b->max[q];
            state[h].sum = b->sum[q];
        } else {
            softmax_merge(&state[h], b->max[q], b->sum[q], &keep, &take);
        }
        UNROLL
        for (int j = 0; j < VALUE_PAIRS; j++) {
            UNROLL
            for (int i = 0; i < 4; i++) {
                float *value = &total[j][i / 2][2 * h + i % 2], *part = &acc[j][i / 2][2 * h + i % 2];
                *value = is_first ? *part : fmaf(*value, keep, *part * take);
                *part = 0;
            }
        }
    }
}

DEVICE void clear_softmax(const struct attn_tile *b) {
    if (THREAD >= QUERY_TILE) return;
    b->max[THREAD] = -INFINITY;
    b->sum[THREAD] = 0;
}

/* Query q's result, `h` its half of the tile: sums, then maximum and sum. */
DEVICE void store_query(const struct attn_tile *b, float *out, int h, const struct softmax *state, float (*total)[2][4]) {
    UNROLL
    for (int j = 0; j < VALUE_PAIRS; j++) {
        int c = (j * BLOCK_WARPS + WARP) * 16 + LANE % 4 * 2;
        if (c >= b->p->kv_lora) continue;
        UNROLL
        for (int i = 0; i < 4; i++) out[c + i / 2 * 8 + i % 2] = total[j][i / 2][2 * h + i % 2];
    }
    if (WARP == 0 && LANE % 4 == 0) {
        out[b->p->kv_lora] = state[h].max;
        out[b->p->kv_lora + 1] = state[h].sum;
    }
}

#endif
