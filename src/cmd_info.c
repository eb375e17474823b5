#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/backend.h"
#include "base/file.h"
#include "cli.h"
#include "cmd.h"
#include "model/locate.h"
#include "model/names.h"

/* Everything here comes from config.json and the files' headers; no weight is read but for the hash. */
struct facts {
    char path[4096];
    struct model model;
    struct model_params params;
    struct checkpoint checkpoint;
    int64_t bytes[DTYPES]; /* of the tensors that the engine uses */
    int64_t left_out_bytes;
    char licence[256];
    char hash[65];
};

/* Copies the value of "key: value" if `line` is that, without quotes. */
static int read_yaml_value(const char *line, const char *key, char *out, size_t size) {
    size_t n = strlen(key);
    if (strncmp(line, key, n) || line[n] != ':') return 0;
    const char *value = line + n + 1;
    while (*value == ' ' || *value == '"' || *value == '\'') value++;
    size_t length = strcspn(value, "\r\n\"'");
    snprintf(out, size, "%.*s", (int)length, value);
    return out[0] != 0;
}

/* A model card (README.md) opens with YAML between two lines of "---"; license_name is the precise one. */
static int licence_from_card(const char *path, char *out, size_t size) {
    char *text, general[128] = "", name[128] = "";
    size_t n;
    if (!file_exists(path) || file_read(path, 4 << 20, &text, &n, NULL)) return 0;
    const char *line = text;
    for (int i = 0; i < 200 && line && (i == 0 || strncmp(line, "---", 3)); i++) {
        read_yaml_value(line, "license", general, sizeof general);
        read_yaml_value(line, "license_name", name, sizeof name);
        line = strchr(line, '\n');
        if (line) line++;
    }
    free(text);
    if (name[0]) return snprintf(out, size, "%s", name) > 0;
    return general[0] && snprintf(out, size, "%s", general) > 0;
}

/* The first line with a letter in it: a licence's title. */
static int licence_from_file(const char *path, char *out, size_t size) {
    char *text;
    size_t n;
    if (!file_exists(path) || file_read(path, 4 << 20, &text, &n, NULL)) return 0;
    const char *at = text;
    while (*at && !isalpha((unsigned char)*at)) at++;
    snprintf(out, size, "%.*s", (int)strcspn(at, "\r\n"), at);
    free(text);
    return out[0] != 0;
}

static void find_licence(struct facts *f) {
    static const char *const files[] = {"LICENSE-MODEL", "LICENSE", "LICENSE.txt", "LICENSE.md"};
    char path[4200];
    snprintf(path, sizeof path, "%s/README.md", f->path);
    if (licence_from_card(path, f->licence, sizeof f->licence)) return;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", f->path, files[i]);
        if (licence_from_file(path, f->licence, sizeof f->licence)) return;
    }
    snprintf(f->licence, sizeof f->licence, "not stated in the folder");
}

static int gather(struct facts *f, const char *model, const char *revision, bool full_hash, struct mo_error *error) {
    int code = model_locate(model, revision, f->path, sizeof f->path, error);
    if (!code) code = model_load(&f->model, f->path, error);
    if (!code) code = checkpoint_open(&f->checkpoint, f->path, error);
    if (!code) code = checkpoint_hash(&f->checkpoint, f->path, full_hash, f->hash, error);
    if (code) return code;
    model_count_params(&f->model, &f->params);
    for (int i = 0; i < f->checkpoint.n_tensors; i++) {
        const struct tensor *tensor = &f->checkpoint.tensors[i];
        if (names_layer(tensor->name) >= f->model.layers) {
            f->left_out_bytes += (int64_t)tensor->bytes;
        } else {
            f->bytes[tensor->dtype] += (int64_t)tensor->bytes;
        }
    }
    find_licence(f);
    return 0;
}

static json_t *params_json(const struct model_params *p) {
    return json_pack("{sI sI sI sI sI sI sI sI sI sI}", "attention", p->attention, "dense", p->dense, "shared",
                     p->shared, "routed", p->routed, "router", p->router, "embedding", p->embedding, "norm", p->norm,
                     "head", p->head, "total", p->total, "active", p->active);
}

static int64_t kv_bytes(const struct facts *f, enum kv_format kv) {
    return (int64_t)kv_row_bytes(&f->model, kv) * f->model.layers;
}

