/* tests/check/kern_data.inc.h - what check_kern.c feeds the kernels: buffers that end (or begin) at a page
 * which may not be touched, and random matrices of every format. */
#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/cpu/kern.h"

/* ---- random numbers: the same for every level ---- */

static uint64_t random_state;

static void random_seed(uint64_t seed) {
    random_state = seed * 0x9e3779b97f4a7c15u + 1;
}

static uint32_t random_u32(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static int random_int(int low, int high) {
    return low + (int)(random_u32() % (uint32_t)(high - low + 1));
}

/* Roughly normal, deviation 1. */
static float random_float(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)(int32_t)random_u32() * 0x1p-31f;
    return sum * 0.866f;
}

/* ---- guarded buffers ---- */

enum { SLOTS = 300, SLOT_BYTES = 1 << 24 };

static char *slot_base[SLOTS]; /* SLOT_BYTES usable, one page that faults on either side */
static int slot_next, slot_at_front;

static void *guard_alloc(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    assert(slot_next < SLOTS && bytes <= SLOT_BYTES);
    char **base = &slot_base[slot_next++];
    if (!*base) {
        char *map = mmap(0, SLOT_BYTES + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED || mprotect(map + page, SLOT_BYTES, PROT_READ | PROT_WRITE)) {
            perror("check_kern: guarded buffer");
            exit(2);
        }
        *base = map + page;
    }
    return slot_at_front ? *base : *base + SLOT_BYTES - bytes;
}

/* Forgets all buffers; every other round lays them against the front page instead of the back one. */
static void guard_reset(int round) {
    slot_next = 0;
    slot_at_front = round % 4 == 3;
}

static float *guard_floats(int n) {
    return guard_alloc((size_t)n * sizeof(float));
}

/* ---- matrices ---- */

enum data_kind { DATA_PLAIN, DATA_TINY, DATA_EXTREME, DATA_ZERO, DATA_SPECIAL, DATA_KINDS };

static uint16_t f16_from(float value) { /* truncating: any fp16 will do */
    if (value == 0) return 0;
    int exponent;
    float mantissa = frexpf(fabsf(value), &exponent);
    uint16_t sign = value < 0 ? 0x8000 : 0;
    if (exponent > 16) return sign | 0x7bff;
    if (exponent < -13) return (uint16_t)(sign | (uint16_t)(fabsf(value) * 0x1p24f));
    return (uint16_t)(sign | (exponent + 14) << 10 | ((int)(mantissa * 2048.0f) & 0x3ff));
}

static float random_weight(enum data_kind kind) {
    switch (kind) {
    case DATA_ZERO:
        return random_u32() & 1 ? 0.0f : -0.0f;
    case DATA_TINY:
        return random_float() * (random_u32() % 3 ? 1e-38f : 1e-30f);
    case DATA_EXTREME:
        return ldexpf(random_float(), random_int(-24, 15));
    default:
        return random_float() * 0.05f;
    }
}

static void fill_dense(char *out, enum mat_format format, size_t count, enum data_kind kind) {
    for (size_t i = 0; i < count; i++) {
        float value = random_weight(kind);
        if (kind == DATA_SPECIAL && random_u32() % 400 == 0) value = random_u32() & 1 ? INFINITY : NAN;
        uint16_t half = f16_from(kind == DATA_TINY ? value * 1e31f : isfinite(value) ? value : 0);
        if (!isfinite(value)) half = isnan(value) ? 0x7e01 : 0xfc00;
        uint16_t brain = f32_to_bf16(value);
        if (format == MAT_F32) memcpy(out + i * 4, &value, 4);
        if (format == MAT_F16) memcpy(out + i * 2, &half, 2);
        if (format == MAT_BF16) memcpy(out + i * 2, &brain, 2);
    }
}

static float random_scale(enum data_kind kind) {
    float scale = 0.01f + fabsf(random_float());
    return kind == DATA_EXTREME ? ldexpf(scale, random_int(-60, 60)) : kind == DATA_ZERO ? 0 : scale;
}

static void make_fp8(struct mat *m, enum data_kind kind) {
    const int choice_cols[] = {128, 128, 32, 96, 544, 1 << 30}, choice_rows[] = {128, 1, 7, 1 << 30};
    m->scale_cols = choice_cols[random_int(0, 5)];
    m->scale_rows = choice_rows[random_int(0, 3)];
    m->scale_stride = (m->cols - 1) / m->scale_cols + 1 + random_int(0, 2);
    int scale_lines = (m->rows - 1) / m->scale_rows + 1;
    /* The padding after the last line's scales is not there. */
    int scales = (scale_lines - 1) * m->scale_stride + (m->cols - 1) / m->scale_cols + 1;
    float *scale = guard_floats(scales);
    for (int i = 0; i < scales; i++) scale[i] = random_scale(kind);
    m->scale = scale;
    uint8_t *data = guard_alloc((size_t)m->rows * (size_t)m->cols);
    for (size_t i = 0; i < (size_t)m->rows * (size_t)m->cols; i++) {
        uint8_t byte = (uint8_t)random_u32();
        if (kind == DATA_ZERO) byte &= 0x80;
        if (kind == DATA_TINY) byte &= 0x87; /* subnormals only */
        if ((byte & 0x7f) == 0x7f) byte = kind == DATA_SPECIAL && random_u32() % 8 == 0 ? byte : 0x7e;
        data[i] = byte;
    }
    m->data = data;
}

