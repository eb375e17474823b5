/* Absorbed latent attention: 16 (row, head) pairs of a sequence against splits of 256 cached tokens. A cached row is read
 * once and used twice, whole as a key and its first kv_lora values as a value. Splits stand at fixed positions and each runs
 * its own softmax; where a block has several they are merged one after another, as merge.cuh does for blocks apart. So a row's
 * result depends on its own tokens only. */
#include "attn_tile.cuh"
#include "rope.cuh"

/* What the block works on. */
struct attn_block {
    const struct attn_params *p;
    struct attn_item item;
    int tokens; /* cached tokens that any of the queries sees */
    struct attn_tile t;
};

/* Row of the sequence and head of query i; row is n_rows or more past the end. */
DEVICE int query_row(const struct attn_block *b, int i) {
    return (b->item.query + i) / b->p->heads;
}
DEVICE int query_head(const struct attn_block *b, int i) {
    return (b->item.query + i) % b->p->heads;
}

DEVICE void load_queries(const struct attn_block *b) {
    int pieces = b->t.width / 8;
    for (int i = THREAD; i < QUERY_TILE * pieces; i += BLOCK_THREADS) {
        int q = i / pieces, c = i % pieces * 8, row = query_row(b, q);
        struct quad value = {{0, 0, 0, 0}};
        if (row < b->item.n_rows) {
            size_t at = (size_t)(b->item.first_row + row) * (size_t)b->p->heads + (size_t)query_head(b, q);
            value = *(const struct quad *)(b->p->q_latent + at * (size_t)b->t.width + c);
        }
        *(struct quad *)(b->t.query + q * b->t.stride + c) = value;
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

DEVICE void softmax_tile(const struct attn_block *b, int t0) {
    UNROLL
    for (int i = 0; i < 2; i++) {
        int q = WARP * 2 + i, pos = b->item.first_pos + query_row(b, q);
        softmax_step(&b->t, q, t0, pos);
    }
}

DEVICE void store_partial(const struct attn_block *b, const struct softmax *state, float (*total)[2][4]) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        int q = LANE / 4 + 8 * h, row = query_row(b, q);
        if (row >= b->item.n_rows || b->item.split0 > (b->item.first_pos + row) / SPLIT_TOKENS) continue;
        size_t slot = (size_t)(b->p->slot_first[b->item.first_row + row] + b->item.slot);
        size_t at = (slot * (size_t)b->p->heads + (size_t)query_head(b, q)) * (size_t)(b->p->kv_lora + 2);
        store_query(&b->t, b->p->partial + at, h, state, total);
    }
}

DEVICE void attend(const struct attn_params *p, const int fp8) {
    DYNAMIC_SHARED(unsigned char, shared);
    struct attn_block b;
    b.p = b.t.p = p;
    after_previous();
    b.item = p->items[BLOCK];
    if (b.item.n_rows == 0) return; /* lists are filled up to the length that a recorded step has */
    b.t.width = p->kv_lora + p->rope;
    b.t.stride = b.t.width + 8;
    int last_row = min_int(query_row(&b, QUERY_TILE - 1), b.item.n_rows - 1);
    b.tokens = min_int(b.item.first_pos + last_row + 1, b.item.split1 * SPLIT_TOKENS);
    lay_out(&b.t, shared, fp8);
    load_queries(&b);
    clear_softmax(&b.t);

    float acc[VALUE_PAIRS][2][4], total[VALUE_PAIRS][2][4];
    struct softmax state[2];
    UNROLL
    for (int j = 0; j < VALUE_PAIRS; j++) {
        UNROLL
        for (int i = 0; i < 8; i++) acc[j][i / 4][i % 4] = total[j][i / 4][i % 4] = 0;
    }
    size_t to_stride = fp8 ? p->row_bytes : (size_t)b.t.stride * 2;
    int first = b.item.split0 * SPLIT_TILES, end = ceil_div_int(b.tokens, TOKEN_TILE), is_first = 1;
    fetch_tile(&b, fp8 ? b.t.raw : (uint8_t *)b.t.tile, to_stride, first * TOKEN_TILE);
    for (int i = first; i < end; i++) {
        uint16_t *tile = fp8 || (i - first) % 2 == 0 ? b.t.tile : b.t.other;
        uint16_t *next = (i - first) % 2 == 0 ? b.t.other : b.t.tile;
        if (!fp8 && i + 1 < end) fetch_tile(&b, (uint8_t *)next, to_stride, (i + 1) * TOKEN_TILE);
        if (!fp8 && i + 1 < end) {
            copy_wait_all_but_one();
        } else {
            copy_wait_all();
        }
        barrier();
        if (fp8) {
            widen_tile(&b.t, p->kv_lora);
            barrier();
            if (i + 1 < end) fetch_tile(&b, b.t.raw, to_stride, (i + 1) * TOKEN_TILE);
        }
        score_tile(&b.t, tile);
        barrier();
        softmax_tile(&b, i * TOKEN_TILE);
        barrier();
        add_values(&b.t, tile, acc);
        if (i % SPLIT_TILES == SPLIT_TILES - 1 || i == end - 1) {
            merge_split(&b.t, is_first, state, total, acc);
            is_first = 0;
            barrier();
            clear_softmax(&b.t);
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
