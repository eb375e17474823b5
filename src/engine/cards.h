/* engine/cards.h - which cards compute, and which layers each of them has: engine->parts. One card has all of them. */
#ifndef MOEBIUS_ENGINE_CARDS_H
#define MOEBIUS_ENGINE_CARDS_H

#include "engine/engine.h"

/* The cards that --device names ("cuda", "cuda:N", or several of these), with --tensor-split and --pipeline-parallel-size. What they
 * contradict each other in, or name no card for, is an error. Leaves n_parts 0 where --device is no card. */
int engine_cards_parse(struct engine *engine, struct mo_error *error);

/* Adds cards, if nobody has said how many and one does not hold the model and a context: as few as do. Where all are too few, one stays
 * with experts on the CPU, or all if one does not hold the rest. Needs weights. */
int engine_cards_add(struct engine *engine, struct mo_error *error);

/* Deals the layers in order, so that the same share of each card's free memory is taken (of --tensor-split's numbers, where there are
 * some) and that share is the least that there is. To be called again when what a layer takes has changed. */
int engine_cards_split(struct engine *engine, struct mo_error *error);

/* A context that counts when it is asked whether something fits: the one that was asked for, else a usable one. */
int engine_cards_context(const struct engine *engine);
/* Bytes that are missing on the cards for everything and a cache of `context` tokens, dealt anew; below 0: it fits. */
int engine_cards_missing(struct engine *engine, int context, double *bytes, struct mo_error *error);

/* "GPU 0", or "GPU 0 and GPU 1". */
enum { CARDS_NAME_BYTES = 16 * CUDA_PARTS_MAX };
const char *engine_cards_name(const struct engine *engine, char text[CARDS_NAME_BYTES]);
/* "GPU 0 has layers 0 to 13, GPU 1 has layers 14 to 26". */
enum { CARDS_LAYERS_BYTES = 64 * CUDA_PARTS_MAX };
const char *engine_cards_layers(const struct engine *engine, char text[CARDS_LAYERS_BYTES]);

#endif
