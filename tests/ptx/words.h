/* tests/ptx/words.h - arguments of words.cu and words.ptx: a warp, or eight, of lanes with operands of their own. */
#ifndef MOEBIUS_TESTS_PTX_WORDS_H
#define MOEBIUS_TESTS_PTX_WORDS_H

#include <stdint.h>

enum { WORDS_IN = 16, WORDS_OUT = 32, WORDS_THREADS = 256 };

struct words_params {
    const uint32_t *in; /* [thread][WORDS_IN] */
    uint32_t *out;      /* [thread][WORDS_OUT] */
};

#endif
