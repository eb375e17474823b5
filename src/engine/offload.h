/* engine/offload.h - which layers' routed experts the CPU computes beside a card: engine->cpu_layers, the first so many that have
 * some. */
#ifndef MOEBIUS_ENGINE_OFFLOAD_H
#define MOEBIUS_ENGINE_OFFLOAD_H

#include "engine/engine.h"

/* --expert-device, --n-cpu-moe and --cpu-moe as one wish: what is left is expert_device, and n_cpu_moe where it is some layers. What
 * contradicts itself is refused. */
int engine_offload_settle(struct engine_options *options, struct mo_error *error);
/* What was asked for, as soon as the model is known; with `auto` none. */
void engine_offload_begin(struct engine *engine);
/* Beside a card: the processor that long steps are weighed against. */
void engine_offload_look(struct engine *engine);
/* The most layers that it can become. */
int engine_offload_most(const struct engine *engine);
/* With `auto` and a card: as few as let everything else, and a context, fit into the card's free memory. Then makes what the CPU
 * needs of weights that are made on their way to the card. */
int engine_offload_choose(struct engine *engine, struct mo_error *error);

/* Rows of a step from which the card computes the CPU's experts, too, as they come over its link; 0: it never does. */
int engine_offload_link_rows(const struct engine *engine);

/* Bytes of the experts that the CPU computes; all of them without a card. */
double engine_offload_bytes(const struct engine *engine);

#endif
