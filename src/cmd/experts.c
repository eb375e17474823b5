#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "base/progress.h"
#include "cmd/cmd.h"
#include "cmd/ids.h"
#include "cmd/experts_report.h"
#include "forward.h"

/* `experts` runs a text through a model, or lets it write one, notes which experts each token chooses, and says what a cache of
 * them would find. It drives the backend by hand, as `logits` does. Attention is absorbed, so that the choices are those of
 * decoding the same tokens one by one, whatever the chunks. */

enum { DEFAULT_TOKENS = 4096, DEFAULT_CHUNK = 512, MAX_CHUNK = 1 << 16, WINDOW = 2048, MAX_TEXT_BYTES = 256 << 20 };

struct arguments {
    const char *text, *ids, *out, *experts;
    int tokens, generate, chunk;
    uint64_t seed;
    bool json;
};

struct session {
    const struct arguments *arguments;
    struct engine *engine;
    struct token_list ids;
    int32_t bos;             /* -1: none */
    int32_t *pages, *inputs; /* of the window, or the text and its answer, by position */
    struct experts_report report;
    struct progress progress;
    bool is_noted; /* what is computed now belongs to the trace */
};

/* ---- tokens ---- */

static int read_text(struct session *s, struct mo_error *error) {
    const struct arguments *a = s->arguments;
    char *text;
    size_t size;
    if (!s->engine->tokenizer) {
        return mo_error_set(error, MO_E_INVALID, "%s: has no tokenizer for --text: use --ids", s->engine->path);
    }
    int code = file_read(a->text, MAX_TEXT_BYTES, &text, &size, error);
    if (code) return code;
    s->bos = tokenizer_adds_bos(s->engine->tokenizer) ? tokenizer_bos(s->engine->tokenizer) : -1;
    code = tokenizer_encode(s->engine->tokenizer, text, size, false, &s->ids, error);
    free(text);
    if (code) return mo_error_prefix(error, "%s", a->text);
    return s->ids.n ? 0 : mo_error_set(error, MO_E_INVALID, "%s: the text is empty", a->text);
}

static int read_tokens(struct session *s, struct mo_error *error) {
    const struct arguments *a = s->arguments;
    s->bos = -1;
    int code = a->text ? read_text(s, error) : ids_read(a->ids, s->engine->model.vocab, &s->ids, error);
    if (!code && s->ids.n > (size_t)a->tokens) s->ids.n = (size_t)a->tokens;
    return code;
}

static int prepare(struct session *s, struct mo_error *error) {
    const struct arguments *a = s->arguments;
    int context = s->engine->options.max_model_len, n = (int)s->ids.n;
    if (a->generate && n + 1 + a->generate > context) {
        return mo_error_set(error, MO_E_LIMIT,
                            "%d tokens of the text and %d to write do not fit into the context of %d: --tokens takes "
                            "fewer of the text, --max-model-len makes it longer",
                            n, a->generate, context);
    }
    s->pages = calloc((size_t)s->engine->n_pages, sizeof *s->pages);
    s->inputs = calloc((size_t)n + 1 + (size_t)a->generate, sizeof *s->inputs);
    if (!s->pages || !s->inputs) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d tokens", n);
    for (int i = 0; i < s->engine->n_pages; i++) s->pages[i] = i;
    /* Each window has its bos. */
    int most = a->generate ? a->generate : 2 * n;
    return trace_open(&s->report.trace, &s->engine->model, most, error);
}

/* ---- computing ---- */

static void note(void *context, int layer, const int32_t *ids, const float *weights, int n_rows) {
    (void)weights;
    struct session *s = context;
    trace_record(&s->report.trace, s->report.trace.n, layer - s->engine->model.dense_layers, ids, n_rows);
}

/* `n` inputs from position `first`, with logits for the last one if they are wanted. */
static int compute(struct session *s, int first, int n, bool wants_logits, struct mo_error *error) {
    const int32_t last = n - 1;
    const struct forward_tap tap = {.context = s, .routing = note};
    const int32_t *tokens = s->inputs + first;
    const struct batch_seq seq = {.n_rows = n, .first_pos = first, .pages = s->pages, .before = tokens};
    const struct batch batch = {
        .n_rows = n, .token = tokens, .n_seqs = 1, .seqs = &seq, .n_logits = wants_logits, .logits_row = &last};
    int code = forward(s->engine->backend, &s->engine->model, &batch, s->is_noted ? &tap : NULL, error);
    if (!code && s->is_noted) trace_add(&s->report.trace, n, first == 0);
    return code;
}

