#include "card_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/arena.h"
#include "survey.h"

static uint64_t state = 7;
uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}
float uniform(float low, float high) {
    return low + (high - low) * (float)draw() / 2147483648.0f;
}

/* --- a model of odd sizes ------------------------------------------------------------------------------------------- */

const struct model odd_model = {
    .layers = 2,
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
    .dense_width = 2120, /* more than the skinny variant has at once; whole pieces, but no whole slab */
    .expert_width = 44,
    .experts = EXPERTS,
    .top_k = TOP_K,
    .shared_experts = 1,
    .gate_kind = GATE_SOFTMAX_GREEDY,
    .groups = 1,
    .top_groups = 1,
    .routed_scale = 1,
    .rope = {.kind = ROPE_PLAIN, .theta = 10000},
    .norm_eps = 1e-6,
};

const struct model blocks_model = {
    .layers = 2,
    .dense_layers = 1,
    .hidden = 256,
    .heads = 5,
    .vocab = 75,
    .context = 1024,
    .q_kind = Q_LOW_RANK,
    .q_lora = 768, /* no whole split of the skinny variant's warps */
    .kv_lora = 256,
    .nope_dim = 12,
    .rope_dim = 16,
    .v_dim = 64,
    .dense_width = 2304, /* more than the skinny variant has at once */
    .expert_width = 96,  /* what comes back of an expert is in blocks of 32, and half a slab */
    .experts = EXPERTS,
    .top_k = TOP_K,
    .shared_experts = 1,
    .gate_kind = GATE_SOFTMAX_GREEDY,
    .groups = 1,
    .top_groups = 1,
    .routed_scale = 1,
    .rope = {.kind = ROPE_PLAIN, .theta = 10000},
    .norm_eps = 1e-6,
};

const struct model *model_for(const struct style *style) {
    return gguf_is_blocks(style->format) || style->format == MAT_FP4 ? &blocks_model : &odd_model;
}

const struct style styles[STYLES] = {
    {"f32", MAT_F32, 0, 0, 0},         {"f16", MAT_F16, 0, 0, 0},          {"bf16", MAT_BF16, 0, 0, 0},
    {"fp8 tensor", MAT_FP8, 0, 0, 0},  {"fp8 rows", MAT_FP8, 0, 1, 0},     {"fp8 128", MAT_FP8, 0, 128, 128},
    {"fp8 64x32", MAT_FP8, 0, 64, 32}, {"awq 32", MAT_INT4_AWQ, 32, 0, 0}, {"awq 128", MAT_INT4_AWQ, 128, 0, 0},
    {"int4 32", MAT_INT4, 32, 0, 0},   {"int4 64", MAT_INT4, 64, 0, 0},    {"int4 128", MAT_INT4, 128, 0, 0},
    {"int8 32", MAT_INT8, 32, 0, 0},   {"int8 64", MAT_INT8, 64, 0, 0},    {"int8 128", MAT_INT8, 128, 0, 0},
    {"fp4", MAT_FP4, 0, 0, 0},         {"q4_0", MAT_Q4_0, 0, 0, 0},        {"q4_1", MAT_Q4_1, 0, 0, 0},
    {"q5_0", MAT_Q5_0, 0, 0, 0},       {"q5_1", MAT_Q5_1, 0, 0, 0},        {"q8_0", MAT_Q8_0, 0, 0, 0},
    {"q2_k", MAT_Q2_K, 0, 0, 0},       {"q3_k", MAT_Q3_K, 0, 0, 0},        {"q4_k", MAT_Q4_K, 0, 0, 0},
    {"q5_k", MAT_Q5_K, 0, 0, 0},       {"q6_k", MAT_Q6_K, 0, 0, 0},        {"iq4_nl", MAT_IQ4_NL, 0, 0, 0},
    {"iq4_xs", MAT_IQ4_XS, 0, 0, 0},   {"mxfp4", MAT_MXFP4, 0, 0, 0},
};

