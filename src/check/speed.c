#include "check/speed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "base/clock.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "base/pool.h"
#include "check/random.h"

enum { ROWS = 2048, COLS = 2048, GROUP = 128, SLICE_ROWS = 256, SLICES = ROWS / SLICE_ROWS, PASSES = 5 };
enum { CACHED_MATS = 4 };  /* for many tokens: what they read stays in the caches */
enum { SMALL_BLOCK = 32 }; /* of weights with a scale: in both directions */
static const size_t SET_BYTES = (size_t)512 << 20;

struct speed {
    struct pool *pool;
    char *data; /* [count][mat_size]: the matrices, one after another; scales of FP8 are shared, they fit the caches */
    size_t mat_size;
    int count;
    struct mat mat;      /* the first of them */
    uint8_t *scales8;    /* [count][ROWS][COLS / FP4_GROUP]: of FP4, a sixteenth of its bytes */
    size_t scales8_size; /* of a matrix; 0: not FP4 */
    float *scale;        /* FP8's, one for each block of weights */
    float *x_data;       /* [SPEED_TOKENS][COLS] */
    float *y_data;       /* [threads][SPEED_TOKENS][ROWS] */
    int8_t *q_data;      /* [SPEED_TOKENS][COLS] */
    float *q_scale_data; /* [SPEED_TOKENS][COLS / Q8_GROUP_MIN] */
    int32_t *q_sum_data; /* the same */
    const float *x[SPEED_TOKENS];
    struct q8_row q[SPEED_TOKENS];
    float **y; /* [threads][SPEED_TOKENS] */

    struct kern kern; /* of the pass */
    bool quantized;
    int n;
};

/* ---- a pass: slices of rows, one matrix after the other ---- */

/* What this thread will probably read next: slices are handed out in ascending order. */
static const void *next_slice(const struct speed *s, int index) {
    int next = index + pool_threads(s->pool);
    if (next >= s->count * SLICES) return NULL;
    return s->data + (size_t)(next / SLICES) * s->mat_size + s->mat_size / SLICES * (size_t)(next % SLICES);
}

static void run_slice(void *context, int index, int worker) {
    const struct speed *s = context;
    struct mat m = s->mat;
    m.data = s->data + (size_t)(index / SLICES) * s->mat_size;
    m.scales8 = s->scales8 + (size_t)(index / SLICES) * s->scales8_size;
    const int r0 = index % SLICES * SLICE_ROWS, r1 = r0 + SLICE_ROWS;
    float *const *y = s->y + (size_t)worker * SPEED_TOKENS;
    if (s->quantized)
        s->kern.gemm_q8[m.format](&m, r0, r1, s->q, s->n, y, next_slice(s, index));
    else
        s->kern.gemm[m.format](&m, r0, r1, s->x, s->n, y);
}

/* Median seconds of a pass over `count` matrices. */
static double time_pass(struct speed *s, enum cpu_level level, bool quantized, int n, int count) {
    double seconds[PASSES];
    kern_init(&s->kern, level);
    s->quantized = quantized;
    s->n = n;
    for (int pass = -1; pass < PASSES; pass++) { /* the first one is not counted */
        double start = clock_now_s();
        pool_run(s->pool, count * SLICES, run_slice, s);
        if (pass >= 0) seconds[pass] = clock_now_s() - start;
    }
    qsort(seconds, PASSES, sizeof *seconds, order_doubles);
    return seconds[PASSES / 2];
}

double speed_read(struct speed *speed, enum cpu_level level, bool quantized) {
    return (double)(speed->mat_size + speed->scales8_size) * speed->count /
           time_pass(speed, level, quantized, 1, speed->count);
}

double speed_compute(struct speed *speed, enum cpu_level level, bool quantized) {
    int count = CACHED_MATS < speed->count ? CACHED_MATS : speed->count;
    double operations = 2.0 * ROWS * COLS * SPEED_TOKENS * count;
    return operations / time_pass(speed, level, quantized, SPEED_TOKENS, count);
}

