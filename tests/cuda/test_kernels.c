/* The GPU's kernels one at a time, on the shim's card or (make gpu-test) a real one whose memory both sides reach: a model of odd
 * sizes in each weight format is uploaded, and products, routing and attention are compared with double arithmetic over
 * format_decode_rows. A row must have the same bits in every variant. */
#include "card_fixture.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cpu/cpu.h"
#include "base/arena.h"
#include "forward.h"
#include "survey.h"

/* --- products ------------------------------------------------------------------------------------------------------- */

static const int row_counts[] = {1, 3, 8, 9, 17, 40, 64, 65, MOST_ROWS};
enum { ROW_COUNTS = sizeof row_counts / sizeof *row_counts };

/* Against double arithmetic. `n` rows at once tell which variant it was. */
static bool is_product(const float *weight, const float *x, const float *y, size_t rows, size_t cols, size_t tokens,
                       const char *name, int n) {
    struct survey survey = {0};
    for (size_t t = 0; t < tokens; t += t < 64 ? 1 : 7) {
        for (size_t r = 0; r < rows; r++) {
            double size, want = dot(weight + r * cols, x + t * cols, (int)cols, &size);
            survey_add(&survey, r, t, want, (double)y[t * rows + r], 2e-6 * size + 1e-30);
        }
    }
    survey_tell(&survey, "%s: %d rows", name, n);
    return !survey.wrong;
}

/* y = x W^T for several numbers of rows, so in all variants; x holds bf16 values, so that only the sums are rounded. */
static void check_product(struct fixture *f, const char *name, const struct weight *w, const struct mat *mat) {
    size_t cols = (size_t)mat->cols, rows = (size_t)mat->rows, packed = f->cuda->packed_bytes;
    uint8_t *room = f->cuda->scratch.packed;
    float *weight = decode(f, mat, 0, mat->rows), *first = calloc(MAX_ROWS * rows, sizeof *first);
    float *x = card_memory(f, MAX_ROWS * cols * sizeof *x), *y = card_memory(f, MAX_ROWS * rows * sizeof *y);
    uint16_t *halves = card_memory(f, MAX_ROWS * cols * sizeof *halves);
    /* not all of these are products of a step, so the room that the backend has taken may be too little */
    f->cuda->packed_bytes = (size_t)(MOST_ROWS * w->m.slabs * SLAB_COLS * 2);
    f->cuda->scratch.packed = card_memory(f, f->cuda->packed_bytes);
    for (size_t i = 0; i < MAX_ROWS * cols; i++) {
        halves[i] = f32_to_bf16(uniform(-2, 2));
        x[i] = bf16_to_f32(halves[i]);
    }
    for (int c = 0; c < ROW_COUNTS; c++) {
        int n = row_counts[ROW_COUNTS - 1 - c];
        multiply(f, w, X_F32, x, y, n);
        if (c == 0) memcpy(first, y, (size_t)n * rows * sizeof *y);
        struct survey bits = {0};
        survey_bits(&bits, first, y, rows, (size_t)n);
        if (bits.wrong && is_product(weight, x, y, rows, cols, (size_t)n, name, n))
            survey_tell(&bits, "%s: %d rows: other bits than with %d", name, n, MOST_ROWS);
    }
    struct survey bits = {0};
    multiply(f, w, X_BF16, halves, y, 70);
    survey_bits(&bits, first, y, rows, 70);
    survey_tell(&bits, "%s: other bits from bf16", name);
    is_product(weight, x, first, rows, cols, MOST_ROWS, name, MOST_ROWS);
    free(first);
    void *const all[] = {x, y, halves, f->cuda->scratch.packed};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) give_back(f, all[i]);
    f->cuda->scratch.packed = room;
    f->cuda->packed_bytes = packed;
}

static double silu(double x) {
    return x / (1 + exp(-x));
}

/* Experts as a work list: norm and gain before, SiLU behind, and rows through x_row. */
static void check_experts_up(struct fixture *f, const char *name, int n, float limit) {
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
                               .fault_key = 1,
                               .limit = limit};
    cuda_linear_run(f->cuda, &p, &w, n);
    wait_for(f);
    struct survey survey = {0};
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
            double b = dot(up + r * hidden, scaled, m->hidden, &size) * factor;
            double want = limit > 0 ? silu(fmin(a, limit)) * fmax(fmin(b, limit), -limit) : silu(a) * b;
            double found = (double)bf16_to_f32(y[(size_t)i * width + r]);
            survey_add(&survey, r, (size_t)i, want, found, fabs(want) * 0.005 + 1e-4);
        }
    }
    survey_tell(&survey, "%s: experts up, %d pairs", name, n);
    void *const all[] = {x, y, row, n_items, items};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) give_back(f, all[i]);
}

