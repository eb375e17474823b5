#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "cmd/cmd.h"
#include "cmd/run/chat.h"
#include "cmd/run/generate.h"
#include "cmd/sampling.h"
#include "text/fim.h"

enum { DEFAULT_TOKENS = 256, DEFAULT_CHAT_TOKENS = 2048, MAX_TEXT_BYTES = 256 << 20 };

struct arguments {
    const char *prompt, *file, *prefix, *suffix, *system;
    int max_tokens;
    bool has_max_tokens, chat, json, ignore_eos, echo;
    struct cli_list stop;
    const char *schema, *rules, *rules_file, *regex;
    struct sampling_flags sampling;
};

/* Prefix, hole and suffix: both files are encoded as plain text. */
static int encode_fim(const struct engine *engine, const struct arguments *a, struct token_list *out,
                      struct mo_error *error) {
    char *prefix = NULL, *suffix = NULL;
    size_t prefix_size = 0, suffix_size = 0;
    if (!engine->tokenizer) return mo_error_set(error, MO_E_UNSUPPORTED, "%s has no tokenizer.json", engine->path);
    int code = a->prefix ? file_read(a->prefix, MAX_TEXT_BYTES, &prefix, &prefix_size, error) : 0;
    if (!code && a->suffix) code = file_read(a->suffix, MAX_TEXT_BYTES, &suffix, &suffix_size, error);
    if (!code) {
        code = fim_encode(engine->tokenizer, prefix ? prefix : "", prefix_size, suffix ? suffix : "", suffix_size, out,
                          error);
    }
    free(prefix);
    free(suffix);
    return code;
}

static int encode(const struct engine *engine, const struct arguments *a, struct token_list *out,
                  struct mo_error *error) {
    if (a->prefix || a->suffix) return encode_fim(engine, a, out, error);
    if (a->prompt) return engine_encode_prompt(engine, a->prompt, strlen(a->prompt), out, error);
    char *text;
    size_t size;
    int code = file_read(a->file, MAX_TEXT_BYTES, &text, &size, error);
    if (code) return code;
    code = engine_encode_prompt(engine, text, size, out, error);
    free(text);
    return code;
}

static const char *finish_name(enum finish_reason finish) {
    static const char *const names[] = {"none", "stop", "length", "cancelled", "error"};
    return names[finish];
}

static int print_json(const struct generation *g, struct mo_error *error) {
    json_t *root = json_pack("{so ss si si sf sf}", "text", json_stringn(g->text ? g->text : "", g->text_size),
                             "finish_reason", finish_name(g->finish), "prompt_tokens", g->n_prompt, "completion_tokens",
                             g->n_generated, "first_token_s", g->first_token_s, "total_s", g->total_s);
    int failed = !root || (json_dumpf(root, stdout, 0) && !ferror(stdout)); /* main looks at the stream */
    putchar('\n');
    json_decref(root);
    return failed ? mo_error_set(error, MO_E_NO_MEMORY, "no memory for the answer in JSON") : 0;
}

static int complete(struct engine *engine, const struct arguments *a, struct sched_request *request,
                    struct mo_error *error) {
    struct token_list prompt = {0};
    struct generation answer = {0};
    int32_t fim[3];
    bool is_fim = a->prefix || a->suffix;
    int code = encode(engine, a, &prompt, error);
    if (!code && prompt.n == 0) code = mo_error_set(error, MO_E_INVALID, "the prompt is empty");
    if (!code && is_fim) { /* a model that opens another hole has finished this one */
        request->n_stop_tokens = fim_ids(engine->tokenizer, fim);
        request->stop_tokens = fim;
    }
    request->prompt = prompt.ids;
    request->n_prompt = (int)prompt.n;
    request->grammar_after = engine_reasoning_end(engine, &prompt);
    if (!code && a->echo && a->prompt && !a->json) fputs(a->prompt, stdout);
    if (!code) code = generate(engine, request, !a->json, &answer, error);
    if (!code && a->json) code = print_json(&answer, error);
    if (!code && !a->json) {
        putchar('\n');
        generation_print_timings(&answer);
    }
    free(answer.text);
    token_list_free(&prompt);
    return code;
}

static int check_arguments(const struct arguments *a, struct mo_error *error) {
    int sources = (a->prompt != NULL) + (a->file != NULL) + (a->prefix || a->suffix);
    if (a->chat && (a->file || a->prefix || a->suffix)) {
        return mo_error_set(error, MO_E_INVALID, "--chat does not go with --file, --prefix or --suffix");
    }
    if ((a->schema != NULL) + (a->rules || a->rules_file) + (a->regex != NULL) > 1 || (a->rules && a->rules_file)) {
        return mo_error_set(
            error, MO_E_INVALID,
            "give one of --json-schema, --regex, --grammar and --grammar-file: an answer has one shape");
    }
    if (a->system && !a->chat) return mo_error_set(error, MO_E_INVALID, "--system goes with --chat only");
    if (a->echo && !a->prompt) return mo_error_set(error, MO_E_INVALID, "--echo goes with -p only");
    if (a->chat && a->json) return mo_error_set(error, MO_E_INVALID, "--json does not go with --chat");
    if (!a->chat && sources != 1) {
        return mo_error_set(error, MO_E_INVALID, "give one of -p PROMPT, -f FILE, --prefix/--suffix FILE, or --chat");
    }
    return 0;
}

