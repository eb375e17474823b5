/* Absorbed attention to listed rows of the cache: those that an indexer has chosen, or (V4) compressed rows and a window of tokens. 16
 * heads of one row of the batch go over the list in order, in splits of 256 that are merged as attn.cu merges them; so a list of all
 * tokens gives the bits that attn.cu gives. */
#include "attn_tile.cuh"
#include "listed.cuh"

enum { GROUP_TILES = LISTED_GROUP / TOKEN_TILE };

struct listed_block {
    const struct listed_params *p;
    int row, head;           /* of the batch; the first of 16 */
    int keys, far;           /* of the list, and how many of these stand for `ratio` tokens */
    const uint8_t **address; /* [2][LISTED_GROUP] of some rows of the list, and of those behind them */
    struct attn_tile t;
};

DEVICE void load_heads(const struct listed_block *b) {
    const struct attn_params *p = &b->p->attn;
    int pieces = b->t.width / 8;
    for (int i = THREAD; i < QUERY_TILE * pieces; i += BLOCK_THREADS) {
        int q = i / pieces, c = i % pieces * 8;
        struct quad value = {{0, 0, 0, 0}};
        if (b->head + q < p->heads) {
            size_t at = (size_t)b->row * (size_t)p->heads + (size_t)(b->head + q);
            value = *(const struct quad *)(p->q_latent + at * (size_t)b->t.width + c);
        }
        *(struct quad *)(b->t.query + q * b->t.stride + c) = value;
    }
}

/* Where row `at` of the list lies. */
DEVICE const uint8_t *listed_row(const struct listed_params *p, int row, int at) {
    const struct listed_rows *l = &p->rows;
    int seen = far_seen(l, row), far = min_int(seen, l->topk), pos = l->pos[row];
    if (at >= far) {
        int t = pos + 1 - window_keys(l, row) + at - far;
        int place = p->near[row * p->near_pages + pos / PAGE_TOKENS - t / PAGE_TOKENS];
        return p->near_cache + (size_t)place * p->near_bytes + (size_t)(t % PAGE_TOKENS) * p->attn.row_bytes;
    }
    int key = seen > far ? p->chosen[(size_t)row * (size_t)l->topk + (size_t)at] : at;
    int last = key * l->ratio + l->ratio - 1; /* the token with which it is complete: it lies in that one's page */
    int page = p->attn.page_table[p->first_page[row] + last / PAGE_TOKENS];
    size_t slot = (size_t)(last % PAGE_TOKENS / l->ratio);
    return p->attn.cache + (size_t)page * p->page_bytes + (l->ratio < PAGE_TOKENS ? slot * p->far_bytes : 0);
}

/* A thread finds a row; none past the end. */
DEVICE void list_group(const struct listed_block *b, int group) {
    int at = group * LISTED_GROUP + THREAD;
    if (THREAD >= LISTED_GROUP) return;
    b->address[at % (2 * LISTED_GROUP)] = at < b->keys ? listed_row(b->p, b->row, at) : NULL;
}

/* Starts copying 32 rows of the list from t0 on; those past its end become zeros. */
DEVICE void fetch_listed(const struct listed_block *b, uint8_t *to, size_t to_stride, int t0, const int format) {
    int pieces = (int)(b->p->attn.row_bytes / 16), far_pieces = (int)(b->p->far_bytes / 16);
    const uint8_t **address = b->address + t0 % (2 * LISTED_GROUP);
    for (int i = THREAD; i < TOKEN_TILE * pieces; i += BLOCK_THREADS) {
        int t = i / pieces, c = i % pieces * 16;
        if (format == CACHE_CSA2 && t0 + t < b->far && i % pieces >= far_pieces) continue; /* it is shorter */
        uint8_t *at = to + (size_t)t * to_stride + c;
        if (address[t]) {
            copy_async(at, address[t] + c);
        } else {
            struct quad zero = {{0, 0, 0, 0}};
            *(struct quad *)at = zero;
        }
    }
    copy_commit();
}

DEVICE void store_heads(const struct listed_block *b, int slot, const struct softmax *state, float (*total)[2][4]) {
    const struct attn_params *p = &b->p->attn;
    UNROLL
    for (int h = 0; h < 2; h++) {
        int head = b->head + LANE / 4 + 8 * h;
        if (head >= p->heads) continue;
        size_t at = (size_t)(p->slot_first[b->row] + slot) * (size_t)p->heads + (size_t)head;
        store_query(&b->t, p->partial + at * (size_t)(p->kv_lora + 2), h, state, total);
    }
}

