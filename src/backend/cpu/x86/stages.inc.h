/* backend/cpu/x86/stages.inc.h - everything but matrices: attention's sums, norms, activations; included by
 * each level after its vector words and dense.inc.h. Sums across lanes have one fixed order: kern.h's. */

/* kern_ref.c's exp_poly, operation for operation. NaN stays NaN: vec_max and vec_min return their second
 * operand then. */
INLINE vec vec_exp(vec x) {
    const vec lowest = vec_set1(-87.33654f), highest = vec_set1(89.0f);
    vec clipped = vec_min(highest, vec_max(lowest, x));
    vec n = vec_round(vec_mul(clipped, vec_set1(1.44269504f)));
    /* ln 2 in two parts, the first short enough that n times it is exact */
    vec r = vec_fma(n, vec_set1(-0x1.62e4p-1f), clipped);
    r = vec_fma(n, vec_set1(-0x1.7f7d1cp-20f), r);
    vec p = vec_set1(1.0f / 5040);
    p = vec_fma(p, r, vec_set1(1.0f / 720));
    p = vec_fma(p, r, vec_set1(1.0f / 120));
    p = vec_fma(p, r, vec_set1(1.0f / 24));
    p = vec_fma(p, r, vec_set1(1.0f / 6));
    p = vec_fma(p, r, vec_set1(0.5f));
    p = vec_fma(p, r, vec_set1(1.0f));
    p = vec_fma(p, r, vec_set1(1.0f));
    return vec_keep_from(vec_scale2(p, n), x, lowest);
}

INLINE float float_exp(float x) {
    float lanes[VL];
    vec_store(lanes, vec_exp(vec_set1(x)));
    return lanes[0];
}

/* ---- quantize ---- */

static void quantize_group(const float *x, int count, int group, int8_t *q, float *scale, int32_t *sum) {
    vec v[Q8_GROUP_MAX / VL];
    ivec top = ivec_zero(), total = ivec_zero();
    for (int i = 0; i < group / VL; i++) {
        v[i] = vec_load_part(x + i * VL, count - i * VL);
        top = ivec_max(top, ivec_and(vec_bits(v[i]), ivec_set1(0x7fffffff)));
    }
    /* As integers, magnitudes order as floats do, with Inf and NaN above all. */
    int top_bits = ivec_hmax(top);
    float amax;
    memcpy(&amax, &top_bits, sizeof amax);
    int finite = top_bits < 0x7f800000;
    memset(q, 0, (size_t)group);
    *sum = 0;
    *scale = finite ? 0 : __builtin_nanf("");
    if (!finite || amax < 0x1p-100f) return;
    *scale = amax / 127.0f;
    vec inverse = vec_set1(127.0f / amax);
    for (int i = 0; i < group / VL; i++) {
        ivec whole = vec_to_int(vec_mul(v[i], inverse));
        total = ivec_add(total, whole);
        ivec_store_int8(q + i * VL, whole);
    }
    *sum = ivec_sum(total);
}

static void quantize(const float *x, int n, int group, struct q8_row *out) {
    int padded = (n + Q8_GROUP_MAX - 1) / Q8_GROUP_MAX * Q8_GROUP_MAX;
    for (int i = 0; i < padded; i += group) {
        int count = i >= n ? 0 : n - i < group ? n - i : group;
        quantize_group(x + (i < n ? i : 0), count, group, out->q + i, &out->scale[i / group], &out->sum[i / group]);
    }
}

/* ---- dots ---- */

enum {
    DOT_KEYS = VL == 16 ? 4 : 2,
    DOT_QUERIES = TILE_TOKENS,
}; /* keys * queries * LANE_VECS sums fill the registers */

/* What is asked for meanwhile, a line a step: a burst of them would stand in the way of the sums' own reads. */
struct dot_ask {
    const char *next, *end;
};

INLINE const char *dot_ask(const struct dot_ask *ask, const char *next) {
    if (next >= ask->end) return next;
    ask_for(next);
    return next + 64;
}

/* sum [keys][queries][LANE_VECS] += SUM_LANES elements of every key times those of every query; of the last ones only `left`
 * exist. */
INLINE void dot_step(const struct kern_dots *job, int keys, int queries, const float *q, const float *k, int whole,
                     int left, vec *sum) {
    UNROLL
    for (int lane = 0; lane < LANE_VECS; lane++) {
        const int c = lane * VL;
        vec key[DOT_KEYS];
        UNROLL
        for (int j = 0; j < keys; j++) {
            const float *from = k + (size_t)j * job->k_stride + c;
            key[j] = whole ? vec_load(from) : vec_load_part(from, left - c);
        }
        UNROLL
        for (int i = 0; i < queries; i++) {
            const float *from = q + (size_t)i * job->q_stride + c;
            vec query = whole ? vec_load(from) : vec_load_part(from, left - c);
            UNROLL
            for (int j = 0; j < keys; j++) {
                vec *to = &sum[(j * queries + i) * LANE_VECS + lane];
                *to = vec_fma(key[j], query, *to);
            }
        }
    }
}

