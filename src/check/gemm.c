/* Products of matrices and tokens: values, bits, and the same bits in any part of rows and tokens. */
#include "check/check_priv.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const kind_names[DATA_KINDS] = {"plain", "tiny", "extreme", "zero", "special"};
static const float unset = -12345.678f;

struct gemm_case {
    struct mat mat;
    bool quantized; /* 8-bit activations */
    int n;
    float *x[CHECK_TOKENS_MAX], *y[CHECK_TOKENS_MAX];
    struct q8_row q[CHECK_TOKENS_MAX];
    float *whole; /* [n][rows] result of all rows and tokens at once */
    char name[96];
};

static void run_gemm(const struct kern *with, const struct gemm_case *c, int r0, int r1, int t0, int n) {
    for (int t = t0; t < t0 + n; t++)
        for (int r = 0; r < c->mat.rows; r++) c->y[t][r] = unset;
    if (c->quantized)
        with->gemm_q8[c->mat.format](&c->mat, r0, r1, c->q + t0, n, c->y + t0, NULL);
    else
        with->gemm[c->mat.format](&c->mat, r0, r1, (const float *const *)c->x + t0, n, c->y + t0);
}

/* All rows and tokens by the kernel under test: what the rest is compared with. */
static void run_whole(struct check *check, struct gemm_case *c) {
    const int rows = c->mat.rows;
    c->whole = check_floats(check, c->n * rows);
    run_gemm(&check->kern, c, 0, rows, 0, c->n);
    for (int t = 0; t < c->n; t++) memcpy(c->whole + t * rows, c->y[t], (size_t)rows * sizeof **c->y);
}

/* Rows [r0, r1) of tokens [t0, t0 + n): the bits of the whole, and nothing written beside them. */
static void check_part(struct check *check, const struct gemm_case *c, int r0, int r1, int t0, int n) {
    run_gemm(&check->kern, c, r0, r1, t0, n);
    for (int t = t0; t < t0 + n; t++)
        for (int r = 0; r < c->mat.rows; r++) {
            float expected = r >= r0 && r < r1 ? c->whole[t * c->mat.rows + r] : unset;
            if (check_same_bits(c->y[t][r], expected)) continue;
            check_fault(check, "%s rows %d-%d tokens %d+%d: y[%d][%d] is %.9g, expected the bits of %.9g", c->name, r0,
                        r1, t0, n, t, r, (double)c->y[t][r], (double)expected);
            return;
        }
}

/* What kern.h wants the ends of a range of rows to be multiples of. */
static int row_unit(const struct gemm_case *c) {
    if (c->mat.turned) return TURN_ROWS;
    if (c->mat.format == MAT_INT4_AWQ) return 8;
    return c->quantized && mat_is_integer(c->mat.format) ? BLOCK_ROWS : 1;
}

static void check_parts(struct check *check, const struct gemm_case *c) {
    struct check_random *random = &check->random;
    int unit = row_unit(c), units = (c->mat.rows + unit - 1) / unit;
    for (int t = 0; t < c->n; t++) check_part(check, c, 0, c->mat.rows, t, 1);
    for (int i = 0; i < 6; i++) {
        int u0 = random_int(random, 0, units - 1), u1 = random_int(random, u0 + 1, units);
        int r1 = u1 * unit < c->mat.rows ? u1 * unit : c->mat.rows, t0 = random_int(random, 0, c->n - 1);
        check_part(check, c, u0 * unit, r1, t0, random_int(random, 1, c->n - t0));
    }
    check_part(check, c, 0, c->mat.rows, 0, 0);
}

/* The plain C kernel's bits. */
static void check_bits_of_ref(struct check *check, const struct gemm_case *c) {
    const int rows = c->mat.rows;
    run_gemm(&check->ref, c, 0, rows, 0, c->n);
    for (int t = 0; t < c->n; t++)
        for (int r = 0; r < rows; r++) check_bits(check, c->name, r, c->whole[t * rows + r], c->y[t][r]);
}

static float scale_max(const struct mat *m) {
    float max = 1;
    if (m->format != MAT_FP8 && m->format != MAT_INT8_ROWS) return max;
    for (int i = 0; i <= (m->rows - 1) / m->scale_rows; i++)
        for (int j = 0; j <= (m->cols - 1) / m->scale_cols; j++) max = fmaxf(max, m->scale[i * m->scale_stride + j]);
    return max;
}

