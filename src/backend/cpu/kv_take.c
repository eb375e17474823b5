/* backend/cpu/kv_take.c - takes the cache's memory from the system beside the first requests, so that a server need not wait for
 * tens of GiB to be zeroed before it answers. What was not taken yet is when it is first written, as anywhere. Pages are taken in the
 * order in which the scheduler hands them out, for all layers at once. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#include "backend/cpu/cpu.h"
#include "base/log.h"

enum { PAGES_AT_ONCE = 64, NICE = 10, SYSTEM_PAGE = 4096 };

struct kv_taker {
    pthread_t thread;
    const struct cpu *cpu;
    atomic_bool stop;
};

/* An exchange: of adding nothing clang makes a barrier, which takes no memory. */
static void write_back(_Atomic uint8_t *byte) {
    uint8_t is = atomic_load_explicit(byte, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(byte, &is, is)) {
    }
}

/* Of each system page a byte is written, with what it was: requests may be writing there. */
static int touch(uint8_t *from, uint8_t *to) {
    if (madvise(from, (size_t)(to - from), MADV_POPULATE_WRITE) == 0) return 0;
    if (errno != EINVAL) return -1;
    for (; from < to; from += SYSTEM_PAGE) write_back((_Atomic uint8_t *)from); /* before Linux 5.14 */
    return 0;
}

/* Pieces [first, first + n) of `bytes` each, which begin at `at`; there are `count`. */
static int take_pieces(uint8_t *at, size_t bytes, int count, int first, int n) {
    if (first >= count || !bytes) return 0;
    int end = first + n < count ? first + n : count;
    uintptr_t from = (uintptr_t)(at + (size_t)first * bytes);
    return touch((uint8_t *)(from / SYSTEM_PAGE * SYSTEM_PAGE), at + (size_t)end * bytes);
}

static int take_pages(const struct cpu *cpu, int layer, int first, int n) {
    const struct cache_layer *l = &cpu->cache_layers[layer];
    int near = cpu->options.n_near ? cpu->options.n_near : cpu->options.n_pages;
    if (take_pieces(cpu->cache + l->pages_at, l->page_bytes, cpu->options.n_pages, first, n)) return -1;
    return take_pieces(cpu->cache + l->near_at, l->near_bytes, near, first, n);
}

static void *take_all(void *context) {
    struct kv_taker *taker = context;
    const struct cpu *cpu = taker->cpu;
    const int n_pages = cpu->options.n_pages;
    id_t self = (id_t)gettid();
    setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + NICE);
    for (int page = 0; page < n_pages; page += PAGES_AT_ONCE) {
        int n = n_pages - page < PAGES_AT_ONCE ? n_pages - page : PAGES_AT_ONCE;
        for (int layer = 0; layer < cpu->model->layers; layer++) {
            if (atomic_load(&taker->stop)) return NULL;
            if (take_pages(cpu, layer, page, n) == 0) continue;
            log_warn("of the cache's %.2f GiB only some %.2f could be taken now (%s); the rest is taken as it is used",
                     (double)cpu->cache_bytes / (1 << 30), (double)cpu->cache_bytes / n_pages * page / (1 << 30),
                     strerror(errno));
            return NULL;
        }
    }
    return NULL;
}

int kv_take_begin(struct cpu *cpu, struct mo_error *error) {
    struct kv_taker *taker = calloc(1, sizeof *taker);
    if (!taker) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    taker->cpu = cpu;
    int failed = pthread_create(&taker->thread, NULL, take_all, taker);
    if (failed) {
        free(taker);
        return mo_error_set(error, MO_E_IO, "cannot start a thread: %s", strerror(failed));
    }
    cpu->taker = taker;
    return 0;
}

void kv_take_end(struct cpu *cpu) {
    if (!cpu->taker) return;
    atomic_store(&cpu->taker->stop, true);
    pthread_join(cpu->taker->thread, NULL);
    free(cpu->taker);
    cpu->taker = NULL;
}
