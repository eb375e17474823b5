/* backend/cuda/kernels/linear.cuh - y = x W^T for every weight format, with what comes before (norm, merging of attention's
 * splits) and after it (adding, SiLU). Weights are mma's 16-row operand and tokens its 8 columns, so a batch of one wastes
 * no weight traffic.
 *
 *   skinny  up to 8 rows of x; a block has one row tile and each of its 8 warps a split of k
 *   wide    up to 64 rows; a block has 8 row tiles, one a warp, which walks through all splits
 *   many    more: many.cuh
 *
 * All add in the same order: a split of 256 k by itself (groups of weights ascending, each scaled after exact sums of
 * products), then splits ascending. So they give the same bits, and the host may choose by speed alone.
 * Includes: dequant.cuh, route.cuh, rope.cuh. */
#ifndef MOEBIUS_CUDA_LINEAR_CUH
#define MOEBIUS_CUDA_LINEAR_CUH

#include "dequant.cuh"
#include "merge.cuh"
#include "rope.cuh"
#include "route.cuh"

enum { MAX_COLUMNS = 64, MAX_COLUMN_TILES = 8, MAX_PIECES = SKINNY_COLS / PIECE_COLS };

/* What one block computes. */
struct work {
    const struct linear_job *job;
    const uint8_t *data, *scale; /* of the group's matrix */
    int row_block, group;
    int first, n; /* rows of y, and where x_row says so of x's list */
};

/* Block b of a job: row blocks vary fastest. Returns 0 where an item list is shorter than it could be. `listed`: see job->waits. */
DEVICE int find_work(struct work *work, const struct linear_job *job, int b, const int columns, const uint32_t *listed) {
    int matrix;
    work->job = job;
    work->row_block = b % job->row_blocks;
    b /= job->row_blocks;
    work->group = b % job->groups;
    if (job->items) {
        after_previous(); /* which may have made the list */
        if (job->waits) wait_for(listed);
        if (work->group >= *job->n_items) return 0;
        struct expert_item item = job->items[work->group];
        matrix = item.expert;
        work->first = item.first;
        work->n = item.n;
        work->group = 0;
    } else {
        matrix = work->group;
        work->first = b / job->groups * columns;
        work->n = min_int(job->n - work->first, columns);
    }
    work->data = job->w.data + (size_t)matrix * job->w.data_step;
    work->scale = job->w.scale + (size_t)matrix * job->w.scale_step;
    return 1;
}

DEVICE int x_row_of(const struct linear_job *job, int i) {
    return job->x_row ? job->x_row[i] : i;
}

/* Four values from column k on as bf16, and the sum of their squares before rounding (X_F32). Columns past the end are 0.
 * `merge` is for X_MERGE. */
DEVICE struct pair load_x(const struct merge_source *merge, const struct work *work, int row, int k, float *squares) {
    const struct linear_job *job = work->job;
    struct pair out = {{0, 0}};
    int left = job->w.cols - k;
    if (left <= 0) return out;
    if (job->x_kind == X_BF16) {
        const uint16_t *x =
            (const uint16_t *)job->x + (size_t)row * job->x_stride + (size_t)work->group * job->x_step + k;
        if (left >= 4) return *(const struct pair *)x;
        UNROLL
        for (int i = 0; i < 3; i++) {
            if (i < left) out.v[i / 2] |= (uint32_t)x[i] << (16 * (i % 2));
        }
        return out;
    }
    float v[4] = {0, 0, 0, 0};
    if (merge && job->x_kind == X_MERGE) {
        merge_slots(merge, row, work->group, k, min_int(left, 4), v);
    } else {
        const float *x = (const float *)job->x + (size_t)row * job->x_stride + (size_t)work->group * job->x_step + k;
        if (left >= 4) {
            struct floats4 four = *(const struct floats4 *)x;
            UNROLL
            for (int i = 0; i < 4; i++) v[i] = four.v[i];
        } else {
            UNROLL
            for (int i = 0; i < 3; i++) {
                if (i < left) v[i] = x[i];
            }
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            *squares = fmaf(v[i], v[i], *squares);
            if (job->gain && i < left) v[i] *= job->gain[k + i];
        }
    }
    out.v[0] = pack_bf16(v[0], v[1]);
    out.v[1] = pack_bf16(v[2], v[3]);
    return out;
}

