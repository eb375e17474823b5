/* Error feedback against the paper's own form of it: in double, with the inverse of H, one column after another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cpu.h"
#include "check/random.h"
#include "model/encode.h"
#include "model/gptq_priv.h"

/* A text of `n` rows of inputs that hang together (each follows its neighbour), of several sizes. */
static float *make_inputs(int n, int cols, uint64_t seed) {
    struct check_random random;
    random_seed(&random, seed);
    float *x = malloc((size_t)n * (size_t)cols * sizeof *x);
    assert_non_null(x);
    for (int i = 0; i < n; i++) {
        float before = 0;
        for (int k = 0; k < cols; k++) {
            before = 0.8f * before + random_float(&random);
            x[i * cols + k] = before * (k % 7 ? 1 : 4);
        }
    }
    return x;
}

static void add_rows(struct moments *m, const float *x, int n, struct pool *pool) {
    struct mo_error error = {0};
    const float **rows = malloc((size_t)n * sizeof *rows);
    for (int i = 0; i < n; i++) rows[i] = x + (size_t)i * (size_t)m->cols;
    if (moments_add(m, rows, n, pool, &error)) fail_msg("%s", error.message);
    free(rows);
}

static struct pool *make_pool(int threads) {
    struct pool *pool;
    struct mo_error error = {0};
    if (pool_create(&pool, threads, &error)) fail_msg("%s", error.message);
    return pool;
}

static double moment(const struct moments *m, int r, int c) {
    int row = (r > c ? r : c) / GPTQ_BLOCK, low = r > c ? c : r, high = r > c ? r : c;
    return (double)m->sums[squares_before(row) + (size_t)(high % GPTQ_BLOCK) * squares_stride(row) + (size_t)low];
}

/* H as gptq.c is to make it of the inputs: 1 on the diagonal on average of those that live, correlations faded, a prior and the
 * damping. */
static double *wanted_h(const float *x, int n, int cols) {
    double *h = calloc((size_t)cols * (size_t)cols, sizeof *h), sum = 0;
    int live = 0;
    for (int i = 0; i < n; i++) {
        for (int r = 0; r < cols; r++) {
            for (int c = 0; c < cols; c++) h[r * cols + c] += (double)x[i * cols + r] * (double)x[i * cols + c];
        }
    }
    for (int r = 0; r < cols; r++) {
        sum += h[r * cols + r];
        live += h[r * cols + r] > 0;
    }
    for (int i = 0; i < cols * cols; i++) {
        bool is_diagonal = i % (cols + 1) == 0;
        double value = h[i] * live / sum;
        h[i] = is_diagonal ? (value * n + 8) / (n + 8) + 0.01 : value * n / (n + cols + 8);
    }
    return h;
}

/* One case, from a text to blocks. */
struct work {
    int rows, cols, n;
    float *x, *w; /* [n][cols], [rows][cols] */
    struct moments moments;
    struct gptq *gptq;
    struct mat from, to;
    struct make_error sum;
};

static void encode(struct work *k, bool has_feedback, struct mat *to) {
    void *scratch = aligned_alloc(64, (gptq_scratch_bytes(k->cols) + encode_scratch_bytes(k->cols) + 63) / 64 * 64);
    float *importance = malloc((size_t)k->cols * sizeof *importance);
    for (int i = 0; i < k->cols; i++) importance[i] = (float)moment(&k->moments, i, i) / (float)k->n + 0.01f;
    *to = k->to;
    to->data = aligned_alloc(64, (mat_bytes(to) + 63) / 64 * 64);
    k->sum = (struct make_error){0};
    for (int unit = 0; unit * MAKE_ROWS < k->rows; unit++) {
        int bad = has_feedback ? gptq_rows(&k->from, to, k->gptq, unit, scratch, &k->sum)
                               : encode_rows(&k->from, to, importance, unit, scratch, &k->sum);
        assert_int_equal(bad, -1);
    }
    free(importance);
    free(scratch);
}

