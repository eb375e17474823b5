/* grammar/grammar.h - what an answer must look like, and which tokens may come next.
 *
 *   schema.c, regex.c, gbnf.c   a JSON schema, a regular expression, rules  ->  nodes (nodes.h)
 *   calls.c                     free text, and calls of functions in it  ->  nodes
 *   automaton.c                 nodes  ->  states over bytes, each made when it is first met
 *   mask.c                      a state and the vocabulary  ->  one bit a token
 *
 * A grammar is compiled by any thread and never changes; its states and masks grow as texts meet them and belong to the
 * engine thread. A cursor says where one text stands: it is worked out from the text's tokens, so it can always be made
 * again. Sources: JSON Schema 2020-12, RFC 8259, ECMA-262 (patterns), llama.cpp's GBNF. Includes: base, text. */
#ifndef MOEBIUS_GRAMMAR_GRAMMAR_H
#define MOEBIUS_GRAMMAR_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"
#include "grammar/vocabulary.h"

enum grammar_kind {
    GRAMMAR_JSON_SCHEMA, /* text: a schema, as JSON */
    GRAMMAR_JSON_OBJECT, /* text: empty; any JSON object */
    GRAMMAR_REGEX,       /* text: a regular expression that the whole answer matches */
    GRAMMAR_CHOICE,      /* text: a JSON array of strings, one of which is the answer */
    GRAMMAR_GBNF,        /* text: rules, the first of which to look at is "root" */
    GRAMMAR_CALLS,       /* text: functions that may be called, as JSON: see calls.c */
};

enum {
    GRAMMAR_TEXT_MAX = 256 << 10, /* bytes of a schema, an expression, rules */
    /* Bytes of states and masks: beyond these all are forgotten, and made again where they are needed. No usual grammar comes
     * near it. */
    GRAMMAR_STATES_MAX = 64 << 20,
    GRAMMAR_STATES_IDLE = 8 << 20, /* the same while nobody uses the grammar, after grammar_trim */
};

struct grammar;

/* MO_E_INVALID: the text is wrong, no answer could satisfy it, or it is too large; MO_E_UNSUPPORTED: it says something that
 * cannot be kept. Both name the place ("#/properties/age: ..."). `vocabulary` outlives the grammar. The caller owns one
 * reference. */
int grammar_compile(struct grammar **grammar, enum grammar_kind kind, const char *text, size_t size,
                    const struct vocabulary *vocabulary, struct mo_error *error);
/* References: any thread. The last release frees; it accepts NULL. */
struct grammar *grammar_keep(struct grammar *grammar);
void grammar_release(struct grammar *grammar);

/* For the one who keeps the last reference and hands out new ones: forgets states that take much memory. */
void grammar_trim(struct grammar *grammar);

/* Where a text stands. Zeroed: at its beginning. */
struct grammar_cursor {
    uint32_t generation; /* of the grammar's states; another one: start again from the tokens */
    int32_t state;
    int n_taken; /* tokens of the text that are behind the cursor */
};

/* What follows is for the engine thread.
 *
 * Takes the cursor to behind tokens [n_tokens], the text from its beginning. MO_E_LIMIT if so many ways to read it are open
 * that following them would hold up everybody; MO_E_NO_MEMORY; MO_E_INTERNAL for a token that the grammar forbids. */
int grammar_follow(struct grammar *grammar, struct grammar_cursor *cursor, const int32_t *tokens, int n_tokens,
                   struct mo_error *error);
/* The tokens that may come next, a bit each: *mask is [vocabulary_words], the grammar's, until the next call. Errors as
 * above. */
int grammar_mask(struct grammar *grammar, const struct grammar_cursor *cursor, const uint64_t **mask,
                 struct mo_error *error);
bool grammar_may_end(const struct grammar *grammar, const struct grammar_cursor *cursor);
bool grammar_must_end(const struct grammar *grammar, const struct grammar_cursor *cursor); /* nothing can follow */

#endif
