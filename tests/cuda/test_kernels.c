/* The GPU's kernels one at a time, on the shim's card or (make gpu-test) a real one whose memory both sides reach: a model of odd sizes in each weight format is uploaded, and products, routing
 * and attention are compared with double arithmetic over format_decode_rows. A row must have the same bits in every variant. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cpu/cpu.h"
#include "backend/cuda/cuda.h"
#include "base/arena.h"
#include "forward.h"

enum { MAX_ROWS = 96, EXPERTS = 12, TOP_K = 3 };

static uint64_t state = 7;
static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}
static float uniform(float low, float high) {
    return low + (high - low) * (float)draw() / 2147483648.0f;
}

/* --- a model of odd sizes ------------------------------------------------------------------------------------------- */

struct fixture {
    struct model model;
    struct weights weights;
    struct layer layers[2];
    struct mlp experts[EXPERTS];
    struct arena *arena;
    struct backend *backend;
    struct cuda *cuda;
};

static const struct model odd_model = {.layers = 2,
                                       .dense_layers = 1,
                                       .hidden = 140,
                                       .heads = 5,
                                       .vocab = 75,
                                       .context = 1024,
                                       .q_kind = Q_LOW_RANK,
                                       .q_lora = 84,
                                       .kv_lora = 48,
                                       .nope_dim = 12,
                                       .rope_dim = 16,
                                       .v_dim = 20,
                                       .dense_width = 2116, /* more than the skinny variant has at once */
                                       .expert_width = 44,
                                       .experts = EXPERTS,
                                       .top_k = TOP_K,
                                       .shared_experts = 1,
                                       .gate_kind = GATE_SOFTMAX_GREEDY,
                                       .groups = 1,
                                       .top_groups = 1,
                                       .routed_scale = 1,
                                       .rope = {.kind = ROPE_PLAIN, .theta = 10000},
                                       .norm_eps = 1e-6};

static void fill_blocks(struct mat *mat, uint8_t *data) {
    int8_t q[128];
    block_clear(mat, data);
    for (int r = 0; r < mat->rows; r++) {
        for (int g = 0; g * mat->group_size < mat->cols; g++) {
            int most = mat->format == MAT_INT4 ? 8 : 127;
            for (int i = 0; i < mat->group_size; i++) {
                bool inside = g * mat->group_size + i < mat->cols;
                q[i] = (int8_t)(inside ? (int)(draw() % (unsigned)(2 * most)) - most + (most == 127) : 0);
            }
            block_put_group(mat, data, r, g, q, f32_to_f16(uniform(0.5f, 2) / (float)most));
        }
    }
}

static void fill_awq(struct fixture *f, struct mat *mat, uint32_t *words) {
    size_t groups = (size_t)(mat->cols + mat->group_size - 1) / (size_t)mat->group_size, n = groups * (size_t)mat->rows;
    uint32_t *zeros = arena_alloc_array(f->arena, n / 8, 4);
    uint16_t *scales = arena_alloc_array(f->arena, n, 2);
    for (size_t i = 0; i < (size_t)mat->cols * (size_t)mat->rows / 8; i++) words[i] = draw() << 1 ^ draw();
    for (size_t i = 0; i < n / 8; i++) zeros[i] = draw() << 1 ^ draw();
    for (size_t i = 0; i < n; i++) scales[i] = f32_to_f16(uniform(0.05f, 0.2f));
    mat->zeros = zeros;
    mat->scales16 = scales;
}

static void fill_fp8(struct fixture *f, struct mat *mat, uint8_t *data) {
    size_t n = (size_t)mat->rows * (size_t)mat->cols;
    size_t scales = (size_t)((mat->rows + mat->scale_rows - 1) / mat->scale_rows) * (size_t)mat->scale_stride;
    float *scale = arena_alloc_array(f->arena, scales, sizeof *scale);
    for (size_t i = 0; i < n; i++) data[i] = f32_to_e4m3(uniform(-400, 400) * (draw() % 8 ? 0.01f : 1));
    for (size_t i = 0; i < scales; i++) scale[i] = uniform(0.001f, 0.004f);
    mat->scale = scale;
}

static void fill_plain(struct mat *mat, void *data) {
    for (size_t i = 0; i < (size_t)mat->rows * (size_t)mat->cols; i++) {
        float value = uniform(-1, 1);
        uint16_t half = mat->format == MAT_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
        if (mat->format == MAT_F32) {
            memcpy((float *)data + i, &value, sizeof value);
        } else {
            memcpy((uint16_t *)data + i, &half, sizeof half);
        }
    }
}

/* A format and how its scales lie. */
struct style {
    const char *name;
    enum mat_format format;
    int group;                  /* AWQ, INT4, INT8 */
    int scale_rows, scale_cols; /* FP8; 0: one for all */
};

