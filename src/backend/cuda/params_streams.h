/* backend/cuda/params_streams.h - what the host tells the kernels of V4's residual streams (streams.cu); see params.h.
 * Includes: params.h. */
#ifndef MOEBIUS_BACKEND_CUDA_PARAMS_STREAMS_H
#define MOEBIUS_BACKEND_CUDA_PARAMS_STREAMS_H

#include "params.h"

enum {
    MAX_STREAMS = 8,
    MAX_MIX = MAX_STREAMS * (MAX_STREAMS + 2), /* numbers that a row is mixed by */
    STREAM_COLS = 512, /* of a row's streams, side by side, that a block multiplies: their products are a piece */
    STREAM_ROWS = 16,  /* rows that it multiplies by the same part of the matrix */
    MIX_COLS = 4 * BLOCK_THREADS, /* of a row that a block mixes */
};

/* One struct for all of them; each uses what it needs. A row's numbers are before, after [streams], among [to stream][from stream]; the
 * matrix, base and the products have [from][to] there. */
struct streams_params {
    float *residual;     /* [n][streams][hidden] */
    float *x;            /* [n][hidden] what a block reads, and what it adds */
    const int32_t *rows; /* [n] which rows of residual and x are meant, or NULL: the first n */
    const float *matrix; /* [numbers][streams * hidden] */
    const float *base;   /* [numbers] */
    const float *scale;  /* of before, after, among */
    float *piece;        /* [n][pieces][numbers + 1] products, and the sum of squares */
    float *mix;          /* [n][numbers]; of these before is not written */
    int32_t n, hidden, streams;
    int32_t numbers; /* streams * (streams + 2), or streams: `before` alone */
    int32_t pieces;  /* of streams * hidden columns */
    int32_t iterations;
    float norm_eps, mix_eps;
};

PARAMS_SIZE(streams_params, 96);

#endif
