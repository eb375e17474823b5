/* Expanded latent attention, for prompts: keys and values of each head instead of the latent.
 *
 * A pair of a query and a cached token costs 2 (192 + 128) = 640 operations a head here and 2,176 absorbed, but the token must be
 * expanded first: 262,144 operations a head. So that pays from 171 queries on, if a token is expanded once for all
 * queries of a chunk. A block of 128 queries that expanded for itself would spend 2,048 operations a pair on it, and be
 * no better than the absorbed form. So there are two kernels: attn_expand writes keys and values of a window of the cache (at
 * most 64 MiB: the whole cache is never expanded) to memory, and attn_expanded is plain flash attention over the window.
 * What a row has after a window, it takes up in the next: sums, maximum and sum of weights in fp32, as they are, so neither
 * the window's size nor what else is in it changes a bit. Per head and token 640 bytes are written for 262,144 operations.
 *
 * attn_expand reads kv_b as absorption has it: W_UV as rows of mma's second operand; W_UK lies turned, and is turned back on its
 * way there, 8 x 8 values at a time (turn_tile). A second copy of it would take 57 MB for V2-Lite and 1 GB for V3.
 *
 * Sums: keys and values over ascending k; scores, and 64 tokens at a time, an online softmax. Rows are apart in
 * all of it, so a row has the same bits in any batch. */
#include "cache.cuh"

enum {
    KEY_TILES = EXPANDED_KEYS / 16,
    SCORE_TILES = EXPANDED_KEYS / 8,
    QUERY_STEPS = (EXPANDED_NOPE + EXPANDED_ROPE) / 16,
    VALUE_STEPS = EXPANDED_VALUE / 16,
    EXPAND_KEY = 0,
    EXPAND_VALUE = 1,
};

/* --- the window ------------------------------------------------------------------------------------------------------- */

/* Values c .. c + 7 (or a part of these) of a tile's row. Rows are multiples of 128 bytes; pieces of 16 change places, so that
 * eight rows of ldmatrix, and four rows of 32 bytes each, are in other banks. */
DEVICE uint16_t *latent_at(uint16_t *tile, int stride, int row, int c) {
    return tile + row * stride + (((c / 8) ^ (row % 4 * 2 + row / 4 % 2)) * 8 + c % 8);
}

DEVICE const uint8_t *cache_row(const struct expand_params *p, const struct expand_item *item, int t) {
    return p->cache + ((size_t)item->page * PAGE_TOKENS + (size_t)t) * p->row_bytes;
}

/* The page's latents as bf16; what is missing in rows and columns becomes zero. */
DEVICE void load_latents(const struct expand_params *p, const struct expand_item *item, uint16_t *tile, int stride,
                         const int fp8) {
    const int step = fp8 ? 4 : 8;
    int pieces = stride / step;
    for (int i = THREAD; i < EXPANDED_KEYS * pieces; i += BLOCK_THREADS) {
        int t = i / pieces, c = i % pieces * step;
        uint16_t *at = latent_at(tile, stride, t, c);
        int inside = t < item->n && c < p->kv_lora;
        if (fp8) {
            struct pair value = {{0, 0}};
            if (inside) value = fp8_latent(cache_row(p, item, t), p->kv_lora, c);
            *(struct pair *)at = value;
        } else if (inside) {
            copy_async(at, cache_row(p, item, t) + c * 2);
        } else {
            struct quad zero = {{0, 0, 0, 0}};
            *(struct quad *)at = zero;
        }
    }
    copy_commit();
}

DEVICE void copy_rope(const struct expand_params *p, const struct expand_item *item, const int fp8) {
    int words = p->window.rope_cols / 2, offset = rope_offset(p->kv_lora, fp8);
    uint32_t *to = (uint32_t *)(p->window.rope + (size_t)item->at * (size_t)p->window.rope_cols);
    for (int i = THREAD; i < EXPANDED_KEYS * words; i += BLOCK_THREADS) {
        int t = i / words;
        to[i] = t < item->n ? *(const uint32_t *)(cache_row(p, item, t) + offset + i % words * 4) : 0;
    }
}

