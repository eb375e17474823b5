/* backend/cuda/params_bench.h - what the host tells the kernels that make up weights (generate.cu) and that measure a card
 * (probe.cu); see params.h. Includes: params.h. */
#ifndef MOEBIUS_BACKEND_CUDA_PARAMS_BENCH_H
#define MOEBIUS_BACKEND_CUDA_PARAMS_BENCH_H

#include "params.h"

/* Random weights, straight in the kernels' order. A word is a hash of (stream, place), so any thread makes any part. */
struct generate_params {
    struct device_matrix to; /* data and scale are written; generate_rows: data alone, `count` values in bf16 */
    uint64_t stream;         /* another one for each matrix */
    size_t count;
    float step; /* BF16: a value is step * (i + 1/2), i from -2^15 to 2^15 - 1 */
    /* The others: a scale's bits (fp32 for FP8, else fp16) are scale_low + [0, scale_span). CODE_EXPONENT: scale_low, and one more in
     * scale_span of 65536. */
    uint32_t scale_low;
    uint32_t scale_span;
    uint32_t low_bits; /* GGUF's blocks with a dmin: its fp16 bits */
    int32_t format;    /* enum weight_format */
    int32_t tile_rows; /* rows of the matrix in a tile: 16, or 8 where gate and up share tiles; both are made then */
};

/* What a card can do. */
struct probe_params {
    const uint8_t *data;  /* read from [offset, offset + bytes) */
    size_t offset, bytes; /* bytes: a multiple of 16 */
    uint32_t *sink;    /* written when the data's words add up to one number: never, but the compiler does not know */
    uint32_t *counter; /* probe_barrier: blocks that came so far; zero before */
    int32_t rounds;    /* probe_barrier */
    int32_t blocks;
};

PARAMS_SIZE(generate_params, 104);
PARAMS_SIZE(probe_params, 48);

#endif
