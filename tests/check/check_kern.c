/* tests/check/check_kern.c - every CPU kernel of every level that this machine has: the bits of the plain C
 * ones, and near what the same sums give in double.
 *
 *   check_kern                    compare; one line for each kernel and level, then "N passed, N failed"
 *   check_kern --bench [FORMAT]   GB/s and Gflop/s instead
 *
 * Arrays end or begin at pages that may not be touched, so a stray access ends the program. Besides values,
 * the sameness that kern.h promises is checked bit for bit: a token alone and in batches, a row alone and in
 * ranges. */
#include "kern_data.inc.h"
#include "kern_bench.inc.h"

enum { TOKENS_MAX = 50 };

static const char *const kind_names[DATA_KINDS] = {"plain", "tiny", "extreme", "zero", "special"};

static struct kern ref, kern; /* the reference and the level under test */
static int passed, failed;

/* ---- one line of output: what a kernel did over all its cases ---- */

static struct {
    double worst; /* largest error, as a share of what is allowed */
    int faults, cases;
    char first[256]; /* the first fault in words */
} tally;

static void tally_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void tally_fault(const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!tally.faults++) vsnprintf(tally.first, sizeof tally.first, format, args);
    va_end(args);
}

static void tally_print(const char *kernel, const char *limit, double unit) {
    printf("%-7s %-18s %6d cases  max error %8.2g %s  %s%s\n", kern.name, kernel, tally.cases, tally.worst * unit,
           limit, tally.faults ? "FAILED: " : "ok", tally.first);
    tally.faults ? failed++ : passed++;
    memset(&tally, 0, sizeof tally);
}

