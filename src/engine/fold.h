/* engine/fold.h - what V4.1's n-gram memory takes tokens for: the tokenizer's ids with spellings folded together (text/fold.h),
 * given to the weights. Other models have none of it. */
#ifndef MOEBIUS_ENGINE_FOLD_H
#define MOEBIUS_ENGINE_FOLD_H

#include "engine/engine.h"

/* The tokenizer has been opened, and the weights will not be made anew. Random weights need none: an id then stands for what is
 * left of it by the folded vocabulary's size, and one line says so; for others that is MO_E_NOT_FOUND. MO_E_CORRUPT: the
 * tokenizer's spellings are not as many as the model was trained with, so every hash would be another. */
int engine_fold_tokens(struct engine *engine, struct mo_error *error);

#endif
