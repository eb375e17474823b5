/* The kernels for prompts on the shim's card: lists of experts with many rows, FP8 times FP8, attention in expanded form. */
#include "card_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/arena.h"
#include "survey.h"

/* A row as e4m3 in groups of 128, and back. */
static void round_native(const uint16_t *x, int n, float *out) {
    for (int first = 0; first < n; first += 128) {
        float most = 0;
        int end = first + 128 < n ? first + 128 : n;
        for (int k = first; k < end; k++) most = fmaxf(most, fabsf(bf16_to_f32(x[k])));
        float scale = most == 0 ? 1 : most / 448;
        for (int k = first; k < end; k++) out[k] = e4m3_to_f32(f32_to_e4m3(bf16_to_f32(x[k]) / scale)) * scale;
    }
}

/* FP8 times FP8: many rows, one of them zero and one with a value that dwarfs the others, beside plain C with the same rounding. A
 * card without the instruction, or few rows, or groups of scales that are smaller: the bits of the other variants. */
static void check_native(struct fixture *f, const char *name, const struct weight *w, const struct mat *mat) {
    size_t cols = (size_t)mat->cols, rows = (size_t)mat->rows, packed = f->cuda->packed_bytes;
    uint8_t *room = f->cuda->scratch.packed;
    float *weight = decode(f, mat, 0, mat->rows), *y = card_memory(f, MAX_ROWS * rows * sizeof *y),
          *plain = calloc(MAX_ROWS * rows, sizeof *plain), *x = calloc(cols, sizeof *x);
    uint16_t *halves = card_memory(f, MAX_ROWS * cols * sizeof *halves);
    f->cuda->packed_bytes = (size_t)(MAX_ROWS * w->m.slabs * NATIVE_ROW_BYTES);
    f->cuda->scratch.packed = card_memory(f, f->cuda->packed_bytes);
    for (size_t i = 0; i < MAX_ROWS * cols; i++) halves[i] = f32_to_bf16(i < cols ? 0 : uniform(-2, 2));
    halves[cols + 1] = f32_to_bf16(3000);
    multiply(f, w, X_BF16, halves, y, 40);
    memcpy(plain, y, 40 * rows * sizeof *y);
    bool has_kernel = f->cuda->kernels[KERNEL_FP8_NATIVE] != NULL;
    f->cuda->fp8_native = has_kernel;
    multiply(f, w, X_BF16, halves, y, 40);
    assert_memory_equal(plain, y, 40 * rows * sizeof *y);
    multiply(f, w, X_BF16, halves, y, MOST_ROWS);
    bool same = !memcmp(plain, y, 40 * rows * sizeof *y);
    if (same != (!has_kernel || w->format != WEIGHT_FP8 || w->m.group_shift < 7))
        complain("%s: the wrong variant", name);
    struct survey survey = {0};
    for (size_t t = 0; t < MOST_ROWS && !same; t += t < 10 ? 1 : 7) {
        round_native(halves + t * cols, mat->cols, x);
        for (size_t r = 0; r < rows; r++) {
            double size, want = dot(weight + r * cols, x, mat->cols, &size);
            survey_add(&survey, r, t, want, (double)y[t * rows + r], 2e-6 * size + 1e-30);
        }
    }
    survey_tell(&survey, "%s, native", name);
    f->cuda->fp8_native = false;
    free(plain);
    free(x);
    void *const all[] = {y, halves, f->cuda->scratch.packed};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) give_back(f, all[i]);
    f->cuda->scratch.packed = room;
    f->cuda->packed_bytes = packed;
}

