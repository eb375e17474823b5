#include "text/tokenizer.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/utf8.h"
#include "model/checkpoint.h"
#include "text/tokenizer_priv.h"

enum {
    TOKENIZER_JSON_BYTES_MAX = 256 << 20,
    CONFIG_BYTES_MAX = 16 << 20,
    TEMPLATE_BYTES_MAX = 4 << 20,
    TEXT_BYTES_MAX = 1 << 30,
    WHERE_BYTES = 4400,
};

int token_list_push(struct token_list *list, int32_t id, struct mo_error *error) {
    if (list->limit && list->n == list->limit) {
        list->is_full = true;
        return mo_error_set(error, MO_E_LIMIT, "more than %zu tokens", list->limit);
    }
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        int32_t *ids = realloc(list->ids, capacity * sizeof *ids);
        if (!ids) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for %zu token ids", capacity);
        list->ids = ids;
        list->capacity = capacity;
    }
    list->ids[list->n++] = id;
    return 0;
}

void token_list_free(struct token_list *list) {
    free(list->ids);
    *list = (struct token_list){0};
}

/* A normalizer other than none at all, or a decoder other than ByteLevel, would change texts. `list` is the
 * key of a sequence's members. */
static int part_check(const json_t *root, const char *key, const char *list, bool byte_level, const char *where,
                      struct mo_error *error) {
    const json_t *value = json_object_get(root, key);
    const char *type = json_string_value(json_object_get(value, "type"));
    if (type && strcmp(type, "Sequence") == 0) {
        const json_t *members = json_object_get(value, list);
        if (!byte_level && json_is_array(members) && json_array_size(members) == 0) return 0;
        if (byte_level && json_array_size(members) == 1) value = json_array_get(members, 0);
        type = json_string_value(json_object_get(value, "type"));
    }
    if (byte_level ? type && strcmp(type, "ByteLevel") == 0 : !value || json_is_null(value)) return 0;
    return mo_error_set(error, MO_E_UNSUPPORTED, "%s: %s: expected %s, found %.100s", where, key,
                        byte_level ? "ByteLevel" : "none", type ? type : "something without a type");
}

static int tokenizer_fill(struct tokenizer *tokenizer, const json_t *root, const json_t *config, const char *where,
                          const char *config_where, struct mo_error *error) {
    if (!json_is_object(root)) return mo_error_set(error, MO_E_INVALID, "%s: expected a JSON object", where);
    int code = vocabulary_parse(tokenizer, root, where, error);
    if (!code) code = part_check(root, "normalizer", "normalizers", false, where, error);
    if (!code) code = part_check(root, "decoder", "decoders", true, where, error);
    if (code) return code;
    code = pretokenizer_parse(&tokenizer->pretokenizer, json_object_get(root, "pre_tokenizer"), where, error);
    if (code) return code;
    code = lookalikes_build(tokenizer, error);
    if (code) return code;
    return config_parse(tokenizer, config, root, config_where, error);
}

static int tokenizer_create(struct tokenizer **out, const json_t *root, const json_t *config, const char *where,
                            const char *config_where, struct mo_error *error) {
    struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    int code = MO_E_NO_MEMORY;
    if (tokenizer) tokenizer->arena = arena_create();
    if (!tokenizer || !tokenizer->arena) {
        mo_error_set(error, code, "%s: out of memory", where);
        goto fail;
    }
    tokenizer->bos = tokenizer->eos = -1;
    code = tokenizer_fill(tokenizer, root, config, where, config_where, error);
    if (code) goto fail;
    *out = tokenizer;
    return 0;

fail:
    tokenizer_free(tokenizer);
    return code;
}

int tokenizer_parse(struct tokenizer **tokenizer, const char *json, size_t size, const char *config, size_t config_size,
                    const char *where, struct mo_error *error) {
    json_t *root = NULL, *config_root = NULL;
    char config_where[512];
    snprintf(config_where, sizeof config_where, "%s: tokenizer_config", where);
    *tokenizer = NULL;
    int code = json_parse(json, size, where, &root, error);
    if (!code && config) code = json_parse(config, config_size, config_where, &config_root, error);
    if (!code) code = tokenizer_create(tokenizer, root, config_root, where, config_where, error);
    json_decref(root);
    json_decref(config_root);
    return code;
}

