/* engine/device.h - --device: which processor computes, what its memory leaves for the cache, and its backend. */
#ifndef MOEBIUS_ENGINE_DEVICE_H
#define MOEBIUS_ENGINE_DEVICE_H

#include "engine/engine.h"

/* Settles engine->gpu (-1: the CPU) and the cards from options. A GPU that was asked for and is not there becomes the CPU, with one
 * line (but not the second of several); anything else that stands in the way of one that was asked for is an error. Needs model, weights and options. */
int engine_device_choose(struct engine *engine, struct mo_error *error);

/* Bytes of a cache, all layers, for which there is room on each card beside its weights and scratch; may be negative. */
int engine_device_left(const struct engine *engine, const struct backend_options *backend, double *bytes,
                       struct mo_error *error);

/* Opens engine->backend. */
int engine_device_open(struct engine *engine, const struct backend_options *backend, struct mo_error *error);

#endif
