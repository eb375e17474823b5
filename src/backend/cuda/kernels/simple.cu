/* The small kernels: embedding, and for prompts the parts that a decode step does in the launches of others. */
#include "gguf.cuh"
#include "linear.cuh"

DEVICE float plain_value(const void *data, size_t at, int format) {
    if (format == RAW_F32) return ((const float *)data)[at];
    uint16_t bits = ((const uint16_t *)data)[at];
    return format == RAW_BF16 ? bf16_value(bits) : half_value(bits);
}

/* A block a row. */
KERNEL(embed, embed_params) {
    after_previous();
    int token = p.token[BLOCK];
    int row = token < 0 ? p.picked[-1 - token] : token;
    size_t to = (size_t)BLOCK * (size_t)p.hidden;
    for (int i = THREAD; i < p.hidden; i += BLOCK_THREADS) {
        p.x[to + i] = is_gguf(p.format) ? gguf_value_at((const uint8_t *)p.table, p.format, p.hidden, row, i)
                                        : plain_value(p.table, (size_t)row * (size_t)p.hidden + i, p.format);
    }
}

/* 128 values in e4m3 with their scale, a warp. */
DEVICE void store_native(uint8_t *to, const struct pair *values) {
    float v[4], amax = 0;
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = bf16_value((uint16_t)(values->v[i / 2] >> (i % 2 * 16)));
        if (!(fabsf(v[i]) <= amax)) amax = fabsf(v[i]); /* also a NaN */
    }
    UNROLL
    for (int step = 16; step > 0; step /= 2) {
        float other = shuffle_xor_f32(amax, step);
        if (!(other <= amax)) amax = other;
    }
    float scale = amax == 0 ? 1 : divide(amax, 448);
    uint32_t word = 0;
    UNROLL
    for (int i = 0; i < 4; i++) word |= (uint32_t)e4m3_bits(divide(v[i], scale)) << (8 * i);
    ((uint32_t *)to)[LANE] = word;
    if (LANE == 0) *(float *)(to + 128) = scale;
}

/* Squares are added as linear.cuh does it. */
DEVICE void pack_row(const struct pack_params *p, const int native) {
    SHARED float piece[BLOCK_WARPS];
    struct work work;
    work.job = &p->job;
    work.group = 0;
    after_previous();
    int row = x_row_of(&p->job, BLOCK), end = p->job.w.slabs * SLAB_COLS, pieces = ceil_div_int(end, PIECE_COLS);
    float sum = 0;
    for (int first = 0; first < pieces; first += BLOCK_WARPS) {
        int k = (first + WARP) * PIECE_COLS + LANE * 4;
        float squares = 0;
        struct pair values = load_x(0, &work, row, k, &squares);
        size_t native_at = (size_t)BLOCK * (size_t)pieces + (size_t)(first + WARP);
        if (native && first + WARP < pieces) store_native(p->to + native_at * NATIVE_ROW_BYTES, &values);
        if (!native && k < end) *(struct pair *)(p->to + ((size_t)BLOCK * (size_t)end + (size_t)k) * 2) = values;
        squares = warp_sum(squares);
        if (LANE == 0) piece[WARP] = squares;
        barrier();
        for (int i = 0; i < BLOCK_WARPS && (first + i) * PIECE_COLS < p->job.w.cols; i++) sum += piece[i];
        barrier();
    }
    if (!p->job.gain || THREAD) return;
    float mean = divide(sum, (float)p->job.w.cols);
    p->factor[BLOCK] = inverse_root(mean + p->eps);
    if (!is_finite(mean)) note_fault(p->fault, p->job.fault_key, row);
}

/* A block a row. */
KERNEL(pack_rows, pack_params) {
    pack_row(&p, 0);
}
KERNEL(pack_rows_native, pack_params) {
    pack_row(&p, 1);
}

/* A warp a row. */
KERNEL(route_choose, route_params) {
    DYNAMIC_SHARED(struct route_scratch, scratch);
    after_previous();
    choose_rows(&p, scratch, BLOCK * BLOCK_WARPS, p.n);
}

/* A block an expert. */
KERNEL(route_list, route_params) {
    DYNAMIC_SHARED(struct route_scratch, scratch);
    after_previous();
    list_one_expert(&p, scratch, BLOCK);
}

/* One block. */
KERNEL(turn_list, turn_params) {
    SHARED uint32_t before, here;
    after_previous();
    if (THREAD == 0) before = here = 0;
    barrier();
    int n = *p.n_items;
    for (int i = THREAD; i < n; i += BLOCK_THREADS) {
        int expert = p.items[i].expert - p.first;
        if (expert < 0) atomic_add_u32(&before, 1);
        if (expert >= 0 && expert < p.n) atomic_add_u32(&here, 1);
    }
    barrier();
    for (int i = THREAD; i < (int)here; i += BLOCK_THREADS) {
        struct expert_item item = p.items[before + (uint32_t)i];
        item.expert -= p.first;
        p.turn_items[i] = item;
    }
    if (THREAD == 0) *p.n_turn_items = (int32_t)here;
}

/* A block a row. */
KERNEL(add_rows, add_params) {
    size_t row = (size_t)BLOCK * (size_t)p.hidden;
    after_previous();
    for (int r = THREAD; r < p.hidden; r += BLOCK_THREADS) p.x[row + r] += p.y[row + r];
}

/* A block a row. */
KERNEL(experts_sum, sum_params) {
    after_previous();
    for (int r = THREAD; r < p.sum.hidden; r += BLOCK_THREADS) sum_experts(&p.sum, BLOCK, r);
}
