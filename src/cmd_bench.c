#include <stdio.h>
#include <stdlib.h>
#include "base/cpu.h"
#include "base/memory.h"
#include "bench_measure.h"
#include "cmd.h"

enum { MACHINE_PASSES = 9, LINE_PASSES = 4 }; /* over the memory */
enum { DEFAULT_GENERATE = 256, DEFAULT_REPEAT = 3, MAX_BATCH = 4096, MAX_TOKENS = 1 << 26 };

struct arguments {
    struct bench_plan plan;
    const char *prompt, *batch, *depth;
    bool json;
};

/* Everything measured, for people as it comes and for programs at the end. */
struct report {
    const struct arguments *arguments;
    struct engine *engine;
    struct bench bench;
    char hash[65];
    enum cpu_level level;
    struct bench_reader *reader;
    struct bench_spread read_gb_s, read_after_gb_s; /* memory before and after: was the machine quiet? */
    struct bench_spread int8_tops;
    struct bench_spread prompt_s[BENCH_LIST_MAX];
    struct bench_decode decode[BENCH_LIST_MAX * BENCH_LIST_MAX];
    int n_decode;
    double rss_bytes;
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

/* Without --max-num-seqs, the engine is opened for the largest batch. */
static int settle_arguments(struct arguments *a, struct engine_options *options, struct mo_error *error) {
    int code = parse_list("--prompt", a->prompt, 1, MAX_TOKENS, &a->plan.prompt, error);
    if (!code) code = parse_list("--batch", a->batch, 1, MAX_BATCH, &a->plan.batch, error);
    if (!code) code = parse_list("--depth", a->depth, 0, MAX_TOKENS, &a->plan.depth, error);
    if (code || options->max_num_seqs) return code;
    for (int i = 0; i < a->plan.batch.n; i++) {
        if (a->plan.batch.values[i] > options->max_num_seqs) options->max_num_seqs = a->plan.batch.values[i];
    }
    return 0;
}

/* ---- for people: every line as soon as it is known ---- */

static void say_machine(const struct report *r) {
    static const char *const compute[] = {"fast", "f32"}, *const cache[] = {"f32", "bf16", "fp8"};
    const struct engine *e = r->engine;
    printf("%s, hash %.12s (moebius " MOEBIUS_VERSION ")\n", e->path, r->hash);
    printf("machine: %s, %d threads read %.2f GB/s from memory (%.2f to %.2f)\n", cpu_level_name(r->level),
           e->options.threads, r->read_gb_s.median, r->read_gb_s.min, r->read_gb_s.max);
    if (r->int8_tops.median > 0) {
        printf("         and do %.3f Tera 8-bit operations a second (%.3f to %.3f)\n", r->int8_tops.median,
               r->int8_tops.min, r->int8_tops.max);
    }
    printf("opened in %.3f s; tokens: %s; compute %s, cache %s\n\n", e->load_s, bench_tokens_kind(&r->bench.tokens),
           compute[e->options.compute], cache[e->options.kv - 1]);
    fflush(stdout);
}

/* Of the machine's 8-bit operations; 0 if it has none to compare with. */
static double share_of_peak(const struct report *r, int i) {
    double operations = bench_prompt_operations(&r->engine->model, &r->engine->weights);
    double rate = r->arguments->plan.prompt.values[i] / r->prompt_s[i].median * operations;
    return r->int8_tops.median > 0 ? rate / (r->int8_tops.median * 1e12) : 0;
}

static void say_prompts(const struct report *r) {
    const struct bench_plan *plan = &r->arguments->plan;
    printf("prompt, %d times\n%15s  %10s %10s %10s  %11s  %s\n", plan->repeat, "tokens", "tokens/s", "slowest",
           "fastest", "first token", "of the 8-bit rate");
    for (int i = 0; i < plan->prompt.n; i++) {
        const struct bench_spread *s = &r->prompt_s[i];
        int n = plan->prompt.values[i];
        printf("%15d  %10.2f %10.2f %10.2f  %9.3f s  %7.1f %%\n", n, n / s->median, n / s->max, n / s->min, s->median,
               100 * share_of_peak(r, i));
    }
    printf("\ndecode, %d steps each; tokens/s of all sequences together\n", plan->generate);
    printf("%6s %8s  %10s %10s %10s  %9s %8s  %s\n", "batch", "depth", "tokens/s", "slowest", "fastest", "MB/step",
           "GB/s", "of memory");
    fflush(stdout);
}

static void say_decode(const struct bench_decode *d) {
    printf("%6d %8d  %10.2f %10.2f %10.2f  %9.1f %8.2f  %7.1f %%\n", d->batch, d->depth, d->tokens_per_s.median,
           d->tokens_per_s.min, d->tokens_per_s.max, d->bytes_per_step * 1e-6, d->gb_per_s,
           100 * d->gb_per_s / d->read_gb_s);
    fflush(stdout);
}

static void say_end(const struct report *r) {
    printf("\nafterwards the threads read %.2f GB/s from memory (%.2f to %.2f)\n", r->read_after_gb_s.median,
           r->read_after_gb_s.min, r->read_after_gb_s.max);
    printf("resident memory: %.2f GiB, mapped files included\n", r->rss_bytes / (1 << 30));
}

/* ---- for programs ---- */

static json_t *decode_json(const struct report *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->n_decode; i++) {
        const struct bench_decode *d = &r->decode[i];
        json_array_append_new(list, json_pack("{si si sf sf sf sf sf sf sf}", "batch", d->batch, "depth", d->depth,
                                              "tokens_per_s", d->tokens_per_s.median, "tokens_per_s_min",
                                              d->tokens_per_s.min, "tokens_per_s_max", d->tokens_per_s.max,
                                              "bytes_per_step", d->bytes_per_step, "gb_per_s", d->gb_per_s, "read_gb_s",
                                              d->read_gb_s, "share_of_bandwidth", d->gb_per_s / d->read_gb_s));
    }
    return list;
}