static int same_bits(float a, float b) {
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

/* Within `allowed` of the expected value; NaN and Inf exactly where expected. */
static void compare(const char *what, int index, float got, float expected, double allowed) {
    if (!isfinite(expected) || !isfinite(got)) {
        if (!same_bits(got, expected)) tally_fault("%s [%d] is %g, expected %g", what, index, got, expected);
        return;
    }
    double error = fabs((double)got - expected), share = error == 0 ? 0 : error / allowed;
    if (share > tally.worst) tally.worst = share;
    if (!(share <= 1)) tally_fault("%s [%d] is %.9g, expected %.9g, allowed %.2g", what, index, got, expected, allowed);
}

static void compare_bits(const char *what, int index, float got, float expected) {
    if (!same_bits(got, expected))
        tally_fault("%s [%d] is %.9g, expected the bits of %.9g", what, index, got, expected);
}

/* ---- gemm ---- */

static const float unset = -12345.678f;

struct gemm_case {
    struct mat mat;
    int n;
    float *x[TOKENS_MAX], *y[TOKENS_MAX];
    struct q8_row q[TOKENS_MAX];
    float *whole; /* [n][rows] result of all rows and tokens at once */
    char name[96];
};

static void run_gemm(const struct kern *with, const struct gemm_case *c, int quantized, int r0, int r1, int t0, int n) {
    for (int t = t0; t < t0 + n; t++)
        for (int r = 0; r < c->mat.rows; r++) c->y[t][r] = unset;
    if (quantized)
        with->gemm_q8[c->mat.format](&c->mat, r0, r1, c->q + t0, n, c->y + t0, 0);
    else
        with->gemm[c->mat.format](&c->mat, r0, r1, (const float *const *)c->x + t0, n, c->y + t0);
}

/* Rows [r0, r1) of tokens [t0, t0 + n): the bits of the whole, and nothing written beside them. */
static void check_gemm_part(const struct gemm_case *c, int quantized, int r0, int r1, int t0, int n) {
    run_gemm(&kern, c, quantized, r0, r1, t0, n);
    for (int t = t0; t < t0 + n; t++)
        for (int r = 0; r < c->mat.rows; r++) {
            float expected = r >= r0 && r < r1 ? c->whole[t * c->mat.rows + r] : unset;
            if (same_bits(c->y[t][r], expected)) continue;
            tally_fault("%s rows %d-%d tokens %d+%d: y[%d][%d] is %.9g, expected the bits of %.9g", c->name, r0, r1, t0,
                        n, t, r, c->y[t][r], expected);
            return;
        }
}

/* What kern.h wants the ends of a range of rows to be multiples of. */
static int row_unit(const struct mat *m, int quantized) {
    if (m->format == MAT_INT4_AWQ) return 8;
    return quantized ? BLOCK_ROWS : 1;
}

static void check_gemm_parts(const struct gemm_case *c, int quantized) {
    int unit = row_unit(&c->mat, quantized), units = (c->mat.rows + unit - 1) / unit;
    for (int t = 0; t < c->n; t++) check_gemm_part(c, quantized, 0, c->mat.rows, t, 1);
    for (int i = 0; i < 6; i++) {
        int u0 = random_int(0, units - 1), u1 = random_int(u0 + 1, units), t0 = random_int(0, c->n - 1);
        int r1 = u1 * unit < c->mat.rows ? u1 * unit : c->mat.rows;
        check_gemm_part(c, quantized, u0 * unit, r1, t0, random_int(1, c->n - t0));
    }
    check_gemm_part(c, quantized, 0, c->mat.rows, 0, 0);
}

static float scale_max(const struct mat *m) {
    float max = 1;
    int lines = (m->rows - 1) / (m->format == MAT_FP8 ? m->scale_rows : 1) + 1;
    if (m->format != MAT_FP8) return max;
    for (int i = 0; i < lines; i++)
        for (int j = 0; j <= (m->cols - 1) / m->scale_cols; j++) max = fmaxf(max, m->scale[i * m->scale_stride + j]);
    return max;
}

/* The plain C kernel's bits. */
static void check_gemm_bits(const struct gemm_case *c, int quantized) {
    const int rows = c->mat.rows;
    run_gemm(&ref, c, quantized, 0, rows, 0, c->n);
    for (int t = 0; t < c->n; t++)
        for (int r = 0; r < rows; r++) compare_bits(c->name, r, c->whole[t * rows + r], c->y[t][r]);
}

static double gemm_activation(const struct gemm_case *c, int quantized, int t, int k) {
    return quantized ? (double)c->q[t].q[k] * c->q[t].scale[k / q8_group(&c->mat)] : c->x[t][k];
}

/* Against sums in double of the decoded weights: 2e-6 of sum |w x|, plus what subnormal products may lose. */
static void check_gemm_values(const struct gemm_case *c, int quantized) {
    const int rows = c->mat.rows, cols = c->mat.cols;
    float *w = malloc((size_t)cols * sizeof *w);
    double lost = (double)cols * 1.5e-45 * 256 * scale_max(&c->mat);
    for (int r = 0; r < rows; r++) {
        format_decode_rows(&c->mat, r, r + 1, w);
        for (int t = 0; t < c->n; t++) {
            double sum = 0, size = 0;
            for (int k = 0; k < cols; k++) {
                double product = (double)w[k] * gemm_activation(c, quantized, t, k);
                sum += product;
                size += fabs(product);
            }
            compare(c->name, r, c->whole[t * rows + r], (float)sum, 2e-6 * size + lost);
        }
    }
    free(w);
}

static void check_gemm_case(enum mat_format format, int rows, int cols, int n, enum data_kind kind, int quantized) {
    struct gemm_case c = {.mat = make_mat(format, rows, cols, kind), .n = n};
    snprintf(c.name, sizeof c.name, "%dx%d, %d tokens, %s", rows, cols, n, kind_names[kind]);
    make_activations(c.x, n, cols, kind);
    for (int t = 0; t < n; t++) {
        c.y[t] = guard_floats(rows);
        if (quantized) c.q[t] = make_q8(c.x[t], cols, q8_group(&c.mat));
    }
    c.whole = malloc((size_t)(n * rows) * sizeof *c.whole);
    run_gemm(&kern, &c, quantized, 0, rows, 0, n);
    for (int t = 0; t < n; t++) memcpy(c.whole + t * rows, c.y[t], (size_t)rows * sizeof **c.y);
    check_gemm_values(&c, quantized);
    check_gemm_bits(&c, quantized);
    check_gemm_parts(&c, quantized);
    free(c.whole);
    tally.cases++;
}

static void check_gemm(enum mat_format format, int quantized, const char *name) {
    const int awq = format == MAT_INT4_AWQ;
    random_seed((uint64_t)format + 1);
    for (int round = 0; round < 80; round++) {
        int rows = awq ? 8 * random_int(1, 36) : random_int(1, 67), cols = random_int(1, 600);
        if (round % 4 == 1) cols = round_up(cols, 32);
        if (round == 0) rows = awq ? 8 : 1, cols = 1;
        guard_reset(round);
        check_gemm_case(format, rows, cols, random_int(1, 17), (enum data_kind)(round % DATA_KINDS), quantized);
    }
    guard_reset(0);
    check_gemm_case(format, awq ? 1160 : 9, 1408, 3, DATA_PLAIN, quantized); /* more rows than a block of them */
    guard_reset(0);
    check_gemm_case(format, 24, 160, TOKENS_MAX, DATA_PLAIN, quantized); /* more tokens than a block of them */
    if (kern.gemm[format] != ref.gemm[format]) {
        guard_reset(0);
        check_gemm_case(format, 2048, 1408, 2, DATA_PLAIN, quantized);
    }
    for (int panels = 1; quantized && !awq && panels <= 16;
         panels++) { /* every way to cut panels and tokens into sets */
        guard_reset(panels);
        check_gemm_case(format, BLOCK_ROWS * panels - panels % 3, 300, panels, DATA_PLAIN, quantized);
    }
    tally_print(name, "of sum |wx|", 2e-6);
}

/* Products too small for a float leave -0 in every lane, where one addition of 0 too many would show. */
static void check_signed_zero(void) {
    enum { ROWS = 9, TOKENS = 3 };
    for (int cols = 1; cols <= 96; cols++, tally.cases++) {
        struct gemm_case c = {.mat = {.format = MAT_F32, .rows = ROWS, .cols = cols}, .n = TOKENS};
        float whole[TOKENS * ROWS], *w;
        guard_reset(0);
        c.mat.data = w = guard_floats(ROWS * cols);
        for (int i = 0; i < ROWS * cols; i++) w[i] = 0x1p-100f;
        for (int t = 0; t < TOKENS; t++) {
            c.x[t] = guard_floats(cols);
            c.y[t] = guard_floats(ROWS);
            for (int k = 0; k < cols; k++) c.x[t][k] = -0x1p-100f;
        }
        snprintf(c.name, sizeof c.name, "signed zeros, %d columns", cols);
        run_gemm(&kern, &c, 0, 0, ROWS, 0, TOKENS);
        for (int t = 0; t < TOKENS; t++) memcpy(whole + t * ROWS, c.y[t], sizeof(float) * ROWS);
        c.whole = whole;
        check_gemm_bits(&c, 0);
        check_gemm_parts(&c, 0);
    }
    tally_print("gemm, -0", "(same bits)", 1);
}

/* ---- quantize, decode ---- */

static float random_activation(int round) {
    if (round % 8 == 1) return random_float() * 1e-39f;
    if (round % 8 == 2) return random_float() * 1e37f;
    if (round % 8 == 3) return (float)random_int(-127, 127) * 0.5f; /* ties */
    if (round % 8 == 4 && random_u32() % 50 == 0) return random_u32() & 1 ? NAN : -INFINITY;
    if (round % 8 == 5) return 0;
    return random_float() * expf(random_float() * 3);
}

static void check_quantize(void) {
    random_seed(20);
    for (int round = 0; round < 400; round++, tally.cases++) {
        guard_reset(round);
        const int group = 32 << round % 3;
        int n = random_int(1, 300), padded = round_up(n, Q8_GROUP_MAX), groups = padded / group;
        float *x = guard_floats(n);
        for (int i = 0; i < n; i++) x[i] = random_activation(round);
        struct q8_row expected = make_q8(x, n, group), got = make_q8(x, n, group);
        memset(got.q, 99, (size_t)padded);
        memset(got.sum, 99, (size_t)groups * sizeof *got.sum);
        memset(got.scale, 99, (size_t)groups * sizeof *got.scale);
        kern.quantize(x, n, group, &got);
        for (int i = 0; i < padded; i++) compare_bits("q", i, got.q[i], expected.q[i]);
        for (int i = 0; i < groups; i++) {
            compare_bits("sum", i, (float)got.sum[i], (float)expected.sum[i]);
            compare_bits("scale", i, got.scale[i], expected.scale[i]);
        }
        for (int i = 0; i < n; i++) { /* and it means what it should: half a step beside x at most */
            float step = got.scale[i / group], value = (float)got.q[i] * step;
            if (isfinite(step) && !(fabsf(value - x[i]) <= step * 0.5001f + 0x1p-100f))
                tally_fault("x[%d] = %g became %g", i, x[i], value);
        }
    }
    tally_print("quantize", "(same bits)", 1);
}

static void check_decode(enum mat_format format) {
    char name[32];
    random_seed(30 + (uint64_t)format);
    for (int round = 0; round < 60; round++, tally.cases++) {
        guard_reset(round);
        int rows = format == MAT_INT4_AWQ ? 8 * random_int(1, 8) : random_int(1, 40), cols = random_int(1, 600);
        struct mat m = make_mat(format, rows, cols, (enum data_kind)(round % DATA_KINDS));
        int r0 = random_int(0, rows - 1), r1 = random_int(r0, rows), count = (r1 - r0) * cols;
        float *got = guard_floats(count), *expected = malloc((size_t)count * sizeof *expected + 1);
        format_decode_rows(&m, r0, r1, expected);
        kern.decode_rows(&m, r0, r1, got);
        for (int i = 0; i < count; i++) compare_bits("value", i, got[i], expected[i]);
        free(expected);
    }
    snprintf(name, sizeof name, "decode %s", mat_format_name(format));
    tally_print(name, "(same bits)", 1);
}

/* ---- attention's sums ---- */

struct sum_case {
    float *acc, *keep, *p, *v;
    int m, n_t, n_c, acc_stride, p_stride, v_stride;
};

/* Rows [i0, i1) into `out`, which stands for acc. */
static void run_weighted_sum(const struct kern *with, const struct sum_case *c, float *out, int i0, int i1) {
    with->weighted_sum(out + i0 * c->acc_stride, (size_t)c->acc_stride, c->keep ? c->keep + i0 : 0,
                       c->p + i0 * c->p_stride, (size_t)c->p_stride, c->v, (size_t)c->v_stride, i1 - i0, c->n_t,
                       c->n_c);
}

static void check_sum_case(const struct sum_case *c) {
    int count = (c->m - 1) * c->acc_stride + c->n_c;
    size_t bytes = (size_t)count * sizeof(float);
    float *expected = malloc(bytes), *got = guard_alloc(bytes), *alone = guard_alloc(bytes);
    memcpy(expected, c->acc, bytes);
    memcpy(got, c->acc, bytes);
    memcpy(alone, c->acc, bytes);
    run_weighted_sum(&ref, c, expected, 0, c->m);
    run_weighted_sum(&kern, c, got, 0, c->m);
    for (int i = 0; i < c->m; i++) run_weighted_sum(&kern, c, alone, i, i + 1);
    for (int i = 0; i < count; i++) {
        int row = i / c->acc_stride, column = i % c->acc_stride;
        if (column >= c->n_c) { /* between the rows nothing is written */
            compare_bits("between rows", i, got[i], c->acc[i]);
            continue;
        }
        double sum = c->keep ? (double)c->acc[i] * c->keep[row] : 0, size = fabs(sum) + 1e-30;
        for (int t = 0; t < c->n_t; t++) {
            double product = (double)c->p[row * c->p_stride + t] * c->v[t * c->v_stride + column];
            sum += product;
            size += fabs(product);
        }
        compare("acc", i, got[i], (float)sum, 2e-6 * size);
        compare_bits("acc", i, got[i], expected[i]);
        compare_bits("row alone", i, alone[i], got[i]);
    }
    free(expected);
}

static void check_dots(void) {
    random_seed(39);
    for (int round = 0; round < 150; round++, tally.cases++) {
        guard_reset(round);
        int n_q = random_int(1, 19), n_k = random_int(1, 70), dim = random_int(1, 300);
        if (round == 1) n_q = 16, n_k = 64, dim = 576;
        int q_stride = dim + random_int(0, 3), k_stride = dim + random_int(0, 64), out_stride = n_k + random_int(0, 3);
        float *q = guard_floats((n_q - 1) * q_stride + dim), *k = guard_floats((n_k - 1) * k_stride + dim);
        int count = (n_q - 1) * out_stride + n_k;
        float *got = guard_floats(count), *alone = guard_floats(count);
        for (int i = 0; i < (n_q - 1) * q_stride + dim; i++) q[i] = random_float();
        for (int i = 0; i < (n_k - 1) * k_stride + dim; i++) k[i] = random_float();
        for (int i = 0; i < count; i++) got[i] = alone[i] = unset;
        kern.dots(q, (size_t)q_stride, n_q, k, (size_t)k_stride, n_k, dim, got, (size_t)out_stride);
        for (int i = 0; i < n_q; i++) /* a query alone, a key alone */
            for (int t = 0; t < n_k; t++)
                kern.dots(q + i * q_stride, 1, 1, k + t * k_stride, 1, 1, dim, alone + i * out_stride + t, 1);
        for (int i = 0; i < count; i++) {
            int row = i / out_stride, t = i % out_stride;
            compare_bits("alone", i, got[i], alone[i]);
            if (t >= n_k) { /* between the rows nothing is written */
                compare_bits("between rows", i, got[i], unset);
                continue;
            }
            double sum = 0, size = 1e-30;
            float expected;
            ref.dots(q + row * q_stride, 1, 1, k + t * k_stride, 1, 1, dim, &expected, 1);
            for (int c = 0; c < dim; c++) {
                sum += (double)q[row * q_stride + c] * k[t * k_stride + c];
                size += fabs((double)q[row * q_stride + c] * k[t * k_stride + c]);
            }
            compare("dot", i, got[i], (float)sum, 2e-6 * size);
            compare_bits("dot", i, got[i], expected);
        }
    }
    tally_print("dots", "of sum |kq|", 2e-6);
}

static void check_weighted_sum(void) {
    random_seed(40);
    for (int round = 0; round < 150; round++, tally.cases++) {
        guard_reset(round);
        struct sum_case c = {.m = random_int(1, 19), .n_t = random_int(0, 70), .n_c = random_int(1, 300)};
        if (round == 1) c.m = 16, c.n_t = 64, c.n_c = 512;
        c.acc_stride = c.n_c + random_int(0, 3);
        c.p_stride = c.n_t + random_int(0, 3);
        c.v_stride = c.n_c + random_int(0, 64);
        int acc_count = (c.m - 1) * c.acc_stride + c.n_c, v_count = c.n_t ? (c.n_t - 1) * c.v_stride + c.n_c : 0;
        int p_count = (c.m - 1) * c.p_stride + c.n_t;
        c.acc = guard_floats(acc_count);
        c.p = guard_floats(p_count);
        c.v = guard_floats(v_count);
        c.keep = round % 3 ? guard_floats(c.m) : 0;
        for (int i = 0; i < acc_count; i++) c.acc[i] = round % 3 ? random_float() : NAN; /* overwritten without keep */
        for (int i = 0; i < p_count; i++) c.p[i] = fabsf(random_float());
        for (int i = 0; i < v_count; i++) c.v[i] = random_float();
        for (int i = 0; c.keep && i < c.m; i++) c.keep[i] = fabsf(random_float());
        check_sum_case(&c);
    }
    tally_print("weighted_sum", "of sum |pv|", 2e-6);
}

static void compare_share(const char *what, int index, float got, double expected, double share) {
    compare(what, index, got, (float)expected, share * fabs(expected) + 2e-38);
}

/* In double, but for the scaled scores and their distances from the maximum, which a float must hold. */
static void check_softmax_values(int n, const float *s, float scale, float max, float sum, const float *got, float keep,
                                 float got_sum) {
    float top = max;
    for (int i = 0; i < n; i++)
        if (s[i] * scale > top) top = s[i] * scale;
    if (top == -INFINITY) top = 0;
    double kept = exp((double)(max - top)), total = sum * kept;
    for (int i = 0; i < n; i++) {
        double value = exp((double)(s[i] * scale - top));
        total += value;
        compare_share("s", i, got[i], value, 1e-6);
    }
    compare_share("keep", 0, keep, kept, 1e-6);
    compare_share("sum", 0, got_sum, total, 4e-6);
}

static void check_softmax_case(int n, float *s, float scale, float max, float sum) {
    float *got = guard_floats(n), *expected = malloc((size_t)n * sizeof *expected);
    float got_max = max, got_sum = sum, expected_max = max, expected_sum = sum;
    memcpy(got, s, (size_t)n * sizeof *s);
    memcpy(expected, s, (size_t)n * sizeof *s);
    float keep = kern.softmax_step(got, n, scale, &got_max, &got_sum);
    float expected_keep = ref.softmax_step(expected, n, scale, &expected_max, &expected_sum);
    for (int i = 0; i < n; i++) compare_bits("s", i, got[i], expected[i]);
    compare_bits("max", 0, got_max, expected_max);
    compare_bits("keep", 0, keep, expected_keep);
    compare_bits("sum", 0, got_sum, expected_sum);
    check_softmax_values(n, s, scale, max, sum, got, keep, got_sum);
    free(expected);
}

static void check_softmax(void) {
    random_seed(50);
    for (int round = 0; round < 2000; round++, tally.cases++) {
        guard_reset(round);
        int n = random_int(1, 130), masked = round % 8 == 1, nan = round % 8 == 2, all = round % 8 == 3;
        float *s = guard_floats(n), spread = round % 8 == 4 ? 300.0f : 8.0f;
        for (int i = 0; i < n; i++) {
            s[i] = random_float() * spread;
            if (all || (masked && random_u32() % 3 == 0)) s[i] = -INFINITY;
            if (round % 8 == 6) s[i] = random_u32() & 1 ? 0.0f : -0.0f; /* which of them is the maximum? */
        }
        if (nan) s[random_int(0, n - 1)] = NAN;
        if (round % 8 == 5) s[random_int(0, n - 1)] = INFINITY;
        int first = random_int(0, 1);
        float max = first ? -INFINITY : round % 8 == 6 ? -0.0f : random_float() * spread;
        check_softmax_case(n, s, 0.1f + fabsf(random_float()), max, first ? 0 : fabsf(random_float()));
    }
    tally_print("softmax_step", "relative", 1e-6);
}

/* softmax_step with the maximum held at 0 is e^s: all of its range against the C library in double. */
static void check_exp(void) {
    enum { POINTS = 4096, ROUNDS = 64 };
    float s[POINTS], x[POINTS];
    for (int round = 0; round < ROUNDS; round++, tally.cases++) {
        float max = 0, sum = 0;
        for (int i = 0; i < POINTS; i++) x[i] = s[i] = -87.33f * (float)(i * ROUNDS + round) / (POINTS * ROUNDS);
        float expected[POINTS], expected_max = 0, expected_sum = 0;
        memcpy(expected, x, sizeof x);
        ref.softmax_step(expected, POINTS, 1, &expected_max, &expected_sum);
        kern.softmax_step(s, POINTS, 1, &max, &sum);
        for (int i = 0; i < POINTS; i++) {
            compare("exp", i, s[i], (float)exp(x[i]), 2e-7 * exp(x[i]));
            compare_bits("exp", i, s[i], expected[i]);
        }
    }
    tally_print("exp", "relative", 2e-7);
}

/* ---- norm, activation, addition ---- */

static void fill_floats(float *x, int n, float size) {
    for (int i = 0; i < n; i++) x[i] = random_float() * size;
}

static void check_rms_values(int n, const float *x, const float *weight, const float *out, float mean) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * x[i];
    compare("mean", 0, mean, (float)(sum / n), 4e-6 * sum / n + 1e-40);
    for (int i = 0; i < n; i++) {
        double value = x[i] / sqrt(sum / n + 1e-6) * weight[i];
        if (isinf(sum)) value = x[i] * (1 / sum); /* Inf / Inf and Inf * 0: NaN either way */
        compare("out", i, out[i], (float)value, 4e-6 * fabs(value) + 1e-40);
    }
}

