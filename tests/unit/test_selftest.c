/* Does the self-test notice wrong kernels, with the weights of the golden models? Each test replaces one function of the table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "engine/engine.h"
#include "selftest/selftest.h"

static struct kern good;
static struct engine *engine;
static struct mo_error why;

static void open_model(const char *path, const char *quantization) {
    struct mo_error error;
    struct engine_options options;
    engine_options_init(&options);
    options.model = path;
    options.quantization = quantization;
    options.max_model_len = 64;
    options.device = "cpu";
    options.no_self_test = true;
    if (engine_open(&engine, &options, &error)) fail_msg("%s: %s", path, error.message);
}

static int run(const struct kern *kern, enum kv_format kv, enum compute compute) {
    const struct selftest test = {.model = &engine->model, .weights = &engine->weights, .kv = kv, .compute = compute};
    struct selftest_report report = {0};
    memset(&why, 0, sizeof why);
    int code = selftest_kernels(&test, kern, &report, &why);
    assert_true(code || report.checks > 10);
    return code;
}

static void found(const struct kern *kern, enum kv_format kv, const char *const *words) {
    assert_int_equal(run(kern, kv, COMPUTE_FAST), MO_E_INTERNAL);
    for (; *words; words++) {
        if (!strstr(why.message, *words)) fail_msg("the message lacks \"%s\": %s", *words, why.message);
    }
}
#define FOUND(kern, kv, ...) found(kern, kv, (const char *const[]){__VA_ARGS__, NULL})

/* ---- right ones ---- */

static void test_all_models_at_all_levels(void **state) {
    (void)state;
    static const enum compute compute[] = {COMPUTE_FAST, COMPUTE_F32};
    char path[512];
    int models = 0;
    double slowest_s = 0;
    DIR *folder = opendir("tests/golden/data");
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        snprintf(path, sizeof path, "tests/golden/data/%s/config.json", entry->d_name);
        if (access(path, R_OK)) continue;
        path[strlen(path) - strlen("/config.json")] = '\0';
        open_model(path, NULL);
        models++;
        for (int level = CPU_REF + 1; level < CPU_LEVELS; level++) {
            struct kern kern;
            if (!cpu_offers((enum cpu_level)level)) continue;
            kern_init(&kern, (enum cpu_level)level);
            for (int i = 0; i < 2 * KV_FORMATS; i++) {
                double start = clock_now_s();
                if (run(&kern, (enum kv_format)(i / 2), compute[i % 2])) fail_msg("%s: %s", path, why.message);
                slowest_s = fmax(slowest_s, clock_now_s() - start);
            }
        }
        engine_close(engine);
    }
    closedir(folder);
    assert_true(models >= 7);
    printf("%d models; the slowest self-test took %.4f s\n", models, slowest_s);
}

/* ---- wrong products ---- */

static kern_gemm_q8 *right_q8;
static kern_gemm *right;

/* Which tokens, and how: one for few, many or one only, one lane. */
static int wrong_from, wrong_lane;

static float flipped(float value, uint32_t bits) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    word ^= bits;
    memcpy(&value, &word, sizeof value);
    return value;
}

static void flip_lane_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                         const void *next) {
    right_q8(w, r0, r1, x, n, y, next);
    int row = r0 + wrong_lane;
    if (n >= wrong_from && row < r1) y[n - 1][row] = flipped(y[n - 1][row], 1);
}

static void flip_lane(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    right(w, r0, r1, x, n, y);
    int row = r0 + wrong_lane;
    if (n >= wrong_from && row < r1) y[n - 1][row] = flipped(y[n - 1][row], 1);
}

static void row_too_few_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                           const void *next) {
    right_q8(w, r0, r1 - 1, x, n, y, next);
}

static void row_too_few(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    right(w, r0, r1 - 1, x, n, y);
}

/* Begins from what is there instead of 0. */
static void stale_sum_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                         const void *next) {
    float before = y[0][r0];
    right_q8(w, r0, r1, x, n, y, next);
    y[0][r0] += before;
}

static void flip_if_turned_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                              const void *next) {
    right_q8(w, r0, r1, x, n, y, next);
    if (w->turned && n >= wrong_from) y[n - 1][r0] = flipped(y[n - 1][r0], 1);
}

/* Blocks are tested as they lie and as they will (model/turn.h). */
static void test_turned_blocks(void **state) {
    static const int from[] = {1, 2, 17};
    (void)state;
    open_model("models/demo", NULL);
    struct mat *o = &engine->weights.layers[0].o;
    struct mat blocks = {.format = MAT_Q8_0, .rows = o->rows, .cols = o->cols};
    const size_t bytes = mat_bytes(&blocks);
    uint8_t *data = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)(i * 37 & 0x3f); /* finite scales */
    blocks.data = data;
    *o = blocks;
    struct kern kern = good;
    assert_int_equal(run(&kern, KV_BF16, COMPUTE_FAST), 0);
    right_q8 = good.gemm_q8[MAT_Q8_0];
    kern.gemm_q8[MAT_Q8_0] = flip_if_turned_q8;
    for (int i = 0; i < 3; i++) {
        wrong_from = from[i];
        FOUND(&kern, KV_BF16, "gemm_q8", "q8_0 of ");
    }
    engine_close(engine);
    free(data);
}