/* A tile of narrow rows as bf16. */
DEVICE void widen_listed(const struct listed_block *b, int t0, const int format) {
    if (format == CACHE_CSA2) {
        widen_csa2_tile(&b->t, b->far - t0);
    } else {
        widen_tile(&b->t, b->p->scaled);
    }
}

/* Splits [split0, split1) of the list; its first rows have been found. */
DEVICE void attend_listed(const struct listed_block *b, int split0, int split1, int slot, const int format) {
    const int narrow = format != CACHE_BF16;
    float acc[VALUE_PAIRS][2][4], total[VALUE_PAIRS][2][4];
    struct softmax state[2];
    UNROLL
    for (int j = 0; j < VALUE_PAIRS; j++) {
        UNROLL
        for (int i = 0; i < 8; i++) acc[j][i / 4][i % 4] = total[j][i / 4][i % 4] = 0;
    }
    size_t to_stride = narrow ? b->p->attn.row_bytes : (size_t)b->t.stride * 2;
    int first = split0 * SPLIT_TILES, end = min_int(ceil_div_int(b->keys, TOKEN_TILE), split1 * SPLIT_TILES);
    int is_first = 1;
    fetch_listed(b, narrow ? b->t.raw : (uint8_t *)b->t.tile, to_stride, first * TOKEN_TILE, format);
    for (int i = first; i < end; i++) {
        uint16_t *tile = narrow || (i - first) % 2 == 0 ? b->t.tile : b->t.other;
        uint16_t *next = (i - first) % 2 == 0 ? b->t.other : b->t.tile;
        if (!narrow && i + 1 < end) fetch_listed(b, (uint8_t *)next, to_stride, (i + 1) * TOKEN_TILE, format);
        if (!narrow && i + 1 < end) {
            copy_wait_all_but_one();
        } else {
            copy_wait_all();
        }
        barrier();
        if (narrow) {
            widen_listed(b, i * TOKEN_TILE, format);
            barrier();
            if (i + 1 < end) fetch_listed(b, b->t.raw, to_stride, (i + 1) * TOKEN_TILE, format);
        }
        if (i % GROUP_TILES == 0) list_group(b, i / GROUP_TILES + 1);
        score_tile(&b->t, tile);
        barrier();
        UNROLL
        for (int q = 0; q < 2; q++) softmax_step(&b->t, WARP * 2 + q, i * TOKEN_TILE, b->keys - 1);
        barrier();
        add_values(&b->t, tile, acc);
        if (i % SPLIT_TILES == SPLIT_TILES - 1 || i == end - 1) {
            merge_split(&b->t, is_first, state, total, acc);
            is_first = 0;
            barrier();
            clear_softmax(&b->t);
        }
        barrier(); /* the tile may be overwritten */
    }
    store_heads(b, slot, state, total);
}

DEVICE void attend_row(const struct listed_params *p, const int format) {
    DYNAMIC_SHARED(unsigned char, shared);
    struct listed_block b;
    after_previous();
    int part = BLOCK % p->rows.splits, tile = BLOCK / p->rows.splits, tiles = ceil_div_int(p->attn.heads, QUERY_TILE);
    b.p = p;
    b.row = tile / tiles;
    b.head = tile % tiles * QUERY_TILE;
    if (part >= listed_slots(&p->rows, b.row)) return;
    b.keys = listed_keys(&p->rows, b.row);
    b.far = b.keys - window_keys(&p->rows, b.row);
    b.t.p = &p->attn;
    b.t.width = p->attn.kv_lora + p->attn.rope;
    b.t.stride = b.t.width + 8;
    b.address = (const uint8_t **)lay_out(&b.t, shared, format != CACHE_BF16);
    load_heads(&b);
    clear_softmax(&b.t);
    list_group(&b, part * SPLIT_TILES / GROUP_TILES);
    barrier();
    attend_listed(&b, part, p->rows.splits == 1 ? ceil_div_int(b.keys, SPLIT_TOKENS) : part + 1, part, format);
}

KERNEL(listed_bf16, listed_params) {
    attend_row(&p, CACHE_BF16);
}
KERNEL(listed_fp8, listed_params) {
    attend_row(&p, CACHE_FP8);
}
KERNEL(listed_csa2, listed_params) {
    attend_row(&p, CACHE_CSA2);
}
