#include "cmd/calibrate.h"

#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "forward.h"

/* An expert that few tokens chose is judged by them with care: as if it had also seen so many rows with all inputs alike. */
static const float PRIOR_ROWS = 8;
static const double GIB = 1 << 30, SHARE_OF_MEMORY = 0.5;

struct inputs {
    const struct mat *mat;
    int layer;
    float *sums; /* [cols] of squares, later their means; NULL: nothing seen */
    int64_t rows;
    bool wants_moments; /* also for the matrices that share these inputs */
    bool has_feedback;  /* then nobody asks for its mean squares */
    bool is_needed;     /* its gptq is, by the batch at hand */
    struct moments moments;
    struct gptq *gptq;
};

struct calibration {
    struct engine *engine;
    struct pool *pool;
    struct inputs *inputs; /* [n] by mat */
    struct token_list ids;
    int n, n_tokens;
    int from, to; /* layers whose moments are there */
    double limit_bytes;
    double runs_s; /* how long the text has run for the batch at hand */
    int code;      /* of what went wrong while the model ran */
    struct mo_error error;
};

/* ---- which inputs a matrix has ---- */

static int by_mat(const void *a, const void *b) {
    const struct inputs *x = a, *y = b;
    return x->mat < y->mat ? -1 : x->mat > y->mat;
}

static struct inputs *find_inputs(const struct calibration *c, const struct mat *mat) {
    struct inputs key = {.mat = mat};
    return bsearch(&key, c->inputs, (size_t)c->n, sizeof key, by_mat);
}

static struct inputs *inputs_of(const struct calibration *c, enum role role, int layer, int expert) {
    return find_inputs(c, weights_matrix(&c->engine->weights, role, layer, expert));
}

/* Matrices that are multiplied by the same rows share their moments; a layer's experts do, though each sees only some of the
 * rows: an expert's own would be few, and many times the memory. NULL: none are gathered. */
static struct inputs *shared_inputs(const struct calibration *c, const struct slot *slot) {
    switch (slot->role) {
    case ROLE_Q:
    case ROLE_Q_A:
    case ROLE_KV_A:
    case ROLE_INDEX_K:
    case ROLE_INDEX_WEIGHTS:
        return inputs_of(c, ROLE_KV_A, slot->layer, 0);
    case ROLE_INDEX_Q:
        return inputs_of(c, ROLE_Q_B, slot->layer, 0);
    case ROLE_DENSE_GATE:
    case ROLE_DENSE_UP:
        return inputs_of(c, ROLE_DENSE_GATE, slot->layer, 0);
    case ROLE_ROUTER:
    case ROLE_SHARED_GATE:
    case ROLE_SHARED_UP:
    case ROLE_EXPERT_GATE:
    case ROLE_EXPERT_UP:
        return inputs_of(c, ROLE_ROUTER, slot->layer, 0);
    case ROLE_Q_B:
    case ROLE_KV_B: /* its keys' half is multiplied from the other side, to the same effect */
    case ROLE_O:
    case ROLE_DENSE_DOWN:
    case ROLE_SHARED_DOWN:
    case ROLE_EXPERT_DOWN:
        return inputs_of(c, slot->role, slot->layer, slot->expert);
    default: /* the head sees a row now and then */
        return NULL;
    }
}

