/* Decoders, and the kernels of attention and of one row, in the order in which a step meets them. */
#include "selftest/kernels.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "backend/cpu/cpu.h"

static const char *const cache_names[KV_FORMATS] = {"f32", "bf16", "fp8"};

/* ---- decoders ---- */

static int test_decoder(struct self_kernels *k, const struct mat *w, int r0, int r1, const char *what) {
    struct self_difference d = {0};
    char where[80];
    if (!w->data) return 0;
    k->kern->decode_rows(w, r0, r1, k->got_row);
    k->plain.decode_rows(w, r0, r1, k->want_row);
    for (int r = r0; r < r1; r++) {
        size_t at = (size_t)(r - r0) * (size_t)w->cols;
        self_compare(&d, r, k->got_row + at, k->want_row + at, w->cols);
    }
    snprintf(where, sizeof where, "%s of %s", mat_format_name(w->format), what);
    return self_judge(k, &d, "decode_rows", where, "row");
}

/* What the key side of decode does without widening: the rows of kv_b that test_kv_b decoded last, which are in want_row. */
static int test_row_sums(struct self_kernels *k, const struct mat *kv_b, int rows) {
    struct self_difference d = {0};
    const int n = kv_b->cols;
    if (!k->kern->sum_rows[kv_b->format]) return 0;
    k->kern->sum_rows[kv_b->format](kv_b, 0, rows, k->x[0], k->got);
    k->plain.weighted_sum(k->want, (size_t)n, NULL, k->x[0], (size_t)rows, k->want_row, (size_t)n, 1, rows, n);
    self_compare(&d, 0, k->got, k->want, n);
    return self_judge(k, &d, "sum_rows", mat_format_name(kv_b->format), "sum");
}

/* Decoded rows as a matrix, as attention multiplies them where the format has no kernel for fp32 activations. */
static int test_wide_product(struct self_kernels *k, int rows, int cols) {
    struct self_difference d = {0};
    const struct mat w = {.format = MAT_F32, .rows = rows, .cols = cols, .data = k->want_row};
    const float *x[SELF_TOKENS + 1] = {k->x[0], k->x[1], k->x[2], k->x[0]};
    float *got[SELF_TOKENS + 1], *want[SELF_TOKENS + 1];
    for (int t = 0; t <= SELF_TOKENS; t++) {
        got[t] = k->got + t * SELF_ROWS;
        want[t] = k->want + t * SELF_ROWS;
    }
    k->kern->gemm[MAT_F32](&w, 0, rows, x, SELF_TOKENS + 1, got);
    k->plain.gemm[MAT_F32](&w, 0, rows, x, SELF_TOKENS + 1, want);
    for (int t = 0; t <= SELF_TOKENS; t++) self_compare(&d, t, got[t], want[t], rows);
    return self_judge(k, &d, "gemm", "F32 of decoded kv_b", "token");
}

static int test_kv_b(struct self_kernels *k) {
    const struct mat *kv_b = &k->test->weights->layers[0].kv_b;
    const int rows = kv_b->rows < SELF_VALUES ? kv_b->rows : SELF_VALUES;
    if (!kv_b->data) return 0;
    int code = test_decoder(k, kv_b, 0, rows, "kv_b");
    if (!code) code = test_row_sums(k, kv_b, rows);
    return code ? code : test_wide_product(k, rows, kv_b->cols);
}

/* ---- attention ---- */

/* As much of a backend as the cache's own functions look at. */
static void make_cache(struct cpu *cpu, const struct self_kernels *k, const struct kern *kern, enum kv_format kv) {
    *cpu = (struct cpu){.model = k->test->model, .options = {.kv = kv}, .kern = *kern};
    cpu->row_bytes = cache_row_bytes(k->test->model->kv_lora, k->test->model->rope_dim, kv);
}

