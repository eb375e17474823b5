/* sched/draft.h - guesses at the tokens to come, from the text itself: what followed when it last read as it does now. Code
 * that is edited, quoted or listed repeats itself, and a guess costs no more than a row of the next batch: whoever chooses
 * tokens keeps a guess only if it is what he would have chosen, so the answer stays the same, bit by bit.
 * Sources: Saxena, Prompt Lookup Decoding (2023); Leviathan et al., Fast Inference from Transformers via Speculative Decoding
 * (2023). */
#ifndef MOEBIUS_SCHED_DRAFT_H
#define MOEBIUS_SCHED_DRAFT_H

#include <stdint.h>

enum {
    DRAFT_MAX = 16,
    DRAFT_MATCH_MIN = 2, /* tokens that must have stood there before; of several such places ... */
    DRAFT_MATCH_MAX = 8, /* ... the one where the most do, up to so many, and the latest of those */
};

/* Up to `most` tokens that may follow tokens [n_tokens]. Returns how many. */
int draft_find(const int32_t *tokens, int n_tokens, int32_t *draft, int most);
/* How many to guess next time, after `n_right` of `n` were right: a good guess earns more, a bad one fewer. */
int draft_adapt(int n, int n_right, int most);

#endif