/* Four quads: 64 of k for this warp's 16 columns. */
DEVICE void load_weights(struct quad *w, const struct device_matrix *m, const uint8_t *data, int batch,
                         const int which) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        int tile = which == EXPAND_KEY ? batch * 4 + i : WARP, slab = which == EXPAND_KEY ? WARP / 4 : batch;
        int step = which == EXPAND_KEY ? WARP % 4 : i;
        struct quad zero = {{0, 0, 0, 0}};
        w[i] = zero;
        if (tile >= m->row_tiles) continue;
        w[i] = load_once(data + (((size_t)tile * (size_t)m->slabs + (size_t)slab) * 4 + (size_t)step) * 512);
    }
}

/* sum += 64 tokens x 16 columns over 16 of k; k is the first of them. */
DEVICE void expand_step(float (*sum)[2][4], uint16_t *tile, int stride, int k, const struct quad *w, const int which) {
    uint32_t b[4];
    UNROLL
    for (int j = 0; j < 4; j++) b[j] = which == EXPAND_KEY ? turn_tile(w->v[j]) : w->v[j / 2 + j % 2 * 2];
    UNROLL
    for (int m = 0; m < KEY_TILES; m++) {
        uint32_t a[4];
        if (which == EXPAND_KEY) {
            load_tiles(a, latent_at(tile, stride, m * 16 + LANE % 16, k + LANE / 16 * 8));
        } else { /* W_UV's lanes have four columns side by side: so must these (params.h) */
            struct pair low = *(const struct pair *)latent_at(tile, stride, m * 16 + LANE / 4, k + LANE % 4 * 4);
            struct pair high = *(const struct pair *)latent_at(tile, stride, m * 16 + LANE / 4 + 8, k + LANE % 4 * 4);
            a[0] = low.v[0], a[1] = high.v[0], a[2] = low.v[1], a[3] = high.v[1];
        }
        mma_bf16(sum[m][0], a, b[0], b[1]);
        mma_bf16(sum[m][1], a, b[2], b[3]);
    }
}

/* A key's columns lie in fours: 4 t and 4 t + 1 in the first tile, the next two in the second. A value's lie as they are. */
DEVICE void store_expanded(const struct window *to, int head, int at, float (*sum)[2][4], const int which) {
    size_t row = (size_t)head * (size_t)to->tokens + (size_t)(at + LANE / 4);
    UNROLL
    for (int i = 0; i < 2 * KEY_TILES; i++) {
        const float *first = &sum[i / 2][0][i % 2 * 2], *second = &sum[i / 2][1][i % 2 * 2];
        struct pair out = {{pack_bf16(first[0], first[1]), pack_bf16(second[0], second[1])}};
        size_t here = row + (size_t)(i * 8);
        if (which == EXPAND_KEY) {
            *(struct pair *)(to->key + here * (size_t)to->key_cols + WARP * 16 + LANE % 4 * 4) = out;
        } else {
            uint32_t *value = (uint32_t *)(to->value + here * (size_t)to->value_cols + WARP * 16 + LANE % 4 * 2);
            value[0] = out.v[0];
            value[4] = out.v[1];
        }
    }
}

/* A warp has 16 columns of a head. */
DEVICE void expand_head(const struct expand_params *p, uint16_t *tile, int stride, int head, int at, const int which) {
    const struct device_matrix *m = which == EXPAND_KEY ? &p->key : &p->value;
    const uint8_t *data = m->data + (size_t)head * m->data_step + LANE * 16;
    struct quad next[4];
    float sum[KEY_TILES][2][4];
    if (WARP * 16 >= (which == EXPAND_KEY ? p->window.key_cols : p->window.value_cols)) return;
    UNROLL
    for (int i = 0; i < KEY_TILES * 8; i++) sum[i / 8][i / 4 % 2][i % 4] = 0;
    load_weights(next, m, data, 0, which);
    for (int k = 0; k < stride; k += SLAB_COLS) {
        struct quad now[4];
        UNROLL
        for (int i = 0; i < 4; i++) now[i] = next[i];
        if (k + SLAB_COLS < stride) load_weights(next, m, data, k / SLAB_COLS + 1, which);
        UNROLL
        for (int i = 0; i < 4; i++) expand_step(sum, tile, stride, k + i * 16, &now[i], which);
    }
    store_expanded(&p->window, head, at, sum, which);
}