/* Pairs of several experts, few or many of each, cut into items of at most `most` rows; up and down again. */
static void multiply_lists(struct fixture *f, const int *counts, int n_counts, int most, const float *x,
                           const int32_t *row, uint16_t *act, float *y) {
    const struct model *m = &f->model;
    const struct device_layer *w = &f->cuda->weights.layers[1];
    const struct weight *up = &w->expert_gate_up, *down = &w->expert_down;
    struct expert_item *items = card_memory(f, 256 * sizeof *items);
    int32_t *n_items = card_memory(f, 4);
    int pairs = 0, n = 0;
    for (int e = 0; e < n_counts; e++) {
        for (int i = 0; i < counts[e]; i += most) {
            int left = counts[e] - i < most ? counts[e] - i : most;
            items[n++] = (struct expert_item){.expert = e * 3, .first = pairs + i, .n = left};
        }
        pairs += counts[e];
    }
    *n_items = n;
    struct linear_params p = cuda_linear_begin(f->cuda);
    *cuda_linear_add(&p, up, MAX_ROWS, n + 3) = (struct linear_job){.w = up->m,
                                                                    .x_kind = X_F32,
                                                                    .x = x,
                                                                    .x_stride = (size_t)m->hidden,
                                                                    .x_row = row,
                                                                    .y = act,
                                                                    .y_stride = (size_t)m->expert_width,
                                                                    .y_kind = Y_SILU,
                                                                    .gain = w->ffn_norm,
                                                                    .items = items,
                                                                    .n_items = n_items,
                                                                    .n = MAX_ROWS,
                                                                    .groups = n + 3,
                                                                    .fault_key = 1,
                                                                    .limit = 2};
    cuda_linear_run(f->cuda, &p, &up, most);
    p = cuda_linear_begin(f->cuda);
    *cuda_linear_add(&p, down, pairs, n + 3) = (struct linear_job){.w = down->m,
                                                                   .x_kind = X_BF16,
                                                                   .x = act,
                                                                   .x_stride = (size_t)m->expert_width,
                                                                   .y = y,
                                                                   .y_stride = (size_t)m->hidden,
                                                                   .items = items,
                                                                   .n_items = n_items,
                                                                   .n = pairs,
                                                                   .groups = n + 3};
    cuda_linear_run(f->cuda, &p, &down, most);
    wait_for(f);
    give_back(f, items);
    give_back(f, n_items);
}

/* The variant for prompts beside the skinny one. */
static void check_lists(struct fixture *f, const char *name) {
    static const int counts[] = {130, 1, 77, 40};
    enum { PAIRS = 130 + 1 + 77 + 40 };
    const struct model *m = &f->model;
    size_t hidden = (size_t)m->hidden, width = (size_t)m->expert_width;
    float *x = card_memory(f, MAX_ROWS * hidden * sizeof *x), *y[2];
    uint16_t *act[2];
    int32_t *row = card_memory(f, PAIRS * sizeof *row);
    for (size_t i = 0; i < MAX_ROWS * hidden; i++) x[i] = uniform(-2, 2);
    for (int i = 0; i < PAIRS; i++) row[i] = (int32_t)(draw() % MAX_ROWS);
    for (int i = 0; i < 2; i++) {
        y[i] = card_memory(f, PAIRS * hidden * sizeof **y);
        act[i] = card_memory(f, PAIRS * width * sizeof **act);
        multiply_lists(f, counts, 4, i ? MANY_TOKENS : 8, x, row, act[i], y[i]);
    }
    if (memcmp(act[0], act[1], PAIRS * width * sizeof **act))
        complain("%s: experts up: other bits for many rows", name);
    struct survey down = {0};
    survey_bits(&down, y[0], y[1], hidden, PAIRS);
    survey_tell(&down, "%s: experts down: other bits for many rows", name);
    void *const all[] = {x, y[0], y[1], act[0], act[1], row};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) give_back(f, all[i]);
}

/* Rows [first_pos, first_pos + n) with a window of so many tokens, compared with double in some rows; returns the results. */
static uint16_t *attend_expanded(struct fixture *f, int n, int first_pos, int window, int every) {
    const struct model *m = &f->model;
    float *kv_b = decode(f, &f->layers[0].kv_b, 0, f->layers[0].kv_b.rows);
    size_t values = (size_t)(n * m->heads * m->v_dim);
    uint16_t *out = calloc(values, 2);
    f->cuda->expanded.window.tokens = window;
    begin(f, n, first_pos);
    memset(f->cuda->scratch.attended, 0xff, values * 2);
    f->backend->ops->attn(f->backend, 0);
    wait_for(f);
    assert_int_equal(f->cuda->expanded.n_passes, (first_pos + n + window - 1) / window);
    for (int row = 0; row < n; row += every) {
        for (int head = row % 2; head < m->heads; head += 2) check_attended(f, row, head, first_pos + row, kv_b);
    }
    memcpy(out, f->cuda->scratch.attended, values * 2);
    end(f);
    return out;
}

/* Rows of a chunk have the bits that they have in another chunk, and with another window. */
static void check_expanded(struct fixture *f, int n, int first_pos, int skip) {
    const struct model *m = &f->model;
    size_t row = (size_t)(m->heads * m->v_dim), q = (size_t)(m->heads * model_q_head_dim(m)),
           latent = (size_t)(m->heads * model_latent_dim(m));
    for (size_t i = 0; i < (size_t)n * q; i++) f->cuda->scratch.q[i] = uniform(-1, 1);
    for (size_t i = 0; i < (size_t)n * latent; i++) f->cuda->scratch.q_latent[i] = f32_to_bf16(uniform(-1, 1));
    uint16_t *whole = attend_expanded(f, n, first_pos, 1024, 7);
    uint16_t *pieces = attend_expanded(f, n, first_pos, 128, n);
    if (memcmp(pieces, whole, (size_t)n * row * 2))
        complain("%d rows from %d on: other bits in windows of 128", n, first_pos);
    memmove(f->cuda->scratch.q, f->cuda->scratch.q + (size_t)skip * q, (size_t)(n - skip) * q * sizeof(float));
    memmove(f->cuda->scratch.q_latent, f->cuda->scratch.q_latent + (size_t)skip * latent,
            (size_t)(n - skip) * latent * 2);
    uint16_t *later = attend_expanded(f, n - skip, first_pos + skip, 192, n);
    if (memcmp(later, whole + (size_t)skip * row, (size_t)(n - skip) * row * 2))
        complain("%d rows from %d on: other bits in another chunk", n - skip, first_pos + skip);
    free(whole);
    free(pieces);
    free(later);
}