/* The text of one of MODEL's files, if there; `kept` is the tokenizer's. */
static int template_read(struct tokenizer *tokenizer, const struct checkpoint *checkpoint, const char *name,
                         const char **kept, struct mo_error *error) {
    char *text;
    size_t size;
    if (!checkpoint_has_file(checkpoint, name)) return 0;
    int code = checkpoint_read_file(checkpoint, name, TEMPLATE_BYTES_MAX, &text, &size, error);
    if (code) return code;
    *kept = arena_strndup(tokenizer->arena, text, size);
    free(text);
    return *kept ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "%s: out of memory", checkpoint->path);
}

/* One of MODEL's files as JSON; where [4400] is its name in messages. */
static int json_read(const struct checkpoint *checkpoint, const char *name, size_t max_bytes, char *where,
                     json_t **root, struct mo_error *error) {
    char *text;
    size_t size;
    checkpoint_file_where(checkpoint, name, where, WHERE_BYTES);
    int code = checkpoint_read_file(checkpoint, name, max_bytes, &text, &size, error);
    if (code) return code;
    code = json_parse(text, size, where, root, error);
    free(text);
    return code;
}

/* Some releases have no template: what the model is called says which it would be. */
static int architecture_read(struct tokenizer *tokenizer, const struct checkpoint *checkpoint, struct mo_error *error) {
    static const char name[] = "config.json";
    char where[WHERE_BYTES];
    json_t *config = NULL;
    if (!checkpoint_has_file(checkpoint, name)) return 0;
    int code = json_read(checkpoint, name, CONFIG_BYTES_MAX, where, &config, error);
    if (code) return code;
    const json_t *first = json_array_get(json_object_get(config, "architectures"), 0);
    if (json_is_string(first)) {
        tokenizer->architecture = arena_strndup(tokenizer->arena, json_string_value(first), json_string_length(first));
        if (!tokenizer->architecture) code = mo_error_set(error, MO_E_NO_MEMORY, "%s: out of memory", where);
    }
    json_decref(config);
    return code;
}

/* What says how to talk to the model, where tokenizer_config.json does not. */
static int chat_read(struct tokenizer *tokenizer, const struct checkpoint *checkpoint, struct mo_error *error) {
    static const char jinja[] = "chat_template.jinja";
    static const char *const modules[] = {"encoding/encoding_dsv4.py", "encoding/encoding.py"};
    int code = template_read(tokenizer, checkpoint, jinja, &tokenizer->chat_template, error);
    if (code || tokenizer->chat_template) return code;
    for (size_t i = 0; i < sizeof modules / sizeof *modules && !code && !tokenizer->chat_module; i++) {
        code = template_read(tokenizer, checkpoint, modules[i], &tokenizer->chat_module, error);
    }
    return code ? code : architecture_read(tokenizer, checkpoint, error);
}

int tokenizer_load(struct tokenizer **tokenizer, const struct checkpoint *checkpoint, struct mo_error *error) {
    static const char config_name[] = "tokenizer_config.json";
    char where[WHERE_BYTES], config_where[WHERE_BYTES];
    json_t *root = NULL, *config = NULL;
    *tokenizer = NULL;
    int code = json_read(checkpoint, "tokenizer.json", TOKENIZER_JSON_BYTES_MAX, where, &root, error);
    if (!code && checkpoint_has_file(checkpoint, config_name)) {
        code = json_read(checkpoint, config_name, CONFIG_BYTES_MAX, config_where, &config, error);
    }
    if (!code) code = tokenizer_create(tokenizer, root, config, where, config_where, error);
    if (!code && !(*tokenizer)->chat_template) code = chat_read(*tokenizer, checkpoint, error);
    json_decref(root);
    json_decref(config);
    if (code) {
        tokenizer_free(*tokenizer);
        *tokenizer = NULL;
    }
    return json_damage(code, error);
}

void tokenizer_free(struct tokenizer *tokenizer) {
    if (!tokenizer) return;
    pretokenizer_free(&tokenizer->pretokenizer);
    arena_destroy(tokenizer->arena);
    free(tokenizer);
}

/* One call of tokenizer_encode: everything that changes. */
struct encoder {
    const struct tokenizer *tokenizer;
    struct token_list *out;
    struct bpe_scratch bpe;
    struct regex_scratch *regex;
};

static int piece_encode(void *context, const uint8_t *piece, size_t n, struct mo_error *error) {
    struct encoder *encoder = context;
    return bpe_encode(&encoder->tokenizer->bpe, &encoder->bpe, piece, n, encoder->out, error);
}

/* text[begin, end) has no added token in it that counts. */
static int plain_encode(struct encoder *encoder, const char *text, size_t begin, size_t end, struct mo_error *error) {
    return pretokenizer_run(&encoder->tokenizer->pretokenizer, encoder->regex, (const uint8_t *)text + begin,
                            end - begin, piece_encode, encoder, error);
}

