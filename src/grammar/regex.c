/* grammar/regex.c - regular expressions as ECMA-262 and Python share them: characters, classes, groups, alternatives,
 * counted and other repetitions. What looks around or back is no regular language and is refused, and so are flags. Lazy
 * repetitions are the same set of texts as greedy ones. */
#include <string.h>
#include "base/utf8.h"
#include "grammar/front.h"

enum { REGEX_DEPTH_MAX = 100 };

struct regex {
    struct nodes *nodes;
    const char *text; /* [size] */
    size_t size, at;
    enum regex_spelling spelling;
    bool search;
    int depth;
};

static int32_t parse_alternatives(struct regex *r);

static int32_t wrong(struct regex *r, int code, const char *what) {
    return nodes_fail(r->nodes, code, "%s, at byte %zu of the expression", what, r->at);
}

static bool more(const struct regex *r) {
    return r->at < r->size && !r->nodes->code;
}

static bool next_is(const struct regex *r, const char *text) {
    size_t n = strlen(text);
    return r->size - r->at >= n && !memcmp(r->text + r->at, text, n);
}

static bool take(struct regex *r, const char *text) {
    if (!next_is(r, text)) return false;
    r->at += strlen(text);
    return true;
}

static int32_t spell(struct regex *r, struct class *set) {
    if (r->spelling == REGEX_IN_JSON) return class_nodes_in_json(r->nodes, set);
    if (r->spelling == REGEX_IN_PARAMETER) { /* the marks' first character is not in it */
        class_invert(set);
        class_add(set, 0xff5c, 0xff5c);
        class_invert(set);
    }
    return class_nodes(r->nodes, set);
}

/* --- characters ---------------------------------------------------------------------------------- */

/* The white space of ECMA-262. */
static const struct class SPACES = {{{9, 13},
                                     {0x20, 0x20},
                                     {0xa0, 0xa0},
                                     {0x1680, 0x1680},
                                     {0x2000, 0x200a},
                                     {0x2028, 0x2029},
                                     {0x202f, 0x202f},
                                     {0x205f, 0x205f},
                                     {0x3000, 0x3000},
                                     {0xfeff, 0xfeff}},
                                    10,
                                    false};

/* \d, \w, \s and their opposites. \s writes ASCII only, where all dialects agree. */
static bool add_named(struct class *set, char letter) {
    struct class named = {0};
    switch (letter | 0x20) {
    case 'd':
        class_add(&named, '0', '9');
        break;
    case 'w':
        class_add(&named, '0', '9');
        class_add(&named, 'A', 'Z');
        class_add(&named, 'a', 'z');
        class_add(&named, '_', '_');
        break;
    case 's':
        if (letter == 'S') {
            named = SPACES;
        } else {
            class_add(&named, 9, 13);
            class_add(&named, ' ', ' ');
        }
        break;
    default:
        return false;
    }
    if (letter < 'a') class_invert(&named);
    class_add_all(set, &named);
    return true;
}

/* Exactly `n` hexadecimal digits. */
static uint32_t take_hex(struct regex *r, int n) {
    uint32_t value = 0;
    for (int i = 0; i < n; i++) {
        int digit = more(r) ? hex_digit(r->text[r->at]) : -1;
        if (digit < 0) return (uint32_t)wrong(r, MO_E_INVALID, "too few hexadecimal digits");
        value = value * 16 + (uint32_t)digit;
        r->at++;
    }
    return value;
}

/* Behind \u: four digits, two times four for a pair of surrogates, or any number in braces. */
static uint32_t take_unicode(struct regex *r) {
    uint32_t value = 0;
    if (take(r, "{")) {
        while (more(r) && !next_is(r, "}") && value <= CODE_POINT_MAX) value = value * 16 + take_hex(r, 1);
        if (!take(r, "}")) wrong(r, MO_E_INVALID, "expected \\u{...}");
    } else {
        value = take_hex(r, 4);
        if (value >= 0xd800 && value < 0xdc00 && take(r, "\\u")) {
            value = 0x10000 + ((value - 0xd800) << 10) + ((take_hex(r, 4) - 0xdc00) & 0x3ff);
        }
    }
    if (value > CODE_POINT_MAX) wrong(r, MO_E_INVALID, "no character has this number");
    return value;
}

