/* model/gptq_kern.h - shared by moments.c, gptq.c and gptq_rows.c only: their loops, for each level of instructions. Every sum has one order and
 * no fused steps, so all levels give the same bits. */
#ifndef MOEBIUS_MODEL_GPTQ_KERN_H
#define MOEBIUS_MODEL_GPTQ_KERN_H

#include <stddef.h>
#include <stdint.h>

/* Matrices are cut into squares of this many rows and columns. */
enum { GPTQ_BLOCK = 128, GPTQ_PART = 64 };

/* One column of a matrix's block, of GPTQ_BLOCK rows; a row lies in a lane. */
struct gptq_column {
    const float *target;          /* what is rounded */
    const float *scale, *inverse; /* of each row; inverse 0 where the scale is 0 */
    float low, high;              /* of q */
    float *change;                /* in: the weight as it was; out: that less what it has become */
    int8_t *q;
};

struct gptq_kern {
    /* out [m][out_stride] += a [m][a_stride] x b [k][b_stride], of which GPTQ_BLOCK columns; m is a multiple of 4. In the
     * order of k, GPTQ_PART of them to a sum that is then added: a long text's sums are too large for one row's share. */
    void (*add)(float *out, size_t out_stride, const float *a, size_t a_stride, const float *b, size_t b_stride, int m,
                int k);
    void (*add_double)(double *out, size_t out_stride, const double *a, size_t a_stride, const double *b,
                       size_t b_stride, int m, int k);
    void (*column)(const struct gptq_column *column);
    /* out [m][GPTQ_BLOCK] += a [m], one to each a_stride, x b [GPTQ_BLOCK]. */
    void (*add_outer)(float *out, const float *a, size_t a_stride, const float *b, int m);
};
const struct gptq_kern *gptq_kern_get(void);

#endif
