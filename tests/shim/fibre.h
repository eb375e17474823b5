/* tests/shim/fibre.h - the scheduler of fibre.c, for the fake driver. */
#ifndef MOEBIUS_TESTS_SHIM_FIBRE_H
#define MOEBIUS_TESTS_SHIM_FIBRE_H

#include "shim.h"

enum { SHIM_SHARED_BYTES = 99 << 10 }; /* of the cards that have least: compute capability 8.6 and 8.9 */

/* What kernels declare as shared memory lies in a section of its own, and the linker knows where that begins and ends. (Weak: none
 * do where they come from PTX.) */
extern unsigned char shim_own_first[] __asm__("__start_shim_own") __attribute__((visibility("hidden"), weak));
extern unsigned char shim_own_end[] __asm__("__stop_shim_own") __attribute__((visibility("hidden"), weak));

/* `left_out` never runs (-1: all do); shared_bytes: kernels' own and what the launch gives. */
struct shim_grid {
    int blocks, left_out, threads, shared_bytes;
};
/* Runs the blocks in an order shuffled by `seed`, which moves on. */
void shim_run(shim_kernel *kernel, const void *params, const struct shim_grid *grid, uint64_t *seed);
extern int shim_launches, shim_shared_bytes; /* counted from 1; of the one that runs */
extern int shim_blocks_begun;                /* of all launches, those that began anew once more */
/* Ends the program: what the running thread did is forbidden. */
void shim_give_up(const char *what) __attribute__((noreturn));
void shim_yield(void);

#endif