/* Behind a backslash, when it is none of \d, \w, \s. */
static uint32_t take_escape(struct regex *r) {
    static const char LETTERS[] = "tnrfv", VALUES[] = "\t\n\r\f\v";
    char c = r->text[r->at];
    const char *place = c ? strchr(LETTERS, c) : NULL;
    bool is_name = (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
    if (!place && c != 'x' && c != 'u' && (is_name || (c >= '1' && c <= '9'))) {
        return (uint32_t)wrong(r, MO_E_UNSUPPORTED, "this escape is not supported");
    }
    if ((unsigned char)c >= 0x80) return (uint32_t)wrong(r, MO_E_INVALID, "this character cannot be escaped");
    r->at++;
    if (place) return (uint32_t)VALUES[place - LETTERS];
    if (c == 'x') return take_hex(r, 2);
    if (c == 'u') return take_unicode(r);
    return c == '0' ? 0 : (uint32_t)c;
}

static uint32_t take_point(struct regex *r) {
    size_t length;
    const uint8_t *text = (const uint8_t *)r->text + r->at;
    if (utf8_next(text, r->size - r->at, &length) != UTF8_VALID) {
        return (uint32_t)wrong(r, MO_E_INVALID, "not valid UTF-8");
    }
    r->at += length;
    return utf8_code_point(text, length);
}

/* --- classes ------------------------------------------------------------------------------------- */

/* One end of a range; false when it was a whole class (\d), which is then in `set`. */
static bool take_end(struct regex *r, struct class *set, uint32_t *point) {
    if (!take(r, "\\")) {
        *point = take_point(r);
        return true;
    }
    if (!more(r)) return wrong(r, MO_E_INVALID, "a backslash ends the expression");
    if (add_named(set, r->text[r->at])) {
        r->at++;
        return false;
    }
    *point = take(r, "b") ? '\b' : take_escape(r);
    return true;
}

static int32_t parse_class(struct regex *r) {
    struct class set = {0};
    bool inverted = take(r, "^");
    if (next_is(r, "]"))
        return wrong(r, MO_E_UNSUPPORTED, "an empty class is not supported (write \\] for the bracket)");
    while (more(r) && !next_is(r, "]")) {
        uint32_t low, high;
        bool is_point = take_end(r, &set, &low);
        if (!next_is(r, "-") || next_is(r, "-]")) {
            if (is_point) class_add(&set, low, low);
            continue;
        }
        r->at++;
        if (!more(r) || !is_point || !take_end(r, &set, &high) || high < low) {
            return wrong(r, MO_E_INVALID, "a range of characters is wrong");
        }
        class_add(&set, low, high);
    }
    if (!take(r, "]")) return wrong(r, MO_E_INVALID, "a class is not closed");
    if (inverted) class_invert(&set);
    return spell(r, &set);
}

/* --- expressions --------------------------------------------------------------------------------- */

static int32_t parse_group(struct regex *r) {
    if (take(r, "?")) {
        bool is_named = take(r, "P<") || (next_is(r, "<") && !next_is(r, "<=") && !next_is(r, "<!"));
        if (is_named) {
            const char *close = memchr(r->text + r->at, '>', r->size - r->at);
            if (!close) return wrong(r, MO_E_INVALID, "a group's name has no end");
            r->at = (size_t)(close - r->text) + 1;
        } else if (!take(r, ":")) {
            return wrong(r, MO_E_UNSUPPORTED, "looking ahead or back, and flags, are not supported");
        }
    }
    if (++r->depth > REGEX_DEPTH_MAX) return wrong(r, MO_E_INVALID, "groups nest too deep");
    int32_t inner = parse_alternatives(r);
    r->depth--;
    if (!take(r, ")")) return wrong(r, MO_E_INVALID, "a group is not closed");
    return inner;
}

static int32_t parse_atom(struct regex *r) {
    struct class set = {0};
    if (take(r, "(")) return parse_group(r);
    if (take(r, "[")) return parse_class(r);
    if (next_is(r, "^") || next_is(r, "$")) {
        return wrong(r, MO_E_UNSUPPORTED, "^ and $ are supported only around a whole alternative");
    }
    if (next_is(r, "*") || next_is(r, "+") || next_is(r, "?")) {
        return wrong(r, MO_E_INVALID, "there is nothing to repeat");
    }
    if (take(r, ".")) { /* no line end of any dialect */
        class_add(&set, '\n', '\n');
        class_add(&set, '\r', '\r');
        class_add(&set, 0x2028, 0x2029);
        class_invert(&set);
        return spell(r, &set);
    }
    uint32_t point;
    if (take_end(r, &set, &point)) class_add(&set, point, point);
    return spell(r, &set);
}

static bool take_count(struct regex *r, int *count) {
    size_t begin = r->at;
    for (*count = 0; more(r) && r->text[r->at] >= '0' && r->text[r->at] <= '9'; r->at++) {
        *count = *count * 10 + (r->text[r->at] - '0');
        if (*count > NODES_REPEAT_MAX) wrong(r, MO_E_INVALID, "too many repetitions");
    }
    return r->at > begin;
}

/* {m}, {m,} or {m,n}; anything else in braces is text. */
static bool take_braces(struct regex *r, int *min, int *max) {
    size_t begin = r->at;
    if (take(r, "{") && take_count(r, min)) {
        *max = *min;
        if (take(r, ",") && !take_count(r, max)) *max = -1;
        if (take(r, "}")) return true;
    }
    r->at = begin;
    return false;
}

static bool take_quantifier(struct regex *r, int *min, int *max) {
    *min = 0, *max = -1;
    if (take(r, "*")) return true;
    if (take(r, "+")) {
        *min = 1;
        return true;
    }
    if (take(r, "?")) {
        *max = 1;
        return true;
    }
    return take_braces(r, min, max);
}

static int32_t parse_repeated(struct regex *r) {
    int32_t atom = parse_atom(r);
    int min, max;
    if (!more(r) || !take_quantifier(r, &min, &max)) return atom;
    if (r->nodes->code) return NODES_EMPTY;
    if (max >= 0 && max < min) return wrong(r, MO_E_INVALID, "a repetition's limits are in the wrong order");
    take(r, "?"); /* lazy */
    if (next_is(r, "+") || next_is(r, "*")) return wrong(r, MO_E_UNSUPPORTED, "this repetition is not supported");
    return nodes_repeat(r->nodes, atom, min, max);
}

/* What may stand on a side that no anchor closes. */
static int32_t padding(struct regex *r, bool anchored) {
    struct class all = {{{0, CODE_POINT_MAX}}, 1, false};
    if (anchored || !r->search || r->depth > 0) return NODES_EMPTY;
    return nodes_repeat(r->nodes, spell(r, &all), 0, -1);
}

static bool at_end_anchor(const struct regex *r) {
    return next_is(r, "$") && (r->at + 1 == r->size || r->text[r->at + 1] == '|');
}

static int32_t parse_alternative(struct regex *r) {
    bool is_top = r->depth == 0;
    int32_t node = padding(r, is_top && take(r, "^"));
    while (more(r) && !next_is(r, "|") && !next_is(r, ")") && !(is_top && at_end_anchor(r))) {
        node = nodes_cat(r->nodes, node, parse_repeated(r));
    }
    return nodes_cat(r->nodes, node, padding(r, is_top && take(r, "$")));
}

static int32_t parse_alternatives(struct regex *r) {
    int32_t any = parse_alternative(r);
    while (more(r) && take(r, "|")) any = nodes_alt(r->nodes, any, parse_alternative(r));
    return any;
}

int32_t regex_parse(struct nodes *nodes, const char *text, size_t size, enum regex_spelling spelling, bool search) {
    struct regex r = {nodes, text, size, 0, spelling, search, 0};
    int32_t node = parse_alternatives(&r);
    if (more(&r)) wrong(&r, MO_E_INVALID, "a group is closed that was not opened");
    return node;
}
