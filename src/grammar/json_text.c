/* grammar/json_text.c - JSON texts (RFC 8259) as nodes. What repeats without end in JSON has an end here (blanks, digits),
 * so that a model cannot go on with it for ever. */
#include <stdlib.h>
#include <string.h>
#include "base/utf8.h"
#include "grammar/front.h"

enum {
    INDENT_BLANKS = 40,
    INDENT_TABS = 10,
    FRACTION_DIGITS = 18,
    EXPONENT_DIGITS = 2,
    EXCEPT_POINTS = 64, /* characters of a name that json_string_except looks at */
};

static int32_t plain_regex(struct nodes *nodes, const char *text) {
    return regex_parse(nodes, text, strlen(text), REGEX_PLAIN, false);
}

static int32_t plain_character(struct nodes *nodes) {
    struct class plain = {{{0x20, 0x21}, {0x23, 0x5b}, {0x5d, CODE_POINT_MAX}}, 3, false};
    return class_nodes(nodes, &plain);
}

/* No \u0000, which parsers in C and databases refuse, and surrogates in pairs only. */
#define HEX "[0-9a-fA-F]"
#define NOT_NUL "0(00[1-9a-fA-F]|0[1-9a-fA-F]" HEX "|[1-9a-fA-F]" HEX "{2})"

int32_t json_character(struct nodes *nodes, struct json_parts *parts) {
    if (parts->character) return parts->character;
    int32_t escape =
        plain_regex(nodes, "\\\\([\"\\\\/bfnrt]|u(" NOT_NUL "|[1-9a-cA-CeEfF]" HEX "{3}|[dD][0-7]" HEX "{2}|"
                           "[dD][89abAB]" HEX "{2}\\\\u[dD][c-fC-F]" HEX "{2}))");
    return parts->character = nodes_alt(nodes, plain_character(nodes), escape);
}

static int32_t quoted(struct nodes *nodes, int32_t inner) {
    return nodes_cat(nodes, nodes_text(nodes, "\""), nodes_cat(nodes, inner, nodes_text(nodes, "\"")));
}

int32_t json_string_text(struct nodes *nodes, struct json_parts *parts) {
    if (parts->string) return parts->string;
    return parts->string = quoted(nodes, nodes_repeat(nodes, json_character(nodes, parts), 0, -1));
}

int32_t json_space(struct nodes *nodes, struct json_parts *parts) {
    if (parts->space) return parts->space;
    int32_t blanks = nodes_repeat(nodes, nodes_text(nodes, " "), 0, INDENT_BLANKS);
    int32_t tabs = nodes_repeat(nodes, nodes_text(nodes, "\t"), 1, INDENT_TABS);
    int32_t line = nodes_cat(nodes, nodes_text(nodes, "\n"), nodes_alt(nodes, blanks, tabs));
    return parts->space = nodes_optional(nodes, nodes_alt(nodes, nodes_text(nodes, " "), line));
}

int32_t json_number(struct nodes *nodes, bool integer) {
    int32_t digit = plain_regex(nodes, "[0-9]"), sign = nodes_optional(nodes, nodes_text(nodes, "-"));
    int32_t big = nodes_cat(nodes, plain_regex(nodes, "[1-9]"), nodes_repeat(nodes, digit, 0, NUMBER_DIGITS - 1));
    int32_t whole = nodes_cat(nodes, sign, nodes_alt(nodes, nodes_text(nodes, "0"), big));
    if (integer) return whole;
    int32_t fraction = nodes_cat(nodes, nodes_text(nodes, "."), nodes_repeat(nodes, digit, 1, FRACTION_DIGITS));
    int32_t exponent =
        nodes_cat(nodes, plain_regex(nodes, "[eE][+-]?"), nodes_repeat(nodes, digit, 1, EXPONENT_DIGITS));
    return nodes_cat(nodes, whole, nodes_cat(nodes, nodes_optional(nodes, fraction), nodes_optional(nodes, exponent)));
}

int32_t json_list(struct nodes *nodes, struct json_parts *parts, const char *open, int32_t item, int min, int max,
                  const char *close) {
    int32_t space = json_space(nodes, parts);
    int32_t more = nodes_cat(nodes, nodes_text(nodes, ","), nodes_cat(nodes, space, item));
    int32_t items = NODES_EMPTY;
    if (max != 0) {
        items = nodes_cat(nodes, item, nodes_repeat(nodes, more, min > 1 ? min - 1 : 0, max < 0 ? -1 : max - 1));
        items = nodes_cat(nodes, items, space);
        if (min == 0) items = nodes_optional(nodes, items);
    }
    int32_t rest = nodes_cat(nodes, space, nodes_cat(nodes, items, nodes_text(nodes, close)));
    return nodes_cat(nodes, nodes_text(nodes, open), rest);
}

int32_t json_member(struct nodes *nodes, int32_t name, int32_t value) {
    int32_t blank = nodes_optional(nodes, nodes_text(nodes, " "));
    return nodes_cat(nodes, name, nodes_cat(nodes, nodes_text(nodes, ":"), nodes_cat(nodes, blank, value)));
}