/* Heads that the kernels have no registers for are absorbed, and refused where that is not wanted. */
static void test_large_heads(void **unused) {
    (void)unused;
    struct model model = odd_model;
    struct weights none = {0};
    struct backend_options options = {.max_rows = 8, .max_logits = 1, .max_seqs = 1, .n_pages = 4, .kv = KV_BF16};
    struct mo_error error = {0};
    struct cuda_bytes bytes;
    model.v_dim = 132;
    options.attention = ATTENTION_EXPANDED;
    const struct cuda_part whole = cuda_whole(&model, 0);
    assert_int_equal(cuda_backend_bytes(&model, &none, &options, &whole, &bytes, &error), MO_E_UNSUPPORTED);
    assert_non_null(strstr(error.message, "found 12 + 16 and 132"));
    struct cuda cuda = {.model = &model, .options = {.max_rows = 512, .max_seqs = 1, .n_pages = 4}};
    assert_int_equal(cuda_expanded_plan(&cuda, &error), 0);
    assert_int_equal(cuda.expanded.rows_from, INT32_MAX);
    assert_int_equal(cuda.expanded.window.tokens, 0);
}

/* Room for every window that is tried, and lists for the smallest. */
static void open_expanded(struct fixture *f, const struct model *model, enum kv_format kv) {
    setenv("MOEBIUS_CUDA_WINDOW", "64", 1);
    fixture_open_as(f, &styles[2], model, kv, ATTENTION_EXPANDED);
    unsetenv("MOEBIUS_CUDA_WINDOW");
    struct window *w = &f->cuda->expanded.window;
    size_t columns = 1024 * (size_t)model->heads * 2;
    assert_int_equal(w->tokens, 64);
    w->key = card_memory(f, columns * (size_t)w->key_cols);
    w->value = card_memory(f, columns * (size_t)w->value_cols);
    w->rope = card_memory(f, (size_t)1024 * 2 * (size_t)w->rope_cols);
    fill_cache(f);
}

static void close_expanded(struct fixture *f) {
    give_back(f, f->cuda->expanded.window.key);
    give_back(f, f->cuda->expanded.window.value);
    give_back(f, f->cuda->expanded.window.rope);
    fixture_close(f);
}

/* Odd sizes, values wider than the latent, and those of the published models. */
static void test_expanded(void **unused) {
    (void)unused;
    static const int positions[][2] = {{150, 0}, {130, 333}, {3, 64}};
    for (int kv = KV_BF16; kv <= KV_FP8; kv++) {
        struct fixture f;
        struct model model = odd_model;
        model.dense_width = 60;
        model.v_dim = kv == KV_FP8 ? 52 : 20;
        open_expanded(&f, &model, (enum kv_format)kv);
        for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
            check_expanded(&f, positions[i][0], positions[i][1], positions[i][0] / 2);
        }
        close_expanded(&f);
        model.kv_lora = 512;
        model.nope_dim = model.v_dim = 128;
        model.rope_dim = 64;
        model.heads = 3;
        open_expanded(&f, &model, (enum kv_format)kv);
        check_expanded(&f, 20, 240, 9);
        close_expanded(&f);
    }
    no_complaints();
}

/* Every format, cut for the skinny variant and for that of prompts. */
static void test_lists(void **state) {
    const struct style *style = *state;
    struct fixture f;
    struct model model = *model_for(style);
    model.dense_width = 60;
    fixture_open(&f, style, &model, KV_BF16);
    check_lists(&f, style->name);
    fixture_close(&f);
    no_complaints();
}

static void test_native(void **unused) {
    (void)unused;
    for (size_t i = 0; i < STYLES; i++) {
        struct fixture f;
        if (styles[i].format != MAT_FP8) continue;
        fixture_open(&f, &styles[i], &odd_model, KV_BF16);
        check_native(&f, styles[i].name, &f.cuda->weights.layers[1].q_b, &f.layers[1].q_b);
        check_native(&f, styles[i].name, &f.cuda->weights.layers[0].down, &f.layers[0].dense.down);
        fixture_close(&f);
    }
    no_complaints();
}

