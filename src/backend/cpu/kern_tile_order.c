/* backend/cpu/kern_tile_order.c - the kernels that add in tile order, in plain C, operation for operation as kern.h lays them
 * down: what amx-bf16 is held against, bit for bit. */
#include "backend/cpu/kern.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { STEP = 32, PARTS = 3, TOKENS = 16 };

/* ---- parts and steps ---- */

/* The upper half of what is left, or the nearest such number, which is then taken off it. */
static float take_part(float *left, uint32_t round) {
    uint32_t bits;
    float part;
    memcpy(&bits, left, sizeof bits);
    bits = (bits + round) & 0xffff0000;
    memcpy(&part, &bits, sizeof part);
    *left -= part;
    return part;
}

static float flush(float x) {
    return fabsf(x) < FLT_MIN ? copysignf(0, x) : x;
}

/* Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS. */
static float add_step(float c, const float *a, const float *b) {
    float sum[2] = {0};
    for (int k = 0; k < STEP; k++) sum[k % 2] = flush(fmaf(flush(a[k]), flush(b[k]), sum[k % 2]));
    return flush(flush(c) + flush(sum[0] + sum[1]));
}

static int step_count(int k, int end) {
    return end - k < STEP ? end - k : STEP;
}

/* Two parts of each of a step's numbers. */
struct two_parts {
    float first[STEP], second[STEP];
};

static struct two_parts cut_in_two(const float *x, size_t stride, int count) {
    struct two_parts out = {{0}, {0}};
    for (int i = 0; i < count; i++) {
        float left = x[(size_t)i * stride];
        out.first[i] = take_part(&left, 0x8000);
        out.second[i] = take_part(&left, 0x8000);
    }
    return out;
}

static float add_two_parts(float c, const struct two_parts *a, const struct two_parts *b) {
    c = add_step(c, a->first, b->first);
    c = add_step(c, a->second, b->first);
    return add_step(c, a->first, b->second);
}

/* ---- products ---- */

/* Weights of a row and, for FP8, their scale, as the sums want them. */
static float load_weights(const struct mat *w, int row, int k0, int count, float *out) {
    if (w->format == MAT_FP8) return kern_fp8_decode(w, row, k0, count, out);
    format_decode_span(w, row, k0, count, out);
    return 1;
}

/* sum [PARTS] += a chunk's weights times one token's activations. */
static void add_chunk(const struct mat *w, const float *weight, float scale, const float *x, int count, float *sum) {
    float partial[PARTS] = {0};
    bool scaled = w->format == MAT_FP8;
    for (int k = 0; k < count; k += STEP) {
        float parts[PARTS][STEP] = {{0}};
        for (int i = 0; i < step_count(k, count); i++) {
            float left = x[k + i];
            for (int p = 0; p < PARTS; p++) parts[p][i] = take_part(&left, 0);
        }
        for (int p = 0; p < PARTS; p++) {
            float *to = scaled ? &partial[p] : &sum[p];
            *to = add_step(*to, weight + k, parts[p]);
        }
    }
    for (int p = 0; p < PARTS && scaled; p++) sum[p] = fmaf(partial[p], scale, sum[p]);
}

/* Row r times at most TOKENS tokens. */
static void gemm_row(const struct mat *w, int r, const float *const *x, int n, float *const *y) {
    float sum[TOKENS][PARTS] = {{0}};
    for (int k = 0, end; k < w->cols; k = end) {
        float weight[FP8_CHUNK + STEP] = {0};
        end = kern_chunk_end(w, k);
        float scale = load_weights(w, r, k, end - k, weight);
        for (int t = 0; t < n; t++) add_chunk(w, weight, scale, x[t] + k, end - k, sum[t]);
    }
    for (int t = 0; t < n; t++) y[t][r] = (sum[t][2] + sum[t][1]) + sum[t][0];
}

static void gemm(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    for (int t = 0; t < n; t += TOKENS)
        for (int r = r0; r < r1; r++) gemm_row(w, r, x + t, n - t < TOKENS ? n - t : TOKENS, y + t);
}

/* ---- attention ---- */

static float dot(const float *q, const float *k, int dim) {
    float sum = 0;
    for (int c = 0; c < dim; c += STEP) {
        struct two_parts a = cut_in_two(q + c, 1, step_count(c, dim)), b = cut_in_two(k + c, 1, step_count(c, dim));
        sum = add_two_parts(sum, &a, &b);
    }
    return sum;
}

static void dots(const struct kern_dots *job) {
    for (int i = 0; i < job->n_q; i++)
        for (int t = 0; t < job->n_k; t++)
            job->out[(size_t)i * job->out_stride + (size_t)t] =
                dot(job->q + (size_t)i * job->q_stride, job->k + (size_t)t * job->k_stride, job->dim);
}

static void page_sum(float *acc, size_t acc_stride, const float *keep, const float *p, size_t p_stride, const float *v,
                     size_t v_stride, int m, int n_t, int n_c) {
    for (int i = 0; i < m; i++) {
        float *row = acc + (size_t)i * acc_stride;
        for (int c = 0; c < n_c; c++) {
            float sum = keep ? row[c] * keep[i] : 0;
            for (int t = 0; t < n_t; t += STEP) {
                struct two_parts a = cut_in_two(p + (size_t)i * p_stride + t, 1, step_count(t, n_t));
                struct two_parts b = cut_in_two(v + (size_t)t * v_stride + c, v_stride, step_count(t, n_t));
                sum = add_two_parts(sum, &a, &b);
            }
            row[c] = sum;
        }
    }
}

void kern_init_tile_order(struct kern *kern) {
    kern->tile_order = true;
    kern->gemm[MAT_BF16] = kern->gemm[MAT_FP8] = gemm;
    kern->dots = dots;
    kern->page_sum = page_sum;
}
