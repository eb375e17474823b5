#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/backend.h"
#include "base/json.h"
#include "base/utf8.h"
#include "cli/cli.h"
#include "cmd/cmd.h"
#include "find/find.h"
#include "cmd/info_hybrid.h"
#include "model/gguf/gguf.h"
#include "model/names.h"
#include "model/pack.h"
#include "cli/override_flags.h"

/* How tensors are stored: their types, and what these bytes are. */
enum { STORED_INT4 = DTYPES, STORED_INT8, STORED_KINDS, MAX_TEXT_BYTES = 4 << 20 };

static const char *stored_name(int kind) {
    return kind == STORED_INT4 ? "INT4" : kind == STORED_INT8 ? "INT8" : dtype_name((enum dtype)kind);
}

static int stored_kind(const struct model *model, const struct tensor *tensor) {
    enum mat_format format;
    int group;
    if (model->quant == QUANT_INT8 && tensor->dtype == DTYPE_I8) return STORED_INT8;
    bool is_block =
        tensor->dtype == DTYPE_U8 && tensor->n_dims == 3 && !block_format_of((size_t)tensor->shape[2], &format, &group);
    if (!is_block) return (int)tensor->dtype;
    return format == MAT_INT4 ? STORED_INT4 : STORED_INT8;
}

/* What words of eight values are packed like; NULL: there are none, by config.json. */
static const char *packing_of(const struct model *model) {
    switch (model->quant) {
    case QUANT_AWQ:
        return "AWQ";
    case QUANT_GPTQ:
        return "GPTQ";
    case QUANT_PACKED:
        return "compressed-tensors";
    default:
        return NULL;
    }
}

/* Everything here comes from config.json and the files' headers; no weight is read but for the hash. */
struct facts {
    char path[4096];
    struct model model;
    struct model_params params;
    struct overrides *overrides;
    struct checkpoint checkpoint;
    int64_t bytes[STORED_KINDS];         /* of the tensors that the engine uses */
    int64_t left_out_bytes, other_bytes; /* prediction layers; a packed file's small files and padding */
    char licence[256];
    char hash[65];
};

