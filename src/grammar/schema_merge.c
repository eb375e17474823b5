/* grammar/schema_merge.c - references, and several schemas that hold at once made into one. */
#include <stdlib.h>
#include <string.h>
#include "grammar/schema.h"

/* --- references ---------------------------------------------------------------------------------- */

/* One part of a pointer, unescaped: ~1 is "/", ~0 is "~", %2F is a byte. Returns what stands behind it. */
static const char *take_part(const char *pointer, char *part) {
    for (; *pointer && *pointer != '/'; pointer++) {
        char c = *pointer;
        if (c == '~' && (pointer[1] == '0' || pointer[1] == '1')) {
            c = *++pointer == '0' ? '~' : '/';
        } else if (c == '%' && hex_digit(pointer[1]) >= 0 && hex_digit(pointer[2]) >= 0) {
            c = (char)(hex_digit(pointer[1]) * 16 + hex_digit(pointer[2]));
            pointer += 2;
        }
        *part++ = c;
    }
    *part = 0;
    return pointer;
}

/* Follows "#/$defs/a/0"; NULL with an error. */
static const json_t *find_target(struct schema *s, const char *pointer) {
    const json_t *at = s->root;
    const char *rest = pointer + (*pointer == '#');
    char *part = malloc(strlen(pointer) + 1);
    if (!part) schema_fail(s, MO_E_NO_MEMORY, "out of memory for a schema");
    while (part && at && *rest == '/') {
        rest = take_part(rest + 1, part);
        char *end;
        size_t index = strtoul(part, &end, 10);
        at = json_is_array(at) ? (*end ? NULL : json_array_get(at, index)) : json_object_get(at, part);
    }
    free(part);
    if (at && *pointer == '#' && !*rest) return at;
    schema_fail(s, MO_E_INVALID, "$ref: \"%.100s\" is not in this schema (\"#/$defs/NAME\" would be)", pointer);
    return NULL;
}

int32_t schema_reference(struct schema *s, const char *pointer) {
    const json_t *target = find_target(s, pointer);
    if (!target) return NODES_EMPTY;
    for (int i = 0; i < s->n_refs; i++) {
        if (s->refs[i].target == target) return s->refs[i].node;
    }
    if (s->n_refs == SCHEMA_REFS_MAX) {
        return schema_fail(s, MO_E_INVALID, "$ref: at most %d different ones", SCHEMA_REFS_MAX);
    }
    struct schema_ref ref = {.target = target, .pointer = pointer};
    ref.node = nodes_rule(s->nodes, &ref.rule);
    s->refs[s->n_refs++] = ref;
    return ref.node;
}

/* --- merging ------------------------------------------------------------------------------------- */

static json_t *keep(struct schema *s, json_t *made) {
    if (made && json_array_append_new(s->made, made) == 0) return made;
    schema_fail(s, MO_E_NO_MEMORY, "out of memory for a schema");
    return NULL;
}

const json_t *schema_without(struct schema *s, const json_t *schema, const char *keyword) {
    json_t *copy = keep(s, json_copy((json_t *)(uintptr_t)schema));
    if (copy) json_object_del(copy, keyword);
    return copy;
}

/* A list of what is in both (strings or lists; a string is a list of one). "integer" is in "number" too. */
static json_t *types_in_both(struct schema *s, const json_t *a, const json_t *b) {
    size_t n_a = json_is_array(a) ? json_array_size(a) : 1, n_b = json_is_array(b) ? json_array_size(b) : 1;
    json_t *both = schema_spend(s, n_a * n_b) ? json_array() : NULL;
    for (size_t i = 0; both && i < n_a * n_b; i++) {
        json_t *x = (json_t *)(uintptr_t)(json_is_array(a) ? json_array_get(a, i / n_b) : a);
        json_t *y = (json_t *)(uintptr_t)(json_is_array(b) ? json_array_get(b, i % n_b) : b);
        const char *name_x = json_string_value(x), *name_y = json_string_value(y);
        if (!name_x || !name_y) continue;
        bool narrows = !strcmp(name_x, "integer") && !strcmp(name_y, "number");
        bool widens = !strcmp(name_x, "number") && !strcmp(name_y, "integer");
        if (json_equal(x, y) || narrows) json_array_append(both, x);
        if (widens) json_array_append(both, y);
    }
    return both;
}

static json_t *values_in_both(struct schema *s, const json_t *a, const json_t *b) {
    json_t *both = schema_spend(s, json_array_size(a) * json_array_size(b)) ? json_array() : NULL;
    for (size_t i = 0; both && i < json_array_size(a); i++) {
        for (size_t k = 0; k < json_array_size(b); k++) {
            if (json_equal(json_array_get(a, i), json_array_get(b, k))) json_array_append(both, json_array_get(a, i));
        }
    }
    return both;
}

static json_t *lists_joined(struct schema *s, const json_t *a, const json_t *b) {
    bool fits = schema_spend(s, json_array_size(a) + json_array_size(b));
    json_t *joined = fits ? json_copy((json_t *)(uintptr_t)a) : NULL;
    if (joined) json_array_extend(joined, (json_t *)(uintptr_t)b);
    return joined;
}

/* Properties of both; one that is in both must be what both say. */
static json_t *properties_joined(struct schema *s, const json_t *a, const json_t *b) {
    bool fits = schema_spend(s, SCHEMA_WORK_PART * (json_object_size(a) + json_object_size(b)));
    json_t *joined = fits ? json_copy((json_t *)(uintptr_t)a) : NULL, *value;
    const char *name;
    json_object_foreach((json_t *)(uintptr_t)b, name, value) {
        json_t *known = json_object_get(joined, name);
        if (!known)
            json_object_set(joined, name, value);
        else if (!json_equal(known, value))
            json_object_set_new(joined, name, json_pack("{s:[O, O]}", "allOf", known, value));
    }
    return joined;
}

