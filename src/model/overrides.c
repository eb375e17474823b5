#include "model/overrides.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What may be said. `part`: of the object that the key holds. Sources: vLLM's and llama.cpp's command lines, and the names of GGUF keys
 * in llama.cpp's gguf-py/gguf/constants.py. */
enum kind { WHOLE, REAL, OBJECT };
static const struct known {
    const char *key, *part;
    enum kind kind;
    const char *gguf; /* behind the architecture's name; NULL: no single one */
} known[] = {
    {"num_experts_per_tok", NULL, WHOLE, ".expert_used_count"},
    {"max_position_embeddings", NULL, WHOLE, ".context_length"},
    {"rope_theta", NULL, REAL, ".rope.freq_base"},
    {"compress_rope_theta", NULL, REAL, ".attention.compress_rope_freq_base"},
    {"rope_scaling", NULL, OBJECT, NULL},
    {"rope_scaling", "factor", REAL, ".rope.scaling.factor"},
    {"rope_scaling", "original_max_position_embeddings", WHOLE, ".rope.scaling.original_context_length"},
};
enum { N_KNOWN = sizeof known / sizeof *known };
static const char *const architectures[] = {"deepseek2", "deepseek4"};

struct override {
    const struct known *known;
    const char *architecture; /* of a GGUF's key; NULL: config.json's */
    json_t *value;
};

struct overrides {
    struct override list[N_KNOWN];
    int n;
};

static const char FLAG_JSON[] = "--hf-overrides", FLAG_KV[] = "--override-kv";

static const char *flag_of(const struct override *o) {
    return o->architecture ? FLAG_KV : FLAG_JSON;
}

/* "rope_scaling.factor" */
static const char *name_of(const struct known *k, char name[96]) {
    snprintf(name, 96, "%s%s%s", k->key, k->part ? "." : "", k->part ? k->part : "");
    return name;
}

/* 40.0 and 4e1 are 40: however it is written, the same says the same, and makes the same hash. A new one; NULL: no memory. */
static json_t *plain(json_t *value) {
    static const double exact = 9007199254740992; /* 2^53 */
    const double number = json_number_value(value);
    if (json_is_real(value) && fabs(number) <= exact && number == trunc(number))
        return json_integer((json_int_t)number);
    json_t *copy = json_copy(value), *part;
    const char *key;
    size_t i;
    json_object_foreach(copy, key, part) {
        json_object_set_new_nocheck(copy, key, plain(part));
    }
    json_array_foreach(copy, i, part) {
        json_array_set_new(copy, i, plain(part));
    }
    return copy;
}

/* ---- what is said ---- */

/* Takes over `value`. A key's part beside the whole of it would be the same said twice. */
static int add(struct overrides *overrides, const struct known *k, const char *architecture, json_t *value,
               struct mo_error *error) {
    for (int i = 0; i < overrides->n; i++) {
        const struct known *other = overrides->list[i].known;
        if (strcmp(other->key, k->key) || (other->part && k->part && strcmp(other->part, k->part))) continue;
        json_decref(value);
        return mo_error_set(error, MO_E_INVALID, "%s: \"%s\" is said twice", architecture ? FLAG_KV : FLAG_JSON,
                            k->key);
    }
    overrides->list[overrides->n++] = (struct override){k, architecture, plain(value)};
    json_decref(value);
    return 0;
}

static bool is_of_kind(enum kind kind, const json_t *value) {
    if (kind == OBJECT) return json_is_object(value) || json_is_null(value);
    return kind == WHOLE ? json_is_integer(value) : json_is_number(value);
}

static int add_key(struct overrides *overrides, const char *key, json_t *value, struct mo_error *error) {
    static const char *const expected[] = {"a whole number", "a number", "an object or null"};
    for (int i = 0; i < N_KNOWN; i++) {
        if (known[i].part || strcmp(known[i].key, key)) continue;
        if (is_of_kind(known[i].kind, value)) return add(overrides, &known[i], NULL, json_incref(value), error);
        return mo_error_set(error, MO_E_INVALID, "%s: key \"%s\": expected %s, found %s", FLAG_JSON, key,
                            expected[known[i].kind], json_type_name(value));
    }
    return mo_error_set(error, MO_E_INVALID,
                        "%s: key \"%.100s\" cannot be changed; those that can: num_experts_per_tok, "
                        "max_position_embeddings, rope_theta, compress_rope_theta, rope_scaling",
                        FLAG_JSON, key);
}