static void test_products(void **state) {
    const struct style *style = *state;
    struct fixture f;
    char name[64];
    fixture_open(&f, style, model_for(style), KV_BF16);
    const struct device_layer *w = &f.cuda->weights.layers[1];
    const struct layer *layer = &f.layers[1];
    snprintf(name, sizeof name, "%s, q_b", style->name);
    check_product(&f, name, &w->q_b, &layer->q_b);
    snprintf(name, sizeof name, "%s, kv_a", style->name);
    check_product(&f, name, &w->kv_a, &layer->kv_a);
    snprintf(name, sizeof name, "%s, long rows", style->name);
    check_product(&f, name, &f.cuda->weights.layers[0].down, &f.layers[0].dense.down);
    check_experts_up(&f, style->name, 5, 0);
    check_experts_up(&f, style->name, 21, 2);
    fixture_close(&f);
    no_complaints();
}

/* GGUF's blocks take what they take in the file, and at most an eighth of a bit more: `plan` counts with these numbers. */
static void test_room(void **unused) {
    (void)unused;
    for (size_t i = FIRST_GGUF; i < STYLES; i++) {
        struct fixture f;
        fixture_open(&f, &styles[i], &blocks_model, KV_BF16);
        const struct mat *mat = &f.layers[0].dense.down;
        const struct device_matrix *m = &f.cuda->weights.layers[0].down.m;
        enum mat_format format = mat->format;
        double values = (double)mat->rows * mat->cols, more = 0;
        assert_true(format == styles[i].format && mat->rows % TILE_ROWS == 0 && mat->cols % SLAB_COLS == 0);
        if (format == MAT_Q3_K || format == MAT_Q4_K || format == MAT_Q5_K) more = 0.125;
        if (format == MAT_IQ4_XS) more = 0.0625;
        double want = (double)mat_bytes(mat) * 8 / values + more;
        if ((double)(m->data_step + m->scale_step) * 8 / values != want) {
            fail_msg("%s: expected %g bits a weight, found %g", styles[i].name, want,
                     (double)(m->data_step + m->scale_step) * 8 / values);
        }
        fixture_close(&f);
    }
}

/* A head's two matrices, from kv_b of every format: bf16, one of them turned. */
static void test_kv_b(void **unused) {
    (void)unused;
    for (size_t i = 0; i < STYLES; i++) {
        struct fixture f;
        fixture_open(&f, &styles[i], model_for(&styles[i]), KV_BF16);
        const struct model *m = &f.model;
        float *kv_b = arena_alloc_array(f.arena, (size_t)(f.layers[0].kv_b.rows * f.layers[0].kv_b.cols), sizeof *kv_b);
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
        struct survey survey = {0};
        for (size_t h = 0; h < heads; h++) {
            for (size_t c = 0; c < lora; c++) {
                double want = 0;
                for (size_t d = 0; d < nope; d++) {
                    float weight = kv_b[(h * (nope + (size_t)m->v_dim) + d) * lora + c];
                    want += (double)bf16_to_f32(f32_to_bf16(weight)) * (double)x[h * nope + d];
                }
                survey_add(&survey, c, h, want, (double)y[h * lora + c],
                           3e-5); /* matrix units cut bits off that C rounds */
            }
        }
        survey_tell(&survey, "%s: kv_b's keys, a token a head", styles[i].name);
        give_back(&f, x);
        give_back(&f, y);
        fixture_close(&f);
    }
    no_complaints();
}

/* --- stages: routing, experts, attention ------------------------------------------------------------------------------ */

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
static void check_moe_row(const struct fixture *f, const char *name, int row, const float *before, const float *after,
                          const int32_t *ids, const float *weights) {
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
        double here = fabs(want - ((double)after[r] - (double)before[r]));
        if (!(here <= error)) error = here; /* also a NaN, and it stays */
    }
    if (!(error <= 0.02 * largest)) complain("%s, row %d: experts' sum: error %g of %g", name, row, error, largest);
}