/* Queries from i and keys from t. */
INLINE void dot_tile(const struct kern_dots *job, struct dot_ask *ask, int keys, int queries, int i, int t) {
    const float *q = job->q + (size_t)i * job->q_stride, *k = job->k + (size_t)t * job->k_stride;
    const char *next = ask->next;
    float *out = job->out + (size_t)i * job->out_stride + t;
    vec sum[DOT_KEYS * DOT_QUERIES * LANE_VECS];
    int at = 0;
    UNROLL
    for (int n = 0; n < keys * queries * LANE_VECS; n++) sum[n] = vec_zero();
    for (; at + SUM_LANES <= job->dim; at += SUM_LANES) {
        next = dot_ask(ask, next);
        dot_step(job, keys, queries, q + at, k + at, 1, 0, sum);
    }
    ask->next = next;
    if (at < job->dim) dot_step(job, keys, queries, q + at, k + at, 0, job->dim - at, sum);
    UNROLL
    for (int n = 0; n < queries; n++) {
#if VL == 16
        if (keys == 4) {
            vec_sum4(&sum[n], queries, out + (size_t)n * job->out_stride);
            continue;
        }
#endif
        UNROLL
        for (int j = 0; j < keys; j++) {
            const vec *from = &sum[(j * queries + n) * LANE_VECS];
            out[(size_t)n * job->out_stride + (size_t)j] = lanes_sum(from[0], from[LANE_VECS - 1]);
        }
    }
}

#define DOT_CASE(N)                                                                                                    \
    case N:                                                                                                            \
        if (keys == DOT_KEYS)                                                                                          \
            dot_tile(job, ask, DOT_KEYS, N, i, t);                                                                     \
        else                                                                                                           \
            dot_tile(job, ask, 1, N, i, t);                                                                            \
        break;

INLINE void dot_queries(const struct kern_dots *job, struct dot_ask *ask, int keys, int queries, int i, int t) {
    switch (queries) {
        DOT_CASE(1)
        DOT_CASE(2)
        DOT_CASE(3)
#if TILE_TOKENS > 3
        DOT_CASE(4)
        DOT_CASE(5)
        DOT_CASE(6)
#endif
    }
}

static void dots(const struct kern_dots *job) {
    const char *next = job->next;
    struct dot_ask ask = {next, next ? next + job->next_bytes : next};
    for (int t = 0; t < job->n_k;) {
        int keys = job->n_k - t >= DOT_KEYS ? DOT_KEYS : 1;
        for (int i = 0; i < job->n_q; i += DOT_QUERIES)
            dot_queries(job, &ask, keys, job->n_q - i < DOT_QUERIES ? job->n_q - i : DOT_QUERIES, i, t);
        t += keys;
    }
}

/* ---- weighted sum ---- */

struct sum_args {
    float *acc;
    const float *keep, *p, *v;
    size_t acc_stride, p_stride, v_stride;
    int n_t;
};

/* m rows times `vecs` registers of columns, of which `columns` exist. */
INLINE void sum_tile(const struct sum_args *args, int m, int vecs, int columns, int i0, int c) {
    const int whole = columns == vecs * VL;
    float *acc = args->acc + (size_t)i0 * args->acc_stride + c;
    const float *v = args->v + c, *p = args->p + (size_t)i0 * args->p_stride;
    vec sum[4][4];
    UNROLL
    for (int i = 0; i < m; i++) {
        UNROLL
        for (int j = 0; j < vecs; j++) {
            const float *at = acc + (size_t)i * args->acc_stride + j * VL;
            vec old = !args->keep ? vec_zero() : whole ? vec_load(at) : vec_load_part(at, columns - j * VL);
            sum[i][j] = args->keep ? vec_mul(old, vec_set1(args->keep[i0 + i])) : old;
        }
    }
    for (int t = 0; t < args->n_t; t++, v += args->v_stride) {
        vec value[4];
        UNROLL
        for (int j = 0; j < vecs; j++)
            value[j] = whole ? vec_load(v + j * VL) : vec_load_part(v + j * VL, columns - j * VL);
        UNROLL
        for (int i = 0; i < m; i++) {
            vec weight = vec_set1(p[(size_t)i * args->p_stride + (size_t)t]);
            UNROLL
            for (int j = 0; j < vecs; j++) sum[i][j] = vec_fma(weight, value[j], sum[i][j]);
        }
    }
    UNROLL
    for (int i = 0; i < m; i++) {
        UNROLL
        for (int j = 0; j < vecs; j++) {
            float *at = acc + (size_t)i * args->acc_stride + j * VL;
            if (whole)
                vec_store(at, sum[i][j]);
            else
                vec_store_part(at, sum[i][j], columns - j * VL);
        }
    }
}

/* All rows over the same columns, which stay in the nearest cache. */
INLINE void sum_columns(const struct sum_args *args, int m, int vecs, int columns, int c) {
    int i = 0;
    for (; i + 4 <= m; i += 4) sum_tile(args, 4, vecs, columns, i, c);
    for (; i < m; i++) sum_tile(args, 1, vecs, columns, i, c);
}

