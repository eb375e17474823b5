#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "cmd/cmd.h"
#include "engine/turn.h"
#include "cmd/eval/heldout.h"
#include "cmd/eval/report.h"
#include "cmd/eval/text.h"

/* `eval` measures a model's quality: for each setting it opens an engine, measures, and gives a row. */

enum {
    SETTINGS_MAX = 32,
    DEFAULT_LINES = 200,
    DEFAULT_FUNCTIONS = 200,
    MAX_CASES = 1000000,
    DEFAULT_SEQS = 16,
    DEFAULT_CHUNK = 512,
    MAX_WINDOW = 1 << 16,
    MAX_TEXT_BYTES = 256 << 20,
};
static const char default_heldout[] = "tests/data/heldout";

static const char *const kv_words[] = {"auto", "f32", "bf16", "fp8", NULL};
static const char *const compute_words[] = {"fast", "f32", NULL};

struct arguments {
    struct eval_plan plan;
    const char *quantization, *kv, *compute;
    char recipes[1024]; /* the words of `quantization`, each with its end */
    bool json, heldout_given, lines_given, functions_given, seed_given, save_format_given;
    struct eval_setting settings[SETTINGS_MAX];
    int n_settings;
};

/* What lives as long as the command. */
struct session {
    const struct arguments *arguments;
    struct engine_options options;
    struct eval_documents documents;
    char *text;
    size_t text_size;
    struct eval_result results[SETTINGS_MAX];
    json_t *rows;
};

/* ---- settings ---- */

static int find_word(const char *const *words, const char *text, size_t size) {
    for (int i = 0; words[i]; i++) {
        if (strlen(words[i]) == size && !memcmp(words[i], text, size)) return i;
    }
    return -1;
}

/* "f32,bf16" to indexes into `words`: returns how many, or a negative code. */
static int parse_words(const char *flag, const char *text, const char *const *words, int out[SETTINGS_MAX],
                       struct mo_error *error) {
    int n = 0;
    for (const char *at = text;; at++) {
        size_t size = strcspn(at, ",");
        int index = find_word(words, at, size);
        if (index < 0) {
            char known[64] = "";
            for (int i = 0; words[i]; i++) sprintf(known + strlen(known), "%s%s", i ? ", " : "", words[i]);
            return mo_error_set(error, MO_E_INVALID, "%s: expected one or several of %s; found \"%s\"", flag, known,
                                text);
        }
        if (n == SETTINGS_MAX) return mo_error_set(error, MO_E_INVALID, "%s: more than %d", flag, SETTINGS_MAX);
        out[n++] = index;
        at += size;
        if (!*at) return n;
    }
}

/* "auto,int8,int4,head=bf16" to auto, int8 and "int4,head=bf16": what holds a = belongs to the word before. Returns how
 * many, or a negative code; each word is checked when its engine opens. */
static int split_recipes(struct arguments *a, const char *out[SETTINGS_MAX], struct mo_error *error) {
    int n = 0;
    if ((size_t)snprintf(a->recipes, sizeof a->recipes, "%s", a->quantization) >= sizeof a->recipes) {
        return mo_error_set(error, MO_E_INVALID, "--quantization: more than %zu characters", sizeof a->recipes - 1);
    }
    for (char *comma = NULL, *word = a->recipes;; word = comma + 1) {
        size_t size = strcspn(word, ",");
        bool belongs = comma && memchr(word, '=', size);
        if (size == 0)
            return mo_error_set(error, MO_E_INVALID, "--quantization: an empty word in \"%s\"", a->quantization);
        if (!belongs && n == SETTINGS_MAX)
            return mo_error_set(error, MO_E_INVALID, "--quantization: more than %d", SETTINGS_MAX);
        if (!belongs && comma) *comma = 0;
        if (!belongs) out[n++] = word;
        comma = word + size;
        if (!*comma) return n;
    }
}

