/* model/gptq.h - INT4 and INT8 with error feedback (GPTQ, arXiv 2210.17323): each column is rounded so that it makes up for what the
 * columns before it changed, as far as the inputs' second moments say that it can.
 *
 * With H the moments (made positive definite) and G the lower triangle for which H = G^T G, the error of a row of outputs is
 * |G d|^2 for the changes d of its weights. Column j can bring entry j of G d near 0, given d of the columns before: it rounds
 * w_j + sum over i < j of d_i G_ji / G_jj, and what is left counts G_jj^2 times. That is GPTQ's choice without an inverse.
 * Scales are searched for (encode.h) when a group's first column is reached, for what is then to be rounded. Formats are what
 * they are without it. The result does not depend on threads or the processor. Includes: base, model. */
#ifndef MOEBIUS_MODEL_GPTQ_H
#define MOEBIUS_MODEL_GPTQ_H

#include "model/make.h"
#include "model/moments.h"

struct gptq;

/* *out is NULL (and the code 0) where nothing but zeros was seen. */
int gptq_open(struct gptq **out, const struct moments *moments, struct pool *pool, struct mo_error *error);
void gptq_close(struct gptq *gptq); /* accepts NULL */
/* Memory that a matrix of `cols` inputs takes, and more while it is opened. */
size_t gptq_bytes(int cols);
size_t gptq_open_bytes(int cols);

/* Scratch for matrices of up to `cols` columns; see encode.h for the rest. `to` is INT4 or INT8. */
size_t gptq_scratch_bytes(int cols);
int gptq_rows(const struct mat *from, const struct mat *to, const struct gptq *gptq, int unit, void *scratch,
              struct make_error *sum);

#endif