static void check_rms_norm(void) {
    random_seed(60);
    for (int round = 0; round < 200; round++, tally.cases++) {
        guard_reset(round);
        int n = round == 0 ? 5120 : random_int(1, 300), in_place = round % 2;
        float *x = guard_floats(n), *weight = guard_floats(n), *expected = guard_floats(n);
        float *out = in_place ? x : guard_floats(n);
        fill_floats(x, n, round % 5 == 1 ? 1e-20f : round % 5 == 2 ? 1e15f : 3.0f);
        fill_floats(weight, n, 1);
        if (round % 5 == 3) x[random_int(0, n - 1)] = round % 2 ? NAN : INFINITY;
        float *before = malloc((size_t)n * sizeof *before);
        memcpy(before, x, (size_t)n * sizeof *x);
        float expected_mean = ref.rms_norm(x, weight, n, 1e-6f, expected);
        float mean = kern.rms_norm(x, weight, n, 1e-6f, out);
        for (int i = 0; i < n; i++) compare_bits("out", i, out[i], expected[i]);
        compare_bits("mean", 0, mean, expected_mean);
        check_rms_values(n, before, weight, out, mean);
        free(before);
    }
    tally_print("rms_norm", "relative", 4e-6);
}

static void check_silu_mul(void) {
    random_seed(70);
    for (int round = 0; round < 200; round++, tally.cases++) {
        guard_reset(round);
        int n = random_int(1, 300);
        float *gate = guard_floats(n), *up = guard_floats(n), *expected = guard_floats(n);
        fill_floats(gate, n, round % 4 == 1 ? 60.0f : round % 4 == 2 ? 1e30f : 4.0f);
        fill_floats(up, n, 2);
        if (round % 4 == 3) gate[random_int(0, n - 1)] = NAN;
        if (round % 4 == 3) gate[random_int(0, n - 1)] = INFINITY;
        float *before = malloc((size_t)n * sizeof *before);
        memcpy(before, gate, (size_t)n * sizeof *gate);
        memcpy(expected, gate, (size_t)n * sizeof *gate);
        ref.silu_mul(expected, up, n);
        kern.silu_mul(gate, up, n);
        for (int i = 0; i < n; i++) {
            double value = before[i] / (1 + exp(-(double)before[i])) * up[i];
            compare("gate", i, gate[i], (float)value, 1e-6 * fabs(value) + 1e-33);
            compare_bits("gate", i, gate[i], expected[i]);
        }
        free(before);
    }
    tally_print("silu_mul", "relative", 1e-6);
}

