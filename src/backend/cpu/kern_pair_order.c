/* backend/cpu/kern_pair_order.c - the kernels that add in pair order, in plain C, operation for operation as kern.h lays them
 * down: what avx512-bf16 is held against, bit for bit. */
#include "backend/cpu/kern.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { STEP = 2 * SUM_LANES, TOKENS = 16 };

/* ---- pairs ---- */

static float flush(float x) {
    return fabsf(x) < FLT_MIN ? copysignf(0, x) : x;
}

/* Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VCVTNEPS2BF16. */
static uint16_t round_one(float x) {
    return f32_to_bf16(flush(x));
}

/* Source: the same, VDPBF16PS. */
static float add_pair(float sum, const float *a, const float *b) {
    sum = flush(fmaf(flush(a[1]), flush(b[1]), flush(sum)));
    return flush(fmaf(flush(a[0]), flush(b[0]), sum));
}

/* lanes[SUM_LANES] += a * b over n values, and zeros up to a multiple of STEP. */
static void lanes_add_pairs(float *lanes, const float *a, const float *b, int n) {
    for (int i = 0; i < n; i += STEP) {
        float left[STEP] = {0}, right[STEP] = {0};
        memcpy(left, a + i, (size_t)(n - i < STEP ? n - i : STEP) * sizeof *a);
        memcpy(right, b + i, (size_t)(n - i < STEP ? n - i : STEP) * sizeof *b);
        for (int l = 0; l < SUM_LANES; l++) lanes[l] = add_pair(lanes[l], left + 2 * l, right + 2 * l);
    }
}

static float lanes_sum(float *lanes) {
    for (int half = SUM_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

/* ---- products ---- */

/* lanes += a chunk's weights times one token's activations. */
static void add_chunk(const float *weight, const float *scale, const float *x, int count, float *lanes) {
    float rounded[FP8_CHUNK], partial[SUM_LANES] = {0};
    for (int i = 0; i < count; i++) rounded[i] = bf16_to_f32(round_one(x[i]));
    lanes_add_pairs(scale ? partial : lanes, weight, rounded, count);
    for (int l = 0; l < SUM_LANES && scale; l++) lanes[l] = fmaf(partial[l], *scale, lanes[l]);
}

/* Row r times at most TOKENS tokens. */
static void gemm_row(const struct mat *w, int r, const float *const *x, int n, float *const *y) {
    float lanes[TOKENS][SUM_LANES] = {{0}}, weight[FP8_CHUNK], scale = 1;
    const bool scaled = w->format == MAT_FP8;
    for (int k = 0, end; k < w->cols; k = end) {
        end = kern_chunk_end(w, k);
        if (scaled) {
            scale = kern_fp8_decode(w, r, k, end - k, weight);
        } else {
            format_decode_span(w, r, k, end - k, weight);
        }
        for (int t = 0; t < n; t++) add_chunk(weight, scaled ? &scale : NULL, x[t] + k, end - k, lanes[t]);
    }
    for (int t = 0; t < n; t++) y[t][r] = lanes_sum(lanes[t]);
}

static void gemm(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    for (int t = 0; t < n; t += TOKENS)
        for (int r = r0; r < r1; r++) gemm_row(w, r, x + t, n - t < TOKENS ? n - t : TOKENS, y + t);
}

/* ---- attention ---- */

static void round_all(const float *x, int n, uint16_t *out) {
    for (int i = 0; i < n; i++) out[i] = round_one(x[i]);
}

static float dot(const uint16_t *q, const uint16_t *k, int dim) {
    float lanes[SUM_LANES] = {0};
    for (int c = 0; c < dim; c += STEP) {
        float a[STEP] = {0}, b[STEP] = {0};
        for (int i = 0; i < STEP && c + i < dim; i++) {
            a[i] = bf16_to_f32(q[c + i]);
            b[i] = bf16_to_f32(k[c + i]);
        }
        lanes_add_pairs(lanes, a, b, STEP);
    }
    return lanes_sum(lanes);
}

static void pair_dots(const struct kern_pair_dots *job) {
    for (int i = 0; i < job->n_q; i++)
        for (int t = 0; t < job->n_k; t++)
            job->out[(size_t)i * job->out_stride + (size_t)t] =
                dot(job->q + (size_t)i * job->q_stride, job->k + (size_t)t * job->k_stride, job->dim);
}

static float weigh(const struct kern_pair_sum *job, const float *p, int c, float sum) {
    for (int t = 0; t < job->n_t; t += 2) {
        float a[2] = {0}, b[2] = {0};
        for (int i = 0; i < 2 && t + i < job->n_t; i++) {
            a[i] = bf16_to_f32(round_one(p[t + i]));
            b[i] = bf16_to_f32(job->v[(size_t)(t + i) * job->v_stride + (size_t)c]);
        }
        sum = add_pair(sum, a, b);
    }
    return sum;
}

static void pair_sum(const struct kern_pair_sum *job) {
    for (int i = 0; i < job->m; i++) {
        float *row = job->acc + (size_t)i * job->acc_stride;
        for (int c = 0; c < job->n_c; c++)
            row[c] = weigh(job, job->p + (size_t)i * job->p_stride, c, job->keep ? row[c] * job->keep[i] : 0);
    }
}

void kern_init_pair_order(struct kern *kern) {
    kern->pair_order = true;
    kern->gemm_unrounded = kern->gemm[MAT_BF16];
    kern->gemm[MAT_BF16] = kern->gemm[MAT_FP8] = gemm;
    kern->to_bf16 = round_all;
    kern->pair_dots = pair_dots;
    kern->pair_sum = pair_sum;
}