static json_t *prefill_json(const struct report *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->arguments->plan.prompt.n; i++) {
        const struct bench_spread *s = &r->prompt_s[i];
        int n = r->arguments->plan.prompt.values[i];
        json_array_append_new(list, json_pack("{si sf sf sf sf sf}", "prompt", n, "tokens_per_s", n / s->median,
                                              "tokens_per_s_min", n / s->max, "tokens_per_s_max", n / s->min,
                                              "share_of_peak", share_of_peak(r, i), "ttft_s", s->median));
    }
    return list;
}

static json_t *machine_json(const struct report *r) {
    return json_pack("{sf sf sf sf so si ss}", "read_gb_s", r->read_gb_s.median, "read_gb_s_min", r->read_gb_s.min,
                     "read_gb_s_max", r->read_gb_s.max, "read_gb_s_after", r->read_after_gb_s.median, "int8_tops",
                     r->int8_tops.median > 0 ? json_real(r->int8_tops.median) : json_null(), "threads",
                     r->engine->options.threads, "level", cpu_level_name(r->level));
}

static int print_json(const struct report *r) {
    const struct engine *e = r->engine;
    json_t *root = json_pack("{so sf sI so sf so ss ss ss}", "machine", machine_json(r), "load_s", e->load_s,
                             "rss_bytes", (json_int_t)r->rss_bytes, "prefill", prefill_json(r), "ttft_s",
                             r->prompt_s[0].median, "decode", decode_json(r), "text",
                             bench_tokens_kind(&r->bench.tokens), "model_hash", r->hash, "version", MOEBIUS_VERSION);
    int failed = !root || json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(root);
    return failed;
}

/* ---- the run ---- */

static int measure_machine(struct report *r, struct mo_error *error) {
    int code = cpu_level_get(&r->level, error);
    if (!code) code = checkpoint_hash(&r->engine->checkpoint, 0, r->hash, error);
    if (!code) code = bench_reader_open(&r->reader, r->engine->options.threads, error);
    if (!code) r->read_gb_s = bench_reader_measure(r->reader, MACHINE_PASSES);
    if (!code) code = bench_measure_int8(r->engine->options.threads, &r->int8_tops, error);
    if (!code && !r->arguments->json) say_machine(r);
    return code;
}

static int measure_prompts(struct report *r, struct mo_error *error) {
    const struct bench_list *prompt = &r->arguments->plan.prompt;
    int code = bench_warm_up(&r->bench, error);
    for (int i = 0; i < prompt->n && !code; i++) {
        code = bench_time_prompt(&r->bench, prompt->values[i], &r->prompt_s[i], error);
    }
    if (!code && !r->arguments->json) say_prompts(r);
    return code;
}