static struct mat random_mat(struct fixture *f, const struct style *style, int rows, int cols) {
    struct mat mat = {.format = style->format, .rows = rows, .cols = cols, .group_size = style->group};
    if (mat.format == MAT_INT4_AWQ && rows % 8) mat.format = MAT_F16; /* as such checkpoints have it */
    if (mat.format == MAT_FP8) {
        mat.scale_rows = style->scale_rows ? style->scale_rows : rows;
        mat.scale_cols = style->scale_cols ? style->scale_cols : cols;
        mat.scale_stride = (cols + mat.scale_cols - 1) / mat.scale_cols;
    }
    void *data = arena_alloc(f->arena, mat_bytes(&mat) + 64);
    mat.data = data;
    if (mat.format == MAT_FP8) fill_fp8(f, &mat, data);
    if (mat.format == MAT_INT4_AWQ) fill_awq(f, &mat, data);
    if (mat.format == MAT_INT4 || mat.format == MAT_INT8) fill_blocks(&mat, data);
    if (mat.format == MAT_F32 || mat.format == MAT_F16 || mat.format == MAT_BF16) fill_plain(&mat, data);
    return mat;
}

static const float *random_vector(struct fixture *f, int n) {
    float *values = arena_alloc_array(f->arena, (size_t)n, sizeof *values);
    for (int i = 0; i < n; i++) values[i] = uniform(0.5f, 1.5f);
    return values;
}

static struct mlp random_mlp(struct fixture *f, const struct style *style, int width) {
    int hidden = f->model.hidden;
    return (struct mlp){random_mat(f, style, width, hidden), random_mat(f, style, width, hidden),
                        random_mat(f, style, hidden, width)};
}

static void make_layer(struct fixture *f, const struct style *style, struct layer *layer) {
    const struct model *m = &f->model;
    layer->attn_norm = random_vector(f, m->hidden);
    layer->ffn_norm = random_vector(f, m->hidden);
    layer->q_a_norm = random_vector(f, m->q_lora);
    layer->kv_a_norm = random_vector(f, m->kv_lora);
    layer->q_a = random_mat(f, style, m->q_lora, m->hidden);
    layer->q_b = random_mat(f, style, m->heads * model_q_head_dim(m), m->q_lora);
    layer->kv_a = random_mat(f, style, model_latent_dim(m), m->hidden);
    layer->kv_b = random_mat(f, style, m->heads * (m->nope_dim + m->v_dim), m->kv_lora);
    layer->o = random_mat(f, style, m->hidden, m->heads * m->v_dim);
    layer->dense = random_mlp(f, style, m->dense_width);
    layer->router =
        random_mat(f, &(struct style){.format = style->format == MAT_BF16 ? MAT_BF16 : MAT_F32}, m->experts, m->hidden);
    layer->router_bias = random_vector(f, m->experts);
    layer->shared = random_mlp(f, style, m->expert_width);
    layer->experts = f->experts;
}

static void open_card(struct fixture *f, enum kv_format kv) {
    struct backend_options options = {.max_rows = MAX_ROWS, .max_logits = 4, .max_seqs = 4, .n_pages = 24, .kv = kv};
    struct mo_error error = {0};
    if (cuda_backend_open(&f->backend, &f->model, &f->weights, &options, 0, &error)) fail_msg("%s", error.message);
    f->cuda = (struct cuda *)f->backend;
    f->cuda->recorder.off = true; /* stages are looked at one by one */
}

static void fixture_open(struct fixture *f, const struct style *style, const struct model *model, enum kv_format kv) {
    *f = (struct fixture){.model = *model, .arena = arena_create()};
    for (int i = 0; i < 2; i++) make_layer(f, style, &f->layers[i]);
    for (int i = 0; i < model->experts; i++) f->experts[i] = random_mlp(f, style, model->expert_width);
    f->weights.embed = random_mat(f, style, model->vocab, model->hidden);
    f->weights.head = random_mat(f, style, model->vocab, model->hidden);
    f->weights.final_norm = random_vector(f, model->hidden);
    f->weights.layers = f->layers;
    open_card(f, kv);
}

static void fixture_close(struct fixture *f) {
    f->backend->ops->close(f->backend);
    arena_destroy(f->arena);
}

/* --- products ------------------------------------------------------------------------------------------------------- */

static float *decode(const struct fixture *f, const struct mat *mat, int r0, int rows) {
    float *out = arena_alloc_array(f->arena, (size_t)rows * (size_t)mat->cols, sizeof *out);
    format_decode_rows(mat, r0, r0 + rows, out);
    if (mat->format != MAT_F32 && mat->format != MAT_F16) return out;
    for (size_t i = 0; i < (size_t)rows * (size_t)mat->cols; i++) out[i] = bf16_to_f32(f32_to_bf16(out[i]));
    return out; /* these are rounded at upload */
}

