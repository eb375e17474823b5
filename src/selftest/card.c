#include "selftest/selftest.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cpu/cpu.h"
#include "base/numbers.h"
#include "forward.h"

/* Prompts of more than 64 rows take kernels of their own on a card; 72 rows are read from the first layer's weights alone. */
enum { PROMPT = 8, LONG_PROMPT = 72, PAGES = 2, LAYERS_MAX = 3 * (9 + CUDA_PARTS_MAX) };

/* Every stage is judged alone: the CPU goes on with the card's residual stream. What a stage adds to a row is compared: the share of its
 * length that may be wrong, and for each value a share of itself and of the row's root mean square. A card multiplies activations in bf16,
 * the CPU in 8 bits where weights have 4 or 8, and a cache in fp8 rounds as coarsely. A kernel that is wrong is wrong by about as much as
 * there is. */
static const double LENGTH_SHARE = 0.15, VALUE_SHARE = 0.25, ROW_SHARE = 0.6;
/* Roundings of fp32 that a stage's sums may differ by, each of the residual's own size. */
static const double ROUNDINGS = 8;
/* An expert may be another one where the router's scores are nearer than this share of their root mean square. */
static const double TIE_SHARE = 0.05;

/* The same steps on both. */
struct pair {
    const struct selftest *test;
    struct backend *card, *cpu;
    int layers[LAYERS_MAX], n_layers; /* one of each kind, and of each card */
    size_t width;                     /* values of a row's residual: hidden, or V4's streams */
    float *before;                    /* [rows][width] residual of both before a stage */
    bool *same_choices;               /* [rows] the same experts so far, and no cached rows to choose */
    int n_rows;
    const char *step; /* of which this is a part */
    bool found;       /* in this step: what follows is a consequence */
    struct selftest_report *report;
    struct mo_error *error;
};

/* ---- comparing ---- */

static void tell(struct pair *p, const char *stage, int layer, const char *what) {
    char where[48];
    snprintf(where, sizeof where, layer < 0 ? "stage %s" : "stage %s of layer %d", stage, layer);
    mo_error_set(p->error, MO_E_INTERNAL, "%s, %s: %s", p->step, where, what);
    p->found = true;
}

struct row_error {
    double length;         /* of the difference, as a share of what the stage added */
    double worst;          /* of one value, as a share of what is allowed */
    int at;                /* where that is */
    double got, want, rms; /* there, and of the row */
};

/* What of a difference is wrong: not what the rounding of the sums makes of numbers this large, and nothing that is not a normal
 * number. A layer may add less to a row than the row's own last bits. */
static double beyond_rounding(float got, float want, float before) {
    const double error = fabs((double)got - (double)want);
    const double size = fmax(fmax(fabs((double)got), fabs((double)want)), fabs((double)before));
    const double unseen = ROUNDINGS * (double)FLT_EPSILON * size + (double)FLT_MIN;
    if (!isfinite(error)) return error;
    return error > unseen ? error - unseen : 0;
}

/* `before` is what both began with; NULL: nothing. */
static struct row_error compare_row(const float *before, const float *got, const float *want, int n) {
    struct row_error e = {0};
    double sum = 0, wrong = 0;
    for (int i = 0; i < n; i++) {
        double added = (double)want[i] - (before ? (double)before[i] : 0);
        double error = beyond_rounding(got[i], want[i], before ? before[i] : 0);
        sum += added * added;
        wrong += error * error;
    }
    e.rms = sqrt(sum / n);
    e.length = sum > 0 ? sqrt(wrong / sum) : wrong != 0 ? INFINITY : 0;
    for (int i = 0; i < n; i++) {
        double added = (double)want[i] - (before ? (double)before[i] : 0);
        double share = beyond_rounding(got[i], want[i], before ? before[i] : 0) /
                       (VALUE_SHARE * fabs(added) + ROW_SHARE * e.rms + 1e-30);
        if (share <= e.worst) continue; /* not so for NaN, past which nothing is worse */
        e.worst = share;
        e.at = i;
        e.got = (double)got[i];
        e.want = (double)want[i];
        if (isnan(share)) break;
    }
    return e;
}

static void judge_row(struct pair *p, const char *stage, int layer, int row, const struct row_error *e) {
    char text[400];
    p->report->checks++;
    if ((e->length <= LENGTH_SHARE && e->worst <= 1) || p->found) return;
    if (!isfinite(e->got)) {
        snprintf(text, sizeof text, "row %d has a value %d that is not finite, expected about %.6g", row, e->at,
                 e->want);
        tell(p, stage, layer, text);
        return;
    }
    snprintf(text, sizeof text,
             "row %d differs from the CPU's by %.3g of its length (%.3g are allowed); the largest error is at value "
             "%d: %.6g, "
             "expected about %.6g, in a row of root mean square %.3g",
             row, e->length, LENGTH_SHARE, e->at, e->got, e->want, e->rms);
    tell(p, stage, layer, text);
}

