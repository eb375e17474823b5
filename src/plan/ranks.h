/* plan/ranks.h - what `mpirun -n N moebius ...` gives (DESIGN.md, 6d): the first machine has everything but its share of the routed
 * experts, the others have their shares of those alone. A layer takes as long as the machine whose experts it wants most, and its rows
 * go there and back.
 * Includes: plan/memory.h. */
#ifndef MOEBIUS_PLAN_RANKS_H
#define MOEBIUS_PLAN_RANKS_H

#include "plan/memory.h"

enum { PLAN_MAX_RANKS = 64 };

/* Experts of each layer that each machine holds, sizes [machine.nodes]: alike if that fits, else by memory, as engine/ranks.c deals
 * them. `on_card`: what is not routed lies there. */
void plan_ranks_deal(const struct plan_input *input, bool on_card, int *sizes);

/* `met` of the experts of a layer are wanted, any of them alike: how many are on the machine that has most of these, on average. */
double plan_ranks_busiest(const int *sizes, int count, double met);

/* What one layer sends in a step of `rows`, as ranks/wire.h counts it. */
struct plan_exchange {
    double pieces;                     /* exchanges, one after the other */
    double sent_bytes, received_bytes; /* of the first machine, all of them together */
};
void plan_ranks_exchange(const struct plan_arch *arch, const int *sizes, int count, int rows,
                         struct plan_exchange *exchange);

/* Messages of a machine that is not the first, at most. */
double plan_ranks_message_bytes(const struct plan_arch *arch);

#endif
