#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"
#include "bench_guide.h"
#include "bench_report.h"
#include "cmd.h"

enum { MACHINE_PASSES = 9, LINE_PASSES = 4 }; /* over the memory */
enum { DEFAULT_GENERATE = 256, DEFAULT_REPEAT = 3, MAX_BATCH = 4096, MAX_TOKENS = 1 << 26 };

struct arguments {
    struct bench_plan plan;
    const char *prompt, *batch, *depth, *config;
    bool json, guide;
    bool shapes_given, like_given, config_given, made_given; /* --prompt and such; --layers or --seed */
};

static int parse_list(const char *flag, const char *text, int min, int max, struct bench_list *list,
                      struct mo_error *error) {
    for (const char *at = text;; at++) {
        char *end;
        long value = strtol(at, &end, 10);
        if (end == at || (*end && *end != ',') || value < min || value > max) {
            return mo_error_set(error, MO_E_INVALID, "%s: expected numbers from %d to %d, as in 1,4,8; found \"%s\"",
                                flag, min, max, text);
        }
        if (list->n == BENCH_LIST_MAX) {
            return mo_error_set(error, MO_E_INVALID, "%s: more than %d numbers", flag, BENCH_LIST_MAX);
        }
        list->values[list->n++] = (int)value;
        if (!*end) return 0;
        at = end;
    }
}

/* [guide] MODEL */
static int settle_positionals(struct arguments *a, struct engine_options *options, const char *const *positional, int n,
                              struct mo_error *error) {
    int at = 0;
    a->guide = n && !strcmp(positional[0], "guide");
    if (a->guide) at++;
    if (at < n) options->model = positional[at++];
    if (at < n) return mo_error_set(error, MO_E_INVALID, "\"%.60s\": one MODEL at a time", positional[at]);
    return 0;
}

/* A checkpoint, or weights made in memory. */
static int settle_model(const struct arguments *a, struct engine_options *options, struct mo_error *error) {
    if (a->like_given + a->config_given + (options->model != NULL) > 1)
        return mo_error_set(error, MO_E_INVALID, "give one of MODEL, --like NAME or --config FILE");
    options->like_config = a->config;
    if (a->config_given) options->like = a->config;
    if (a->made_given && !options->like)
        return mo_error_set(error, MO_E_INVALID, "--layers and --seed go with --like NAME or --config FILE");
    if (options->like && (!options->quantization || !strcmp(options->quantization, "auto")))
        options->quantization = "bf16";
    return 0;
}

static int settle_plan(struct arguments *a, struct mo_error *error) {
    if (a->guide && a->shapes_given)
        return mo_error_set(error, MO_E_INVALID, "guide: its --prompt, --generate, --batch and --depth are given");
    if (a->guide) {
        bench_guide_plan(&a->plan);
        return 0;
    }
    int code = parse_list("--prompt", a->prompt, 1, MAX_TOKENS, &a->plan.prompt, error);
    if (!code) code = parse_list("--batch", a->batch, 1, MAX_BATCH, &a->plan.batch, error);
    return code ? code : parse_list("--depth", a->depth, 0, MAX_TOKENS, &a->plan.depth, error);
}

/* Without --max-num-seqs, the engine is opened for the largest batch. */
static void settle_batch(const struct arguments *a, struct engine_options *options) {
    if (options->max_num_seqs) return;
    for (int i = 0; i < a->plan.batch.n; i++) {
        if (a->plan.batch.values[i] > options->max_num_seqs) options->max_num_seqs = a->plan.batch.values[i];
    }
}

/* ---- the run ---- */

static int measure_machine(struct bench_report *r, struct mo_error *error) {
    int code = cpu_level_get(&r->level, error);
    if (!code && !r->engine->options.like) code = checkpoint_hash(&r->engine->checkpoint, 0, r->hash, error);
    if (!code) code = bench_reader_open(&r->reader, r->engine->options.threads, error);
    if (!code) r->read_gb_s = bench_reader_measure(r->reader, MACHINE_PASSES);
    if (!code) code = bench_measure_int8(r->engine->options.threads, &r->int8_tops, error);
    if (!code && !r->json) bench_say_machine(r);
    return code;
}

static int measure_prompts(struct bench_report *r, struct mo_error *error) {
    const struct bench_list *prompt = &r->plan->prompt;
    int code = bench_warm_up(&r->bench, error);
    for (int i = 0; i < prompt->n && !code; i++) {
        code = bench_time_prompt(&r->bench, prompt->values[i], &r->prompt_s[i], error);
    }
    if (!code && !r->json) bench_say_prompts(r);
    return code;
}

static int measure_decode(struct bench_report *r, struct mo_error *error) {
    const struct bench_plan *plan = r->plan;
    struct bench_spread before = bench_reader_measure(r->reader, LINE_PASSES);
    for (int i = 0; i < plan->depth.n * plan->batch.n; i++) {
        struct bench_decode *d = &r->decode[r->n_decode];
        int depth = plan->depth.values[i / plan->batch.n], batch = plan->batch.values[i % plan->batch.n];
        int code = bench_time_decode(&r->bench, batch, depth, d, error);
        if (code) return code;
        struct bench_spread after = bench_reader_measure(r->reader, LINE_PASSES);
        d->read_gb_s = (before.median + after.median) / 2;
        before = after;
        r->n_decode++;
        if (!r->json) bench_say_decode(r, d);
    }
    return 0;
}

