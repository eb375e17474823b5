#include "grammar/schema.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/utf8.h"

int32_t schema_fail(struct schema *s, int code, const char *format, ...) {
    char message[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return nodes_fail(s->nodes, code, "%s: %s", s->path, message);
}

/* --- keywords ------------------------------------------------------------------------------------ */

static bool is_in(const char *word, const char *const *list) {
    for (; *list; list++) {
        if (strcmp(word, *list) == 0) return true;
    }
    return false;
}

bool schema_is_annotation(const char *keyword) {
    static const char *const NAMES[] = {
        "title",     "description",   "default",      "examples",         "example",         "$schema",    "$comment",
        "$id",       "$anchor",       "$defs",        "$vocabulary",      "definitions",     "deprecated", "readOnly",
        "writeOnly", "discriminator", "externalDocs", "contentMediaType", "contentEncoding", NULL};
    return is_in(keyword, NAMES) || strncmp(keyword, "x-", 2) == 0;
}

static const char *const KNOWN[] = {"type",
                                    "properties",
                                    "required",
                                    "additionalProperties",
                                    "propertyNames",
                                    "patternProperties",
                                    "minProperties",
                                    "maxProperties",
                                    "items",
                                    "prefixItems",
                                    "minItems",
                                    "maxItems",
                                    "enum",
                                    "const",
                                    "anyOf",
                                    "oneOf",
                                    "allOf",
                                    "$ref",
                                    "minLength",
                                    "maxLength",
                                    "pattern",
                                    "format",
                                    "minimum",
                                    "maximum",
                                    "exclusiveMinimum",
                                    "exclusiveMaximum",
                                    NULL};

/* Keywords that are not kept, with a value that asks for nothing. */
static bool asks_for_nothing(const char *keyword, const json_t *value) {
    static const char *const SWITCHES[] = {"uniqueItems", "nullable", "unevaluatedProperties", "unevaluatedItems",
                                           NULL};
    if (strcmp(keyword, "multipleOf") == 0) return json_is_integer(value) && json_integer_value(value) == 1;
    return is_in(keyword, SWITCHES) && json_is_false(value);
}

static bool check_keywords(struct schema *s, const json_t *schema) {
    const char *keyword;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)schema, keyword, value) {
        if (is_in(keyword, KNOWN) || schema_is_annotation(keyword) || asks_for_nothing(keyword, value)) continue;
        if (s->is_lenient) continue;
        schema_fail(s, MO_E_UNSUPPORTED, "the keyword \"%.60s\" is not supported", keyword);
        return false;
    }
    return true;
}

/* A keyword that restricts, besides those in the list (NULL at its end): its name, or NULL. */
static const char *other_keyword(const json_t *schema, const char *const *known) {
    const char *keyword;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)schema, keyword, value) {
        if (!is_in(keyword, known) && !schema_is_annotation(keyword) && !asks_for_nothing(keyword, value)) {
            return keyword;
        }
    }
    return NULL;
}

int schema_count(struct schema *s, const json_t *schema, const char *keyword, int missing) {
    const json_t *value = json_object_get(schema, keyword);
    double count = json_number_value(value);
    if (!value) return missing;
    if (!json_is_number(value) || count < 0 || count != floor(count)) {
        return schema_fail(s, MO_E_INVALID, "%s: expected a count", keyword);
    }
    bool is_upper = strncmp(keyword, "max", 3) == 0;
    if (count > NODES_REPEAT_MAX && !is_upper) {
        return schema_fail(s, MO_E_INVALID, "%s: at most %d", keyword, NODES_REPEAT_MAX);
    }
    return count > NODES_REPEAT_MAX ? NODES_REPEAT_MAX : (int)count;
}

/* --- types --------------------------------------------------------------------------------------- */

static const char *const TYPES[] = {"object", "array", "string", "integer", "number", "boolean", "null"};
enum { N_TYPES = sizeof TYPES / sizeof *TYPES };

/* Keywords that say something about one type only. Without "type" they are taken to mean that type. */
static const char *const TYPE_KEYWORDS[N_TYPES][10] = {
    {"properties", "required", "additionalProperties", "propertyNames", "patternProperties", "minProperties",
     "maxProperties"},
    {"items", "prefixItems", "minItems", "maxItems"},
    {"minLength", "maxLength", "pattern", "format"},
    {NULL},
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
};

