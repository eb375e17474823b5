/* backend/cuda/kernels/native.cuh - y = x W^T for prompts with FP8 weights, on cards that multiply e4m3 by themselves. Activations are
 * e4m3 too (simple.cu packs them): 128 values of a row and their scale, largest / 448, in 144 bytes. Products of
 * 128 k are added up alone, from zero; then the sum times both scales goes to the total, in ascending order. That is coarser
 * than what the other variants compute, so it is off unless it is asked for.
 *
 * Tiles and blocks as in many.cuh. Includes: many.cuh. */
#ifndef MOEBIUS_CUDA_NATIVE_CUH
#define MOEBIUS_CUDA_NATIVE_CUH

#include "many.cuh"

enum {
    NATIVE_X_BYTES = MANY_TOKENS * NATIVE_ROW_BYTES,
    NATIVE_TILE_BYTES = 2 * 1024, /* of 16 rows x 128 k */
    NATIVE_SCALES_AT = NATIVE_X_BYTES + MANY_ROW_TILES * NATIVE_TILE_BYTES,
};

/* Starts copying k [128 step, 128 step + 128). */
DEVICE void fetch_native(const struct many *m, int step) {
    const struct linear_job *job = m->work.job;
    const struct device_matrix *w = &job->w;
    unsigned char *stage = m->stages + step % 2 * NATIVE_STAGE_BYTES;
    const uint8_t *data = w->data + (size_t)m->matrix * w->data_step;
    int groups = ceil_div_int(w->slabs, 2);
    for (int i = THREAD; i < MANY_TOKENS * (NATIVE_ROW_BYTES / 16); i += BLOCK_THREADS) {
        int token = i / (NATIVE_ROW_BYTES / 16), row = m->x_row[token];
        if (row < 0) continue;
        size_t from = ((size_t)row * (size_t)groups + (size_t)step) * NATIVE_ROW_BYTES;
        copy_async(stage + i * 16, (const uint8_t *)job->x + from + i % (NATIVE_ROW_BYTES / 16) * 16);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        int at = (THREAD + i * BLOCK_THREADS) * 16, tile = at / NATIVE_TILE_BYTES, within = at % NATIVE_TILE_BYTES;
        if (tile >= m->tiles || 2 * step + within / 1024 >= w->slabs) continue;
        size_t from = ((size_t)(m->tile + tile) * (size_t)w->slabs + (size_t)(2 * step)) * 1024;
        copy_async(stage + NATIVE_X_BYTES + at, data + from + within);
    }
    int tile = THREAD / 4;
    if (tile >= m->tiles) return;
    const uint8_t *scale = w->scale + (size_t)m->matrix * w->scale_step;
    size_t at = (size_t)(m->tile + tile) * (size_t)w->scale_groups + (size_t)((step * 128) >> w->group_shift);
    copy_async(stage + NATIVE_SCALES_AT + THREAD * 16, scale + (at * 4 + (size_t)(THREAD % 4)) * 16);
}

/* A tile's operands for 64 k: its lanes have four columns of two rows side by side, two by two. */
DEVICE void native_operands(uint32_t (*a)[4], const unsigned char *at) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        struct quad w = *(const struct quad *)(at + h * 512 + LANE * 16);
        UNROLL
        for (int i = 0; i < 4; i++) {
            a[h][i] = permute_bytes(w.v[i / 2 * 2], w.v[i / 2 * 2 + 1], i % 2 ? 0x7632u : 0x5410u);
        }
    }
}

/* sum[row tile] += 128 k of one tile of tokens. */
DEVICE void multiply_native(float (*sum)[4], uint32_t (*a)[4][4], const unsigned char *x, int quarters) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        if (i >= quarters) continue;
        const uint32_t *b = (const uint32_t *)(x + i * 32 + LANE % 4 * 4);
        UNROLL
        for (int t = 0; t < 2; t++) mma_fp8(sum[t], a[t][i], b[0], b[4]);
    }
}

DEVICE void add_native(const struct many *m, float (*total)[MANY_WARP_TILES][4], int step) {
    const unsigned char *stage = m->stages + step % 2 * NATIVE_STAGE_BYTES;
    int tile = WARP % 4 * 2, first = WARP / 4 * MANY_WARP_TILES * 8;
    int quarters = 2 * step + 1 < m->work.job->w.slabs ? 4 : 2;
    uint32_t a[2][4][4] = {{{0, 0, 0, 0}}};
    float scale[2][2];
    UNROLL
    for (int t = 0; t < 2; t++) {
        const unsigned char *at = stage + NATIVE_X_BYTES + (tile + t) * NATIVE_TILE_BYTES;
        const float *scales = (const float *)(stage + NATIVE_SCALES_AT) + (tile + t) * TILE_ROWS + LANE / 4;
        native_operands(a[t], at);
        if (quarters == 4) native_operands(a[t] + 2, at + 1024);
        scale[t][0] = scales[0];
        scale[t][1] = scales[8];
    }
    UNROLL
    for (int j = 0; j < MANY_WARP_TILES; j++) {
        if (first + j / MANY_HALF * MANY_HALF * 8 >= m->work.n) continue;
        float sum[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        const unsigned char *x = stage + (first + j * 8) * NATIVE_ROW_BYTES;
        multiply_native(sum, a, x + LANE / 4 * NATIVE_ROW_BYTES, quarters);
        UNROLL
        for (int i = 0; i < 8; i++) {
            float x_scale = *(const float *)(x + (LANE % 4 * 2 + i % 2) * NATIVE_ROW_BYTES + 128);
            float *to = &total[i / 4][j][i % 4];
            *to = fmaf(sum[i / 4][i % 4], scale[i / 4][i % 4 / 2] * x_scale, *to);
        }
    }
}

DEVICE void multiply_native_tile(struct many *m) {
    int steps = ceil_div_int(m->work.job->w.slabs, 2), mine = WARP % 4 * 2 < m->tiles;
    float total[2][MANY_WARP_TILES][4];
    UNROLL
    for (int i = 0; i < 8 * MANY_WARP_TILES; i++) total[i % 2][i / 8][i / 2 % 4] = 0;
    find_x_rows(m);
    fetch_native(m, 0);
    copy_commit();
    for (int step = 0; step < steps; step++) {
        copy_wait_all();
        barrier(); /* this step is there, and the one before it has been read */
        if (step + 1 < steps) fetch_native(m, step + 1);
        copy_commit();
        if (mine) add_native(m, total, step);
    }
    store_many(m, total);
}

DEVICE void linear_native(const struct linear_params *p) {
    DYNAMIC_SHARED(unsigned char, stages);
    struct many m;
    m.p = p;
    m.stages = stages;
    m.x_row = (int *)(stages + 2 * NATIVE_STAGE_BYTES);
    int first = p->job[0].blocks, all = first + (p->n_jobs > 1 ? p->job[1].blocks : 0);
    after_previous();
    for (int b = BLOCK; b < all; b += BLOCKS) {
        if (find_tile(&m, &p->job[b >= first], b >= first ? b - first : b)) multiply_native_tile(&m);
    }
}

#endif