/* sum of w x, and what an error is measured by: the sum of sizes. */
static double dot(const float *w, const float *x, int n, double *size) {
    double sum = 0;
    *size = 0;
    for (int i = 0; i < n; i++) {
        sum += (double)w[i] * (double)x[i];
        *size += fabs((double)w[i] * (double)x[i]);
    }
    return sum;
}

static void wait_for(struct fixture *f) {
    if (f->cuda->driver.stream_wait(f->cuda->stream)) fail_msg("the card does not finish");
    if (f->cuda->failure.code) fail_msg("%s", f->cuda->failure.message);
}

/* Memory that kernels read and write, and so do we. On the shim it ends where nothing may be touched. */
static void *card_memory(struct fixture *f, size_t bytes) {
    cuda_address at;
    if (f->cuda->driver.memory_take(&at, bytes)) fail_msg("no memory");
    return (void *)(uintptr_t)at;
}
static void give_back(struct fixture *f, void *at) {
    f->cuda->driver.memory_free((cuda_address)(uintptr_t)at);
}

static const int row_counts[] = {1, 3, 8, 9, 17, 40, 64, 70};
enum { ROW_COUNTS = sizeof row_counts / sizeof *row_counts };

/* y = x W^T for several numbers of rows; x holds bf16 values, so that only the sums are rounded. */
static void check_product(struct fixture *f, const char *name, const struct weight *w, const struct mat *mat) {
    size_t cols = (size_t)mat->cols, rows = (size_t)mat->rows;
    float *weight = decode(f, mat, 0, mat->rows), *first = calloc(MAX_ROWS * rows, sizeof *first);
    float *x = card_memory(f, MAX_ROWS * cols * sizeof *x), *y = card_memory(f, MAX_ROWS * rows * sizeof *y);
    for (size_t i = 0; i < MAX_ROWS * cols; i++) x[i] = bf16_to_f32(f32_to_bf16(uniform(-2, 2)));
    for (int c = ROW_COUNTS - 1; c >= 0; c--) {
        int n = row_counts[c];
        struct linear_params p = cuda_linear_begin(f->cuda);
        struct linear_job *job = cuda_linear_add(&p, w, n, 1);
        job->x_kind = X_F32;
        job->x = x;
        job->x_stride = cols;
        job->y = y;
        job->y_stride = rows;
        memset(y, 0xff, MAX_ROWS * rows * sizeof *y);
        cuda_linear_run(f->cuda, &p, &w, n);
        wait_for(f);
        if (c == ROW_COUNTS - 1) memcpy(first, y, (size_t)n * rows * sizeof *y);
        if (memcmp(first, y, (size_t)n * rows * sizeof *y)) fail_msg("%s: %d rows: other bits than with 70", name, n);
    }
    for (size_t t = 0; t < 70; t++) {
        for (size_t r = 0; r < rows; r++) {
            double size, want = dot(weight + r * cols, x + t * cols, mat->cols, &size);
            if (!(fabs(want - (double)first[t * rows + r]) <= 2e-6 * size + 1e-30)) {
                fail_msg("%s: row %zu, token %zu: expected %.9g, found %.9g", name, r, t, want,
                         (double)first[t * rows + r]);
            }
        }
    }
    free(first);
    give_back(f, x);
    give_back(f, y);
}

static double silu(double x) {
    return x / (1 + exp(-x));
}

/* Experts as a work list: norm and gain before, SiLU behind, and rows through x_row. */
static void check_experts_up(struct fixture *f, int n) {
    const struct model *m = &f->model;
    const struct weight *w = &f->cuda->weights.layers[1].expert_gate_up;
    size_t hidden = (size_t)m->hidden, width = (size_t)m->expert_width;
    const float *gain = f->layers[1].ffn_norm;
    float *x = card_memory(f, (size_t)n * hidden * sizeof *x), squares;
    uint16_t *y = card_memory(f, (size_t)n * width * 2);
    int32_t *row = card_memory(f, (size_t)n * 4), *n_items = card_memory(f, 4);
    struct expert_item *items = card_memory(f, 3 * sizeof *items);
    for (size_t i = 0; i < (size_t)n * hidden; i++) x[i] = uniform(-2, 2);
    for (int i = 0; i < n; i++) row[i] = n - 1 - i;
    items[0] = (struct expert_item){.expert = 4, .first = 0, .n = n - 1};
    items[1] = (struct expert_item){.expert = 11, .first = n - 1, .n = 1};
    *n_items = 2;
    struct linear_params p = cuda_linear_begin(f->cuda);
    struct linear_job *job = cuda_linear_add(&p, w, n, 3);
    *job = (struct linear_job){.w = w->m,
                               .x_kind = X_F32,
                               .x = x,
                               .x_stride = hidden,
                               .x_row = row,
                               .y = y,
                               .y_stride = width,
                               .y_kind = Y_SILU,
                               .gain = f->cuda->weights.layers[1].ffn_norm,
                               .items = items,
                               .n_items = n_items,
                               .n = n,
                               .groups = 3,
                               .fault_key = 1};
    cuda_linear_run(f->cuda, &p, &w, n);
    wait_for(f);
    for (int i = 0; i < n; i++) {
        const struct mlp *mlp = &f->experts[i < n - 1 ? 4 : 11];
        const float *in = x + (size_t)row[i] * hidden;
        float *gate = decode(f, &mlp->gate, 0, m->expert_width), *up = decode(f, &mlp->up, 0, m->expert_width),
              scaled[256];
        squares = 0;
        for (size_t k = 0; k < hidden; k++) squares += in[k] * in[k];
        for (size_t k = 0; k < hidden; k++) scaled[k] = bf16_to_f32(f32_to_bf16(in[k] * gain[k]));
        double factor = 1 / sqrt((double)squares / (double)hidden + m->norm_eps), size;
        for (size_t r = 0; r < width; r++) {
            double a = dot(gate + r * hidden, scaled, m->hidden, &size) * factor;
            double want = silu(a) * dot(up + r * hidden, scaled, m->hidden, &size) * factor;
            double found = (double)bf16_to_f32(y[(size_t)i * width + r]);
            if (!(fabs(want - found) <= fabs(want) * 0.005 + 1e-4))
                fail_msg("pair %d, row %zu: expected %g, found %g", i, r, want, found);
        }
    }
    void *const all[] = {x, y, row, n_items, items};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) give_back(f, all[i]);
}

