/* Numbers that look random and are the same in every run. */
#ifndef MOEBIUS_TESTS_RANDOM_BELOW_H
#define MOEBIUS_TESTS_RANDOM_BELOW_H

#include <stdint.h>

static inline int random_below(int n) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (uint32_t)n);
}

#endif