/* All weights with every cache and every way to compute. */
static int settle_settings(struct arguments *a, struct mo_error *error) {
    int kv[SETTINGS_MAX], compute[SETTINGS_MAX];
    const char *recipes[SETTINGS_MAX];
    int n_kv = parse_words("--kv-cache-dtype", a->kv, kv_words, kv, error);
    int n_compute = n_kv < 0 ? n_kv : parse_words("--compute", a->compute, compute_words, compute, error);
    int n_recipes = n_compute < 0 ? n_compute : split_recipes(a, recipes, error);
    if (n_recipes < 0) return n_recipes;
    if (n_recipes * n_kv * n_compute > SETTINGS_MAX) {
        return mo_error_set(error, MO_E_INVALID, "%d rows are more than %d", n_recipes * n_kv * n_compute,
                            SETTINGS_MAX);
    }
    for (int i = 0; i < n_recipes * n_kv * n_compute; i++) {
        a->settings[a->n_settings++] = (struct eval_setting){.quantization = recipes[i / n_kv / n_compute],
                                                             .kv = kv[i % n_kv],
                                                             .compute = compute[i / n_kv % n_compute]};
    }
    return 0;
}

static void eval_setting_apply(const struct eval_setting *setting, struct engine_options *options) {
    options->quantization = setting->quantization;
    options->kv = setting->kv;
    options->compute = setting->compute;
}

/* ---- arguments that do not go together ---- */

static int check_text_arguments(const struct arguments *a, struct mo_error *error) {
    if (a->heldout_given || a->lines_given || a->functions_given || a->seed_given || a->plan.answers) {
        return mo_error_set(error, MO_E_INVALID,
                            "--heldout, --fim, --parseable, --seed and --answers are not for --text");
    }
    if (a->plan.save && a->n_settings > 1) {
        return mo_error_set(error, MO_E_INVALID, "--save-logits stores one row, these settings give %d", a->n_settings);
    }
    if (a->save_format_given && !a->plan.save) {
        return mo_error_set(error, MO_E_INVALID, "--logits-format is for --save-logits");
    }
    return 0;
}

static int check_heldout_arguments(const struct arguments *a, struct mo_error *error) {
    if (a->plan.save || a->plan.reference || a->plan.window || a->save_format_given) {
        return mo_error_set(error, MO_E_INVALID,
                            "--save-logits, --logits-format, --reference and --window need a --text FILE");
    }
    if (a->heldout_given || file_is_directory(default_heldout)) return 0;
    return mo_error_set(error, MO_E_INVALID,
                        "there is no %s here: --heldout DIR names a folder with Python files, --text FILE any text",
                        default_heldout);
}

static void settle_options(struct engine_options *options) {
    if (!options->max_num_seqs) options->max_num_seqs = DEFAULT_SEQS;
    if (!options->max_num_batched_tokens) options->max_num_batched_tokens = DEFAULT_CHUNK;
    options->max_logits = options->max_num_batched_tokens;
}

/* ---- the run ---- */

static int read_texts(struct session *s, struct mo_error *error) {
    const struct eval_plan *plan = &s->arguments->plan;
    if (!plan->text) return eval_documents_read(&s->documents, plan->heldout, error);
    return file_read(plan->text, MAX_TEXT_BYTES, &s->text, &s->text_size, error);
}

/* The format of most weights: the experts', or without experts the feed-forward's. */
static const char *weights_name(const struct engine *engine) {
    const struct layer *last = &engine->weights.layers[engine->model.layers - 1];
    bool is_dense = model_layer_is_dense(&engine->model, engine->model.layers - 1);
    return mat_format_name(is_dense ? last->dense.gate.format : last->experts[0].gate.format);
}

static int measure(struct session *s, struct engine *engine, struct eval_result *result, struct mo_error *error) {
    const struct eval_plan *plan = &s->arguments->plan;
    if (!engine->tokenizer) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s has no tokenizer.json: text cannot be measured", engine->path);
    }
    result->weights = weights_name(engine);
    result->kv = kv_words[engine->options.kv];
    result->compute = compute_words[engine->options.compute];
    int code = checkpoint_hash(&engine->checkpoint, 0, result->hash, error);
    double start = clock_now_s();
    if (!code && plan->text) code = eval_text(engine, plan, s->text, s->text_size, result, error);
    if (!code && !plan->text) code = eval_heldout(engine, plan, &s->documents, result, error);
    result->seconds = clock_now_s() - start;
    return code;
}

static int report(struct session *s, const struct engine *engine, const struct eval_result *result,
                  struct mo_error *error) {
    const struct eval_plan *plan = &s->arguments->plan;
    if (!s->arguments->json) {
        eval_report_print(engine, plan, result, &s->results[0]);
        return 0;
    }
    json_t *row = eval_report_json(engine, plan, result, &s->results[0]);
    return row && json_array_append_new(s->rows, row) == 0 ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory");
}