static int print_json(const struct bench_report *r, struct mo_error *error) {
    json_t *root = bench_report_json(r);
    int failed = !root || json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(root);
    return failed ? mo_error_set(error, MO_E_IO, "cannot write to standard output") : 0;
}

static int run(struct bench_report *r, struct mo_error *error) {
    int code = bench_open(&r->bench, r->plan, r->engine, error);
    bench_report_mark(r);
    if (!code) code = measure_machine(r, error);
    if (!code) code = measure_prompts(r, error);
    if (!code) code = measure_decode(r, error);
    if (code) return code;
    r->read_after_gb_s = bench_reader_measure(r->reader, MACHINE_PASSES);
    bench_reader_close(r->reader);
    r->reader = NULL;
    r->rss_bytes = memory_resident_bytes();
    if (r->json) return print_json(r, error);
    bench_say_end(r);
    return 0;
}

static int open_and_run(const struct arguments *a, const struct engine_options *options, struct mo_error *error) {
    struct bench_report *report = calloc(1, sizeof *report);
    if (!report) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    report->plan = &a->plan;
    report->json = a->json;
    report->guide = a->guide;
    int code = engine_open(&report->engine, options, error);
    if (!code) code = run(report, error);
    bench_close(&report->bench);
    bench_reader_close(report->reader);
    engine_close(report->engine);
    free(report);
    return code;
}

static const char about[] =
    "Measures how fast a model runs here, beside the machine's own memory: medians, slowest and fastest.\n"
    "The tokens are a built-in text, or random ids if the model has no tokenizer; all sequences differ.\n"
    "At a depth they share the whole cache pages of one beginning, computed once. The bytes of a step are\n"
    "those it must read: every matrix but the experts, the experts that were visited, the cache rows,\n"
    "each once; a small model finds them in the processor's caches and passes 100 % of the memory's speed,\n"
    "which is measured again before and after every line, because machines drift.\n"
    "With --like or --config there is no MODEL: random weights of that shape are made in memory (as\n"
    "--quantization says, bf16 if it does not), and every line says that they are synthetic.\n"
    "`bench guide` measures in the shapes of a hosting guide (prompt 1024, 256 tokens, batch 1, 4 and 8;\n"
    "prompt 8192) and prints its published figures, of one RTX 4090, beside this machine's.";

int cmd_bench(int argc, char **argv) {
    struct arguments a = {.prompt = "1024", .batch = "1,4,8,16", .depth = "0,4096"};
    struct engine_options options;
    struct cli_flag shared[ENGINE_FLAGS_MAX];
    a.plan = (struct bench_plan){.generate = DEFAULT_GENERATE, .repeat = DEFAULT_REPEAT};
    engine_options_init(&options);
    engine_flags(&options, shared);
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--prompt", .type = CLI_STRING, .target = &a.prompt, .value = "512,...", .given = &a.shapes_given,
         .help = "tokens of the prompt (default 1024)"},
        {.names = "--generate", .type = CLI_INT, .target = &a.plan.generate, .min = 1, .max = MAX_TOKENS, .value = "N",
         .given = &a.shapes_given, .help = "decode steps for each batch and depth (default 256)"},
        {.names = "--batch", .type = CLI_STRING, .target = &a.batch, .value = "1,4,...", .given = &a.shapes_given,
         .help = "sequences that decode together (default 1,4,8,16)"},
        {.names = "--depth", .type = CLI_STRING, .target = &a.depth, .value = "0,4096,...", .given = &a.shapes_given,
         .help = "tokens that each has already (default 0,4096)"},
        {.names = "--repeat", .type = CLI_INT, .target = &a.plan.repeat, .min = 1, .max = 1000, .value = "N",
         .help = "times that the prompt is computed (default 3)"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "for programs"},
        {.names = "Random weights instead of MODEL", .type = CLI_HEADING},
        {.names = "--like", .type = CLI_STRING, .target = &options.like, .value = "NAME", .given = &a.like_given,
         .help = "the shapes of deepseek-coder-v2-lite, deepseek-v2-lite, deepseek-v2,\ndeepseek-v3 or deepseek-r1"},
        {.names = "--config", .type = CLI_STRING, .target = &a.config, .value = "FILE", .given = &a.config_given,
         .help = "or those that this config.json says"},
        {.names = "--layers", .type = CLI_INT, .target = &options.like_layers, .min = 1, .max = 1024, .value = "N",
         .given = &a.made_given, .help = "only so many layers"},
        {.names = "--seed", .type = CLI_UINT64, .target = &options.like_seed, .value = "N", .given = &a.made_given,
         .help = "other weights for another seed (default 1)"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "bench",
        .arguments = "[guide] MODEL|--like NAME [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 2,
        .about = about,
        .examples = "  moebius bench MODEL\n"
                    "  moebius bench MODEL --prompt 512 --generate 64 --batch 1,8 --depth 0 --json > today.json\n"
                    "  moebius bench --like deepseek-coder-v2-lite --quantization int4\n"
                    "  moebius bench guide MODEL",
    };
    struct mo_error error = {0};
    const char *positional[2] = {0};
    int n_positionals, code = cli_parse(&command, argc, argv, positional, &n_positionals, &error);
    if (code > 0) return 0;
    if (!code) code = settle_positionals(&a, &options, positional, n_positionals, &error);
    if (!code) code = settle_model(&a, &options, &error);
    if (!code) code = settle_plan(&a, &error);
    if (!code) settle_batch(&a, &options);
    if (!code) code = open_and_run(&a, &options, &error);
    return code ? cli_fail("bench", &error) : 0;
}
