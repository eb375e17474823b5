/* engine/weights.h - where an engine's weights come from: mapped as they are, quantised on the way in (--quantization), or random
 * (`bench --like`). */
#ifndef MOEBIUS_ENGINE_WEIGHTS_H
#define MOEBIUS_ENGINE_WEIGHTS_H

#include "engine/engine.h"

/* Binds the weights of engine->checkpoint, whose description is in engine->model. */
int engine_bind_weights(struct engine *engine, struct mo_error *error);
/* Describes a model like options.like in engine->model and engine->weights; there is no checkpoint and no tokenizer then. */
int engine_make_weights(struct engine *engine, struct mo_error *error);
/* When engine->gpu is known: quantises what was bound, or makes up what was described. For a GPU with all of the weights both
 * are left to weights.later, so that the host never holds them. */
int engine_settle_weights(struct engine *engine, struct mo_error *error);
/* When engine->cpu_layers is known: what the CPU computes of such weights is made now. Random ones are then made as a whole, and
 * the card gets its part from there. */
int engine_keep_weights(struct engine *engine, struct mo_error *error);
/* Will that make other weights than those that were bound? */
bool engine_will_quantize(const struct engine *engine);

/* Whether --quantization NAME can be had for this model: NULL and "auto" always, its own kind, or one of our recipes. */
int engine_check_quantization(const struct model *model, const char *name, struct mo_error *error);

#endif
