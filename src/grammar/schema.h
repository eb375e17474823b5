/* grammar/schema.h - what the files of the schema compiler share. Private to src/grammar.
 *
 *   schema.c           keywords, types, constants, alternatives
 *   schema_scalar.c    strings and numbers
 *   schema_compound.c  objects and arrays
 *   schema_parameters.c  a call's arguments where each is written by itself
 *   schema_merge.c     $ref, and several schemas that hold at once (allOf, keywords beside $ref or anyOf) as one
 *
 * The texts that come out are valid, but not every valid text can come out: properties stand in the schema's order, what
 * `additionalProperties` does not mention is not added, and numbers have a limited number of digits. */
#ifndef MOEBIUS_GRAMMAR_SCHEMA_H
#define MOEBIUS_GRAMMAR_SCHEMA_H

#include "grammar/front.h"

enum {
    SCHEMA_DEPTH_MAX = 100,
    SCHEMA_REFS_MAX = 2000,
    SCHEMA_MERGES_MAX = 500,
    SCHEMA_PROPERTIES_MAX = 5000,
    /* Comparisons of values, and more for what takes longer: so much in all, tenths of a second. */
    SCHEMA_WORK_MAX = 1 << 24,
    SCHEMA_WORK_PART = 16, /* a schema that is compiled, a member that is copied */
};

/* A target of $ref: a rule, so that it may hold itself. */
struct schema_ref {
    const json_t *target;
    const char *pointer; /* how it was named first: for messages */
    int rule;
    int32_t node;
};

/* What is being written. */
enum schema_mode {
    SCHEMA_JSON,
    SCHEMA_PARAMETERS, /* an object, as a list of parameters */
    SCHEMA_TEXT,       /* a string, as a parameter's bare text, with what closes it */
};

struct schema {
    struct nodes *nodes;
    enum schema_mode mode;
    const struct parameter_marks *marks; /* of the other modes */
    struct json_parts parts;
    json_t *root;
    json_t *made;            /* an array that keeps what merging made */
    struct schema_ref *refs; /* [n_refs]; the first n_done have their rules */
    int n_refs, n_done, n_merges, depth;
    size_t n_work;   /* SCHEMA_WORK_MAX */
    bool is_lenient; /* what cannot be kept is left out */
    char path[200];  /* where we are, "#/properties/a", cut if too long */
    size_t path_size;
};

/* Keeps the first mistake, with the path; returns NODES_EMPTY. */
int32_t schema_fail(struct schema *s, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The texts of a schema. `key` (and `name`, or NULL) is the way to it from where we are. */
int32_t schema_value(struct schema *s, const json_t *schema, const char *key, const char *name);

/* schema.c: a keyword's value as a count; `missing` if it is absent. */
int schema_count(struct schema *s, const json_t *schema, const char *keyword, int missing);
bool schema_is_annotation(const char *keyword);
bool schema_holds(struct schema *s, const json_t *list, const json_t *value); /* NULL: a list of nothing */
/* schema.c: takes note of work to be done; false with an error if that is too much. */
bool schema_spend(struct schema *s, size_t n);

/* schema_scalar.c */
int32_t schema_string(struct schema *s, const json_t *schema);
int32_t schema_numeric(struct schema *s, const json_t *schema, bool integer);

/* schema_compound.c */
int32_t schema_object(struct schema *s, const json_t *schema);
int32_t schema_array(struct schema *s, const json_t *schema);

/* schema_parameters.c: a parameter with the name (a node, with its quotes) and the value of the schema at `key`, `part`. */
int32_t schema_parameter(struct schema *s, int32_t name, const json_t *schema, const char *key, const char *part);
/* One after the other, in their order; `required` [n]; then any number of `other`. */
int32_t schema_parameters(struct schema *s, const int32_t *parameters, const bool *required, size_t n, int32_t other);
/* Where there may be none, an empty line stands for them. */
int32_t schema_parameter_list(struct schema *s, int32_t parameters, bool may_be_empty);
/* A string as it is, between quotes. */
int32_t schema_parameter_name(struct schema *s, const json_t *name);
/* SCHEMA_TEXT: one character, and a constant with what closes it. */
int32_t schema_text_character(struct schema *s);
int32_t schema_text_constant(struct schema *s, const json_t *value);

/* schema_merge.c: the node of what "$ref" names. */
int32_t schema_reference(struct schema *s, const char *pointer);
/* One schema that says what both say; NULL with an error. Owned by `made`. */
const json_t *schema_merge(struct schema *s, const json_t *a, const json_t *b);
/* What `schema` says beside `keyword` and what is in each of the list `parts`. */
const json_t *schema_merge_all(struct schema *s, const json_t *schema, const char *keyword, const json_t *parts);
/* A copy without `keyword`. */
const json_t *schema_without(struct schema *s, const json_t *schema, const char *keyword);

#endif
