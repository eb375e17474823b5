/* backend/cuda/kernels/many.cuh - y = x W^T for prompts: a block has 128 rows of x and 128 of W, a warp 64 and 32 of these.
 *
 * Activations come as bf16 (simple.cu packs those that are not); they and the weights, as they are stored, are copied to shared
 * memory three or four slabs ahead. Each warp widens the weights in registers: two warps do the same work then, but what they
 * would save by sharing it, bf16 tiles in shared memory cost again in reading them, and in room for slabs.
 *
 * The same bits as the other variants (linear.cuh): the operands of each mma, the scaling of each slab's sums, and the order of
 * splits are theirs. A group's sums live for one tile of tokens only, so that two full sets fit in registers: a split's
 * and the total.
 *
 * A block takes tile after tile: those of items that an expert does not have are skipped on the device, and the host
 * needs no counts. Includes: linear.cuh. */
#ifndef MOEBIUS_CUDA_MANY_CUH
#define MOEBIUS_CUDA_MANY_CUH

#include "linear.cuh"

enum {
    MANY_ROW_TILES = MANY_ROWS / TILE_ROWS,
    MANY_WARP_TILES = 8, /* of 8 tokens, for each warp */
    MANY_HALF = 4,       /* of which as many are looked at together */
    MANY_Y_STRIDE = MANY_ROWS + 4,
};

/* A tile in work. */
struct many {
    const struct linear_params *p;
    struct work work;
    unsigned char *stages;
    int matrix, tile, tiles; /* the expert, its first row tile, and how many there are */
    int *x_row;              /* [MANY_TOKENS] in shared memory; -1: there is no such token */
};

DEVICE int many_stages(const int format) {
    return is_blocks(format) || slab_quads(format) == 1 ? MANY_STAGES_SMALL : MANY_STAGES;
}
/* A tile's values in shared memory. */
DEVICE int many_tile_bytes(const int format) {
    return is_blocks(format) ? planes_bytes(CODE_NONE, format) : slab_quads(format) * 512;
}
DEVICE int many_stage_bytes(const int format) {
    return MANY_X_BYTES + MANY_ROW_TILES * many_tile_bytes(format) + (format == WEIGHT_BF16 ? 0 : MANY_SCALE_BYTES);
}

/* Tile b of a job; returns 0 where an item list is shorter than it could be. Tokens vary fastest where there is one matrix: its
 * rows are read once then. In a list rows do, and an expert's items follow one another. */
DEVICE int find_tile(struct many *m, const struct linear_job *job, int b) {
    int tokens = ceil_div_int(job->n, MANY_TOKENS), matrix = 0, block;
    struct work *work = &m->work;
    work->job = job;
    work->group = 0;
    if (job->items) {
        block = b % job->row_blocks;
        if (b / job->row_blocks >= *job->n_items) return 0;
        struct expert_item item = job->items[b / job->row_blocks];
        matrix = item.expert;
        work->first = item.first;
        work->n = item.n;
    } else {
        block = b / tokens;
        work->first = b % tokens * MANY_TOKENS;
        work->n = min_int(job->n - work->first, MANY_TOKENS);
    }
    work->row_block = block;
    m->matrix = matrix; /* one number through the loop, instead of two addresses: registers are scarce */
    m->tile = block * MANY_ROW_TILES;
    m->tiles = min_int(job->w.row_tiles - m->tile, MANY_ROW_TILES);
    return 1;
}

DEVICE int many_x_row(const struct work *work, int i) {
    return work->job->x_in_order ? work->first + i : x_row_of(work->job, work->first + i);
}

DEVICE void find_x_rows(struct many *m) {
    if (THREAD < MANY_TOKENS) m->x_row[THREAD] = THREAD < m->work.n ? many_x_row(&m->work, THREAD) : -1;
    barrier();
}

/* Scales of a slab of blocks: in each tile's 128 bytes first its codes, then what lies beside them. */
DEVICE void fetch_codes(const struct many *m, unsigned char *to, int slab) {
    const struct device_matrix *w = &m->work.job->w;
    int tile = THREAD / 8, piece = THREAD % 8;
    if (tile >= m->tiles || piece >= 4 + beside_bytes(w->coding)) return;
    const uint8_t *chunk = chunk_of(w, w->scale + (size_t)m->matrix * w->scale_step, m->tile + tile, slab);
    copy_async(to + THREAD * 16, chunk + (piece < 4 ? codes_at(w, slab) : beside_at(w)) + piece % 4 * 16);
}

