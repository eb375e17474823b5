#include "plan/arch_hybrid.h"

#include <math.h>

static int64_t row_dim(const struct plan_arch *a) {
    return a->kv_lora + a->rope_dim;
}

/* Values that a token adds to compressed rows and index keys in a layer of each kind. */
static int64_t sparse_width(const struct plan_arch *a) {
    return model_compress_dim(RATIO_SPARSE, (int)row_dim(a) + a->hybrid.index_dim);
}
static int64_t dense_width(const struct plan_arch *a) {
    return model_compress_dim(RATIO_DENSE, (int)row_dim(a));
}

void plan_hybrid_params(const struct plan_arch *a, int64_t params[PLAN_GROUPS]) {
    const struct plan_hybrid *h = &a->hybrid;
    const int64_t hidden = a->hidden, attended = (int64_t)a->heads * a->v_dim, row = row_dim(a);
    const int64_t mix = (2 + h->streams) * h->streams, stream_row = h->streams * hidden;
    const int64_t compressed = h->sparse_layers * sparse_width(a) + h->dense_layers * dense_width(a);
    params[PLAN_ATTENTION] = a->layers * (a->q_lora * (hidden + attended) + hidden * row + h->o_lora * attended +
                                          hidden * h->o_groups * h->o_lora);
    params[PLAN_KV_B] = compressed * 2 * hidden + (int64_t)h->sparse_layers * h->index_heads * h->index_dim * a->q_lora;
    params[PLAN_ROUTER] += h->sparse_layers * h->index_heads * hidden + 2 * a->layers * mix * stream_row +
                           h->streams * stream_row - (int64_t)h->hash_layers * a->experts * a->router_bias;
    params[PLAN_NORM] = a->layers * (2 * hidden + a->q_lora + row + a->heads + 2 * (mix + 3)) + hidden + h->streams + 1;
    params[PLAN_NORM] += h->sparse_layers * (RATIO_SPARSE * sparse_width(a) + row + h->index_dim) +
                         h->dense_layers * (RATIO_DENSE * dense_width(a) + row);
}

/* With a page's share of near parts. */
static double page_bytes(const struct plan_arch *a, int ratio, enum kv_format kv) {
    double near = (double)cache_near_bytes(a->kv_lora, a->rope_dim, a->hybrid.index_dim, ratio, kv);
    return (double)cache_far_bytes(a->kv_lora, a->rope_dim, a->hybrid.index_dim, ratio, kv) + near / KV_PAGES_A_NEAR;
}

double plan_hybrid_kv_bytes(const struct plan_arch *a, enum kv_format kv) {
    const struct plan_hybrid *h = &a->hybrid;
    double page = (a->layers - h->sparse_layers - h->dense_layers) * page_bytes(a, 0, kv);
    page += h->sparse_layers * page_bytes(a, RATIO_SPARSE, kv) + h->dense_layers * page_bytes(a, RATIO_DENSE, kv);
    return page / KV_PAGE_TOKENS;
}

double plan_hybrid_running_bytes(const struct plan_arch *a, enum kv_format kv, int64_t pages, int seqs,
                                 int step_tokens) {
    const struct plan_hybrid *h = &a->hybrid;
    const int others = a->layers - h->sparse_layers - h->dense_layers;
    const size_t near =
        (size_t)others * cache_near_bytes(a->kv_lora, a->rope_dim, h->index_dim, 0, kv) +
        (size_t)h->sparse_layers * cache_near_bytes(a->kv_lora, a->rope_dim, h->index_dim, RATIO_SPARSE, kv) +
        (size_t)h->dense_layers * cache_near_bytes(a->kv_lora, a->rope_dim, h->index_dim, RATIO_DENSE, kv);
    double shares = (double)pages / KV_PAGES_A_NEAR; /* counted with the tokens */
    return (double)near * ((double)cache_near_parts(pages, h->window, seqs, step_tokens) - shares);
}

static double state_bytes(const struct plan_arch *a, bool is_sparse) {
    return (double)cache_state_floats((int)row_dim(a), is_sparse ? a->hybrid.index_dim : 0, is_sparse) * sizeof(float);
}

double plan_hybrid_read_bytes(const struct plan_arch *a, enum kv_format kv, double depth) {
    const struct plan_hybrid *h = &a->hybrid;
    const double row = (double)cache_row_bytes(a->kv_lora, a->rope_dim, kv);
    const double key = (double)cache_key_bytes(h->index_dim, kv), rows = depth / RATIO_SPARSE;
    double sparse = rows > h->index_topk ? rows * key + h->index_topk * row : rows * row;
    double all = a->layers * fmin(depth, h->window) * row;
    all += h->sparse_layers * (sparse + state_bytes(a, true));
    return all + h->dense_layers * (depth / RATIO_DENSE * row + state_bytes(a, false));
}

double plan_hybrid_query_ops(const struct plan_arch *a, double depth) {
    const struct plan_hybrid *h = &a->hybrid;
    const double pair = 4.0 * (double)row_dim(a) * a->heads, rows = depth / RATIO_SPARSE; /* a row is key and value */
    double seen = a->layers * fmin(depth, h->window) + h->dense_layers * depth / RATIO_DENSE +
                  h->sparse_layers * fmin(rows, h->index_topk);
    double index = rows > h->index_topk ? 2.0 * h->index_heads * h->index_dim * rows * h->sparse_layers : 0;
    return seen * pair + index;
}
