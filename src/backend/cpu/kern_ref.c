/* backend/cpu/kern_ref.c - every kernel in plain C, operation for operation as kern.h lays them down: what
 * the fast ones are held against, bit for bit. */
#include "backend/cpu/kern.h"

#include <math.h>
#include <string.h>

enum { TOKENS = 16 }; /* that share decoded weights */

/* ---- lanes ---- */

/* lanes[SUM_LANES] += a * b over n values, and zeros up to a multiple of SUM_LANES. */
static void lanes_add_products(float *lanes, const float *a, const float *b, int n) {
    int i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        for (int l = 0; l < SUM_LANES; l++) lanes[l] = fmaf(a[i + l], b[i + l], lanes[l]);
    for (int l = 0; l < SUM_LANES && i < n; l++)
        lanes[l] = i + l < n ? fmaf(a[i + l], b[i + l], lanes[l]) : lanes[l] + 0.0f;
}

static float lanes_sum(const float *lanes) {
    float sum[SUM_LANES];
    memcpy(sum, lanes, sizeof sum);
    for (int half = SUM_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sum[l] += sum[l + half];
    return sum[0];
}

/* ---- dense matrices ---- */

int kern_chunk_end(const struct mat *w, int k) {
    int end = k + FP8_CHUNK;
    if (w->format == MAT_FP8 && w->scale_cols < w->cols) {
        int block_end = (k / w->scale_cols + 1) * w->scale_cols;
        if (block_end < end) end = block_end;
    }
    return end < w->cols ? end : w->cols;
}

/* Weights without their scale, divided by 256; returns the scale times 256. */
float kern_fp8_decode(const struct mat *w, int row, int k0, int count, float *out) {
    const uint8_t *data = (const uint8_t *)w->data + (size_t)row * (size_t)w->cols;
    size_t index = (size_t)(row / w->scale_rows) * (size_t)w->scale_stride + (size_t)(k0 / w->scale_cols);
    float scale;
    memcpy(&scale, (const char *)w->scale + index * sizeof scale, sizeof scale);
    for (int i = 0; i < count; i++) out[i] = e4m3_to_f32(data[k0 + i]) * 0x1p-8f;
    return scale * 256.0f;
}

/* Row r times at most TOKENS tokens. */
static void dense_row(const struct mat *w, int r, const float *const *x, int n, float *const *y) {
    float lanes[TOKENS][SUM_LANES] = {{0}}, weight[FP8_CHUNK];
    for (int k = 0, end; k < w->cols; k = end) {
        float scale = 0;
        end = kern_chunk_end(w, k);
        if (w->format == MAT_FP8)
            scale = kern_fp8_decode(w, r, k, end - k, weight);
        else
            format_decode_span(w, r, k, end - k, weight);
        for (int t = 0; t < n; t++) {
            float partial[SUM_LANES] = {0};
            lanes_add_products(w->format == MAT_FP8 ? partial : lanes[t], weight, x[t] + k, end - k);
            for (int l = 0; l < SUM_LANES && w->format == MAT_FP8; l++)
                lanes[t][l] = fmaf(partial[l], scale, lanes[t][l]);
        }
    }
    for (int t = 0; t < n; t++) y[t][r] = lanes_sum(lanes[t]);
}

static void gemm_dense(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    for (int t = 0; t < n; t += TOKENS)
        for (int r = r0; r < r1; r++) dense_row(w, r, x + t, n - t < TOKENS ? n - t : TOKENS, y + t);
}

/* ---- other people's INT4 ---- */

float kern_words_unit(int row) {
    static const float unit[8] = {1, 1, 16, 16, 256, 256, 4096, 4096}; /* 16^(nibble % 4); see awq_order */
    return unit[row % 8];
}

/* Row r times at most TOKENS tokens. */
static void words_row(const struct mat *w, int r, const float *const *x, int n, float *const *y) {
    float acc[TOKENS] = {0}, weight[AWQ_STEP];
    const float unit = kern_words_unit(r);
    for (int k = 0; k < w->cols; k += AWQ_STEP) {
        int count = w->cols - k < AWQ_STEP ? w->cols - k : AWQ_STEP, zero = words_zero(w, r, k);
        float scale = words_scale(w, r, k) / unit;
        for (int i = 0; i < count; i++) weight[i] = (float)(words_value(w, r, k + i) - zero) * unit;
        for (int t = 0; t < n; t++) {
            float sum = 0;
            for (int i = 0; i < count; i++) sum = fmaf(weight[i], x[t][k + i], sum);
            acc[t] = fmaf(sum, scale, acc[t]);
        }
    }
    for (int t = 0; t < n; t++) y[t][r] = acc[t];
}

void kern_words_gemm(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    for (int t = 0; t < n; t += TOKENS)
        for (int r = r0; r < r1; r++) words_row(w, r, x + t, n - t < TOKENS ? n - t : TOKENS, y + t);
}

/* The same for 8-bit activations. */
static void words_row_q8(const struct mat *w, int r, const struct q8_row *x, int n, float *const *y) {
    float acc[TOKENS] = {0};
    for (int k = 0, group = 0; k < w->cols; k += AWQ_STEP, group++) {
        int count = w->cols - k < AWQ_STEP ? w->cols - k : AWQ_STEP, zero = words_zero(w, r, k), q[AWQ_STEP];
        float scale = words_scale(w, r, k);
        for (int i = 0; i < count; i++) q[i] = words_value(w, r, k + i);
        for (int t = 0; t < n; t++) {
            int isum = -zero * x[t].sum[group];
            for (int i = 0; i < count; i++) isum += q[i] * x[t].q[k + i];
            acc[t] = fmaf((float)isum, scale * x[t].scale[group], acc[t]);
        }
    }
    for (int t = 0; t < n; t++) y[t][r] = acc[t];
}

void kern_words_gemm_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                        const void *next) {
    (void)next;

    for (int t = 0; t < n; t += TOKENS)
        for (int r = r0; r < r1; r++) words_row_q8(w, r, x + t, n - t < TOKENS ? n - t : TOKENS, y + t);
}

