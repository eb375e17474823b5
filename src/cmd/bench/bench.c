#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/memory.h"
#include "cmd/bench/energy.h"
#include "cmd/bench/guide.h"
#include "cmd/bench/report.h"
#include "cmd/cmd.h"
#include "engine/turn.h"

enum { MACHINE_PASSES = 9, LINE_PASSES = 4 }; /* over the memory */
enum { DEFAULT_GENERATE = 256, DEFAULT_REPEAT = 3, MAX_BATCH = 4096, MAX_TOKENS = 1 << 26 };

struct arguments {
    struct bench_plan plan;
    const char *file;
    const char *prompt, *batch, *depth, *config;
    bool json, guide, card;
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
    a->card = n && !strcmp(positional[0], "gpu");
    if (a->guide || a->card) at++;
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

/* The card's own speed was measured before it got its weights. */
static int note_card(struct bench_report *r) {
    r->read_gb_s = r->gpu->read_gb_s;
    r->gpu->load = cuda_backend_load(r->engine->backend);
    r->bench.looks_apart = true;
    if (!r->json) bench_say_machine(r);
    return 0;
}

/* How fast the memory of who computes is read now. */
static int read_memory(struct bench_report *r, int passes, struct bench_spread *gb_s, struct mo_error *error) {
    if (r->gpu) return bench_gpu_read(r->gpu, passes, gb_s, error);
    *gb_s = bench_reader_measure(r->reader, passes);
    return 0;
}

static int measure_machine(struct bench_report *r, struct mo_error *error) {
    int code = cpu_level_get(&r->level, error);
    bench_energy_open(&r->bench.energy, r->engine, r->gpu);
    if (!code && !r->engine->options.like) code = checkpoint_hash(&r->engine->checkpoint, 0, r->hash, error);
    if (!code && r->engine->store) code = bench_experts_read_disk(r->engine, &r->disk_gb_s, error);
    if (!code && r->gpu) return note_card(r);
    if (!code) code = bench_reader_open(&r->reader, r->engine->options.threads, error);
    if (!code) r->read_gb_s = bench_reader_measure(r->reader, MACHINE_PASSES);
    if (!code) code = bench_measure_peak(PEAK_INT8, r->engine->options.threads, &r->int8_tops, error);
    if (!code && !r->json) bench_say_machine(r);
    return code;
}

static int measure_prompts(struct bench_report *r, struct mo_error *error) {
    const struct bench_list *prompt = &r->plan->prompt;
    int code = bench_warm_up(&r->bench, error);
    for (int i = 0; i < prompt->n && !code; i++) {
        code = bench_time_prompt(&r->bench, prompt->values[i], &r->prompt[i], error);
        if (!code) r->n_prompt++;
        if (!code) code = bench_report_write(r, error);
    }
    if (!code && !r->json) bench_say_prompts(r);
    return code;
}

/* A GPU's kernels are counted for every line, and timed for the first with one sequence. */
static int look_at_kernels(struct bench_report *r, struct bench_decode *d, int batch, int depth,
                           struct mo_error *error) {
    struct cuda_profile profile;
    bool timed = batch == 1 && !r->gpu->has_profile;
    if (r->engine->cpu_layers || r->engine->n_parts > 1) return 0; /* a step is not one card's alone */
    int code = bench_profile_decode(&r->bench, batch, depth, timed, &profile, error);
    d->kernels = code ? 0 : profile.step_kernels;
    if (code || !timed) return code;
    r->gpu->profile = profile;
    r->gpu->profile_depth = depth;
    r->gpu->has_profile = true;
    return 0;
}

static int measure_decode(struct bench_report *r, struct mo_error *error) {
    const struct bench_plan *plan = r->plan;
    struct bench_spread before, after;
    int code = read_memory(r, LINE_PASSES, &before, error);
    for (int i = 0; i < plan->depth.n * plan->batch.n && !code; i++) {
        struct bench_decode *d = &r->decode[r->n_decode];
        int depth = plan->depth.values[i / plan->batch.n], batch = plan->batch.values[i % plan->batch.n];
        code = bench_time_decode(&r->bench, batch, depth, d, error);
        if (!code) code = read_memory(r, LINE_PASSES, &after, error);
        if (!code && r->gpu) code = look_at_kernels(r, d, batch, depth, error);
        if (code) return code;
        d->read_gb_s = (before.median + after.median) / 2;
        before = after;
        r->n_decode++;
        if (!r->json) bench_say_decode(r, d);
        code = bench_report_write(r, error);
    }
    return code;
}

static int run(struct bench_report *r, struct mo_error *error) {
    int code = bench_open(&r->bench, r->plan, r->engine, error);
    bench_report_mark(r);
    if (!code) code = measure_machine(r, error);
    if (!code) code = measure_prompts(r, error);
    if (!code) code = measure_decode(r, error);
    if (!code) code = read_memory(r, MACHINE_PASSES, &r->read_after_gb_s, error);
    if (code) return code;
    bench_reader_close(r->reader);
    r->reader = NULL;
    r->rss_bytes = memory_resident_bytes();
    code = bench_report_write(r, error);
    if (code) return code;
    if (r->json) return json_print(bench_report_json(r), error);
    bench_say_end(r);
    return 0;
}

/* The engine may have chosen otherwise than --device says. */
static int settle_gpu(struct bench_report *r, struct mo_error *error) {
    char device[32];
    if (r->engine->gpu >= 0 && !r->gpu) {
        snprintf(device, sizeof device, "cuda:%d", r->engine->gpu);
        return bench_gpu_open(&r->gpu, device, error);
    }
    if (r->engine->gpu >= 0) return 0;
    bench_gpu_close(r->gpu);
    r->gpu = NULL;
    return 0;
}

/* `bench gpu`: the card alone. */
static int measure_card(const struct arguments *a, const char *device, struct mo_error *error) {
    struct bench_gpu *gpu;
    int code = bench_gpu_open(&gpu, device ? device : "cuda", error);
    if (code) return code;
    if (!gpu && error->code) return error->code; /* why there is none */
    if (!gpu) return mo_error_set(error, MO_E_NOT_FOUND, "no GPU, or --device does not name one as cuda:N");
    if (!a->json) bench_gpu_say_card(gpu);
    if (a->json) code = json_print(bench_gpu_json(gpu), error);
    if (!code && a->file) code = json_write(bench_gpu_json(gpu), a->file, error);
    bench_gpu_close(gpu);
    return code;
}

static int open_and_run(const struct arguments *a, const struct engine_options *options, struct mo_error *error) {
    struct bench_report *report = calloc(1, sizeof *report);
    if (!report) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    report->plan = &a->plan;
    report->json = a->json;
    report->guide = a->guide;
    report->file = a->file;
    int code = ranks_self() > 0 ? 0 : bench_gpu_open(&report->gpu, options->device, error);
    if (!code) code = engine_open(&report->engine, options, error);
    if (!code) engine_turn_now(report->engine);
    if (!code) code = settle_gpu(report, error);
    if (!code) code = run(report, error);
    bench_close(&report->bench);
    bench_reader_close(report->reader);
    engine_close(report->engine);
    bench_gpu_close(report->gpu);
    free(report);
    return code;
}

static const char about[] =
    "Measures how fast a model runs here, beside the machine's own memory: medians, slowest and fastest.\n"
    "The tokens are a built-in text, or random ids if the model has no tokenizer; all sequences differ.\n"
    "At a depth they share the whole cache pages of one beginning, computed once. The bytes of a step are\n"
    "those it must read: every matrix but the experts, the experts that were visited, the cache rows,\n"
    "each once; a small model finds them in the processor's caches and passes 100 % of the memory's speed,\n"
    "which is measured again before and after every line, because machines drift. Where the processor or the\n"
    "card has a meter of energy that may be read (`moebius doctor` says why not), joules a token are given, too.\n"
    "With --like or --config there is no MODEL: random weights of that shape are made in memory (as\n"
    "--quantization says, bf16 if it does not), and every line says that they are synthetic.\n"
    "`bench guide` measures in the shapes of a hosting guide (prompt 1024, 256 tokens, batch 1, 4 and 8;\n"
    "prompt 8192) and prints its published figures, of one RTX 4090, beside this machine's.\n"
    "With --device cuda the memory is the card's, weights of --like are made on it (and may be\n"
    "--quant q4_k_m: GGUF's blocks), kernels are counted and timed, and each step stands beside its floor:\n"
    "bytes / read bandwidth + kernels x what starting one costs.\n"
    "`bench gpu` measures the card alone.";

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
        {.names = "--report", .type = CLI_STRING, .target = &a.file, .value = "FILE",
         .help = "the JSON as well, in a file that is written anew after every line:\na run that is cut off leaves what it had"},
        {.names = "Random weights instead of MODEL", .type = CLI_HEADING},
        {.names = "--like", .type = CLI_STRING, .target = &options.like, .value = "NAME", .given = &a.like_given,
         .help = "the shapes of deepseek-coder-v2-lite, deepseek-v2-lite, deepseek-v2,\ndeepseek-v3, deepseek-r1, deepseek-v3.2, deepseek-v4-flash,\ndeepseek-v4-pro or deepseek-v4.1-flash"},
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
        .arguments = "[guide] MODEL|--like NAME [flags], or gpu [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 2,
        .about = about,
        .examples = "  moebius bench MODEL\n"
                    "  moebius bench MODEL --prompt 512 --generate 64 --batch 1,8 --depth 0 --json > today.json\n"
                    "  moebius bench --like deepseek-coder-v2-lite --quantization int4\n"
                    "  moebius bench guide MODEL\n"
                    "  moebius bench --device cuda --like deepseek-coder-v2-lite --quant int4 --depth 1024",
    };
    struct mo_error error = {0};
    const char *positional[2] = {0};
    int n_positionals, code = cli_parse(&command, argc, argv, positional, &n_positionals, &error);
    if (code > 0) return 0;
    if (!code) code = settle_positionals(&a, &options, positional, n_positionals, &error);
    if (!code) code = settle_model(&a, &options, &error);
    if (!code) code = settle_plan(&a, &error);
    if (!code) settle_batch(&a, &options);
    if (!code && !a.card) code = ranks_start(&error);
    if (!code) code = a.card ? measure_card(&a, options.device, &error) : open_and_run(&a, &options, &error);
    return code < 0 ? cli_fail("bench", &error) : 0;
}
