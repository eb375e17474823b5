#include "cmd/serve/flags.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/utf8.h"
#include "engine/weights.h"
#include "ranks/ranks.h"
#include "sched/draft.h"

enum {
    DEFAULT_SEQS = 8,
    PROMPT_LOGITS = 64, /* rows of logits a step: prompts are scored that many tokens at a time */
    MAX_KEY_FILE_BYTES = 1 << 16,
    LIST_BYTES = 1024, /* of one --served-model-name or --allowed-origins, its end included */
};

void serve_arguments_init(struct serve_arguments *a) {
    *a = (struct serve_arguments){.tensor_parallel = 1, .data_parallel = 1};
    engine_options_init(&a->engine);
    a->engine.only_scheduled = true;
    a->engine.cache_disk_gib = 16;
    a->engine.max_grammars = GRAMMAR_CACHE_MAX;
    a->server = (struct server_options){.host = "127.0.0.1",
                                        .port = 8000,
                                        .policy.max_logprobs = SCHED_MAX_LOGPROBS,
                                        .max_body_bytes = 32 << 20,
                                        .max_connections = 1024,
                                        .max_queue = 1024,
                                        .request_timeout_s = 60};
}

void serve_arguments_free(struct serve_arguments *a) {
    policy_flags_free(&a->policy);
}

/* --- tables -------------------------------------------------------------------------------------- */

static int add_flags(struct cli_flag *out, const struct cli_flag *flags, size_t bytes) {
    memcpy(out, flags, bytes);
    return (int)(bytes / sizeof *flags);
}

static int http_flags(struct serve_arguments *a, struct cli_flag *out) {
    struct server_options *s = &a->server;
    const struct cli_flag flags[] = {
        {.names = "--host",
         .type = CLI_STRING,
         .target = &s->host,
         .given = &a->listen.has_host,
         .value = "HOST",
         .help = "address to listen on (default 127.0.0.1: this machine only)"},
        {.names = "--port",
         .type = CLI_INT,
         .target = &s->port,
         .given = &a->listen.has_port,
         .min = 0,
         .max = 65535,
         .value = "N",
         .help = "port (default 8000; 0: a free one, which is printed)"},
        {.names = "--api-key",
         .type = CLI_LIST,
         .target = &a->keys,
         .value = "KEY",
         .help = "requests must bring this key; repeatable. Other users of the\nmachine can see it: better "
                 "MOEBIUS_API_KEY or --api-key-file"},
        {.names = "--api-key-file",
         .type = CLI_STRING,
         .target = &a->key_file,
         .value = "FILE",
         .help = "keys, one a line"},
        {.names = "--allowed-origins,--cors-origins",
         .type = CLI_LIST,
         .target = &a->origins,
         .value = "A,B",
         .help = "web pages that may read answers, as http://HOST:PORT; *: all\n(default none: other programs need no "
                 "leave)"},
        {.names = "--no-webui,--no-ui",
         .type = CLI_FLAG,
         .target = &s->no_webui,
         .help = "leave out the page at / that one talks to the model by"},
    };
    return add_flags(out, flags, sizeof flags);
}

/* How requests are read and answered, whoever sends them. */
static int answer_flags(struct serve_arguments *a, struct cli_flag *out) {
    const struct cli_flag flags[] = {
        {.names = "--served-model-name,--alias,-a",
         .type = CLI_LIST,
         .target = &a->names,
         .value = "A,B",
         .help = "names that a request's \"model\" may have, *: any (default: the\nfolder's name, and MODEL as given)"},
        {.names = "--reasoning-format",
         .type = CLI_CHOICE,
         .target = &a->reasoning_format,
         .choices = "auto|deepseek|none",
         .help = "none: thoughts stay in the content, as the model wrote them\n(default auto: apart, in "
                 "reasoning_content)"},
        {.names = "--no-enable-prefix-caching,--no-cache-prompt",
         .type = CLI_FLAG,
         .target = &a->no_prefix_caching,
         .help =
             "compute every prompt from its start; else what is still in the\ncache, whoever asked for it, is used"},
        {.names = "--prefix-cache-dir",
         .type = CLI_STRING,
         .target = &a->engine.cache_folder,
         .value = "DIR",
         .help =
             "keep what was computed there too: a server that starts again, or\nwhose memory was too small, reads it "
             "instead of computing it (holds\nusers' texts as tokens; default: memory alone)"},
        {.names = "--prefix-cache-disk",
         .type = CLI_DOUBLE,
         .target = &a->engine.cache_disk_gib,
         .min = 0.001,
         .max = 1 << 20,
         .value = "GIB",
         .help = "most that DIR may take (default 16; a twentieth of the disk, up to\n8 GiB, stays free in any case)"},
    };
    return add_flags(out, flags, sizeof flags);
}

