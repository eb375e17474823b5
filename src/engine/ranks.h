/* engine/ranks.h - one model over several processes (`mpirun -n N moebius ...`, ranks/ranks.h): rank 0 is the engine, the others hold
 * routed experts and compute them when asked. They all have the same command line, or at least the same model: each opens its own copy
 * of it, and touches what is its own.
 *
 * --expert-shares says how many of every layer's experts each rank gets (1,1: alike). Left out, they get alike if that fits into the
 * memory of each, else as much as each has room for. An expert's neighbours go to other ranks, since neighbours may be wanted
 * together. */
#ifndef MOEBIUS_ENGINE_RANKS_H
#define MOEBIUS_ENGINE_RANKS_H

#include "engine/engine.h"

/* What does not go together with several ranks, before anything is opened. */
int engine_ranks_check(const struct engine_options *options, struct mo_error *error);

/* Rank 0, when model, weights and device are settled: hears from all others, refuses what is not the same model and program, and
 * fills engine->split and engine->ranks_bytes. Nothing alone. */
int engine_ranks_meet(struct engine *engine, struct mo_error *error);
/* After the plan: the others bring their experts into memory. */
int engine_ranks_begin(struct engine *engine, const struct backend_options *backend, struct mo_error *error);
/* With the engine: the others close theirs. */
void engine_ranks_close(struct engine *engine);

/* Not rank 0: all of the above from the other side. Returns 1 when rank 0 has closed its engine or ended the program, or when it
 * was told what went wrong here. */
int engine_ranks_work(const struct engine_options *options, struct mo_error *error);
/* What either side knows about itself. */
int engine_ranks_hello(const struct engine *engine, struct wire_hello *hello, struct mo_error *error);

/* From memory in bytes [count] (rank 0's without what it needs for the rest) and the bytes of all experts to shares [count]. */
void engine_ranks_share(const double *memory, int count, double experts_bytes, double *shares);
/* From shares to owners [experts]: each gets its part, and those of one rank lie far from each other. */
void engine_ranks_deal(const double *shares, int count, int experts, uint8_t *owner);

#endif