static int list_inputs(struct calibration *c, const struct recipe *recipe, struct mo_error *error) {
    const struct model *model = &c->engine->model;
    struct arena *arena = arena_create();
    struct slot *slots;
    int n = 0;
    if (!arena) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    int code = slots_list(model, arena, &slots, &n, error);
    if (!code && !(c->inputs = calloc((size_t)n, sizeof *c->inputs))) {
        code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d tensors", n);
    }
    for (int i = 0; i < n && !code; i++) {
        if (!slots[i].cols) continue;
        c->inputs[c->n++] = (struct inputs){
            .mat = weights_matrix(&c->engine->weights, slots[i].role, slots[i].layer, slots[i].expert),
            .layer = slots[i].role == ROLE_HEAD ? model->layers - 1 : slots[i].layer,
            .moments = {.cols = slots[i].cols},
        };
    }
    if (!code) qsort(c->inputs, (size_t)c->n, sizeof *c->inputs, by_mat);
    for (int i = 0; i < n && !code && recipe; i++) {
        struct inputs *shared = slots[i].cols ? shared_inputs(c, &slots[i]) : NULL;
        if (!shared || !mat_is_integer(recipe->format[tensor_group_of(slots[i].role)])) continue;
        shared->wants_moments = true;
        inputs_of(c, slots[i].role, slots[i].layer, slots[i].expert)->has_feedback = true;
    }
    arena_destroy(arena);
    return code;
}

/* ---- the model's runs ---- */

static void add_squares(struct calibration *c, struct inputs *inputs, const float *const *x, int n) {
    int cols = inputs->mat->cols;
    if (!inputs->sums && !(inputs->sums = calloc((size_t)cols, sizeof(float)))) {
        c->code = mo_error_set(&c->error, MO_E_NO_MEMORY, "no memory for what was seen of %d inputs", cols);
        return;
    }
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < cols; k++) inputs->sums[k] += x[i][k] * x[i][k];
    }
    inputs->rows += n;
}