static int limit_flags(struct server_options *s, struct cli_flag *out) {
    const struct cli_flag flags[] = {
        {.names = "--max-queue",
         .type = CLI_INT,
         .target = &s->max_queue,
         .min = 1,
         .max = 1 << 20,
         .value = "N",
         .help = "sequences that may wait; more get 429 (default 1024)"},
        {.names = "--max-connections",
         .type = CLI_INT,
         .target = &s->max_connections,
         .min = 1,
         .max = 1 << 16,
         .value = "N",
         .help = "connections at once (default 1024)"},
        {.names = "--max-connections-per-address",
         .type = CLI_INT,
         .target = &s->max_connections_per_address,
         .min = 1,
         .max = 1 << 16,
         .value = "N",
         .help = "of them, those from one address: more are closed at once, and\nidle ones from three quarters on "
                 "(default half of\n"
                 "--max-connections; all users of a proxy share its address)"},
        {.names = "--max-body-bytes",
         .type = CLI_INT,
         .target = &s->max_body_bytes,
         .min = 1024,
         .max = 1 << 30,
         .value = "N",
         .help = "largest request (default 33554432)"},
        {.names = "--request-timeout,--timeout,-to",
         .type = CLI_INT,
         .target = &s->request_timeout_s,
         .min = 1,
         .max = 86400,
         .value = "S",
         .help = "seconds that a request may take to arrive, or a client not to\nread (default 60)"},
    };
    return add_flags(out, flags, sizeof flags);
}

static int vllm_flags(struct serve_arguments *a, struct cli_flag *out) {
    const struct cli_flag flags[] = {
        {.names = "vLLM's flags", .type = CLI_HEADING},
        {.names = "--dtype",
         .type = CLI_CHOICE,
         .target = &a->dtype,
         .given = &a->has_dtype,
         .choices = "auto|bfloat16|float16|half|float32|float",
         .help = "says what happens instead"},
        {.names = "--tensor-parallel-size,-tp",
         .type = CLI_INT,
         .target = &a->tensor_parallel,
         .min = 1,
         .max = 4096,
         .value = "1",
         .help = "only 1"},
        {.names = "--data-parallel-size,-dp",
         .type = CLI_INT,
         .target = &a->data_parallel,
         .min = 1,
         .max = 4096,
         .value = "1",
         .help = "only 1"},
        {.names = "--tokenizer",
         .type = CLI_STRING,
         .target = &a->tokenizer,
         .value = "MODEL",
         .help = "only the model's own"},
        {.names = "--speculative-config",
         .type = CLI_STRING,
         .target = &a->speculative,
         .value = "JSON",
         .help = "{\"method\": \"ngram\", \"num_speculative_tokens\": N}: as --draft-max N"},
    };
    return add_flags(out, flags, sizeof flags);
}

/* The engine's flags, with the words that vLLM has besides. */
static int engine_flags_widened(struct serve_arguments *a, struct cli_flag *out) {
    engine_flags(&a->engine, out);
    int n = 0;
    for (; out[n].names; n++) {
        if (!strncmp(out[n].names, "--kv-cache-dtype", 16))
            out[n].choices = "auto|f32|bf16|fp8|float32|bfloat16|fp8_e4m3";
        if (!strncmp(out[n].names, "--generation-config", 19)) out[n].choices = "auto|none|vllm";
    }
    return n;
}

