/* V4's and V4.1's rows before and after attention: src/backend/cpu/attn_hybrid.c says what becomes of them. */
#include "index_key.cuh"
#include "listed.cuh"
#include "merge.cuh"
#include "rows.cuh"
#include "../params_hybrid.h"

enum { HEAD_PAIRS = MAX_KV_LORA / 64 }; /* that a lane has of a head's values: 2 * lane, 2 * lane + 1, 64 further, ... */

/* ---- before ---- */

/* The row, normed and rotated, in shared memory behind `scratch`, [BLOCK_WARPS] of it. */
DEVICE const float *finish_cached(const struct hybrid_rows_params *p, const struct cached_rows *c, int row,
                                  float *scratch) {
    float *out = scratch + BLOCK_WARPS;
    float mean = norm_row(c->values + (size_t)row * c->stride, c->gain, c->dim, p->eps, out, scratch);
    if (!is_finite(mean) && THREAD == 0) note_fault(p->fault, p->fault_key, row);
    barrier();
    for (int i = THREAD; i < p->rope / 2; i += BLOCK_THREADS) {
        float *pair = out + c->dim - p->rope + 2 * i;
        turn_pair(c->rotation + (size_t)row * (size_t)p->rope + (size_t)(2 * i), pair[0], pair[1], pair);
    }
    barrier();
    return out;
}

DEVICE void finish_own(const struct hybrid_rows_params *p, int row, float *scratch) {
    size_t place = (size_t)p->near[(size_t)row * (size_t)p->near_pages];
    size_t at = (size_t)(p->pos[row] % PAGE_TOKENS) * p->row_bytes;
    uint8_t *out = p->near_cache + place * p->near_bytes + at;
    const float *values = finish_cached(p, &p->own, row, scratch);
    if (p->csa2) {
        store_csa2_row(out, values, p->own.dim, p->fp8);
    } else {
        store_latent(out, values, p->kv_lora, p->rope, p->fp8);
    }
}

/* Where a window ends with this token, what it makes: a row, or its index key. */
DEVICE void finish_window(const struct hybrid_rows_params *p, int row, int is_key, float *scratch) {
    int pos = p->pos[row];
    if ((pos + 1) % p->ratio) return;
    int slot = p->ratio < PAGE_TOKENS ? pos % PAGE_TOKENS / p->ratio : 0;
    const float *values = finish_cached(p, is_key ? &p->key : &p->compressed, row, scratch);
    uint8_t *out = p->pages + (size_t)p->page[row] * p->page_bytes + (size_t)slot * p->far_bytes;
    if (is_key) {
        if (WARP == 0) store_index_key(&p->keys, p->page[row], slot, values);
    } else if (p->csa2) {
        store_csa2_far(out, values, p->compressed.dim, p->fp8);
    } else {
        store_latent(out, values, p->kv_lora, p->rope, p->fp8);
    }
}

/* What a head's query is multiplied by; a warp. */
DEVICE float norm_query(const struct hybrid_rows_params *p, int row, const float *q, int dim) {
    float sum = 0;
    for (int c = LANE * 2; c < dim; c += 64) {
        sum = fmaf(q[c], q[c], sum);
        sum = fmaf(q[c + 1], q[c + 1], sum);
    }
    float mean = divide(warp_sum(sum), (float)dim);
    if (!is_finite(mean) && LANE == 0) note_fault(p->fault, p->fault_key, row);
    return inverse_root(mean + p->eps);
}

/* A head's query; a warp. */
DEVICE void finish_query(const struct hybrid_rows_params *p, int row, int head) {
    int dim = p->kv_lora + p->rope;
    size_t at = ((size_t)row * (size_t)p->heads + (size_t)head) * (size_t)dim;
    const float *angles = p->own.rotation + (size_t)row * (size_t)p->rope;
    float factor = p->csa2 ? 1 : norm_query(p, row, p->q + at, dim);
    for (int c = LANE * 2; c < dim; c += 64) {
        float out[2] = {p->q[at + c] * factor, p->q[at + c + 1] * factor};
        if (c >= p->kv_lora) turn_pair(angles + c - p->kv_lora, out[0], out[1], out);
        *(uint32_t *)(p->q_latent + at + c) = pack_bf16(out[0], out[1]);
    }
}

/* Some 32 values of an indexer's query, of which it has `dim`, turned and rounded; a warp. */
DEVICE void round_index_query(const struct hybrid_rows_params *p, const float *angles, float *q, int first) {
    int dim = p->keys.dim, i = first + LANE, turned = i - (dim - p->rope);
    float value = i < dim ? q[i] : 0, other = shuffle_xor_f32(value, 1);
    if (turned >= 0 && i < dim) { /* a lane has one of a pair, and the next one the other: turn_pair's numbers */
        const float *angle = angles + turned / 2 * 2;
        value = turned % 2 ? other * angle[1] + value * angle[0] : value * angle[0] - other * angle[1];
    }
    value = round_key_value(value);
    if (i < dim) q[i] = value;
}

