/* grammar/nodes.h - a grammar as a small graph of nodes over bytes, which is what every front end writes and the automaton
 * reads. Private to src/grammar.
 *
 * Nodes are named by their number and shared freely; equal ones are one, so that what is alike has states and masks in
 * common. The first mistake (a limit, no memory, or what a front end found) is kept in `error`; from then on constructors
 * return NODES_EMPTY, so a front end writes expressions and looks once. */
#ifndef MOEBIUS_GRAMMAR_NODES_H
#define MOEBIUS_GRAMMAR_NODES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

enum {
    NODES_MAX = 1 << 16,
    NODES_BYTES_MAX = 1 << 20, /* of all literals */
    NODES_REPEAT_MAX = 1 << 20,
};

enum node_kind {
    NODE_EMPTY,   /* nothing: the empty text */
    NODE_NEVER,   /* no text at all */
    NODE_BYTES,   /* one byte of a set */
    NODE_LITERAL, /* these bytes */
    NODE_CAT,     /* a, then b */
    NODE_ALT,     /* a or b */
    NODE_REPEAT,  /* a, `min` to `max` times; max -1: without end */
    NODE_RULE,    /* a rule's node, perhaps not there yet: the way to recursion */
};
enum { NODES_EMPTY = 0, NODES_NEVER = 1 }; /* the nodes that are always there */

struct byte_set {
    uint64_t bits[4];
};
static inline bool byte_set_has(const struct byte_set *set, uint8_t byte) {
    return set->bits[byte >> 6] >> (byte & 63) & 1;
}
static inline void byte_set_add(struct byte_set *set, uint8_t byte) {
    set->bits[byte >> 6] |= UINT64_C(1) << (byte & 63);
}

struct node {
    enum node_kind kind : 8;
    bool nullable; /* the empty text is one of its texts */
    bool possible; /* it has a text */
    int32_t a, b;  /* BYTES: a set; LITERAL: bytes [a, a + b); RULE: a rule */
    int32_t min, max;
    int32_t chain; /* in its bucket of `heads` */
};

/* An array that grows; `limit` items at most. */
struct nodes_array {
    void *items;
    int n, capacity;
};

struct nodes {
    struct nodes_array node;  /* struct node */
    struct nodes_array set;   /* struct byte_set */
    struct nodes_array bytes; /* uint8_t */
    struct nodes_array rule;  /* int32_t node; -1: none yet */
    int32_t *heads;           /* first node of each bucket; -1 */
    int32_t root;
    struct mo_error *error;
    int code;     /* of the first mistake */
    bool is_full; /* it was a limit, or no memory: no more nodes */
};

int nodes_init(struct nodes *nodes, struct mo_error *error);
void nodes_free(struct nodes *nodes); /* accepts a zeroed one */
/* Keeps the first mistake; returns NODES_EMPTY. */
int32_t nodes_fail(struct nodes *nodes, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

int32_t nodes_bytes(struct nodes *nodes, const struct byte_set *set);
int32_t nodes_literal(struct nodes *nodes, const char *bytes, size_t size);
int32_t nodes_text(struct nodes *nodes, const char *text); /* NUL-terminated */
int32_t nodes_cat(struct nodes *nodes, int32_t a, int32_t b);
int32_t nodes_alt(struct nodes *nodes, int32_t a, int32_t b);
int32_t nodes_repeat(struct nodes *nodes, int32_t a, int min, int max);
int32_t nodes_optional(struct nodes *nodes, int32_t a);
/* A rule without a node, and the node that stands for it; nodes_rule_set gives the rule its own. */
int32_t nodes_rule(struct nodes *nodes, int *rule);
void nodes_rule_set(struct nodes *nodes, int rule, int32_t node);

/* Works out what is nullable and what is possible. Refuses a grammar without any text, and left recursion (a rule that
 * begins with itself). */
int nodes_finish(struct nodes *nodes, int32_t root);

static inline struct node *nodes_at(const struct nodes *nodes, int32_t node) {
    return (struct node *)nodes->node.items + node;
}
static inline int32_t nodes_rule_node(const struct nodes *nodes, int32_t rule) {
    return ((const int32_t *)nodes->rule.items)[rule];
}

#endif
