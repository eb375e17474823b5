/* grammar/vocabulary.h - a tokenizer's tokens as a tree of bytes, so that all tokens with one beginning are looked at, or
 * left out, together. Added tokens ("<｜end▁of▁sentence｜>") are not in it: they are no text. The marks of thoughts
 * and calls ("<think>", "<｜tool▁call▁begin｜>") are, each as one byte that no text has, so that a grammar can ask for the very token and
 * strings cannot hold it. Immutable: any thread. Includes: base, text. */
#ifndef MOEBIUS_GRAMMAR_VOCABULARY_H
#define MOEBIUS_GRAMMAR_VOCABULARY_H

#include <stdint.h>
#include "text/tokenizer.h"

/* In the order of a walk that visits a node, then what is below it. */
struct vocabulary_node {
    int32_t token;  /* that ends here; -1: none */
    int32_t end;    /* the first node behind those below this one */
    uint16_t depth; /* bytes from the root; 1 or more */
    uint8_t byte;
};

enum { VOCABULARY_MARKS = 8, VOCABULARY_FIRST_MARK = 0xf8 /* the byte of the first; UTF-8 has none of these */ };

struct vocabulary {
    const struct tokenizer *tokenizer;
    struct vocabulary_node *nodes; /* [n_nodes] */
    int n_nodes;
    int n_tokens;                    /* bits of a mask */
    int longest;                     /* bytes of a token */
    int32_t marks[VOCABULARY_MARKS]; /* tokens; -1: this tokenizer has none */
};

/* `n_tokens`: the model's vocabulary, at least the tokenizer's. The tokenizer outlives this. */
int vocabulary_create(struct vocabulary **vocabulary, const struct tokenizer *tokenizer, int n_tokens,
                      struct mo_error *error);
void vocabulary_free(struct vocabulary *vocabulary); /* accepts NULL */

/* The bytes of a token as grammars know it; NULL and *size 0 for one that is never text. */
const char *vocabulary_bytes(const struct vocabulary *vocabulary, int32_t token, size_t *size);
/* The byte that stands for the mark "<｜...｜>" (or "｜DSML｜"; text/calls.h), or 0 if it is no token here. */
uint8_t vocabulary_mark(const struct vocabulary *vocabulary, const char *mark);

/* 64-bit words of a mask. */
static inline size_t vocabulary_words(const struct vocabulary *vocabulary) {
    return ((size_t)vocabulary->n_tokens + 63) / 64;
}

#endif
