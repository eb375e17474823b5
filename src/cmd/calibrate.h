/* cmd/calibrate.h - what the inputs of each matrix are like over a text, by running the model as it is stored: their mean squares for the
 * search of scales, and for error feedback (model/gptq.h) their second moments. Those of all layers together may be larger
 * than memory, so the text is run once for as many layers as fit, when the first of them is asked for. For `quantize
 * --calibrate`. */
#ifndef MOEBIUS_CMD_CALIBRATE_H
#define MOEBIUS_CMD_CALIBRATE_H

#include "engine/engine.h"
#include "model/gptq.h"

struct calibration;

struct calibration_options {
    int max_tokens;
    const struct recipe *recipe; /* tells which moments are wanted; NULL: mean squares alone */
    double memory_gib;           /* that moments may take; 0: half of what is free */
    struct pool *pool;
};

/* The engine is not started; the text [size] is run in pieces of its context length when calibration_prepare must. */
int calibration_open(struct calibration **calibration, struct engine *engine, const char *text, size_t size,
                     const struct calibration_options *options, struct mo_error *error);
void calibration_close(struct calibration *calibration); /* accepts NULL */

/* The rest is for quantize.h, to which a calibration is void. */
int calibration_prepare(void *calibration, const struct made *made, int n, double *apart_s, struct mo_error *error);
/* The mean squares of a matrix's inputs [cols], 1 on average; NULL if nothing was seen. */
const float *calibration_importance(void *calibration, const struct slot *slot);
/* Of a matrix that was prepared last; NULL: no moments. */
const struct gptq *calibration_feedback(void *calibration, const struct slot *slot);

#endif