bool speed_has(const struct speed *speed, enum cpu_level level, bool quantized) {
    struct kern kern;
    kern_init(&kern, level);
    const enum mat_format format = speed->mat.format;
    if (quantized) return kern.gemm_q8[format];
    return !mat_is_integer(format) && format != MAT_FP4 && !gguf_is_blocks(format);
}

/* ---- the data ---- */

/* Finite values, whatever the format: narrow floats near 0, blocks with finite scales (all their bytes are masked alike: 4-bit values
 * and 8-bit values stay spread). */
static void fill_matrix(const struct mat *m, char *data, size_t bytes) {
    struct check_random random;
    random_seed(&random, 1);
    if (m->format == MAT_F32 || m->format == MAT_F16 || m->format == MAT_BF16) {
        for (size_t i = 0; i < (size_t)ROWS * COLS; i++) {
            float value = random_float(&random) * 0.05f;
            uint16_t half = m->format == MAT_F16 ? f32_to_f16(value) : f32_to_bf16(value);
            memcpy(data + i * (m->format == MAT_F32 ? 4 : 2), m->format == MAT_F32 ? (void *)&value : (void *)&half,
                   m->format == MAT_F32 ? 4 : 2);
        }
        return;
    }
    const bool halves = mat_is_integer(m->format) || gguf_is_blocks(m->format);
    const int mask = halves ? 0x77 : 0xff;
    for (size_t i = 0; i < bytes; i++) {
        data[i] = (char)(random_u32(&random) >> 8 & (uint32_t)mask);
        if (m->format == MAT_FP8 && (data[i] & 0x7f) == 0x7f) data[i] = 0;
    }
}

/* Turned words: the lines of scales, 2^-7 and a zero point of 8 each. */
static void fill_scales(const struct mat *m, char *data) {
    const uint32_t head = 0x3c000008;
    for (int r = 0; r < ROWS; r++)
        for (int k = 0; k < COLS; k += m->group_size) {
            const size_t at = (size_t)(r / TURN_ROWS) * words_panel_bytes(m) + words_turned_at(m, k);
            memcpy(data + at + (size_t)(r % TURN_ROWS) * sizeof head, &head, sizeof head);
        }
}

static int allocate_set(struct speed *s, struct mo_error *error) {
    double most = memory_available_bytes() / 8;
    size_t bytes = most < (double)SET_BYTES ? (size_t)most : SET_BYTES;
    s->mat_size = mat_data_bytes(&s->mat);
    s->count = bytes > s->mat_size ? (int)(bytes / s->mat_size) : 1;
    bytes = s->mat_size * (size_t)s->count;
    s->data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->data == MAP_FAILED) {
        s->data = NULL;
        return mo_error_set(error, MO_E_NO_MEMORY, "no %.2f GiB for weights to read: %s", (double)bytes / (1 << 30),
                            strerror(errno));
    }
    madvise(s->data, bytes, MADV_HUGEPAGE);
    fill_matrix(&s->mat, s->data, s->mat_size);
    if (mat_is_words(s->mat.format)) fill_scales(&s->mat, s->data);
    for (int i = 1; i < s->count; i++) memcpy(s->data + (size_t)i * s->mat_size, s->data, s->mat_size);
    return 0;
}

static int allocate_scales(struct speed *s, struct mo_error *error) {
    const size_t n_scale = (size_t)(ROWS / s->mat.scale_rows * s->mat.scale_stride);
    s->scale = malloc(n_scale * sizeof *s->scale);
    s->scales8_size = s->mat.format == MAT_FP4 ? mat_bytes(&s->mat) - s->mat_size : 0;
    s->scales8 = malloc((size_t)s->count * s->scales8_size + 1);
    if (!s->scales8 || !s->scale) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for scales");
    memset(s->scales8, 120, (size_t)s->count * s->scales8_size); /* 2^-7 */
    for (size_t i = 0; i < n_scale; i++)                         /* DeepSeek's small blocks have powers of two */
        s->scale[i] = s->mat.scale_cols == SMALL_BLOCK ? 0x1p-8f * (float)(1 << i % 3) : 0.01f;
    s->mat.scale = s->scale;
    return 0;
}