DEVICE void expand(const struct expand_params *p, const int fp8) {
    DYNAMIC_SHARED(uint16_t, tile); /* [64][kv_lora, up to a multiple of 64] */
    after_previous();
    struct expand_item item = p->items[BLOCK % p->n_items];
    int stride = ceil_div_int(p->kv_lora, SLAB_COLS) * SLAB_COLS, first = BLOCK / p->n_items * EXPANDED_HEADS;
    load_latents(p, &item, tile, stride, fp8);
    if (first == 0) copy_rope(p, &item, fp8);
    copy_wait_all();
    barrier();
    for (int head = first; head < min_int(first + EXPANDED_HEADS, p->heads); head++) {
        expand_head(p, tile, stride, head, item.at, EXPAND_KEY);
        expand_head(p, tile, stride, head, item.at, EXPAND_VALUE);
    }
}

KERNEL(attn_expand_bf16, expand_params) {
    expand(&p, 0);
}
KERNEL(attn_expand_fp8, expand_params) {
    expand(&p, 1);
}

/* --- attention over the window ------------------------------------------------------------------------------------------ */

/* What a block works on. A warp has 16 rows; a lane rows g and g + 8 of these. Steps are of 16 columns. */
struct expanded_block {
    const struct expanded_params *p;
    struct expanded_item item;
    int head;
    int key_stride, value_stride;
};

struct expanded_state {
    float out[VALUE_STEPS][2][4], max[2], sum[2];
};

/* Row of the item that the lane's row h is, or its last one: that is computed again and left alone. */
DEVICE int row_of(const struct expanded_block *b, int h) {
    return min_int(WARP * 16 + LANE / 4 + h * 8, b->item.n_rows - 1);
}
DEVICE int is_row(const struct expanded_block *b, int h) {
    return WARP * 16 + LANE / 4 + h * 8 < b->item.n_rows;
}

DEVICE uint32_t query_pair(const struct expanded_block *b, int row, int c, int nope_cols) {
    const struct expanded_params *p = b->p;
    size_t at = (size_t)(b->item.first_row + row) * (size_t)p->heads + (size_t)b->head;
    if (c >= nope_cols) {
        size_t rope = at * (size_t)(p->kv_lora + p->rope) + (size_t)(p->kv_lora + c - nope_cols);
        return *(const uint32_t *)(p->q_latent + rope);
    }
    if (c >= p->nope) return 0;
    const float *q = p->q + at * (size_t)(p->nope + p->rope) + (size_t)c;
    return pack_bf16(q[0], q[1]);
}

DEVICE void load_query(const struct expanded_block *b, uint32_t (*query)[4], const int nope_steps, const int steps) {
    UNROLL
    for (int i = 0; i < QUERY_STEPS; i++) {
        UNROLL
        for (int j = 0; j < 4; j++) {
            int c = i * 16 + j / 2 * 8 + LANE % 4 * 2;
            query[i][j] = i < steps ? query_pair(b, row_of(b, j % 2), c, nope_steps * 16) : 0;
        }
    }
}

/* Rows of `cols` values (a multiple of 16) from the window to shared memory. */
DEVICE void fetch_rows(uint16_t *to, int to_stride, const uint16_t *from, const int cols) {
    const int pieces = cols / 8;
    for (int i = THREAD; i < EXPANDED_KEYS * pieces; i += BLOCK_THREADS) {
        copy_async(to + i / pieces * to_stride + i % pieces * 8, from + (size_t)i * 8);
    }
}

/* Starts copying tokens [key, key + 64); the window has rows for all of them. */
DEVICE void fetch_keys(const struct expanded_block *b, uint16_t *stage, int key, const int nope_steps,
                       const int rope_steps, const int value_steps) {
    const struct window *w = &b->p->window;
    size_t at = (size_t)(b->item.at + key - b->item.key0), row = (size_t)b->head * (size_t)w->tokens + at;
    fetch_rows(stage, b->key_stride, w->key + row * (size_t)(nope_steps * 16), nope_steps * 16);
    fetch_rows(stage + nope_steps * 16, b->key_stride, w->rope + at * (size_t)(rope_steps * 16), rope_steps * 16);
    fetch_rows(stage + EXPANDED_KEYS * b->key_stride, b->value_stride, w->value + row * (size_t)(value_steps * 16),
               value_steps * 16);
    copy_commit();
}