static const struct style styles[] = {
    {"f32", MAT_F32, 0, 0, 0},         {"f16", MAT_F16, 0, 0, 0},          {"bf16", MAT_BF16, 0, 0, 0},
    {"fp8 tensor", MAT_FP8, 0, 0, 0},  {"fp8 rows", MAT_FP8, 0, 1, 0},     {"fp8 128", MAT_FP8, 0, 128, 128},
    {"fp8 64x32", MAT_FP8, 0, 64, 32}, {"awq 32", MAT_INT4_AWQ, 32, 0, 0}, {"awq 128", MAT_INT4_AWQ, 128, 0, 0},
    {"int4 32", MAT_INT4, 32, 0, 0},   {"int4 64", MAT_INT4, 64, 0, 0},    {"int4 128", MAT_INT4, 128, 0, 0},
    {"int8 32", MAT_INT8, 32, 0, 0},   {"int8 64", MAT_INT8, 64, 0, 0},    {"int8 128", MAT_INT8, 128, 0, 0},
};

static void test_products(void **unused) {
    (void)unused;
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++) {
        struct fixture f;
        char name[64];
        fixture_open(&f, &styles[i], &odd_model, KV_BF16);
        const struct device_layer *w = &f.cuda->weights.layers[1];
        const struct layer *layer = &f.layers[1];
        snprintf(name, sizeof name, "%s, q_b", styles[i].name);
        check_product(&f, name, &w->q_b, &layer->q_b);
        snprintf(name, sizeof name, "%s, kv_a", styles[i].name);
        check_product(&f, name, &w->kv_a, &layer->kv_a);
        snprintf(name, sizeof name, "%s, long rows", styles[i].name);
        check_product(&f, name, &f.cuda->weights.layers[0].down, &f.layers[0].dense.down);
        check_experts_up(&f, 5);
        check_experts_up(&f, 21);
        fixture_close(&f);
    }
}

/* A head's two matrices, from kv_b of every format: bf16, one of them turned. */
static void test_kv_b(void **unused) {
    (void)unused;
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++) {
        struct fixture f;
        fixture_open(&f, &styles[i], &odd_model, KV_BF16);
        const struct model *m = &f.model;
        float *kv_b = arena_alloc_array(f.arena, (size_t)m->heads * 32 * (size_t)m->kv_lora, sizeof *kv_b);
        format_decode_rows(&f.layers[0].kv_b, 0, f.layers[0].kv_b.rows, kv_b);
        const struct weight *key = &f.cuda->weights.layers[0].key;
        size_t lora = (size_t)m->kv_lora, heads = (size_t)m->heads, nope = (size_t)m->nope_dim;
        float *x = card_memory(&f, heads * nope * sizeof *x), *y = card_memory(&f, heads * lora * sizeof *y);
        for (size_t k = 0; k < heads * nope; k++) x[k] = bf16_to_f32(f32_to_bf16(uniform(-2, 2)));
        struct linear_params p = cuda_linear_begin(f.cuda);
        struct linear_job *job = cuda_linear_add(&p, key, 1, m->heads);
        *job = (struct linear_job){.w = key->m,
                                   .x_kind = X_F32,
                                   .x = x,
                                   .x_stride = heads * nope,
                                   .x_step = nope,
                                   .y = y,
                                   .y_stride = heads * lora,
                                   .y_step = lora,
                                   .n = 1,
                                   .groups = m->heads};
        cuda_linear_run(f.cuda, &p, &key, 1);
        wait_for(&f);
        for (size_t h = 0; h < heads; h++) {
            for (size_t c = 0; c < lora; c++) {
                double want = 0;
                for (size_t d = 0; d < nope; d++) {
                    float weight = kv_b[(h * (nope + (size_t)m->v_dim) + d) * lora + c];
                    want += (double)bf16_to_f32(f32_to_bf16(weight)) * (double)x[h * nope + d];
                }
                if (fabs(want - (double)y[h * lora + c]) > 1e-5)
                    fail_msg("%s: head %zu, %zu: %g, found %g", styles[i].name, h, c, want, (double)y[h * lora + c]);
            }
        }
        give_back(&f, x);
        give_back(&f, y);
        fixture_close(&f);
    }
}