static int print_json(const struct facts *f) {
    json_t *formats = json_object();
    for (int i = 0; i < DTYPES; i++) {
        if (f->bytes[i]) json_object_set_new(formats, dtype_name((enum dtype)i), json_integer(f->bytes[i]));
    }
    json_t *root = json_pack("{ss so so sI s{sI sI sI} si si ss ss}", "architecture", f->model.architecture, "params",
                             params_json(&f->params), "bytes_by_format", formats, "bytes_left_out", f->left_out_bytes,
                             "kv_bytes_per_token", "f32", kv_bytes(f, KV_F32), "bf16", kv_bytes(f, KV_BF16), "fp8",
                             kv_bytes(f, KV_FP8), "context", f->model.context, "layers", f->model.layers, "licence",
                             f->licence, "hash", f->hash);
    int failed = !root || json_dumpf(root, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(root);
    return failed;
}

static void print_count(const char *name, int64_t n) {
    if (n >= 1000000000) {
        printf("  %-12s %10.3f B\n", name, (double)n * 1e-9);
    } else if (n >= 1000000) {
        printf("  %-12s %10.3f M\n", name, (double)n * 1e-6);
    } else if (n) {
        printf("  %-12s %10.3f k\n", name, (double)n * 1e-3);
    }
}

static void print_text(const struct facts *f) {
    const struct model *m = &f->model;
    const struct model_params *p = &f->params;
    printf("%s\n", f->path);
    printf("%s: %d layers (%d dense), hidden %d, %d heads, vocabulary %d\n", m->architecture, m->layers,
           m->dense_layers, m->hidden, m->heads, m->vocab);
    if (m->experts) {
        printf("experts: %d routed, %d of them a token, %d shared, width %d\n", m->experts, m->top_k, m->shared_experts,
               m->expert_width);
    }
    printf("context: %d tokens\nlicence: %s\nhash: %s\n\nparameters:\n", m->context, f->licence, f->hash);
    const struct {
        const char *name;
        int64_t n;
    } rows[] = {
        {"attention", p->attention}, {"dense", p->dense},         {"shared", p->shared}, {"routed", p->routed},
        {"router", p->router},       {"embedding", p->embedding}, {"norm", p->norm},     {"head", p->head},
        {"total", p->total},         {"active", p->active},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) print_count(rows[i].name, rows[i].n);
    printf("\nstored as:\n");
    for (int i = 0; i < DTYPES; i++) {
        if (f->bytes[i]) printf("  %-12s %10.3f GB\n", dtype_name((enum dtype)i), (double)f->bytes[i] * 1e-9);
    }
    if (f->left_out_bytes)
        printf("  %-12s %10.3f GB (prediction layers, not used)\n", "left out", (double)f->left_out_bytes * 1e-9);
    printf("\ncache a token: %lld B in f32, %lld B in bf16, %lld B in fp8; the whole context in bf16: %.2f GiB\n",
           (long long)kv_bytes(f, KV_F32), (long long)kv_bytes(f, KV_BF16), (long long)kv_bytes(f, KV_FP8),
           (double)kv_bytes(f, KV_BF16) * m->context / (1 << 30));
}

int cmd_info(int argc, char **argv) {
    const char *model = NULL, *revision = NULL;
    bool json = false, full_hash = false;
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--model", .type = CLI_STRING, .target = &model, .value = "MODEL", .help = "the model, if not given as MODEL"},
        {.names = "--revision", .type = CLI_STRING, .target = &revision, .value = "REV", .help = "branch, tag or commit in the Hugging Face cache"},
        {.names = "--full-hash", .type = CLI_FLAG, .target = &full_hash, .help = "hash every byte instead of samples (reads the whole model)"},
        {.names = "--json", .type = CLI_FLAG, .target = &json, .help = "for programs"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "info",
        .arguments = "MODEL [flags]",
        .flags = flags,
        .max_positionals = 1,
        .about =
            "Says what a model is, from config.json and the headers of its files: parameters by group (active: those "
            "that\n"
            "one token uses, without the embedding), bytes by format, cache a token, context, licence, content hash.",
        .examples = "  moebius info deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct\n  moebius info MODEL --json",
    };
    struct mo_error error = {0};
    struct facts *facts = calloc(1, sizeof *facts);
    int n_positionals, code = cli_parse(&command, argc, argv, &model, &n_positionals, &error);
    if (code > 0) {
        free(facts);
        return 0;
    }
    if (!code && !facts) code = mo_error_set(&error, MO_E_NO_MEMORY, "no memory");
    if (!code && !model) code = mo_error_set(&error, MO_E_INVALID, "no MODEL given (--help shows how)");
    if (!code) code = gather(facts, model, revision, full_hash, &error);
    if (!code && json && print_json(facts)) code = mo_error_set(&error, MO_E_IO, "cannot write to standard output");
    if (!code && !json) print_text(facts);
    if (facts) checkpoint_close(&facts->checkpoint);
    free(facts);
    return code ? cli_fail("info", &error) : 0;
}