static int measure_decode(struct report *r, struct mo_error *error) {
    const struct bench_plan *plan = &r->arguments->plan;
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
        if (!r->arguments->json) say_decode(d);
    }
    return 0;
}

static int run(struct report *r, struct mo_error *error) {
    int code = bench_open(&r->bench, &r->arguments->plan, r->engine, error);
    if (!code) code = measure_machine(r, error);
    if (!code) code = measure_prompts(r, error);
    if (!code) code = measure_decode(r, error);
    if (code) return code;
    r->read_after_gb_s = bench_reader_measure(r->reader, MACHINE_PASSES);
    bench_reader_close(r->reader);
    r->reader = NULL;
    r->rss_bytes = memory_resident_bytes();
    if (!r->arguments->json) {
        say_end(r);
    } else if (print_json(r)) {
        code = mo_error_set(error, MO_E_IO, "cannot write to standard output");
    }
    return code;
}

static int open_and_run(const struct arguments *a, const struct engine_options *options, struct mo_error *error) {
    struct report *report = calloc(1, sizeof *report);
    if (!report) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    report->arguments = a;
    int code = engine_open(&report->engine, options, error);
    if (!code) code = run(report, error);
    bench_close(&report->bench);
    bench_reader_close(report->reader);
    engine_close(report->engine);
    free(report);
    return code;
}

int cmd_bench(int argc, char **argv) {
    struct arguments a = {.prompt = "1024", .batch = "1,4,8,16", .depth = "0,4096"};
    struct engine_options options;
    struct cli_flag shared[ENGINE_FLAGS_MAX];
    a.plan = (struct bench_plan){.generate = DEFAULT_GENERATE, .repeat = DEFAULT_REPEAT};
    engine_options_init(&options);
    engine_flags(&options, shared);
    const struct cli_flag flags[] = {
        {.names = "--prompt",
         .type = CLI_STRING,
         .target = &a.prompt,
         .value = "512,...",
         .help = "tokens of the prompt (default 1024)"},
        {.names = "--generate",
         .type = CLI_INT,
         .target = &a.plan.generate,
         .min = 1,
         .max = MAX_TOKENS,
         .value = "N",
         .help = "decode steps for each batch and depth (default 256)"},
        {.names = "--batch",
         .type = CLI_STRING,
         .target = &a.batch,
         .value = "1,4,...",
         .help = "sequences that decode together (default 1,4,8,16)"},
        {.names = "--depth",
         .type = CLI_STRING,
         .target = &a.depth,
         .value = "0,4096,...",
         .help = "tokens that each has already (default 0,4096)"},
        {.names = "--repeat",
         .type = CLI_INT,
         .target = &a.plan.repeat,
         .min = 1,
         .max = 1000,
         .value = "N",
         .help = "times that the prompt is computed (default 3)"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "for programs"},
        {0},
    };
    const struct cli_command command = {
        .name = "bench",
        .arguments = "MODEL [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
        .about =
            "Measures how fast a model runs here, beside the machine's own memory: medians, slowest and fastest.\n"
            "The tokens are a built-in text, or random ids if the model has no tokenizer; all sequences differ.\n"
            "At a depth they share the whole cache pages of one beginning, computed once. The bytes of a step are\n"
            "those it must read: every matrix but the experts, the experts that were visited, the cache rows,\n"
            "each once; a small model finds them in the processor's caches and passes 100 % of the memory's speed,\n"
            "which is measured again before and after every line, because machines drift.",
        .examples = "  moebius bench MODEL\n"
                    "  moebius bench MODEL --prompt 512 --generate 64 --batch 1,8 --depth 0 --json > today.json",
    };
    struct mo_error error = {0};
    const char *positional = NULL;
    int n_positionals, code = cli_parse(&command, argc, argv, &positional, &n_positionals, &error);
    if (code > 0) return 0;
    if (n_positionals) options.model = positional;
    if (!code) code = settle_arguments(&a, &options, &error);
    if (!code) code = open_and_run(&a, &options, &error);
    return code ? cli_fail("bench", &error) : 0;
}
