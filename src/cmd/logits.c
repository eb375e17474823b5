#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "cmd/cmd.h"
#include "cmd/ids.h"
#include "engine/engine.h"
#include "engine/turn.h"
#include "forward.h"

/* `logits` drives the forward pass by hand, chunk by chunk, and writes raw arrays: how anyone checks this engine against
 * another. One sequence, pages 0, 1, 2, ... in order. */

enum { DEFAULT_CHUNK = 512, MAX_CHUNK = 1 << 16 };

struct arguments {
    const char *ids, *out, *hidden, *experts, *expert_weights;
    int chunk, greedy;
    bool all;
};

/* What the taps collect, in the layouts that the files have. */
struct capture {
    const struct model *model;
    int n, first, k, moe_layers; /* prompt tokens; position of the chunk's first row */
    float *hidden;               /* [layers + 1][n][hidden] or NULL */
    int32_t *experts;            /* [moe_layers][n][k] or NULL */
    float *expert_weights;       /* [moe_layers][n][k] or NULL */
};

struct session {
    struct engine *engine;
    const struct arguments *arguments;
    struct token_list ids; /* the prompt, and what follows it */
    struct capture capture;
    float *rows; /* [n_rows][vocab] what --out gets */
    int n_rows;
    int32_t *pages;
};

static int read_ids(struct session *s, struct mo_error *error) {
    int code = ids_read(s->arguments->ids, s->engine->model.vocab, &s->ids, error);
    if (code) return code;
    size_t total = s->ids.n + (size_t)s->arguments->greedy;
    if (total > (size_t)s->engine->options.max_model_len) {
        return mo_error_set(error, MO_E_LIMIT, "%zu tokens are more than the context of %d (--max-model-len)", total,
                            s->engine->options.max_model_len);
    }
    return 0;
}

static void take_hidden(void *context, int index, const float *residual, int n_rows) {
    struct capture *c = context;
    size_t hidden = (size_t)c->model->hidden;
    float *to = c->hidden + ((size_t)index * (size_t)c->n + (size_t)c->first) * hidden;
    memcpy(to, residual, (size_t)n_rows * hidden * sizeof *to);
}

static void take_routing(void *context, int layer, const int32_t *ids, const float *weights, int n_rows) {
    struct capture *c = context;
    size_t at = ((size_t)(layer - c->model->dense_layers) * (size_t)c->n + (size_t)c->first) * (size_t)c->k;
    size_t count = (size_t)n_rows * (size_t)c->k;
    if (c->experts) memcpy(c->experts + at, ids, count * sizeof *ids);
    if (c->expert_weights) memcpy(c->expert_weights + at, weights, count * sizeof *weights);
}

static int prepare(struct session *s, struct mo_error *error) {
    const struct arguments *a = s->arguments;
    const struct model *m = &s->engine->model;
    struct capture *c = &s->capture;
    *c = (struct capture){.model = m, .n = (int)s->ids.n, .k = m->top_k, .moe_layers = m->layers - m->dense_layers};
    size_t n = s->ids.n, pairs = (size_t)c->moe_layers * n * (size_t)c->k;
    s->n_rows = a->greedy ? a->greedy : a->all ? c->n : 1;
    s->rows = calloc((size_t)s->n_rows * (size_t)m->vocab, sizeof *s->rows);
    s->pages = calloc((size_t)s->engine->n_pages, sizeof *s->pages);
    bool failed = !s->rows || !s->pages;
    if (a->hidden) failed |= !(c->hidden = calloc((size_t)(m->layers + 1) * n * (size_t)m->hidden, sizeof *c->hidden));
    if (a->experts) failed |= !(c->experts = calloc(pairs + 1, sizeof *c->experts));
    if (a->expert_weights) failed |= !(c->expert_weights = calloc(pairs + 1, sizeof *c->expert_weights));
    if (failed) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the results of %zu tokens", n);
    for (int i = 0; i < s->engine->n_pages; i++) s->pages[i] = i;
    return 0;
}

/* Computes `n` tokens from position `first`; logits for all of them or for the last, or for none. */
static int compute(struct session *s, int first, int n, int n_logits, const struct forward_tap *tap,
                   struct mo_error *error) {
    const int32_t *tokens = s->ids.ids + first;
    int32_t wanted[MAX_CHUNK];
    for (int i = 0; i < n_logits; i++) wanted[i] = n - n_logits + i;
    struct batch_seq seq = {.first_row = 0, .n_rows = n, .first_pos = first, .pages = s->pages, .before = tokens};
    struct batch batch = {
        .n_rows = n, .token = tokens, .n_seqs = 1, .seqs = &seq, .n_logits = n_logits, .logits_row = wanted};
    return forward(s->engine->backend, &s->engine->model, &batch, tap, error);
}

static int compute_prompt(struct session *s, struct mo_error *error) {
    struct capture *c = &s->capture;
    struct forward_tap tap = {.context = c,
                              .hidden = c->hidden ? take_hidden : NULL,
                              .routing = c->experts || c->expert_weights ? take_routing : NULL};
    size_t vocab = (size_t)c->model->vocab;
    bool all = s->arguments->all && !s->arguments->greedy;
    int chunk = s->engine->options.max_num_batched_tokens;
    for (c->first = 0; c->first < c->n; c->first += chunk) {
        int n = c->n - c->first < chunk ? c->n - c->first : chunk;
        int n_logits = all ? n : c->first + n == c->n;
        int code = compute(s, c->first, n, n_logits, &tap, error);
        if (code) return code;
        memcpy(s->rows + (all ? (size_t)c->first * vocab : 0), s->engine->backend->ops->logits(s->engine->backend),
               (size_t)n_logits * vocab * sizeof(float));
    }
    return 0;
}

