/* Absorbed latent attention: 16 (row, head) pairs of a sequence against splits of 256 cached tokens. A cached row is read
 * once and used twice, whole as a key and its first kv_lora values as a value. Splits stand at fixed positions and each runs
 * its own softmax; where a block has several they are merged one after another, as merge.cuh does for blocks apart. So a row's
 * result depends on its own tokens only. */
#include "cache.cuh"
#include "merge.cuh"
#include "rope.cuh"

enum {
    SCORE_STRIDE = TOKEN_TILE + 4,
    WEIGHT_STRIDE = TOKEN_TILE + 8,
    VALUE_PAIRS = MAX_KV_LORA / 16 / BLOCK_WARPS, /* pairs of 8 value columns that a warp owns, at most */
    SPLIT_TILES = SPLIT_TOKENS / TOKEN_TILE,
};

/* Where things are in shared memory, and what the block works on. */
struct attn_block {
    const struct attn_params *p;
    struct attn_item item;
    int width, stride;       /* values of a row, and between rows of shared memory */
    int tokens;              /* cached tokens that any of the queries sees */
    uint16_t *query;         /* [16][stride] */
    uint16_t *tile, *other;  /* [TOKEN_TILE][stride]; fp8: one */
    uint8_t *raw;            /* [TOKEN_TILE][row_bytes] fp8 */
    float *score;            /* [2][16][SCORE_STRIDE] halves of the sums */
    uint16_t *weight;        /* [16][WEIGHT_STRIDE] bf16 */
    float *max, *sum, *keep; /* [16] */
};

DEVICE void lay_out(struct attn_block *b, unsigned char *shared, const int fp8) {
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
}

/* Row of the sequence and head of query i; row is n_rows or more past the end. */
DEVICE int query_row(const struct attn_block *b, int i) {
    return (b->item.query + i) / b->p->heads;
}
DEVICE int query_head(const struct attn_block *b, int i) {
    return (b->item.query + i) % b->p->heads;
}

DEVICE void load_queries(const struct attn_block *b) {
    int pieces = b->width / 8;
    for (int i = THREAD; i < QUERY_TILE * pieces; i += BLOCK_THREADS) {
        int q = i / pieces, c = i % pieces * 8, row = query_row(b, q);
        struct quad value = {{0, 0, 0, 0}};
        if (row < b->item.n_rows) {
            size_t at = (size_t)(b->item.first_row + row) * (size_t)b->p->heads + (size_t)query_head(b, q);
            value = *(const struct quad *)(b->p->q_latent + at * (size_t)b->width + c);
        }
        *(struct quad *)(b->query + q * b->stride + c) = value;
    }
}

/* Starts copying the tile of tokens from t0 on; rows past the last token become zeros. */
DEVICE void fetch_tile(const struct attn_block *b, uint8_t *to, size_t to_stride, int t0) {
    int pieces = (int)(b->p->row_bytes / 16);
    const uint8_t *page =
        b->p->cache + (size_t)b->p->page_table[b->item.pages + t0 / PAGE_TOKENS] * PAGE_TOKENS * b->p->row_bytes;
    for (int i = THREAD; i < TOKEN_TILE * pieces; i += BLOCK_THREADS) {
        int t = i / pieces, c = i % pieces * 16;
        uint8_t *at = to + (size_t)t * to_stride + c;
        if (t0 + t < b->tokens) {
            copy_async(at, page + (size_t)((t0 + t) % PAGE_TOKENS) * b->p->row_bytes + c);
        } else {
            struct quad zero = {{0, 0, 0, 0}};
            *(struct quad *)at = zero;
        }
    }
    copy_commit();
}