static void check_routing(struct fixture *f, const char *name, int n, bool experts) {
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
            int id = ids[row * m->top_k + j];
            float weight = weights[row * m->top_k + j];
            if (id == want[j] && fabs((double)(weight - want_weights[j])) <= 1e-4) continue;
            complain("%s, %d rows: row %d, choice %d: expert %d of weight %g, expected %d of %g", name, n, row, j, id,
                     (double)weight, want[j], (double)want_weights[j]);
            experts = false; /* they cannot be right then */
        }
    }
    if (experts) {
        f->backend->ops->experts(f->backend, 1);
        const float *after = f->backend->ops->residual(f->backend);
        for (int row = 0; row < n; row += 3) {
            check_moe_row(f, name, row, before + row * m->hidden, after + row * m->hidden, ids + row * m->top_k,
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
        char name[64];
        const struct style *style = &styles[i % 2 ? STYLE_BF16 : i ? STYLE_Q4_K : STYLE_INT4];
        struct model model = *model_for(style);
        model.gate_kind = gates[i].kind;
        model.groups = gates[i].groups;
        model.top_groups = gates[i].top_groups;
        model.norm_topk = gates[i].norm;
        model.routed_scale = gates[i].scale;
        model.dense_width = 60; /* not looked at */
        fixture_open(&f, style, &model, KV_BF16);
        if (model.gate_kind != GATE_SIGMOID_GROUPED) {
            f.layers[1].router_bias = NULL;
            f.cuda->weights.layers[1].router_bias = NULL;
        }
        snprintf(name, sizeof name, "%s, gate %zu", style->name, i);
        for (int n = 1; n <= 82; n = n * 3 + 2) check_routing(&f, name, n, n < 30 || i == 0);
        fixture_close(&f);
    }
    no_complaints();
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
    if (memcmp(other, f->cuda->scratch.attended, values * 2))
        complain("attention, %d rows from %d on: other bits with one block for all splits", n, first_pos);
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
    no_complaints();
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
        seqs[i] = (struct batch_seq){rows, n[i], first[i], pages[seq[i]], NULL};
        for (int t = 0; t < n[i]; t++) token[rows++] = (seq[i] * 31 + (first[i] + t) * 17 + 5) % f->model.vocab;
        wanted[i] = rows - 1;
    }
    struct batch batch = {rows, token, n_seqs, seqs, n_seqs, wanted, NULL};
    struct mo_error error = {0};
    if (forward(f->backend, &f->model, &batch, NULL, &error)) fail_msg("%s", error.message);
    memcpy(out, f->backend->ops->logits(f->backend), (size_t)(n_seqs * f->model.vocab) * sizeof *out);
}

/* Ragged sequences side by side, prompts beside decode steps, some of the steps recorded: each row as if it were alone. With
 * `attention` auto the first prompt is expanded, and it meets two that are not. */
static void check_company(enum attention attention) {
    static const int all[3] = {0, 1, 2}, prompt[3] = {61, 3, 17};
    struct fixture f;
    struct model model = odd_model;
    model.dense_width = 60;
    fixture_open_as(&f, &styles[11], &model, KV_BF16, attention);
    f.cuda->recorder.off = false;
    if (attention == ATTENTION_AUTO) assert_in_range(f.cuda->expanded.rows_from, 18, 61);
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
                complain("%s: step %d, sequence %zu: not the bits that it has alone",
                         attention == ATTENTION_AUTO ? "one expanded" : "absorbed", i, s);
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

static void test_company(void **unused) {
    (void)unused;
    check_company(ATTENTION_ABSORBED);
    check_company(ATTENTION_AUTO);
    no_complaints();
}

/* Begins a step and goes, as an engine's thread does that is stopped. */
struct begun {
    struct fixture *f;
    const struct batch *batch;
};
static void *begin_and_go(void *context) {
    const struct begun *b = context;
    forward_begin(b->f->backend, &b->f->model, b->batch, NULL);
    return NULL;
}

/* A step of a shape that comes first, second (it is recorded) and third (replayed) is ended by another thread than began it. */
static void test_ended_by_another_thread(void **unused) {
    (void)unused;
    static const int32_t token[1] = {3}, wanted[1] = {0}, pages[1] = {5};
    struct fixture f;
    struct model model = odd_model;
    model.dense_width = 60;
    fixture_open(&f, &styles[2], &model, KV_BF16);
    f.cuda->recorder.off = false;
    struct batch_seq seq = {0, 1, 0, pages, NULL};
    struct batch batch = {1, token, 1, &seq, 1, wanted, NULL};
    struct begun begun = {&f, &batch};
    size_t bytes = (size_t)model.vocab * sizeof(float);
    float *first = malloc(bytes);
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, begin_and_go, &begun), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        end(&f);
        if (i == 0) memcpy(first, f.backend->ops->logits(f.backend), bytes);
        assert_memory_equal(first, f.backend->ops->logits(f.backend), bytes);
    }
    free(first);
    fixture_close(&f);
}

static uint8_t *page_at(const struct fixture *f, uint8_t *cache, int layer, int page) {
    size_t bytes = KV_PAGE_TOKENS * f->cuda->row_bytes;
    return cache + ((size_t)layer * (size_t)f->cuda->options.n_pages + (size_t)page) * bytes;
}