/* JSON lines: each answer with its row's settings. */
static int write_answers(const struct session *s, struct mo_error *error) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    bool failed = !out;
    for (int i = 0; i < s->arguments->n_settings && out; i++) {
        const struct eval_result *r = &s->results[i];
        for (size_t j = 0; j < json_array_size(r->answers); j++) {
            json_t *line = json_pack("{ss ss ss}", "weights", r->weights, "kv", r->kv, "compute", r->compute);
            failed |= !line || json_object_update(line, json_array_get(r->answers, j)) || json_dumpf(line, out, 0);
            failed |= fputc('\n', out) == EOF;
            json_decref(line);
        }
    }
    if (out) failed |= fclose(out) != 0;
    int code = failed ? mo_error_set(error, MO_E_NO_MEMORY, "no memory for the answers")
                      : file_write(s->arguments->plan.answers, text, size, error);
    free(text);
    return code;
}

static int run_row(struct session *s, int index, struct mo_error *error) {
    struct engine *engine = NULL;
    struct engine_options options = s->options;
    if (s->arguments->plan.answers) s->results[index].answers = json_array();
    eval_setting_apply(&s->arguments->settings[index], &options);
    int code = engine_open(&engine, &options, error);
    if (code > 0) return 0; /* of several processes another one measures */
    if (!code) engine_turn_now(engine);
    if (!code) code = measure(s, engine, &s->results[index], error);
    if (!code) code = report(s, engine, &s->results[index], error);
    engine_close(engine);
    return code;
}

static int run(struct session *s, struct mo_error *error) {
    s->rows = json_array();
    bool measures = ranks_self() == 0;
    int code = measures ? read_texts(s, error) : 0;
    for (int i = 0; i < s->arguments->n_settings && !code; i++) code = run_row(s, i, error);
    if (!measures) return code;
    if (!code && s->arguments->plan.answers) code = write_answers(s, error);
    if (code) return code;
    if (!s->arguments->json) {
        eval_report_print_reasons(&s->results[0]);
        return 0;
    }
    return json_print(json_incref(s->rows), error);
}

static int open_and_run(const struct arguments *a, const struct engine_options *options, struct mo_error *error) {
    struct session *session = calloc(1, sizeof *session);
    if (!session) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    session->arguments = a;
    session->options = *options;
    settle_options(&session->options);
    int code = run(session, error);
    eval_documents_free(&session->documents);
    for (int i = 0; i < a->n_settings; i++) json_decref(session->results[i].answers);
    json_decref(session->rows);
    free(session->text);
    free(session);
    return code;
}

/* The engine's flags, but for those that eval has no use for. */
static void shared_flags(struct engine_options *options, struct cli_flag flags[ENGINE_FLAGS_MAX]) {
    static const char *const useless[] = {"--chat-template", "--generation-config", "--batch-invariant", NULL};
    int n = 0;
    engine_flags(options, flags);
    for (int i = 0; flags[i].names; i++) {
        if (find_word(useless, flags[i].names, strlen(flags[i].names)) < 0) flags[n++] = flags[i];
    }
    flags[n] = (struct cli_flag){0};
}

static const char about[] =
    "Measures a model's quality on text that it has not seen: every *.py file below a folder (default, in the\n"
    "project's tree: tests/data/heldout). The first row is the model as it is stored; lists of weights, caches and "
    "ways\n"
    "to compute give a row for each combination, with the change of bits per byte against the first.\n"
    "  bits/byte        bos and up to 2048 tokens of each file: negative log2 likelihood over those tokens' bytes\n"
    "  top-1            share of these tokens that the model's first choice predicts\n"
    "  lines filled in  a line of 8 or more non-blank characters that occurs once in its file is cut out; whole lines\n"
    "                   of up to 2400 bytes before and after it are the prompt; the greedy answer must be the line,\n"
    "                   byte for byte, and end there\n"
    "  functions parse  whole lines of up to 4800 bytes, the last a def line, are the prompt. Of up to 192 greedy "
    "tokens\n"
    "                   those before the first line that is not blank and not deeper than the def belong to the\n"
    "                   function; at the limit, whole lines only. At least 2 lines that are not blank must be\n"
    "                   produced, and Python's ast.parse must take the function. This alone runs python3, once a\n"
    "                   row; without it there is no figure, and the reason is said.\n"
    "Lines are drawn with --seed, each with the same chance: the same seed gives the same ones. Attention is absorbed\n"
    "unless --attention says otherwise, so that a row is the same on any number of threads and in any batch.\n"
    "--text measures any text instead: cut into windows, each computed by itself after bos, so that every token is\n"
    "counted once. With --reference, KL is the divergence of this model from the stored logits, in nats a token.";

