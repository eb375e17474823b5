/* backend/cuda/params_streams.h - what the host tells the kernels of V4's and V4.1's residual streams (streams.cu); see params.h.
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
    float *before;       /* V4.1 [n][streams] what the next block reads by, as the last mixer says; else NULL */
    int32_t n, hidden, streams;
    int32_t numbers; /* streams * (streams + 2), or streams: `before` alone */
    int32_t pieces;  /* of streams * hidden columns */
    int32_t iterations;
    float norm_eps, mix_eps;
};

/* V4.1's n-gram memory: each stream takes the more of a row's value the better it goes with its key. A block a stream of a row. */
struct engram_params {
    float *residual;                  /* [n][streams][hidden] */
    const float *kv;                  /* [n][streams + 1][hidden] a key for each stream, then the value */
    const float *q_weight, *k_weight; /* [streams][hidden] */
    unsigned long long *fault;
    int32_t hidden, streams;
    int32_t fault_key, fault_before; /* what to blame for the products, and for the streams */
    float eps;
    int32_t unused;
};

PARAMS_SIZE(streams_params, 104);
PARAMS_SIZE(engram_params, 64);

#endif