void serve_flags(struct serve_arguments *a, struct cli_flag flags[SERVE_FLAGS_MAX]) {
    int n = http_flags(a, flags);
    n += listen_flags(&a->listen, flags + n);
    n += limit_flags(&a->server, flags + n);
    serve_flags_offline(a, flags + n);
}

void serve_flags_offline(struct serve_arguments *a, struct cli_flag flags[SERVE_FLAGS_MAX]) {
    int n = answer_flags(a, flags);
    n += words_flags(&a->words, flags + n);
    n += policy_flags(&a->policy, &a->server.policy, flags + n);
    n += defaults_flags(&a->defaults, flags + n);
    n += engine_flags_widened(a, flags + n);
    n += vllm_flags(a, flags + n);
    n += words_flags_other(flags + n);
    flags[n] = (struct cli_flag){0};
}

/* --- what cannot be had -------------------------------------------------------------------------- */

static int check_devices(const struct serve_arguments *a, struct mo_error *error) {
    const struct {
        const char *flag;
        int value;
    } sizes[] = {{"--tensor-parallel-size", a->tensor_parallel}, {"--data-parallel-size", a->data_parallel}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i].value == 1) continue;
        return mo_error_set(
            error, MO_E_UNSUPPORTED,
            "%s %d: only 1 is supported: each layer runs on one device (--pipeline-parallel-size shares "
            "the layers)",
            sizes[i].flag, sizes[i].value);
    }
    return 0;
}

/* Before anything large is read, or a port is opened: a model that is not here is fetched first. */
static int check_quantization(const struct serve_arguments *a, struct mo_error *error) {
    char path[4096];
    struct model model;
    int code = engine_find(&a->engine, path, sizeof path, error);
    if (!code) code = model_load_path(&model, path, error);
    if (!code) code = words_flags_check(&a->words, &a->engine, &model, error);
    return code ? code : engine_check_quantization(&model, a->engine.quantization, error);
}

/* Before a model is fetched for it. Only the first of an mpirun's machines answers, and needs it. */
static int check_certificate(const struct serve_arguments *a, struct mo_error *error) {
    struct tls tls = {0};
    int code = tls_is_wanted(&a->server.tls) && !ranks_are_meant() ? tls_read(&tls, &a->server.tls, error) : 0;
    tls_free(&tls);
    return code;
}

/* Before a model is fetched for them. */
static int check_overrides(const struct serve_arguments *a, struct mo_error *error) {
    struct overrides *overrides = NULL;
    int code = override_flags_read(&a->engine.overrides, &overrides, error);
    overrides_free(overrides);
    return code;
}

/* vLLM's keys: the method that we have is its "ngram", and how long a match must be is ours to know. */
static int read_speculative(json_t *root, int *max_drafts, struct mo_error *error) {
    static const char where[] = "--speculative-config";
    const char *method = NULL, *key;
    json_t *value;
    json_object_foreach(root, key, value) {
        bool known = !strcmp(key, "method") || !strcmp(key, "num_speculative_tokens") ||
                     !strcmp(key, "prompt_lookup_min") || !strcmp(key, "prompt_lookup_max");
        if (!known)
            return mo_error_set(error, MO_E_UNSUPPORTED,
                                "%s: \"%s\" is not supported: guesses come from the text itself", where, key);
    }
    int code = json_get_string(root, "method", JSON_REQUIRED_KEY, where, &method, error);
    if (!code && strcmp(method, "ngram") != 0) {
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "%s: method \"%s\" is not supported: only \"ngram\", which needs no other model", where,
                            method);
    }
    return code ? code
                : json_get_int(root, "num_speculative_tokens", JSON_REQUIRED_KEY, 1, DRAFT_MAX, where, max_drafts,
                               error);
}

