/* model/gptq_priv.h - shared by gptq.c (the triangle) and gptq_rows.c (what is rounded with it). */
#ifndef MOEBIUS_MODEL_GPTQ_PRIV_H
#define MOEBIUS_MODEL_GPTQ_PRIV_H

#include "model/gptq.h"
#include "model/gptq_kern.h"

struct gptq {
    int cols, across;
    float *feedback; /* squares (moments.h): G_ji / G_jj for i < j; 0 from the diagonal on */
    float *weight;   /* [across * GPTQ_BLOCK] G_jj^2 */
};

#endif
