#include "cmd/recipe.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/json.h"

void recipe_flags(struct recipe_arguments *a, struct cli_flag flags[RECIPE_FLAGS_MAX]) {
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "Formats (int4, fp4, int8, fp8 or bf16)", .type = CLI_HEADING},
        {.names = "--quant,--quantization,-q", .type = CLI_STRING, .target = &a->quant, .value = "Q",
         .help = "of everything that is large; also as int4,head=bf16,kv_b=int8"},
        {.names = "--group", .type = CLI_INT, .target = &a->group_size, .min = 32, .max = 128, .value = "N",
         .help = "int4, int8: weights with one scale: 32, 64 or 128 (default)"},
        {.names = "--experts", .type = CLI_STRING, .target = &a->groups[GROUP_ROUTED], .value = "F", .help = "of the routed experts"},
        {.names = "--shared", .type = CLI_STRING, .target = &a->groups[GROUP_SHARED], .value = "F", .help = "of the shared experts"},
        {.names = "--dense", .type = CLI_STRING, .target = &a->groups[GROUP_DENSE], .value = "F", .help = "of the first layers' feed-forward"},
        {.names = "--attention", .type = CLI_STRING, .target = &a->groups[GROUP_ATTENTION], .value = "F", .help = "of q, kv_a and o"},
        {.names = "--kv-b", .type = CLI_STRING, .target = &a->groups[GROUP_KV_B], .value = "F", .help = "from the latent to keys and values (with int4: fp8)"},
        {.names = "--head", .type = CLI_STRING, .target = &a->groups[GROUP_HEAD], .value = "F", .help = "of lm_head (with int4: int8)"},
        {.names = "--embedding", .type = CLI_STRING, .target = &a->groups[GROUP_EMBEDDING], .value = "F", .help = "of the embedding (bf16)"},
        {.names = "--router", .type = CLI_STRING, .target = &a->groups[GROUP_ROUTER], .value = "F", .help = "of the routers (bf16)"},
        {.names = "--threads,-t", .type = CLI_INT, .target = &a->threads, .min = 1, .max = 1024, .value = "N",
         .help = "threads (default: the processors this process may use)"},
    };
    /* clang-format on */
    memcpy(flags, table, sizeof table);
    flags[sizeof table / sizeof *table] = (struct cli_flag){0};
}

int recipe_from_arguments(struct recipe *recipe, struct recipe_arguments *a, struct mo_error *error) {
    if (!a->quant) return mo_error_set(error, MO_E_INVALID, "no --quant given: int4, fp4, int8, fp8 or bf16");
    int n = snprintf(a->text, sizeof a->text, "%s", a->quant);
    int code = n < 0 || (size_t)n >= sizeof a->text / 2 ? mo_error_set(error, MO_E_INVALID, "--quant: too long") : 0;
    if (!code && (code = recipe_parse(recipe, a->quant, a->group_size ? a->group_size : 128, error))) {
        mo_error_prefix(error, a->group_size ? "--quant, --group" : "--quant");
    }
    for (int i = 0; i < TENSOR_GROUPS && !code; i++) {
        if (!a->groups[i]) continue;
        code = recipe_set(recipe, (enum tensor_group)i, a->groups[i], error);
        size_t at = strlen(a->text);
        if (!code)
            snprintf(a->text + at, sizeof a->text - at, ",%s=%s", tensor_group_name((enum tensor_group)i),
                     a->groups[i]);
    }
    return code;
}

/* Root mean square of the change over that of the weights. */
static double relative(const struct make_error *sum) {
    return sum->total > 0 ? sqrt(sum->error / sum->total) : 0;
}

static int print_json(const struct make_report *report, const struct recipe *recipe, const char *path, double seconds,
                      struct mo_error *error) {
    json_t *errors = json_object();
    for (int i = 0; i < TENSOR_GROUPS; i++) {
        if (report->groups[i].total <= 0) continue;
        json_object_set_new(errors, tensor_group_name((enum tensor_group)i), json_real(relative(&report->groups[i])));
    }
    json_t *root = json_pack("{so sI sf so so}", "file", json_lossy(path), "bytes", (json_int_t)report->bytes,
                             "seconds", seconds, "formats", recipe_json(recipe), "relative_error", errors);
    return json_print(root, error);
}

int recipe_print_report(const struct make_report *report, const struct recipe *recipe, const char *path, double seconds,
                        bool json, struct mo_error *error) {
    if (json) return print_json(report, recipe, path, seconds, error);
    printf("%s: %.3f GB in %.1f s (%.2f GB/s)\n", path, (double)report->bytes * 1e-9, seconds,
           (double)report->bytes * 1e-9 / seconds);
    for (int i = 0; i < TENSOR_GROUPS; i++) {
        const struct make_error *sum = &report->groups[i];
        printf("  %-10s %s", tensor_group_name((enum tensor_group)i), mat_format_name(recipe->format[i]));
        if (sum->total > 0)
            printf("%*s weights changed by %.3f %%", 5 - (int)strlen(mat_format_name(recipe->format[i])), "",
                   100 * relative(sum));
        putchar('\n');
    }
    return 0;
}