static bool value_has_type(const json_t *value, int type) {
    double number = json_number_value(value);
    switch (type) {
    case 0:
        return json_is_object(value);
    case 1:
        return json_is_array(value);
    case 2:
        return json_is_string(value);
    case 3:
        return json_is_number(value) && number == floor(number);
    case 4:
        return json_is_number(value);
    case 5:
        return json_is_boolean(value);
    default:
        return json_is_null(value);
    }
}

/* One bit a type; 0 if the schema does not say. */
static unsigned types_of(struct schema *s, const json_t *schema) {
    const json_t *type = json_object_get(schema, "type");
    unsigned types = 0;
    size_t n = json_is_array(type) ? json_array_size(type) : type ? 1 : 0;
    if (type && n == 0) schema_fail(s, MO_E_INVALID, "type: the list is empty");
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_is_array(type) ? json_array_get(type, i) : type);
        int k = 0;
        while (k < N_TYPES && name && strcmp(name, TYPES[k])) k++;
        if (k == N_TYPES || !name) schema_fail(s, MO_E_INVALID, "type: \"%.60s\" is no type", name ? name : "?");
        types |= 1u << k;
    }
    for (int k = 0; k < N_TYPES && !type; k++) {
        for (int i = 0; TYPE_KEYWORDS[k][i]; i++) {
            if (json_object_get(schema, TYPE_KEYWORDS[k][i])) types |= 1u << k;
        }
    }
    return types;
}

static int32_t value_of_type(struct schema *s, const json_t *schema, int type) {
    switch (type) {
    case 0:
        return schema_object(s, schema);
    case 1:
        return schema_array(s, schema);
    case 2:
        return schema_string(s, schema);
    case 3:
        return schema_numeric(s, schema, true);
    case 4:
        return schema_numeric(s, schema, false);
    case 5:
        return nodes_alt(s->nodes, nodes_text(s->nodes, "true"), nodes_text(s->nodes, "false"));
    default:
        return nodes_text(s->nodes, "null");
    }
}

static int32_t parse_types(struct schema *s, const json_t *schema) {
    unsigned types = types_of(s, schema);
    if (!types) return json_any(s->nodes, &s->parts);
    int32_t any = NODES_NEVER;
    for (int k = N_TYPES - 1; k >= 0; k--) {
        if (types >> k & 1) any = nodes_alt(s->nodes, value_of_type(s, schema, k), any);
    }
    return any;
}

/* --- constants and alternatives ------------------------------------------------------------------ */

static int32_t add_constant(struct schema *s, const json_t *value, unsigned types, int32_t any) {
    bool fits = !types;
    for (int k = 0; k < N_TYPES; k++) fits = fits || ((types >> k & 1) && value_has_type(value, k));
    if (!fits) return any;
    if (s->mode == SCHEMA_PARAMETERS)
        return schema_fail(s, MO_E_UNSUPPORTED, "enum and const of all arguments are not supported");
    int32_t node = s->mode == SCHEMA_TEXT ? schema_text_constant(s, value) : json_constant(s->nodes, value);
    return nodes_alt(s->nodes, node, any);
}

bool schema_spend(struct schema *s, size_t n) {
    if (n <= SCHEMA_WORK_MAX - s->n_work) {
        s->n_work += n;
        return true;
    }
    s->nodes->is_full = true;
    schema_fail(s, MO_E_INVALID, "it is too large: its parts take too long to compare and to merge");
    return false;
}

bool schema_holds(struct schema *s, const json_t *list, const json_t *value) {
    for (size_t i = 0; i < json_array_size(list) && schema_spend(s, 1); i++) {
        if (json_equal(json_array_get(list, i), value)) return true;
    }
    return false;
}

