/* tests/shim/race.h - what the scheduler of fibre.c tells the race detector of race.c. In the ordinary shim these are nothing.
 *
 * `pc` is where in the kernel it happened. */
#ifndef MOEBIUS_TESTS_SHIM_RACE_H
#define MOEBIUS_TESTS_SHIM_RACE_H

#include <stdbool.h>
#include <stddef.h>

#ifdef SHIM_RACES

/* A kernel begins; everything before it is over, unless it `begins_early`: then the one before may still be at work until a thread
 * has waited for its end. Its arguments are not watched: each thread has its own copy on a card. */
void race_launch(const char *kernel, const void *params, size_t params_bytes, int blocks, bool begins_early);
void race_after_previous(void);
void race_block(int block);
void race_stacks(const void *at, size_t bytes); /* not watched either */
/* All threads of the block, or of a warp, have come to a barrier. */
void race_barrier(void);
void race_warp_barrier(int warp);
/* The running thread's. */
void race_fence(void);
void race_atomic(const void *at, size_t bytes, const void *pc);
void race_acquire(const void *at, size_t bytes, const void *pc); /* ld.acquire: fence and all */
void race_copy_begins(const void *to, const void *from, const void *pc);
void race_copy_arrives(const void *to, const void *from, const void *pc);
/* libcuda.c: whether a kernel may reach this place: memory of the card, or the host's that is pinned. */
bool shim_is_cards(const void *at);
/* A warp reads 16 bytes of which thread `thread` gave the address: ldmatrix hands them to other lanes. */
void race_tile_row(int thread, const void *row, const void *pc);

#else

#define race_launch(kernel, params, params_bytes, blocks, begins_early) ((void)(begins_early))
#define race_block(block) ((void)0)
#define race_stacks(at, bytes) ((void)0)
#define race_barrier() ((void)0)
#define race_warp_barrier(warp) ((void)0)
#define race_fence() ((void)0)
#define race_atomic(at, bytes, pc) ((void)0)
#define race_acquire(at, bytes, pc) ((void)0)
#define race_copy_begins(to, from, pc) ((void)0)
#define race_copy_arrives(to, from, pc) ((void)0)
#define race_tile_row(thread, row, pc) ((void)0)

#endif
#endif