/* Whether a level has bits of its own for this product. */
static bool is_reordered(const struct check *check, const struct gemm_case *c) {
    const enum mat_format format = c->mat.format;
    return (check->kern.tile_order || check->kern.pair_order) && (format == MAT_BF16 || format == MAT_FP8);
}

/* x [cols] = token t, as the product sees it. */
static void exact_activations(const struct check *check, const struct gemm_case *c, int t, double *x) {
    const int group = c->quantized ? q8_group(&c->mat) : 1;
    const bool rounds = check->kern.pair_order && is_reordered(check, c);
    for (int k = 0; k < c->mat.cols; k++) {
        uint16_t rounded;
        if (rounds) check->ref.to_bf16(&c->x[t][k], 1, &rounded);
        x[k] = rounds         ? (double)bf16_to_f32(rounded)
               : c->quantized ? (double)c->q[t].q[k] * (double)c->q[t].scale[k / group]
                              : (double)c->x[t][k];
    }
}

/* What a sum may lose to numbers that are too small. In tile order these are all below 2^-126: at each k a weight (times x,
 * below 12 here), the products of three parts of x, and a share of the step's sums: sixteen in all. In pair order less. FP8 is scaled
 * afterwards. */
static double lost_by_underflow(const struct check *check, const struct gemm_case *c) {
    double cols = c->mat.cols, unit = 256 * (double)scale_max(&c->mat);
    if (!is_reordered(check, c)) return cols * 0x1p-149 * unit;
    return cols * 16 * 0x1p-126 * (c->mat.format == MAT_FP8 ? unit : 1);
}

/* size [cols] = what the weights of a row are made of: |w|, or where w is a sum, the sizes of its parts. */
static void weight_sizes(const struct mat *m, int row, const float *w, float *size) {
    struct gguf_parts parts;
    uint8_t room[GGUF_BLOCK_MAX];
    int values = m->cols;
    size_t bytes;
    for (int k = 0; k < m->cols; k++) size[k] = fabsf(w[k]);
    if (!gguf_block(m->format, &values, &bytes)) return;
    for (int k = 0; k < m->cols; k++) {
        if (k % values == 0) gguf_take_apart(m->format, gguf_block_at(m, row, k / values, room), &parts);
        int at = k % values, j = at / parts.per_scale;
        if (parts.has_low) size[k] = fabsf(parts.scale[j] * (float)parts.q[at]) + fabsf(parts.low[j]);
    }
}

/* Against sums in double of the decoded weights: 2e-6 of sum |w x|, plus what small products may lose. FP4's largest scales make
 * weights and sums that are too large for a float: then bits alone are compared. */
static void check_values(struct check *check, const struct gemm_case *c) {
    const int rows = c->mat.rows, cols = c->mat.cols;
    float *w = check_floats(check, cols), *w_size = check_floats(check, cols);
    double lost = lost_by_underflow(check, c), *all = check_alloc(check, (size_t)c->n * (size_t)cols * sizeof *all);
    for (int t = 0; t < c->n; t++) exact_activations(check, c, t, all + t * cols);
    for (int r = 0; r < rows; r++) {
        format_decode_rows(&c->mat, r, r + 1, w);
        weight_sizes(&c->mat, r, w, w_size);
        bool has_inf = false;
        for (int k = 0; k < cols; k++) has_inf |= isinf(w_size[k]);
        for (int t = 0; t < c->n; t++) {
            const double *x = all + t * cols;
            double sum = 0, size = 0;
            for (int k = 0; k < cols; k++) {
                sum += (double)w[k] * x[k];
                size += (double)w_size[k] * fabs(x[k]);
            }
            if (c->mat.format == MAT_FP4 && (has_inf || size >= 0x1p126)) continue;
            /* An infinite scale times a sum is Inf, where the sum of infinite products is NaN. */
            if (c->quantized && !isfinite(sum) && !isfinite(c->whole[t * rows + r])) continue;
            check_value(check, c->name, r, c->whole[t * rows + r], (float)sum, 2e-6 * size + lost);
        }
    }
}

