/* grammar/front.h - the front ends: texts to nodes, and the pieces that they share. Each leaves its first mistake in
 * nodes->error (nodes_fail) and returns the node of the whole. Private to src/grammar. */
#ifndef MOEBIUS_GRAMMAR_FRONT_H
#define MOEBIUS_GRAMMAR_FRONT_H

#include <jansson.h>
#include "grammar/nodes.h"

/* What a hexadecimal digit stands for; -1: it is none. */
static inline int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* schema.c: a JSON schema; json_text.c: any JSON object. */
int32_t schema_parse(struct nodes *nodes, const char *text, size_t size);
int32_t schema_parse_json(struct nodes *nodes, const json_t *schema);

/* How the characters that an expression matches are spelled in the answer. */
enum regex_spelling {
    REGEX_PLAIN,
    REGEX_IN_JSON,      /* between the quotes of a JSON string, escaped as there */
    REGEX_IN_PARAMETER, /* of a call in DSML: without U+FF5C, which its marks begin with */
};
/* regex.c: the whole text matches. With `search`, a part of it is enough where ^ and $ do not say otherwise. */
int32_t regex_parse(struct nodes *nodes, const char *text, size_t size, enum regex_spelling spelling, bool search);

/* calls.c: an answer that may call functions. */
struct vocabulary;
int32_t calls_parse(struct nodes *nodes, const char *text, size_t size, const struct vocabulary *vocabulary);
/* How arguments are written that are no JSON object, but a list of parameters (DSML). */
struct parameter_marks {
    int32_t open;  /* before a parameter's name, which stands in quotes */
    int32_t close; /* behind its value */
    int32_t text;  /* a value that is any text, and `close` */
};
/* schema.c: the schema of a call's arguments, which are an object; `marks`: written as parameters, or NULL. Unless it is `strict`, what
 * cannot be kept of it is left out where it stands, and not refused. */
int32_t schema_arguments(struct nodes *nodes, const json_t *schema, bool strict, const struct parameter_marks *marks);

/* gbnf.c: llama.cpp's rules. */
int32_t gbnf_parse(struct nodes *nodes, const char *text, size_t size);

/* --- classes.c: sets of code points --------------------------------------------------------------- */

enum { CLASS_RANGES_MAX = 256, CODE_POINT_MAX = 0x10ffff };

struct class_range {
    uint32_t low, high; /* both in it */
};
struct class {
    struct class_range ranges[CLASS_RANGES_MAX];
    int n;
    bool overflow; /* more ranges than fit: class_nodes says so */
};
void class_add(struct class *set, uint32_t low, uint32_t high);
void class_add_all(struct class *set, const struct class *other);
void class_invert(struct class *set); /* to all code points that are not in it */
/* Exactly one character of the set, as UTF-8; surrogates are never in it. */
int32_t class_nodes(struct nodes *nodes, struct class *set);
/* The same as it stands between the quotes of a JSON string: `"`, `\` and control characters escaped, one way each. */
int32_t class_nodes_in_json(struct nodes *nodes, struct class *set);

/* --- json_text.c: what JSON texts are made of ---------------------------------------------------- */

/* Made once a compilation, when first asked for: 0 is "not yet". */
struct json_parts {
    int32_t character, string, space, any, object;
};
int32_t json_character(struct nodes *nodes, struct json_parts *parts);   /* one, of a string; with all escapes */
int32_t json_string_text(struct nodes *nodes, struct json_parts *parts); /* with its quotes */
/* Between two tokens: nothing, a blank, or a new line with up to 40 blanks or 10 tabs. */
int32_t json_space(struct nodes *nodes, struct json_parts *parts);
int32_t json_any(struct nodes *nodes, struct json_parts *parts);
int32_t json_any_object(struct nodes *nodes, struct json_parts *parts);
int32_t json_number(struct nodes *nodes, bool integer);
/* Exactly this value, written without blanks. */
int32_t json_constant(struct nodes *nodes, const json_t *value);
/* open, `min` to `max` (-1: any) items with commas between them, close; blanks where JSON usually has them. */
int32_t json_list(struct nodes *nodes, struct json_parts *parts, const char *open, int32_t item, int min, int max,
                  const char *close);
/* An object's "name": value. */
int32_t json_member(struct nodes *nodes, int32_t name, int32_t value);
/* A string with its quotes that is none of the `names` [n] (JSON strings). */
int32_t json_string_except(struct nodes *nodes, const json_t *const *names, size_t n);

/* --- number.c: numbers within bounds ------------------------------------------------------------- */

enum { NUMBER_DIGITS = 18 }; /* that an integer may have */
#define NUMBER_MAX INT64_C(999999999999999999)
#define NUMBER_REAL_MAX INT64_C(9999999999999) /* so far a double tells n from n + 0.1 */

/* An integer from low to high, both within +-NUMBER_MAX. */
int32_t number_integer_between(struct nodes *nodes, int64_t low, int64_t high);
/* A number from low to high, both within +-NUMBER_REAL_MAX, without exponent; `above`, `below`: not these themselves. */
int32_t number_between(struct nodes *nodes, int64_t low, bool above, int64_t high, bool below);

#endif