static void work_open(struct work *k, enum mat_format format, int group, int rows, int cols, int n, int threads) {
    struct mo_error error = {0};
    struct check_random random;
    struct pool *pool = make_pool(threads);
    random_seed(&random, 7);
    *k = (struct work){.rows = rows, .cols = cols, .n = n, .moments = {.cols = cols}};
    k->x = make_inputs(n, cols, 3);
    for (int i = 0; i < n; i++) k->x[i * cols + cols / 2] = 0; /* an input that is dead */
    k->w = malloc((size_t)rows * (size_t)cols * sizeof *k->w);
    for (int i = 0; i < rows * cols; i++) k->w[i] = 0.02f * random_float(&random);
    k->from = (struct mat){.format = MAT_F32, .rows = rows, .cols = cols, .data = k->w};
    k->to = (struct mat){.format = format, .rows = rows, .cols = cols, .group_size = group};
    add_rows(&k->moments, k->x, n, pool);
    if (gptq_open(&k->gptq, &k->moments, pool, &error)) fail_msg("%s", error.message);
    encode(k, true, &k->to);
    pool_destroy(pool);
}

static void work_close(struct work *k) {
    gptq_close(k->gptq);
    moments_free(&k->moments);
    free((void *)(uintptr_t)k->to.data);
    free(k->x);
    free(k->w);
}

static void test_moments(void **state) {
    (void)state;
    enum { ROWS = 301, COLS = 200 };
    float *x = make_inputs(ROWS, COLS, 1);
    struct moments once = {.cols = COLS}, again = {.cols = COLS}, pieces = {.cols = COLS};
    struct pool *one = make_pool(1), *three = make_pool(3);
    add_rows(&once, x, ROWS, one);
    add_rows(&again, x, ROWS, three);
    assert_memory_equal(once.sums, again.sums, moments_bytes(COLS));
    add_rows(&pieces, x, 1, three);
    add_rows(&pieces, x + COLS, 200, three);
    add_rows(&pieces, x + 201 * COLS, 100, three);
    assert_int_equal(once.rows, ROWS);
    assert_int_equal(pieces.rows, ROWS);
    for (int r = 0; r < COLS; r++) {
        for (int c = 0; c < COLS; c++) {
            double sum = 0, size = 0;
            for (int i = 0; i < ROWS; i++) {
                double product = (double)x[i * COLS + r] * (double)x[i * COLS + c];
                sum += product;
                size += fabs(product);
            }
            assert_true(fabs(moment(&once, r, c) - sum) <= 1e-6 * size);
            assert_true(fabs(moment(&pieces, r, c) - sum) <= 1e-6 * size);
        }
    }
    moments_free(&again);
    moments_free(&once);
    moments_free(&pieces);
    pool_destroy(one);
    pool_destroy(three);
    free(x);
}

/* A million rows of an input that hardly changes: each adds less than half of the sum's last place in the end. */
static void test_long_text(void **state) {
    (void)state;
    enum { ROWS = 512, TIMES = 2000 };
    static const float VALUES[] = {0.3f, 0.31f};
    const float *rows[ROWS];
    struct moments m = {.cols = 1};
    struct pool *pool = make_pool(1);
    struct mo_error error = {0};
    double want = 0;
    for (int i = 0; i < ROWS; i++) {
        rows[i] = &VALUES[i % 2];
        want += (double)VALUES[i % 2] * (double)VALUES[i % 2] * TIMES;
    }
    for (int i = 0; i < TIMES; i++) assert_int_equal(moments_add(&m, rows, ROWS, pool, &error), 0);
    assert_true(fabs(moment(&m, 0, 0) - want) <= 2e-4 * want);
    moments_free(&m);
    pool_destroy(pool);
}