/* Pages go out and in while a step on another page is at work: each lands where it should, and nothing else changes. */
static void check_page_copies(enum kv_format kv) {
    enum { FROM = 3, TO = 9, AT_WORK = 5 };
    static const int32_t token[1] = {3}, pages[1] = {AT_WORK};
    struct fixture f;
    struct model model = odd_model;
    struct mo_error error;
    model.dense_width = 60;
    fixture_open(&f, &styles[2], &model, kv);
    fill_cache(&f);
    uint8_t *cache = (uint8_t *)(uintptr_t)f.cuda->cache_at, *want = malloc(f.cuda->cache_bytes);
    size_t layer_bytes = KV_PAGE_TOKENS * f.cuda->row_bytes, page_bytes = kv_pool_bytes(&model, kv, 1, 1);
    uint8_t *page = malloc(page_bytes);
    memcpy(want, cache, f.cuda->cache_bytes);
    struct batch_seq seq = {0, 1, 0, pages, NULL};
    struct batch batch = {1, token, 1, &seq, 0, NULL, NULL};
    forward_begin(f.backend, &model, &batch, NULL);
    cuda_submit(f.cuda);
    assert_int_equal(f.backend->ops->page_out(f.backend, FROM, page, &error), 0);
    assert_int_equal(f.backend->ops->page_in(f.backend, TO, page, &error), 0);
    end(&f);
    for (int layer = 0; layer < model.layers; layer++) {
        assert_memory_equal(page + (size_t)layer * layer_bytes, page_at(&f, want, layer, FROM), layer_bytes);
        memcpy(page_at(&f, want, layer, TO), page_at(&f, want, layer, FROM), layer_bytes);
        memcpy(page_at(&f, want, layer, AT_WORK), page_at(&f, cache, layer, AT_WORK), f.cuda->row_bytes); /* its row */
    }
    assert_memory_equal(cache, want, f.cuda->cache_bytes);
    free(page);
    free(want);
    fixture_close(&f);
}

static void test_page_copies(void **unused) {
    (void)unused;
    check_page_copies(KV_BF16);
    check_page_copies(KV_FP8);
}

/* A format that no kernel multiplies, nor as what it becomes on its way (other people's INT4), or MAT_FORMATS. */
static enum mat_format format_without_kernels(void) {
    for (int i = 0; i < MAT_FORMATS; i++) {
        bool has_style = mat_is_words((enum mat_format)i) || i == MAT_INT8_ROWS; /* which are sent as others */
        for (size_t j = 0; j < STYLES; j++) has_style |= styles[j].format == (enum mat_format)i;
        if (!has_style) return (enum mat_format)i;
    }
    return MAT_FORMATS;
}

/* Formats that only the CPU multiplies are refused before anything is brought, by the name of the first matrix in one. */
static void test_refused_format(void **unused) {
    (void)unused;
    struct fixture f;
    struct mo_error error;
    const struct style *f16 = &styles[1];
    enum mat_format refused = format_without_kernels();
    if (refused == MAT_FORMATS) {
        print_message("left out: there are kernels for every format, so none is refused\n");
        return;
    }
    assert_int_equal(f16->format, MAT_F16);
    fixture_open(&f, f16, &odd_model, KV_BF16);
    enum mat_format was = f.experts[3].down.format;
    f.experts[3].down.format = f.experts[4].up.format = refused;
    assert_int_equal(cuda_upload(f.cuda, &f.weights, &error), MO_E_UNSUPPORTED);
    char want[256];
    snprintf(want, sizeof want,
             "layer 1, expert 3, down: there are no GPU kernels for %s; --quantization int4 makes it a "
             "format that has some (--device cpu takes it as it is)",
             mat_format_name(refused));
    assert_string_equal(error.message, want);
    f.experts[3].down.format = f.experts[4].up.format = was;
    fixture_close(&f);
}

int main(int n, char **arguments) {
    static char names[STYLES][64];
    static const struct CMUnitTest others[] = {
        cmocka_unit_test(test_kv_b),           cmocka_unit_test(test_routing),
        cmocka_unit_test(test_attention),      cmocka_unit_test(test_rows_of_the_cache),
        cmocka_unit_test(test_company),        cmocka_unit_test(test_page_copies),
        cmocka_unit_test(test_room),           cmocka_unit_test(test_ended_by_another_thread),
        cmocka_unit_test(test_refused_format),
    };
    enum { OTHERS = sizeof others / sizeof *others };
    struct CMUnitTest tests[STYLES + OTHERS];
    for (int i = 0; i < STYLES; i++) { /* a test each: one that fails, or faults, says nothing of the others */
        snprintf(names[i], sizeof names[i], "test_products, %s", styles[i].name);
        tests[i] = (struct CMUnitTest){
            .name = names[i], .test_func = test_products, .initial_state = (void *)(uintptr_t)&styles[i]};
    }
    memcpy(tests + STYLES, others, sizeof others);
    return survey_run(n, arguments, tests, STYLES + OTHERS, driver_open, driver_close);
}
