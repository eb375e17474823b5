#include "calibrate.h"

#include <stdlib.h>
#include <string.h>
#include "base/progress.h"
#include "forward.h"

/* An expert that few tokens chose is judged by them with care: as if it had also seen so many rows with all inputs alike. */
static const float PRIOR_ROWS = 8;

struct inputs {
    const struct mat *mat;
    float *sums; /* [cols] of squares, later their means; NULL: nothing seen */
    int64_t rows;
};

struct calibration {
    const struct weights *weights;
    struct inputs *inputs; /* [n] by mat */
    int n, n_tokens;
    bool no_memory;
};

static int by_mat(const void *a, const void *b) {
    const struct inputs *x = a, *y = b;
    return x->mat < y->mat ? -1 : x->mat > y->mat;
}

static struct inputs *find_inputs(const struct calibration *c, const struct mat *mat) {
    struct inputs key = {.mat = mat};
    return bsearch(&key, c->inputs, (size_t)c->n, sizeof key, by_mat);
}

static int list_inputs(struct calibration *c, const struct model *model, struct mo_error *error) {
    struct arena *arena = arena_create();
    struct slot *slots;
    int n, code;
    if (!arena) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    code = slots_list(model, arena, &slots, &n, error);
    if (!code && !(c->inputs = calloc((size_t)n, sizeof *c->inputs))) {
        code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d tensors", n);
    }
    for (int i = 0; i < n && !code; i++) {
        if (!slots[i].cols) continue;
        c->inputs[c->n++].mat = weights_matrix(c->weights, slots[i].role, slots[i].layer, slots[i].expert);
    }
    arena_destroy(arena);
    if (!code) qsort(c->inputs, (size_t)c->n, sizeof *c->inputs, by_mat);
    return code;
}

/* The backend's: rows x [n][mat->cols] are about to be multiplied by `mat`. */
static void observe(void *context, const struct mat *mat, const float *const *x, int n) {
    struct calibration *c = context;
    struct inputs *inputs = find_inputs(c, mat);
    if (!inputs) return;
    if (!inputs->sums && !(inputs->sums = calloc((size_t)mat->cols, sizeof(float)))) {
        c->no_memory = true;
        return;
    }
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < mat->cols; k++) inputs->sums[k] += x[i][k] * x[i][k];
    }
    inputs->rows += n;
}

/* Sums to means with 1 on average, drawn towards 1 where there are few rows. */
static void settle(struct inputs *inputs) {
    double mean = 0;
    int cols = inputs->mat->cols;
    if (!inputs->sums) return;
    for (int k = 0; k < cols; k++) mean += (double)inputs->sums[k] / cols / (double)inputs->rows;
    if (!(mean > 0)) { /* nothing but zeros */
        free(inputs->sums);
        inputs->sums = NULL;
        return;
    }
    for (int k = 0; k < cols; k++) {
        inputs->sums[k] = (inputs->sums[k] / (float)mean + PRIOR_ROWS) / ((float)inputs->rows + PRIOR_ROWS);
    }
}

/* One piece of the text, on its own, in the pages from 0 on. */
static int run_piece(struct engine *engine, const int32_t *ids, int n, const int32_t *pages, struct mo_error *error) {
    int chunk = engine->options.max_num_batched_tokens, code = 0;
    for (int first = 0; first < n && !code; first += chunk) {
        int rows = n - first < chunk ? n - first : chunk;
        struct batch_seq seq = {.n_rows = rows, .first_pos = first, .pages = pages};
        struct batch batch = {.n_rows = rows,
                              .token = ids + first,
                              .n_seqs = 1,
                              .seqs = &seq,
                              .n_logits = 1,
                              .logits_row = &(int32_t){rows - 1}}; /* the head's input too, a row a chunk */
        code = forward(engine->backend, &engine->model, &batch, NULL, error);
    }
    return code;
}

static int run_pieces(struct calibration *c, struct engine *engine, const struct token_list *ids,
                      struct mo_error *error) {
    struct progress progress;
    int most = engine->options.max_model_len, code = 0;
    int32_t *pages = calloc((size_t)engine->n_pages, sizeof *pages);
    if (!pages) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    for (int i = 0; i < engine->n_pages; i++) pages[i] = i;
    progress_begin(&progress, "calibrating", "tokens", 1, c->n_tokens);
    for (int at = 0; at < c->n_tokens && !code; at += most) {
        code = run_piece(engine, ids->ids + at, c->n_tokens - at < most ? c->n_tokens - at : most, pages, error);
        progress_update(&progress, at);
    }
    progress_end(&progress);
    free(pages);
    if (!code && c->no_memory)
        code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for what was seen of %d tokens", c->n_tokens);
    return code;
}

static int collect(struct calibration *c, struct engine *engine, const char *text, size_t size, int max_tokens,
                   struct mo_error *error) {
    const struct backend_ops *ops = engine->backend->ops;
    struct linear_observer observer = {c, observe};
    struct token_list ids = {0};
    if (!ops->observe) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "--calibrate: backend %s does not show what it computes",
                            ops->name);
    }
    int code = engine_encode_prompt(engine, text, size, &ids, error);
    c->n_tokens = ids.n < (size_t)max_tokens ? (int)ids.n : max_tokens;
    if (!code && !c->n_tokens) code = mo_error_set(error, MO_E_INVALID, "--calibrate: the text is empty");
    if (!code) code = list_inputs(c, &engine->model, error);
    if (!code) {
        ops->observe(engine->backend, &observer);
        code = run_pieces(c, engine, &ids, error);
        ops->observe(engine->backend, NULL);
    }
    token_list_free(&ids);
    for (int i = 0; i < c->n && !code; i++) settle(&c->inputs[i]);
    return code;
}

int calibration_run(struct calibration **out, struct engine *engine, const char *text, size_t size, int max_tokens,
                    struct mo_error *error) {
    struct calibration *c = calloc(1, sizeof *c);
    if (!c) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    c->weights = &engine->weights;
    int code = collect(c, engine, text, size, max_tokens, error);
    if (code) {
        calibration_free(c);
        return code;
    }
    *out = c;
    return 0;
}

const float *calibration_of(void *calibration, const struct slot *slot) {
    const struct calibration *c = calibration;
    const struct inputs *found = find_inputs(c, weights_matrix(c->weights, slot->role, slot->layer, slot->expert));
    return found ? found->sums : NULL;
}

int calibration_tokens(const struct calibration *calibration) {
    return calibration->n_tokens;
}

void calibration_free(struct calibration *c) {
    if (!c) return;
    for (int i = 0; i < c->n; i++) free(c->inputs[i].sums);
    free(c->inputs);
    free(c);
}
