/* grammar/schema_compound.c - objects and arrays. Both are lists whose parts are written from the last to the first: what may
 * follow a part is then there already, and is shared by all ways that lead to it. */
#include <stdlib.h>
#include "grammar/schema.h"

/* --- objects ------------------------------------------------------------------------------------- */

/* What an object may have: the members in this order, then others. */
struct members {
    const json_t **names; /* [n] JSON strings */
    int32_t *nodes;       /* [n] "name": value */
    bool *required;       /* [n] */
    size_t n;
    int32_t other; /* NODES_NEVER: none */
};

static bool is_listed(struct schema *s, const struct members *members, const json_t *name) {
    for (size_t i = 0; i < members->n && schema_spend(s, 1); i++) {
        if (json_equal(members->names[i], name)) return true;
    }
    return false;
}

static void add_member(struct schema *s, struct members *members, json_t *name, bool required, const json_t *schema,
                       const char *key) {
    int32_t node;
    if (s->mode == SCHEMA_PARAMETERS) {
        node = schema_parameter(s, schema_parameter_name(s, name), schema, key, json_string_value(name));
    } else {
        int32_t value = schema_value(s, schema, key, json_string_value(name));
        node = json_member(s->nodes, json_constant(s->nodes, name), value);
    }
    json_array_append(s->made, name);
    members->names[members->n] = name;
    members->required[members->n] = required;
    members->nodes[members->n++] = node;
}

/* The listed properties, then required ones that are not listed. */
static void fill_members(struct schema *s, const json_t *schema, const json_t *extra, struct members *members) {
    const json_t *properties = json_object_get(schema, "properties"), *required = json_object_get(schema, "required");
    const char *key;
    size_t key_size;
    json_t *value;
    json_object_keylen_foreach((json_t *)(uintptr_t)properties, key, key_size, value) {
        json_t *name = json_stringn(key, key_size);
        if (!name) schema_fail(s, MO_E_NO_MEMORY, "out of memory for a schema");
        if (!s->nodes->code) add_member(s, members, name, schema_holds(s, required, name), value, "properties");
        json_decref(name);
    }
    for (size_t i = 0; i < json_array_size(required) && !s->nodes->code; i++) {
        json_t *name = json_array_get(required, i);
        if (!json_is_string(name)) {
            schema_fail(s, MO_E_INVALID, "required: expected strings");
        } else if (!is_listed(s, members, name)) {
            add_member(s, members, name, true, extra, "additionalProperties");
        }
    }
}

/* "," and a part. */
static int32_t after_comma(struct schema *s, int32_t part) {
    int32_t space = json_space(s->nodes, &s->parts);
    return nodes_cat(s->nodes, nodes_text(s->nodes, ","), nodes_cat(s->nodes, space, part));
}

static int32_t members_text(struct schema *s, const struct members *members) {
    struct nodes *nodes = s->nodes;
    if (s->mode == SCHEMA_PARAMETERS)
        return schema_parameters(s, members->nodes, members->required, members->n, members->other);
    int32_t space = json_space(nodes, &s->parts);
    /* what may come when nothing was written yet, and when something was */
    int32_t first = nodes_text(nodes, "}"), later = nodes_cat(nodes, space, first);
    if (members->other != NODES_NEVER) {
        later = nodes_cat(nodes, nodes_repeat(nodes, after_comma(s, members->other), 0, -1), later);
        first = nodes_alt(nodes, nodes_cat(nodes, members->other, later), first);
    }
    for (size_t i = members->n; i-- > 0;) {
        int32_t begun = nodes_cat(nodes, members->nodes[i], later), more = after_comma(s, members->nodes[i]);
        first = members->required[i] ? begun : nodes_alt(nodes, begun, first);
        later = nodes_cat(nodes, members->required[i] ? more : nodes_optional(nodes, more), later);
    }
    return nodes_cat(nodes, nodes_text(nodes, "{"), nodes_cat(nodes, space, first));
}