/* The backend's: rows x [n][mat->cols] are about to be multiplied by `mat`. */
static void observe(void *context, const struct mat *mat, const float *const *x, int n) {
    struct calibration *c = context;
    struct inputs *inputs = find_inputs(c, mat);
    if (!inputs || inputs->layer < c->from || c->code) return;
    if (!inputs->has_feedback) add_squares(c, inputs, x, n);
    if (inputs->wants_moments && !c->code) c->code = moments_add(&inputs->moments, x, n, c->pool, &c->error);
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

/* One piece of the text, on its own, in the pages from 0 on, through the layers before c->to. */
static int run_piece(const struct calibration *c, const int32_t *ids, int n, const int32_t *pages,
                     struct mo_error *error) {
    struct model model = c->engine->model;
    bool is_whole = c->to == model.layers;
    int chunk = c->engine->options.max_num_batched_tokens, code = 0;
    model.layers = c->to;
    for (int first = 0; first < n && !code; first += chunk) {
        int rows = n - first < chunk ? n - first : chunk;
        struct batch_seq seq = {.n_rows = rows, .first_pos = first, .pages = pages, .before = ids + first};
        struct batch batch = {.n_rows = rows,
                              .token = ids + first,
                              .n_seqs = 1,
                              .seqs = &seq,
                              .n_logits = is_whole, /* the head's input too, a row a chunk */
                              .logits_row = &(int32_t){rows - 1}};
        code = forward(c->engine->backend, &model, &batch, NULL, error);
    }
    return code;
}

static int run_pieces(struct calibration *c, struct mo_error *error) {
    struct progress progress;
    int most = c->engine->options.max_model_len, code = 0;
    int32_t *pages = calloc((size_t)c->engine->n_pages, sizeof *pages);
    if (!pages) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    for (int i = 0; i < c->engine->n_pages; i++) pages[i] = i;
    progress_begin(&progress, "calibrating", "tokens", 1, c->n_tokens);
    for (int at = 0; at < c->n_tokens && !code; at += most) {
        code = run_piece(c, c->ids.ids + at, c->n_tokens - at < most ? c->n_tokens - at : most, pages, error);
        if (!code && c->code) {
            *error = c->error;
            code = c->code;
        }
        progress_update(&progress, at + most < c->n_tokens ? at + most : c->n_tokens);
    }
    progress_end(&progress);
    free(pages);
    return code;
}

/* Runs the text for the layers [c->from, c->to). */
static int run_layers(struct calibration *c, struct mo_error *error) {
    struct linear_observer observer = {c, observe};
    c->engine->backend->ops->observe(c->engine->backend, &observer);
    int code = run_pieces(c, error);
    c->engine->backend->ops->observe(c->engine->backend, NULL);
    for (int i = 0; i < c->n && !code; i++) {
        if (c->inputs[i].layer >= c->from && c->inputs[i].layer < c->to) settle(&c->inputs[i]);
    }
    return code;
}

/* ---- as many layers as fit ---- */

static double layer_bytes(const struct calibration *c, int layer) {
    double bytes = 0;
    for (int i = 0; i < c->n; i++) {
        const struct inputs *inputs = &c->inputs[i];
        if (inputs->layer == layer && inputs->wants_moments) bytes += (double)moments_bytes(inputs->mat->cols);
    }
    return bytes;
}

/* The layer after the last that fits together with `from`; -1: not even that one does. */
static int fit_layers(const struct calibration *c, int from, double *bytes) {
    int to = from;
    for (*bytes = 0; to < c->engine->model.layers; to++) {
        double more = layer_bytes(c, to);
        if (*bytes + more > c->limit_bytes) break;
        *bytes += more;
    }
    return to > from ? to : -1;
}

/* The most that one matrix takes while its errors are fed back. */
static double making_bytes(const struct calibration *c) {
    double most = 0;
    for (int i = 0; i < c->n; i++) {
        int cols = c->inputs[i].wants_moments ? c->inputs[i].mat->cols : 0;
        double bytes = (double)gptq_bytes(cols) + (double)gptq_open_bytes(cols);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Says beforehand what it takes. */
static int plan_passes(struct calibration *c, bool has_moments, double memory_gib, struct mo_error *error) {
    double available = memory_available_bytes(), most = 0, bytes;
    int passes = 0;
    if (!has_moments) {
        log_info("calibrating with %d tokens", c->n_tokens);
        return 0;
    }
    c->limit_bytes = memory_gib > 0 ? memory_gib * GIB : available * SHARE_OF_MEMORY;
    for (int from = 0; from < c->engine->model.layers; passes++) {
        int to = fit_layers(c, from, &bytes);
        if (to < 0) {
            return mo_error_set(error, MO_E_NO_MEMORY,
                                "--calibrate: the moments of layer %d's inputs take %.3f GiB, and may take %.3f "
                                "(--calibration-memory; --calibration-method scales needs none)",
                                from, layer_bytes(c, from) / GIB, c->limit_bytes / GIB);
        }
        most = bytes > most ? bytes : most;
        from = to;
    }
    log_info("calibrating with %d tokens, passes: %d; moments take %.3f GiB at most, work with them %.3f more",
             c->n_tokens, passes, most / GIB, making_bytes(c) / GIB);
    return 0;
}

static int reach_layer(struct calibration *c, int layer, struct mo_error *error) {
    double bytes;
    if (layer < c->to) return 0;
    for (int i = 0; i < c->n; i++) moments_free(&c->inputs[i].moments);
    c->from = layer;
    c->to = fit_layers(c, layer, &bytes);
    double start = clock_now_s();
    int code = run_layers(c, error);
    c->runs_s += clock_now_s() - start;
    return code;
}

/* ---- for quantize.h ---- */

static int prepare_one(struct calibration *c, const struct made *made, struct mo_error *error) {
    const struct slot *slot = made->slot;
    const struct inputs *own = inputs_of(c, slot->role, slot->layer, slot->expert);
    if (made->mat.data == own->mat->data || made->mat.format == MAT_BF16 || made->mat.format == MAT_F16) return 0;
    int code = slot->role == ROLE_EMBED ? 0 : reach_layer(c, own->layer, error);
    struct inputs *shared = shared_inputs(c, slot);
    if (code || !shared || !mat_is_integer(made->mat.format)) return code;
    shared->is_needed = true;
    if (shared->gptq) return 0;
    code = gptq_open(&shared->gptq, &shared->moments, c->pool, error);
    if (!code) return 0;
    char name[NAME_MAX_BYTES];
    return mo_error_prefix(
        error, "--calibrate: %s",
        names_tensor(name, model_naming(&c->engine->model), slot->role, slot->layer, slot->expert, ""));
}

/* The text's runs have a line of their own, and no part in the rate of what is made. */
int calibration_prepare(void *calibration, const struct made *made, int n, double *apart_s, struct mo_error *error) {
    struct calibration *c = calibration;
    int code = 0;
    c->runs_s = 0;
    for (int i = 0; i < c->n; i++) c->inputs[i].is_needed = false;
    for (int i = 0; i < n && !code; i++) code = prepare_one(c, &made[i], error);
    for (int i = 0; i < c->n; i++) {
        if (c->inputs[i].is_needed) continue;
        gptq_close(c->inputs[i].gptq);
        c->inputs[i].gptq = NULL;
    }
    *apart_s += c->runs_s;
    return code;
}

const float *calibration_importance(void *calibration, const struct slot *slot) {
    const struct inputs *found = inputs_of(calibration, slot->role, slot->layer, slot->expert);
    return found ? found->sums : NULL;
}

const struct gptq *calibration_feedback(void *calibration, const struct slot *slot) {
    const struct inputs *shared = shared_inputs(calibration, slot);
    return shared ? shared->gptq : NULL;
}

/* ---- as a whole ---- */

/* Pieces of the context's length; each begins with bos, as all text does that the model has seen. */
static int read_text(struct calibration *c, const char *text, size_t size, int max_tokens, struct mo_error *error) {
    const struct tokenizer *tokenizer = c->engine->tokenizer;
    size_t most = (size_t)c->engine->options.max_model_len;
    struct token_list all = {0};
    int code = engine_encode_prompt(c->engine, text, size, &all, error);
    if (code) code = mo_error_prefix(error, "--calibrate");
    if (!code && !size) code = mo_error_set(error, MO_E_INVALID, "--calibrate: the text is empty");
    bool has_bos = !code && tokenizer_adds_bos(tokenizer) && tokenizer_bos(tokenizer) >= 0;
    for (size_t i = 0; i < all.n && c->ids.n < (size_t)max_tokens && !code; i++) {
        if (has_bos && i && c->ids.n % most == 0) code = token_list_push(&c->ids, tokenizer_bos(tokenizer), error);
        if (!code) code = token_list_push(&c->ids, all.ids[i], error);
    }
    token_list_free(&all);
    if (c->ids.n > (size_t)max_tokens) c->ids.n = (size_t)max_tokens;
    c->n_tokens = (int)c->ids.n;
    return code;
}

static int start(struct calibration *c, const char *text, size_t size, const struct calibration_options *options,
                 struct mo_error *error) {
    const struct backend_ops *ops = c->engine->backend->ops;
    if (!ops->observe) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "--calibrate: backend %s does not show what it computes",
                            ops->name);
    }
    if (model_is_hybrid(&c->engine->model)) { /* o_a has other inputs in each of its groups */
        return mo_error_set(error, MO_E_UNSUPPORTED, "--calibrate: not for %s yet; every format works without it",
                            c->engine->model.architecture);
    }
    int code = read_text(c, text, size, options->max_tokens, error);
    if (!code) code = list_inputs(c, options->recipe, error);
    return code ? code : plan_passes(c, options->recipe, options->memory_gib, error);
}

int calibration_open(struct calibration **out, struct engine *engine, const char *text, size_t size,
                     const struct calibration_options *options, struct mo_error *error) {
    struct calibration *c = calloc(1, sizeof *c);
    if (!c) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    c->engine = engine;
    c->pool = options->pool;
    int code = start(c, text, size, options, error);
    if (code) {
        calibration_close(c);
        return code;
    }
    *out = c;
    return 0;
}

void calibration_close(struct calibration *c) {
    if (!c) return;
    for (int i = 0; i < c->n; i++) {
        free(c->inputs[i].sums);
        moments_free(&c->inputs[i].moments);
        gptq_close(c->inputs[i].gptq);
    }
    free(c->inputs);
    token_list_free(&c->ids);
    free(c);
}
