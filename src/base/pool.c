#include "base/pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SPINS_BEFORE_SLEEP = 4000, /* about 50 us: the usual gap between two stages is far shorter */
    CACHE_LINE = 64,
};

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index; /* 1 .. n_threads - 1; the caller is 0 */
};

struct pool {
    int n_threads, n_started;
    struct worker *workers; /* [n_threads - 1] */
    pthread_mutex_t lock;
    pthread_cond_t wake; /* a new job, or the end */

    /* The job; written by the caller before `generation` moves on. */
    pool_task *task;
    void *context;
    int n_tasks;

    _Alignas(CACHE_LINE) atomic_uint generation; /* any change is a new job */
    _Alignas(CACHE_LINE) atomic_int next;        /* the next task to hand out */
    _Alignas(CACHE_LINE) atomic_int n_busy;      /* workers that have not finished the job */
    atomic_int n_sleeping;
    atomic_bool stop;
};

int pool_default_threads(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    return 1;
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void take_tasks(struct pool *pool, int worker) {
    for (;;) {
        int index = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (index >= pool->n_tasks) return;
        pool->task(pool->context, index, worker);
    }
}

/* Spins for a while, then sleeps, until the generation differs from `seen`. */
static unsigned wait_for_job(struct pool *pool, unsigned seen) {
    for (int i = 0; i < SPINS_BEFORE_SLEEP; i++) {
        unsigned now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        if (now != seen) return now;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->n_sleeping, 1);
    unsigned now;
    while ((now = atomic_load(&pool->generation)) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->n_sleeping, 1);
    pthread_mutex_unlock(&pool->lock);
    return now;
}

static void *worker_main(void *argument) {
    struct worker *worker = argument;
    struct pool *pool = worker->pool;
    unsigned seen = 0;
    for (;;) {
        seen = wait_for_job(pool, seen);
        if (atomic_load(&pool->stop)) return NULL;
        take_tasks(pool, worker->index);
        atomic_fetch_sub_explicit(&pool->n_busy, 1, memory_order_release);
    }
}

/* The generation moves under the lock only if somebody sleeps: a sleeper checks it under the lock. */
static void announce(struct pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->n_sleeping) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

void pool_run(struct pool *pool, int n_tasks, pool_task *task, void *context) {
    if (n_tasks <= 0) return;
    if (pool->n_threads == 1 || n_tasks == 1) {
        for (int i = 0; i < n_tasks; i++) task(context, i, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->n_tasks = n_tasks;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->n_busy, pool->n_threads - 1, memory_order_relaxed);
    announce(pool);
    take_tasks(pool, 0);
    for (int spins = 0; atomic_load_explicit(&pool->n_busy, memory_order_acquire) > 0; spins++) {
        if (spins < SPINS_BEFORE_SLEEP) {
            pause_briefly();
        } else {
            sched_yield(); /* more threads than processors: let the last worker run */
        }
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
    for (int i = 1; i < n_threads; i++) {
        struct worker *worker = &workers[i - 1];
        *worker = (struct worker){.pool = pool, .index = i};
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
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}

int pool_threads(const struct pool *pool) {
    return pool->n_threads;
}
