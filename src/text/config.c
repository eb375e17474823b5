/* tokenizer_config.json: the names of BOS and EOS, whether BOS is added, and the chat template. */
#include "text/tokenizer_priv.h"

#include <string.h>

/* "bos_token": "<s>", or an object with a "content", or nothing. */
static int token_resolve(const struct tokenizer *tokenizer, const json_t *config, const json_t *root, const char *key,
                         const char *where, int32_t *id, struct mo_error *error) {
    const json_t *value = json_object_get(config, key);
    if (!value || json_is_null(value)) return 0;
    const char *content = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    if (!content) {
        return mo_error_set(error, MO_E_INVALID,
                            "%s: key \"%s\": expected a string or an object with a \"content\" string", where, key);
    }
    *id = vocabulary_find(tokenizer, root, content);
    if (*id >= 0) return 0;
    return mo_error_set(error, MO_E_INVALID, "%s: key \"%s\": tokenizer.json has no token \"%.100s\"", where, key,
                        content);
}

/* Without add_bos_token, a post-processor whose template begins with BOS says the same. */
static bool template_adds_bos(const struct tokenizer *tokenizer, const json_t *root) {
    const json_t *post = json_object_get(root, "post_processor");
    const json_t *first = json_array_get(json_object_get(post, "single"), 0);
    const char *name = json_string_value(json_object_get(json_object_get(first, "SpecialToken"), "id"));
    return name && tokenizer->bos >= 0 && vocabulary_find(tokenizer, root, name) == tokenizer->bos;
}

/* "chat_template": a string, or a list of named ones of which "default" counts. */
static int template_parse(struct tokenizer *tokenizer, const json_t *config, const char *where,
                          struct mo_error *error) {
    const json_t *value = json_object_get(config, "chat_template"), *item;
    size_t i;
    if (!value || json_is_null(value)) return 0;
    if (json_is_array(value)) {
        const json_t *list = value;
        value = NULL;
        json_array_foreach(list, i, item) {
            const char *name = json_string_value(json_object_get(item, "name"));
            if (name && strcmp(name, "default") == 0) value = json_object_get(item, "template");
        }
        if (!value) return 0;
    }
    if (!json_is_string(value)) {
        return mo_error_set(error, MO_E_INVALID,
                            "%s: key \"chat_template\": expected a string or a list of named strings", where);
    }
    tokenizer->chat_template = arena_strndup(tokenizer->arena, json_string_value(value), json_string_length(value));
    return tokenizer->chat_template ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "%s: out of memory", where);
}

int config_parse(struct tokenizer *tokenizer, const json_t *config, const json_t *root, const char *where,
                 struct mo_error *error) {
    if (!config) return 0;
    if (!json_is_object(config)) return mo_error_set(error, MO_E_INVALID, "%s: expected a JSON object", where);
    int code = token_resolve(tokenizer, config, root, "bos_token", where, &tokenizer->bos, error);
    if (code) return code;
    code = token_resolve(tokenizer, config, root, "eos_token", where, &tokenizer->eos, error);
    if (code) return code;
    tokenizer->adds_bos = template_adds_bos(tokenizer, root);
    code = json_get_bool(config, "add_bos_token", JSON_OPTIONAL_KEY, where, &tokenizer->adds_bos, error);
    if (code) return code;
    return template_parse(tokenizer, config, where, error);
}
