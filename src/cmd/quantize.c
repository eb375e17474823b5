#include <stdio.h>
#include <stdlib.h>
#include "base/clock.h"
#include "base/file.h"
#include "base/pool.h"
#include "cmd/calibrate.h"
#include "cmd/cmd.h"
#include "cmd/recipe.h"
#include "find/find.h"
#include "model/quantize.h"

enum { DEFAULT_TOKENS = 32768, CALIBRATION_CONTEXT = 2048, MAX_TEXT_BYTES = 1 << 28 };

enum { METHOD_GPTQ, METHOD_SCALES };

struct arguments {
    const char *model, *revision, *out, *calibrate;
    int tokens, method; /* METHOD_... */
    double memory_gib;
    bool tokens_given, method_given, memory_given;
    struct recipe_arguments recipe;
    struct find_flags hub;
    bool json;
};

/* The source, opened: as an engine where a text is run through it. */
struct source {
    char path[4096];
    struct checkpoint checkpoint;
    struct model model;
    struct weights weights;
    struct engine *engine;
    struct calibration *calibration;
    struct pool *pool;
    struct quantize job;
};

/* The headers alone; then it is known whether -o names one of these files. */
static int open_headers(struct source *s, const struct arguments *a, struct mo_error *error) {
    const struct find_request request = {
        .model = a->model, .revision = a->revision, .hub = &a->hub, .need = FIND_FILES};
    int code = find_model(&request, s->path, sizeof s->path, error);
    if (!code) code = checkpoint_open_files(&s->checkpoint, s->path, error);
    if (!code) code = model_load(&s->model, &s->checkpoint, error);
    if (!code) code = checkpoint_open_tensors(&s->checkpoint, error);
    if (!code) code = quantize_check_target(&s->checkpoint, a->out, error);
    if (!code && a->calibrate && file_is_same(a->calibrate, a->out)) {
        code = mo_error_set(error, MO_E_INVALID, "%s: expected a new file, found the text of --calibrate", a->out);
    }
    return code;
}

static int open_plain(struct source *s, struct mo_error *error) {
    int code = weights_bind(&s->weights, &s->model, &s->checkpoint, pool_threads(s->pool), error);
    s->job = (struct quantize){.model = &s->model, .checkpoint = &s->checkpoint, .weights = &s->weights};
    return code;
}

static int calibrate(struct source *s, const struct arguments *a, const struct recipe *recipe, struct mo_error *error) {
    struct calibration_options options = {.max_tokens = a->tokens, .memory_gib = a->memory_gib, .pool = s->pool};
    bool has_feedback = a->method == METHOD_GPTQ;
    char *text;
    size_t size;
    int code = file_read(a->calibrate, MAX_TEXT_BYTES, &text, &size, error);
    if (code) return code;
    if (has_feedback) options.recipe = recipe;
    code = calibration_open(&s->calibration, s->engine, text, size, &options, error);
    free(text);
    s->job.importance = calibration_importance;
    s->job.prepare = calibration_prepare;
    s->job.feedback = has_feedback ? calibration_feedback : NULL;
    s->job.context = s->calibration;
    return code;
}

static int open_engine(struct source *s, const struct arguments *a, const struct recipe *recipe,
                       struct mo_error *error) {
    struct engine_options options;
    engine_options_init(&options);
    options.expert_cache = "0"; /* what is observed are the matrices where they lie */
    options.model = a->model;
    options.revision = a->revision;
    options.hub = a->hub;
    options.device = "cpu";
    options.compute = COMPUTE_F32; /* the same numbers on every machine */
    options.kv = 1 + KV_BF16;
    options.threads = a->recipe.threads;
    options.max_model_len = CALIBRATION_CONTEXT;
    if (s->model.context < CALIBRATION_CONTEXT) options.max_model_len = s->model.context;
    int code = engine_open(&s->engine, &options, error);
    if (code) return code;
    s->job = (struct quantize){
        .model = &s->engine->model, .checkpoint = &s->engine->checkpoint, .weights = &s->engine->weights};
    return calibrate(s, a, recipe, error);
}

static void source_close(struct source *s) {
    calibration_close(s->calibration);
    engine_close(s->engine);
    pool_destroy(s->pool);
    weights_free(&s->weights);
    checkpoint_close(&s->checkpoint);
    free(s);
}

