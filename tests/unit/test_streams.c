/* DeepSeek-V4's residual streams, routing and feed-forward on the CPU, against a slow version in double: two layers without their
 * attention, the first of which chooses experts by token. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cpu/cpu.h"
#include "check/random.h"

enum {
    LAYERS = 2,
    HIDDEN = 600, /* more than a task mixes */
    STREAMS = 4,
    WIDE = STREAMS * HIDDEN,
    MIX = (2 + STREAMS) * STREAMS,
    VOCAB = 32,
    EXPERTS = 8,
    TOP_K = 3,
    WIDTH = 48,
    MAX_ROWS = 70,
};

static const struct model model = {
    .architecture = "DeepseekV4ForCausalLM",
    .layers = LAYERS,
    .hidden = HIDDEN,
    .heads = 2,
    .vocab = VOCAB,
    .context = 128,
    .q_kind = Q_LOW_RANK,
    .q_lora = 8,
    .kv_lora = 24,
    .nope_dim = 24,
    .rope_dim = 8,
    .v_dim = 32,
    .expert_width = WIDTH,
    .experts = EXPERTS,
    .top_k = TOP_K,
    .shared_experts = 1,
    .gate_kind = GATE_SQRT_SOFTPLUS,
    .groups = 1,
    .top_groups = 1,
    .norm_topk = true,
    .routed_scale = 1.5,
    .rope = {.theta = 10000, .factor = 1},
    .hybrid = {.window = 16,
               .index_topk = 4,
               .index_heads = 2,
               .index_dim = 16,
               .rope = {.theta = 160000, .factor = 1},
               .o_groups = 2,
               .o_lora = 8,
               .streams = STREAMS,
               .sinkhorn_iterations = 3, /* few, and a large eps: so that their order and places show */
               .mix_eps = 0.02,
               .hash_layers = 1,
               .swiglu_limit = 0.25},
    .norm_eps = 1e-6,
    .bos = -1,
};

static struct weights weights;
static struct check_random dice;

/* ---- weights ---- */

static float *numbers(int n, float scale) {
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    for (int i = 0; i < n; i++) x[i] = random_float(&dice) * scale;
    return x;
}

static struct mat matrix(int rows, int cols, float scale) {
    return (struct mat){.format = MAT_F32, .rows = rows, .cols = cols, .data = numbers(rows * cols, scale)};
}

static struct mixer mixer(int rows, int scales) {
    struct mixer made = {matrix(rows, WIDE, 0.1f), numbers(rows, 1), numbers(scales, 2)};
    return made;
}

static struct mlp mlp(void) {
    return (struct mlp){matrix(WIDTH, HIDDEN, 0.1f), matrix(WIDTH, HIDDEN, 0.1f), matrix(HIDDEN, WIDTH, 0.5f)};
}

static int32_t *table(void) {
    int32_t *listed = malloc((size_t)VOCAB * TOP_K * sizeof *listed);
    assert_non_null(listed);
    for (int i = 0; i < VOCAB * TOP_K; i++) listed[i] = (i * 5 + i / 7) % EXPERTS;
    listed[1] = listed[0]; /* an expert twice */
    return listed;
}

static int open_weights(void **state) {
    (void)state;
    random_seed(&dice, 4);
    weights = (struct weights){.embed = matrix(VOCAB, HIDDEN, 1), .head = matrix(VOCAB, HIDDEN, 0.1f)};
    weights.final_norm = numbers(HIDDEN, 1);
    weights.head_mixer = mixer(STREAMS, 1);
    weights.layers = calloc(LAYERS, sizeof *weights.layers);
    assert_non_null(weights.layers);
    for (int i = 0; i < LAYERS; i++) {
        struct layer *w = &weights.layers[i];
        w->ffn_norm = numbers(HIDDEN, 1);
        w->ffn_mixer = mixer(MIX, 3);
        w->router = matrix(EXPERTS, HIDDEN, 0.2f);
        w->shared = mlp();
        w->experts = calloc(EXPERTS, sizeof *w->experts);
        assert_non_null(w->experts);
        for (int e = 0; e < EXPERTS; e++) w->experts[e] = mlp();
    }
    weights.layers[0].router_table = table();
    weights.layers[1].router_bias = numbers(EXPERTS, 0.5f);
    return 0;
}

static void free_matrix(const struct mat *w) {
    free((void *)(uintptr_t)w->data);
}

static void free_mixer(const struct mixer *m) {
    free_matrix(&m->mix);
    free((void *)(uintptr_t)m->base);
    free((void *)(uintptr_t)m->scale);
}

static void free_mlp(const struct mlp *m) {
    free_matrix(&m->gate);
    free_matrix(&m->up);
    free_matrix(&m->down);
}