/* Columns [k0, k0 + chunk) of the block's rows into shared memory; square sums of pieces of 128 columns into `piece`. */
DEVICE void stage_x(const struct linear_params *p, const struct work *work, uint16_t *xs, float (*piece)[MAX_PIECES],
                    int k0, const int chunk) {
    const int pieces = chunk / PIECE_COLS, stride = chunk + X_PAD;
    int end = work->job->w.slabs * SLAB_COLS; /* what lies behind is not multiplied */
    int used = min_int(pieces, ceil_div_int(end - k0, PIECE_COLS));
    for (int unit = WARP; unit < work->n * used; unit += BLOCK_WARPS) {
        int token = unit / used, j = unit % used, k = j * PIECE_COLS + LANE * 4;
        float squares = 0;
        *(struct pair *)(xs + token * stride + k) =
            load_x(&p->merge, work, x_row_of(work->job, work->first + token), k0 + k, &squares);
        if (!work->job->gain) continue;
        squares = warp_sum(squares);
        if (LANE == 0) piece[token][j] = squares;
    }
}

/* Adds the chunk's pieces to the sums of squares, ascending; thread `token` keeps its own. */
DEVICE float add_pieces(const struct work *work, float (*piece)[MAX_PIECES], int k0, const int chunk, float sum) {
    if (!work->job->gain || THREAD >= work->n) return sum;
    int n = min_int(chunk / PIECE_COLS, ceil_div_int(work->job->w.cols - k0, PIECE_COLS));
    for (int j = 0; j < n; j++) sum += piece[THREAD][j];
    return sum;
}

/* What results are multiplied with: 1 / root mean square of the row where the activations have a gain, else 1. */
DEVICE void finish_norm(const struct linear_params *p, const struct work *work, float sum, float *factor) {
    if (THREAD >= work->n) return;
    factor[THREAD] = 1;
    if (!work->job->gain) return;
    float mean = divide(sum, (float)work->job->w.cols);
    factor[THREAD] = inverse_root(mean + p->eps);
    if (!is_finite(mean)) note_fault(p->fault, work->job->fault_key, x_row_of(work->job, work->first + THREAD));
}

/* part += one slab times the block's activations; `xs` is at the slab's first column. */
DEVICE void multiply_slab(float (*part)[4], const struct slab *s, const uint16_t *xs, int stride,
                          const struct device_matrix *w, const int format, const int tiles) {
    if (is_blocks(format)) {
        multiply_blocks(part, s, xs, stride, w->coding, format, tiles, MAX_COLUMN_TILES);
        return;
    }
    float sum[MAX_COLUMN_TILES][4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        uint32_t a[4];
        slab_operand(a, s, i, format);
        UNROLL
        for (int j = 0; j < MAX_COLUMN_TILES; j++) {
            if (j >= tiles) continue;
            struct pair b = *(const struct pair *)(xs + (j * 8 + LANE / 4) * stride + i * 16 + LANE % 4 * 4);
            if (format == WEIGHT_BF16) {
                mma_bf16(part[j], a, b.v[0], b.v[1]);
                continue;
            }
            if (i == 0) sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
            mma_bf16(sum[j], a, b.v[0], b.v[1]);
        }
        if (format == WEIGHT_BF16 || i % 2 == 0 || (i == 1 && w->group_shift != 5)) continue;
        float low = scale_value(s->scale[i / 2][0], format), high = scale_value(s->scale[i / 2][1], format);
        UNROLL
        for (int j = 0; j < MAX_COLUMN_TILES; j++) {
            if (j >= tiles) continue;
            part[j][0] = fmaf(sum[j][0], low, part[j][0]);
            part[j][1] = fmaf(sum[j][1], low, part[j][1]);
            part[j][2] = fmaf(sum[j][2], high, part[j][2]);
            part[j][3] = fmaf(sum[j][3], high, part[j][3]);
            sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
        }
    }
}

/* SiLU(gate) * up, both within the limit if there is one. NaN stays NaN. */
DEVICE float silu_mul(float gate, float up, float limit) {
    if (limit > 0) {
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up < -limit ? -limit : up;
    }
    return divide_roughly(gate, 1.0f + expf(-gate)) * up;
}