static int quantize(const struct arguments *a, const struct recipe *recipe, struct mo_error *error) {
    struct source *s = calloc(1, sizeof *s);
    struct make_report report;
    double start = clock_now_s();
    if (!s) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    int code = pool_create(&s->pool, a->recipe.threads ? a->recipe.threads : pool_default_threads(), error);
    if (!code) code = open_headers(s, a, error);
    if (!code) code = a->calibrate ? open_engine(s, a, recipe, error) : open_plain(s, error);
    s->job.recipe = recipe;
    s->job.pool = s->pool;
    if (!code) code = quantize_file(&s->job, a->out, a->recipe.text, &report, error);
    source_close(s);
    if (code) return code;
    return recipe_print_report(&report, recipe, a->out, clock_now_s() - start, a->json, error);
}

static int check_calibration(const struct arguments *a, struct mo_error *error) {
    if (!a->calibrate && (a->tokens_given || a->method_given || a->memory_given)) {
        return mo_error_set(error, MO_E_INVALID, "%s is for --calibrate, which is not given",
                            a->tokens_given   ? "--calibration-tokens"
                            : a->method_given ? "--calibration-method"
                                              : "--calibration-memory");
    }
    if (a->memory_given && a->method == METHOD_SCALES) {
        return mo_error_set(error, MO_E_INVALID, "--calibration-memory is for gptq, not for scales, which need none");
    }
    return 0;
}

int cmd_quantize(int argc, char **argv) {
    struct arguments a = {.tokens = DEFAULT_TOKENS};
    struct recipe recipe;
    struct cli_flag shared[RECIPE_FLAGS_MAX + FIND_FLAGS_MAX];
    size_t n_shared = find_model_flags(&a.hub, &a.model, &a.revision, shared);
    recipe_flags(&a.recipe, shared + n_shared);
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--output,-o", .type = CLI_STRING, .target = &a.out, .value = "FILE", .help = "the file to write: the whole model in one"},
        {.names = "--model,-m", .type = CLI_STRING, .target = &a.model, .value = "MODEL", .help = "the model, if not given as MODEL"},
        {.names = "--calibrate", .type = CLI_STRING, .target = &a.calibrate, .value = "TEXT",
         .help = "run the model over this file first, and keep small the error of what\nit computes there instead of that of the weights"},
        {.names = "--calibration-tokens", .type = CLI_INT, .target = &a.tokens, .min = 1, .max = 1 << 26, .value = "N", .given = &a.tokens_given,
         .help = "at most so many tokens of it (default 32768)"},
        {.names = "--calibration-method", .type = CLI_CHOICE, .target = &a.method, .choices = "gptq|scales", .given = &a.method_given,
         .help = "gptq (default): each column of INT4 and INT8 makes up for what those\nbefore it changed; scales: scales alone are searched by it"},
        {.names = "--calibration-memory", .type = CLI_DOUBLE, .target = &a.memory_gib, .min = 0.001, .max = 1e6, .value = "GIB", .given = &a.memory_given,
         .help = "that gptq may take: the text is run for as many layers at a time\nas fit (default: half of what is free)"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "for programs: what was written, and how far from the source"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "quantize",
        .arguments = "MODEL --quant Q -o FILE [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
        .about =
            "Writes a model with fewer bits a weight, from any MODEL that can be run, into one file that holds the\n"
            "tokenizer and everything else too: give it as MODEL to any command. It is mapped and ready at once. The\n"
            "file appears under its name when it is complete; until then it is FILE.partial.",
        .examples =
            "  moebius quantize deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct --quant int4 -o coder-int4.safetensors\n"
            "  moebius quantize MODEL --quant int4 --attention int8 --head bf16 -o FILE",
    };
    struct mo_error error = {0};
    int n_positionals, code = cli_parse(&command, argc, argv, &a.model, &n_positionals, &error);
    if (code > 0) return 0;
    if (!code && !a.model) code = mo_error_set(&error, MO_E_INVALID, "no MODEL given (--help shows how)");
    if (!code && !a.out) code = mo_error_set(&error, MO_E_INVALID, "no -o FILE given");
    if (!code) code = check_calibration(&a, &error);
    if (!code) code = recipe_from_arguments(&recipe, &a.recipe, &error);
    if (!code) code = quantize(&a, &recipe, &error);
    return code ? cli_fail("quantize", &error) : 0;
}