static void check_add_scaled(void) {
    random_seed(80);
    for (int round = 0; round < 200; round++, tally.cases++) {
        guard_reset(round);
        int n = random_int(1, 300);
        float *x = guard_floats(n), *y = guard_floats(n), *expected = guard_floats(n), a = random_float();
        fill_floats(x, n, 1);
        fill_floats(y, n, 1);
        memcpy(expected, x, (size_t)n * sizeof *x);
        ref.add_scaled(expected, a, y, n);
        float *before = malloc((size_t)n * sizeof *before);
        memcpy(before, x, (size_t)n * sizeof *x);
        kern.add_scaled(x, a, y, n);
        for (int i = 0; i < n; i++) {
            double product = (double)a * y[i];
            compare("x", i, x[i], (float)(before[i] + product), 2e-7 * (fabs(before[i]) + fabs(product)));
            compare_bits("x", i, x[i], expected[i]);
        }
        free(before);
    }
    tally_print("add_scaled", "of |x| + |ay|", 2e-7);
}

/* ---- formats: the decoders themselves, from their definitions ---- */

static float small_float(int bits, int exponent_bits, int mantissa_bits) {
    int mantissa = bits & ((1 << mantissa_bits) - 1), exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double value = exponent ? ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)
                            : ldexp(mantissa, 1 - bias - mantissa_bits);
    return (float)(bits >> (exponent_bits + mantissa_bits) & 1 ? -value : value);
}

