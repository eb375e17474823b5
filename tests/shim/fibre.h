/* tests/shim/fibre.h - the scheduler of fibre.c, for the fake driver. */
#ifndef MOEBIUS_TESTS_SHIM_FIBRE_H
#define MOEBIUS_TESTS_SHIM_FIBRE_H

#include "shim.h"

enum { SHIM_SHARED_BYTES = 99 << 10 }; /* of the cards that have least: compute capability 8.6 and 8.9 */

/* What kernels declare as shared memory lies in a section of its own, and the linker knows where that begins and ends. */
extern unsigned char shim_own_first[] __asm__("__start_shim_own") __attribute__((visibility("hidden")));
extern unsigned char shim_own_end[] __asm__("__stop_shim_own") __attribute__((visibility("hidden")));

/* Runs all blocks but `left_out` (-1: all), in an order shuffled by `seed`, which moves on. */
void shim_run(shim_kernel *kernel, const void *params, int blocks, int left_out, int threads, uint64_t *seed);
void shim_yield(void);

#endif