/* Results for one row of y: rows g and g + 8 of a row tile. */
DEVICE void emit(const struct linear_params *p, const struct work *work, int tile, int g, int token, float low,
                 float high, float factor) {
    const struct linear_job *job = work->job;
    if (token >= work->n) return;
    size_t at = (size_t)(work->first + token) * job->y_stride + (size_t)work->group * job->y_step;
    low *= factor;
    high *= factor;
    if (job->fault_logits && !(is_finite(low) && is_finite(high))) {
        note_fault(p->fault, job->fault_logits, x_row_of(job, work->first + token));
    }
    if (job->y_kind == Y_SILU) {
        int row = tile * 8 + g;
        if (row < job->w.rows) ((uint16_t *)job->y)[at + row] = bf16_bits(silu_mul(low, high, job->limit));
        return;
    }
    UNROLL
    for (int h = 0; h < 2; h++) {
        int row = tile * TILE_ROWS + g + 8 * h;
        float value = h ? high : low;
        if (row >= job->w.rows) continue;
        if (job->y_kind == Y_BF16) {
            ((uint16_t *)job->y)[at + row] = bf16_bits(value);
        } else if (job->y_kind == Y_ADD) {
            ((float *)job->y)[at + row] += value;
        } else {
            ((float *)job->y)[at + row] = value;
        }
    }
}

/* x += every expert's result, ascending by expert, and the shared one: rows [r0, r1) of all tokens. */
DEVICE void sum_experts(const struct expert_sum *s, int token, int r) {
    float sum = 0;
    for (int j = 0; j < s->top_k; j++) {
        size_t at = (size_t)token * (size_t)s->top_k + (size_t)j;
        sum = fmaf(s->weight[at], s->routed[(size_t)s->at[at] * (size_t)s->hidden + (size_t)r], sum);
    }
    size_t here = (size_t)token * (size_t)s->hidden + (size_t)r;
    if (s->shared) sum += s->shared[here];
    s->x[here] += sum;
}

/* After a block's results are stored: the last one of a row block adds them up. */
DEVICE void finish_sum(const struct linear_params *p, const struct work *work, const int block_rows) {
    const struct expert_sum *s = &p->sum;
    if (!s->arrived) return;
    if (!arrive_last(&s->arrived[work->row_block], (uint32_t)(*s->n_items + s->shared_tiles))) return;
    if (s->listed && work->row_block == 0 && THREAD == 0) *s->listed = 0; /* the launch that it was for is over */
    int r0 = work->row_block * block_rows, rows = min_int(s->hidden - r0, block_rows);
    for (int i = THREAD; i < rows * s->n; i += BLOCK_THREADS) sum_experts(s, i / rows, r0 + i % rows);
}

/* A head's queries through its key matrix, in the order of the wide variant; and their rotation. The whole block. */
DEVICE void absorb_head(const struct linear_params *p, int head, uint16_t *xs, float (*piece)[MAX_PIECES]) {
    const struct linear_job *key = &p->absorb.key;
    const struct device_matrix *w = &key->w;
    struct work work = {key, w->data + (size_t)head * w->data_step, w->scale, 0, head, 0, key->n};
    stage_x(p, &work, xs, piece, 0, SKINNY_COLS);
    barrier();
    for (int tile = WARP; tile < w->row_tiles; tile += BLOCK_WARPS) {
        float total[4] = {0, 0, 0, 0}, part[MAX_COLUMN_TILES][4];
        struct slab next;
        slab_load(&next, w, work.data, work.scale, tile, 0, WEIGHT_BF16);
        for (int i = 0; i < w->slabs; i++) {
            struct slab slab = next;
            if (i + 1 < w->slabs) slab_load(&next, w, work.data, work.scale, tile, i + 1, WEIGHT_BF16);
            if (i % SPLIT_SLABS == 0) part[0][0] = part[0][1] = part[0][2] = part[0][3] = 0;
            multiply_slab(part, &slab, xs + i * SLAB_COLS, SKINNY_COLS + X_PAD, w, WEIGHT_BF16, 1);
            if (i % SPLIT_SLABS != SPLIT_SLABS - 1 && i != w->slabs - 1) continue;
            UNROLL
            for (int c = 0; c < 4; c++) total[c] += part[0][c];
        }
        emit(p, &work, tile, LANE / 4, LANE % 4 * 2, total[0], total[2], 1);
        emit(p, &work, tile, LANE / 4, LANE % 4 * 2 + 1, total[1], total[3], 1);
    }
    for (int row = 0; row < key->n; row++) rotate_queries(&p->rope, row, head, 1);
}

