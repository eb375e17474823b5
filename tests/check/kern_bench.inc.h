/* tests/check/kern_bench.inc.h - check_kern --bench: how fast each gemm reads weights and computes.
 * One token: GB/s over a set of matrices far larger than the caches, with the share of what a plain read of
 * the same bytes reaches in the same seconds (machines drift; only the pair means something). Many tokens:
 * Gflop/s. Time is the slowest thread's own processor time, so that other programs disturb less; median of
 * the passes. */
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <time.h>

enum { BENCH_ROWS = 2048, BENCH_COLS = 2048, BENCH_TOKENS = 64, BENCH_PASSES = 5, BENCH_THREADS = 2 };
static const size_t bench_set_bytes = (size_t)512 << 20;

struct bench {
    struct mat *mats;
    int count, n, quantized, threads;
    size_t weight_bytes;     /* of one matrix, without scales */
    const struct kern *kern; /* NULL: only read */
    const float *x[BENCH_TOKENS];
    struct q8_row q[BENCH_TOKENS];
    float *y[BENCH_TOKENS];
    pthread_barrier_t barrier;
};

struct bench_thread {
    struct bench *bench;
    int index;
    uint64_t sum; /* keeps the plain read alive */
    double seconds[BENCH_PASSES];
    pthread_t thread;
};

static double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Eight streams at once, asked for 1 KiB ahead: about the best that a thread can do. The streams do not begin
 * a power of two apart, which would lay them on the same sets of the caches and banks of the memory. */
static uint64_t bench_read(const char *p, size_t bytes) {
    typedef uint64_t pair __attribute__((vector_size(16)));
    const size_t part = (bytes / 8 - 4096 * 5) & ~(size_t)4095;
    pair sum[8] = {{0}};
    for (size_t at = 0; at < part; at += 64)
        for (int s = 0; s < 8; s++) {
            const char *line = p + (part + 64 * 13) * (size_t)s + at;
            __builtin_prefetch(line + 1024);
            for (int i = 0; i < 64; i += 16) {
                pair word;
                memcpy(&word, line + i, sizeof word);
                sum[s] += word;
            }
        }
    for (int s = 1; s < 8; s++) sum[0] += sum[s];
    return sum[0][0] + sum[0][1];
}

static void bench_pass(struct bench_thread *me) {
    struct bench *b = me->bench;
    const int share = BENCH_ROWS / b->threads, r0 = me->index * share;
    if (!b->kern) {
        size_t bytes = b->weight_bytes * (size_t)b->count / (size_t)b->threads;
        me->sum += bench_read((const char *)b->mats[0].data + bytes * (size_t)me->index, bytes);
        return;
    }
    for (int i = 0; i < b->count; i++) {
        const struct mat *m = &b->mats[i];
        if (b->quantized)
            b->kern->gemm_q8[m->format](m, r0, r0 + share, b->q, b->n, b->y, 0);
        else
            b->kern->gemm[m->format](m, r0, r0 + share, b->x, b->n, b->y);
    }
}

