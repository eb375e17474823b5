/* engine/experts.h - --expert-cache: whether routed experts are read from disk when they are needed, and into how much
 * memory (expert/store.h). */
#ifndef MOEBIUS_ENGINE_EXPERTS_H
#define MOEBIUS_ENGINE_EXPERTS_H

#include "engine/engine.h"

/* Weights are going to be made, which takes its time, and is in vain where experts are to be read from a file. */
int engine_experts_check_made(const struct engine_options *options, struct mo_error *error);

/* Settles engine->store (NULL: experts are used where they lie) and engine->expert_bytes from options.expert_cache. Needs the
 * weights and the device. */
int engine_experts_choose(struct engine *engine, struct mo_error *error);

/* With a store on a CPU: bytes that it, the other weights and scratch leave for the latent cache. What is not said is shared: a
 * context that nobody asked for gets a quarter of what is left. */
int engine_experts_leave(const struct engine *engine, double scratch, double *bytes, struct mo_error *error);

/* After the plan: takes the memory, brings the other weights into theirs, and says so in one line. Nothing without a store. */
int engine_experts_start(struct engine *engine, struct backend_options *backend, struct mo_error *error);

#endif