static void fill_tokens(struct speed *s, int threads) {
    struct check_random random;
    struct kern ref;
    random_seed(&random, 2);
    kern_init(&ref, CPU_REF);
    for (int t = 0; t < threads * SPEED_TOKENS; t++) s->y[t] = s->y_data + (size_t)t * ROWS;
    for (int t = 0; t < SPEED_TOKENS; t++) {
        float *x = s->x_data + (size_t)t * COLS;
        for (int k = 0; k < COLS; k++) x[k] = random_float(&random);
        s->x[t] = x;
        s->q[t] = (struct q8_row){.q = s->q_data + (size_t)t * COLS,
                                  .scale = s->q_scale_data + t * (COLS / Q8_GROUP_MIN),
                                  .sum = s->q_sum_data + t * (COLS / Q8_GROUP_MIN)};
        if (q8_group(&s->mat)) ref.quantize(x, COLS, q8_group(&s->mat), &s->q[t]);
    }
}

static int allocate_tokens(struct speed *s, int threads, struct mo_error *error) {
    const size_t x_bytes = (size_t)SPEED_TOKENS * COLS * sizeof(float), groups = SPEED_TOKENS * COLS / Q8_GROUP_MIN;
    s->x_data = aligned_alloc(64, x_bytes);
    s->y_data = malloc((size_t)threads * SPEED_TOKENS * ROWS * sizeof(float));
    s->q_data = aligned_alloc(64, (size_t)SPEED_TOKENS * COLS);
    s->q_scale_data = malloc(groups * sizeof(float));
    s->q_sum_data = malloc(groups * sizeof(int32_t));
    s->y = malloc((size_t)threads * SPEED_TOKENS * sizeof *s->y);
    if (!s->x_data || !s->y_data || !s->q_data || !s->q_scale_data || !s->q_sum_data || !s->y) {
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d tokens", SPEED_TOKENS);
    }
    fill_tokens(s, threads);
    return 0;
}

static enum mat_format format_of(int kind) {
    return (enum mat_format)(kind < SPEED_FP8_32 ? kind : kind - 1);
}

const char *speed_kind_name(int kind) {
    return kind == SPEED_FP8_32 ? "fp8_32" : mat_format_name(format_of(kind));
}

bool speed_is_like_another(int kind) {
    const enum mat_format format = format_of(kind);
    return mat_is_words(format) && format != MAT_INT4_AWQ;
}

int speed_open(struct speed **speed, int kind, int threads, struct mo_error *error) {
    const enum mat_format format = format_of(kind);
    const int block = kind == SPEED_FP8_32 ? SMALL_BLOCK : GROUP;
    struct speed *s = calloc(1, sizeof *s);
    if (!s) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    s->mat = (struct mat){.format = format,
                          .turned = mat_can_turn(format), /* as the engine does */
                          .rows = ROWS,
                          .cols = COLS,
                          .scale_rows = block,
                          .scale_cols = block,
                          .scale_stride = COLS / block,
                          .group_size = GROUP};
    int code = pool_create(&s->pool, threads, error);
    if (!code) code = allocate_set(s, error);
    if (!code) code = allocate_scales(s, error);
    if (!code) code = allocate_tokens(s, threads, error);
    if (code) {
        speed_close(s);
        return code;
    }
    *speed = s;
    return 0;
}

void speed_close(struct speed *speed) {
    if (!speed) return;
    pool_destroy(speed->pool);
    if (speed->data) munmap(speed->data, speed->mat_size * (size_t)speed->count);
    free(speed->scales8);
    free(speed->scale);
    free(speed->x_data);
    free(speed->y_data);
    free(speed->q_data);
    free(speed->q_scale_data);
    free(speed->q_sum_data);
    free(speed->y);
    free(speed);
}