static void check_narrow_floats(void) {
    for (int i = 0; i < 65536; i++, tally.cases++) {
        int exponent = i >> 10 & 31, mantissa = i & 0x3ff;
        float f16 = exponent < 31 ? small_float(i, 5, 10) : mantissa ? NAN : i >> 15 ? -INFINITY : INFINITY;
        compare_bits("f16", i, f16_to_f32((uint16_t)i), f16);
        float bf16 = bf16_to_f32((uint16_t)i);
        if (isfinite(bf16)) compare_bits("bf16", i, bf16, small_float(i, 8, 7));
        if (!isnan(bf16)) compare_bits("to bf16", i, f32_to_bf16(bf16), (float)i);
    }
    if (!isnan(bf16_to_f32(f32_to_bf16(NAN))) || f32_to_bf16(0x1.01p0f) != 0x3f80 || f32_to_bf16(0x1.03p0f) != 0x3f82)
        tally_fault("f32_to_bf16: NaN or a tie is wrong");
    tally_print("f16, bf16", "(same bits)", 1);
}

static void check_e4m3(void) {
    for (int i = 0; i < 256; i++, tally.cases++) {
        float value = (i & 0x7f) == 0x7f ? NAN : small_float(i, 4, 3);
        compare_bits("e4m3", i, e4m3_to_f32((uint8_t)i), value);
        if (!isnan(value)) compare_bits("to e4m3", i, f32_to_e4m3(value), (float)i);
        if ((i & 0x7f) >= 0x7e) continue;
        /* Between two codes: below, at and above the middle, where the even code wins. */
        float next = small_float(i + 1, 4, 3), middle = (value + next) / 2;
        compare_bits("middle", i, f32_to_e4m3(middle), (float)(i + (i & 1)));
        compare_bits("below", i, f32_to_e4m3(nextafterf(middle, value)), (float)i);
        compare_bits("above", i, f32_to_e4m3(nextafterf(middle, next)), (float)(i + 1));
    }
    compare_bits("saturates", 0, f32_to_e4m3(1e9f), 0x7e);
    compare_bits("saturates", 1, f32_to_e4m3(-INFINITY), 0xfe);
    if ((f32_to_e4m3(NAN) & 0x7f) != 0x7f) tally_fault("NaN did not stay NaN");
    tally_print("e4m3", "(same bits)", 1);
}

