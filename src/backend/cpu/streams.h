/* backend/cpu/streams.h - the residual stream, as the stages see it. In V4 it is several, x [n_rows][streams][hidden], mixed around
 * each block (streams.c); in all other models these are a norm of x, x, and nothing. Includes: cpu.h. */
#ifndef MOEBIUS_BACKEND_CPU_STREAMS_H
#define MOEBIUS_BACKEND_CPU_STREAMS_H

#include "backend/cpu/cpu.h"

/* A layer's attention or feed-forward begins (attn_in; route, ffn_dense): normed = RMS norm of what it reads. A row that is not finite is
 * blamed on who produced it: the mixer, or the block before. */
enum streams_block { STREAMS_ATTENTION, STREAMS_FEED_FORWARD };
void streams_begin(struct cpu *cpu, int layer, enum streams_block block);
/* What its output is added to, [n_rows][hidden]: cpu->target, in V4 all zeros now. Once a block. */
float *streams_target(struct cpu *cpu);
/* The output is complete. */
void streams_end(struct cpu *cpu);

/* V4, at any time: what a block with this mixer (V4.1: the next one) would read of some rows, NULL: the first n; out [n][hidden], which it returns. Stage
 * memory: n * streams floats. The head's mixer alone is blamed. */
const float *streams_read(struct cpu *cpu, const struct mixer *mixer, const int32_t *rows, int n, float *out);
/* The first stream of a row, copied into all of them: a token begins. */
void streams_spread(struct cpu *cpu, int row);

#endif