/* G^T G is H. */
static void check_triangle(const struct work *k, const double *h) {
    const struct gptq *g = k->gptq;
    for (int r = 0; r < k->cols; r++) {
        for (int c = 0; c <= r; c++) {
            double sum = 0;
            for (int j = r; j < k->cols; j++) { /* G_jr G_jc */
                const float *row = g->feedback + squares_before(j / GPTQ_BLOCK) +
                                   (size_t)(j % GPTQ_BLOCK) * squares_stride(j / GPTQ_BLOCK);
                double at_r = j == r ? 1 : (double)row[r], at_c = j == c ? 1 : (double)row[c];
                sum += at_r * at_c * (double)g->weight[j];
            }
            if (fabs(sum - h[r * k->cols + c]) > 2e-5 * sqrt(h[r * k->cols + r] * h[c * k->cols + c]))
                fail_msg("H[%d][%d] is %g, its triangle says %g", r, c, h[r * k->cols + c], sum);
        }
    }
}

static double *inverse_of(const double *matrix, int n) {
    double *a = malloc((size_t)n * (size_t)n * sizeof *a), *b = calloc((size_t)n * (size_t)n, sizeof *b);
    memcpy(a, matrix, (size_t)n * (size_t)n * sizeof *a);
    for (int i = 0; i < n; i++) b[i * n + i] = 1;
    for (int i = 0; i < n; i++) {
        double pivot = a[i * n + i];
        for (int c = 0; c < n; c++) {
            a[i * n + c] /= pivot;
            b[i * n + c] /= pivot;
        }
        for (int r = 0; r < n; r++) {
            double factor = a[r * n + i];
            for (int c = 0; c < n && r != i; c++) {
                a[r * n + c] -= factor * a[i * n + c];
                b[r * n + c] -= factor * b[i * n + c];
            }
        }
    }
    free(a);
    return b;
}

/* Every q is what the paper's loop rounds to, with the scales that were stored and the q before it. */
static void check_columns(const struct work *k, const double *h) {
    int n = k->cols, group = k->to.group_size, ties = 0;
    double *inverse = inverse_of(h, n), *w = malloc((size_t)k->rows * (size_t)n * sizeof *w);
    double low = k->to.format == MAT_INT4 ? -8 : -127, high = k->to.format == MAT_INT4 ? 7 : 127;
    for (int i = 0; i < k->rows * n; i++) w[i] = (double)k->w[i];
    for (int j = 0; j < n; j++) {
        double pivot = inverse[j * n + j];
        for (int r = 0; r < k->rows; r++) {
            double scale = (double)f16_to_f32(block_scale(&k->to, r, j / group * group));
            double target = w[r * n + j], q = block_value(&k->to, r, j), t = target / scale;
            if (t > high) t = high;
            if (t < low) t = low;
            assert_true(scale != 0);
            if (fabs(q - t) > 0.505) fail_msg("row %d, column %d: %g becomes %g", r, j, t, q);
            ties += fabs(q - t) > 0.5;
            for (int c = j + 1; c < n; c++) w[r * n + c] -= (target - q * scale) * inverse[j * n + c] / pivot;
        }
        for (int r = j + 1; r < n; r++) { /* the inverse of what is left of H */
            double factor = inverse[r * n + j] / pivot;
            for (int c = j + 1; c < n; c++) inverse[r * n + c] -= factor * inverse[j * n + c];
        }
    }
    assert_true(ties <= 1 + k->rows * n / 200);
    free(inverse);
    free(w);
}

/* d H d^T of all rows. */
static double output_error(const struct work *k, const struct mat *to, const double *h) {
    double sum = 0, *d = malloc((size_t)k->cols * sizeof *d);
    float *row = malloc((size_t)k->cols * sizeof *row);
    for (int r = 0; r < k->rows; r++) {
        format_decode_rows(to, r, r + 1, row);
        for (int i = 0; i < k->cols; i++) d[i] = (double)k->w[r * k->cols + i] - (double)row[i];
        for (int i = 0; i < k->cols; i++) {
            for (int j = 0; j < k->cols; j++) sum += d[i] * h[i * k->cols + j] * d[j];
        }
    }
    free(row);
    free(d);
    return sum;
}

