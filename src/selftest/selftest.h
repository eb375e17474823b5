/* selftest/selftest.h - at start: does what is about to be used compute right, on this very machine, with this model's weights?
 *
 *   kernels  the level's CPU kernels against plain C, which has the same bits (kern.h): products of a few rows of a matrix of every
 *            format, width and kind of activations that the model has, and the kernels of attention and of rows
 *   card     a GPU against the CPU, once that is known to be right: a few tokens through one layer of each kind, one of each card, and the head
 *
 * They read little of the weights. Experts that a card has the CPU compute may come from the store, which counts from 0 again
 * afterwards (engine/selftest.c). A card writes to the first two pages of its cache, before anybody else does. Found: MO_E_INTERNAL,
 * with who differs from whom, where, and by how much.
 * Engine thread. Includes: base, model, backend, check, forward. */
#ifndef MOEBIUS_SELFTEST_SELFTEST_H
#define MOEBIUS_SELFTEST_SELFTEST_H

#include "backend/backend.h"
#include "backend/cpu/kern.h"

/* What is about to be used. */
struct selftest {
    const struct model *model;
    const struct weights *weights; /* matrices without bytes are left out */
    enum kv_format kv;
    enum compute compute;
    const struct cuda_part *parts; /* [n_parts] of the cards: one layer of each is looked at */
    int n_parts;
};

/* What was done. */
struct selftest_report {
    int checks; /* comparisons */
    /* The weights make numbers too large for their norms: no fault of a card, which was not looked at from there on. */
    bool overflowed;
};

/* Takes selftest_kernels_bytes while it runs. */
int selftest_kernels(const struct selftest *test, const struct kern *kern, struct selftest_report *report,
                     struct mo_error *error);
size_t selftest_kernels_bytes(const struct model *model);

/* `card` was opened with `options`. Opens a CPU backend for as long as it runs, which takes selftest_card_bytes; both need the bytes
 * of the layers that they compute. */
int selftest_card(const struct selftest *test, struct backend *card, const struct backend_options *options,
                  struct selftest_report *report, struct mo_error *error);
size_t selftest_card_bytes(const struct model *model, const struct backend_options *options);

#endif