DEVICE void score_keys(const struct expanded_block *b, const uint16_t *keys, uint32_t (*query)[4], float (*score)[4],
                       const int steps) {
    const uint16_t *row = keys + (LANE / 16 * 8 + LANE % 8) * b->key_stride + LANE / 8 % 2 * 8;
    UNROLL
    for (int j = 0; j < SCORE_TILES; j++) score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0;
    UNROLL
    for (int i = 0; i < QUERY_STEPS; i++) {
        if (i >= steps) continue;
        UNROLL
        for (int j = 0; j < SCORE_TILES; j += 2) {
            uint32_t k[4];
            load_tiles(k, row + j * 8 * b->key_stride + i * 16);
            mma_bf16(score[j], query[i], k[0], k[1]);
            mma_bf16(score[j + 1], query[i], k[2], k[3]);
        }
    }
}

/* No row sees a token behind it. */
DEVICE void hide_later(const struct expanded_block *b, float (*score)[4], int key) {
    int pos = b->item.pos + WARP * 16;
    if (key + EXPANDED_KEYS - 1 <= pos) return; /* also the warp's first row sees all */
    UNROLL
    for (int j = 0; j < SCORE_TILES; j++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
            int token = key + j * 8 + LANE % 4 * 2 + i % 2;
            if (token > pos + LANE / 4 + i / 2 * 8) score[j][i] = -INFINITY;
        }
    }
}

/* Scores to weights: one online step. Every row has seen token 0 first, so the maximum is a number. */
DEVICE void softmax_keys(const struct expanded_block *b, struct expanded_state *s, float (*score)[4]) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        float max = -INFINITY, sum = 0, scale = b->p->scale;
        UNROLL
        for (int j = 0; j < SCORE_TILES; j++) max = fmaxf(max, fmaxf(score[j][2 * h], score[j][2 * h + 1]));
        max = fmaxf(max, shuffle_xor_f32(max, 1));
        max = fmaxf(s->max[h], fmaxf(max, shuffle_xor_f32(max, 2)) * scale);
        float keep = power_of_two(s->max[h] - max);
        UNROLL
        for (int j = 0; j < SCORE_TILES; j++) {
            UNROLL
            for (int i = 2 * h; i < 2 * h + 2; i++) {
                score[j][i] = power_of_two(fmaf(score[j][i], scale, -max));
                sum += score[j][i];
            }
        }
        sum += shuffle_xor_f32(sum, 1);
        sum += shuffle_xor_f32(sum, 2);
        s->sum[h] = fmaf(s->sum[h], keep, sum);
        s->max[h] = max;
        UNROLL
        for (int j = 0; j < 2 * VALUE_STEPS; j++) {
            s->out[j / 2][j % 2][2 * h] *= keep;
            s->out[j / 2][j % 2][2 * h + 1] *= keep;
        }
    }
}

DEVICE void add_values(const struct expanded_block *b, struct expanded_state *s, const uint16_t *values,
                       float (*weight)[4], const int value_steps) {
    const uint16_t *row = values + LANE % 16 * b->value_stride + LANE / 16 * 8;
    UNROLL
    for (int i = 0; i < KEY_TILES; i++) {
        uint32_t a[4], v[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            const float *two = &weight[2 * i + j / 2][j % 2 * 2];
            a[j] = pack_bf16(two[0], two[1]);
        }
        UNROLL
        for (int j = 0; j < VALUE_STEPS; j++) {
            if (j >= value_steps) continue;
            load_tiles_turned(v, row + i * 16 * b->value_stride + j * 16);
            mma_bf16(s->out[j][0], a, v[0], v[1]);
            mma_bf16(s->out[j][1], a, v[2], v[3]);
        }
    }
}

/* Where an unfinished row is kept between windows. */
DEVICE float *carry_of(const struct expanded_block *b, int h) {
    const struct expanded_params *p = b->p;
    size_t slot = (size_t)p->slot_first[b->item.first_row + row_of(b, h)];
    return p->carry + slot * (size_t)p->heads * (size_t)(p->kv_lora + 2) + (size_t)b->head * (size_t)(p->v_dim + 2);
}

DEVICE void begin_rows(const struct expanded_block *b, struct expanded_state *s) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        const float *from = b->item.key0 ? carry_of(b, h) : 0;
        s->max[h] = from ? from[b->p->v_dim] : -INFINITY;
        s->sum[h] = from ? from[b->p->v_dim + 1] : 0;
        UNROLL
        for (int j = 0; j < 4 * VALUE_STEPS; j++) {
            int c = j / 2 * 8 + LANE % 4 * 2 + j % 2;
            s->out[j / 4][j / 2 % 2][2 * h + j % 2] = from && c < b->p->v_dim ? from[c] : 0;
        }
    }
}