/* --- stages: routing, experts, attention ------------------------------------------------------------------------------ */

/* Begins a step of one sequence whose rows start at first_pos. */
static void begin(struct fixture *f, int n, int first_pos) {
    static int32_t tokens[MAX_ROWS], pages[24];
    static struct batch_seq seq;
    static struct batch batch;
    for (int i = 0; i < 24; i++) pages[i] = (i * 7 + 3) % 24;
    seq = (struct batch_seq){0, n, first_pos, pages};
    batch = (struct batch){.n_rows = n, .token = tokens, .n_seqs = 1, .seqs = &seq};
    f->backend->ops->begin(f->backend, &batch);
}

static void end(struct fixture *f) {
    struct mo_error error = {0};
    if (f->backend->ops->end(f->backend, &error)) fail_msg("%s", error.message);
}

static void reference_logits(const struct fixture *f, const float *x, float *out) {
    const struct model *m = &f->model;
    float *router = decode(f, &f->layers[1].router, 0, m->experts);
    double squares = 0;
    for (int k = 0; k < m->hidden; k++) squares += (double)x[k] * (double)x[k];
    double factor = 1 / sqrt(squares / m->hidden + m->norm_eps);
    for (int e = 0; e < m->experts; e++) {
        double sum = 0;
        format_decode_rows(&f->layers[1].router, e, e + 1, router);
        for (int k = 0; k < m->hidden; k++) sum += (double)(x[k] * f->layers[1].ffn_norm[k]) * (double)router[k];
        out[e] = (float)(sum * factor);
    }
}

static double mlp_value(const float *gate, const float *up, const float *down, const float *x, int hidden, int width,
                        int r) {
    double out = 0, size;
    for (int i = 0; i < width; i++) {
        double a = dot(gate + (size_t)i * (size_t)hidden, x, hidden, &size),
               b = dot(up + (size_t)i * (size_t)hidden, x, hidden, &size);
        out += (double)down[(size_t)r * (size_t)width + (size_t)i] * silu(a) * b;
    }
    return out;
}

/* One row's feed-forward in double: the chosen experts and the shared one. */
static void check_moe_row(const struct fixture *f, const float *before, const float *after, const int32_t *ids,
                          const float *weights) {
    const struct model *m = &f->model;
    float normed[256];
    double squares = 0, largest = 0, error = 0;
    for (int k = 0; k < m->hidden; k++) squares += (double)before[k] * (double)before[k];
    double factor = 1 / sqrt(squares / m->hidden + m->norm_eps);
    for (int k = 0; k < m->hidden; k++) normed[k] = (float)((double)(before[k] * f->layers[1].ffn_norm[k]) * factor);
    for (int r = 0; r < m->hidden; r += 13) {
        double want = 0;
        for (int j = -1; j < m->top_k; j++) {
            const struct mlp *mlp = j < 0 ? &f->layers[1].shared : &f->experts[ids[j]];
            float *gate = decode(f, &mlp->gate, 0, m->expert_width), *up = decode(f, &mlp->up, 0, m->expert_width);
            float *down = decode(f, &mlp->down, 0, m->hidden);
            want += (j < 0 ? 1 : (double)weights[j]) * mlp_value(gate, up, down, normed, m->hidden, m->expert_width, r);
        }
        largest = fmax(largest, fabs(want));
        error = fmax(error, fabs(want - ((double)after[r] - (double)before[r])));
    }
    if (!(error <= 0.02 * largest)) fail_msg("experts: error %g of %g", error, largest);
}

