/* V4's and V4.1's residual streams, mixed by hyper-connections. Before a block: products of a row's streams, normed as one row, with a
 * mixer's matrix, pieces of columns side by side; the numbers to mix by; and the streams' sum that the block reads. After it: its output
 * added to every stream, and the streams to each other. As backend/cpu/streams.c has it, sources included.
 *
 * The norm has no weights, so its factor is applied to the products. A piece is added up by one warp, lanes ascending by column, then
 * a tree; pieces are added in ascending order. So a row's bits are the same in any batch. */
#include "device.cuh"
#include "../params_streams.h"

enum { LANE_QUADS = STREAM_COLS / 128, WARP_NUMBERS = 3 }; /* 8 warps: the 24 numbers of four streams */

DEVICE int stream_row(const struct streams_params *p, int i) {
    return p->rows ? p->rows[i] : i;
}

/* The lane's columns of rows [number, number + 3) of the matrix; what is not there is 0. */
DEVICE void load_numbers(struct quad (*w)[LANE_QUADS], const struct streams_params *p, int number, int column) {
    const int width = p->streams * p->hidden;
    UNROLL
    for (int i = 0; i < WARP_NUMBERS; i++) {
        UNROLL
        for (int s = 0; s < LANE_QUADS; s++) {
            int k = column + s * 128, is_there = number + i < p->numbers && k < width;
            size_t at = (size_t)(number + i) * (size_t)width + (size_t)k;
            w[i][s].v[0] = w[i][s].v[1] = w[i][s].v[2] = w[i][s].v[3] = 0;
            if (is_there) w[i][s] = load_once((const uint8_t *)(p->matrix + at));
        }
    }
}

/* Row i of the batch: three products of a piece, and with the first of them the sum of squares. */
DEVICE void multiply_piece(const struct streams_params *p, int i, int piece, int number, struct quad (*w)[LANE_QUADS]) {
    const int width = p->streams * p->hidden, column = piece * STREAM_COLS + LANE * 4;
    const float *row = p->residual + (size_t)stream_row(p, i) * (size_t)width;
    float *to = p->piece + ((size_t)i * (size_t)p->pieces + (size_t)piece) * (size_t)(p->numbers + 1);
    float sum[WARP_NUMBERS] = {0, 0, 0}, squares = 0;
    struct floats4 x[LANE_QUADS];
    UNROLL
    for (int s = 0; s < LANE_QUADS; s++) {
        x[s].v[0] = x[s].v[1] = x[s].v[2] = x[s].v[3] = 0;
        if (column + s * 128 < width) x[s] = *(const struct floats4 *)(row + column + s * 128);
    }
    UNROLL
    for (int c = 0; c < LANE_QUADS * 4; c++) {
        float value = x[c / 4].v[c % 4];
        squares = fmaf(value, value, squares);
        UNROLL
        for (int j = 0; j < WARP_NUMBERS; j++) sum[j] = fmaf(value, bits_float(w[j][c / 4].v[c % 4]), sum[j]);
    }
    UNROLL
    for (int j = 0; j < WARP_NUMBERS; j++) {
        sum[j] = warp_sum(sum[j]);
        if (LANE == 0 && number + j < p->numbers) to[number + j] = sum[j];
    }
    if (number) return;
    squares = warp_sum(squares);
    if (LANE == 0) to[p->numbers] = squares;
}

/* A block for a piece of columns and up to 16 rows; a warp has three rows of the matrix at a time. */
KERNEL(streams_multiply, streams_params) {
    int piece = BLOCK % p.pieces, first = BLOCK / p.pieces * STREAM_ROWS, n = min_int(p.n - first, STREAM_ROWS);
    for (int number = WARP * WARP_NUMBERS; number < p.numbers; number += BLOCK_WARPS * WARP_NUMBERS) {
        struct quad w[WARP_NUMBERS][LANE_QUADS];
        load_numbers(w, &p, number, piece * STREAM_COLS + LANE * 4);
        after_previous();
        for (int i = 0; i < n; i++) multiply_piece(&p, first + i, piece, number, w);
    }
}

