/* grammar/gbnf.c - llama.cpp's rules: name ::= "text" [a-z0-9] other-name (group)* | ...; # comment. A rule ends where the
 * next one begins. The answer is what "root" describes. */
#include <stdlib.h>
#include <string.h>
#include "base/utf8.h"
#include "grammar/front.h"

enum { GBNF_RULES_MAX = 1024, GBNF_DEPTH_MAX = 100 };

struct gbnf_rule {
    const char *name; /* [size] in the text */
    size_t size;
    int rule;
    int32_t node; /* that stands for it */
    bool defined;
};

struct gbnf {
    struct nodes *nodes;
    const char *text; /* [size] */
    size_t size, at;
    struct gbnf_rule *rules; /* [n_rules] */
    int n_rules, depth;
};

static int32_t parse_alternatives(struct gbnf *g);

static int32_t wrong(struct gbnf *g, const char *what) {
    int line = 1;
    for (size_t i = 0; i < g->at; i++) line += g->text[i] == '\n';
    return nodes_fail(g->nodes, MO_E_INVALID, "line %d: %s", line, what);
}

static char peek(const struct gbnf *g) {
    return g->at < g->size && !g->nodes->code ? g->text[g->at] : 0;
}

static bool take(struct gbnf *g, char c) {
    if (!c || peek(g) != c) return false;
    g->at++;
    return true;
}

static void skip_blanks(struct gbnf *g) {
    for (char c; (c = peek(g)) == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '#'; g->at++) {
        while (c == '#' && g->at + 1 < g->size && g->text[g->at + 1] != '\n') g->at++;
    }
}