static void weighted_sum(float *acc, size_t acc_stride, const float *keep, const float *p, size_t p_stride,
                         const float *v, size_t v_stride, int m, int n_t, int n_c) {
    const struct sum_args args = {acc, keep, p, v, acc_stride, p_stride, v_stride, n_t};
    int c = 0;
    for (; c + SUM_VECS * VL <= n_c; c += SUM_VECS * VL) sum_columns(&args, m, SUM_VECS, SUM_VECS * VL, c);
    for (; c < n_c; c += VL) sum_columns(&args, m, 1, n_c - c < VL ? n_c - c : VL, c);
}

/* ---- softmax, norm, activation ---- */

/* Scores times scale, in place; the new maximum. A NaN score stays out of it and shows in the sum instead. */
static float softmax_scale(float *s, int n, float scale, float max) {
    vec factor = vec_set1(scale), top = vec_set1(max);
    int i = 0;
    for (; i + VL <= n; i += VL) {
        vec v = vec_mul(vec_load(s + i), factor);
        vec_store(s + i, v);
        top = vec_max(v, top);
    }
    for (max = vec_hmax(top); i < n; i++) {
        s[i] *= scale;
        if (s[i] > max) max = s[i];
    }
    return max + 0.0f; /* -0 becomes 0 */
}

static float softmax_step(float *s, int n, float scale, float *max, float *sum) {
    float new_max = softmax_scale(s, n, scale, *max);
    /* Nothing but -Inf so far: any finite base makes every exponential 0, where -Inf - -Inf would be NaN. */
    float base = new_max == -__builtin_inff() ? 0 : new_max;
    vec shift = vec_set1(base), total[LANE_VECS];
    int i = 0;
    for (int v = 0; v < LANE_VECS; v++) total[v] = vec_zero();
    for (; i + SUM_LANES <= n; i += SUM_LANES) {
        UNROLL
        for (int v = 0; v < LANE_VECS; v++) {
            vec e = vec_exp(vec_sub(vec_load(s + i + v * VL), shift));
            vec_store(s + i + v * VL, e);
            total[v] = vec_add(total[v], e);
        }
    }
    UNROLL
    for (int v = 0; v < LANE_VECS; v++, i += VL) {
        vec_store_part(s + i, vec_exp(vec_sub(vec_load_part(s + i, n - i), shift)), n - i);
        total[v] = vec_add(total[v], vec_load_part(s + i, n - i));
    }
    float keep = float_exp(*max - base);
    *sum = *sum * keep + lanes_sum(total[0], total[LANE_VECS - 1]);
    *max = new_max;
    return keep;
}

static float rms_norm(const float *x, const float *weight, int n, float eps, float *out) {
    vec sum[LANE_VECS], rest;
    int i = 0;
    for (int v = 0; v < LANE_VECS; v++) sum[v] = vec_zero();
    for (; i + SUM_LANES <= n; i += SUM_LANES) {
        UNROLL
        for (int v = 0; v < LANE_VECS; v++) {
            vec value = vec_load(x + i + v * VL);
            sum[v] = vec_fma(value, value, sum[v]);
        }
    }
    UNROLL
    for (int v = 0; v < LANE_VECS; v++, i += VL) {
        rest = vec_load_part(x + i, n - i);
        sum[v] = vec_fma(rest, rest, sum[v]);
    }
    float mean = lanes_sum(sum[0], sum[LANE_VECS - 1]) / (float)n;
    vec inverse = vec_set1(1.0f / __builtin_sqrtf(mean + eps));
    for (i = 0; i + VL <= n; i += VL)
        vec_store(out + i, vec_mul(vec_mul(vec_load(x + i), inverse), vec_load(weight + i)));
    rest = vec_load_part(x + i, n - i);
    vec_store_part(out + i, vec_mul(vec_mul(rest, inverse), vec_load_part(weight + i, n - i)), n - i);
    return mean;
}

INLINE vec silu(vec gate, vec up) {
    /* e^-gate may be Inf: gate / Inf is then the 0 that it should be */
    vec below = vec_add(vec_set1(1.0f), vec_exp(vec_sub(vec_zero(), gate)));
    return vec_mul(vec_div(gate, below), up);
}

static void silu_mul(float *gate, const float *up, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) vec_store(gate + i, silu(vec_load(gate + i), vec_load(up + i)));
    vec_store_part(gate + i, silu(vec_load_part(gate + i, n - i), vec_load_part(up + i, n - i)), n - i);
}

static void add_scaled(float *x, float a, const float *y, int n) {
    vec factor = vec_set1(a);
    int i = 0;
    for (; i + VL <= n; i += VL) vec_store(x + i, vec_fma(factor, vec_load(y + i), vec_load(x + i)));
    vec_store_part(x + i, vec_fma(factor, vec_load_part(y + i, n - i), vec_load_part(x + i, n - i)), n - i);
}
