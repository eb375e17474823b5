#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "backend/cuda/upload.h"

enum {
    THREADS_MAX = 8,         /* that keep a disk or the memory busy */
    PART_BYTES = 1 << 20,    /* for one thread at a time */
    AHEAD_BYTES = 128 << 20, /* what the disk may read meanwhile */
};

struct copy {
    uint8_t *to;
    const uint8_t *from;
    size_t bytes;
};

int upload_copy_open(struct upload *u) {
    int threads = u->cuda->options.threads < THREADS_MAX ? u->cuda->options.threads : THREADS_MAX;
    return threads < 2 ? 0 : pool_create(&u->pool, threads, u->error);
}

void upload_copy_close(struct upload *u) {
    pool_destroy(u->pool);
    u->pool = NULL;
}

static void copy_part(void *context, int index, int worker) {
    const struct copy *c = context;
    size_t at = (size_t)index * PART_BYTES, bytes = c->bytes - at < PART_BYTES ? c->bytes - at : PART_BYTES;
    (void)worker;
    memcpy(c->to + at, c->from + at, bytes);
}

/* Asks the system to read on, past this matrix: the next one lies behind it most of the time. Advice may be refused. */
static void read_ahead(const uint8_t *from, size_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)from / page * page;
    madvise((void *)first, (uintptr_t)from + bytes + AHEAD_BYTES - first, MADV_WILLNEED);
}

void upload_copy(struct upload *u, void *to, const void *from, size_t bytes) {
    struct copy copy = {to, from, bytes};
    if (bytes < PART_BYTES) {
        memcpy(to, from, bytes);
        return;
    }
    read_ahead(from, bytes);
    if (!u->pool) {
        memcpy(to, from, bytes);
        return;
    }
    pool_run(u->pool, (int)((bytes + PART_BYTES - 1) / PART_BYTES), copy_part, &copy);
}