/* What the answer must look like, if anything was said: the caller's. */
static int read_grammar(const struct engine *engine, const struct arguments *a, struct grammar **grammar,
                        struct mo_error *error) {
    const char *text = a->schema ? a->schema : a->regex ? a->regex : a->rules, *file = a->rules_file;
    const char *flag = a->schema ? "--json-schema" : a->regex ? "--regex" : file ? "--grammar-file" : "--grammar";
    enum grammar_kind kind = a->schema ? GRAMMAR_JSON_SCHEMA : a->regex ? GRAMMAR_REGEX : GRAMMAR_GBNF;
    if (!text && !file) return 0;
    if (!engine->grammars) return mo_error_set(error, MO_E_UNSUPPORTED, "%s has no tokenizer.json", engine->path);
    if (a->schema && a->schema[strspn(a->schema, " \t\r\n")] != '{') file = a->schema;
    char *read = NULL;
    size_t size = text ? strlen(text) : 0;
    int code = file ? file_read(file, GRAMMAR_TEXT_MAX, &read, &size, error) : 0;
    if (!code) code = grammar_cache_get(engine->grammars, kind, read ? read : text, size, grammar, error);
    if (code) mo_error_prefix(error, "%s", flag);
    free(read);
    return code;
}

static int run(struct engine *engine, struct arguments *a, struct mo_error *error) {
    struct sched_request request = {
        .n_logprobs = -1, .ignore_eos = a->ignore_eos, .stop = a->stop.items, .n_stop = a->stop.n};
    request.max_tokens = a->has_max_tokens ? a->max_tokens : a->chat ? DEFAULT_CHAT_TOKENS : DEFAULT_TOKENS;
    engine_sampling(engine, &request.sampling);
    int code = sampling_flags_apply(&a->sampling, engine->model.vocab, &request.sampling, error);
    if (!code) code = read_grammar(engine, a, &request.grammar, error);
    if (!code) code = engine_start(engine, error);
    if (!code) {
        generate_catch_interrupt();
        code =
            a->chat ? chat_loop(engine, &request, a->system, a->prompt, error) : complete(engine, a, &request, error);
    }
    grammar_release(request.grammar);
    return code;
}

int cmd_run(int argc, char **argv) {
    struct arguments a = {0};
    struct engine_options options;
    struct engine *engine = NULL;
    struct cli_flag shared[ENGINE_FLAGS_MAX + SAMPLING_FLAGS_MAX];
    engine_options_init(&options);
    options.only_scheduled = true;
    sampling_flags_table(&a.sampling, shared);
    int n = 0;
    while (shared[n].names) n++;
    engine_flags(&options, shared + n);
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--prompt,-p", .type = CLI_STRING, .target = &a.prompt, .value = "TEXT", .help = "continue this text; with --chat, the first message"},
        {.names = "--file,-f", .type = CLI_STRING, .target = &a.file, .value = "FILE", .help = "continue this file's text (- is standard input)"},
        {.names = "--prefix", .type = CLI_STRING, .target = &a.prefix, .value = "FILE", .help = "fill in the middle: what comes before the hole"},
        {.names = "--suffix", .type = CLI_STRING, .target = &a.suffix, .value = "FILE", .help = "fill in the middle: what comes after it"},
        {.names = "--chat", .type = CLI_FLAG, .target = &a.chat, .help = "talk; ctrl-C stops an answer"},
        {.names = "--system", .type = CLI_STRING, .target = &a.system, .value = "TEXT", .help = "the system message of --chat"},
        {.names = "--max-tokens,--predict,--n-predict,-n", .type = CLI_INT, .target = &a.max_tokens, .given = &a.has_max_tokens, .min = 0, .max = 1 << 26,
         .value = "N", .help = "tokens to generate (default 256; with --chat 2048)"},
        {.names = "--stop", .type = CLI_LIST, .target = &a.stop, .value = "TEXT", .help = "end where this text appears; repeatable"},
        {.names = "--json-schema,-j", .type = CLI_STRING, .target = &a.schema, .value = "TEXT|FILE",
         .help = "the answer is JSON that this schema allows"},
        {.names = "--regex", .type = CLI_STRING, .target = &a.regex, .value = "TEXT", .help = "the answer matches this expression"},
        {.names = "--grammar", .type = CLI_STRING, .target = &a.rules, .value = "TEXT", .help = "the answer follows these rules (llama.cpp's GBNF)"},
        {.names = "--grammar-file", .type = CLI_STRING, .target = &a.rules_file, .value = "FILE", .help = "the same from a file"},
        {.names = "--ignore-eos", .type = CLI_FLAG, .target = &a.ignore_eos, .help = "go on past the end-of-text token"},
        {.names = "--echo", .type = CLI_FLAG, .target = &a.echo, .help = "print the prompt before its continuation"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "one JSON object with text and timings instead of a stream"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "run",
        .arguments = "MODEL (-p TEXT | -f FILE | --prefix FILE --suffix FILE | --chat) [flags]",
        .about = "Completes a prompt, fills the middle between two files, or chats. Text streams to standard output, "
                 "one line of\n"
                 "timings goes to standard error.",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
        .examples = "  moebius run MODEL -p 'def fibonacci(n):' -n 80 --temperature 0\n"
                    "  moebius run MODEL --prefix head.py --suffix tail.py\n"
                    "  moebius run MODEL --chat --system 'You are terse.'",
    };
    struct mo_error error = {0};
    const char *positional = NULL;
    int n_positionals, code = cli_parse(&command, argc, argv, &positional, &n_positionals, &error);
    if (code > 0) return 0;
    if (n_positionals) options.model = positional;
    options.max_grammars = a.schema || a.regex || a.rules || a.rules_file;
    if (!code) code = check_arguments(&a, &error);
    if (!code) code = ranks_start(&error);
    if (!code) code = engine_open(&engine, &options, &error);
    if (!code) code = run(engine, &a, &error);
    engine_close(engine);
    if (code < 0) return cli_fail("run", &error);
    return generate_was_interrupted() && !a.chat ? 130 : 0;
}
