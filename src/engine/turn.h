/* engine/turn.h - GGUF's blocks and other people's INT4 in the order that the CPU's kernels like best (model/turn.h), if there is memory
 * for them: beside the first requests, since answers have the same bits before and after. Forms that no kernel reads as they are, at
 * once. */
#ifndef MOEBIUS_ENGINE_TURN_H
#define MOEBIUS_ENGINE_TURN_H

#include "engine/engine.h"
#include "model/turn.h"

/* Whether the processor reads matrices of `layer` in this process: those of a routed expert, or (-1) the others. A turn_choice. */
bool engine_computes_here(const void *engine, int layer, int expert);
/* What turning takes beyond the bytes of the same weights in the file, for the plan. */
double engine_turn_more(const struct engine *engine);
/* Settles engine->will_turn. Needs the plan. An error where what must be turned finds no room. */
int engine_turn_choose(struct engine *engine, const struct backend_options *backend, struct mo_error *error);
/* Turns what must be, all of it, now; then the others are left alone. */
int engine_turn_first(struct engine *engine, struct mo_error *error);
/* Begins, if it will: engine->turner. Between steps the engine's thread calls turner_adopt. Where the system refuses memory or
 * threads, a warning says so, and the blocks stay as they lie. */
void engine_turn_begin(struct engine *engine);
/* The same where nothing else computes: on all threads. */
void engine_turn_begin_alone(struct engine *engine);
/* For engines without a thread, to be measured: all of it, now. */
void engine_turn_now(struct engine *engine);

#endif