static double weight_error(const struct work *k) {
    double sum = 0;
    float *row = malloc((size_t)k->cols * sizeof *row);
    for (int r = 0; r < k->rows; r++) {
        format_decode_rows(&k->to, r, r + 1, row);
        for (int i = 0; i < k->cols; i++) {
            double d = (double)k->w[r * k->cols + i] - (double)row[i];
            sum += d * d;
        }
    }
    free(row);
    return sum;
}

static const struct {
    enum mat_format format;
    int group, rows, cols, n;
    double most; /* of the error that scales alone leave */
} CASES[] = {
    {MAT_INT4, 128, 40, 128, 2000, 0.65}, {MAT_INT4, 64, 33, 200, 1000, 0.65}, {MAT_INT4, 32, 130, 320, 1500, 0.65},
    {MAT_INT8, 128, 5, 300, 1500, 0.7},   {MAT_INT4, 32, 7, 96, 20, 1.0},      {MAT_INT8, 32, 1, 32, 400, 0.9},
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

static void test_against_the_paper(void **state) {
    (void)state;
    for (int i = 0; i < N_CASES; i++) {
        struct work k;
        struct mat plain;
        work_open(&k, CASES[i].format, CASES[i].group, CASES[i].rows, CASES[i].cols, CASES[i].n, 2);
        double *h = wanted_h(k.x, k.n, k.cols), told = k.sum.error, found = weight_error(&k);
        check_triangle(&k, h);
        check_columns(&k, h);
        assert_true(fabs(told - found) <= 1e-4 * found);
        encode(&k, false, &plain);
        double with = output_error(&k, &k.to, h), without = output_error(&k, &plain, h);
        if (!(with < CASES[i].most * without)) fail_msg("case %d: %g of %g", i, with, without);
        free((void *)(uintptr_t)plain.data);
        free(h);
        work_close(&k);
    }
}

/* The same bytes with 1 thread and 3, and at every level that this machine has. */
static void test_bits(void **state) {
    (void)state;
    static const enum cpu_level LEVELS[] = {CPU_REF, CPU_AVX2, CPU_AVX512};
    struct work want;
    setenv("MOEBIUS_CPU", "ref", 1);
    work_open(&want, MAT_INT4, 64, 140, 400, 700, 1);
    for (int i = 0; i < 3; i++) {
        struct work got;
        if (!cpu_offers(LEVELS[i])) {
            printf("%s is left out: this machine lacks it\n", cpu_level_name(LEVELS[i]));
            continue;
        }
        setenv("MOEBIUS_CPU", cpu_level_name(LEVELS[i]), 1);
        work_open(&got, MAT_INT4, 64, 140, 400, 700, 3);
        assert_memory_equal(want.moments.sums, got.moments.sums, moments_bytes(400));
        assert_memory_equal(want.gptq->weight, got.gptq->weight, 400 * sizeof(float));
        assert_memory_equal(want.to.data, got.to.data, mat_bytes(&want.to));
        work_close(&got);
    }
    unsetenv("MOEBIUS_CPU");
    work_close(&want);
}

/* Errors of the outputs, of the moments as they were summed. */
static double error_by_moments(const struct work *k, const struct mat *to) {
    double *h = malloc((size_t)k->cols * (size_t)k->cols * sizeof *h);
    for (int r = 0; r < k->cols; r++) {
        for (int c = 0; c < k->cols; c++) h[r * k->cols + c] = moment(&k->moments, r, c);
    }
    double error = output_error(k, to, h);
    free(h);
    return error;
}

/* One input of 10000 at one token in a hundred, as large models have them: the others are mended as if it were not there. */
static void test_an_input_far_above_all_others(void **state) {
    (void)state;
    enum { COLS = 256, ROWS = 1500, FAR = 77 };
    struct work k;
    struct mat plain;
    struct mo_error error = {0};
    struct pool *pool = make_pool(1);
    work_open(&k, MAT_INT4, 64, 32, COLS, ROWS, 1);
    for (int r = 0; r < k.rows; r++) k.w[r * COLS + FAR] = 0; /* so that its own error does not hide the others' */
    free((void *)(uintptr_t)k.to.data);
    encode(&k, true, &k.to);
    encode(&k, false, &plain);
    double share = error_by_moments(&k, &k.to) / error_by_moments(&k, &plain);
    assert_true(share < 0.65);
    gptq_close(k.gptq);
    moments_free(&k.moments);
    for (int i = 0; i < ROWS; i++) k.x[i * COLS + FAR] = i % 100 ? 0 : 1e4f;
    add_rows(&k.moments, k.x, ROWS, pool);
    if (gptq_open(&k.gptq, &k.moments, pool, &error)) fail_msg("%s", error.message);
    free((void *)(uintptr_t)k.to.data);
    encode(&k, true, &k.to);
    double now = error_by_moments(&k, &k.to) / error_by_moments(&k, &plain);
    if (!(now < 1.1 * share)) fail_msg("%g of what scales alone leave, %g without that input", now, share);
    free((void *)(uintptr_t)plain.data);
    pool_destroy(pool);
    work_close(&k);
}

/* Sums that no inputs have, as rounding may make them: correlations fade until a triangle is found. */
static void test_moments_that_are_not_positive(void **state) {
    (void)state;
    enum { COLS = 96 };
    struct pool *pool = make_pool(1);
    struct moments m = {.cols = COLS, .rows = 1 << 20, .sums = calloc(1, moments_bytes(COLS))};
    struct mo_error error = {0};
    struct gptq *gptq;
    for (int r = 0; r < COLS; r++) {
        for (int c = 0; c < r; c++) m.sums[r * GPTQ_BLOCK + c] = (r + c) % 2 ? 900.0f : -900.0f;
        m.sums[r * GPTQ_BLOCK + r] = 1000.0f;
    }
    if (gptq_open(&gptq, &m, pool, &error)) fail_msg("%s", error.message);
    for (int i = 0; i < COLS; i++) assert_true(gptq->weight[i] > 0 && gptq->weight[i] <= 1.02f);
    gptq_close(gptq);
    moments_free(&m);
    pool_destroy(pool);
}

static void test_nothing_and_too_much(void **state) {
    (void)state;
    float zeros[2 * 40] = {0}, large[40] = {0};
    struct pool *pool = make_pool(1);
    struct moments m = {.cols = 40};
    struct mo_error error = {0};
    struct gptq *gptq = (struct gptq *)&m;
    assert_int_equal(gptq_open(&gptq, &m, pool, &error), 0);
    assert_null(gptq);
    add_rows(&m, zeros, 2, pool);
    assert_int_equal(gptq_open(&gptq, &m, pool, &error), 0);
    assert_null(gptq);
    large[3] = 1e25f;
    add_rows(&m, large, 1, pool);
    assert_int_equal(gptq_open(&gptq, &m, pool, &error), MO_E_NUMERIC);
    assert_non_null(strstr(error.message, "not finite"));
    moments_free(&m);
    pool_destroy(pool);
}

/* A weight that is not finite is found in its row. */
static void test_bad_weight(void **state) {
    (void)state;
    struct work k;
    work_open(&k, MAT_INT4, 128, 20, 128, 100, 1);
    void *scratch = aligned_alloc(64, (gptq_scratch_bytes(128) + 63) / 64 * 64);
    k.w[13 * 128 + 127] = INFINITY;
    assert_int_equal(gptq_rows(&k.from, &k.to, k.gptq, 0, scratch, &k.sum), 13);
    free(scratch);
    work_close(&k);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moments),
        cmocka_unit_test(test_against_the_paper),
        cmocka_unit_test(test_long_text),
        cmocka_unit_test(test_an_input_far_above_all_others),
        cmocka_unit_test(test_moments_that_are_not_positive),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_nothing_and_too_much),
        cmocka_unit_test(test_bad_weight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