static int add_json(struct overrides *overrides, const char *text, struct mo_error *error) {
    json_t *root = NULL, *value;
    const char *key;
    int code = json_parse(text, strlen(text), FLAG_JSON, &root, error);
    if (!code && !json_is_object(root))
        code =
            mo_error_set(error, MO_E_INVALID, "%s: expected a JSON object, found %s", FLAG_JSON, json_type_name(root));
    if (!code) {
        json_object_foreach(root, key, value) {
            if (!code) code = add_key(overrides, key, value, error);
        }
    }
    json_decref(root);
    return code;
}

/* The key behind the architecture's name, and that; NULL: none that is known. */
static const struct known *find_gguf(const char *key, size_t size, const char **architecture) {
    for (size_t a = 0; a < sizeof architectures / sizeof *architectures; a++) {
        const size_t n = strlen(architectures[a]);
        if (size <= n || strncmp(key, architectures[a], n)) continue;
        *architecture = architectures[a];
        for (int i = 0; i < N_KNOWN; i++)
            if (known[i].gguf && strlen(known[i].gguf) == size - n && !strncmp(known[i].gguf, key + n, size - n))
                return &known[i];
    }
    return NULL;
}

/* VALUE of int:VALUE or float:VALUE; NULL: not what the key takes. */
static json_t *read_value(const char *text, size_t size, enum kind kind) {
    static const char *const types[] = {"int:", "float:"};
    const size_t n = strlen(types[kind]);
    char value[64], *end;
    if (size <= n || size - n >= sizeof value || strncmp(text, types[kind], n)) return NULL;
    snprintf(value, sizeof value, "%.*s", (int)(size - n), text + n);
    errno = 0;
    if (kind == WHOLE) {
        const long long number = strtoll(value, &end, 10);
        return *end || errno ? NULL : json_integer(number);
    }
    const double number = strtod(value, &end);
    return *end || !isfinite(number) ? NULL : json_real(number);
}

static int add_kv(struct overrides *overrides, const char *text, size_t size, struct mo_error *error) {
    const char *equals = memchr(text, '=', size), *architecture = NULL;
    if (!equals)
        return mo_error_set(error, MO_E_INVALID, "%s: expected KEY=TYPE:VALUE, found \"%.*s\"", FLAG_KV,
                            (int)(size < 100 ? size : 100), text);
    const size_t key = (size_t)(equals - text);
    const struct known *k = find_gguf(text, key, &architecture);
    if (!k)
        return mo_error_set(error, MO_E_INVALID,
                            "%s: key \"%.*s\" cannot be changed; those that can, behind deepseek2 or deepseek4: "
                            ".expert_used_count, .context_length, .rope.freq_base, "
                            ".attention.compress_rope_freq_base, .rope.scaling.factor, "
                            ".rope.scaling.original_context_length",
                            FLAG_KV, (int)(key < 100 ? key : 100), text);
    json_t *value = read_value(equals + 1, size - key - 1, k->kind);
    if (value) return add(overrides, k, architecture, value, error);
    return mo_error_set(error, MO_E_INVALID, "%s: key \"%.*s\": expected %s, found \"%.*s\"", FLAG_KV, (int)key, text,
                        k->kind == WHOLE ? "int:N" : "float:X", (int)(size - key - 1 < 100 ? size - key - 1 : 100),
                        equals + 1);
}

static int read_all(struct overrides *overrides, const char *json, const char *const *kv, int n_kv,
                    struct mo_error *error) {
    int code = json ? add_json(overrides, json, error) : 0;
    for (int i = 0; i < n_kv; i++) {
        for (const char *at = kv[i]; !code;) {
            const size_t size = strcspn(at, ",");
            code = add_kv(overrides, at, size, error);
            at += size;
            if (!*at++) break;
        }
    }
    return code;
}