/* A window of the text, in chunks. */
static int compute_window(struct session *s, const int32_t *ids, int n, bool wants_logits, struct mo_error *error) {
    int n_bos = s->bos >= 0, all = n + n_bos, chunk = s->engine->options.max_num_batched_tokens, code = 0;
    if (n_bos) s->inputs[0] = s->bos;
    memcpy(s->inputs + n_bos, ids, (size_t)n * sizeof *ids);
    for (int at = 0; at < all && !code; at += chunk) {
        int rows = all - at < chunk ? all - at : chunk;
        code = compute(s, at, rows, wants_logits && at + rows == all, error);
        progress_update(&s->progress, s->report.trace.n);
    }
    return code;
}

static int compute_text(struct session *s, struct mo_error *error) {
    int context = s->engine->options.max_model_len, window = (context < WINDOW ? context : WINDOW) - (s->bos >= 0);
    int n = (int)s->ids.n,
        code = window > 0 ? 0 : mo_error_set(error, MO_E_LIMIT, "a context of %d is too short", context);
    s->is_noted = true;
    for (int at = 0; at < n && !code; at += window) {
        code = compute_window(s, s->ids.ids + at, n - at < window ? n - at : window, false, error);
    }
    return code;
}

static bool ends(const struct engine *engine, int32_t token) {
    for (int i = 0; i < engine->n_eos; i++) {
        if (engine->eos[i] == token) return true;
    }
    return false;
}

/* What V4's pages are summed up to is as of the token computed last: that of the text is made once more, from its page's beginning. */
static int go_back(struct session *s, int start, struct mo_error *error) {
    int at = start / KV_PAGE_TOKENS * KV_PAGE_TOKENS, chunk = s->engine->options.max_num_batched_tokens, code = 0;
    if (!model_is_hybrid(&s->engine->model)) return 0;
    s->is_noted = false;
    for (; at < start && !code; at += chunk) {
        code = compute(s, at, start - at < chunk ? start - at : chunk, false, error);
    }
    s->is_noted = true;
    return code;
}

/* `first` [vocab]: the logits behind the text. Where an answer ends by itself, another one begins there. */
static int generate(struct session *s, const float *first, struct sample_scratch *scratch, struct mo_error *error) {
    struct trace *trace = &s->report.trace;
    struct sampling sampling;
    int start = (int)s->ids.n + (s->bos >= 0), at = 0, code = 0;
    uint32_t answer = 0;
    engine_sampling(s->engine, &sampling);
    sampling.seed = s->arguments->seed;
    s->is_noted = true;
    while (trace->n < s->arguments->generate && !code) {
        const float *logits = at ? s->engine->backend->ops->logits(s->engine->backend) : first;
        int32_t token = sample_token(&sampling, logits, NULL, answer, (uint32_t)at, scratch);
        if (at && ends(s->engine, token)) {
            answer++;
            at = 0;
            code = go_back(s, start, error);
            continue;
        }
        s->inputs[start + at] = token;
        code = compute(s, start + at, 1, true, error);
        if (!code) trace->begins[trace->n - 1] = at == 0;
        at++;
        progress_update(&s->progress, trace->n);
    }
    return code;
}

static int compute_answer(struct session *s, struct mo_error *error) {
    struct sample_scratch scratch = {0};
    size_t vocab = (size_t)s->engine->model.vocab;
    float *first = calloc(vocab, sizeof *first);
    int code = first ? sample_scratch_init(&scratch, (int)vocab, error)
                     : mo_error_set(error, MO_E_NO_MEMORY, "no memory for logits");
    if (!code) code = compute_window(s, s->ids.ids, (int)s->ids.n, true, error);
    if (!code) {
        memcpy(first, s->engine->backend->ops->logits(s->engine->backend), vocab * sizeof *first);
        code = generate(s, first, &scratch, error);
    }
    sample_scratch_free(&scratch);
    free(first);
    return code;
}

/* ---- results ---- */

/* As `logits --experts` lays them out, but ascending within a token. */
static int write_choices(const struct trace *trace, const char *path, struct mo_error *error) {
    size_t k = (size_t)trace->model->top_k, n = (size_t)trace->n, layers = (size_t)trace->layers;
    int32_t *out = calloc(layers * n * k, sizeof *out);
    if (!out) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %s", path);
    for (size_t t = 0; t < n; t++) {
        for (size_t l = 0; l < layers; l++) {
            for (size_t j = 0; j < k; j++) out[(l * n + t) * k + j] = trace->choice[(t * layers + l) * k + j];
        }
    }
    int code = file_write(path, out, layers * n * k * sizeof *out, error);
    free(out);
    return code;
}

static int give_results(struct session *s, struct mo_error *error) {
    const struct arguments *a = s->arguments;
    int code = a->experts ? write_choices(&s->report.trace, a->experts, error) : 0;
    if (!code) code = experts_report_settle(&s->report, error);
    if (!code && a->out) code = json_write(experts_report_json(&s->report), a->out, error);
    if (code) return code;
    if (a->json) return json_print(experts_report_json(&s->report), error);
    experts_report_say(&s->report);
    return 0;
}