/* A row's products, and the sum of its squares behind them. */
DEVICE void add_pieces(const struct streams_params *p, int i, float *number) {
    const size_t stride = (size_t)(p->numbers + 1);
    const float *piece = p->piece + (size_t)i * (size_t)p->pieces * stride;
    for (int j = THREAD; j <= p->numbers; j += BLOCK_THREADS) {
        float sum = 0;
        for (int k = 0; k < p->pieces; k++) sum += piece[(size_t)k * stride + (size_t)j];
        number[j] = sum;
    }
}

DEVICE float sigmoid(float x) {
    return divide_roughly(1.0f, 1.0f + expf(-x));
}

/* Products to numbers to mix by, in place; those among the streams are still to be balanced. */
DEVICE void weigh(const struct streams_params *p, float *number) {
    const int s = p->streams;
    float mean = divide(number[p->numbers], (float)(s * p->hidden)), factor = inverse_root(mean + p->norm_eps);
    for (int i = THREAD; i < p->numbers; i += BLOCK_THREADS) {
        float value = number[i] * factor * p->scale[i < s ? 0 : i < 2 * s ? 1 : 2] + p->base[i];
        number[i] = i < s ? sigmoid(value) + p->mix_eps : i < 2 * s ? 2 * sigmoid(value) : value;
    }
}

/* The sum of a row (step 1) or a column (step MAX_STREAMS) of `among`. */
DEVICE float sum_among(const float *first, int step, int streams) {
    float sum = 0;
    for (int i = 0; i < streams; i++) sum += first[i * step];
    return sum;
}

/* Softmax of each row: [from stream][to stream], rows of MAX_STREAMS. A warp. */
DEVICE void soften(const struct streams_params *p, const float *number, float *among) {
    const int s = p->streams;
    for (int i = LANE; i < s * MAX_STREAMS; i += 32) {
        const float *row = number + i / MAX_STREAMS * s;
        float max = row[0], sum = 0;
        if (i % MAX_STREAMS >= s) continue;
        for (int j = 1; j < s; j++) max = fmaxf(max, row[j]);
        for (int j = 0; j < s; j++) sum += expf(row[j] - max);
        among[i] = divide(expf(row[i % MAX_STREAMS] - max), sum) + p->mix_eps;
    }
    warp_barrier();
}

/* to = from, each value divided by the sum of its row, or of its column. A warp. */
DEVICE void divide_by_sums(const struct streams_params *p, const float *from, float *to, const int by_column) {
    for (int i = LANE; i < p->streams * MAX_STREAMS; i += 32) {
        int row = i / MAX_STREAMS * MAX_STREAMS, column = i % MAX_STREAMS;
        if (column >= p->streams) continue;
        float sum = sum_among(from + (by_column ? column : row), by_column ? MAX_STREAMS : 1, p->streams);
        to[i] = divide(from[i], sum + p->mix_eps);
    }
    warp_barrier();
}

/* Sinkhorn and Knopp: sums of rows and columns go to 1. Leaves the row's numbers behind for the end of the block. A warp. */
DEVICE void balance(const struct streams_params *p, int i, const float *number, float *among, float *other) {
    const int s = p->streams;
    float *to = p->mix + (size_t)i * (size_t)p->numbers;
    soften(p, number + 2 * s, other);
    for (int round = 0; round < p->iterations; round++) {
        if (round) divide_by_sums(p, among, other, 0);
        divide_by_sums(p, other, among, 1);
    }
    for (int j = LANE; j < s; j += 32) to[s + j] = number[s + j];
    for (int j = LANE; j < s * s; j += 32) to[2 * s + j] = among[j % s * MAX_STREAMS + j / s];
}

/* x = the streams' sum, each times its `before`. */
DEVICE void collapse(const struct streams_params *p, int row, const float *before) {
    const size_t hidden = (size_t)p->hidden;
    const float *streams = p->residual + (size_t)row * (size_t)p->streams * hidden;
    for (int k = THREAD * 4; k < p->hidden; k += BLOCK_THREADS * 4) {
        struct floats4 sum = {{0, 0, 0, 0}}, x;
        for (int s = 0; s < p->streams; s++) {
            x = *(const struct floats4 *)(streams + (size_t)s * hidden + (size_t)k);
            UNROLL
            for (int c = 0; c < 4; c++) sum.v[c] = fmaf(before[s], x.v[c], sum.v[c]);
        }
        *(struct floats4 *)(p->x + (size_t)row * hidden + (size_t)k) = sum;
    }
}