static const enum mat_format q8_formats[] = {MAT_INT4, MAT_INT8};

static void with_packed(void (*check)(enum mat_format format, struct kern *kern)) {
    static const char *const quantization[] = {"int4", "int8"};
    for (int i = 0; i < 2; i++) {
        struct kern kern = good;
        open_model("models/demo", quantization[i]);
        right_q8 = good.gemm_q8[q8_formats[i]];
        assert_int_equal(run(&kern, KV_BF16, COMPUTE_FAST), 0);
        check(q8_formats[i], &kern);
        engine_close(engine);
    }
}

static void flip_every_lane(enum mat_format format, struct kern *kern) {
    static const int from[] = {1, 2, 8};
    kern->gemm_q8[format] = flip_lane_q8;
    for (int i = 0; i < 3; i++) {
        wrong_from = from[i];
        for (wrong_lane = 0; wrong_lane < BLOCK_ROWS; wrong_lane += 5) {
            FOUND(kern, KV_BF16, good.name, "gemm_q8", mat_format_name(format), "columns", "expected the bits");
        }
    }
}

static void test_a_flipped_bit(void **state) {
    (void)state;
    with_packed(flip_every_lane);
}

static void leave_a_row(enum mat_format format, struct kern *kern) {
    kern->gemm_q8[format] = row_too_few_q8;
    FOUND(kern, KV_BF16, "gemm_q8", mat_format_name(format), "was never written");
}

static void test_a_row_too_few(void **state) {
    (void)state;
    with_packed(leave_a_row);
}

static void keep_a_sum(enum mat_format format, struct kern *kern) {
    kern->gemm_q8[format] = stale_sum_q8;
    FOUND(kern, KV_BF16, "gemm_q8", mat_format_name(format));
}

static void test_a_stale_sum(void **state) {
    (void)state;
    with_packed(keep_a_sum);
}

/* The formats that are published, each with fp32 activations; and AWQ with 8 bits. */
static void test_published_formats(void **state) {
    (void)state;
    static const struct {
        const char *model;
        enum mat_format format;
    } cases[] = {{"tests/golden/data/v3-tiny-fp8", MAT_FP8},
                 {"tests/golden/data/v2lite-tiny-ct-fp8", MAT_FP8},
                 {"tests/golden/data/v2-tiny", MAT_BF16}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct kern kern = good;
        open_model(cases[i].model, NULL);
        right = good.gemm[cases[i].format];
        kern.gemm[cases[i].format] = flip_lane;
        wrong_lane = 3;
        wrong_from = 8;
        FOUND(&kern, KV_BF16, "gemm", mat_format_name(cases[i].format), "23 tokens");
        kern.gemm[cases[i].format] = row_too_few;
        FOUND(&kern, KV_BF16, "gemm", "was never written");
        engine_close(engine);
    }
    struct kern kern = good;
    open_model("tests/golden/data/v2lite-tiny-awq", NULL);
    right_q8 = good.gemm_q8[MAT_INT4_AWQ];
    kern.gemm_q8[MAT_INT4_AWQ] = flip_lane_q8;
    FOUND(&kern, KV_BF16, "gemm_q8", mat_format_name(MAT_INT4_AWQ));
    engine_close(engine);
}

/* ---- all other kernels ---- */

static void wrong_quantize(const float *x, int n, int group, struct q8_row *out) {
    good.quantize(x, n, group, out);
    out->q[n - 1] = (int8_t)(out->q[n - 1] ^ 1);
}

static void wrong_decode(const struct mat *w, int r0, int r1, float *out) {
    good.decode_rows(w, r0, r1, out);
    if (w->format != MAT_FP8) return; /* of the cache in fp8 alone */
    out[w->cols - 1] = flipped(out[w->cols - 1], 1);
}

static void wrong_dots(const struct kern_dots *job) {
    good.dots(job);
    job->out[(size_t)(job->n_q - 1) * job->out_stride + (size_t)(job->n_k - 1)] *= 1.0000002f;
}

static void wrong_sum(float *acc, size_t acc_stride, const float *keep, const float *p, size_t p_stride, const float *v,
                      size_t v_stride, int m, int n_t, int n_c) {
    good.page_sum(acc, acc_stride, keep, p, p_stride, v, v_stride, m, n_t - 1, n_c); /* a token too few */
}

static void wrong_rounding(const float *x, int n, uint16_t *out) {
    good.to_bf16(x, n, out);
    out[n - 1] ^= 1;
}

static void wrong_pair_dots(const struct kern_pair_dots *job) {
    good.pair_dots(job);
    job->out[(size_t)(job->n_q - 1) * job->out_stride + (size_t)(job->n_k - 1)] *= 1.0000002f;
}