/* Where encoding stands: text before `plain` is done; added tokens are looked for with the set of `pass`. */
static int special_encode(struct encoder *encoder, const char *text, size_t begin, size_t end, int pass, size_t *plain,
                          struct mo_error *error) {
    if (pass == 2) return 0;
    const struct added_token *token;
    size_t at;
    while ((token = added_set_find(&encoder->tokenizer->added[pass], text, begin, end, &at))) {
        int code = special_encode(encoder, text, begin, at, pass + 1, plain, error);
        if (!code) code = plain_encode(encoder, text, *plain, at, error);
        if (!code) code = token_list_push(encoder->out, token->id, error);
        if (code) return code;
        begin = *plain = at + token->size;
    }
    return special_encode(encoder, text, begin, end, pass + 1, plain, error);
}

static int ranges_encode(struct encoder *encoder, const char *text, size_t size, const struct text_range *ranges,
                         size_t n_ranges, struct mo_error *error) {
    size_t plain = 0;
    for (size_t i = 0; i < n_ranges; i++) {
        assert(ranges[i].begin <= ranges[i].end && ranges[i].end <= size);
        assert(i == 0 || ranges[i - 1].end <= ranges[i].begin);
        int code = special_encode(encoder, text, ranges[i].begin, ranges[i].end, 0, &plain, error);
        if (code) return code;
    }
    return plain_encode(encoder, text, plain, size, error);
}

int tokenizer_encode_ranges(const struct tokenizer *tokenizer, const char *text, size_t size,
                            const struct text_range *ranges, size_t n_ranges, struct token_list *out,
                            struct mo_error *error) {
    if (size > TEXT_BYTES_MAX) {
        return mo_error_set(error, MO_E_LIMIT, "a text of %zu bytes: at most %d are allowed", size, TEXT_BYTES_MAX);
    }
    size_t valid = utf8_valid_prefix((const uint8_t *)text, size);
    if (valid < size) return mo_error_set(error, MO_E_INVALID, "the text is not valid UTF-8 at byte %zu", valid);
    struct encoder encoder = {.tokenizer = tokenizer, .out = out, .regex = regex_scratch_create(size)};
    if (!encoder.regex) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for encoding");
    size_t n_before = out->n;
    int code = ranges_encode(&encoder, text, size, ranges, n_ranges, error);
    if (code) out->n = n_before;
    bpe_scratch_free(&encoder.bpe);
    regex_scratch_destroy(encoder.regex);
    return code;
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size, bool special,
                     struct token_list *out, struct mo_error *error) {
    struct text_range whole = {0, size};
    return tokenizer_encode_ranges(tokenizer, text, size, &whole, special ? 1 : 0, out, error);
}

const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *size) {
    bool known = id >= 0 && id < tokenizer->n_tokens;
    *size = known ? tokenizer->tokens[id].size : 0;
    return known ? tokenizer->tokens[id].bytes : NULL;
}

const char *tokenizer_token_text(const struct tokenizer *tokenizer, int32_t id) {
    size_t size;
    const char *bytes = tokenizer_token_bytes(tokenizer, id, &size);
    return bytes ? bytes : "";
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id) {
    return id >= 0 && id < tokenizer->n_tokens && tokenizer->tokens[id].special;
}

int32_t tokenizer_added_id(const struct tokenizer *tokenizer, const char *content) {
    for (int pass = 0; pass < 2; pass++) {
        const struct added_token *token = added_set_get(&tokenizer->added[pass], content, strlen(content));
        if (token) return token->id;
    }
    return -1;
}

int tokenizer_size(const struct tokenizer *tokenizer) {
    return tokenizer->n_tokens;
}

int32_t tokenizer_bos(const struct tokenizer *tokenizer) {
    return tokenizer->bos;
}

int32_t tokenizer_eos(const struct tokenizer *tokenizer) {
    return tokenizer->eos;
}

bool tokenizer_adds_bos(const struct tokenizer *tokenizer) {
    return tokenizer->adds_bos;
}

const char *tokenizer_chat_template(const struct tokenizer *tokenizer) {
    return tokenizer->chat_template;
}

const char *tokenizer_chat_module(const struct tokenizer *tokenizer) {
    return tokenizer->chat_module;
}

const char *tokenizer_architecture(const struct tokenizer *tokenizer) {
    return tokenizer->architecture ? tokenizer->architecture : "";
}