/* What reads the whole model, on demand. */
struct depth {
    bool full_hash, verify;
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

static char *read_text(const struct checkpoint *checkpoint, const char *name) {
    char *text = NULL;
    size_t size;
    if (!checkpoint_has_file(checkpoint, name)) return NULL;
    return checkpoint_read_file(checkpoint, name, MAX_TEXT_BYTES, &text, &size, NULL) ? NULL : text;
}

/* A model card (README.md) opens with YAML between two lines of "---"; license_name is the precise one. */
static int licence_from_card(const struct checkpoint *checkpoint, char *out, size_t size) {
    char *text = read_text(checkpoint, "README.md"), general[128] = "", name[128] = "";
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
static int licence_from_file(const struct checkpoint *checkpoint, const char *name, char *out, size_t size) {
    char *text = read_text(checkpoint, name);
    if (!text) return 0;
    const char *at = text;
    while (*at && !isalpha((unsigned char)*at) && (unsigned char)*at < 0x80) at++; /* other scripts have letters too */
    snprintf(out, size, "%.*s", (int)strcspn(at, "\r\n"), at);
    free(text);
    return out[0] != 0;
}

static void find_licence(struct facts *f) {
    static const char *const files[] = {"LICENSE-MODEL", "LICENSE", "LICENSE.txt", "LICENSE.md"};
    if (licence_from_card(&f->checkpoint, f->licence, sizeof f->licence)) return;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        if (licence_from_file(&f->checkpoint, files[i], f->licence, sizeof f->licence)) return;
    }
    snprintf(f->licence, sizeof f->licence,
             f->checkpoint.is_packed || f->checkpoint.gguf ? "not stated in the file" : "not stated in the folder");
}

static int verify(const struct checkpoint *checkpoint, struct mo_error *error) {
    struct pool *pool;
    if (!checkpoint->gguf) return pack_verify(checkpoint, error);
    int code = pool_create(&pool, pool_default_threads(), error);
    if (code) return code;
    code = gguf_verify(checkpoint, pool, error);
    pool_destroy(pool);
    return code;
}

static int gather(struct facts *f, const struct find_request *request, const struct depth *depth,
                  struct mo_error *error) {
    int code = find_model(request, f->path, sizeof f->path, error);
    if (!code) code = checkpoint_open_files(&f->checkpoint, f->path, error);
    if (code) return code;
    f->checkpoint.overrides = f->overrides;
    code = model_load(&f->model, &f->checkpoint, error);
    if (!code) code = checkpoint_open_tensors(&f->checkpoint, error);
    if (!code) code = checkpoint_hash(&f->checkpoint, depth->full_hash, f->hash, error);
    if (!code && depth->verify) code = verify(&f->checkpoint, error);
    if (code) return code;
    model_count_params(&f->model, &f->params);
    for (int i = 0; i < f->checkpoint.n_tensors; i++) {
        const struct tensor *tensor = &f->checkpoint.tensors[i];
        bool is_other = f->checkpoint.is_packed && !strncmp(tensor->name, PACK_PREFIX, strlen(PACK_PREFIX));
        int64_t *sum = is_other                                           ? &f->other_bytes
                       : names_is_left_out(tensor->name, f->model.layers) ? &f->left_out_bytes
                                                                          : &f->bytes[stored_kind(&f->model, tensor)];
        *sum += (int64_t)tensor->bytes;
    }
    find_licence(f);
    utf8_clean(f->licence);
    return 0;
}

static json_t *params_json(const struct model_params *p) {
    return json_pack("{sI sI sI sI sI sI sI sI sI sI sI}", "attention", p->attention, "dense", p->dense, "shared",
                     p->shared, "routed", p->routed, "router", p->router, "embedding", p->embedding, "norm", p->norm,
                     "head", p->head, "tables", p->tables, "total", p->total, "active", p->active);
}

static int64_t kv_bytes(const struct facts *f, enum kv_format kv) {
    return (int64_t)(kv_pool_bytes(&f->model, kv, KV_PAGES_A_NEAR, 1) / KV_PAGES_A_NEAR / KV_PAGE_TOKENS);
}

/* What a packed file says of itself. */
static const struct {
    const char *key, *name, *text;
} packed_keys[] = {
    {PACK_PREFIX "version", "version", "made by moebius"},
    {PACK_PREFIX "options", "options", "with"},
    {PACK_PREFIX "source", "source", "from"},
    {PACK_PREFIX "source_hash", "source_hash", "whose hash is"},
};
enum { N_PACKED_KEYS = sizeof packed_keys / sizeof *packed_keys };

static json_t *packed_json(const struct facts *f) {
    json_t *json = json_pack("{sI}", "other_bytes", f->other_bytes);
    for (int i = 0; i < N_PACKED_KEYS; i++) {
        const char *value = checkpoint_metadata(&f->checkpoint, packed_keys[i].key);
        if (value) json_object_set_new(json, packed_keys[i].name, json_string(value));
    }
    return json;
}

static void print_packed(const struct facts *f) {
    for (int i = 0; i < N_PACKED_KEYS; i++) {
        const char *value = checkpoint_metadata(&f->checkpoint, packed_keys[i].key);
        if (value) printf("%s: %s\n", packed_keys[i].text, value);
    }
    if (f->model.synthetic) printf("SYNTHETIC: random weights, for measuring only\n");
}

/* What a GGUF says of itself. */
static const struct {
    const char *key, *name, *text;
} gguf_keys[] = {
    {"general.name", "name", "name"},
    {"general.quantized_by", "quantized_by", "quantized by"},
    {"general.license.link", "licence_link", "licence at"},
    {"general.source.repo_url", "source", "from"},
};
enum { N_GGUF_KEYS = sizeof gguf_keys / sizeof *gguf_keys };

static json_t *gguf_json(const struct facts *f) {
    json_t *json = json_object();
    for (int i = 0; i < N_GGUF_KEYS; i++) {
        const char *value = checkpoint_metadata(&f->checkpoint, gguf_keys[i].key);
        if (value) json_object_set_new(json, gguf_keys[i].name, json_lossy(value));
    }
    return json;
}

static void print_gguf(const struct facts *f) {
    char text[512];
    for (int i = 0; i < N_GGUF_KEYS; i++) {
        const char *value = checkpoint_metadata(&f->checkpoint, gguf_keys[i].key);
        if (!value || !strcmp(value, f->licence)) continue;
        snprintf(text, sizeof text, "%.500s", value);
        utf8_clean(text);
        printf("%s: %s\n", gguf_keys[i].text, text);
    }
}

static int print_json(const struct facts *f, struct mo_error *error) {
    json_t *formats = json_object();
    for (int i = 0; i < STORED_KINDS; i++) {
        if (f->bytes[i]) json_object_set_new(formats, stored_name(i), json_integer(f->bytes[i]));
    }
    json_t *root = json_pack("{ss so so sI s{sI sI sI} si si ss ss}", "architecture", f->model.architecture, "params",
                             params_json(&f->params), "bytes_by_format", formats, "bytes_left_out", f->left_out_bytes,
                             "kv_bytes_per_token", "f32", kv_bytes(f, KV_F32), "bf16", kv_bytes(f, KV_BF16), "fp8",
                             kv_bytes(f, KV_FP8), "context", f->model.context, "layers", f->model.layers, "licence",
                             f->licence, "hash", f->hash);
    int index_topk = model_is_hybrid(&f->model) ? f->model.hybrid.index_topk : f->model.index_topk;
    json_object_set_new(root, "index_topk", index_topk ? json_integer(index_topk) : json_null());
    json_object_set_new(root, "hybrid", model_is_hybrid(&f->model) ? info_hybrid_json(&f->model) : json_null());
    json_object_set_new(root, "overrides", override_flags_json(&f->checkpoint));
    json_object_set_new(root, "int4_packing", packing_of(&f->model) ? json_string(packing_of(&f->model)) : json_null());
    json_object_set_new(root, "synthetic", json_boolean(f->model.synthetic));
    json_object_set_new(root, "packed", f->checkpoint.is_packed ? packed_json(f) : json_null());
    json_object_set_new(root, "gguf", f->checkpoint.gguf ? gguf_json(f) : json_null());
    return json_print(root, error);
}

static void print_count(const char *name, int64_t n) {
    if (n >= 1000000000) {
        printf("  %-13s %10.3f B\n", name, (double)n * 1e-9);
    } else if (n >= 1000000) {
        printf("  %-13s %10.3f M\n", name, (double)n * 1e-6);
    } else if (n) {
        printf("  %-13s %10.3f k\n", name, (double)n * 1e-3);
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
    if (m->index_topk) {
        printf("sparse attention: %d tokens a query, chosen by an indexer of %d heads of %d\n", m->index_topk,
               m->index_heads, m->index_dim);
    }
    if (model_is_hybrid(m)) info_hybrid_print(m);
    printf("context: %d tokens\nlicence: %s\nhash: %s\n", m->context, f->licence, f->hash);
    override_flags_say(&f->checkpoint, stdout, NULL);
    if (f->checkpoint.is_packed) print_packed(f);
    if (f->checkpoint.gguf) print_gguf(f);
    printf("\nparameters:\n");
    const struct {
        const char *name;
        int64_t n;
    } rows[] = {
        {"attention", p->attention},  {"dense", p->dense},         {"shared", p->shared}, {"routed", p->routed},
        {"router", p->router},        {"embedding", p->embedding}, {"norm", p->norm},     {"head", p->head},
        {"n-gram tables", p->tables}, {"total", p->total},         {"active", p->active},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) print_count(rows[i].name, rows[i].n);
    printf("\nstored as:\n");
    for (int i = 0; i < STORED_KINDS; i++) {
        if (!f->bytes[i]) continue;
        printf("  %-12s %10.3f GB", stored_name(i), (double)f->bytes[i] * 1e-9);
        if (i == DTYPE_I32 && packing_of(m)) printf(" (%s: INT4", packing_of(m));
        if (i == DTYPE_I32 && packing_of(m) && m->quant_group) printf(", groups of %d", m->quant_group);
        printf(i == DTYPE_I32 && packing_of(m) ? ")\n" : "\n");
    }
    if (f->other_bytes) printf("  %-12s %10.3f GB (tokenizer, padding)\n", "other", (double)f->other_bytes * 1e-9);
    if (f->left_out_bytes)
        printf("  %-12s %10.3f GB (prediction layers%s, not used)\n", "left out", (double)f->left_out_bytes * 1e-9,
               model_is_csa2(m) ? ", what sees images" : "");
    printf("\ncache a token: %lld B in f32, %lld B in bf16, %lld B in fp8; the whole context in bf16: %.2f GiB\n",
           (long long)kv_bytes(f, KV_F32), (long long)kv_bytes(f, KV_BF16), (long long)kv_bytes(f, KV_FP8),
           (double)kv_bytes(f, KV_BF16) * m->context / (1 << 30));
}

int cmd_info(int argc, char **argv) {
    struct find_flags hub = {0};
    struct find_request request = {.hub = &hub, .need = FIND_FILES};
    struct override_flags changes = {0};
    struct cli_flag shared[FIND_FLAGS_MAX + OVERRIDE_FLAGS_MAX];
    bool json = false;
    struct depth depth = {0};
    size_t n_shared = find_model_flags(&hub, &request.model, &request.revision, shared);
    shared[n_shared + override_flags_add(&changes, shared + n_shared)] = (struct cli_flag){0};
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--model,-m", .type = CLI_STRING, .target = &request.model, .value = "MODEL", .help = "the model, if not given as MODEL"},
        {.names = "--full-hash", .type = CLI_FLAG, .target = &depth.full_hash, .help = "hash every byte instead of samples (reads the whole model)"},
        {.names = "--verify", .type = CLI_FLAG, .target = &depth.verify, .help = "compare every tensor with its checksum, and look for scales that are not\nfinite (files of quantize and synth; of GGUF files the values alone;\nreads the whole file)"},
        {.names = "--json", .type = CLI_FLAG, .target = &json, .help = "for programs"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "info",
        .arguments = "MODEL [flags]",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
        .about =
            "Says what a model is, from config.json and the headers of its files: parameters by group (active: those "
            "that\n"
            "one token uses, without the embedding), bytes by format, cache a token, context, licence, content hash.",
        .examples = "  moebius info deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct\n  moebius info MODEL --json",
    };
    struct mo_error error = {0};
    struct facts *facts = calloc(1, sizeof *facts);
    int n_positionals, code = cli_parse(&command, argc, argv, &request.model, &n_positionals, &error);
    if (code > 0) {
        free(facts);
        return 0;
    }
    if (!code && !facts) code = mo_error_set(&error, MO_E_NO_MEMORY, "no memory");
    if (!code && !request.model) code = mo_error_set(&error, MO_E_INVALID, "no MODEL given (--help shows how)");
    if (!code) code = override_flags_read(&changes, &facts->overrides, &error);
    if (!code) code = gather(facts, &request, &depth, &error);
    if (!code && json) code = print_json(facts, &error);
    if (!code && !json) print_text(facts);
    if (facts) {
        checkpoint_close(&facts->checkpoint);
        overrides_free(facts->overrides);
    }
    free(facts);
    return code ? cli_fail("info", &error) : 0;
}