/* ---- INT4, INT8 ---- */

/* Weights are read once a row, as whole numbers, into `q` [group]; the scale is returned. */
static float block_group(const struct mat *w, int row, int k0, int count, int *q) {
    for (int i = 0; i < count; i++) q[i] = block_value(w, row, k0 + i);
    return f16_to_f32(block_scale(w, row, k0));
}

/* Row r times at most TOKENS tokens. */
static void block_row_q8(const struct mat *w, int r, const struct q8_row *x, int n, float *const *y) {
    float acc[TOKENS] = {0};
    for (int k = 0, group = 0; k < w->cols; k += w->group_size, group++) {
        int count = w->cols - k < w->group_size ? w->cols - k : w->group_size, q[Q8_GROUP_MAX];
        float scale = block_group(w, r, k, count, q);
        for (int t = 0; t < n; t++) {
            int isum = 0;
            for (int i = 0; i < count; i++) isum += q[i] * x[t].q[k + i];
            acc[t] = fmaf((float)isum, scale * x[t].scale[group], acc[t]);
        }
    }
    for (int t = 0; t < n; t++) y[t][r] = acc[t];
}

static void gemm_block_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                          const void *next) {
    (void)next;

    for (int t = 0; t < n; t += TOKENS)
        for (int r = r0; r < r1; r++) block_row_q8(w, r, x + t, n - t < TOKENS ? n - t : TOKENS, y + t);
}

/* ---- GGUF's blocks, and FP4's groups, which are the same in two places ---- */