static int run(struct session *s, struct mo_error *error) {
    const struct arguments *a = s->arguments;
    struct experts_report *r = &s->report;
    r->engine = s->engine;
    r->source = a->text ? a->text : "--ids";
    r->is_generated = a->generate > 0;
    int code = read_tokens(s, error);
    if (!code) code = prepare(s, error);
    if (code) return code;
    progress_begin(&s->progress, "choosing experts", "tokens", 1, a->generate ? a->generate : (double)s->ids.n);
    code = a->generate ? compute_answer(s, error) : compute_text(s, error);
    progress_end(&s->progress);
    if (code) return code;
    r->is_measured = s->engine->store && a->chunk == 1 && !a->generate;
    if (r->is_measured) store_stats_get(s->engine->store, &r->measured);
    return give_results(s, error);
}

static void session_free(struct session *s) {
    token_list_free(&s->ids);
    free(s->pages);
    free(s->inputs);
    experts_report_free(&s->report);
    engine_close(s->engine);
}

static int check_arguments(const struct arguments *a, const struct engine_options *options, struct mo_error *error) {
    if (!a->text == !a->ids) return mo_error_set(error, MO_E_INVALID, "expected --text or --ids");
    if (!options->max_num_batched_tokens) return 0;
    return mo_error_set(error, MO_E_INVALID,
                        "experts computes one chunk a step: use --chunk for --max-num-batched-tokens");
}

static const char about[] =
    "Which of its experts a model uses for a text of yours, and what a cache of them would find: the share of the\n"
    "experts that has to be in memory depends on it (--expert-cache, and `plan --expert-trace`).\n"
    "--text is run as it stands; with --generate it is the prompt, and what the model then writes is looked at: what\n"
    "decoding will meet. Each token's choices are those of decoding it alone. A text longer than 2048 tokens is cut\n"
    "into windows. With --expert-cache and --chunk 1 the engine's own cache is counted beside the simulation.";

int cmd_experts(int argc, char **argv) {
    struct arguments a = {.tokens = DEFAULT_TOKENS, .chunk = DEFAULT_CHUNK, .seed = 1};
    struct engine_options options;
    struct cli_flag shared[ENGINE_FLAGS_MAX];
    engine_options_init(&options);
    engine_flags(&options, shared);
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--text", .type = CLI_STRING, .target = &a.text, .value = "FILE", .help = "the text (- is stdin)"},
        {.names = "--ids", .type = CLI_STRING, .target = &a.ids, .value = "FILE|1,2,3", .help = "or token ids: a list, or a file with a JSON array"},
        {.names = "--tokens", .type = CLI_INT, .target = &a.tokens, .min = 1, .max = 1 << 24, .value = "N", .help = "of the text, at most (default 4096)"},
        {.names = "--generate", .type = CLI_INT, .target = &a.generate, .min = 0, .max = 1 << 24, .value = "N",
         .help = "let the model write N tokens after it, and look at those;\nan answer that ends early is followed by another"},
        {.names = "--seed", .type = CLI_UINT64, .target = &a.seed, .value = "N", .help = "draws them (default 1)"},
        {.names = "--chunk", .type = CLI_INT, .target = &a.chunk, .min = 1, .max = MAX_CHUNK, .value = "N", .help = "tokens of the text a pass (default 512)"},
        {.names = "--out,-o", .type = CLI_STRING, .target = &a.out, .value = "FILE", .help = "write the report for `plan --expert-trace` too"},
        {.names = "--experts", .type = CLI_STRING, .target = &a.experts, .value = "FILE", .help = "the choices themselves, int32 [expert layers][n][k]"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "for programs"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "experts",
        .arguments = "MODEL --text FILE [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
        .about = about,
        .examples = "  moebius experts MODEL --text book.txt\n"
                    "  moebius experts MODEL --text prompt.txt --generate 1000 -o book.experts.json\n"
                    "  moebius plan MODEL --experts disk --expert-trace book.experts.json\n"
                    "  moebius experts MODEL --text book.txt --chunk 1 --expert-cache 8",
    };
    struct mo_error error = {0};
    struct session s = {.arguments = &a};
    const char *positional = NULL;
    int n_positionals, code = cli_parse(&command, argc, argv, &positional, &n_positionals, &error);
    if (code > 0) return 0;
    if (n_positionals) options.model = positional;
    if (!code) code = check_arguments(&a, &options, &error);
    options.max_num_batched_tokens = a.chunk;
    options.max_logits = 1;
    if (options.attention == ATTENTION_AUTO) options.attention = ATTENTION_ABSORBED;
    if (!code) code = ranks_start(&error);
    if (!code) code = engine_open(&s.engine, &options, &error);
    if (!code) code = run(&s, &error);
    session_free(&s);
    return code < 0 ? cli_fail("experts", &error) : 0;
}
