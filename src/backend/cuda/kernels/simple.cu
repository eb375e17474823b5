/* The small kernels: embedding, and for prompts the parts that a decode step does in the launches of others. */
#include "linear.cuh"

DEVICE float plain_value(const void *data, size_t at, int format) {
    if (format == RAW_F32) return ((const float *)data)[at];
    uint16_t bits = ((const uint16_t *)data)[at];
    return format == RAW_BF16 ? bf16_value(bits) : half_value(bits);
}

/* A block a row. */
KERNEL(embed, embed_params) {
    int token = p.token[BLOCK];
    size_t from = (size_t)(token < 0 ? p.picked[-1 - token] : token) * (size_t)p.hidden;
    size_t to = (size_t)BLOCK * (size_t)p.hidden;
    for (int i = THREAD; i < p.hidden; i += BLOCK_THREADS) p.x[to + i] = plain_value(p.table, from + i, p.format);
}

/* A warp a row. */
KERNEL(route_choose, route_params) {
    DYNAMIC_SHARED(struct route_scratch, scratch);
    choose_rows(&p, scratch, BLOCK * BLOCK_WARPS, p.n);
}

/* A block an expert. */
KERNEL(route_list, route_params) {
    DYNAMIC_SHARED(struct route_scratch, scratch);
    list_one_expert(&p, scratch, BLOCK);
}

/* A block a row. */
KERNEL(add_rows, add_params) {
    size_t row = (size_t)BLOCK * (size_t)p.hidden;
    for (int r = THREAD; r < p.hidden; r += BLOCK_THREADS) p.x[row + r] += p.y[row + r];
}

/* A block a row. */
KERNEL(experts_sum, sum_params) {
    for (int r = THREAD; r < p.sum.hidden; r += BLOCK_THREADS) sum_experts(&p.sum, BLOCK, r);
}