static size_t name_size(const struct gbnf *g, size_t at) {
    size_t n = 0;
    for (; at + n < g->size; n++) {
        char c = g->text[at + n], small = (char)(c | 0x20);
        if (!((small >= 'a' && small <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_')) break;
    }
    return n;
}

/* Whether a new rule begins here: a name and "::=". */
static bool at_rule(const struct gbnf *g) {
    size_t at = g->at + name_size(g, g->at);
    if (at == g->at) return false;
    while (at < g->size && (g->text[at] == ' ' || g->text[at] == '\t')) at++;
    return g->size - at >= 3 && !memcmp(g->text + at, "::=", 3);
}

static struct gbnf_rule *rule_of(struct gbnf *g, const char *name, size_t size) {
    for (int i = 0; i < g->n_rules; i++) {
        if (g->rules[i].size == size && !memcmp(g->rules[i].name, name, size)) return &g->rules[i];
    }
    if (g->n_rules == GBNF_RULES_MAX) {
        wrong(g, "too many rules");
        return &g->rules[0];
    }
    struct gbnf_rule *rule = &g->rules[g->n_rules++];
    *rule = (struct gbnf_rule){.name = name, .size = size};
    rule->node = nodes_rule(g->nodes, &rule->rule);
    return rule;
}

/* --- characters ---------------------------------------------------------------------------------- */

static uint32_t take_hex(struct gbnf *g, int n) {
    uint32_t value = 0;
    for (int i = 0; i < n; i++) {
        int digit = hex_digit(peek(g));
        if (digit < 0) return (uint32_t)wrong(g, "too few hexadecimal digits");
        value = value * 16 + (uint32_t)digit;
        g->at++;
    }
    if (value > CODE_POINT_MAX) return (uint32_t)wrong(g, "no character has this number");
    return value;
}

static uint32_t take_point(struct gbnf *g) {
    size_t length;
    if (take(g, '\\')) {
        char c = peek(g);
        g->at += c != 0;
        switch (c) {
        case 'n':
            return '\n';
        case 'r':
            return '\r';
        case 't':
            return '\t';
        case 'x':
            return take_hex(g, 2);
        case 'u':
            return take_hex(g, 4);
        case 'U':
            return take_hex(g, 8);
        case '"':
        case '\\':
        case '[':
        case ']':
        case '-':
        case '^':
            return (uint32_t)c;
        default:
            return (uint32_t)wrong(g, "this escape is not known");
        }
    }
    const uint8_t *text = (const uint8_t *)g->text + g->at;
    if (!peek(g) || utf8_next(text, g->size - g->at, &length) != UTF8_VALID) {
        return (uint32_t)wrong(g, "a text or a class is not closed, or is not valid UTF-8");
    }
    g->at += length;
    return utf8_code_point(text, length);
}

static int32_t parse_text(struct gbnf *g) {
    int32_t node = NODES_EMPTY;
    while (!g->nodes->code && !take(g, '"')) {
        struct class one = {0};
        uint32_t point = take_point(g);
        class_add(&one, point, point);
        node = nodes_cat(g->nodes, node, class_nodes(g->nodes, &one));
    }
    return node;
}

static int32_t parse_class(struct gbnf *g) {
    struct class set = {0};
    bool inverted = take(g, '^');
    while (!g->nodes->code && !take(g, ']')) {
        uint32_t low = take_point(g), high = low;
        if (peek(g) == '-' && g->at + 1 < g->size && g->text[g->at + 1] != ']') {
            g->at++;
            high = take_point(g);
        }
        if (high < low) return wrong(g, "a range of characters is wrong");
        class_add(&set, low, high);
    }
    if (inverted) class_invert(&set);
    return class_nodes(g->nodes, &set);
}

/* --- rules --------------------------------------------------------------------------------------- */

static int32_t parse_group(struct gbnf *g) {
    if (++g->depth > GBNF_DEPTH_MAX) return wrong(g, "groups nest too deep");
    int32_t inner = parse_alternatives(g);
    g->depth--;
    return take(g, ')') ? inner : wrong(g, "a group is not closed");
}

static int32_t parse_atom(struct gbnf *g) {
    size_t size = name_size(g, g->at);
    if (size > 0) {
        const char *name = g->text + g->at;
        g->at += size;
        return rule_of(g, name, size)->node;
    }
    if (take(g, '"')) return parse_text(g);
    if (take(g, '[')) return parse_class(g);
    if (take(g, '(')) return parse_group(g);
    if (take(g, '.')) {
        struct class all = {{{0, CODE_POINT_MAX}}, 1, false};
        return class_nodes(g->nodes, &all);
    }
    return wrong(g, "expected a text, a class, a name or a group");
}

static int take_count(struct gbnf *g) {
    int count = 0;
    for (char c; (c = peek(g)) >= '0' && c <= '9'; g->at++) {
        count = count * 10 + (c - '0');
        if (count > NODES_REPEAT_MAX) wrong(g, "too many repetitions");
    }
    return count;
}

static int32_t parse_repeated(struct gbnf *g) {
    int32_t atom = parse_atom(g);
    int min = 0, max = -1;
    if (take(g, '*')) return nodes_repeat(g->nodes, atom, 0, -1);
    if (take(g, '+')) return nodes_repeat(g->nodes, atom, 1, -1);
    if (take(g, '?')) return nodes_optional(g->nodes, atom);
    if (!take(g, '{')) return atom;
    max = min = take_count(g);
    if (take(g, ',')) max = peek(g) == '}' ? -1 : take_count(g);
    if (!take(g, '}')) wrong(g, "a repetition is not closed");
    if (max >= 0 && max < min) wrong(g, "a repetition's limits are in the wrong order");
    return g->nodes->code ? NODES_EMPTY : nodes_repeat(g->nodes, atom, min, max);
}

static int32_t parse_sequence(struct gbnf *g) {
    int32_t node = NODES_EMPTY;
    for (skip_blanks(g); peek(g) && peek(g) != '|' && peek(g) != ')' && !at_rule(g); skip_blanks(g)) {
        node = nodes_cat(g->nodes, node, parse_repeated(g));
    }
    return node;
}

static int32_t parse_alternatives(struct gbnf *g) {
    int32_t any = parse_sequence(g);
    while (take(g, '|')) any = nodes_alt(g->nodes, any, parse_sequence(g));
    return any;
}

static void parse_rule(struct gbnf *g) {
    if (!at_rule(g)) {
        wrong(g, "expected NAME ::= ...");
        return;
    }
    size_t size = name_size(g, g->at);
    struct gbnf_rule *rule = rule_of(g, g->text + g->at, size);
    g->at += size;
    while (g->text[g->at] != ':') g->at++; /* at_rule has seen it; peek() sees nothing after an error */
    g->at += 3;
    if (rule->defined) wrong(g, "this rule was there before");
    rule->defined = true;
    nodes_rule_set(g->nodes, rule->rule, parse_alternatives(g));
}

int32_t gbnf_parse(struct nodes *nodes, const char *text, size_t size) {
    struct gbnf g = {.nodes = nodes, .text = text, .size = size};
    g.rules = calloc(GBNF_RULES_MAX, sizeof *g.rules);
    if (!g.rules) return nodes_fail(nodes, MO_E_NO_MEMORY, "out of memory for a grammar");
    int32_t root = rule_of(&g, "root", 4)->node;
    if (memchr(text, 0, size)) nodes_fail(nodes, MO_E_INVALID, "it holds a NUL");
    for (skip_blanks(&g); peek(&g); skip_blanks(&g)) parse_rule(&g);
    for (int i = 0; i < g.n_rules && !nodes->code; i++) {
        if (!g.rules[i].defined) {
            nodes_fail(nodes, MO_E_INVALID, "there is no rule \"%.*s\"",
                       g.rules[i].size < 80 ? (int)g.rules[i].size : 80, g.rules[i].name);
        }
    }
    free(g.rules);
    return root;
}