/* A matrix packed as AutoAWQ does it: nibble j of a word takes row order[j] of its eight. */
static void check_awq_layout(void) {
    enum { ROWS = 16, COLS = 70, GROUP = 32, GROUPS = 3 };
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    uint32_t data[COLS * ROWS / 8] = {0}, zeros[GROUPS * ROWS / 8] = {0};
    uint16_t scales[GROUPS * ROWS];
    float out[ROWS * COLS];
    const struct mat m = {.format = MAT_INT4_AWQ,
                          .rows = ROWS,
                          .cols = COLS,
                          .data = data,
                          .zeros = zeros,
                          .scales16 = scales,
                          .group_size = GROUP};
    for (int g = 0; g < GROUPS; g++)
        for (int r = 0; r < ROWS; r++)
            scales[g * ROWS + r] = (uint16_t)(0x3c00 + (g << 10) + (r << 5)); /* 2^g (1 + r/32) */
    for (int c = 0; c < ROWS / 8; c++)
        for (int j = 0; j < 8; j++) {
            for (int k = 0; k < COLS; k++) data[k * 2 + c] |= (uint32_t)((8 * c + order[j] + 3 * k) % 16) << 4 * j;
            for (int g = 0; g < GROUPS; g++) zeros[g * 2 + c] |= (uint32_t)((8 * c + order[j] + g) % 16) << 4 * j;
        }
    kern.decode_rows(&m, 0, ROWS, out);
    for (int r = 0; r < ROWS; r++)
        for (int k = 0; k < COLS; k++, tally.cases++) {
            int g = k / GROUP, q = (r + 3 * k) % 16, z = (r + g) % 16;
            compare_bits("awq", r * COLS + k, out[r * COLS + k],
                         (float)(q - z) * (float)(1 << g) * (1 + (float)r / 32));
        }
    if (mat_bytes(&m) != sizeof data + sizeof zeros + sizeof scales) tally_fault("mat_bytes is wrong");
    tally_print("awq layout", "(same bits)", 1);
}