static json_t *stricter(const char *keyword, json_t *a, json_t *b) {
    static const char *const LOWER[] = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"};
    static const char *const UPPER[] = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"};
    if (!json_is_number(a) || !json_is_number(b)) return NULL;
    bool b_is_larger = json_number_value(b) > json_number_value(a);
    for (size_t i = 0; i < sizeof LOWER / sizeof *LOWER; i++) {
        if (!strcmp(keyword, LOWER[i])) return json_incref(b_is_larger ? b : a);
        if (!strcmp(keyword, UPPER[i])) return json_incref(b_is_larger ? a : b);
    }
    return NULL;
}

/* What a keyword says when two schemas have it; NULL if that cannot be said. */
static json_t *both_say(struct schema *s, const char *keyword, json_t *a, json_t *b) {
    if (json_equal(a, b)) return json_incref(a);
    bool lists = json_is_array(a) && json_is_array(b), objects = json_is_object(a) && json_is_object(b);
    if (!strcmp(keyword, "type")) return types_in_both(s, a, b);
    if (!strcmp(keyword, "enum") && lists) return values_in_both(s, a, b);
    if ((!strcmp(keyword, "required") || !strcmp(keyword, "allOf")) && lists) return lists_joined(s, a, b);
    if (!strcmp(keyword, "properties") && objects) return properties_joined(s, a, b);
    return stricter(keyword, a, b);
}

/* "additionalProperties" speaks of what its own schema does not list: with other properties in the other one, one list is
 * not enough. */
static bool closes_out(const json_t *closed, const json_t *other) {
    const json_t *extra = json_object_get(closed, "additionalProperties"), *own = json_object_get(closed, "properties");
    const char *name;
    json_t *value;
    if (!extra || json_is_true(extra)) return false;
    json_object_foreach(json_object_get(other, "properties"), name, value) {
        if (!json_object_get(own, name)) return true;
    }
    return false;
}

/* Follows references until there is none, with what stands beside them. NULL with an error. */
static const json_t *resolve(struct schema *s, const json_t *schema) {
    const json_t *ref = json_object_get(schema, "$ref");
    if (!ref) return schema;
    const json_t *target = json_is_string(ref) ? find_target(s, json_string_value(ref)) : NULL;
    if (!json_is_string(ref)) schema_fail(s, MO_E_INVALID, "$ref: expected a string");
    const json_t *beside = target ? schema_without(s, schema, "$ref") : NULL;
    return beside ? schema_merge(s, target, beside) : NULL;
}

static void merge_into(struct schema *s, json_t *into, const json_t *other) {
    const char *keyword;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)other, keyword, value) {
        json_t *known = json_object_get(into, keyword);
        if (schema_is_annotation(keyword)) continue;
        json_t *said = known ? both_say(s, keyword, known, value) : json_incref(value);
        if (!said || json_object_set_new(into, keyword, said)) {
            schema_fail(s, MO_E_UNSUPPORTED, "two schemas that hold at once both have \"%.60s\", and not the same",
                        keyword);
            return;
        }
    }
}

const json_t *schema_merge(struct schema *s, const json_t *a, const json_t *b) {
    if (s->nodes->code) return NULL;
    if (++s->n_merges > SCHEMA_MERGES_MAX) {
        schema_fail(s, MO_E_INVALID, "too many schemas to merge (allOf, or keywords beside $ref or anyOf)");
        return NULL;
    }
    if (json_is_true(a)) return resolve(s, b);
    if (json_is_true(b)) return resolve(s, a);
    if (json_is_false(a) || json_is_false(b)) return json_false();
    a = resolve(s, a);
    b = a ? resolve(s, b) : NULL;
    if (!a || !b) return NULL;
    if (!json_is_object(a) || !json_is_object(b)) {
        if (json_is_boolean(a) && json_is_boolean(b)) return json_is_true(a) ? b : a;
        if (json_is_boolean(a)) return json_is_true(a) ? b : a;
        if (json_is_boolean(b)) return json_is_true(b) ? a : b;
        schema_fail(s, MO_E_INVALID, "expected a schema: an object, true or false");
        return NULL;
    }
    if (!schema_spend(s, SCHEMA_WORK_PART * (json_object_size(a) + json_object_size(b)))) return NULL;
    if (closes_out(a, b) || closes_out(b, a)) {
        schema_fail(s, MO_E_UNSUPPORTED, "additionalProperties in one of several schemas that hold at once");
        return NULL;
    }
    json_t *both = keep(s, json_copy((json_t *)(uintptr_t)a));
    if (both) merge_into(s, both, b);
    if (s->nodes->code) return NULL;
    const json_t *type = json_object_get(both, "type"); /* where they have none in common, nothing is both */
    return json_is_array(type) && json_array_size(type) == 0 ? json_false() : both;
}

const json_t *schema_merge_all(struct schema *s, const json_t *schema, const char *keyword, const json_t *parts) {
    const json_t *all = schema_without(s, schema, keyword);
    if (!json_is_array(parts)) schema_fail(s, MO_E_INVALID, "%s: expected a list", keyword);
    for (size_t i = 0; all && i < json_array_size(parts); i++) all = schema_merge(s, all, json_array_get(parts, i));
    return s->nodes->code ? NULL : all;
}