static void multiply_normed(struct fixture *f, const struct weight *w, const float *x, const float *gain, float *y,
                            int n) {
    struct linear_params p = cuda_linear_begin(f->cuda);
    *cuda_linear_add(&p, w, n, 1) = (struct linear_job){.w = w->m,
                                                        .x_kind = X_F32,
                                                        .x = x,
                                                        .x_stride = (size_t)w->m.cols,
                                                        .gain = gain,
                                                        .y = y,
                                                        .y_stride = (size_t)w->m.rows,
                                                        .n = n,
                                                        .groups = 1,
                                                        .fault_key = 1};
    cuda_linear_run(f->cuda, &p, &w, n);
    wait_for(f);
}

static void check_normed_row(struct fixture *f, const float *weight, const float *x, const float *gain,
                             const float *y) {
    const struct weight *w = &f->cuda->weights.layers[0].down;
    float scaled[4096];
    double squares = 0, size;
    for (int k = 0; k < w->m.cols; k++) {
        squares += (double)x[k] * (double)x[k];
        scaled[k] = bf16_to_f32(f32_to_bf16(x[k] * gain[k]));
    }
    double factor = 1 / sqrt(squares / w->m.cols + f->model.norm_eps);
    for (int r = 0; r < w->m.rows; r++) {
        double want = dot(weight + (size_t)r * (size_t)w->m.cols, scaled, w->m.cols, &size) * factor;
        if (!(fabs(want - (double)y[r]) <= 4e-6 * size * factor + 1e-30))
            fail_msg("row %d: expected %.9g, found %.9g", r, want, (double)y[r]);
    }
}

/* A norm over rows that no variant has in shared memory at once, as those of V2 and V3 are: their squares are added up piece by
 * piece, and all variants give the same bits. */
static void test_long_norms(void **unused) {
    (void)unused;
    static const int row_counts[] = {70, 1, 8, 13, 64};
    struct fixture f;
    fixture_open(&f, &styles[2], &odd_model, KV_BF16);
    const struct weight *w = &f.cuda->weights.layers[0].down;
    size_t cols = (size_t)w->m.cols, rows = (size_t)w->m.rows, packed = f.cuda->packed_bytes;
    uint8_t *room = f.cuda->scratch.packed;
    float *x = card_memory(&f, 70 * cols * sizeof *x), *gain = card_memory(&f, cols * sizeof *gain);
    float *y = card_memory(&f, 70 * rows * sizeof *y), *first = calloc(70 * rows, sizeof *first);
    float *weight = decode(&f, &f.layers[0].dense.down, 0, w->m.rows);
    f.cuda->packed_bytes = (size_t)(70 * w->m.slabs * SLAB_COLS * 2);
    f.cuda->scratch.packed = card_memory(&f, f.cuda->packed_bytes);
    for (size_t i = 0; i < 70 * cols; i++) x[i] = uniform(-2, 2) * (float)(1 + i / cols % 3);
    for (size_t k = 0; k < cols; k++) gain[k] = uniform(0.5f, 1.5f);
    for (size_t c = 0; c < sizeof row_counts / sizeof *row_counts; c++) {
        int n = row_counts[c];
        multiply_normed(&f, w, x, gain, y, n);
        if (c == 0) memcpy(first, y, 70 * rows * sizeof *y);
        if (memcmp(first, y, (size_t)n * rows * sizeof *y)) fail_msg("%d rows: other bits than with 70", n);
    }
    for (size_t t = 0; t < 70; t += 23) check_normed_row(&f, weight, x + t * cols, gain, first + t * rows);
    free(first);
    void *const all[] = {x, gain, y, f.cuda->scratch.packed};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) give_back(&f, all[i]);
    f.cuda->scratch.packed = room;
    f.cuda->packed_bytes = packed;
    fixture_close(&f);
}

int main(int n, char **arguments) {
    static char names[STYLES][64];
    static const struct CMUnitTest others[] = {
        cmocka_unit_test(test_native),
        cmocka_unit_test(test_expanded),
        cmocka_unit_test(test_large_heads),
        cmocka_unit_test(test_long_norms),
    };
    enum { OTHERS = sizeof others / sizeof *others };
    struct CMUnitTest tests[OTHERS + STYLES];
    memcpy(tests, others, sizeof others);
    for (int i = 0; i < STYLES; i++) {
        snprintf(names[i], sizeof names[i], "test_lists, %s", styles[i].name);
        tests[OTHERS + i] = (struct CMUnitTest){
            .name = names[i], .test_func = test_lists, .initial_state = (void *)(uintptr_t)&styles[i]};
    }
    return survey_run(n, arguments, tests, OTHERS + STYLES, driver_open, driver_close);
}