static int close_weights(void **state) {
    (void)state;
    for (int i = 0; i < LAYERS; i++) {
        struct layer *w = &weights.layers[i];
        free((void *)(uintptr_t)w->ffn_norm);
        free((void *)(uintptr_t)w->router_bias);
        free((void *)(uintptr_t)w->router_table);
        free_mixer(&w->ffn_mixer);
        free_matrix(&w->router);
        free_mlp(&w->shared);
        for (int e = 0; e < EXPERTS; e++) free_mlp(&w->experts[e]);
        free(w->experts);
    }
    free_mixer(&weights.head_mixer);
    free_matrix(&weights.embed);
    free_matrix(&weights.head);
    free((void *)(uintptr_t)weights.final_norm);
    free(weights.layers);
    return 0;
}

/* ---- the slow version: one token ---- */

static void slow_product(const struct mat *w, const double *x, double *y) {
    for (int r = 0; r < w->rows; r++) {
        const float *row = (const float *)w->data + (size_t)r * (size_t)w->cols;
        y[r] = 0;
        for (int c = 0; c < w->cols; c++) y[r] += (double)row[c] * x[c];
    }
}

static void slow_norm(const double *x, const float *weight, int n, double *y) {
    double squares = 0;
    for (int i = 0; i < n; i++) squares += x[i] * x[i];
    for (int i = 0; i < n; i++) y[i] = x[i] / sqrt(squares / n + model.norm_eps) * (weight ? (double)weight[i] : 1);
}

static double slow_sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

/* collapsed [HIDDEN] */
static void slow_collapse(const struct mixer *m, const double x[STREAMS][HIDDEN], double *mix, double *collapsed) {
    double normed[WIDE];
    slow_norm(&x[0][0], NULL, WIDE, normed);
    slow_product(&m->mix, normed, mix);
    for (int c = 0; c < HIDDEN; c++) collapsed[c] = 0;
    for (int s = 0; s < STREAMS; s++) {
        double before = slow_sigmoid(mix[s] * (double)m->scale[0] + (double)m->base[s]) + model.hybrid.mix_eps;
        for (int c = 0; c < HIDDEN; c++) collapsed[c] += before * x[s][c];
    }
}

/* among [from][to] */
static void slow_among(const struct mixer *m, const double *mix, double among[STREAMS][STREAMS]) {
    const double eps = model.hybrid.mix_eps;
    for (int i = 0; i < STREAMS; i++) {
        double sum = 0;
        for (int j = 0; j < STREAMS; j++) {
            int at = 2 * STREAMS + i * STREAMS + j;
            sum += among[i][j] = exp(mix[at] * (double)m->scale[2] + (double)m->base[at]);
        }
        for (int j = 0; j < STREAMS; j++) among[i][j] = among[i][j] / sum + eps;
    }
    for (int half = 1; half < 2 * model.hybrid.sinkhorn_iterations; half++) { /* columns, rows, ..., columns */
        const bool is_column = half % 2;
        for (int i = 0; i < STREAMS; i++) {
            double sum = 0;
            for (int j = 0; j < STREAMS; j++) sum += is_column ? among[j][i] : among[i][j];
            for (int j = 0; j < STREAMS; j++) *(is_column ? &among[j][i] : &among[i][j]) /= sum + eps;
        }
    }
}

static void slow_expert(const struct mlp *w, const double *x, double weight, double *out) {
    const double limit = model.hybrid.swiglu_limit;
    double gate[WIDTH], up[WIDTH], y[HIDDEN];
    slow_product(&w->gate, x, gate);
    slow_product(&w->up, x, up);
    for (int i = 0; i < WIDTH; i++) {
        double g = fmin(gate[i], limit);
        gate[i] = g * slow_sigmoid(g) * fmax(fmin(up[i], limit), -limit);
    }
    slow_product(&w->down, gate, y);
    for (int c = 0; c < HIDDEN; c++) out[c] += weight * y[c];
}

static void slow_route(const struct layer *w, int token, const double *x, int *ids, double *chosen) {
    double score[EXPERTS], sum = 0;
    bool taken[EXPERTS] = {false};
    slow_product(&w->router, x, score);
    for (int e = 0; e < EXPERTS; e++) score[e] = sqrt(log(1 + exp(score[e])));
    for (int i = 0; i < TOP_K; i++) {
        int best = -1;
        for (int e = 0; e < EXPERTS && w->router_bias; e++) {
            if (taken[e]) continue;
            if (best < 0 || score[e] + (double)w->router_bias[e] > score[best] + (double)w->router_bias[best]) best = e;
        }
        ids[i] = w->router_table ? w->router_table[token * TOP_K + i] : best;
        taken[ids[i]] = true;
        sum += score[ids[i]];
    }
    for (int i = 0; i < TOP_K; i++) chosen[i] = score[ids[i]] / sum * model.routed_scale;
}