/* Leaves the decoded rows in want_row: [SELF_KEYS][latent]. */
static int test_cache(struct self_kernels *k, enum kv_format kv) {
    struct self_difference d = {0};
    struct cpu cpu;
    const int latent = model_latent_dim(k->test->model);
    self_fill(k->want_row, SELF_KEYS * latent, 11);
    make_cache(&cpu, k, k->kern, kv);
    for (int t = 0; t < SELF_KEYS; t++) {
        kv_cache_store(&cpu, k->cache + (size_t)t * cpu.row_bytes, k->want_row + t * latent);
    }
    kv_cache_load(&cpu, k->cache, SELF_KEYS, k->got_row);
    make_cache(&cpu, k, &k->plain, kv);
    kv_cache_load(&cpu, k->cache, SELF_KEYS, k->want_row);
    for (int t = 0; t < SELF_KEYS; t++) self_compare(&d, t, k->got_row + t * latent, k->want_row + t * latent, latent);
    return self_judge(k, &d, "decode_rows", cache_names[kv], "cached token");
}

/* Scores of all queries with `n` of the keys in want_row. */
static struct kern_dots scores_of(const struct self_kernels *k, int dim, int n, float *out) {
    const size_t latent = (size_t)model_latent_dim(k->test->model);
    return (struct kern_dots){.q = k->query,
                              .q_stride = latent,
                              .n_q = SELF_QUERIES,
                              .k = k->want_row,
                              .k_stride = latent,
                              .n_k = n,
                              .dim = dim,
                              .out = out,
                              .out_stride = KV_PAGE_TOKENS};
}

/* All keys at once, and a few: the backend does both. */
static int test_scores(struct self_kernels *k, int dim) {
    static const int keys[] = {4, SELF_KEYS};
    int code = 0;
    char where[64];
    for (size_t i = 0; i < sizeof keys / sizeof *keys && !code; i++) {
        struct self_difference d = {0};
        struct kern_dots got = scores_of(k, dim, keys[i], k->got_score),
                         want = scores_of(k, dim, keys[i], k->want_score);
        for (int s = 0; s < SELF_QUERIES * KV_PAGE_TOKENS; s++) k->got_score[s] = k->want_score[s] = NAN;
        k->kern->dots(&got);
        k->plain.dots(&want);
        self_compare(&d, 0, k->got_score, k->want_score, SELF_QUERIES * KV_PAGE_TOKENS);
        snprintf(where, sizeof where, "%d queries, %d keys of %d values", SELF_QUERIES, keys[i], dim);
        code = self_judge(k, &d, "dots", where, "table");
    }
    return code;
}

/* Scores become weights, in want_score: a first step, and one that goes on. */
static int test_softmax(struct self_kernels *k) {
    struct self_difference d = {0};
    for (int i = 0; i < SELF_QUERIES; i++) {
        float *s = k->got_score + i * KV_PAGE_TOKENS, *expected = k->want_score + i * KV_PAGE_TOKENS;
        float got[3] = {0, i % 2 ? 1.0f : -INFINITY, i % 2 ? 0.5f : 0}, want[3]; /* keep, max, sum */
        memcpy(want, got, sizeof want);
        memcpy(s, expected, SELF_KEYS * sizeof *s);
        got[0] = k->kern->softmax_step(s, SELF_KEYS, 0.05f, &got[1], &got[2]);
        want[0] = k->plain.softmax_step(expected, SELF_KEYS, 0.05f, &want[1], &want[2]);
        self_compare(&d, i, s, expected, SELF_KEYS);
        self_compare(&d, i, got, want, 3);
    }
    return self_judge(k, &d, "softmax_step", "scores of one page", "query");
}

static int test_values(struct self_kernels *k, kern_weighted_sum *kernel, kern_weighted_sum *plain, const char *name) {
    struct self_difference d = {0};
    const int kv_lora = k->test->model->kv_lora, latent = model_latent_dim(k->test->model);
    float keep[SELF_QUERIES];
    for (int i = 0; i < SELF_QUERIES; i++) keep[i] = 0.5f + 0.03f * (float)i;
    for (int again = 0; again < 2; again++) { /* over what was there, then on top of it */
        kernel(k->got, (size_t)kv_lora, again ? keep : NULL, k->want_score, KV_PAGE_TOKENS, k->want_row, (size_t)latent,
               SELF_QUERIES, SELF_KEYS, kv_lora);
        plain(k->want, (size_t)kv_lora, again ? keep : NULL, k->want_score, KV_PAGE_TOKENS, k->want_row, (size_t)latent,
              SELF_QUERIES, SELF_KEYS, kv_lora);
        for (int i = 0; i < SELF_QUERIES; i++)
            self_compare(&d, i, k->got + i * kv_lora, k->want + i * kv_lora, kv_lora);
    }
    return self_judge(k, &d, name, "values of one page", "query");
}