static void check_routing(struct fixture *f, int n, bool experts) {
    const struct model *m = &f->model;
    float *x = f->cuda->scratch.x, score[EXPERTS], want_weights[TOP_K], *before;
    int32_t want[TOP_K];
    const int32_t *ids;
    const float *weights;
    begin(f, n, 0);
    for (int i = 0; i < n * m->hidden; i++) x[i] = uniform(-3, 3);
    before = arena_alloc_array(f->arena, (size_t)(n * m->hidden), sizeof *before);
    memcpy(before, x, (size_t)(n * m->hidden) * sizeof *x);
    f->backend->ops->route(f->backend, 1);
    f->backend->ops->routing(f->backend, &ids, &weights);
    for (int row = 0; row < n; row++) {
        reference_logits(f, x + row * m->hidden, score);
        cpu_choose_experts(m, m->gate_kind == GATE_SIGMOID_GROUPED ? f->layers[1].router_bias : NULL, score, want,
                           want_weights);
        for (int j = 0; j < m->top_k; j++) {
            assert_int_equal(ids[row * m->top_k + j], want[j]);
            if (!(fabs((double)(weights[row * m->top_k + j] - want_weights[j])) <= 1e-4)) {
                fail_msg("row %d: weight %g, expected %g", row, (double)weights[row * m->top_k + j],
                         (double)want_weights[j]);
            }
        }
    }
    if (experts) {
        f->backend->ops->experts(f->backend, 1);
        const float *after = f->backend->ops->residual(f->backend);
        for (int row = 0; row < n; row += 3) {
            check_moe_row(f, before + row * m->hidden, after + row * m->hidden, ids + row * m->top_k,
                          weights + row * m->top_k);
        }
    }
    end(f);
}

/* Every kind of gate; few rows (the last router block chooses) and many (kernels of their own); then the experts' sum. */
static void test_routing(void **unused) {
    (void)unused;
    static const struct {
        enum gate_kind kind;
        int groups, top_groups;
        bool norm;
        double scale;
    } gates[] = {{GATE_SOFTMAX_GREEDY, 1, 1, false, 1},
                 {GATE_SOFTMAX_GROUPED, 4, 2, false, 16},
                 {GATE_SIGMOID_GROUPED, 3, 2, true, 2.5},
                 {GATE_SOFTMAX_GREEDY, 1, 1, true, 1}};
    for (size_t i = 0; i < sizeof gates / sizeof *gates; i++) {
        struct fixture f;
        struct model model = odd_model;
        model.gate_kind = gates[i].kind;
        model.groups = gates[i].groups;
        model.top_groups = gates[i].top_groups;
        model.norm_topk = gates[i].norm;
        model.routed_scale = gates[i].scale;
        model.dense_width = 60; /* not looked at */
        fixture_open(&f, &styles[i % 2 ? 2 : 11], &model, KV_BF16);
        if (model.gate_kind != GATE_SIGMOID_GROUPED) {
            f.layers[1].router_bias = NULL;
            f.cuda->weights.layers[1].router_bias = NULL;
        }
        for (int n = 1; n <= 82; n = n * 3 + 2) check_routing(&f, n, n < 30 || i == 0);
        fixture_close(&f);
    }
}

static float cached(const struct fixture *f, const uint8_t *row, int c) {
    int kv_lora = f->model.kv_lora;
    uint16_t half;
    float scale;
    if (f->cuda->options.kv == KV_BF16) {
        memcpy(&half, row + 2 * c, 2);
        return bf16_to_f32(half);
    }
    memcpy(&scale, row + kv_lora + c / 128 * 4, 4);
    if (c < kv_lora) return bf16_to_f32(f32_to_bf16(e4m3_to_f32(row[c]) * scale));
    memcpy(&half, row + kv_lora + (kv_lora + 127) / 128 * 4 + 2 * (c - kv_lora), 2);
    return bf16_to_f32(half);
}

static void fill_row(const struct fixture *f, uint8_t *row) {
    bool fp8 = f->cuda->options.kv == KV_FP8;
    int kv_lora = f->model.kv_lora, scales = (kv_lora + 127) / 128;
    for (int c = 0; c < model_latent_dim(&f->model); c++) {
        uint16_t half = f32_to_bf16(uniform(-1, 1));
        if (fp8 && c < kv_lora) {
            row[c] = f32_to_e4m3(uniform(-448, 448));
        } else {
            memcpy(fp8 ? row + kv_lora + 4 * scales + 2 * (c - kv_lora) : row + 2 * c, &half, 2);
        }
    }
    for (int i = 0; i < scales && fp8; i++) {
        float scale = uniform(0.001f, 0.004f);
        memcpy(row + kv_lora + 4 * i, &scale, 4);
    }
}

static void fill_cache(struct fixture *f) {
    uint8_t *cache = (uint8_t *)(uintptr_t)f->cuda->cache_at;
    for (size_t at = 0; at < f->cuda->cache_bytes; at += f->cuda->row_bytes) fill_row(f, cache + at);
}

