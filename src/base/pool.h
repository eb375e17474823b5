/* base/pool.h - the threads of one engine. pool_run calls `task(context, i)` once for every i in [0, n_tasks),
 * spread over the pool's threads (the caller's thread is one of them), and returns when all are done. Tasks are
 * handed out in ascending order; which thread gets which is not defined, so results must not depend on it.
 * `worker` (0 .. n_threads - 1) selects per-thread scratch. Not re-entrant; one caller at a time. */
#ifndef MOEBIUS_BASE_POOL_H
#define MOEBIUS_BASE_POOL_H

#include "base/affinity.h"
#include "base/error.h"

struct pool;
typedef void pool_task(void *context, int index, int worker);

int pool_create(struct pool **pool, int n_threads, struct mo_error *error);
void pool_destroy(struct pool *pool); /* accepts NULL */
int pool_threads(const struct pool *pool);
void pool_run(struct pool *pool, int n_tasks, pool_task *task, void *context);

/* From the next job on every thread stays where affinity_places has it. The caller's does so on a processor alone: whatever it starts
 * later would be kept to its node. */
void pool_pin(struct pool *pool, enum affinity affinity);

/* The processors this process may use: those it may run on, or as many as its control group (a container) has the time of. */
int pool_default_threads(void);

#endif