/* Scales of a slab: in each tile's 128 bytes one or two groups of 16. */
DEVICE void fetch_scales(const struct many *m, unsigned char *to, int slab, const int format) {
    const struct device_matrix *w = &m->work.job->w;
    const int pieces = format == WEIGHT_INT4 || format == WEIGHT_INT8 ? 2 : 4; /* of 16 bytes, for a group */
    int tile = THREAD / 8, group = THREAD % 8 / pieces;
    if (tile >= m->tiles || group > (w->group_shift == 5)) return;
    group = min_int(((slab * SLAB_COLS) >> w->group_shift) + group, w->scale_groups - 1);
    size_t at = ((size_t)(m->tile + tile) * (size_t)w->scale_groups + (size_t)group) * (size_t)pieces;
    copy_async(to + THREAD * 16, w->scale + (size_t)m->matrix * w->scale_step + (at + (size_t)(THREAD % pieces)) * 16);
}

/* Starts copying a slab. A token's 128 bytes are in pieces of 16, which change places by pairs: so four tokens' rows are in
 * other banks. Rows and tiles that are not there stay what they are: nothing of them is stored. */
DEVICE void fetch_slab(const struct many *m, int slab, const int format) {
    const struct linear_job *job = m->work.job;
    const int tile_bytes = many_tile_bytes(format),
              pieces = ceil_div_int(MANY_ROW_TILES * tile_bytes, BLOCK_THREADS * 16);
    const int stored = is_blocks(format) ? planes_bytes(job->w.coding, format) : tile_bytes;
    unsigned char *stage = m->stages + slab % many_stages(format) * many_stage_bytes(format);
    int k = slab * SLAB_COLS + THREAD % 8 * 8;
    UNROLL
    for (int i = 0; i < 4; i++) {
        int token = THREAD / 8 + i * 32, row = m->x_row[token];
        unsigned char *at = stage + token * 128 + ((THREAD % 8) ^ (token % 4 * 2)) * 16;
        if (row < 0) continue;
        if ((size_t)k < job->x_stride) {
            copy_async(at, (const uint16_t *)job->x + (size_t)row * job->x_stride + k);
        } else {
            struct quad zero = {{0, 0, 0, 0}};
            *(struct quad *)at = zero;
        }
    }
    stage += MANY_X_BYTES;
    UNROLL
    for (int i = 0; i < pieces; i++) {
        int at = (THREAD + i * BLOCK_THREADS) * 16, tile = at / tile_bytes;
        if (tile >= m->tiles || at % tile_bytes >= stored) continue;
        size_t from = ((size_t)(m->tile + tile) * (size_t)job->w.slabs + (size_t)slab) * (size_t)stored;
        copy_async(stage + at, job->w.data + (size_t)m->matrix * job->w.data_step + from + at % tile_bytes);
    }
    if (is_blocks(format)) {
        fetch_codes(m, stage + MANY_ROW_TILES * tile_bytes, slab);
    } else if (format != WEIGHT_BF16) {
        fetch_scales(m, stage + MANY_ROW_TILES * tile_bytes, slab, format);
    }
}

DEVICE const unsigned char *scales_of(const unsigned char *weights, int tile, const int format) {
    return weights + MANY_ROW_TILES * many_tile_bytes(format) + tile * 128;
}

/* Of rows g and g + 8. */
DEVICE void read_scales(uint32_t *scale, const unsigned char *scales, int group, const int format) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        int at = group * 16 + LANE / 4 + h * 8;
        scale[h] = format == WEIGHT_INT4 || format == WEIGHT_INT8 ? ((const uint16_t *)scales)[at]
                                                                  : ((const uint32_t *)scales)[at];
    }
}

/* A lane's share of one tile, from shared memory. */
DEVICE void read_slab(struct slab *s, const unsigned char *weights, int tile, int group_shift, const int format) {
    const int quads = slab_quads(format);
    UNROLL
    for (int i = 0; i < 4; i++) {
        if (i < quads) s->w[i] = *(const struct quad *)(weights + (tile * quads + i) * 512 + LANE * 16);
    }
    if (format == WEIGHT_BF16) return;
    read_scales(s->scale[0], scales_of(weights, tile, format), 0, format);
    read_scales(s->scale[1], scales_of(weights, tile, format), group_shift == 5, format);
}