/* One (row, head) in double: softmax over the cache, values up. */
static void check_attended(const struct fixture *f, int row, int head, int pos, const float *kv_b) {
    const struct model *m = &f->model;
    const struct cuda *cuda = f->cuda;
    int width = model_latent_dim(m), lora = m->kv_lora;
    const uint8_t *cache = (const uint8_t *)(uintptr_t)cuda->cache_at;
    const uint16_t *q = cuda->scratch.q_latent + (size_t)(row * m->heads + head) * (size_t)width;
    double sum[512] = {0}, total = 0;
    for (int t = 0; t <= pos; t++) {
        int page = cuda->batch->seqs[0].pages[t / KV_PAGE_TOKENS];
        const uint8_t *at = cache + (size_t)(page * KV_PAGE_TOKENS + t % KV_PAGE_TOKENS) * cuda->row_bytes;
        double score = 0;
        for (int c = 0; c < width; c++) score += (double)bf16_to_f32(q[c]) * (double)cached(f, at, c);
        double weight = exp(score * (double)cuda->softmax_scale);
        total += weight;
        for (int c = 0; c < lora; c++) sum[c] += weight * (double)cached(f, at, c);
    }
    for (int d = 0; d < m->v_dim; d++) {
        const float *w = kv_b + (size_t)(head * (m->nope_dim + m->v_dim) + m->nope_dim + d) * (size_t)lora;
        double want = 0, size = 0;
        for (int c = 0; c < lora; c++) {
            want += (double)w[c] * sum[c] / total;
            size += fabs((double)w[c] * sum[c] / total);
        }
        double found = (double)bf16_to_f32(cuda->scratch.attended[(row * m->heads + head) * m->v_dim + d]);
        if (!(fabs(want - found) <= 0.012 * size + 1e-3)) {
            fail_msg("row %d, head %d, value %d: expected %g, found %g", row, head, d, want, found);
        }
    }
}

static void check_attention(struct fixture *f, int n, int first_pos, int slots) {
    const struct model *m = &f->model;
    float *kv_b = decode(f, &f->layers[0].kv_b, 0, f->layers[0].kv_b.rows);
    size_t values = (size_t)(n * m->heads * m->v_dim);
    uint16_t *other = calloc(values, 2);
    for (int i = 0; i < n * m->heads * model_latent_dim(m); i++)
        f->cuda->scratch.q_latent[i] = f32_to_bf16(uniform(-2, 2));
    f->cuda->max_slots = slots;
    begin(f, n, first_pos);
    f->backend->ops->attn(f->backend, 0);
    wait_for(f);
    for (int row = 0; row < n; row += 2) {
        for (int head = 0; head < m->heads; head += 2) check_attended(f, row, head, first_pos + row, kv_b);
    }
    memcpy(other, f->cuda->scratch.attended, values * 2);
    end(f);
    f->cuda->max_slots = n; /* no room for splits apart: one block does them in turn, and gets the same bits */
    begin(f, n, first_pos);
    f->backend->ops->attn(f->backend, 0);
    wait_for(f);
    assert_memory_equal(other, f->cuda->scratch.attended, values * 2);
    end(f);
    f->cuda->max_slots = slots;
    free(other);
}

static void test_attention(void **unused) {
    (void)unused;
    for (int kv = KV_BF16; kv <= KV_FP8; kv++) {
        struct fixture f;
        struct model model = odd_model;
        model.dense_width = 60;
        fixture_open(&f, &styles[2], &model, (enum kv_format)kv);
        fill_cache(&f);
        int slots = f.cuda->max_slots;
        check_attention(&f, 1, 0, slots);
        check_attention(&f, 1, 255, slots);
        check_attention(&f, 1, 900, slots);
        check_attention(&f, 3, 510, slots); /* the rows see two splits and three */
        check_attention(&f, 40, 30, slots);
        fixture_close(&f);
        model.kv_lora = 512; /* as published: all of the shared memory that the smallest cards have */
        model.rope_dim = 64;
        model.heads = 3;
        fixture_open(&f, &styles[2], &model, (enum kv_format)kv);
        fill_cache(&f);
        check_attention(&f, 2, 300, f.cuda->max_slots);
        fixture_close(&f);
    }
}

/* The cache row that a token leaves, and rotated queries: against the plain C of format.h. */
static void test_rows_of_the_cache(void **unused) {
    (void)unused;
    struct fixture f;
    struct model model = odd_model;
    model.dense_width = 60;
    fixture_open(&f, &styles[2], &model, KV_FP8);
    const struct model *m = &f.model;
    float *x = f.cuda->scratch.x;
    begin(&f, 3, 70);
    for (int i = 0; i < 3 * m->hidden; i++) x[i] = uniform(-3, 3);
    f.backend->ops->attn_in(f.backend, 0);
    wait_for(&f);
    for (int row = 0; row < 3; row++) {
        const float *latent = f.cuda->scratch.kv_a + row * model_latent_dim(m);
        int page = f.cuda->batch->seqs[0].pages[1];
        const uint8_t *at =
            (const uint8_t *)(uintptr_t)f.cuda->cache_at + (size_t)(page * 64 + 6 + row) * f.cuda->row_bytes;
        float normed[64], amax = 0, squares = 0, scale;
        for (int i = 0; i < m->kv_lora; i++) squares += latent[i] * latent[i];
        for (int i = 0; i < m->kv_lora; i++) {
            normed[i] = latent[i] / sqrtf(squares / (float)m->kv_lora + 1e-6f) * f.layers[0].kv_a_norm[i];
            amax = fmaxf(amax, fabsf(normed[i]));
        }
        memcpy(&scale, at + m->kv_lora, 4);
        assert_true(fabsf(scale - amax / 448) <= 1e-5f * scale);
        for (int i = 0; i < m->kv_lora; i++) {
            assert_true(fabsf(cached(&f, at, i) - normed[i]) <= 0.07f * fabsf(normed[i]) + scale * 0.01f);
        }
        for (int i = 0; i < m->rope_dim / 2; i++) {
            double angle = (70 + row) * f.cuda->frequency[i], a = (double)latent[m->kv_lora + 2 * i];
            double want = a * cos(angle) - (double)latent[m->kv_lora + 2 * i + 1] * sin(angle);
            assert_true(fabs((double)cached(&f, at, m->kv_lora + 2 * i) - want) <= 0.005 * fabs(want) + 0.02);
        }
    }
    end(&f);
    fixture_close(&f);
}

