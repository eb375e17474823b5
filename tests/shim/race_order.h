/* tests/shim/race_order.h - which accesses of a launch come before which (see race.c for the rules). */
#ifndef MOEBIUS_TESTS_SHIM_RACE_ORDER_H
#define MOEBIUS_TESTS_SHIM_RACE_ORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A point in a thread's run: how many barriers its block and its warp, and how many fences it has passed. */
struct moment {
    int block, thread;
    unsigned barriers, warp_barriers, fences;
    bool is_copy; /* under way: after nothing, before nothing */
};
/* How many threads may stand behind a remembered access: one, some of a warp, some of several warps. */
enum crowd { ONE, LANES, MANY_WARPS };

void order_launch(int blocks);
void order_block_begins(int block);
int order_block(void); /* that runs */

/* Moments have numbers, from 1 on, good for the launch: that of `thread` now, and of its copies that are under way. */
uint32_t order_now(int thread);
uint32_t order_copy(int thread);
const struct moment *order_moment(uint32_t number);

/* Whether an access comes before what `thread` does now: by barriers, if it is of this block (order_is_past); by all means. */
bool order_is_past(const struct moment *then, enum crowd crowd, int thread);
bool order_is_before(const struct moment *then, enum crowd crowd, int thread);

/* An atomic operation; a load that is an acquire. */
void order_atomic(const void *at, int thread);
void order_acquire(const void *at, int thread);

/* The array with room for element n. */
void *order_grow(void *array, uint32_t n, uint32_t *room, size_t bytes);

#endif
