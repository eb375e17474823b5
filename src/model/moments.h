/* model/moments.h - the second moments of a matrix's inputs, X^T X over the rows of a text: what gptq.h weighs errors by. Half of a
 * symmetric matrix, in fp32, cut into squares: row r has its columns up to the end of its own square. Includes: base, model. */
#ifndef MOEBIUS_MODEL_MOMENTS_H
#define MOEBIUS_MODEL_MOMENTS_H

#include <stddef.h>
#include <stdint.h>
#include "base/pool.h"

struct moments {
    int cols;
    int64_t rows; /* seen */
    float *sums;  /* moments_bytes; NULL: nothing seen */
};

size_t moments_bytes(int cols);
/* Adds x [n][cols]. The sums do not depend on the number of threads or on the processor. */
int moments_add(struct moments *moments, const float *const *x, int n, struct pool *pool, struct mo_error *error);
void moments_free(struct moments *moments); /* and makes it empty */

/* ---- the layout, for gptq.c ---- */

/* Rows of squares that `cols` columns fill. */
int squares_across(int cols);
/* Values before the row of squares `row`; a row in it has squares_stride(row). */
size_t squares_before(int row);
size_t squares_stride(int row);
/* The squares on and below the diagonal, counted row by row. */
struct square {
    int row, column;
};
struct square square_of(int index);
/* pool_run for `n` squares; a few are sooner done here than handed out. */
void squares_run(struct pool *pool, int n, pool_task *task, void *context);

#endif