/* Every value where format.h says that it lies. */
static void check_block_layout(enum mat_format format) {
    enum { ROWS = 70, COLS = 300 };
    random_seed(80);
    for (int group = 32; group <= 128; group *= 2) {
        struct mat m = {.format = format, .rows = ROWS, .cols = COLS, .group_size = group};
        const int byte_values = format == MAT_INT8, tile = byte_values ? 1024 : 512;
        const size_t block = (size_t)(4 * tile + 128 / group * 64), panel = 3 * block;
        uint8_t *data = malloc(mat_bytes(&m));
        float *out = malloc(ROWS * COLS * sizeof *out);
        if (mat_bytes(&m) != 3 * panel) tally_fault("mat_bytes is %zu", mat_bytes(&m));
        for (size_t i = 0; i < 3 * panel; i++) data[i] = (uint8_t)(random_u32() >> 9 & 0x77); /* no fp16 beyond 32000 */
        m.data = data;
        kern.decode_rows(&m, 0, ROWS, out);
        for (int r = 0; r < ROWS; r++)
            for (int k = 0; k < COLS; k++, tally.cases++) {
                const uint8_t *b = data + (size_t)(r / 32) * panel + (size_t)(k / 128) * block;
                const uint8_t *t = b + (r % 32 / 16 * 2 + k % 128 / 64) * tile;
                int i = k % 64, line = byte_values ? i / 4 : i % 32 / 4, byte = t[line * 64 + r % 16 * 4 + i % 4];
                int q = byte_values ? byte - 128 : (i < 32 ? byte & 15 : byte >> 4) - 8;
                const uint8_t *s = b + 4 * tile + k % 128 / group * 64 + r % 32 * 2;
                compare_bits("block", r * COLS + k, out[r * COLS + k],
                             (float)q * f16_to_f32((uint16_t)(s[0] | s[1] << 8)));
            }
        free(out);
        free(data);
    }
    tally_print(format == MAT_INT4 ? "int4 layout" : "int8 layout", "(same bits)", 1);
}