/* The indexer's sums over the scores that were made last, as if each query were a head. */
static int test_index(struct self_kernels *k) {
    struct self_difference d = {0};
    float heads[SELF_QUERIES];
    if (!k->test->model->index_topk) return 0;
    self_fill(heads, SELF_QUERIES, 13);
    k->kern->relu_sum(heads, k->want_score, KV_PAGE_TOKENS, SELF_QUERIES, SELF_KEYS, k->got);
    k->plain.relu_sum(heads, k->want_score, KV_PAGE_TOKENS, SELF_QUERIES, SELF_KEYS, k->want);
    self_compare(&d, 0, k->got, k->want, SELF_KEYS);
    return self_judge(k, &d, "relu_sum", "scores of one page", "row");
}

/* ---- the same over bf16, for a level that does that ---- */

/* Keys and queries, rounded: in key16 and query16. */
static int test_rounding(struct self_kernels *k) {
    struct self_difference d = {0};
    const int latent = model_latent_dim(k->test->model), n = SELF_KEYS * latent;
    k->kern->to_bf16(k->want_row, n, k->got16);
    k->plain.to_bf16(k->want_row, n, k->key16);
    k->plain.to_bf16(k->query, SELF_QUERIES * latent, k->query16);
    for (int i = 0; i < n; i++) {
        float got = bf16_to_f32(k->got16[i]), want = bf16_to_f32(k->key16[i]);
        self_compare(&d, i / latent, &got, &want, 1);
    }
    return self_judge(k, &d, "to_bf16", "cached tokens", "row");
}

static int test_pair_scores(struct self_kernels *k, int dim, int n) {
    struct self_difference d = {0};
    const size_t latent = (size_t)model_latent_dim(k->test->model);
    char where[64];
    struct kern_pair_dots job = {.q = k->query16,
                                 .q_stride = latent,
                                 .n_q = SELF_QUERIES,
                                 .k = k->key16,
                                 .k_stride = latent,
                                 .n_k = n,
                                 .dim = dim,
                                 .out = k->got_score,
                                 .out_stride = KV_PAGE_TOKENS};
    for (int s = 0; s < SELF_QUERIES * KV_PAGE_TOKENS; s++) k->got_score[s] = k->want_score[s] = NAN;
    k->kern->pair_dots(&job);
    job.out = k->want_score;
    k->plain.pair_dots(&job);
    self_compare(&d, 0, k->got_score, k->want_score, SELF_QUERIES * KV_PAGE_TOKENS);
    snprintf(where, sizeof where, "%d queries, %d keys of %d values", SELF_QUERIES, n, dim);
    return self_judge(k, &d, "pair_dots", where, "table");
}

/* With the scores as weights: over what was there, then on top of it. */
static int test_pair_values(struct self_kernels *k) {
    struct self_difference d = {0};
    const int kv_lora = k->test->model->kv_lora;
    float keep[SELF_QUERIES];
    struct kern_pair_sum job = {.acc_stride = (size_t)kv_lora,
                                .p = k->want_score,
                                .p_stride = KV_PAGE_TOKENS,
                                .v = k->key16,
                                .v_stride = (size_t)model_latent_dim(k->test->model),
                                .m = SELF_QUERIES,
                                .n_t = SELF_KEYS,
                                .n_c = kv_lora};
    for (int i = 0; i < SELF_QUERIES; i++) keep[i] = 0.5f + 0.03f * (float)i;
    for (int again = 0; again < 2; again++) {
        job.keep = again ? keep : NULL;
        job.acc = k->got;
        k->kern->pair_sum(&job);
        job.acc = k->want;
        k->plain.pair_sum(&job);
        for (int i = 0; i < SELF_QUERIES; i++)
            self_compare(&d, i, k->got + i * kv_lora, k->want + i * kv_lora, kv_lora);
    }
    return self_judge(k, &d, "pair_sum", "values of one page", "query");
}

