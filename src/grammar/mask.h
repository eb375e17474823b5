/* grammar/mask.h - the tokens that may come next in a state: the vocabulary's tree is walked with the automaton beside it,
 * and what the automaton refuses is left out with all that begins so. A mask is kept with its state: in a JSON string, or
 * after a key, the same states come again and again.
 *
 * Most of the work is the inside of strings, where most tokens may follow. So a state's mask is made from that of its cut
 * (automaton_cut), which all strings share; only tokens that lead out of it, those with the closing quote, are walked for
 * each. Engine thread only. Private to src/grammar. */
#ifndef MOEBIUS_GRAMMAR_MASK_H
#define MOEBIUS_GRAMMAR_MASK_H

#include "grammar/automaton.h"
#include "grammar/vocabulary.h"

struct mask {
    uint64_t *bits; /* [vocabulary_words] */
    int32_t *
        outs; /* [n_outs] of a cut: nodes of the vocabulary's tree that lead out; neither they nor what is below in bits */
    int n_outs, outs_capacity;
};

struct masks {
    const struct vocabulary *vocabulary;
    struct mask *items; /* [n] */
    int n, capacity;
    size_t n_outs; /* of all */
    int32_t *path; /* [longest + 1] states from the root to the node that is looked at */
};

int masks_init(struct masks *masks, const struct vocabulary *vocabulary, struct mo_error *error);
void masks_free(struct masks *masks); /* accepts a zeroed one */
size_t masks_bytes(const struct masks *masks);

/* Errors: automaton_check's; MO_E_UNSUPPORTED where the text cannot end and no token goes on. */
int masks_get(struct masks *masks, struct automaton *automaton, int32_t state, const uint64_t **mask,
              struct mo_error *error);

#endif