/* A block of one row times one token. */
static float gguf_add_block(const struct gguf_parts *block, const struct q8_row *x, int k0, float y) {
    for (int i = 0; i < block->values; i += block->per_scale) {
        const int8_t *xq = x->q + k0 + i;
        int isum = 0, xsum = 0, j = i / block->per_scale;
        float xscale = x->scale[(k0 + i) / Q8_GROUP_MIN];
        for (int k = 0; k < block->per_scale; k++) {
            isum += block->q[i + k] * xq[k];
            xsum += xq[k];
        }
        y = fmaf((float)isum, block->scale[j] * xscale, y);
        if (block->has_low) y = fmaf(block->low[j], xscale * (float)xsum, y);
    }
    return y;
}

static void gemm_gguf_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                         const void *next) {
    struct gguf_parts parts;
    uint8_t room[GGUF_BLOCK_MAX];
    int values = FP4_GROUP;
    size_t bytes;
    (void)next;

    gguf_block(w->format, &values, &bytes);
    for (int r = r0; r < r1; r++) {
        for (int t = 0; t < n; t++) y[t][r] = 0;
        for (int k = 0; k < w->cols; k += values) {
            if (w->format == MAT_FP4)
                fp4_take_apart(w, r, k / values, &parts);
            else
                gguf_take_apart(w->format, gguf_block_at(w, r, k / values, room), &parts);
            for (int t = 0; t < n; t++) y[t][r] = gguf_add_block(&parts, &x[t], k, y[t][r]);
        }
    }
}

/* ---- everything else ---- */

static void quantize_group(const float *x, int count, int group, int8_t *q, float *scale, int32_t *sum) {
    float amax = 0, total = 0;
    for (int i = 0; i < count; i++) {
        amax = fmaxf(amax, fabsf(x[i]));
        total += x[i] * 0; /* NaN as soon as one value is NaN or Inf */
    }
    memset(q, 0, (size_t)group);
    *sum = 0;
    *scale = total != total ? NAN : 0;
    if (total != total || amax < 0x1p-100f) return;
    *scale = amax / 127.0f;
    float inverse = 127.0f / amax;
    for (int i = 0; i < count; i++) {
        q[i] = (int8_t)lrintf(x[i] * inverse);
        *sum += q[i];
    }
}

static void quantize(const float *x, int n, int group, struct q8_row *out) {
    int padded = (n + Q8_GROUP_MAX - 1) / Q8_GROUP_MAX * Q8_GROUP_MAX;
    for (int i = 0; i < padded; i += group) {
        int count = i >= n ? 0 : n - i < group ? n - i : group;
        quantize_group(x + (i < n ? i : 0), count, group, out->q + i, &out->scale[i / group], &out->sum[i / group]);
    }
}

static void dots(const struct kern_dots *job) {
    for (int i = 0; i < job->n_q; i++)
        for (int t = 0; t < job->n_k; t++) {
            float lanes[SUM_LANES] = {0};
            lanes_add_products(lanes, job->k + (size_t)t * job->k_stride, job->q + (size_t)i * job->q_stride, job->dim);
            job->out[(size_t)i * job->out_stride + (size_t)t] = lanes_sum(lanes);
        }
}

static void weighted_sum(float *acc, size_t acc_stride, const float *keep, const float *p, size_t p_stride,
                         const float *v, size_t v_stride, int m, int n_t, int n_c) {
    for (int i = 0; i < m; i++) {
        float *row = acc + (size_t)i * acc_stride;
        for (int c = 0; c < n_c; c++) {
            float sum = keep ? row[c] * keep[i] : 0;
            for (int t = 0; t < n_t; t++)
                sum = fmaf(p[(size_t)i * p_stride + (size_t)t], v[(size_t)t * v_stride + (size_t)c], sum);
            row[c] = sum;
        }
    }
}

static void relu_sum(const float *w, const float *s, size_t s_stride, int heads, int n, float *out) {
    for (int t = 0; t < n; t++) {
        float sum = 0;
        for (int h = 0; h < heads; h++) {
            float score = s[(size_t)h * s_stride + (size_t)t];
            sum = fmaf(w[h], score < 0 ? 0 : score, sum);
        }
        out[t] = sum;
    }
}