/* This block's share of the head's key matrix, while others still work on its queries. */
DEVICE void prefetch_key(const struct absorb_params *a, int head, int share) {
    uint32_t line = 128,
             each = (uint32_t)a->key.w.data_step / (uint32_t)a->head_tiles / line * line + line; /* a head: KiB */
    size_t end = a->key.w.data_step < each * (size_t)(share + 1) ? a->key.w.data_step : each * (size_t)(share + 1);
    const uint8_t *data = a->key.w.data + (size_t)head * a->key.w.data_step;
    for (size_t at = each * (size_t)share + (size_t)THREAD * line; at < end; at += BLOCK_THREADS * line) {
        prefetch(data + at);
    }
}

/* After a block's results are stored: what the last one of a head, or of the latent, goes on with. */
DEVICE void finish_projection(const struct linear_params *p, const struct work *work, uint16_t *xs,
                              float (*piece)[MAX_PIECES]) {
    const struct absorb_params *a = &p->absorb;
    if (work->job->last_work == LAST_HEADS) {
        int head = work->row_block / a->head_tiles;
        if (a->prefetch) prefetch_key(a, head, work->row_block % a->head_tiles);
        if (arrive_last(&a->arrived[head], (uint32_t)a->head_tiles)) absorb_head(p, head, xs, piece);
    } else if (work->job->last_work == LAST_LATENT) {
        if (!arrive_last(&a->arrived[a->key.groups], (uint32_t)work->job->row_blocks)) return;
        for (int row = 0; row < a->key.n; row++) cache_latent(&p->rope, (float *)xs, row);
    }
}

/* Blocks before the jobs: routing and rotation have work of their own in the same launch, and others wait for what comes of it. */
DEVICE void extra_work(const struct linear_params *p, int b) {
    DYNAMIC_SHARED(unsigned char, scratch);
    if (b < p->route.blocks) {
        route_block(&p->route, (struct route_scratch *)scratch, b);
    } else {
        rope_row(&p->rope, (float *)scratch, b - p->route.blocks);
    }
}

/* The job of this block, or NULL when there is nothing left to do. */
DEVICE int begin_work(const struct linear_params *p, struct work *work, const int columns) {
    int b = BLOCK - p->route.blocks - p->rope.blocks, j = 0;
    if (b < 0) {
        after_previous();
        extra_work(p, BLOCK);
        return 0;
    }
    while (b >= p->job[j].blocks) b -= p->job[j++].blocks;
    return find_work(work, &p->job[j], b, columns, p->route.listed);
}

DEVICE void linear_skinny(const struct linear_params *p, const int format) {
    DYNAMIC_SHARED(uint16_t, xs); /* [8][SKINNY_COLS + X_PAD] */
    SHARED float piece[8][MAX_PIECES], factor[8], partial[BLOCK_WARPS][TILE_ROWS * 8];
    struct work work;
    if (!begin_work(p, &work, 8)) return;
    const struct device_matrix *w = &work.job->w;
    float total = 0, squares = 0; /* threads below 128: one (row, token) each */
    for (int k0 = 0; k0 < w->slabs * SLAB_COLS; k0 += SKINNY_COLS) {
        int first = k0 / SLAB_COLS + WARP * SPLIT_SLABS, n = min_int(w->slabs - first, SPLIT_SLABS);
        struct slab slabs[SPLIT_SLABS];
        UNROLL
        for (int i = 0; i < SPLIT_SLABS; i++) {
            if (i < n) slab_load(&slabs[i], w, work.data, work.scale, work.row_block, first + i, format);
        }
        after_previous();
        stage_x(p, &work, xs, piece, k0, SKINNY_COLS);
        barrier();
        squares = add_pieces(&work, piece, k0, SKINNY_COLS, squares);
        float part[MAX_COLUMN_TILES][4] = {{0, 0, 0, 0}};
        UNROLL
        for (int i = 0; i < SPLIT_SLABS; i++) {
            if (i >= n) continue;
            multiply_slab(part, &slabs[i], xs + (WARP * SPLIT_SLABS + i) * SLAB_COLS, SKINNY_COLS + X_PAD, w, format,
                          1);
        }
        UNROLL
        for (int i = 0; i < 4; i++) partial[WARP][(LANE / 4 + i / 2 * 8) * 8 + LANE % 4 * 2 + i % 2] = part[0][i];
        barrier();
        int splits = min_int(ceil_div_int(w->slabs - k0 / SLAB_COLS, SPLIT_SLABS), BLOCK_WARPS);
        if (THREAD < TILE_ROWS * 8) {
            for (int i = 0; i < splits; i++) total += partial[i][THREAD];
        }
    }
    finish_norm(p, &work, squares, factor);
    barrier(); /* partial has been read */
    if (THREAD < TILE_ROWS * 8) partial[0][THREAD] = total;
    barrier();
    if (THREAD < 64) {
        int g = THREAD / 8, token = THREAD % 8;
        emit(p, &work, work.row_block, g, token, partial[0][THREAD], partial[0][THREAD + 64], factor[token]);
    }
    finish_sum(p, &work, TILE_ROWS);
    finish_projection(p, &work, xs, piece);
}