static void wrong_pair_sum(const struct kern_pair_sum *job) {
    struct kern_pair_sum less = *job;
    less.n_t--; /* a token too few */
    good.pair_sum(&less);
}

static void wrong_unrounded(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    good.gemm[w->format](w, r0, r1, x, n, y); /* of activations rounded all the same */
}

static float wrong_softmax(float *s, int n, float scale, float *max, float *sum) {
    float before = *sum, keep = good.softmax_step(s, n, scale, max, sum);
    *sum += before * (1 - keep); /* the old sum is not corrected */
    return keep;
}

static float wrong_norm(const float *x, const float *weight, int n, float eps, float *out) {
    return good.rms_norm(x, weight, n, eps * 1.5f, out);
}

static void wrong_silu(float *gate, const float *up, int n) {
    good.silu_mul(gate, up, n - 1);
}

static void wrong_add(float *x, float a, const float *y, int n) {
    good.add_scaled(x, a, y, n - n % 16);
    x[0] = flipped(x[0], 2);
}

static void wrong_relu_sum(const float *w, const float *s, size_t s_stride, int heads, int n, float *out) {
    good.relu_sum(w, s, s_stride, heads - 1, n, out); /* a head too few */
}

/* One kernel of the table replaced. */
#define FOUND_WRONG(function, wrong, kv, ...)                                                                          \
    do {                                                                                                               \
        struct kern kern = good;                                                                                       \
        kern.function = wrong;                                                                                         \
        FOUND(&kern, kv, __VA_ARGS__);                                                                                 \
    } while (0)

static void test_every_other_kernel(void **state) {
    (void)state;
    open_model("models/demo", "int8");
    FOUND_WRONG(quantize, wrong_quantize, KV_BF16, "quantize", "groups of");
    FOUND_WRONG(decode_rows, wrong_decode, KV_FP8, "decode_rows", "fp8");
    FOUND_WRONG(dots, wrong_dots, KV_BF16, "dots", "keys");
    FOUND_WRONG(page_sum, wrong_sum, KV_BF16, "page_sum");
    FOUND_WRONG(weighted_sum, wrong_sum, KV_BF16, "weighted_sum");
    if (good.pair_order) {
        FOUND_WRONG(gemm_unrounded, wrong_unrounded, KV_BF16, "gemm_unrounded", "layers.1.mlp.gate,");
        FOUND_WRONG(to_bf16, wrong_rounding, KV_BF16, "to_bf16");
        FOUND_WRONG(pair_dots, wrong_pair_dots, KV_BF16, "pair_dots", "keys");
        FOUND_WRONG(pair_sum, wrong_pair_sum, KV_FP8, "pair_sum");
    } else {
        printf("left out: wrong sums of bf16; this level has none\n");
    }
    FOUND_WRONG(softmax_step, wrong_softmax, KV_BF16, "softmax_step");
    FOUND_WRONG(rms_norm, wrong_norm, KV_BF16, "rms_norm");
    FOUND_WRONG(silu_mul, wrong_silu, KV_BF16, "silu_mul");
    FOUND_WRONG(add_scaled, wrong_add, KV_BF16, "add_scaled");
    engine_close(engine);
}

static void test_indexer(void **state) {
    (void)state;
    open_model("tests/golden/data/v32-tiny", NULL);
    FOUND_WRONG(relu_sum, wrong_relu_sum, KV_BF16, "relu_sum");
    engine_close(engine);
}

static void wrong_row_sums(const struct mat *w, int r0, int r1, const float *p, float *sum) {
    good.sum_rows[w->format](w, r0, r1 - 1, p, sum);
}

static void test_row_sums(void **state) {
    (void)state;
    struct kern kern = good;
    open_model("models/demo", NULL);
    enum mat_format format = engine->weights.layers[0].kv_b.format;
    assert_non_null(good.sum_rows[format]);
    kern.sum_rows[format] = wrong_row_sums;
    FOUND(&kern, KV_BF16, "sum_rows");
    engine_close(engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_models_at_all_levels),
        cmocka_unit_test(test_turned_blocks),
        cmocka_unit_test(test_a_flipped_bit),
        cmocka_unit_test(test_a_row_too_few),
        cmocka_unit_test(test_a_stale_sum),
        cmocka_unit_test(test_published_formats),
        cmocka_unit_test(test_every_other_kernel),
        cmocka_unit_test(test_row_sums),
        cmocka_unit_test(test_indexer),
    };
    const struct CMUnitTest only_right[] = {cmocka_unit_test(test_all_models_at_all_levels)};
    enum cpu_level level = CPU_REF;
    if (cpu_level_get(&level, NULL) || level == CPU_REF) {
        printf("left out: wrong kernels; this machine has plain C alone, which others are compared with\n");
        return cmocka_run_group_tests(only_right, NULL, NULL);
    }
    kern_init(&good, level);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
