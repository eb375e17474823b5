#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/affinity.h"
#include "base/group.h"

enum {
    SPINS_BEFORE_SLEEP = 4000, /* about 50 us: the usual gap between two stages is far shorter */
    CACHE_LINE = 64,
};

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index;       /* 1 .. n_threads - 1; the caller is 0 */
    bool moves;      /* before its next task: */
    cpu_set_t place; /* there */
};

/* The job at hand, in one word, so that a thread takes a task of just the job it saw:
 * generation (24 bits) | number of tasks (20) | next task to hand out (20). */
enum { TASK_BITS = 20 };
static const uint64_t TASK_MASK = (1u << TASK_BITS) - 1;

static uint64_t ticket_make(uint64_t generation, uint64_t n_tasks) {
    return generation << 2 * TASK_BITS | n_tasks << TASK_BITS;
}

struct pool {
    int n_threads, n_started;
    struct worker *workers; /* [n_threads], the caller first */
    pthread_mutex_t lock;
    pthread_cond_t wake; /* a new job, or the end */

    cpu_set_t before; /* where the caller could be before it was pinned */
    bool is_caller_pinned;

    /* Written before the ticket of their job, unchanged until all its tasks are done. */
    pool_task *task;
    void *context;
    int first; /* index of the ticket's task 0 */

    _Alignas(CACHE_LINE) _Atomic uint64_t ticket;
    _Alignas(CACHE_LINE) atomic_int n_done; /* tasks finished */
    atomic_int n_sleeping;
    atomic_bool stop;
};

int pool_default_threads(void) {
    cpu_set_t set;
    double n = (double)sysconf(_SC_NPROCESSORS_ONLN); /* more processors than a cpu_set_t counts */
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
    n = group_least("cpu", group_processors, n);
    return n >= 2 ? (int)n : 1; /* a part of a processor would keep all others waiting */
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static bool has_task(uint64_t ticket) {
    return (ticket & TASK_MASK) < (ticket >> TASK_BITS & TASK_MASK);
}

/* Works on the job of `ticket` until no task of it is left. The caller of pool_run does the same, so a worker that is not
 * scheduled in time delays nobody. */
static void take_tasks(struct pool *pool, uint64_t ticket, int worker) {
    while (has_task(ticket)) {
        if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + 1)) continue; /* ticket is now the newest */
        pool->task(pool->context, pool->first + (int)(ticket & TASK_MASK), worker);
        atomic_fetch_add_explicit(&pool->n_done, 1, memory_order_release);
        ticket = atomic_load(&pool->ticket);
    }
}

/* Spins for a while, then sleeps, until there is a task or the end. */
static uint64_t wait_for_task(struct pool *pool) {
    uint64_t ticket;
    for (int i = 0; i < SPINS_BEFORE_SLEEP; i++) {
        ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
        if (has_task(ticket) || atomic_load(&pool->stop)) return ticket;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->n_sleeping, 1);
    while (!has_task(ticket = atomic_load(&pool->ticket)) && !atomic_load(&pool->stop)) {
        pthread_cond_wait(&pool->wake, &pool->lock);
    }
    atomic_fetch_sub(&pool->n_sleeping, 1);
    pthread_mutex_unlock(&pool->lock);
    return ticket;
}

/* Written by pool_pin between jobs, so before the ticket that the worker has just seen. */
static void go_to_place(struct worker *worker) {
    if (!worker->moves) return;
    worker->moves = false;
    sched_setaffinity(0, sizeof worker->place, &worker->place); /* where it is refused, nothing changes */
}

static void *worker_main(void *argument) {
    struct worker *worker = argument;
    for (;;) {
        uint64_t ticket = wait_for_task(worker->pool);
        if (atomic_load(&worker->pool->stop)) return NULL;
        go_to_place(worker);
        take_tasks(worker->pool, ticket, worker->index);
    }
}

/* A sleeper looks at the ticket under the lock before it sleeps, so taking the lock here loses no wake-up. */
static void wake_sleepers(struct pool *pool) {
    if (atomic_load(&pool->n_sleeping) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static void hand_out(struct pool *pool, int n_tasks) {
    uint64_t generation = (atomic_load(&pool->ticket) >> 2 * TASK_BITS) + 1;
    uint64_t ticket = ticket_make(generation, (uint64_t)n_tasks);
    atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed);
    atomic_store(&pool->ticket, ticket);
    wake_sleepers(pool);
    take_tasks(pool, ticket, 0);
    for (int spins = 0; atomic_load_explicit(&pool->n_done, memory_order_acquire) < n_tasks; spins++) {
        if (spins < SPINS_BEFORE_SLEEP) {
            pause_briefly();
        } else {
            sched_yield(); /* more threads than processors: let the worker with the last task run */
        }
    }
}

/* The caller's thread is its owner's: it gets back what it had when the pool ends. */
static void pin_caller(struct pool *pool) {
    if (!pool->workers[0].moves) return;
    pool->is_caller_pinned = sched_getaffinity(0, sizeof pool->before, &pool->before) == 0;
    go_to_place(&pool->workers[0]);
}

void pool_run(struct pool *pool, int n_tasks, pool_task *task, void *context) {
    if (n_tasks <= 0) return;
    if (pool->n_threads == 1 || n_tasks == 1) {
        for (int i = 0; i < n_tasks; i++) task(context, i, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    pin_caller(pool);
    for (int first = 0; first < n_tasks; first += (int)TASK_MASK) { /* what one ticket can count */
        pool->first = first;
        hand_out(pool, n_tasks - first < (int)TASK_MASK ? n_tasks - first : (int)TASK_MASK);
    }
}

int pool_create(struct pool **out, int n_threads, struct mo_error *error) {
    struct pool *pool = aligned_alloc(CACHE_LINE, sizeof *pool);
    struct worker *workers = calloc((size_t)n_threads, sizeof *workers);
    if (!pool || !workers) {
        free(pool);
        free(workers);
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d threads", n_threads);
    }
    memset(pool, 0, sizeof *pool);
    pool->n_threads = n_threads;
    pool->workers = workers;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int i = 0; i < n_threads; i++) workers[i] = (struct worker){.pool = pool, .index = i};
    for (int i = 1; i < n_threads; i++) {
        struct worker *worker = &workers[i];
        int reason = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (reason) {
            pool_destroy(pool);
            return mo_error_set(error, MO_E_NO_MEMORY, "cannot start thread %d of %d: %s", i + 1, n_threads,
                                strerror(reason));
        }
        pool->n_started = i;
    }
    *out = pool;
    return 0;
}

void pool_destroy(struct pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, true);
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 1; i <= pool->n_started; i++) pthread_join(pool->workers[i].thread, NULL);
    if (pool->is_caller_pinned) sched_setaffinity(0, sizeof pool->before, &pool->before);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}

void pool_pin(struct pool *pool, enum affinity affinity) {
    cpu_set_t *places = calloc((size_t)pool->n_threads, sizeof *places);
    const int first = affinity == AFFINITY_PROCESSOR ? 0 : 1;
    if (places && affinity_places(affinity, places, pool->n_threads)) {
        for (int i = first; i < pool->n_threads; i++) {
            pool->workers[i].place = places[i];
            pool->workers[i].moves = true;
        }
    }
    free(places);
}

int pool_threads(const struct pool *pool) {
    return pool->n_threads;
}