/* What of a format is checked. */
struct gemm_kind {
    enum mat_format format;
    bool quantized, turned;
};

static void check_case(struct check *check, struct gemm_kind what, int rows, int cols, int n, enum data_kind kind) {
    rows = check_round_rows(what.format, rows);
    cols = check_round_cols(what.format, cols);
    struct gemm_case c = {
        .mat = check_make_mat(check, what.format, rows, cols, kind), .quantized = what.quantized, .n = n};
    if (what.turned) check_turn(check, &c.mat);
    snprintf(c.name, sizeof c.name, "%dx%d, %d tokens, %s", rows, cols, n, kind_names[kind]);
    check_make_activations(check, c.x, n, cols, kind);
    for (int t = 0; t < n; t++) {
        c.y[t] = check_floats(check, rows);
        if (what.quantized) c.q[t] = check_make_q8(check, c.x[t], cols, q8_group(&c.mat));
    }
    run_whole(check, &c);
    check_values(check, &c);
    check_bits_of_ref(check, &c);
    check_parts(check, &c);
    check->cases++;
}

/* Any size, many times. */
static void check_odd_sizes(struct check *check, struct gemm_kind what) {
    const bool awq = what.format == MAT_INT4_AWQ && !what.turned;
    struct check_random *random = &check->random;
    const bool is_plain = mat_is_words(what.format) && !awq && !what.turned; /* at every level */
    const bool shares =
        gguf_is_blocks(what.format) || (what.turned && what.format != MAT_INT4_AWQ); /* their products */
    const int rounds = is_plain ? 8 : shares ? 30 : 80;
    for (int round = 0; round < rounds; round++) {
        int rows = awq ? 8 * random_int(random, 1, 36) : random_int(random, 1, 67), cols = random_int(random, 1, 600);
        if (round % 4 == 1) cols = (cols + 31) / 32 * 32;
        if (round == 0) rows = awq ? 8 : 1, cols = 1;
        check_round(check, round);
        check_case(check, what, rows, cols, random_int(random, 1, 17), (enum data_kind)(round % DATA_KINDS));
    }
}

static void check_kind(struct check *check, struct gemm_kind what) {
    const enum mat_format format = what.format;
    const bool awq = format == MAT_INT4_AWQ && !what.turned, quantized = what.quantized;
    char name[32];
    snprintf(name, sizeof name, "%s%s %s", quantized ? "gemm_q8" : "gemm", what.turned ? " turned" : "",
             mat_format_name(format));
    check_begin(check, name, (uint64_t)format + 1, "of sum |wx|", 2e-6);
    check_odd_sizes(check, what);
    check_round(check, 0);
    check_case(check, what, awq ? 1160 : 9, 1408, 3, DATA_PLAIN); /* more rows than a block of them */
    check_round(check, 0);
    check_case(check, what, 24, 160, CHECK_TOKENS_MAX, DATA_PLAIN); /* more tokens than a block of them */
    if (check->kern.pair_order && (format == MAT_BF16 || format == MAT_FP8)) {
        check_round(check, 0);
        check_case(check, what, 130, 4650, 19,
                   DATA_PLAIN); /* more columns than are rounded at once, more rows than have sums */
        check_round(check, 1);
        check_case(check, what, 19, 16400, 2, DATA_PLAIN); /* the same columns for one token */
    }
    if (check->kern.gemm[format] != check->ref.gemm[format] && !gguf_is_blocks(format) &&
        (awq || !mat_is_words(format))) {
        check_round(check, 0);
        check_case(check, what, 2048, 1408, 2, DATA_PLAIN);
    }
    if (format == MAT_FP4) {
        check_round(check, 1);
        check_case(check, what, 19, 16500, 2,
                   DATA_PLAIN); /* more columns than one token's activations that are prepared at once */
    }
    int most_panels = gguf_is_blocks(format) ? 4 : mat_is_words(format) ? 9 : 16;
    if (mat_is_words(format) && !awq && !what.turned) most_panels = 0;
    for (int panels = 1; quantized && !awq && panels <= most_panels;
         panels++) { /* every way to cut panels and tokens into sets */
        check_round(check, panels);
        check_case(check, what, BLOCK_ROWS * panels - panels % 3, 300, panels, DATA_PLAIN);
    }
    check_end(check);
}