static int check_speculative(struct serve_arguments *a, struct mo_error *error) {
    json_t *root = NULL;
    if (!a->speculative) return 0;
    int code = json_parse(a->speculative, strlen(a->speculative), "--speculative-config", &root, error);
    if (!code) code = read_speculative(root, &a->engine.max_drafts, error);
    json_decref(root);
    return code;
}

static int check_vllm(struct serve_arguments *a, struct mo_error *error) {
    int code = check_devices(a, error);
    if (!code) code = check_speculative(a, error);
    if (code) return code;
    if (a->tokenizer && strcmp(a->tokenizer, a->engine.model) != 0) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "--tokenizer %s: only the model's own tokenizer is used",
                            a->tokenizer);
    }
    if (a->has_dtype) {
        log_info("--dtype: weights keep the formats of the checkpoint, and sums are fp32 (--compute f32 for "
                 "fp32 throughout)");
    }
    return 0;
}

/* --- names and keys ------------------------------------------------------------------------------ */

/* Names go into JSON. */
static bool is_text(const char *name) {
    return utf8_valid_prefix((const uint8_t *)name, strlen(name)) == strlen(name);
}

static int add_name(struct server_options *s, const char *name, struct mo_error *error) {
    if (!is_text(name)) return mo_error_set(error, MO_E_INVALID, "--served-model-name: not valid UTF-8");
    if (!*name) return mo_error_set(error, MO_E_INVALID, "--served-model-name: a name is empty");
    bool known = strcmp(name, "*") == 0;
    s->any_name = s->any_name || known;
    for (int i = 0; i < s->n_names && !known; i++) known = strcmp(s->names[i], name) == 0;
    if (known) return 0;
    if (s->n_names == SERVER_NAMES_MAX) {
        return mo_error_set(error, MO_E_INVALID, "--served-model-name: more than %d names", SERVER_NAMES_MAX);
    }
    s->names[s->n_names++] = name;
    return 0;
}

/* The words of a list live in copies that nobody frees: as long as the process. */
static int copy_list(char to[LIST_BYTES], const char *list, const char *flag, struct mo_error *error) {
    if (strlen(list) >= LIST_BYTES) {
        return mo_error_set(error, MO_E_INVALID, "%s: expected at most %d bytes, found %zu", flag, LIST_BYTES - 1,
                            strlen(list));
    }
    strcpy(to, list);
    return 0;
}

static int add_names(struct serve_arguments *a, struct mo_error *error) {
    static char folder[256], lists[CLI_LIST_MAX][LIST_BYTES];
    int code = 0;
    for (int i = 0; i < a->names.n && !code; i++) {
        char *rest = lists[i], *name;
        code = copy_list(lists[i], a->names.items[i], "--served-model-name", error);
        while (!code && (name = strsep(&rest, ","))) code = add_name(&a->server, name, error);
    }
    a->server.n_listed = a->server.n_names;
    if (code || a->server.n_names) return code;
    size_t size = strlen(a->engine.model);
    while (size > 1 && a->engine.model[size - 1] == '/') size--;
    size_t start = size;
    while (start > 0 && a->engine.model[start - 1] != '/') start--;
    snprintf(folder, sizeof folder, "%.*s", (int)(size - start), a->engine.model + start);
    utf8_clean(folder);
    bool is_path = file_exists(a->engine.model);
    code = add_name(&a->server, is_path ? folder : a->engine.model, error);
    a->server.n_listed = 1; /* a path is nobody's business */
    const char *other = is_path ? a->engine.model : folder;
    return code || !is_text(other) ? code : add_name(&a->server, other, error);
}

/* vLLM writes these as a JSON list: its marks are in no origin. */
static int add_origins(struct serve_arguments *a, struct mo_error *error) {
    static char lists[CLI_LIST_MAX][LIST_BYTES];
    for (int i = 0; i < a->origins.n; i++) {
        char *rest = lists[i], *word;
        int code = copy_list(lists[i], a->origins.items[i], "--allowed-origins", error);
        if (code) return code;
        while ((word = strsep(&rest, ",[]\" "))) {
            if (!*word) continue;
            if (a->server.n_origins == SERVER_NAMES_MAX) {
                return mo_error_set(error, MO_E_INVALID, "--allowed-origins: more than %d", SERVER_NAMES_MAX);
            }
            a->server.origins[a->server.n_origins++] = word;
        }
    }
    return 0;
}