static void check_level(enum cpu_level level) {
    kern_init(&kern, level);
    if (strcmp(kern.name, cpu_level_name(level)) != 0) tally_fault("the table says %s", kern.name);
    if (level == CPU_REF) {
        check_narrow_floats();
        check_e4m3();
    }
    check_awq_layout();
    check_block_layout(MAT_INT4);
    check_block_layout(MAT_INT8);
    for (int format = 0; format < MAT_FORMATS; format++) {
        char name[32];
        snprintf(name, sizeof name, "gemm %s", mat_format_name((enum mat_format)format));
        check_gemm((enum mat_format)format, 0, name);
    }
    check_gemm(MAT_INT4_AWQ, 1, "gemm_q8 int4_awq");
    check_gemm(MAT_INT4, 1, "gemm_q8 int4");
    check_gemm(MAT_INT8, 1, "gemm_q8 int8");
    check_signed_zero();
    check_quantize();
    for (int format = 0; format < MAT_FORMATS; format++) check_decode((enum mat_format)format);
    check_dots();
    check_weighted_sum();
    check_softmax();
    check_exp();
    check_rms_norm();
    check_silu_mul();
    check_add_scaled();
}

#if defined(__x86_64__)
/* kern_amx.c compiled once more, with the matrix unit's instructions in plain C (tests/check/kern_amx_in_c.c). */
void kern_init_amx_in_c(struct kern *kern);

static void check_tiles_in_c(void) {
    kern_init(&kern, CPU_AVX512);
    kern_init_amx_in_c(&kern);
    kern.name = "amx C";
    check_gemm(MAT_INT4, 1, "gemm_q8 int4");
    check_gemm(MAT_INT8, 1, "gemm_q8 int8");
}
#endif

int main(int argc, char **argv) {
    enum cpu_level best = cpu_detect();
    kern_init(&ref, CPU_REF);
    setvbuf(stdout, 0, _IOLBF, 0);
    if ((argc == 2 || argc == 3) && strcmp(argv[1], "--bench") == 0) return bench_run(best, argv[2]);
    if (argc != 1) {
        fprintf(stderr, "usage: check_kern [--bench [FORMAT]]\n");
        return 2;
    }
    for (int level = CPU_REF; level <= (int)best; level++) check_level((enum cpu_level)level);
    for (int level = (int)best + 1; level < CPU_LEVELS; level++)
        printf("%-7s left out: this machine does not have it\n", cpu_level_name((enum cpu_level)level));
#if defined(__x86_64__)
    if (best >= CPU_AVX512) check_tiles_in_c();
#endif
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
