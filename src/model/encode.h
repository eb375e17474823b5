/* model/encode.h - weights to fewer bits: any format to BF16, FP8, INT8, FP4 or INT4, some rows at a time, on any thread.
 *
 * A scale is searched for: candidates around the largest value, each followed by the scale that fits its integers best, and
 * the one with the least squared error wins. With `importance`, the error of column k counts importance[k] times (the mean
 * square of that input over a text: then it is the error of the outputs that is made small).
 * The result does not depend on the machine: every level adds in one order. Includes: base, model. */
#ifndef MOEBIUS_MODEL_ENCODE_H
#define MOEBIUS_MODEL_ENCODE_H

#include "model/make.h"

/* Scratch for matrices of up to `cols` columns. */
size_t encode_scratch_bytes(int cols);
/* Rows [unit * MAKE_ROWS, ...) of `from` into the memory of `to`. importance [cols] or NULL. Adds to `sum` (every weight
 * alike); returns the first row that holds something not finite, or -1. */
int encode_rows(const struct mat *from, const struct mat *to, const float *importance, int unit, void *scratch,
                struct make_error *sum);
/* The scale for one group x [n] of INT4 or INT8, as fp16 stores it; importance [n]. */
struct encode_kern; /* encode_search.h: asked for once, the processor need not be looked at for each group */
float encode_scale(const struct encode_kern *kern, const float *x, const float *importance, int n, bool is_int4);

#endif