/* --- several sequences ------------------------------------------------------------------------------------------------- */

/* One step of sequences `seq`, rows [first, first + n) of each; logits of every sequence's last row into out [n_seqs][vocab]. */
static void step(struct fixture *f, int n_seqs, const int *seq, const int *first, const int *n, float *out) {
    static const int32_t pages[3][6] = {{9, 0, 13, 2, 5, 6}, {7, 21, 4, 11, 1, 3}, {20, 8, 22, 23, 10, 12}};
    int32_t token[MAX_ROWS], wanted[3];
    struct batch_seq seqs[3];
    int rows = 0;
    for (int i = 0; i < n_seqs; i++) {
        seqs[i] = (struct batch_seq){rows, n[i], first[i], pages[seq[i]]};
        for (int t = 0; t < n[i]; t++) token[rows++] = (seq[i] * 31 + (first[i] + t) * 17 + 5) % f->model.vocab;
        wanted[i] = rows - 1;
    }
    struct batch batch = {rows, token, n_seqs, seqs, n_seqs, wanted};
    struct mo_error error = {0};
    if (forward(f->backend, &f->model, &batch, NULL, &error)) fail_msg("%s", error.message);
    memcpy(out, f->backend->ops->logits(f->backend), (size_t)(n_seqs * f->model.vocab) * sizeof *out);
}

/* Ragged sequences side by side, prompts beside decode steps, some of the steps recorded: each row as if it were alone. */
static void test_company(void **unused) {
    (void)unused;
    static const int all[3] = {0, 1, 2}, prompt[3] = {61, 3, 17};
    struct fixture f;
    struct model model = odd_model;
    model.dense_width = 60;
    fixture_open(&f, &styles[11], &model, KV_BF16);
    f.cuda->recorder.off = false;
    size_t vocab = (size_t)model.vocab;
    float *want = calloc(3 * 9 * vocab, sizeof *want), *got = calloc(3 * vocab, sizeof *got);
    for (int s = 0; s < 3; s++) {
        for (int i = 0, first = 0; i < 9; first += i == 0 ? prompt[s] : 1, i++) {
            int n = i == 0 ? prompt[s] : 1;
            step(&f, 1, &all[s], &first, &n, want + (size_t)(s * 9 + i) * vocab);
        }
    }
    int first[3] = {0, 0, 0}, n[3] = {prompt[0], prompt[1], prompt[2]};
    for (int i = 0; i < 9; i++) {
        step(&f, 3, all, first, n, got);
        for (size_t s = 0; s < 3; s++) {
            if (memcmp(got + s * vocab, want + (s * 9 + (size_t)i) * vocab, vocab * sizeof *got)) {
                fail_msg("step %d, sequence %zu: not the bits that it has alone", i, s);
            }
            first[s] += n[s];
            n[s] = 1;
        }
    }
    assert_true(f.cuda->recorder.n_graphs >= 2);
    free(want);
    free(got);
    fixture_close(&f);
}

/* Kept in use, so that a card is not prepared anew for every fixture. */
static struct cuda_driver driver;
static struct cuda_card card;
static int open_driver(void **unused) {
    struct mo_error error = {0};
    (void)unused;
    cuda_memory_is_shared = true;
    int code = cuda_driver_open(&driver, &error);
    if (!code) code = cuda_card_open(&driver, 0, &card, &error);
    if (code) fprintf(stderr, "%s\n", error.message);
    return code;
}
static int close_driver(void **unused) {
    (void)unused;
    cuda_card_close(&driver, &card);
    cuda_driver_close(&driver);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),          cmocka_unit_test(test_kv_b),
        cmocka_unit_test(test_routing),           cmocka_unit_test(test_attention),
        cmocka_unit_test(test_rows_of_the_cache), cmocka_unit_test(test_company),
    };
    return cmocka_run_group_tests(tests, open_driver, close_driver);
}