/* V4.1: a block reads by what the last mixer said; what this one says is kept for the next. */
DEVICE void change_before(const struct streams_params *p, int row, float *number) {
    float *before = p->before + (size_t)row * (size_t)p->streams;
    if (THREAD < p->streams) {
        float next = number[THREAD];
        number[THREAD] = before[THREAD];
        before[THREAD] = next;
    }
    barrier();
}

/* A block a row. Balancing is a warp's, and takes about as long as the others take to collapse. */
KERNEL(streams_collapse, streams_params) {
    SHARED float number[MAX_MIX + 1], among[2][MAX_STREAMS * MAX_STREAMS];
    after_previous();
    add_pieces(&p, BLOCK, number);
    barrier();
    weigh(&p, number);
    barrier();
    if (p.before) change_before(&p, BLOCK, number);
    if (WARP == 0 && p.numbers > p.streams) balance(&p, BLOCK, number, among[0], among[1]);
    collapse(&p, stream_row(&p, BLOCK), number);
}

/* V4.1: what a block without a mixer of its own reads, the head. */
KERNEL(streams_read, streams_params) {
    after_previous();
    int row = stream_row(&p, BLOCK);
    collapse(&p, row, p.before + (size_t)row * (size_t)p.streams);
}

/* Each stream anew: the old ones by `among`, ascending, then what the block adds. A block for 1024 columns of a row. */
KERNEL(streams_mix, streams_params) {
    const int parts = ceil_div_int(p.hidden, MIX_COLS), row = BLOCK / parts, k = BLOCK % parts * MIX_COLS + THREAD * 4;
    const size_t hidden = (size_t)p.hidden;
    after_previous();
    if (k >= p.hidden) return;
    const float *after = p.mix + (size_t)row * (size_t)p.numbers + p.streams, *among = after + p.streams;
    float *streams = p.residual + (size_t)row * (size_t)p.streams * hidden + (size_t)k;
    struct floats4 old[MAX_STREAMS], added = *(const struct floats4 *)(p.x + (size_t)row * hidden + (size_t)k);
    UNROLL
    for (int s = 0; s < MAX_STREAMS; s++) {
        if (s < p.streams) old[s] = *(const struct floats4 *)(streams + (size_t)s * hidden);
    }
    for (int to = 0; to < p.streams; to++, among += p.streams) {
        struct floats4 sum = {{0, 0, 0, 0}};
        UNROLL
        for (int s = 0; s < MAX_STREAMS; s++) {
            if (s >= p.streams) continue;
            float weight = among[s];
            UNROLL
            for (int c = 0; c < 4; c++) sum.v[c] = fmaf(weight, old[s].v[c], sum.v[c]);
        }
        UNROLL
        for (int c = 0; c < 4; c++) sum.v[c] = fmaf(after[to], added.v[c], sum.v[c]);
        *(struct floats4 *)(streams + (size_t)to * hidden) = sum;
    }
}

/* Every stream = x; V4.1's first block reads the first of them. A block a row, as the next. */
KERNEL(streams_spread, streams_params) {
    const size_t hidden = (size_t)p.hidden;
    after_previous();
    if (p.before && THREAD < p.streams) p.before[(size_t)BLOCK * (size_t)p.streams + (size_t)THREAD] = THREAD == 0;
    for (int k = THREAD * 4; k < p.hidden; k += BLOCK_THREADS * 4) {
        struct floats4 x = *(const struct floats4 *)(p.x + (size_t)BLOCK * hidden + (size_t)k);
        float *to = p.residual + (size_t)BLOCK * (size_t)p.streams * hidden + (size_t)k;
        for (int s = 0; s < p.streams; s++) *(struct floats4 *)(to + (size_t)s * hidden) = x;
    }
}

/* x = 0. */
KERNEL(streams_clear, streams_params) {
    const struct floats4 zeros = {{0, 0, 0, 0}};
    after_previous();
    for (int k = THREAD * 4; k < p.hidden; k += BLOCK_THREADS * 4) {
        *(struct floats4 *)(p.x + (size_t)BLOCK * (size_t)p.hidden + (size_t)k) = zeros;
    }
}