/* e^x with a relative error below 2e-7: 2^n * e^r, where r is at most ln(2) / 2 beside 0. Below ln(2^-126)
 * the result is 0: subnormals are slow and no use here. Not expf, which no other level could follow. */
static float exp_poly(float x) {
    const float lowest = -87.33654f, highest = 89.0f;
    if (!(x >= lowest)) return x != x ? x : 0;
    float clipped = x > highest ? highest : x, n = rintf(clipped * 1.44269504f);
    /* ln 2 in two parts, the first short enough that n times it is exact */
    float r = fmaf(n, -0x1.62e4p-1f, clipped);
    r = fmaf(n, -0x1.7f7d1cp-20f, r);
    float p = 1.0f / 5040;
    p = fmaf(p, r, 1.0f / 720);
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return ldexpf(p, (int)n);
}

static float softmax_step(float *s, int n, float scale, float *max, float *sum) {
    float new_max = *max, total[SUM_LANES] = {0};
    for (int i = 0; i < n; i++) {
        s[i] *= scale;
        if (s[i] > new_max) new_max = s[i]; /* a NaN score stays out of the maximum and shows in the sum */
    }
    new_max += 0.0f; /* -0 becomes 0 */
    /* Nothing but -Inf so far: any finite base makes every exponential 0, where -Inf - -Inf would be NaN. */
    float base = new_max == -INFINITY ? 0 : new_max;
    for (int i = 0; i < n; i++) {
        s[i] = exp_poly(s[i] - base);
        total[i % SUM_LANES] += s[i];
    }
    float keep = exp_poly(*max - base);
    *sum = *sum * keep + lanes_sum(total);
    *max = new_max;
    return keep;
}

static float rms_norm(const float *x, const float *weight, int n, float eps, float *out) {
    float sum[SUM_LANES] = {0};
    lanes_add_products(sum, x, x, n);
    float mean = lanes_sum(sum) / (float)n, inverse = 1.0f / sqrtf(mean + eps);
    for (int i = 0; i < n; i++) out[i] = x[i] * inverse * weight[i];
    return mean;
}

static void silu_mul(float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + exp_poly(-gate[i])) * up[i];
}

static void add_scaled(float *x, float a, const float *y, int n) {
    for (int i = 0; i < n; i++) x[i] = fmaf(a, y[i], x[i]);
}

static uint64_t read_streams(const char *p, size_t stream_bytes) {
    uint64_t sum = 0, word;
    for (size_t at = 0; at < stream_bytes; at += sizeof word)
        for (size_t s = 0; s < READ_STREAMS; s++) {
            memcpy(&word, p + stream_bytes * s + at, sizeof word);
            sum += word;
        }
    return sum;
}

void kern_init_ref(struct kern *kern) {
    *kern = (struct kern){.name = "ref"};
    for (int format = 0; format < MAT_FORMATS; format++) {
        kern->gemm[format] = gemm_dense;
        if (gguf_is_blocks((enum mat_format)format)) kern->gemm_q8[format] = gemm_gguf_q8;
        if (!mat_is_words((enum mat_format)format)) continue;
        kern->gemm[format] = kern_words_gemm;
        kern->gemm_q8[format] = kern_words_gemm_q8;
    }
    kern->gemm_q8[MAT_FP4] = gemm_gguf_q8;
    kern->gemm_q8[MAT_INT4] = gemm_block_q8;
    kern->gemm_q8[MAT_INT8] = gemm_block_q8;
    kern->quantize = quantize;
    kern->decode_rows = format_decode_rows;
    kern->dots = dots;
    kern->weighted_sum = kern->page_sum = weighted_sum;
    kern->relu_sum = relu_sum;
    kern->softmax_step = softmax_step;
    kern->rms_norm = rms_norm;
    kern->silu_mul = silu_mul;
    kern->add_scaled = add_scaled;
    kern->read_streams = read_streams;
}