static void slow_layer(int layer, int token, double x[STREAMS][HIDDEN], int *ids, double *chosen) {
    const struct layer *w = &weights.layers[layer];
    const struct mixer *m = &w->ffn_mixer;
    double mix[MIX], read[HIDDEN], normed[HIDDEN], out[HIDDEN] = {0}, among[STREAMS][STREAMS];
    slow_collapse(m, x, mix, read);
    slow_norm(read, w->ffn_norm, HIDDEN, normed);
    slow_route(w, token, normed, ids, chosen);
    for (int i = 0; i < TOP_K; i++) slow_expert(&w->experts[ids[i]], normed, chosen[i], out);
    slow_expert(&w->shared, normed, 1, out);
    slow_among(m, mix, among);
    for (int c = 0; c < HIDDEN; c++) {
        double mixed[STREAMS];
        for (int k = 0; k < STREAMS; k++) {
            int at = STREAMS + k;
            mixed[k] = 2 * slow_sigmoid(mix[at] * (double)m->scale[1] + (double)m->base[at]) * out[c];
            for (int j = 0; j < STREAMS; j++) mixed[k] += among[j][k] * x[j][c];
        }
        for (int k = 0; k < STREAMS; k++) x[k][c] = mixed[k];
    }
}

/* ---- the backend ---- */

static struct backend *open_backend(int threads) {
    struct backend_options options = {.threads = threads,
                                      .max_rows = MAX_ROWS,
                                      .max_logits = MAX_ROWS,
                                      .max_seqs = 1,
                                      .n_pages = 2,
                                      .kv = KV_F32,
                                      .compute = COMPUTE_F32,
                                      .attention = ATTENTION_ABSORBED};
    struct backend *backend;
    struct mo_error error;
    if (cpu_backend_open(&backend, &model, &weights, &options, &error)) fail_msg("%s", error.message);
    return backend;
}

/* What is seen of a step of n tokens. */
struct seen {
    int32_t ids[LAYERS][MAX_ROWS][TOP_K];
    float chosen[LAYERS][MAX_ROWS][TOP_K];
    float residual[LAYERS + 1][MAX_ROWS][HIDDEN];
    float logits[MAX_ROWS][VOCAB];
};

static int step(struct backend *b, const int32_t *tokens, int n, struct seen *seen, struct mo_error *error) {
    static const int32_t pages[2] = {0, 1};
    int32_t rows[MAX_ROWS];
    const struct batch_seq seq = {.n_rows = n, .pages = pages};
    for (int i = 0; i < n; i++) rows[i] = i;
    const struct batch batch = {
        .n_rows = n, .token = tokens, .n_seqs = 1, .seqs = &seq, .n_logits = n, .logits_row = rows};
    b->ops->begin(b, &batch);
    b->ops->embed(b);
    memcpy(seen->residual[0], b->ops->residual(b), (size_t)n * HIDDEN * sizeof(float));
    for (int layer = 0; layer < LAYERS; layer++) {
        const int32_t *ids;
        const float *chosen;
        b->ops->route(b, layer);
        b->ops->routing(b, &ids, &chosen);
        memcpy(seen->ids[layer], ids, (size_t)n * TOP_K * sizeof *ids);
        memcpy(seen->chosen[layer], chosen, (size_t)n * TOP_K * sizeof *chosen);
        b->ops->residual(b); /* looking inside a block changes nothing */
        b->ops->experts(b, layer);
        memcpy(seen->residual[layer + 1], b->ops->residual(b), (size_t)n * HIDDEN * sizeof(float));
    }
    b->ops->head(b);
    memcpy(seen->logits, b->ops->logits(b), (size_t)n * VOCAB * sizeof(float));
    return b->ops->end(b, error);
}

static void run(int threads, const int32_t *tokens, int n, struct seen *seen) {
    struct backend *backend = open_backend(threads);
    struct mo_error error;
    if (step(backend, tokens, n, seen, &error)) fail_msg("%s", error.message);
    backend->ops->close(backend);
}

static struct seen all, other;

static void list_tokens(int32_t *tokens) {
    for (int i = 0; i < MAX_ROWS; i++) tokens[i] = i * 11 % VOCAB;
}

/* ---- tests ---- */

static void assert_near(const float *got, const double *want, int n, double most, const char *what, int row) {
    for (int i = 0; i < n; i++) {
        double error = fabs((double)got[i] - want[i]);
        if (!(error <= most)) {
            fail_msg("%s of row %d, value %d: %.9g, expected %.9g", what, row, i, (double)got[i], want[i]);
        }
    }
}