DEVICE void linear_wide(const struct linear_params *p, const int format, const int tiles) {
    DYNAMIC_SHARED(uint16_t, xs); /* [8 * tiles][WIDE_COLS + X_PAD] */
    SHARED float piece[MAX_COLUMNS][MAX_PIECES], factor[MAX_COLUMNS];
    struct work work;
    if (!begin_work(p, &work, 8 * tiles)) return;
    const struct device_matrix *w = &work.job->w;
    int tile = work.row_block * BLOCK_WARPS + WARP, mine = tile < w->row_tiles;
    float total[MAX_COLUMN_TILES][4], part[MAX_COLUMN_TILES][4], squares = 0;
    struct slab next;
    UNROLL
    for (int j = 0; j < MAX_COLUMN_TILES; j++) {
        if (j < tiles) total[j][0] = total[j][1] = total[j][2] = total[j][3] = 0;
    }
    if (mine) slab_load(&next, w, work.data, work.scale, tile, 0, format);
    after_previous();
    for (int k0 = 0; k0 < w->slabs * SLAB_COLS; k0 += WIDE_COLS) {
        int first = k0 / SLAB_COLS, n = min_int(w->slabs - first, WIDE_COLS / SLAB_COLS);
        barrier(); /* the last chunk has been read */
        stage_x(p, &work, xs, piece, k0, WIDE_COLS);
        barrier();
        squares = add_pieces(&work, piece, k0, WIDE_COLS, squares);
        for (int i = 0; i < n && mine; i++) {
            struct slab slab = next;
            if (first + i + 1 < w->slabs) slab_load(&next, w, work.data, work.scale, tile, first + i + 1, format);
            UNROLL
            for (int j = 0; j < MAX_COLUMN_TILES; j++) {
                if (j < tiles && i % SPLIT_SLABS == 0) part[j][0] = part[j][1] = part[j][2] = part[j][3] = 0;
            }
            multiply_slab(part, &slab, xs + i * SLAB_COLS, WIDE_COLS + X_PAD, w, format, tiles);
            if (i % SPLIT_SLABS != SPLIT_SLABS - 1 && i != n - 1) continue;
            UNROLL
            for (int j = 0; j < MAX_COLUMN_TILES; j++) {
                if (j >= tiles) continue;
                UNROLL
                for (int c = 0; c < 4; c++) total[j][c] += part[j][c];
            }
        }
    }
    finish_norm(p, &work, squares, factor);
    barrier();
    UNROLL
    for (int j = 0; j < MAX_COLUMN_TILES; j++) {
        if (j >= tiles || !mine) continue;
        int g = LANE / 4, token = j * 8 + LANE % 4 * 2;
        emit(p, &work, tile, g, token, total[j][0], total[j][2], factor[token]);
        emit(p, &work, tile, g, token + 1, total[j][1], total[j][3], factor[token + 1]);
    }
    finish_sum(p, &work, BLOCK_WARPS * TILE_ROWS);
}

#endif
