/* The small kernels: embedding, and for prompts the parts that a decode step does in the launches of others. */
#include "linear.cuh"

DEVICE float plain_value(const void *data, size_t at, int format) {
    if (format == RAW_F32) return ((const float *)data)[at];
    uint16_t bits = ((const uint16_t *)data)[at];
    return format == RAW_BF16 ? bf16_value(bits) : half_value(bits);
}

/* A block a row. */
KERNEL(embed, embed_params) {
    size_t from = (size_t)p.token[BLOCK] * (size_t)p.hidden, to = (size_t)BLOCK * (size_t)p.hidden;
    for (int i = THREAD; i < p.hidden; i += BLOCK_THREADS) p.x[to + i] = plain_value(p.table, from + i, p.format);
}

/* A block a row. Squares are added as linear.cuh does it. */
KERNEL(pack_rows, pack_params) {
    SHARED float piece[BLOCK_WARPS];
    struct work work;
    work.job = &p.job;
    work.group = 0;
    int row = x_row_of(&p.job, BLOCK), end = p.job.w.slabs * SLAB_COLS;
    uint16_t *to = p.to + (size_t)BLOCK * (size_t)end;
    float sum = 0;
    for (int k0 = 0; k0 < end; k0 += BLOCK_WARPS * PIECE_COLS) {
        int k = k0 + WARP * PIECE_COLS + LANE * 4;
        float squares = 0;
        if (k < end) *(struct pair *)(to + k) = load_x(0, &work, row, k, &squares);
        squares = warp_sum(squares);
        if (LANE == 0) piece[WARP] = squares;
        barrier();
        for (int i = 0; i < BLOCK_WARPS && k0 + i * PIECE_COLS < p.job.w.cols; i++) sum += piece[i];
        barrier();
    }
    if (!p.job.gain || THREAD) return;
    float mean = divide(sum, (float)p.job.w.cols);
    p.factor[BLOCK] = inverse_root(mean + p.eps);
    if (!is_finite(mean)) note_fault(p.fault, p.job.fault_key, row);
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