/* Random bytes are blocks of GGUF but for their fp16 numbers: where those are, and what makes the values about 1. */
static const struct halves {
    int d, low; /* low -1: there is none */
    float largest, largest_low;
} halves[MAT_FORMATS] = {
    [MAT_Q4_0] = {0, -1, 8, 0},      [MAT_Q4_1] = {0, 2, 15, 1},     [MAT_Q5_0] = {0, -1, 16, 0},
    [MAT_Q5_1] = {0, 2, 31, 1},      [MAT_Q8_0] = {0, -1, 127, 0},   [MAT_Q2_K] = {80, 82, 45, 15},
    [MAT_Q3_K] = {108, -1, 128, 0},  [MAT_Q4_K] = {0, 2, 945, 63},   [MAT_Q5_K] = {0, 2, 1953, 63},
    [MAT_Q6_K] = {208, -1, 4096, 0}, [MAT_IQ4_NL] = {0, -1, 127, 0}, [MAT_IQ4_XS] = {0, -1, 4064, 0},
};

/* e8m0 from 1/8 to 1, and here and there the smallest there are. */
static uint8_t random_exponent(void) {
    return (uint8_t)(draw() % 16 ? 124 + draw() % 4 : draw() % 2);
}

static void fill_gguf(const struct mat *mat, uint8_t *data) {
    const struct halves *h = &halves[mat->format];
    int values;
    size_t block;
    gguf_block(mat->format, &values, &block);
    for (size_t i = 0; i < mat_bytes(mat); i++) data[i] = (uint8_t)draw();
    for (size_t at = 0; at < mat_bytes(mat); at += block) {
        if (mat->format == MAT_MXFP4) {
            data[at] = random_exponent();
            continue;
        }
        uint16_t d = f32_to_f16(uniform(0.5f, 2) / h->largest), low = 0;
        memcpy(data + at + h->d, &d, sizeof d);
        if (h->low < 0) continue;
        low = f32_to_f16(uniform(-1, 1) / h->largest_low);
        memcpy(data + at + h->low, &low, sizeof low);
    }
}

/* As files have it: rows of other lengths are in blocks of 32, or in none. */
static enum mat_format gguf_format_for(enum mat_format format, int cols) {
    int values;
    size_t block;
    if (gguf_block(format, &values, &block) && cols % values) format = MAT_Q5_0;
    return format == MAT_Q5_0 && cols % 32 ? MAT_F16 : format;
}

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

