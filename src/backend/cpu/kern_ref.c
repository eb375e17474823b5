/* backend/cpu/kern_ref.c - every kernel in plain C, in the simplest order: what the fast ones are held
 * against. */
#include "backend/cpu/kern.h"

#include <math.h>
#include <string.h>

enum { SPAN = 256 }; /* weights decoded at a time */

static void gemm(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    float weight[SPAN];
    for (int r = r0; r < r1; r++) {
        for (int t = 0; t < n; t++) y[t][r] = 0;
        for (int k0 = 0; k0 < w->cols; k0 += SPAN) {
            int count = w->cols - k0 < SPAN ? w->cols - k0 : SPAN;
            format_decode_span(w, r, k0, count, weight);
            for (int t = 0; t < n; t++) {
                float sum = y[t][r];
                for (int i = 0; i < count; i++) sum += weight[i] * x[t][k0 + i];
                y[t][r] = sum;
            }
        }
    }
}

/* Nibble of `row` in line `line` of AWQ words; also reads zero points. */
static int awq_nibble(const void *words, const struct mat *w, int line, int row) {
    static const uint8_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* awq_order turned round */
    uint32_t word;
    size_t index = (size_t)line * (size_t)(w->rows / 8) + (size_t)(row / 8);
    memcpy(&word, (const char *)words + index * sizeof word, sizeof word);
    return word >> 4 * place[row % 8] & 15;
}

static float awq_scale(const struct mat *w, int group, int row) {
    uint16_t bits;
    size_t index = (size_t)group * (size_t)w->rows + (size_t)row;
    memcpy(&bits, (const char *)w->scales16 + index * sizeof bits, sizeof bits);
    return f16_to_f32(bits);
}

static float awq_dot_q8(const struct mat *w, int row, const struct q8_row *x) {
    float y = 0;
    for (int k0 = 0; k0 < w->cols; k0 += Q8_GROUP) {
        int end = k0 + Q8_GROUP < w->cols ? k0 + Q8_GROUP : w->cols;
        int group = k0 / w->group_size, isum = 0;
        for (int k = k0; k < end; k++) isum += awq_nibble(w->data, w, k, row) * x->q[k];
        isum -= awq_nibble(w->zeros, w, group, row) * x->sum[k0 / Q8_GROUP];
        y = fmaf((float)isum, awq_scale(w, group, row) * x->scale[k0 / Q8_GROUP], y);
    }
    return y;
}

static void gemm_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y) {
    for (int t = 0; t < n; t++)
        for (int r = r0; r < r1; r++) y[t][r] = awq_dot_q8(w, r, &x[t]);
}

static void quantize_group(const float *x, int count, int8_t *q, float *scale, int32_t *sum) {
    float amax = 0, total = 0;
    for (int i = 0; i < count; i++) {
        amax = fmaxf(amax, fabsf(x[i]));
        total += x[i] * 0; /* NaN as soon as one value is NaN or Inf */
    }
    memset(q, 0, Q8_GROUP);
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

static void quantize(const float *x, int n, struct q8_row *out) {
    for (int i = 0; i < n; i += Q8_GROUP) {
        int count = n - i < Q8_GROUP ? n - i : Q8_GROUP, group = i / Q8_GROUP;
        quantize_group(x + i, count, out->q + i, &out->scale[group], &out->sum[group]);
    }
}

static void weighted_sum(float *acc, size_t acc_stride, const float *keep, const float *p, size_t p_stride,
                         const float *v, size_t v_stride, int m, int n_t, int n_c) {
    for (int i = 0; i < m; i++) {
        float *row = acc + (size_t)i * acc_stride;
        for (int c = 0; c < n_c; c++) {
            float sum = keep ? row[c] * keep[i] : 0;
            for (int t = 0; t < n_t; t++)
                sum += p[(size_t)i * p_stride + (size_t)t] * v[(size_t)t * v_stride + (size_t)c];
            row[c] = sum;
        }
    }
}

static float softmax_step(float *s, int n, float scale, float *max, float *sum) {
    float new_max = *max, total = 0;
    for (int i = 0; i < n; i++) {
        s[i] *= scale;
        if (s[i] > new_max) new_max = s[i]; /* a NaN score stays out of the maximum and shows in the sum */
    }
    /* Nothing but -Inf so far: any finite base makes every exponential 0, where -Inf - -Inf would be NaN. */
    float base = new_max == -INFINITY ? 0 : new_max;
    for (int i = 0; i < n; i++) {
        s[i] = expf(s[i] - base);
        total += s[i];
    }
    float keep = expf(*max - base);
    *sum = *sum * keep + total;
    *max = new_max;
    return keep;
}

static float rms_norm(const float *x, const float *weight, int n, float eps, float *out) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    float mean = sum / (float)n, inverse = 1.0f / sqrtf(mean + eps);
    for (int i = 0; i < n; i++) out[i] = x[i] * inverse * weight[i];
    return mean;
}

static void silu_mul(float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static void add_scaled(float *x, float a, const float *y, int n) {
    for (int i = 0; i < n; i++) x[i] += a * y[i];
}

void kern_init_ref(struct kern *kern) {
    kern->name = "ref";
    for (int format = 0; format < MAT_FORMATS; format++) kern->gemm[format] = gemm;
    kern->gemm_q8 = gemm_q8;
    kern->quantize = quantize;
    kern->decode_rows = format_decode_rows;
    kern->weighted_sum = weighted_sum;
    kern->softmax_step = softmax_step;
    kern->rms_norm = rms_norm;
    kern->silu_mul = silu_mul;
    kern->add_scaled = add_scaled;
}