/* An fp8 row's values with their scales, as bf16; the rope part is bf16 already. */
DEVICE void widen_tile(const struct attn_block *b) {
    int kv_lora = b->p->kv_lora, pieces = b->width / 4;
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

/* Scores of 16 queries and 32 tokens: a warp has 8 tokens and half of the columns. */
DEVICE void score_tile(const struct attn_block *b, const uint16_t *tile) {
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

/* One online step for queries 2 w and 2 w + 1; a lane has a token. */
DEVICE void softmax_tile(const struct attn_block *b, int t0) {
    UNROLL
    for (int i = 0; i < 2; i++) {
        int q = WARP * 2 + i, pos = b->item.first_pos + query_row(b, q);
        float s = b->score[q * SCORE_STRIDE + LANE] + b->score[(QUERY_TILE + q) * SCORE_STRIDE + LANE];
        s = t0 + LANE <= pos ? s * b->p->scale : -INFINITY;
        float old = b->max[q], max = fmaxf(old, warp_max(s));
        float weight = max == -INFINITY ? 0.0f : expf(s - max), keep = old == max ? 1.0f : expf(old - max);
        float sum = warp_sum(weight);
        b->weight[q * WEIGHT_STRIDE + LANE] = bf16_bits(weight);
        warp_barrier(); /* all lanes have read the old maximum: shuffles do not promise that */
        if (LANE) continue;
        b->keep[q] = keep;
        b->max[q] = max;
        b->sum[q] = fmaf(b->sum[q], keep, sum);
    }
}

DEVICE void scale_values(float (*acc)[2][4], float low, float high) {
    UNROLL
    for (int j = 0; j < VALUE_PAIRS; j++) {
        UNROLL
        for (int i = 0; i < 8; i++) acc[j][i / 4][i % 4] *= i % 4 < 2 ? low : high;
    }
}

/* acc = acc * keep + weights x values; a warp owns pairs warp, warp + 8, ... of 16 columns. */
DEVICE void add_values(const struct attn_block *b, const uint16_t *tile, float (*acc)[2][4]) {
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
DEVICE void merge_split(const struct attn_block *b, int is_first, struct softmax *state, float (*total)[2][4],
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

DEVICE void clear_softmax(const struct attn_block *b) {
    if (THREAD >= QUERY_TILE) return;
    b->max[THREAD] = -INFINITY;
    b->sum[THREAD] = 0;
}

DEVICE void store_partial(const struct attn_block *b, const struct softmax *state, float (*total)[2][4]) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        int q = LANE / 4 + 8 * h, row = query_row(b, q);
        if (row >= b->item.n_rows || b->item.split0 > (b->item.first_pos + row) / SPLIT_TOKENS) continue;
        size_t slot = (size_t)(b->p->slot_first[b->item.first_row + row] + b->item.slot);
        size_t at = (slot * (size_t)b->p->heads + (size_t)query_head(b, q)) * (size_t)(b->p->kv_lora + 2);
        float *out = b->p->partial + at;
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
}

DEVICE void attend(const struct attn_params *p, const int fp8) {
    DYNAMIC_SHARED(unsigned char, shared);
    struct attn_block b;
    b.p = p;
    after_previous();
    b.item = p->items[BLOCK];
    if (b.item.n_rows == 0) return; /* lists are filled up to the length that a recorded step has */
    b.width = p->kv_lora + p->rope;
    b.stride = b.width + 8;
    int last_row = min_int(query_row(&b, QUERY_TILE - 1), b.item.n_rows - 1);
    b.tokens = min_int(b.item.first_pos + last_row + 1, b.item.split1 * SPLIT_TOKENS);
    lay_out(&b, shared, fp8);
    load_queries(&b);
    clear_softmax(&b);

    float acc[VALUE_PAIRS][2][4], total[VALUE_PAIRS][2][4];
    struct softmax state[2];
    UNROLL
    for (int j = 0; j < VALUE_PAIRS; j++) {
        UNROLL
        for (int i = 0; i < 8; i++) acc[j][i / 4][i % 4] = total[j][i / 4][i % 4] = 0;
    }
    size_t to_stride = fp8 ? p->row_bytes : (size_t)b.stride * 2;
    int first = b.item.split0 * SPLIT_TILES, end = ceil_div_int(b.tokens, TOKEN_TILE), is_first = 1;
    fetch_tile(&b, fp8 ? b.raw : (uint8_t *)b.tile, to_stride, first * TOKEN_TILE);
    for (int i = first; i < end; i++) {
        uint16_t *tile = fp8 || (i - first) % 2 == 0 ? b.tile : b.other;
        uint16_t *next = (i - first) % 2 == 0 ? b.other : b.tile;
        if (!fp8 && i + 1 < end) fetch_tile(&b, (uint8_t *)next, to_stride, (i + 1) * TOKEN_TILE);
        if (!fp8 && i + 1 < end) {
            copy_wait_all_but_one();
        } else {
            copy_wait_all();
        }
        barrier();
        if (fp8) {
            widen_tile(&b);
            barrier();
            if (i + 1 < end) fetch_tile(&b, b.raw, to_stride, (i + 1) * TOKEN_TILE);
        }
        score_tile(&b, tile);
        barrier();
        softmax_tile(&b, i * TOKEN_TILE);
        barrier();
        add_values(&b, tile, acc);
        if (i % SPLIT_TILES == SPLIT_TILES - 1 || i == end - 1) {
            merge_split(&b, is_first, state, total, acc);
            is_first = 0;
            barrier();
            clear_softmax(&b);
        }
        barrier(); /* the tile may be overwritten */
    }
    store_partial(&b, state, total);
}

KERNEL(attn_bf16, attn_params) {
    attend(&p, 0);
}
KERNEL(attn_fp8, attn_params) {
    attend(&p, 1);
}