/* The indexer's queries, in place; who sees no more than the indexer lets through needs none. */
DEVICE void finish_index_queries(const struct hybrid_rows_params *p, int row) {
    int pairs = p->rope / 2, groups = ceil_div_int(p->keys.dim, 32);
    if ((p->pos[row] + 1) / p->ratio <= p->topk) return;
    for (int i = WARP; p->csa2 && i < p->index_heads * groups; i += BLOCK_WARPS) {
        size_t head = (size_t)row * (size_t)p->index_heads + (size_t)(i / groups);
        round_index_query(p, p->own.rotation + (size_t)row * (size_t)p->rope, p->index_q + head * (size_t)p->keys.dim,
                          i % groups * 32);
    }
    if (p->csa2) return;
    for (int i = THREAD; i < p->index_heads * pairs; i += BLOCK_THREADS) {
        size_t head = (size_t)row * (size_t)p->index_heads + (size_t)(i / pairs);
        float *pair = p->index_q + (head + 1) * (size_t)p->keys.dim - p->rope + i % pairs * 2;
        turn_pair(p->own.rotation + (size_t)row * (size_t)p->rope + (size_t)(i % pairs * 2), pair[0], pair[1], pair);
    }
}

KERNEL(hybrid_rows, hybrid_rows_params) {
    SHARED float scratch[BLOCK_WARPS + MAX_KV_LORA];
    int cached = 1 + (p.compressed.dim > 0) + (p.key.dim > 0), tiles = ceil_div_int(p.heads, BLOCK_WARPS);
    int parts = cached + tiles + (p.index_q != NULL), row = BLOCK / parts, part = BLOCK % parts;
    after_previous();
    if (part == 0) {
        finish_own(&p, row, scratch);
    } else if (part < cached) {
        finish_window(&p, row, part == 2, scratch);
    } else if (part < cached + tiles) {
        int head = (part - cached) * BLOCK_WARPS + WARP;
        if (head < p.heads) finish_query(&p, row, head);
    } else {
        finish_index_queries(&p, row);
    }
}

/* ---- after ---- */

/* A head's splits, one after another as merge.cuh has it: a lane's values of their sum. */
DEVICE struct softmax merge_head(const struct hybrid_merge_params *p, int row, int head, int slots,
                                 float (*acc)[2]) {
    struct softmax state = {0, 0};
    for (int s = 0; s < slots; s++) {
        size_t at = (size_t)(p->rows.slot_first[row] + s) * (size_t)p->heads + (size_t)head;
        const float *part = p->partial + at * (size_t)(p->dim + 2);
        float keep = 0, take = 1;
        if (s == 0) {
            state.max = part[p->dim];
            state.sum = part[p->dim + 1];
        } else {
            softmax_merge(&state, part[p->dim], part[p->dim + 1], &keep, &take);
        }
        UNROLL
        for (int i = 0; i < HEAD_PAIRS; i++) {
            int c = i * 64 + LANE * 2;
            if (c >= p->dim) continue;
            acc[i][0] = fmaf(acc[i][0], keep, part[c] * take);
            acc[i][1] = fmaf(acc[i][1], keep, part[c + 1] * take);
        }
    }
    return state;
}

/* The sink is a score that gives nothing: it takes its share of the weights. */
DEVICE void finish_head(const struct hybrid_merge_params *p, int row, int head, int slots) {
    float acc[HEAD_PAIRS][2];
    UNROLL
    for (int i = 0; i < HEAD_PAIRS; i++) acc[i][0] = acc[i][1] = 0;
    struct softmax state = merge_head(p, row, head, slots, acc);
    float max = fmaxf(state.max, p->sinks[head]), keep = expf(state.max - max);
    float factor = divide(keep, fmaf(state.sum, keep, expf(p->sinks[head] - max)));
    const float *angles = p->rotation + (size_t)row * (size_t)p->rope;
    uint16_t *out = p->attended + ((size_t)row * (size_t)p->heads + (size_t)head) * (size_t)p->dim;
    UNROLL
    for (int i = 0; i < HEAD_PAIRS; i++) {
        int c = i * 64 + LANE * 2, turned = c - (p->dim - p->rope);
        if (c >= p->dim) continue;
        float pair[2] = {acc[i][0] * factor, acc[i][1] * factor};
        if (turned >= 0) turn_pair_back(angles + turned, pair[0], pair[1], pair);
        *(uint32_t *)(out + c) = pack_bf16(pair[0], pair[1]);
    }
}

KERNEL(hybrid_merge, hybrid_merge_params) {
    int tiles = ceil_div_int(p.heads, BLOCK_WARPS), row = BLOCK / tiles, head = BLOCK % tiles * BLOCK_WARPS + WARP;
    after_previous();
    int slots = listed_slots(&p.rows, row);
    if (head < p.heads && slots) finish_head(&p, row, head, slots);
}