static int32_t parse_constants(struct schema *s, const json_t *schema) {
    static const char *const MAY_STAND_BESIDE[] = {"type", "enum", "const", NULL};
    const char *other = other_keyword(schema, MAY_STAND_BESIDE);
    const json_t *one = json_object_get(schema, "const"), *list = json_object_get(schema, "enum");
    if (other && !s->is_lenient)
        return schema_fail(s, MO_E_UNSUPPORTED, "\"%.60s\" beside enum or const is not supported", other);
    if (list && (!json_is_array(list) || json_array_size(list) == 0)) {
        return schema_fail(s, MO_E_INVALID, "enum: expected a list that is not empty");
    }
    unsigned types = types_of(s, schema);
    if (one) return !list || schema_holds(s, list, one) ? add_constant(s, one, types, NODES_NEVER) : NODES_NEVER;
    int32_t any = NODES_NEVER;
    for (size_t i = json_array_size(list); i-- > 0;) any = add_constant(s, json_array_get(list, i), types, any);
    return any;
}

static int32_t parse_alternatives(struct schema *s, const json_t *schema, const char *keyword) {
    const json_t *list = json_object_get(schema, keyword);
    const char *const itself[] = {keyword, NULL};
    const json_t *beside = other_keyword(schema, itself) ? schema_without(s, schema, keyword) : NULL;
    int32_t any = NODES_NEVER;
    if (!json_is_array(list) || json_array_size(list) == 0) {
        return schema_fail(s, MO_E_INVALID, "%s: expected a list that is not empty", keyword);
    }
    for (size_t i = json_array_size(list); i-- > 0 && !s->nodes->code;) {
        const json_t *part = json_array_get(list, i);
        char index[24];
        snprintf(index, sizeof index, "%zu", i);
        if (beside) part = schema_merge(s, part, beside);
        if (part) any = nodes_alt(s->nodes, schema_value(s, part, keyword, index), any);
    }
    return any;
}

static int32_t parse_schema(struct schema *s, const json_t *schema) {
    static const char *const REF_ALONE[] = {"$ref", NULL};
    const json_t *ref = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf");
    if (ref && !json_is_string(ref)) return schema_fail(s, MO_E_INVALID, "$ref: expected a string");
    if (ref && !other_keyword(schema, REF_ALONE)) return schema_reference(s, json_string_value(ref));
    const json_t *merged = NULL;
    if (ref) {
        merged = schema_merge(s, schema, json_true()); /* follows the reference */
    } else if (all) {
        merged = schema_merge_all(s, schema, "allOf", all);
    }
    if (ref || all) return merged ? schema_value(s, merged, NULL, NULL) : NODES_EMPTY;
    if (json_object_get(schema, "anyOf")) return parse_alternatives(s, schema, "anyOf");
    if (json_object_get(schema, "oneOf")) return parse_alternatives(s, schema, "oneOf");
    if (json_object_get(schema, "const") || json_object_get(schema, "enum")) return parse_constants(s, schema);
    return parse_types(s, schema);
}

/* --- the whole ----------------------------------------------------------------------------------- */

static void path_add(struct schema *s, const char *part) {
    if (!part) return;
    int n = snprintf(s->path + s->path_size, sizeof s->path - s->path_size, "/%s", part);
    size_t room = sizeof s->path - 1 - s->path_size;
    s->path_size += (size_t)n < room ? (size_t)n : room;
    s->path_size = utf8_valid_prefix((const uint8_t *)s->path, s->path_size);
    s->path[s->path_size] = 0;
}

/* Instead of what could not be kept: any value of the type, as far as that can be told. */
static int32_t any_of_type(struct schema *s, const json_t *schema) {
    const json_t *type = json_object_get(schema, "type");
    s->nodes->code = 0;
    if (s->mode == SCHEMA_TEXT) return s->marks->text;
    if (s->mode == SCHEMA_PARAMETERS) return schema_object(s, NULL);
    if (json_is_string(type)) {
        for (int k = 0; k < N_TYPES; k++) {
            json_t *alone = !strcmp(json_string_value(type), TYPES[k]) ? json_pack("{s:s}", "type", TYPES[k]) : NULL;
            if (!alone) continue;
            int32_t node = value_of_type(s, alone, k);
            json_decref(alone);
            return node;
        }
    }
    return json_any(s->nodes, &s->parts);
}