/* Of the CPU's: a norm takes its square. From there on both may answer anything. */
static bool overflows(const float *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return !(sum <= (double)FLT_MAX);
}

/* What the stages since the last look have added to the residual stream. From here both go on with the card's. */
static void look(struct pair *p, const char *stage, int layer) {
    const size_t width = p->width, bytes = (size_t)p->n_rows * width * sizeof(float);
    const float *got = p->card->ops->streams(p->card);
    float *want =
        (float *)(uintptr_t)p->cpu->ops->streams(p->cpu); /* its own, which is ours to fill between its stages */
    for (int row = 0; row < p->n_rows; row++) {
        const size_t at = (size_t)row * width;
        if (!p->same_choices[row] || p->report->overflowed) continue;
        struct row_error e = compare_row(p->before + at, got + at, want + at, (int)width);
        if (!overflows(want + at, (int)width)) {
            judge_row(p, stage, layer, row, &e);
        } else if (!p->found) {
            p->report->overflowed = true;
        }
    }
    memcpy(p->before, got, bytes);
    memcpy(want, got, bytes);
}

/* ---- experts ---- */

static bool holds(const int32_t *ids, int n, int32_t id) {
    for (int i = 0; i < n; i++) {
        if (ids[i] == id) return true;
    }
    return false;
}

static bool are_same(const int32_t *a, const int32_t *b, int n) {
    for (int i = 0; i < n; i++) {
        if (!holds(a, n, b[i])) return false;
    }
    return true;
}

/* Would these experts be chosen if their scores were a little higher? Scores come by plain C, of what the CPU's router read. */
static bool is_tie(const struct pair *p, int layer, int row, const int32_t *ids) {
    const struct model *m = p->test->model;
    const struct layer *w = &p->test->weights->layers[layer];
    const float *read = ((const struct cpu *)p->cpu)->target + (size_t)row * (size_t)m->hidden;
    struct kern plain;
    float *normed = malloc((size_t)m->hidden * sizeof *normed), *score = malloc((size_t)m->experts * sizeof *score);
    int32_t *chosen = malloc((size_t)m->top_k * sizeof *chosen);
    float *weight = malloc((size_t)m->top_k * sizeof *weight);
    bool tie = false;
    if (normed && score && chosen && weight) {
        double sum = 0;
        kern_init(&plain, CPU_REF);
        plain.rms_norm(read, w->ffn_norm, m->hidden, (float)m->norm_eps, normed);
        plain.gemm[w->router.format](&w->router, 0, m->experts, (const float *const *)&normed, 1, &score);
        for (int e = 0; e < m->experts; e++) sum += (double)score[e] * (double)score[e];
        const float step = (float)(TIE_SHARE * sqrt(sum / m->experts));
        for (int i = 0; i < m->top_k; i++) score[ids[i]] += step;
        cpu_choose_experts(m, w->router_bias, score, chosen, weight);
        tie = are_same(chosen, ids, m->top_k);
    }
    free(normed);
    free(score);
    free(chosen);
    free(weight);
    return tie;
}

static void look_at_choice(struct pair *p, int layer) {
    const int k = p->test->model->top_k;
    const int32_t *got, *want;
    const float *unused;
    char text[160];
    p->card->ops->routing(p->card, &got, &unused);
    p->cpu->ops->routing(p->cpu, &want, &unused);
    for (int row = 0; row < p->n_rows; row++, got += k, want += k) {
        if (p->report->overflowed) continue;
        p->report->checks++;
        if (are_same(got, want, k)) continue;
        p->same_choices[row] = false;
        bool valid = true;
        for (int i = 0; i < k; i++) valid &= got[i] >= 0 && got[i] < p->test->model->experts && !holds(got, i, got[i]);
        if (p->found || (valid && is_tie(p, layer, row, got))) continue;
        int other = 0;
        while (other < k - 1 && holds(want, k, got[other]) && valid) other++;
        snprintf(text, sizeof text,
                 "row %d takes expert %d, which is not among the CPU's, where the scores leave no choice", row,
                 got[other]);
        tell(p, "route", layer, text);
    }
}

/* ---- steps ---- */