static void make_awq(struct mat *m, enum data_kind kind) {
    m->group_size = 32 << random_int(0, 2);
    int groups = (m->cols - 1) / m->group_size + 1, words = m->rows / 8;
    uint32_t *data = guard_alloc((size_t)m->cols * (size_t)words * 4),
             *zeros = guard_alloc((size_t)(groups * words) * 4);
    uint16_t *scales = guard_alloc((size_t)(groups * m->rows) * 2);
    for (int i = 0; i < m->cols * words; i++) data[i] = kind == DATA_ZERO ? 0x88888888 : random_u32();
    for (int i = 0; i < groups * words; i++) zeros[i] = kind == DATA_ZERO ? 0x88888888 : random_u32();
    for (int i = 0; i < groups * m->rows; i++) {
        scales[i] = f16_from(0.001f + fabsf(random_float()) * 0.01f);
        if (kind == DATA_TINY) scales[i] = (uint16_t)(random_u32() & 0x3ff);
        if (kind == DATA_EXTREME) scales[i] = (uint16_t)(random_u32() & 0x7bff);
        if (kind == DATA_SPECIAL && random_u32() % 100 == 0) scales[i] = 0x7e00; /* NaN */
    }
    m->data = data;
    m->zeros = zeros;
    m->scales16 = scales;
}

/* Whole groups by block_put_group; what lies past the matrix stays as block_clear leaves it. */
static void make_block(struct mat *m, enum data_kind kind) {
    m->group_size = 32 << random_int(0, 2);
    const int most = m->format == MAT_INT4 ? 7 : 127, least = m->format == MAT_INT4 ? -8 : -127;
    uint8_t *data = guard_alloc(mat_bytes(m));
    block_clear(m, data);
    m->data = data;
    for (int row = 0; row < m->rows; row++)
        for (int k = 0; k < m->cols; k += m->group_size) {
            int8_t q[128] = {0};
            for (int i = 0; i < m->group_size && k + i < m->cols; i++) {
                q[i] = (int8_t)(kind == DATA_ZERO ? 0 : random_int(least, most));
                if (kind == DATA_EXTREME) q[i] = (int8_t)(random_u32() & 1 ? least : most);
            }
            uint16_t scale = f16_from((0.001f + fabsf(random_float()) * 0.01f));
            if (kind == DATA_TINY) scale = (uint16_t)(random_u32() & 0x3ff);
            if (kind == DATA_EXTREME) scale = (uint16_t)(random_u32() & 0x7bff);
            if (kind == DATA_SPECIAL && random_u32() % 100 == 0) scale = 0x7e00; /* NaN */
            block_put_group(m, data, row, k / m->group_size, q, scale);
        }
}

static struct mat make_mat(enum mat_format format, int rows, int cols, enum data_kind kind) {
    struct mat m = {.format = format, .rows = rows, .cols = cols};
    if (format == MAT_FP8) {
        make_fp8(&m, kind);
    } else if (format == MAT_INT4_AWQ) {
        make_awq(&m, kind);
    } else if (format == MAT_INT4 || format == MAT_INT8) {
        make_block(&m, kind);
    } else {
        size_t count = (size_t)rows * (size_t)cols, size = format == MAT_F32 ? 4 : 2;
        /* Half of the F32 matrices lie 2 bytes beside their alignment, as a file may have them. */
        size_t odd = format == MAT_F32 && random_u32() & 1 ? 2 : 0;
        char *data = guard_alloc(count * size + (slot_at_front ? 0 : odd));
        fill_dense(data, format, count, kind);
        m.data = data;
    }
    return m;
}

static void make_activations(float **x, int n, int cols, enum data_kind kind) {
    for (int t = 0; t < n; t++) {
        x[t] = guard_floats(cols);
        for (int k = 0; k < cols; k++) x[t][k] = random_float() * (kind == DATA_TINY ? 1e-6f : 2.0f);
    }
}

static int round_up(int n, int unit) {
    return (n + unit - 1) / unit * unit;
}

static struct q8_row make_q8(const float *x, int n, int group) {
    int padded = round_up(n, Q8_GROUP_MAX), groups = padded / group;
    struct q8_row row = {guard_alloc((size_t)padded), guard_floats(groups),
                         guard_alloc((size_t)groups * sizeof(int32_t))};
    struct kern ref;
    kern_init(&ref, CPU_REF);
    ref.quantize(x, n, group, &row);
    return row;
}
