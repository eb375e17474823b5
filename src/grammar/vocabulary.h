/* grammar/vocabulary.h - a tokenizer's tokens as a tree of bytes, so that all tokens with one beginning are looked at, or
 * left out, together. Added tokens ("<｜end▁of▁sentence｜>", "<think>") are not in it: they are no text. Immutable: any
 * thread. Includes: base, text. */
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

struct vocabulary {
    const struct tokenizer *tokenizer;
    struct vocabulary_node *nodes; /* [n_nodes] */
    int n_nodes;
    int n_tokens; /* bits of a mask */
    int longest;  /* bytes of a token */
};

/* `n_tokens`: the model's vocabulary, at least the tokenizer's. The tokenizer outlives this. */
int vocabulary_create(struct vocabulary **vocabulary, const struct tokenizer *tokenizer, int n_tokens,
                      struct mo_error *error);
void vocabulary_free(struct vocabulary *vocabulary); /* accepts NULL */

/* 64-bit words of a mask. */
static inline size_t vocabulary_words(const struct vocabulary *vocabulary) {
    return ((size_t)vocabulary->n_tokens + 63) / 64;
}

#endif