/* rows[0] holds the prompt's last logits; every token is the argmax of its row. */
static int generate(struct session *s, struct mo_error *error) {
    size_t vocab = (size_t)s->engine->model.vocab;
    for (int i = 0; i < s->arguments->greedy; i++) {
        int32_t token = sample_argmax(s->rows + (size_t)i * vocab, (int)vocab);
        printf("%s%d", i ? ", " : "[", token);
        if (i + 1 == s->arguments->greedy) break;
        int code = token_list_push(&s->ids, token, error);
        if (!code) code = compute(s, s->capture.n + i, 1, 1, NULL, error);
        if (code) return code;
        memcpy(s->rows + (size_t)(i + 1) * vocab, s->engine->backend->ops->logits(s->engine->backend),
               vocab * sizeof(float));
    }
    puts("]");
    return 0;
}

static int write_array(const char *path, const void *data, size_t count, struct mo_error *error) {
    return path ? file_write(path, data, count * 4, error) : 0; /* fp32 and int32, little-endian as this machine */
}

static int write_results(const struct session *s, struct mo_error *error) {
    const struct arguments *a = s->arguments;
    const struct capture *c = &s->capture;
    size_t pairs = (size_t)c->moe_layers * (size_t)c->n * (size_t)c->k;
    size_t hidden = (size_t)(c->model->layers + 1) * (size_t)c->n * (size_t)c->model->hidden;
    int code = write_array(a->out, s->rows, (size_t)s->n_rows * (size_t)c->model->vocab, error);
    if (!code) code = write_array(a->hidden, c->hidden, hidden, error);
    if (!code) code = write_array(a->experts, c->experts, pairs, error);
    if (!code) code = write_array(a->expert_weights, c->expert_weights, pairs, error);
    return code;
}

static int run(struct session *s, struct mo_error *error) {
    int code = read_ids(s, error);
    if (!code) code = prepare(s, error);
    if (!code) code = compute_prompt(s, error);
    if (!code && s->arguments->greedy) code = generate(s, error);
    if (!code) code = write_results(s, error);
    return code;
}

static void session_free(struct session *s) {
    token_list_free(&s->ids);
    free(s->rows);
    free(s->pages);
    free(s->capture.hidden);
    free(s->capture.experts);
    free(s->capture.expert_weights);
    engine_close(s->engine);
}

int cmd_logits(int argc, char **argv) {
    struct arguments a = {.chunk = DEFAULT_CHUNK};
    struct engine_options options;
    struct cli_flag shared[ENGINE_FLAGS_MAX];
    engine_options_init(&options);
    engine_flags(&options, shared);
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--ids", .type = CLI_STRING, .target = &a.ids, .value = "FILE|1,2,3", .help = "token ids: a list, or a file with a JSON array"},
        {.names = "--out,-o", .type = CLI_STRING, .target = &a.out, .value = "FILE", .help = "logits, fp32 little-endian: [1][vocab], the last position"},
        {.names = "--all", .type = CLI_FLAG, .target = &a.all, .help = "logits of every position: [n][vocab]"},
        {.names = "--hidden", .type = CLI_STRING, .target = &a.hidden, .value = "FILE", .help = "residual stream, fp32 [layers + 1][n][hidden]"},
        {.names = "--experts", .type = CLI_STRING, .target = &a.experts, .value = "FILE", .help = "experts chosen, int32 [expert layers][n][k]"},
        {.names = "--expert-weights", .type = CLI_STRING, .target = &a.expert_weights, .value = "FILE", .help = "their factors, fp32 [expert layers][n][k]"},
        {.names = "--greedy", .type = CLI_INT, .target = &a.greedy, .min = 0, .max = 1 << 24, .value = "N",
         .help = "then N argmax tokens: ids as a JSON array on stdout;\n--out gets the N rows that chose them"},
        {.names = "--chunk", .type = CLI_INT, .target = &a.chunk, .min = 1, .max = MAX_CHUNK, .value = "N", .help = "prompt tokens a pass (default 512)"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "logits",
        .arguments = "MODEL --ids FILE|1,2,3 [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
        .about =
            "Runs token ids through the model and writes raw arrays, so that this engine can be compared with another.",
        .examples = "  moebius logits MODEL --ids 100000,2,3 --out last.f32 --compute f32\n"
                    "  moebius logits MODEL --ids ids.json --all --out all.f32 --hidden h.f32 --experts e.i32",
    };
    struct mo_error error = {0};
    struct session s = {.arguments = &a};
    const char *positional = NULL;
    int n_positionals;
    int code = cli_parse(&command, argc, argv, &positional, &n_positionals, &error);
    if (code > 0) return 0;
    if (n_positionals) options.model = positional;
    if (!code && options.max_num_batched_tokens) {
        code = mo_error_set(&error, MO_E_INVALID,
                            "logits computes one chunk a step: use --chunk for --max-num-batched-tokens");
    }
    options.max_num_batched_tokens = a.chunk;
    options.no_self_test = true; /* with this command one looks into what is wrong */
    options.max_logits = a.all ? a.chunk : 1;
    if (!code && !a.ids) code = mo_error_set(&error, MO_E_INVALID, "--ids is missing");
    if (!code) code = ranks_start(&error);
    if (!code) code = engine_open(&s.engine, &options, &error);
    if (!code) engine_turn_now(s.engine);
    if (!code) code = run(&s, &error);
    session_free(&s);
    return code < 0 ? cli_fail("logits", &error) : 0;
}