static void check_row(int row, int token) {
    double x[STREAMS][HIDDEN], mix[MIX], read[HIDDEN], normed[HIDDEN], logits[VOCAB], chosen[TOP_K];
    const float *embedding = (const float *)weights.embed.data + (size_t)token * HIDDEN;
    int ids[TOP_K];
    for (int s = 0; s < STREAMS; s++) {
        for (int c = 0; c < HIDDEN; c++) x[s][c] = (double)embedding[c];
    }
    for (int layer = 0; layer <= LAYERS; layer++) {
        slow_collapse(&weights.head_mixer, x, mix, read);
        assert_near(all.residual[layer][row], read, HIDDEN, 1e-4, "residual", row);
        if (layer == LAYERS) break;
        slow_layer(layer, token, x, ids, chosen);
        for (int i = 0; i < TOP_K; i++) assert_int_equal(all.ids[layer][row][i], ids[i]);
        assert_near(all.chosen[layer][row], chosen, TOP_K, 1e-5, "weights", row);
    }
    slow_norm(read, weights.final_norm, HIDDEN, normed);
    slow_product(&weights.head, normed, logits);
    assert_near(all.logits[row], logits, VOCAB, 1e-4, "logits", row);
}

static void test_against_double(void **state) {
    (void)state;
    int32_t tokens[MAX_ROWS];
    list_tokens(tokens);
    run(2, tokens, VOCAB, &all);
    for (int i = 0; i < VOCAB; i++) check_row(i, tokens[i]);
}

/* Alone, in a batch, on any number of threads: the same bits. */
static void test_company(void **state) {
    (void)state;
    int32_t tokens[MAX_ROWS];
    list_tokens(tokens);
    run(1, tokens, MAX_ROWS, &all);
    for (int threads = 1; threads <= 5; threads += 2) {
        for (int i = 0; i < MAX_ROWS; i += 23) {
            run(threads, tokens + i, 1, &other);
            assert_memory_equal(other.residual[LAYERS][0], all.residual[LAYERS][i], sizeof all.residual[0][0]);
            assert_memory_equal(other.logits[0], all.logits[i], sizeof all.logits[0]);
        }
        run(threads, tokens, MAX_ROWS, &other);
        assert_memory_equal(&other, &all, sizeof all);
    }
}

/* A NaN that meets the limit of gate and up is no number afterwards either, and is one row's. */
static void test_limit_keeps_nan(void **state) {
    (void)state;
    static const enum { GATE, UP } of[] = {GATE, UP};
    const int32_t tokens[3] = {1, 2, 3};
    const struct mlp *expert = &weights.layers[0].experts[weights.layers[0].router_table[2 * TOP_K]];
    for (size_t i = 0; i < 2; i++) {
        float *weight = (float *)(uintptr_t)(of[i] == GATE ? expert->gate.data : expert->up.data), before = *weight;
        struct backend *backend = open_backend(1);
        struct mo_error error;
        *weight = NAN;
        int code = step(backend, tokens, 3, &other, &error);
        *weight = before;
        assert_int_equal(code, MO_E_NUMERIC);
        assert_true(isnan(other.logits[1][0]));
        backend->ops->close(backend);
    }
}

/* Scores of logits where exp() overflows, or leaves nothing. */
static void test_scores(void **state) {
    (void)state;
    float scores[EXPERTS] = {300, 90, 20, 0, -20, -90, -300, 1}, chosen[TOP_K];
    const double want[EXPERTS] = {sqrt(300), sqrt(90), sqrt(20 + exp(-20)), sqrt(log(2)), exp(-10), exp(-45), 0};
    const int32_t listed[TOP_K] = {4, 4, 6}, largest[TOP_K] = {0, 1, 2};
    float again[EXPERTS];
    int32_t ids[TOP_K];
    memcpy(again, scores, sizeof again);
    cpu_choose_experts(&model, NULL, scores, ids, chosen);
    for (int e = 0; e < 7; e++) {
        if (!(fabs((double)scores[e] - want[e]) <= 1e-6 * want[e])) fail_msg("score %d: %g", e, (double)scores[e]);
    }
    assert_memory_equal(ids, largest, sizeof ids);
    cpu_listed_experts(&model, listed, again, ids, chosen);
    assert_memory_equal(again, scores, sizeof again);
    assert_memory_equal(ids, listed, sizeof ids);
    assert_float_equal(chosen[0], 0.75, 1e-3); /* halves of 1.5: the last has nothing */
    assert_float_equal(chosen[2], 0, 1e-3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_company),
        cmocka_unit_test(test_limit_keeps_nan),
        cmocka_unit_test(test_scores),
    };
    return cmocka_run_group_tests(tests, open_weights, close_weights);
}