#define SHARED_QUAD(at) (*(const struct quad *)(at))
#define SHARED_PAIR(at) (*(const struct pair *)(at))
#define SHARED_WORD(at) (*(const uint32_t *)(at))
DEVICE void read_blocks(struct slab *s, const unsigned char *weights, int tile, int slab, int coding,
                        const int format) {
    const unsigned char *codes = scales_of(weights, tile, format), *beside = codes + 64;
    int bytes = beside_bytes(coding);
    LOAD_PLANES(s, weights + tile * many_tile_bytes(format), coding, format, SHARED_QUAD, SHARED_PAIR, SHARED_WORD);
    UNROLL
    for (int h = 0; h < 2; h++) {
        int row = LANE / 4 + h * 8;
        s->scale[0][h] = codes_of_slab(SHARED_WORD(codes + row * 4), slab, coding, format);
        s->scale[1][h] = bytes == 4 ? SHARED_WORD(beside + row * 4) : bytes == 2 ? ((const uint16_t *)beside)[row] : 0;
    }
}

/* part[row tile][token tile] += one slab of blocks. Activations are summed once for both row tiles. */
DEVICE void multiply_many_blocks(const struct many *m, float (*part)[MANY_WARP_TILES][4], int slab, const int format) {
    const unsigned char *stage = m->stages + slab % many_stages(format) * many_stage_bytes(format);
    int coding = m->work.job->w.coding, begin = WARP / 4 * MANY_WARP_TILES * 8;
    struct slab s[2];
    UNROLL
    for (int t = 0; t < 2; t++) read_blocks(&s[t], stage + MANY_X_BYTES, WARP % 4 * 2 + t, slab, coding, format);
    UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t a[2][2][4];
        struct half_scales scales[2];
        UNROLL
        for (int t = 0; t < 2; t++) {
            blocks_operand(a[t][0], &s[t], 2 * half, coding, format);
            blocks_operand(a[t][1], &s[t], 2 * half + 1, coding, format);
            find_scales(&scales[t], &s[t], half, coding, format);
        }
        UNROLL
        for (int j = 0; j < MANY_WARP_TILES; j++) {
            if (begin + j / MANY_HALF * MANY_HALF * 8 >= m->work.n) continue; /* none of these four tiles has a token */
            int token = begin + j * 8 + LANE / 4;
            struct pair b[2];
            float sums[2][4];
            UNROLL
            for (int step = 0; step < 2; step++) {
                int piece = ((half * 2 + step) * 2 + LANE % 4 / 2) ^ (token % 4 * 2);
                b[step] = *(const struct pair *)(stage + token * 128 + piece * 16 + LANE % 2 * 8);
            }
            if (has_low(coding, format)) sum_activations(sums, b, format);
            UNROLL
            for (int t = 0; t < 2; t++) {
                add_products(part[t][j], a[t], b, &scales[t], format);
                if (has_low(coding, format)) add_lows(part[t][j], sums, &scales[t], format);
            }
        }
    }
}

DEVICE void scale_sums(float *part, float *sum, const uint32_t *scale, const int format) {
    UNROLL
    for (int c = 0; c < 4; c++) {
        part[c] = fmaf(sum[c], scale_value(scale[c / 2], format), part[c]);
        sum[c] = 0;
    }
}

