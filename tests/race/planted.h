/* tests/race/planted.h - arguments of the kernels of planted.cu. */
#ifndef MOEBIUS_TESTS_RACE_PLANTED_H
#define MOEBIUS_TESTS_RACE_PLANTED_H

#include <stdint.h>

enum { PLANTED_WORDS = 1024, PLANTED_BLOCKS = 3 };

struct planted_params {
    uint32_t *data;       /* [PLANTED_WORDS] */
    uint32_t *counter;    /* zero */
    const uint32_t *host; /* what no card reaches */
    int32_t right;        /* 1: as it should be; 0: with what is wrong */
    int32_t unused;
};

#endif