static void check_counts(struct schema *s, const json_t *schema, const struct members *members) {
    int n_required = 0;
    for (size_t i = 0; i < members->n; i++) n_required += members->required[i];
    int min = schema_count(s, schema, "minProperties", 0), max = schema_count(s, schema, "maxProperties", -1);
    bool is_open = members->other != NODES_NEVER;
    if (min > n_required || (max >= 0 && (is_open || (size_t)max < members->n))) {
        schema_fail(s, MO_E_UNSUPPORTED, "minProperties and maxProperties beside properties are not supported");
    }
}

/* With any name that the node writes. */
static int32_t other_member(struct schema *s, int32_t name, const json_t *schema) {
    if (s->mode == SCHEMA_PARAMETERS) return schema_parameter(s, name, schema, "additionalProperties", NULL);
    return json_member(s->nodes, name, schema_value(s, schema, "additionalProperties", NULL));
}

static int32_t fixed_object(struct schema *s, const json_t *schema, const json_t *extra) {
    size_t most =
        json_object_size(json_object_get(schema, "properties")) + json_array_size(json_object_get(schema, "required"));
    struct members members = {.other = NODES_NEVER};
    int32_t node = NODES_EMPTY;
    if (most > SCHEMA_PROPERTIES_MAX) {
        return schema_fail(s, MO_E_INVALID, "it is too large: more than %d properties", SCHEMA_PROPERTIES_MAX);
    }
    members.names = calloc(most + 1, sizeof *members.names);
    members.nodes = calloc(most + 1, sizeof *members.nodes);
    members.required = calloc(most + 1, sizeof *members.required);
    if (members.names && members.nodes && members.required) {
        fill_members(s, schema, extra, &members);
        if (!json_is_false(extra)) {
            int32_t name = json_string_except(s->nodes, members.names, members.n);
            members.other = other_member(s, name, extra);
        }
        check_counts(s, schema, &members);
        node = members_text(s, &members);
    } else {
        schema_fail(s, MO_E_NO_MEMORY, "out of memory for a schema");
    }
    free(members.names);
    free(members.nodes);
    free(members.required);
    return node;
}

/* A name by "propertyNames" (a schema of strings) or the one of "patternProperties". */
static int32_t map_name(struct schema *s, const json_t *schema, const json_t **value) {
    const json_t *names = json_object_get(schema, "propertyNames");
    json_t *patterns = json_object_get(schema, "patternProperties");
    bool is_list = s->mode == SCHEMA_PARAMETERS;
    if (is_list && (names || patterns)) {
        return schema_fail(s, MO_E_UNSUPPORTED,
                           "propertyNames and patternProperties of all arguments are not supported");
    }
    if (is_list) return json_string_except(s->nodes, NULL, 0);
    if (patterns) {
        bool is_closed = !json_object_get(schema, "additionalProperties") || json_is_false(*value);
        if (json_object_size(patterns) != 1 || names || !is_closed) {
            return schema_fail(s, MO_E_UNSUPPORTED,
                               "patternProperties: only one pattern, with nothing beside it, is "
                               "supported");
        }
        void *only = json_object_iter(patterns);
        json_t *pattern = json_pack("{s:s, s:s}", "type", "string", "pattern", json_object_iter_key(only));
        *value = json_object_iter_value(only);
        if (!pattern || json_array_append_new(s->made, pattern)) {
            return schema_fail(s, MO_E_NO_MEMORY, "out of memory for a schema");
        }
        return schema_value(s, pattern, "patternProperties", NULL);
    }
    if (!names) return json_string_text(s->nodes, &s->parts);
    json_t *of_strings = json_pack("{s:s}", "type", "string");
    if (!of_strings || json_array_append_new(s->made, of_strings)) {
        return schema_fail(s, MO_E_NO_MEMORY, "out of memory for a schema");
    }
    const json_t *both = schema_merge(s, names, of_strings);
    return both ? schema_value(s, both, "propertyNames", NULL) : NODES_EMPTY;
}

