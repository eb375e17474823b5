/* check/speed.h - how fast the products of one format read weights (one token, over far more weights than the caches hold) and
 * compute (many tokens, weights in the caches), by any level and any number of threads. What that is a share of, the caller
 * measures beside it: machines drift. Owned by one thread. Includes: base, model, backend. */
#ifndef MOEBIUS_CHECK_SPEED_H
#define MOEBIUS_CHECK_SPEED_H

#include <stdbool.h>
#include "backend/cpu/kern.h"
#include "base/error.h"

enum { SPEED_TOKENS = 64 };

/* What is timed: every format in turn, and behind FP8 the same with a scale for every 32x32 weights, as DeepSeek-V4.1 has it. */
enum { SPEED_FP8_32 = MAT_FP8 + 1, SPEED_KINDS = MAT_FORMATS + 1 };
const char *speed_kind_name(int kind);
/* Whether its kernels are those of a kind before: words, once they are turned. */
bool speed_is_like_another(int kind);

struct speed;
/* Random weights of one kind, 512 MiB of them or an eighth of the memory that is left. */
int speed_open(struct speed **speed, int kind, int threads, struct mo_error *error);
void speed_close(struct speed *speed); /* accepts NULL */

/* Has the level a product of the format with such activations that is worth timing? INT4 and INT8 with fp32 activations are a
 * yardstick, plain C at every level. */
bool speed_has(const struct speed *speed, enum cpu_level level, bool quantized);
/* Weight bytes a second (scales of blocks included), for one token. */
double speed_read(struct speed *speed, enum cpu_level level, bool quantized);
/* Operations a second (a product and a sum are two), for SPEED_TOKENS tokens. */
double speed_compute(struct speed *speed, enum cpu_level level, bool quantized);

#endif