int overrides_read(struct overrides **out, const char *json, const char *const *kv, int n_kv, struct mo_error *error) {
    *out = NULL;
    if (!json && !n_kv) return 0;
    struct overrides *overrides = calloc(1, sizeof *overrides);
    if (!overrides) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %s", FLAG_JSON);
    int code = read_all(overrides, json, kv, n_kv, error);
    if (!code && overrides->n) {
        *out = overrides;
        return 0;
    }
    overrides_free(overrides);
    return code;
}

void overrides_free(struct overrides *overrides) {
    for (int i = 0; overrides && i < overrides->n; i++) json_decref(overrides->list[i].value);
    free(overrides);
}

/* ---- what it changes ---- */

/* V4.1's numbers are in a part of its own. */
static json_t *part_with_numbers(json_t *root) {
    json_t *text = json_object_get(root, "text_config");
    return json_is_object(text) ? text : root;
}

/* GGUF's names are one family's, a rotation of compressed rows is V4's; and a table by token says how many experts of the first layers there are. */
static int check(const struct override *o, const json_t *root, const json_t *config, const char *where,
                 struct mo_error *error) {
    const char *name = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));
    const char *family = name && strstr(name, "V4") ? architectures[1] : architectures[0];
    const json_int_t hashed = json_integer_value(json_object_get(config, "num_hash_layers"));
    if (o->architecture && strcmp(o->architecture, family) != 0)
        return mo_error_set(error, MO_E_INVALID, "%s: %s%s: %s takes keys of %s", FLAG_KV, o->architecture,
                            o->known->gguf, where, family);
    if (!strcmp(o->known->key, "compress_rope_theta") && family != architectures[1])
        return mo_error_set(error, MO_E_INVALID, "%s: compress_rope_theta: %s has no compressed rows", flag_of(o),
                            where);
    if (!strcmp(o->known->key, "num_experts_per_tok") && hashed > 0)
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "%s: num_experts_per_tok cannot be changed: the first %lld layers of %s take theirs from a "
                            "table",
                            flag_of(o), (long long)hashed, where);
    if (o->known->part && !json_is_object(json_object_get(config, o->known->key)))
        return mo_error_set(error, MO_E_INVALID, "%s: %s%s: %s has no \"%s\" that it could be a part of", FLAG_KV,
                            o->architecture, o->known->gguf, where, o->known->key);
    return 0;
}

/* A value that is there already is no change: 40 is 40.0. */
static bool is_same(json_t *there, const json_t *said) {
    json_t *value = plain(there);
    bool is = json_equal(value, said);
    json_decref(value);
    return is;
}

static void apply(const struct override *o, json_t *config, json_t *changes) {
    json_t *object = o->known->part ? json_object_get(config, o->known->key) : config;
    const char *key = o->known->part ? o->known->part : o->known->key;
    json_t *old = json_object_get(object, key);
    char name[96];
    if (old ? is_same(old, o->value) : json_is_null(o->value)) return;
    json_array_append_new(changes, json_pack("{ss sO sO? ss}", "key", name_of(o->known, name), "value", o->value,
                                             "instead_of", old, "by", flag_of(o)));
    json_object_set(object, key, o->value);
}

/* Sorted: the order in which something is said makes no other hash. */
static int dump(const json_t *root, char **text, size_t *size, const char *where, struct mo_error *error) {
    char *changed = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS);
    if (!changed) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory to change it", where);
    free(*text);
    *text = changed;
    *size = strlen(changed);
    return 0;
}

int overrides_apply(const struct overrides *overrides, char **text, size_t *size, const char *where, json_t **changes,
                    struct mo_error *error) {
    json_t *root = NULL, *made = json_array();
    int code = json_damage(json_parse(*text, *size, where, &root, error), error);
    if (!code && !json_is_object(root))
        code = mo_error_set(error, MO_E_CORRUPT, "%s: expected a JSON object, found %s", where, json_type_name(root));
    json_t *config = code ? NULL : part_with_numbers(root);
    for (int i = 0; i < overrides->n && !code; i++) {
        code = check(&overrides->list[i], root, config, where, error);
        if (!code) apply(&overrides->list[i], config, made);
    }
    if (!code && json_array_size(made)) code = dump(root, text, size, where, error);
    json_decref(root);
    if (code || !changes) {
        json_decref(made);
    } else {
        *changes = made;
    }
    return code;
}