/* Any names, with values of one kind. */
static int32_t map_object(struct schema *s, const json_t *schema, const json_t *extra) {
    int min = schema_count(s, schema, "minProperties", 0), max = schema_count(s, schema, "maxProperties", -1);
    if (min > 1) return schema_fail(s, MO_E_UNSUPPORTED, "minProperties above 1 is not supported: names may repeat");
    bool is_list = s->mode == SCHEMA_PARAMETERS;
    if (max >= 0 && min > max) return NODES_NEVER;
    int32_t name = map_name(s, schema, &extra);
    if (json_is_false(extra)) max = 0;
    if (max == 0 && min > 0) return NODES_NEVER;
    int32_t member = max == 0 ? NODES_EMPTY : other_member(s, name, extra);
    if (is_list) return schema_parameter_list(s, nodes_repeat(s->nodes, member, min, max), min == 0);
    return json_list(s->nodes, &s->parts, "{", member, min, max, "}");
}

int32_t schema_object(struct schema *s, const json_t *schema) {
    const json_t *properties = json_object_get(schema, "properties"), *required = json_object_get(schema, "required");
    const json_t *extra = json_object_get(schema, "additionalProperties");
    bool is_map = !properties && json_array_size(required) == 0;
    bool has_names = json_object_get(schema, "propertyNames") || json_object_get(schema, "patternProperties");
    if (properties && !json_is_object(properties))
        return schema_fail(s, MO_E_INVALID, "properties: expected an object");
    if (required && !json_is_array(required)) return schema_fail(s, MO_E_INVALID, "required: expected a list");
    if (!is_map && has_names) {
        return schema_fail(s, MO_E_UNSUPPORTED,
                           "propertyNames and patternProperties beside properties are not supported");
    }
    if (is_map) return map_object(s, schema, extra ? extra : json_true());
    return fixed_object(s, schema, extra ? extra : properties ? json_false() : json_true());
}

/* --- arrays -------------------------------------------------------------------------------------- */

/* [first, second, ..., item, item]: `min` to `max` (-1: any) of them. */
static int32_t tuple(struct schema *s, const json_t *prefix, int32_t item, int min, int max) {
    struct nodes *nodes = s->nodes;
    int n = (int)json_array_size(prefix);
    int32_t space = json_space(nodes, &s->parts), close = nodes_text(nodes, "]");
    int32_t end = nodes_cat(nodes, space, close), later = end;
    if (max < 0 || max > n) {
        later = nodes_repeat(nodes, after_comma(s, item), min > n ? min - n : 0, max < 0 ? -1 : max - n);
        later = nodes_cat(nodes, later, end);
    } else if (min > n) {
        return NODES_NEVER;
    }
    for (int i = n - 1; i >= 0; i--) {
        char index[16];
        snprintf(index, sizeof index, "%d", i);
        int32_t part = schema_value(s, json_array_get(prefix, (size_t)i), "prefixItems", index);
        bool may_end = i >= min, must_end = max >= 0 && i >= max;
        int32_t more = nodes_cat(nodes, i == 0 ? part : after_comma(s, part), later);
        int32_t stop = i == 0 ? close : end;
        later = must_end ? stop : may_end ? nodes_alt(nodes, more, stop) : more;
    }
    return nodes_cat(nodes, nodes_text(nodes, "["), nodes_cat(nodes, space, later));
}

int32_t schema_array(struct schema *s, const json_t *schema) {
    const json_t *prefix = json_object_get(schema, "prefixItems"), *items = json_object_get(schema, "items");
    int min = schema_count(s, schema, "minItems", 0), max = schema_count(s, schema, "maxItems", -1);
    if (json_is_array(items))
        return schema_fail(s, MO_E_UNSUPPORTED, "items: a list of schemas is \"prefixItems\" now");
    if (prefix && (!json_is_array(prefix) || json_array_size(prefix) == 0 || json_array_size(prefix) > NODES_MAX)) {
        return schema_fail(s, MO_E_INVALID, "prefixItems: expected a list that is not empty");
    }
    int n = (int)json_array_size(prefix);
    if (json_is_false(items) && (max < 0 || max > n)) max = n;
    if (max >= 0 && min > max) return NODES_NEVER;
    int32_t item = NODES_NEVER;
    if (max < 0 || max > n) item = schema_value(s, items ? items : json_true(), "items", NULL);
    if (!prefix) return json_list(s->nodes, &s->parts, "[", item, min, max, "]");
    return tuple(s, prefix, item, min, max);
}