static void run_layer(struct pair *p, int layer) {
    const struct model *m = p->test->model;
    struct backend *const both[2] = {p->card, p->cpu};
    for (int b = 0; b < 2; b++) {
        both[b]->ops->attn_in(both[b], layer);
        both[b]->ops->attn(both[b], layer);
        both[b]->ops->attn_out(both[b], layer);
    }
    look(p, "attention", layer);
    if (model_layer_is_dense(m, layer)) {
        for (int b = 0; b < 2; b++) both[b]->ops->ffn_dense(both[b], layer);
        look(p, "ffn_dense", layer);
        return;
    }
    for (int b = 0; b < 2; b++) both[b]->ops->route(both[b], layer);
    /* A card that is asked for its choice earlier makes it in a launch of its own, as no step does. The CPU's router input is looked
     * at, too, which its experts write over. */
    p->card->ops->experts(p->card, layer);
    look_at_choice(p, layer);
    p->cpu->ops->experts(p->cpu, layer);
    look(p, "experts", layer);
}

static void look_at_logits(struct pair *p, const struct batch *batch) {
    const int vocab = p->test->model->vocab;
    const float *got = p->card->ops->logits(p->card), *want = p->cpu->ops->logits(p->cpu);
    for (int i = 0; i < batch->n_logits; i++) {
        const size_t at = (size_t)i * (size_t)vocab;
        if (!p->same_choices[batch->logits_row[i]]) continue;
        struct row_error e = compare_row(NULL, got + at, want + at, vocab);
        if (!p->report->overflowed) judge_row(p, "head", -1, batch->logits_row[i], &e);
    }
}

/* No indexer has to choose: one that chooses may take another of two keys that score nearly alike. */
static bool sees_all(const struct model *m, const struct batch *batch, int row) {
    const struct index_shape shape = model_index_shape(m);
    return !shape.topk || (batch->seqs[0].first_pos + row + 1) / shape.tokens_a_key <= shape.topk;
}

/* `n_layers` of the layers, then the head if logits are wanted. Both backends end the step whatever is found. */
static int run_step(struct pair *p, const char *name, const struct batch *batch, int n_layers) {
    struct backend *const both[2] = {p->card, p->cpu};
    struct mo_error why = {0};
    p->step = name;
    p->n_rows = batch->n_rows;
    memset(p->before, 0, (size_t)batch->n_rows * p->width * sizeof *p->before);
    for (int row = 0; row < batch->n_rows; row++) p->same_choices[row] = sees_all(p->test->model, batch, row);
    for (int b = 0; b < 2; b++) both[b]->ops->begin(both[b], batch);
    for (int b = 0; b < 2; b++) both[b]->ops->embed(both[b]);
    look(p, "embed", -1);
    for (int i = 0; i < n_layers; i++) run_layer(p, p->layers[i]);
    for (int b = 0; b < 2 && batch->n_logits; b++) both[b]->ops->head(both[b]);
    int code = p->card->ops->end(p->card, &why);
    p->cpu->ops->end(p->cpu, NULL); /* what it found came of the card's, or has been seen */
    if (code && code != MO_E_NUMERIC) return mo_error_set(p->error, code, "%s: %s", name, why.message);
    if (code && !p->found && !p->report->overflowed)
        return mo_error_set(p->error, MO_E_INTERNAL, "%s: %s", name, why.message);
    if (!code && !p->found && batch->n_logits) look_at_logits(p, batch);
    return p->found ? MO_E_INTERNAL : 0;
}

/* Ordinary ids, the same in every run: the low half of a vocabulary has no special tokens at its end. */
static void make_tokens(int32_t *token, int n, int vocab) {
    for (int i = 0; i < n; i++) token[i] = (int32_t)((uint32_t)(17 + i * 7919) % (uint32_t)(vocab > 1 ? vocab / 2 : 1));
}

static int run_steps(struct pair *p, const struct backend_options *options) {
    static const int32_t pages[PAGES] = {0, 1}, first_row = 0;
    int32_t token[LONG_PROMPT];
    const int most = smaller(options->max_rows, options->n_pages * KV_PAGE_TOKENS);
    const int short_rows = smaller(PROMPT, most - 1), long_rows = smaller(LONG_PROMPT, most);
    make_tokens(token, LONG_PROMPT, p->test->model->vocab);
    struct batch_seq seq = {.n_rows = short_rows > 0 ? short_rows : 1, .pages = pages};
    struct batch batch = {.n_rows = seq.n_rows, .token = token, .n_seqs = 1, .seqs = &seq};
    int code = run_step(p, "a prompt", &batch, p->n_layers);
    seq = (struct batch_seq){.n_rows = 1, .first_pos = batch.n_rows, .pages = pages, .before = token + batch.n_rows};
    struct batch one = {
        .n_rows = 1, .token = token + PROMPT, .n_seqs = 1, .seqs = &seq, .n_logits = 1, .logits_row = &first_row};
    if (!code) code = run_step(p, "a token after it", &one, p->n_layers);
    seq = (struct batch_seq){.n_rows = long_rows, .pages = pages};
    batch.n_rows = long_rows;
    return code || long_rows <= short_rows ? code : run_step(p, "a longer prompt", &batch, 1);
}

