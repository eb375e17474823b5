#include "cmd/bench/machine.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "base/pool.h"

enum {
    LINE_BYTES = 64,
    PASSES = 9,
    PARTS_PER_THREAD = 16, /* small enough that a thread that is interrupted does not hold up the others */
};

static const size_t LEAST_BUFFER_BYTES = (size_t)1 << 30, PART_ALIGN = 4096;

struct bench_spread bench_spread_of(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, order_doubles);
    double median = (values[(n - 1) / 2] + values[n / 2]) / 2;
    return (struct bench_spread){.median = median, .min = values[0], .max = values[n - 1]};
}

/* A GiB, or four times the last cache, so that nearly nothing is found there; at most a quarter of the memory that is
 * left (by the system's word, or the control group's). */
static size_t choose_buffer_bytes(void) {
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    double most = memory_available_bytes() / 4;
    size_t bytes = LEAST_BUFFER_BYTES;
    if (cache > 0 && (size_t)cache * 4 > bytes) bytes = (size_t)cache * 4;
    return (double)bytes < most ? bytes : (size_t)most;
}

struct bench_reader {
    struct kern kern;
    struct pool *pool;
    char *buffer;
    size_t part_bytes; /* a task's share; the shares follow one another */
    int parts;
    uint64_t *sum; /* [parts] keeps the reading alive */
};

/* Memory comes from the system when it is written first; by the pool, so that it lies near the threads. */
static void fill_part(void *context, int part, int worker) {
    (void)worker;
    const struct bench_reader *r = context;
    memset(r->buffer + r->part_bytes * (size_t)part, part + 1, r->part_bytes);
}

static void read_part(void *context, int part, int worker) {
    (void)worker;
    const struct bench_reader *r = context;
    r->sum[part] = r->kern.read_streams(r->buffer + r->part_bytes * (size_t)part, r->part_bytes / READ_STREAMS);
}

/* Streams an odd number of lines apart lie on different sets of the caches, whatever the buffer's size. */
static size_t choose_part_bytes(size_t buffer_bytes, int parts) {
    size_t lines = buffer_bytes / (size_t)parts / PART_ALIGN * PART_ALIGN / READ_STREAMS / LINE_BYTES;
    return lines < 2 ? READ_STREAMS * LINE_BYTES : (lines - 1 + lines % 2) * READ_STREAMS * LINE_BYTES;
}

int bench_reader_open(struct bench_reader **reader, int threads, struct mo_error *error) {
    struct bench_reader *r = calloc(1, sizeof *r);
    if (!r) return mo_error_set(error, MO_E_NO_MEMORY, "no memory to measure its speed");
    r->parts = threads * PARTS_PER_THREAD;
    r->part_bytes = choose_part_bytes(choose_buffer_bytes(), r->parts);
    size_t bytes = r->part_bytes * (size_t)r->parts;
    r->buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    r->sum = calloc((size_t)r->parts, sizeof *r->sum);
    enum cpu_level level;
    int code = cpu_level_get(&level, error);
    if (!code) kern_init(&r->kern, level);
    if (r->buffer == MAP_FAILED || !r->sum) {
        if (r->buffer == MAP_FAILED) r->buffer = NULL;
        code = mo_error_set(error, MO_E_NO_MEMORY, "no memory to measure its speed: %.2f GiB (%s)",
                            (double)bytes / (1 << 30), strerror(errno));
    }
    if (!code) code = pool_create(&r->pool, threads, error);
    if (code) {
        bench_reader_close(r);
        return code;
    }
    madvise(r->buffer, bytes, MADV_HUGEPAGE);
    pool_run(r->pool, r->parts, fill_part, r);
    *reader = r;
    return 0;
}

void bench_reader_close(struct bench_reader *reader) {
    if (!reader) return;
    if (reader->pool) pool_destroy(reader->pool);
    if (reader->buffer) munmap(reader->buffer, reader->part_bytes * (size_t)reader->parts);
    free(reader->sum);
    free(reader);
}

struct bench_spread bench_reader_measure(struct bench_reader *reader, int passes) {
    double rate[BENCH_PASSES_MAX], bytes = (double)reader->part_bytes * reader->parts;
    for (int pass = -1; pass < passes; pass++) { /* the first one is not counted */
        double start = clock_now_s();
        pool_run(reader->pool, reader->parts, read_part, reader);
        if (pass >= 0) rate[pass] = bytes / (clock_now_s() - start) * 1e-9;
    }
    return bench_spread_of(rate, passes);
}

int bench_measure_read(int threads, struct bench_spread *gb_s, struct mo_error *error) {
    struct bench_reader *reader = NULL;
    int code = bench_reader_open(&reader, threads, error);
    if (!code) *gb_s = bench_reader_measure(reader, PASSES);
    bench_reader_close(reader);
    return code;
}

/* ---- products ---- */

enum { PEAK_ROUNDS = 4000000 }; /* some ten milliseconds; of the matrix unit, some hundred */

struct peak_task {
    double (*peak)(int rounds);
    double *operations; /* [threads] */
};

static void run_peak(void *context, int index, int worker) {
    (void)worker;
    const struct peak_task *task = context;
    task->operations[index] = task->peak(PEAK_ROUNDS);
}

int bench_measure_peak(enum kern_peak kind, int threads, struct bench_spread *tops, struct mo_error *error) {
    enum cpu_level level;
    struct kern kern;
    struct pool *pool = NULL;
    double rate[PASSES], *operations = calloc((size_t)threads, sizeof *operations);
    *tops = (struct bench_spread){0};
    int code = cpu_level_get(&level, error);
    if (!code && !operations) code = mo_error_set(error, MO_E_NO_MEMORY, "no memory to measure the processor");
    if (!code) code = pool_create(&pool, threads, error);
    if (!code) kern_init(&kern, level);
    if (!code && kern.peak[kind]) {
        struct peak_task task = {kern.peak[kind], operations};
        for (int pass = -1; pass < PASSES; pass++) { /* the first one is not counted */
            double start = clock_now_s(), total = 0;
            pool_run(pool, threads, run_peak, &task);
            for (int i = 0; i < threads; i++) total += operations[i];
            if (pass >= 0) rate[pass] = total / (clock_now_s() - start) * 1e-12;
        }
        *tops = bench_spread_of(rate, PASSES);
    }
    free(operations);
    if (pool) pool_destroy(pool);
    return code;
}