static int add_key(struct server_options *s, const char *key, size_t size, const char *where, struct mo_error *error) {
    if (auth_add(&s->auth, key, size)) return 0;
    return mo_error_set(error, MO_E_INVALID, "%s: %s", where, size ? "too many keys" : "the key is empty");
}

static int add_key_file(struct server_options *s, const char *path, struct mo_error *error) {
    char *text;
    size_t text_size;
    int code = file_read(path, MAX_KEY_FILE_BYTES, &text, &text_size, error), n = s->auth.n;
    if (code) return code;
    for (char *rest = text, *line; !code && (line = strsep(&rest, "\n"));) {
        size_t size = strcspn(line, "\r");
        if (size) code = add_key(s, line, size, path, error);
    }
    memset(text, 0, text_size);
    free(text);
    if (!code && s->auth.n == n) code = mo_error_set(error, MO_E_INVALID, "%s: no key in it", path);
    return code;
}

static int add_keys(struct serve_arguments *a, struct mo_error *error) {
    const char *environment = getenv("MOEBIUS_API_KEY");
    int code = 0;
    for (int i = 0; i < a->keys.n && !code; i++) {
        code = add_key(&a->server, a->keys.items[i], strlen(a->keys.items[i]), "--api-key", error);
    }
    if (!code && environment && *environment) {
        code = add_key(&a->server, environment, strlen(environment), "MOEBIUS_API_KEY", error);
    }
    if (!code && a->key_file) code = add_key_file(&a->server, a->key_file, error);
    return code;
}

int serve_arguments_settle(struct serve_arguments *a, const char *model, struct mo_error *error) {
    struct engine_options *e = &a->engine;
    if (model && e->model) {
        return mo_error_set(error, MO_E_INVALID, "MODEL is given twice: \"%s\" and --model %s", model, e->model);
    }
    if (model) e->model = model;
    if (!e->model) return mo_error_set(error, MO_E_INVALID, "no MODEL given (--help shows how)");
    if (e->kv > 3) e->kv -= 3; /* float32, bfloat16, fp8_e4m3 are f32, bf16, fp8 */
    if (!e->max_num_seqs) e->max_num_seqs = DEFAULT_SEQS;
    e->prefix_caching = !a->no_prefix_caching;
    a->server.keeps_thoughts = a->reasoning_format == 2;
    e->max_logits = e->max_num_batched_tokens && e->max_num_batched_tokens < PROMPT_LOGITS ? e->max_num_batched_tokens
                                                                                           : PROMPT_LOGITS;
    e->defaults = &a->defaults.values;
    int code = words_flags_settle(&a->words, e, error);
    if (!code) code = check_vllm(a, error);
    if (!code) code = check_overrides(a, error);
    if (!code) code = defaults_flags_settle(&a->defaults, error);
    if (!code) code = policy_flags_settle(&a->policy, &a->server.policy, error);
    if (!code && e->cache_folder && a->no_prefix_caching) {
        code =
            mo_error_set(error, MO_E_INVALID, "--prefix-cache-dir and --no-enable-prefix-caching exclude each other");
    }
    if (!code) code = add_names(a, error);
    if (!code) code = add_origins(a, error);
    if (!code) code = add_keys(a, error);
    if (!code) code = listen_flags_settle(&a->listen, &a->server, error);
    if (!code) code = check_certificate(a, error);
    return code ? code : check_quantization(a, error);
}

void serve_arguments_print(const struct serve_arguments *a, struct buffer *text) {
    defaults_flags_print(&a->defaults, text);
    policy_print(&a->server.policy, text);
}
