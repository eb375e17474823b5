/* calibrate.h - how much each input of each matrix matters: its mean square over a text, by running the model. For
 * `quantize --calibrate`. */
#ifndef MOEBIUS_CALIBRATE_H
#define MOEBIUS_CALIBRATE_H

#include "engine.h"
#include "model/slots.h"

struct calibration;

/* Runs `text` [size] through the engine (not started), in pieces of its context length, at most `max_tokens` of it. */
int calibration_run(struct calibration **calibration, struct engine *engine, const char *text, size_t size,
                    int max_tokens, struct mo_error *error);
/* The mean squares of a matrix's inputs [cols], 1 on average; NULL if nothing was seen. `calibration` is void for
 * quantize.h. */
const float *calibration_of(void *calibration, const struct slot *slot);
int calibration_tokens(const struct calibration *calibration);
void calibration_free(struct calibration *calibration); /* accepts NULL */

#endif