/* Powers of two as scales, and activations, that are so small or large that nothing may be moved from one factor to another. */
static void check_small_limits(struct check *check, int rows, int cols, int n) {
    struct check_random *random = &check->random;
    const int size = random_int(random, 0, 1) ? random_int(random, -118, -60) : random_int(random, 60, 110);
    const int scale_size = random_int(random, -100, 20);
    struct gemm_case c = {.mat = check_make_mat(check, MAT_FP8, rows, cols, DATA_PLAIN), .n = n};
    const int scales = (rows - 1) / c.mat.scale_rows * c.mat.scale_stride + (cols - 1) / c.mat.scale_cols + 1;
    float *scale = check_floats(check, scales);
    for (int i = 0; i < scales; i++) scale[i] = ldexpf(1, scale_size + random_int(random, 0, 2));
    c.mat.scale = scale;
    snprintf(c.name, sizeof c.name, "%dx%d, %d tokens of 2^%d, scales of 2^%d", rows, cols, n, size, scale_size);
    check_make_activations(check, c.x, n, cols, DATA_PLAIN);
    for (int t = 0; t < n; t++) {
        c.y[t] = check_floats(check, rows);
        for (int k = 0; k < cols; k++) c.x[t][k] = ldexpf(c.x[t][k], size);
    }
    run_whole(check, &c);
    check_bits_of_ref(check, &c);
    check_parts(check, &c);
    check->cases++;
}

/* FP8 with the blocks of DeepSeek-V4.1, for which kernels have loops of their own: lines of 64 columns, whole in two rounds of three,
 * rows that begin and end within a block, one token and few of them and many. */
static void check_small_blocks(struct check *check) {
    const struct gemm_kind what = {.format = MAT_FP8};
    struct check_random *random = &check->random;
    check_begin(check, "gemm fp8_32", 70, "of sum |wx|", 2e-6);
    check->small_blocks = true;
    for (int round = 0; round < 60; round++) {
        const int cols = 64 * random_int(random, 1, 10) + (round % 3 == 2 ? random_int(random, -63, 63) : 0);
        const int n = round % 2 ? random_int(random, 1, 5) : random_int(random, 1, 64);
        check_round(check, round);
        check_case(check, what, random_int(random, 1, 80), cols, n, (enum data_kind)(round % DATA_KINDS));
    }
    check_round(check, 0);
    check_case(check, what, 130, 4704, 19, DATA_PLAIN); /* more columns than are rounded at once for many tokens */
    check_round(check, 1);
    check_case(check, what, 40, 16544, 2, DATA_PLAIN); /* and for few */
    for (int round = 0; round < 60; round++) {
        check_round(check, round);
        check_small_limits(check, 16, 192, round % 2 ? 2 : 15);
    }
    check->small_blocks = false;
    check_end(check);
}

void check_gemm(struct check *check, enum mat_format format, bool quantized) {
    check_kind(check, (struct gemm_kind){format, quantized, false});
    if (format == MAT_FP8 && !quantized) check_small_blocks(check);
    if (mat_can_turn(format)) check_kind(check, (struct gemm_kind){format, quantized, true});
}

/* Products too small for a float leave -0 in every lane, where one addition of 0 too many would show. */
void check_signed_zero(struct check *check) {
    enum { ROWS = 9, TOKENS = 3 };
    check_begin(check, "gemm, -0", 0, "(same bits)", 1);
    for (int cols = 1; cols <= 96; cols++, check->cases++) {
        struct gemm_case c = {.mat = {.format = MAT_F32, .rows = ROWS, .cols = cols}, .n = TOKENS};
        check_round(check, 0);
        float *w = check_floats(check, ROWS * cols);
        c.mat.data = w;
        for (int i = 0; i < ROWS * cols; i++) w[i] = 0x1p-100f;
        for (int t = 0; t < TOKENS; t++) {
            c.x[t] = check_floats(check, cols);
            c.y[t] = check_floats(check, ROWS);
            for (int k = 0; k < cols; k++) c.x[t][k] = -0x1p-100f;
        }
        snprintf(c.name, sizeof c.name, "signed zeros, %d columns", cols);
        run_whole(check, &c);
        check_bits_of_ref(check, &c);
        check_parts(check, &c);
    }
    check_end(check);
}
