#include "base/clock.h"
#include "base/file.h"
#include "cmd/cmd.h"
#include "cmd/recipe.h"
#include "model/synth.h"

struct arguments {
    const char *like, *config, *out;
    int layers;
    uint64_t seed;
    struct recipe_arguments recipe;
    bool json;
};

static int read_config(const struct arguments *a, json_t **config, struct mo_error *error) {
    if (a->config) return synth_config_read(config, a->config, a->layers, error);
    return synth_config(config, a->like, a->layers, error);
}

/* They are smaller than the model's own would be. */
static int say_tables(const struct synth *job, struct mo_error *error) {
    struct model model;
    int code = synth_model(job, &model, error);
    const struct engram_model *e = &model.hybrid.engram;
    for (int i = 0; i < e->n_layers && !code; i++)
        printf("n-gram table of layer %d: %d rows of %d (the published ones have 384 million)\n", e->layer[i],
               e->rows[i], e->dim);
    return code;
}

static int synthesize(struct arguments *a, const struct recipe *recipe, struct mo_error *error) {
    struct make_report report;
    struct pool *pool = NULL;
    json_t *config;
    double start = clock_now_s();
    int code = read_config(a, &config, error);
    if (code) return code;
    if (a->config && file_is_same(a->config, a->out)) {
        json_decref(config);
        return mo_error_set(error, MO_E_INVALID, "%s: expected a new file, found the shapes of --config", a->out);
    }
    code = pool_create(&pool, a->recipe.threads ? a->recipe.threads : pool_default_threads(), error);
    struct synth job = {
        .config = config, .recipe = recipe, .pool = pool, .seed = a->seed, .name = a->config ? a->config : a->like};
    if (!code) code = synth_file(&job, a->out, a->recipe.text, &report, error);
    if (!code && !a->json) code = say_tables(&job, error);
    pool_destroy(pool);
    json_decref(config);
    return code ? code : recipe_print_report(&report, recipe, a->out, clock_now_s() - start, a->json, error);
}

int cmd_synth(int argc, char **argv) {
    struct arguments a = {.seed = 1, .recipe.quant = "bf16"};
    struct recipe recipe;
    struct cli_flag shared[RECIPE_FLAGS_MAX];
    recipe_flags(&a.recipe, shared);
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--like", .type = CLI_STRING, .target = &a.like, .value = "NAME",
         .help = "the shapes of deepseek-coder-v2-lite, deepseek-v2-lite, deepseek-v2,\ndeepseek-v3, deepseek-r1, deepseek-v3.2, deepseek-v4-flash,\ndeepseek-v4-pro or deepseek-v4.1-flash"},
        {.names = "--config", .type = CLI_STRING, .target = &a.config, .value = "FILE", .help = "or those that this config.json says"},
        {.names = "--layers", .type = CLI_INT, .target = &a.layers, .min = 1, .max = 1024, .value = "N", .help = "only so many layers"},
        {.names = "--seed", .type = CLI_UINT64, .target = &a.seed, .value = "N", .help = "other weights for another seed (default 1)"},
        {.names = "--output,-o", .type = CLI_STRING, .target = &a.out, .value = "FILE", .help = "the file to write"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "for programs: what was written"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "synth",
        .arguments = "--like NAME [--quant Q] -o FILE [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 0,
        .about = "Writes a model of a published shape with random weights: as large and as fast as the real one, for\n"
                 "measuring. What it generates is noise, and it has no tokenizer: bench uses token ids.",
        .examples = "  moebius synth --like deepseek-coder-v2-lite --quant int4 -o lite-int4.safetensors\n"
                    "  moebius synth --like deepseek-v3 --layers 4 --quant fp8 -o v3-4.safetensors",
    };
    struct mo_error error = {0};
    int code = cli_parse(&command, argc, argv, NULL, &(int){0}, &error);
    if (code > 0) return 0;
    if (!code && !a.like == !a.config)
        code = mo_error_set(&error, MO_E_INVALID, "give one of --like NAME or --config FILE");
    if (!code && !a.out) code = mo_error_set(&error, MO_E_INVALID, "no -o FILE given");
    if (!code) code = recipe_from_arguments(&recipe, &a.recipe, &error);
    if (!code) code = synthesize(&a, &recipe, &error);
    return code ? cli_fail("synth", &error) : 0;
}
