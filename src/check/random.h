/* check/random.h - random numbers that are the same in every run. Source: xorshift64 (Marsaglia 2003). */
#ifndef MOEBIUS_CHECK_RANDOM_H
#define MOEBIUS_CHECK_RANDOM_H

#include <stdint.h>

struct check_random {
    uint64_t state;
};

static inline void random_seed(struct check_random *random, uint64_t seed) {
    random->state = seed * 0x9e3779b97f4a7c15u + 1;
}

static inline uint32_t random_u32(struct check_random *random) {
    random->state ^= random->state << 13;
    random->state ^= random->state >> 7;
    random->state ^= random->state << 17;
    return (uint32_t)(random->state >> 32);
}

static inline int random_int(struct check_random *random, int low, int high) {
    return low + (int)(random_u32(random) % (uint32_t)(high - low + 1));
}

/* Roughly normal, deviation 1. */
static inline float random_float(struct check_random *random) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)(int32_t)random_u32(random) * 0x1p-31f;
    return sum * 0.866f;
}

#endif