int32_t schema_value(struct schema *s, const json_t *schema, const char *key, const char *name) {
    size_t before = s->path_size;
    int32_t node = NODES_EMPTY;
    if (s->nodes->code) return NODES_EMPTY;
    path_add(s, key);
    path_add(s, name);
    if (json_is_true(schema)) {
        node = json_any(s->nodes, &s->parts);
    } else if (json_is_false(schema)) {
        node = NODES_NEVER;
    } else if (!json_is_object(schema)) {
        schema_fail(s, MO_E_INVALID, "expected a schema: an object, true or false");
    } else if (s->depth == SCHEMA_DEPTH_MAX) {
        schema_fail(s, MO_E_INVALID, "schemas nest too deep");
    } else if (schema_spend(s, SCHEMA_WORK_PART + json_object_size(schema)) && check_keywords(s, schema)) {
        s->depth++;
        node = parse_schema(s, schema);
        s->depth--;
    }
    bool is_refused = s->nodes->code == MO_E_UNSUPPORTED || s->nodes->code == MO_E_INVALID;
    if (s->is_lenient && is_refused && !s->nodes->is_full) node = any_of_type(s, schema);
    s->path_size = before;
    s->path[before] = 0;
    return node;
}

/* The targets of references are compiled one after the other, and may name others. */
static void compile_references(struct schema *s) {
    while (s->n_done < s->n_refs && !s->nodes->code) {
        struct schema_ref ref = s->refs[s->n_done++];
        s->path_size = 0;
        snprintf(s->path, sizeof s->path, "%.*s", (int)sizeof s->path - 1, ref.pointer);
        s->path_size = utf8_valid_prefix((const uint8_t *)s->path, strlen(s->path));
        nodes_rule_set(s->nodes, ref.rule, schema_value(s, ref.target, NULL, NULL));
    }
}

/* Parameters are no target: "#" is a JSON object wherever it is named. */
static int32_t compile_root(struct schema *s) {
    if (s->mode == SCHEMA_JSON) return schema_reference(s, "#");
    s->path[s->path_size++] = '#';
    int32_t root = schema_value(s, s->root, NULL, NULL);
    s->mode = SCHEMA_JSON;
    return root;
}

static int32_t compile(struct schema *s) {
    int32_t root = NODES_EMPTY;
    s->refs = calloc(SCHEMA_REFS_MAX, sizeof *s->refs);
    s->made = json_array();
    if (s->refs && s->made) {
        root = compile_root(s);
        compile_references(s);
    } else {
        nodes_fail(s->nodes, MO_E_NO_MEMORY, "out of memory for a schema");
    }
    free(s->refs);
    json_decref(s->made);
    return root;
}

int32_t schema_parse(struct nodes *nodes, const char *text, size_t size) {
    struct schema s = {.nodes = nodes};
    if (json_parse(text, size, "schema", &s.root, nodes->error)) {
        nodes->code = nodes->error->code;
        return NODES_EMPTY;
    }
    int32_t root = compile(&s);
    json_decref(s.root);
    return root;
}

int32_t schema_parse_json(struct nodes *nodes, const json_t *schema) {
    struct schema s = {.nodes = nodes, .root = (json_t *)(uintptr_t)schema};
    return compile(&s);
}

int32_t schema_arguments(struct nodes *nodes, const json_t *schema, bool strict, const struct parameter_marks *marks) {
    struct schema s = {.nodes = nodes,
                       .mode = marks ? SCHEMA_PARAMETERS : SCHEMA_JSON,
                       .marks = marks,
                       .is_lenient = !strict,
                       .root = json_copy((json_t *)(uintptr_t)schema)};
    const json_t *type = json_object_get(s.root, "type");
    bool is_object = json_is_string(type) && !strcmp(json_string_value(type), "object");
    if (strict && type && !is_object)
        nodes_fail(nodes, MO_E_INVALID, "#: arguments are an object: \"type\" must say so");
    if (!s.root || json_object_set_new(s.root, "type", json_string("object"))) {
        nodes_fail(nodes, MO_E_NO_MEMORY, "out of memory for a schema");
    }
    int32_t root = nodes->code ? NODES_EMPTY : compile(&s);
    json_decref(s.root);
    return root;
}