static void fill_fp4(struct fixture *f, struct mat *mat, uint8_t *data) {
    const size_t values = (size_t)mat->rows * (size_t)mat->cols;
    uint8_t *scales = arena_alloc(f->arena, values / FP4_GROUP);
    for (size_t i = 0; i < values / 2; i++) data[i] = (uint8_t)draw();
    for (size_t i = 0; i < values / FP4_GROUP; i++) scales[i] = random_exponent();
    mat->scales8 = scales;
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

static struct mat random_mat(struct fixture *f, const struct style *style, int rows, int cols) {
    struct mat mat = {.format = style->format, .rows = rows, .cols = cols, .group_size = style->group};
    if (mat.format == MAT_INT4_AWQ && rows % 8) mat.format = MAT_F16; /* as such checkpoints have it */
    if (mat.format == MAT_FP8) {
        mat.scale_rows = style->scale_rows ? style->scale_rows : rows;
        mat.scale_cols = style->scale_cols ? style->scale_cols : cols;
        mat.scale_stride = (cols + mat.scale_cols - 1) / mat.scale_cols;
    }
    if (mat.format == MAT_FP4 && cols % FP4_GROUP) mat.format = MAT_F16;
    mat.format = gguf_format_for(mat.format, cols);
    void *data = arena_alloc(f->arena, mat_bytes(&mat) + 64);
    mat.data = data;
    if (mat.format == MAT_FP8) fill_fp8(f, &mat, data);
    if (mat.format == MAT_FP4) fill_fp4(f, &mat, data);
    if (gguf_is_blocks(mat.format)) fill_gguf(&mat, data);
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

static void open_card(struct fixture *f, enum kv_format kv, enum attention attention) {
    struct backend_options options = {.max_rows = MAX_ROWS,
                                      .max_logits = 4,
                                      .max_seqs = 4,
                                      .n_pages = 24,
                                      .kv = kv,
                                      .attention = attention,
                                      .copies_pages = true};
    struct mo_error error = {0};
    const struct cuda_part whole = cuda_whole(&f->model, 0);
    setenv("MOEBIUS_CUDA_FP8_NATIVE", "1", 1); /* so that the kernel is there; a test switches it on when it wants it */
    if (cuda_backend_open(&f->backend, &f->model, &f->weights, &options, &whole, 1, &error))
        card_is_lost(error.message);
    f->cuda = (struct cuda *)f->backend;
    f->cuda->fp8_native = false;
    f->cuda->card.processors =
        3; /* as the shim's: a large card would take other variants for matrices as small as these */
    f->cuda->recorder.off = true; /* stages are looked at one by one */
}

void fixture_open_as(struct fixture *f, const struct style *style, const struct model *model, enum kv_format kv,
                     enum attention attention) {
    *f = (struct fixture){.model = *model, .arena = arena_create()};
    for (int i = 0; i < 2; i++) make_layer(f, style, &f->layers[i]);
    for (int i = 0; i < model->experts; i++) f->experts[i] = random_mlp(f, style, model->expert_width);
    f->weights.embed = random_mat(f, style, model->vocab, model->hidden);
    f->weights.head = random_mat(f, style, model->vocab, model->hidden);
    f->weights.final_norm = random_vector(f, model->hidden);
    f->weights.layers = f->layers;
    open_card(f, kv, attention);
}

void fixture_open(struct fixture *f, const struct style *style, const struct model *model, enum kv_format kv) {
    fixture_open_as(f, style, model, kv, ATTENTION_ABSORBED);
}

void fixture_close(struct fixture *f) {
    f->backend->ops->close(f->backend);
    arena_destroy(f->arena);
}

float *decode(const struct fixture *f, const struct mat *mat, int r0, int rows) {
    float *out = arena_alloc_array(f->arena, (size_t)rows * (size_t)mat->cols, sizeof *out);
    format_decode_rows(mat, r0, r0 + rows, out);
    if (mat->format != MAT_F32 && mat->format != MAT_F16) return out;
    for (size_t i = 0; i < (size_t)rows * (size_t)mat->cols; i++) out[i] = bf16_to_f32(f32_to_bf16(out[i]));
    return out; /* these are rounded at upload */
}

/* Four sums beside each other, and unsanitized: a seventh of the sanitizers' time was here. */
__attribute__((no_sanitize("address", "undefined"))) double dot(const float *w, const float *x, int n, double *size) {
    double sum[4] = {0}, sizes[4] = {0};
    for (int i = 0; i < n; i++) {
        const double product = (double)w[i] * (double)x[i];
        sum[i % 4] += product;
        sizes[i % 4] += fabs(product);
    }
    *size = sizes[0] + sizes[1] + sizes[2] + sizes[3];
    return sum[0] + sum[1] + sum[2] + sum[3];
}

static struct cuda_driver driver;
static struct cuda_card card;
int driver_open(void **unused) {
    struct mo_error error = {0};
    (void)unused;
    cuda_memory_is_shared = true;
    int code = cuda_driver_open(&driver, &error);
    if (!code) code = cuda_card_open(&driver, 0, &card, &error);
    if (code) fprintf(stderr, "%s\n", error.message);
    return code;
}
int driver_close(void **unused) {
    (void)unused;
    cuda_card_close(&driver, &card);
    cuda_driver_close(&driver);
    return 0;
}

void wait_for(struct fixture *f) {
    struct cuda *cuda = f->cuda;
    cuda_keep(cuda, cuda->driver.stream_wait(cuda->stream), "waiting for the card");
    if (cuda->failure.code) card_is_lost(cuda->failure.message);
}

void *card_memory(struct fixture *f, size_t bytes) {
    cuda_address at;
    if (f->cuda->driver.memory_take(&at, bytes)) fail_msg("no memory");
    return (void *)(uintptr_t)at;
}

void give_back(struct fixture *f, void *at) {
    f->cuda->driver.memory_free((cuda_address)(uintptr_t)at);
}

void multiply(struct fixture *f, const struct weight *w, enum x_kind kind, const void *x, float *y, int n) {
    struct linear_params p = cuda_linear_begin(f->cuda);
    struct linear_job *job = cuda_linear_add(&p, w, n, 1);
    job->x_kind = kind;
    job->x = x;
    job->x_stride = (size_t)w->m.cols;
    job->y = y;
    job->y_stride = (size_t)w->m.rows;
    memset(y, 0xff, (size_t)(MAX_ROWS * w->m.rows) * sizeof *y);
    cuda_linear_run(f->cuda, &p, &w, n);
    wait_for(f);
}

void begin(struct fixture *f, int n, int first_pos) {
    static int32_t tokens[MAX_ROWS], pages[24];
    static struct batch_seq seq;
    static struct batch batch;
    for (int i = 0; i < 24; i++) pages[i] = (i * 7 + 3) % 24;
    seq = (struct batch_seq){0, n, first_pos, pages, NULL};
    batch = (struct batch){.n_rows = n, .token = tokens, .n_seqs = 1, .seqs = &seq};
    f->backend->ops->begin(f->backend, &batch);
}

void end(struct fixture *f) {
    struct mo_error error = {0};
    int code = f->backend->ops->end(f->backend, &error);
    if (code && f->cuda->failure.code) card_is_lost(error.message);
    if (code) fail_msg("%s", error.message);
}

float cached(const struct fixture *f, const uint8_t *row, int c) {
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

void fill_cache(struct fixture *f) {
    uint8_t *cache = (uint8_t *)(uintptr_t)f->cuda->cache_at;
    for (size_t at = 0; at < f->cuda->cache_bytes; at += f->cuda->row_bytes) fill_row(f, cache + at);
}

/* The latent of token t, widened. */
static void load_latent(const struct fixture *f, int t, double *out) {
    const uint8_t *cache = (const uint8_t *)(uintptr_t)f->cuda->cache_at;
    int page = f->cuda->batch->seqs[0].pages[t / KV_PAGE_TOKENS];
    const uint8_t *at = cache + (size_t)(page * KV_PAGE_TOKENS + t % KV_PAGE_TOKENS) * f->cuda->row_bytes;
    for (int c = 0; c < model_latent_dim(&f->model); c++) out[c] = (double)cached(f, at, c);
}

/* A query as its kernel reads it, made a latent: in expanded form W_UK is applied here, in double. */
static void latent_query(const struct fixture *f, int row, int head, bool expanded, const float *kv_b, double *out) {
    const struct model *m = &f->model;
    int lora = m->kv_lora;
    const uint16_t *q = f->cuda->scratch.q_latent + (size_t)((row * m->heads + head) * model_latent_dim(m));
    const float *plain = f->cuda->scratch.q + (size_t)((row * m->heads + head) * model_q_head_dim(m));
    for (int c = 0; c < model_latent_dim(m); c++) out[c] = (double)bf16_to_f32(q[c]);
    for (int c = 0; c < lora && expanded; c++) {
        out[c] = 0;
        for (int d = 0; d < m->nope_dim; d++) {
            float w = kv_b[(head * (m->nope_dim + m->v_dim) + d) * lora + c];
            out[c] += (double)bf16_to_f32(f32_to_bf16(plain[d])) * (double)w;
        }
    }
}

void check_attended(const struct fixture *f, int row, int head, int pos, const float *kv_b) {
    const struct model *m = &f->model;
    const struct cuda *cuda = f->cuda;
    int width = model_latent_dim(m), lora = m->kv_lora;
    double q[1024], latent[1024], sum[512] = {0}, total = 0;
    latent_query(f, row, head, cuda->expanded.n_passes > 0, kv_b, q);
    for (int t = 0; t <= pos; t++) {
        double score = 0;
        load_latent(f, t, latent);
        for (int c = 0; c < width; c++) score += q[c] * latent[c];
        double weight = exp(score * (double)cuda->softmax_scale);
        total += weight;
        for (int c = 0; c < lora; c++) sum[c] += weight * latent[c];
    }
    struct survey survey = {0};
    for (int d = 0; d < m->v_dim; d++) {
        const float *w = kv_b + (size_t)(head * (m->nope_dim + m->v_dim) + m->nope_dim + d) * (size_t)lora;
        double want = 0, size = 0;
        for (int c = 0; c < lora; c++) {
            want += (double)w[c] * sum[c] / total;
            size += fabs((double)w[c] * sum[c] / total);
        }
        double found = (double)bf16_to_f32(cuda->scratch.attended[(row * m->heads + head) * m->v_dim + d]);
        survey_add(&survey, (size_t)d, (size_t)row, want, found, 0.012 * size + 1e-3);
    }
    survey_tell(&survey,
                "attention, %s cache, latent of %d, %d rows, position %d, head %d (a token is a row of the batch)",
                cuda->options.kv == KV_FP8 ? "fp8" : "bf16", lora, cuda->batch->n_rows, pos, head);
}