/* ---- the CPU beside it ---- */

static struct backend_options beside(const struct backend_options *card) {
    return (struct backend_options){.threads = card->threads,
                                    .max_rows = LONG_PROMPT,
                                    .max_logits = 1,
                                    .max_seqs = 1,
                                    .n_pages = PAGES,
                                    .kv = card->kv,
                                    .compute = card->compute,
                                    .attention = card->attention,
                                    .batch_invariant = card->batch_invariant};
}

static size_t pair_bytes(const struct model *model) {
    return LONG_PROMPT * (model_residual_dim(model) * sizeof(float) + sizeof(bool));
}

size_t selftest_card_bytes(const struct model *model, const struct backend_options *options) {
    const struct backend_options cpu = beside(options);
    return cpu_backend_scratch_bytes(model, &cpu) + kv_pool_bytes(model, cpu.kv, PAGES, 0) + pair_bytes(model);
}

/* In order, each once. */
static void add_layer(struct pair *p, int layer) {
    int i = 0;
    while (i < p->n_layers && p->layers[i] < layer) i++;
    if (layer >= p->test->model->layers || (i < p->n_layers && p->layers[i] == layer)) return;
    memmove(p->layers + i + 1, p->layers + i, (size_t)(p->n_layers++ - i) * sizeof *p->layers);
    p->layers[i] = layer;
}

static int first_with_ratio(const struct model *m, int ratio) {
    int layer = 0;
    while (layer < m->layers && m->hybrid.ratio[layer] != ratio) layer++;
    return layer;
}

/* V4.1: a layer of each ratio, one with n-gram memory, the last that has rows of another one; and those whose rows all these see, and whose
 * choice among them: without it they would look for rows by whatever lies there. */
static void choose_csa2_layers(struct pair *p, const struct model *m) {
    add_layer(p, first_with_ratio(m, 1));
    add_layer(p, first_with_ratio(m, 2));
    if (m->hybrid.engram.n_layers) add_layer(p, m->hybrid.engram.layer[0]);
    for (int layer = m->layers - 1; layer >= 0; layer--) {
        if (!m->hybrid.ratio[layer] || model_makes_rows(m, layer)) continue;
        add_layer(p, layer);
        break;
    }
}

static void add_sources(struct pair *p, const struct model *m) {
    for (int i = 0; i < p->n_layers; i++) { /* one that is added lies before */
        const int layer = p->layers[i];
        if (!m->hybrid.ratio[layer]) continue;
        add_layer(p, m->hybrid.rows_from[layer]);
        add_layer(p, m->hybrid.choice_from[layer]);
    }
}

static void choose_layers(struct pair *p, const struct model *m, int cpu_layers) {
    add_layer(p, 0);
    add_layer(p, m->dense_layers);
    add_layer(p, m->dense_layers + cpu_layers);
    if (model_is_csa2(m)) {
        choose_csa2_layers(p, m);
    } else if (model_is_hybrid(m)) { /* experts by table and by score; layers with each ratio */
        add_layer(p, m->hybrid.hash_layers);
        add_layer(p, first_with_ratio(m, RATIO_SPARSE));
        add_layer(p, first_with_ratio(m, RATIO_DENSE));
    }
    for (int i = 0; i < p->test->n_parts; i++) add_layer(p, p->test->parts[i].first_layer);
    if (model_is_csa2(m)) add_sources(p, m);
}

int selftest_card(const struct selftest *test, struct backend *card, const struct backend_options *options,
                  struct selftest_report *report, struct mo_error *error) {
    const struct backend_options cpu = beside(options);
    struct pair p = {.test = test, .card = card, .report = report, .error = error};
    float *memory = malloc(pair_bytes(test->model));
    if (!memory) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the self-test");
    p.before = memory;
    p.width = model_residual_dim(test->model);
    p.same_choices = (bool *)(memory + LONG_PROMPT * p.width);
    choose_layers(&p, test->model, options->cpu_layers);
    int code = cpu_backend_open(&p.cpu, test->model, test->weights, &cpu, error);
    if (!code) code = run_steps(&p, options);
    if (p.cpu) p.cpu->ops->close(p.cpu);
    free(memory);
    return code;
}
