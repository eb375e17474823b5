/* text/pretokenize.h - the pre-tokenizer of tokenizer.json: a list of steps, each on the pieces of the one
 * before.
 *
 * Split (regular expression or string, every behaviour), Digits and ByteLevel are understood; any other step
 * is refused by name. Immutable once loaded. Includes: base, text/regex.h. */
#ifndef MOEBIUS_TEXT_PRETOKENIZE_H
#define MOEBIUS_TEXT_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/json.h"
#include "text/regex.h"

enum split_behavior { /* what becomes of a match and the gaps beside it */
                      SPLIT_ISOLATED,
                      SPLIT_REMOVED,
                      SPLIT_MERGED_WITH_PREVIOUS,
                      SPLIT_MERGED_WITH_NEXT,
                      SPLIT_CONTIGUOUS,
};

enum { PRETOKENIZE_STEPS_MAX = 32 };

struct pretokenize_step {
    struct regex *regex; /* NULL: the pieces stay as they are (ByteLevel without its own expression) */
    enum split_behavior behavior;
    bool invert; /* gaps count as matches and matches as gaps */
};

struct pretokenizer {
    struct pretokenize_step steps[PRETOKENIZE_STEPS_MAX]; /* [n_steps] */
    int n_steps;
    bool add_prefix_space; /* the last step puts a space before each of its pieces that has none */
};

/* Reads the value of key "pre_tokenizer". ByteLevel must be the last step. */
int pretokenizer_parse(struct pretokenizer *pretokenizer, const json_t *value, const char *where,
                       struct mo_error *error);
void pretokenizer_free(struct pretokenizer *pretokenizer); /* accepts a zeroed one */

typedef int pretokenize_sink(void *context, const uint8_t *piece, size_t n, struct mo_error *error);

/* Calls `sink` for every piece of text [n], in order, until one call fails. */
int pretokenizer_run(const struct pretokenizer *pretokenizer, struct regex_scratch *scratch, const uint8_t *text,
                     size_t n, pretokenize_sink *sink, void *context, struct mo_error *error);

#endif