int32_t json_any(struct nodes *nodes, struct json_parts *parts) {
    if (parts->any || nodes->code) return parts->any;
    int rule = 0;
    parts->any = nodes_rule(nodes, &rule); /* first: arrays and objects hold it */
    int32_t any = nodes_alt(nodes, json_string_text(nodes, parts), json_any_object(nodes, parts));
    any = nodes_alt(nodes, any, json_list(nodes, parts, "[", parts->any, 0, -1, "]"));
    any = nodes_alt(nodes, any, json_number(nodes, false));
    any = nodes_alt(nodes, any, plain_regex(nodes, "true|false|null"));
    nodes_rule_set(nodes, rule, any);
    return parts->any;
}

int32_t json_any_object(struct nodes *nodes, struct json_parts *parts) {
    if (parts->object || nodes->code) return parts->object;
    int rule = 0;
    parts->object = nodes_rule(nodes, &rule);
    int32_t member = json_member(nodes, json_string_text(nodes, parts), json_any(nodes, parts));
    nodes_rule_set(nodes, rule, json_list(nodes, parts, "{", member, 0, -1, "}"));
    return parts->object;
}

int32_t json_constant(struct nodes *nodes, const json_t *value) {
    int32_t node = NODES_EMPTY;
    for (size_t digits = 15; digits <= 17 && node == NODES_EMPTY && !nodes->code; digits++) { /* as few as say it */
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits));
        json_t *again = text ? json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL) : NULL;
        if (!text) nodes_fail(nodes, MO_E_NO_MEMORY, "out of memory for a constant");
        if (text && (digits == 17 || json_equal(value, again))) node = nodes_text(nodes, text);
        json_decref(again);
        free(text);
    }
    return node;
}

/* --- any name but these -------------------------------------------------------------------------- */

/* Names from some character on. */
struct rest {
    const uint8_t *text; /* [size] */
    size_t size;
};

struct except {
    struct nodes *nodes;
    int32_t any;  /* what may follow once the text differs from all names */
    int32_t wide; /* a character outside of ASCII: shared, for it takes many nodes */
};

/* The first character; its length is *length. Texts are valid UTF-8. */
static uint32_t first_point(const struct rest *rest, size_t *length) {
    utf8_next(rest->text, rest->size, length);
    return utf8_code_point(rest->text, *length);
}

static int32_t except_names(struct except *e, struct rest *names, size_t n, int depth);

/* `c`, then what differs from the names that begin with it. */
static int32_t except_behind(struct except *e, const struct rest *names, size_t n, uint32_t c, int depth) {
    struct rest *behind = calloc(n, sizeof *behind);
    size_t n_behind = 0, length = 0;
    if (!behind) return nodes_fail(e->nodes, MO_E_NO_MEMORY, "out of memory for a schema");
    for (size_t i = 0; i < n; i++) {
        size_t size;
        if (names[i].size == 0 || first_point(&names[i], &size) != c) continue;
        behind[n_behind++] = (struct rest){names[i].text + size, names[i].size - size};
        length = size;
    }
    int32_t point = nodes_literal(e->nodes, (const char *)behind[0].text - length, length);
    int32_t node = nodes_cat(e->nodes, point, except_names(e, behind, n_behind, depth + 1));
    free(behind);
    return node;
}

/* The rest of a string that is none of the names: it ends, where none does; or goes on with another character than all of
 * them, and then as it likes; or with that of some, and is none of those. Behind EXCEPT_POINTS equal characters it is
 * refused whatever comes. Escapes are left out: they would be another way to spell a name. */
static int32_t except_names(struct except *e, struct rest *names, size_t n, int depth) {
    struct class other = {{{0, 0x1f}, {'"', '"'}, {'\\', '\\'}}, 3, false};
    int32_t any = NODES_EMPTY;
    bool is_ascii = true;
    if (depth == EXCEPT_POINTS || e->nodes->code) return NODES_NEVER;
    for (size_t i = 0; i < n; i++) {
        if (names[i].size == 0) any = NODES_NEVER;
    }
    for (size_t i = 0; i < n; i++) {
        size_t length;
        uint32_t c = names[i].size > 0 ? first_point(&names[i], &length) : '"';
        bool known = false;
        for (int k = 0; k < other.n; k++) known = known || (c >= other.ranges[k].low && c <= other.ranges[k].high);
        if (known) continue; /* met before, or one that is never written */
        class_add(&other, c, c);
        is_ascii = is_ascii && c < 0x80;
        any = nodes_alt(e->nodes, any, except_behind(e, names, n, c, depth));
    }
    if (is_ascii) class_add(&other, 0x80, CODE_POINT_MAX);
    class_invert(&other);
    int32_t differs = class_nodes(e->nodes, &other);
    if (is_ascii) differs = nodes_alt(e->nodes, differs, e->wide);
    return nodes_alt(e->nodes, any, nodes_cat(e->nodes, differs, e->any));
}

int32_t json_string_except(struct nodes *nodes, const json_t *const *names, size_t n) {
    struct class wide = {{{0x80, CODE_POINT_MAX}}, 1, false};
    struct except e = {nodes, nodes_repeat(nodes, plain_character(nodes), 0, -1), class_nodes(nodes, &wide)};
    struct rest *rests = calloc(n + 1, sizeof *rests);
    if (!rests) return nodes_fail(nodes, MO_E_NO_MEMORY, "out of memory for a schema");
    for (size_t i = 0; i < n; i++) {
        rests[i] = (struct rest){(const uint8_t *)json_string_value(names[i]), json_string_length(names[i])};
    }
    int32_t inner = except_names(&e, rests, n, 0);
    free(rests);
    return quoted(nodes, inner);
}
