/* grammar/schema_parameters.c - a call's arguments where each is written by itself, as in DSML: its name, whether it is text or
 * JSON, the value, and a mark that closes it. A string is bare text there, anything else JSON. */
#include <string.h>
#include "grammar/schema.h"
#include "text/calls.h"

/* What the schema and a type allow, in a mode; a kept `types` is added to the schema by "allOf". */
static int32_t value_of(struct schema *s, const json_t *schema, json_t *types, enum schema_mode mode, const char *key,
                        const char *part) {
    json_t *both = json_pack("{s:[O, {s:o}]}", "allOf", schema, "type", types);
    if (!both || json_array_append_new(s->made, both)) {
        return schema_fail(s, MO_E_NO_MEMORY, "out of memory for a schema");
    }
    s->mode = mode;
    int32_t node = schema_value(s, both, key, part);
    s->mode = SCHEMA_PARAMETERS;
    return node;
}

/* One of the two is NODES_NEVER where the schema says so at once. */
static void read_value(struct schema *s, const json_t *schema, const char *key, const char *part, int32_t *text,
                       int32_t *json) {
    const char *type = json_string_value(json_object_get(schema, "type"));
    bool is_string = type && !strcmp(type, "string");
    *text = *json = NODES_NEVER;
    if (!type || is_string) *text = value_of(s, schema, json_string("string"), SCHEMA_TEXT, key, part);
    if (is_string) return;
    json_t *others = json_pack("[s, s, s, s, s]", "object", "array", "number", "boolean", "null");
    *json = value_of(s, schema, others, SCHEMA_JSON, key, part);
}

int32_t schema_parameter(struct schema *s, int32_t name, const json_t *schema, const char *key, const char *part) {
    struct nodes *n = s->nodes;
    int32_t text, json;
    read_value(s, schema, key, part, &text, &json);
    text = nodes_cat(n, nodes_text(n, "true\">"), text);
    json = nodes_cat(n, nodes_text(n, "false\">"), nodes_cat(n, json, s->marks->close));
    int32_t value = nodes_cat(n, nodes_text(n, " string=\""), nodes_alt(n, text, json));
    return nodes_cat(n, s->marks->open, nodes_cat(n, name, value));
}

int32_t schema_parameter_list(struct schema *s, int32_t parameters, bool may_be_empty) {
    return may_be_empty ? nodes_alt(s->nodes, parameters, nodes_text(s->nodes, "\n")) : parameters;
}

int32_t schema_parameters(struct schema *s, const int32_t *parameters, const bool *required, size_t n, int32_t other) {
    int32_t all = nodes_repeat(s->nodes, other, 0, -1);
    bool may_be_empty = true;
    for (size_t i = n; i-- > 0;) {
        int32_t one = required[i] ? parameters[i] : nodes_optional(s->nodes, parameters[i]);
        all = nodes_cat(s->nodes, one, all);
        may_be_empty = may_be_empty && !required[i];
    }
    return schema_parameter_list(s, all, may_be_empty);
}

int32_t schema_parameter_name(struct schema *s, const json_t *name) {
    int32_t quote = nodes_text(s->nodes, "\"");
    int32_t inner = nodes_literal(s->nodes, json_string_value(name), json_string_length(name));
    return nodes_cat(s->nodes, quote, nodes_cat(s->nodes, inner, quote));
}

int32_t schema_text_character(struct schema *s) {
    struct class any = {{{0xff5c, 0xff5c}}, 1, false};
    class_invert(&any);
    return class_nodes(s->nodes, &any);
}

int32_t schema_text_constant(struct schema *s, const json_t *value) {
    bool has_mark = memmem(json_string_value(value), json_string_length(value), DSML, strlen(DSML));
    if (has_mark) return NODES_NEVER; /* it would be read as the end */
    int32_t text = nodes_literal(s->nodes, json_string_value(value), json_string_length(value));
    return nodes_cat(s->nodes, text, s->marks->close);
}