static int test_pairs(struct self_kernels *k) {
    const int latent = model_latent_dim(k->test->model), head = model_q_head_dim(k->test->model);
    if (!k->kern->pair_order) return 0;
    int code = test_rounding(k);
    if (!code && head < latent) code = test_pair_scores(k, head, SELF_KEYS); /* the expanded form's */
    if (!code) code = test_pair_scores(k, latent, 4);
    if (!code) code = test_pair_scores(k, latent, SELF_KEYS);
    return code ? code : test_pair_values(k);
}

/* The cache's formats, the one in use last: with its rows the rest goes on. */
static int test_attention(struct self_kernels *k) {
    const struct model *m = k->test->model;
    const int latent = model_latent_dim(m), head = model_q_head_dim(m);
    int code = 0;
    for (int i = 1; i <= KV_FORMATS && !code; i++) {
        code = test_cache(k, (enum kv_format)(((int)k->test->kv + i) % KV_FORMATS));
    }
    self_fill(k->query, SELF_QUERIES * latent, 12);
    if (!code && head < latent) code = test_scores(k, head); /* the expanded form's */
    if (!code && m->index_topk && m->index_dim < latent) code = test_scores(k, m->index_dim);
    if (!code) code = test_scores(k, latent);
    if (!code) code = test_index(k);
    if (!code) code = test_softmax(k);
    if (!code) code = test_values(k, k->kern->page_sum, k->plain.page_sum, "page_sum");
    if (!code) code = test_values(k, k->kern->weighted_sum, k->plain.weighted_sum, "weighted_sum");
    return code ? code : test_pairs(k);
}

/* ---- kernels of one row ---- */

static int test_norm(struct self_kernels *k) {
    const struct model *m = k->test->model;
    const float *weight = k->test->weights->final_norm;
    struct self_difference d = {0};
    float got = k->kern->rms_norm(k->x[0], weight, m->hidden, (float)m->norm_eps, k->got_row);
    float want = k->plain.rms_norm(k->x[0], weight, m->hidden, (float)m->norm_eps, k->want_row);
    self_compare(&d, 0, k->got_row, k->want_row, m->hidden);
    self_compare(&d, 1, &got, &want, 1);
    return self_judge(k, &d, "rms_norm", "the final norm's weights", "(0: the row, 1: its mean)");
}

static int test_activation(struct self_kernels *k) {
    struct self_difference silu = {0}, sum = {0};
    const int n = k->test->model->hidden;
    memcpy(k->got_row, k->x[0], (size_t)n * sizeof(float));
    memcpy(k->want_row, k->x[0], (size_t)n * sizeof(float));
    k->kern->silu_mul(k->got_row, k->x[1], n);
    k->plain.silu_mul(k->want_row, k->x[1], n);
    self_compare(&silu, 0, k->got_row, k->want_row, n);
    int code = self_judge(k, &silu, "silu_mul", "one row", "row");
    if (code) return code;
    k->kern->add_scaled(k->got_row, 0.3f, k->x[2], n);
    k->plain.add_scaled(k->want_row, 0.3f, k->x[2], n);
    self_compare(&sum, 0, k->got_row, k->want_row, n);
    return self_judge(k, &sum, "add_scaled", "one row", "row");
}

int self_test_rows(struct self_kernels *k) {
    const struct mat *embed = &k->test->weights->embed;
    int code = embed->rows > 1 ? test_decoder(k, embed, 1, 2, "the embedding") : 0;
    if (!code) code = test_norm(k);
    if (!code) code = test_kv_b(k);
    if (!code) code = test_attention(k);
    return code ? code : test_activation(k);
}