int cmd_eval(int argc, char **argv) {
    struct arguments a = {.quantization = "auto", .kv = "auto", .compute = "fast"};
    struct engine_options options;
    struct cli_flag shared[ENGINE_FLAGS_MAX];
    struct eval_plan *plan = &a.plan;
    *plan = (struct eval_plan){
        .heldout = default_heldout, .n_lines = DEFAULT_LINES, .n_functions = DEFAULT_FUNCTIONS, .seed = 1};
    engine_options_init(&options);
    options.attention = ATTENTION_ABSORBED; /* with two forms, the size of a batch would show in the last digits */
    shared_flags(&options, shared);
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--heldout", .type = CLI_STRING, .target = &plan->heldout, .value = "DIR", .given = &a.heldout_given, .help = "folder with the text (default tests/data/heldout, if it is here)"},
        {.names = "--fim", .type = CLI_INT, .target = &plan->n_lines, .min = 0, .max = MAX_CASES, .value = "N", .given = &a.lines_given, .help = "lines to fill in, at most (default 200)"},
        {.names = "--parseable", .type = CLI_INT, .target = &plan->n_functions, .min = 0, .max = MAX_CASES, .value = "N", .given = &a.functions_given, .help = "functions to write, at most (default 200)"},
        {.names = "--seed", .type = CLI_UINT64, .target = &plan->seed, .value = "N", .given = &a.seed_given, .help = "draws the lines and functions (default 1)"},
        {.names = "--answers", .type = CLI_STRING, .target = &plan->answers, .value = "OUT", .help = "write what was asked and answered, JSON lines"},
        {.names = "--kv-cache-dtype,--kv", .type = CLI_STRING, .target = &a.kv, .value = "f32,bf16,...", .help = "formats of the latent cache: auto, f32, bf16, fp8 (default auto)"},
        {.names = "--quantization,--quant,-q", .type = CLI_STRING, .target = &a.quantization, .value = "auto,int4,...", .help = "weights: auto (as stored), bf16, fp8, int8, int4 (default auto)"},
        {.names = "--compute", .type = CLI_STRING, .target = &a.compute, .value = "fast,f32", .help = "ways to compute (default fast)"},
        {.names = "--attention", .type = CLI_CHOICE, .target = &options.attention, .choices = "auto|absorbed|expanded", .help = "form of latent attention (default absorbed)"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "an array of rows"},
        {.names = "Any text", .type = CLI_HEADING},
        {.names = "--text", .type = CLI_STRING, .target = &plan->text, .value = "FILE", .help = "perplexity of this text (- is stdin)"},
        {.names = "--window", .type = CLI_INT, .target = &plan->window, .min = 2, .max = MAX_WINDOW, .value = "N", .help = "tokens of a window (default 2048, or the context if shorter)"},
        {.names = "--save-logits", .type = CLI_STRING, .target = &plan->save, .value = "OUT", .help = "store the logits of every token"},
        {.names = "--logits-format", .type = CLI_CHOICE, .target = &plan->save_format, .choices = "f16|f32", .given = &a.save_format_given, .help = "of what is stored (default f16)"},
        {.names = "--reference", .type = CLI_STRING, .target = &plan->reference, .value = "OUT", .help = "compare with the stored logits of the same text"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "eval",
        .arguments = "MODEL [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
        .about = about,
        .examples = "  moebius eval models/demo\n"
                    "  moebius eval MODEL --quant auto,int8,int4 --kv f32,bf16,fp8 --fim 0 --parseable 0 --json\n"
                    "  moebius eval MODEL --text book.txt --compute f32 --save-logits book.logits\n"
                    "  moebius eval MODEL --text book.txt --kv fp8 --reference book.logits",
    };
    struct mo_error error = {0};
    const char *positional = NULL;
    int n_positionals, code = cli_parse(&command, argc, argv, &positional, &n_positionals, &error);
    if (code > 0) return 0;
    if (n_positionals) options.model = positional;
    if (!code) code = settle_settings(&a, &error);
    if (!code) code = plan->text ? check_text_arguments(&a, &error) : check_heldout_arguments(&a, &error);
    if (!code) code = ranks_start(&error);
    if (!code) code = open_and_run(&a, &options, &error);
    return code < 0 ? cli_fail("eval", &error) : 0;
}