/* part[row tile][token tile] += one slab. */
DEVICE void multiply_many(const struct many *m, float (*part)[MANY_WARP_TILES][4], int slab, const int format) {
    if (is_blocks(format)) {
        multiply_many_blocks(m, part, slab, format);
        return;
    }
    const unsigned char *stage = m->stages + slab % many_stages(format) * many_stage_bytes(format);
    const unsigned char *weights = stage + MANY_X_BYTES;
    int shift = m->work.job->w.group_shift, begin = WARP / 4 * MANY_WARP_TILES * 8;
    uint32_t a[2][4][4];
    struct slab s[2];
    UNROLL
    for (int t = 0; t < 2; t++) {
        read_slab(&s[t], weights, WARP % 4 * 2 + t, shift, format);
        UNROLL
        for (int i = 0; i < 4; i++) slab_operand(a[t][i], &s[t], i, format);
    }
    UNROLL
    for (int j = 0; j < MANY_WARP_TILES; j++) {
        if (begin + j / MANY_HALF * MANY_HALF * 8 >= m->work.n) continue; /* none of these four tiles has a token */
        int token = begin + j * 8 + LANE / 4;
        float sum[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        UNROLL
        for (int i = 0; i < 4; i++) {
            int piece = (i * 2 + LANE % 4 / 2) ^ (token % 4 * 2);
            struct pair b = *(const struct pair *)(stage + token * 128 + piece * 16 + LANE % 2 * 8);
            UNROLL
            for (int t = 0; t < 2; t++) {
                mma_bf16(format == WEIGHT_BF16 ? part[t][j] : sum[t], a[t][i], b.v[0], b.v[1]);
                if (format == WEIGHT_BF16 || i % 2 == 0 || (i == 1 && shift != 5)) continue;
                uint32_t first[2]; /* few have groups of 32: no registers are kept for these */
                if (i == 1) read_scales(first, scales_of(weights, WARP % 4 * 2 + t, format), 0, format);
                scale_sums(part[t][j], sum[t], i == 1 ? first : s[t].scale[1], format);
            }
        }
    }
}

/* Results by way of shared memory, so that a warp stores rows side by side. */
DEVICE void store_many(const struct many *m, float (*total)[MANY_WARP_TILES][4]) {
    float *y = (float *)m->stages; /* [128 tokens][MANY_Y_STRIDE] */
    barrier();                     /* the last slab has been read */
    UNROLL
    for (int t = 0; t < 2; t++) {
        UNROLL
        for (int i = 0; i < MANY_WARP_TILES * 4; i++) {
            int token = (WARP / 4 * MANY_WARP_TILES + i / 4) * 8 + LANE % 4 * 2 + i % 2;
            y[token * MANY_Y_STRIDE + (WARP % 4 * 2 + t) * TILE_ROWS + LANE / 4 + i % 4 / 2 * 8] =
                total[t][i / 4][i % 4];
        }
    }
    barrier();
    for (int token = WARP; token < m->work.n; token += BLOCK_WARPS) {
        const float *factors = m->work.job->factor;
        float factor = factors ? factors[many_x_row(&m->work, token)] : 1;
        for (int i = LANE; i < m->tiles * 8; i += 32) {
            const float *row = y + token * MANY_Y_STRIDE + i / 8 * TILE_ROWS + i % 8;
            emit(m->p, &m->work, m->tile + i / 8, i % 8, token, row[0], row[8], factor);
        }
    }
    barrier(); /* the next tile may be copied there */
}

DEVICE void multiply_tile(struct many *m, const int format) {
    const int ahead = many_stages(format) - 1;
    int slabs = m->work.job->w.slabs, mine = WARP % 4 * 2 < m->tiles;
    float part[2][MANY_WARP_TILES][4], total[2][MANY_WARP_TILES][4];
    UNROLL
    for (int i = 0; i < 8 * MANY_WARP_TILES; i++) part[i % 2][i / 8][i / 2 % 4] = total[i % 2][i / 8][i / 2 % 4] = 0;
    find_x_rows(m);
    for (int i = 0; i < ahead; i++) {
        if (i < slabs) fetch_slab(m, i, format);
        copy_commit();
    }
    for (int slab = 0; slab < slabs; slab++) {
        if (ahead == 2) {
            copy_wait_all_but_one();
        } else {
            copy_wait_all_but_two();
        }
        barrier(); /* this slab is there, and the one before it has been read */
        if (slab + ahead < slabs) fetch_slab(m, slab + ahead, format);
        copy_commit();
        if (!mine) continue;
        multiply_many(m, part, slab, format);
        if (slab % SPLIT_SLABS != SPLIT_SLABS - 1 && slab != slabs - 1) continue;
        UNROLL
        for (int i = 0; i < 8 * MANY_WARP_TILES; i++) {
            total[i % 2][i / 8][i / 2 % 4] += part[i % 2][i / 8][i / 2 % 4];
            part[i % 2][i / 8][i / 2 % 4] = 0;
        }
    }
    store_many(m, total);
}

DEVICE void linear_many(const struct linear_params *p, const int format) {
    DYNAMIC_SHARED(unsigned char, stages);
    struct many m;
    m.p = p;
    m.stages = stages;
    m.x_row = (int *)(stages + many_stages(format) * many_stage_bytes(format));
    int first = p->job[0].blocks, all = first + (p->n_jobs > 1 ? p->job[1].blocks : 0);
    after_previous();
    for (int b = BLOCK; b < all; b += BLOCKS) {
        if (find_tile(&m, &p->job[b >= first], b >= first ? b - first : b)) multiply_tile(&m, format);
    }
}

#endif