DEVICE void keep_row(const struct expanded_block *b, const struct expanded_state *s, int h) {
    float *to = carry_of(b, h);
    UNROLL
    for (int j = 0; j < 4 * VALUE_STEPS; j++) {
        int c = j / 2 * 8 + LANE % 4 * 2 + j % 2;
        if (c < b->p->v_dim) to[c] = s->out[j / 4][j / 2 % 2][2 * h + j % 2];
    }
    if (LANE % 4) return;
    to[b->p->v_dim] = s->max[h];
    to[b->p->v_dim + 1] = s->sum[h];
}

DEVICE void finish_row(const struct expanded_block *b, const struct expanded_state *s, int h) {
    const struct expanded_params *p = b->p;
    size_t at = (size_t)(b->item.first_row + row_of(b, h)) * (size_t)p->heads + (size_t)b->head;
    uint16_t *to = p->attended + at * (size_t)p->v_dim;
    UNROLL
    for (int j = 0; j < 2 * VALUE_STEPS; j++) {
        int c = j * 8 + LANE % 4 * 2;
        const float *two = &s->out[j / 2][j % 2][2 * h];
        if (c < p->v_dim) *(uint32_t *)(to + c) = pack_bf16(divide(two[0], s->sum[h]), divide(two[1], s->sum[h]));
    }
}

DEVICE void attend(const struct expanded_params *p, const int nope_steps, const int rope_steps, const int value_steps) {
    DYNAMIC_SHARED(uint16_t, shared); /* [2] stages of keys [64][key_stride] and values [64][value_stride] */
    struct expanded_block b;
    struct expanded_state state;
    uint32_t query[QUERY_STEPS][4];
    const int steps = nope_steps + rope_steps;
    after_previous();
    b.p = p;
    b.item = p->items[BLOCK % p->n_items];
    b.head = BLOCK / p->n_items;
    b.key_stride = steps * 16 + 8; /* 16 bytes more than a multiple of 32: eight rows are in other banks */
    b.value_stride = value_steps * 16 + 8;
    int stage = EXPANDED_KEYS * (b.key_stride + b.value_stride), end = min_int(b.item.key1, b.item.pos + b.item.n_rows);
    int last = WARP * 16 < b.item.n_rows ? b.item.pos + min_int(WARP * 16 + 15, b.item.n_rows - 1) : -1;
    fetch_keys(&b, shared, b.item.key0, nope_steps, rope_steps, value_steps);
    load_query(&b, query, nope_steps, steps);
    begin_rows(&b, &state);
    for (int key = b.item.key0, i = 0; key < end; key += EXPANDED_KEYS, i ^= 1) {
        const uint16_t *keys = shared + i * stage;
        float score[SCORE_TILES][4];
        if (key + EXPANDED_KEYS < end) {
            fetch_keys(&b, shared + (i ^ 1) * stage, key + EXPANDED_KEYS, nope_steps, rope_steps, value_steps);
            copy_wait_all_but_one();
        } else {
            copy_wait_all();
        }
        barrier();
        if (key <= last) { /* for the warp as one: else none of its rows sees a token of these */
            score_keys(&b, keys, query, score, steps);
            hide_later(&b, score, key);
            softmax_keys(&b, &state, score);
            add_values(&b, &state, keys + EXPANDED_KEYS * b.key_stride, score, value_steps);
        }
        barrier(); /* the stage may be overwritten */
    }
    UNROLL
    for (int h = 0; h < 2; h++) {
        if (!is_row(&b, h)) continue;
        if (b.item.key1 < b.item.pos + b.item.n_rows) {
            keep_row(&b, &state, h);
        } else {
            finish_row(&b, &state, h);
        }
    }
}

/* The sizes of every published model, known to the compiler; and any others. */
KERNEL(attn_expanded, expanded_params) {
    attend(&p, EXPANDED_NOPE / 16, EXPANDED_ROPE / 16, EXPANDED_VALUE / 16);
}
KERNEL(attn_expanded_any, expanded_params) {
    attend(&p, ceil_div_int(p.nope, 16), p.rope / 16, ceil_div_int(p.v_dim, 16));
}
