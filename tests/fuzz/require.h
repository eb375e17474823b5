/* What has to hold, whatever the input is. */
#ifndef MOEBIUS_TESTS_FUZZ_REQUIRE_H
#define MOEBIUS_TESTS_FUZZ_REQUIRE_H

#include <stdbool.h>
#include <stdlib.h>

static inline void require(bool condition) {
    if (!condition) abort();
}

#endif