static void *bench_worker(void *arg) {
    struct bench_thread *me = arg;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(me->index, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* best effort: a smaller machine runs unpinned */
    for (int pass = 0; pass < BENCH_PASSES; pass++) {
        pthread_barrier_wait(&me->bench->barrier);
        double start = bench_now();
        bench_pass(me);
        me->seconds[pass] = bench_now() - start;
    }
    return 0;
}

static int bench_order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of a pass. */
static double bench_time(struct bench *b) {
    struct bench_thread workers[BENCH_THREADS] = {0};
    double seconds[BENCH_PASSES] = {0};
    pthread_barrier_init(&b->barrier, 0, (unsigned)b->threads);
    for (int i = 0; i < b->threads; i++) {
        workers[i] = (struct bench_thread){.bench = b, .index = i};
        pthread_create(&workers[i].thread, 0, bench_worker, &workers[i]);
    }
    for (int i = 0; i < b->threads; i++) {
        pthread_join(workers[i].thread, 0);
        for (int pass = 0; pass < BENCH_PASSES; pass++) seconds[pass] = fmax(seconds[pass], workers[i].seconds[pass]);
    }
    pthread_barrier_destroy(&b->barrier);
    qsort(seconds, BENCH_PASSES, sizeof *seconds, bench_order);
    return seconds[BENCH_PASSES / 2];
}

/* ---- the set: matrices one after another in one buffer; scales and zeros are shared, they fit the caches
 * ---- */

static uint32_t bench_zeros[BENCH_COLS / 128 * BENCH_ROWS / 8];
static uint16_t bench_scales16[BENCH_COLS / 128 * BENCH_ROWS];
static float bench_scales[BENCH_COLS / 128 * BENCH_ROWS / 128];

static struct mat bench_mat(enum mat_format format, const char *data) {
    return (struct mat){.format = format,
                        .rows = BENCH_ROWS,
                        .cols = BENCH_COLS,
                        .data = data,
                        .scale = bench_scales,
                        .scale_rows = 128,
                        .scale_cols = 128,
                        .scale_stride = BENCH_COLS / 128,
                        .zeros = bench_zeros,
                        .scales16 = bench_scales16,
                        .group_size = 128};
}

static size_t bench_weight_bytes(enum mat_format format) {
    const size_t count = (size_t)BENCH_ROWS * BENCH_COLS;
    if (format == MAT_INT4 || format == MAT_INT8) {
        struct mat m = bench_mat(format, 0);
        return mat_bytes(&m);
    }
    return format == MAT_F32 ? count * 4 : format == MAT_FP8 ? count : format == MAT_INT4_AWQ ? count / 2 : count * 2;
}

static void bench_fill(enum mat_format format, char *data, size_t bytes) {
    random_seed(1);
    size_t size = (size_t)1 << 20;
    if (format == MAT_INT4 || format == MAT_INT8) { /* any bytes below 0x77 are good values and scales */
        size = bench_weight_bytes(format);
        for (size_t i = 0; i < size; i++) data[i] = (char)(random_u32() >> 8 & 0x77);
    } else if (format == MAT_FP8 || format == MAT_INT4_AWQ) {
        for (size_t i = 0; i < size; i++) {
            data[i] = (char)(random_u32() >> 8);
            if (format == MAT_FP8 && (data[i] & 0x7f) == 0x7f) data[i] = 0;
        }
    } else {
        fill_dense(data, format, size / (format == MAT_F32 ? 4 : 2), DATA_PLAIN);
    }
    for (; size < bytes; size *= 2) memcpy(data + size, data, size < bytes - size ? size : bytes - size);
}

static void bench_line(struct bench *b, const char *name, size_t set_bytes, double read_rate) {
    double seconds = bench_time(b), bytes = (double)set_bytes, flops = 2.0 * b->count * BENCH_ROWS * BENCH_COLS * b->n;
    printf("%-7s %-12s n %2d  %d thread%s %7.2f GB/s", b->kern->name, name, b->n, b->threads,
           b->threads > 1 ? "s" : " ", bytes / seconds * 1e-9);
    if (b->n == 1)
        printf("  %3.0f %% of read (%.1f)\n", 100 * bytes / seconds * 1e-9 / read_rate, read_rate);
    else
        printf("  %7.1f Gflop/s\n", flops / seconds * 1e-9);
}

static void bench_kernel(struct bench *b, enum cpu_level best, const char *name, int quantized) {
    const int all = b->count;
    const size_t weight_bytes = b->weight_bytes;
    struct kern k;
    for (int threads = 1; threads <= BENCH_THREADS; threads++)
        for (int level = CPU_AVX2; level <= (int)best; level++) {
            b->threads = threads;
            b->quantized = quantized;
            b->n = 1;
            b->kern = 0;
            double read_rate = (double)weight_bytes * all / bench_time(b) * 1e-9;
            kern_init(&k, (enum cpu_level)level);
            b->kern = &k;
            bench_line(b, name, weight_bytes * (size_t)all, read_rate);
            b->n = BENCH_TOKENS;
            b->count = 4;
            bench_line(b, name, weight_bytes * 4, 0);
            b->count = all;
        }
}

static struct q8_row bench_quantize(const float *x, int n, int group) {
    struct q8_row row = {malloc((size_t)n), malloc((size_t)(n / group) * 4), malloc((size_t)(n / group) * 4)};
    struct kern plain;
    kern_init(&plain, CPU_REF);
    plain.quantize(x, n, group, &row);
    return row;
}

/* only: a format's name, or NULL for all. */
static int bench_run(enum cpu_level best, const char *only) {
    char *data = mmap(0, bench_set_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static _Alignas(64) float x[BENCH_TOKENS][BENCH_COLS];
    static float y[BENCH_TOKENS][BENCH_ROWS];
    struct bench b = {0};
    if (data == MAP_FAILED) {
        perror("check_kern: 512 MiB of weights");
        return 2;
    }
    madvise(data, bench_set_bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < sizeof bench_scales / sizeof *bench_scales; i++) bench_scales[i] = 0.01f;
    for (size_t i = 0; i < sizeof bench_scales16 / sizeof *bench_scales16; i++) bench_scales16[i] = 0x2000;
    for (size_t i = 0; i < sizeof bench_zeros / sizeof *bench_zeros; i++) bench_zeros[i] = 0x88888888;
    for (int t = 0; t < BENCH_TOKENS; t++) {
        for (int k = 0; k < BENCH_COLS; k++) x[t][k] = random_float();
        b.x[t] = x[t];
        b.y[t] = y[t];
    }
    for (int format = 0; format < MAT_FORMATS; format++) {
        size_t bytes = bench_weight_bytes((enum mat_format)format);
        if (only && strcmp(only, mat_format_name((enum mat_format)format)) != 0) continue;
        b.weight_bytes = bytes;
        b.count = (int)(bench_set_bytes / bytes);
        b.mats = malloc((size_t)b.count * sizeof *b.mats);
        bench_fill((enum mat_format)format, data, bench_set_bytes);
        for (int i = 0; i < b.count; i++) b.mats[i] = bench_mat((enum mat_format)format, data + (size_t)i * bytes);
        if (format != MAT_INT4 && format != MAT_INT8) /* fp32 is their yardstick, plain C at every level */
            bench_kernel(&b, best, mat_format_name((enum mat_format)format), 0);
        char name[32];
        snprintf(name, sizeof name, "%s q8", mat_format_name((enum mat_format)format));
        for (int t = 0; t < BENCH_TOKENS && q8_group(&b.mats[0]); t++) {
            b.q[t] = bench_quantize(x[t], BENCH_COLS, q8_group(&b.mats[0]));
        }
        if (q8_group(&b.mats[0])) bench_kernel(&b, best, name, 1);
        free(b.mats);
    }
    munmap(data, bench_set_bytes);
    return 0;
}
