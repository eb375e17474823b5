/* engine/plan.h - what fits: the context length and the number of cache pages, settled before anything large is taken. */
#ifndef MOEBIUS_ENGINE_PLAN_H
#define MOEBIUS_ENGINE_PLAN_H

#include "engine/engine.h"

/* What a backend is opened with, as far as it is known before that: n_pages is more than there will be. */
void engine_plan_options(const struct engine *engine, struct backend_options *backend);
/* More tokens a step, unless somebody has said how many or their scratch leaves too little of what was asked for: for a card, or
 * experts that are read from a disk. */
void engine_plan_lengthen_steps(struct engine *engine);
/* Needs model, checkpoint and settled options; sets options.max_model_len and n_pages, and fills `backend`. What does not fit
 * is an error with the numbers and the flag that would help. */
int engine_plan(struct engine *engine, struct backend_options *backend, struct mo_error *error);

/* MO_E_INVALID where a context was asked for that is longer than the model's. Asked as soon as there is a model, before weights. */
int engine_plan_check_context(const struct engine *engine, struct mo_error *error);

/* Bytes of a cache for so many tokens, all layers; V4's with as many near parts as it will have. */
double engine_plan_cache_bytes(const struct engine *engine, const struct backend_options *backend, int64_t n_tokens);

/* Of the host's memory, what is neither weights nor cache: the backend's scratch (exchanges with other ranks included), states and
 * masks of grammars, pages on their way to the disk, and the self-test. */
double engine_plan_scratch(const struct engine *engine, const struct backend_options *backend);

#endif
