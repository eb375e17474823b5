/* Random matrices of every format, laid out as files may have them. */
#include "check/check_priv.h"

#include <math.h>
#include <string.h>

static uint16_t f16_from(float value) { /* truncating: any fp16 will do */
    if (value == 0) return 0;
    int exponent;
    float mantissa = frexpf(fabsf(value), &exponent);
    uint16_t sign = value < 0 ? 0x8000 : 0;
    if (exponent > 16) return sign | 0x7bff;
    if (exponent < -13) return (uint16_t)(sign | (uint16_t)(fabsf(value) * 0x1p24f));
    return (uint16_t)(sign | (exponent + 14) << 10 | ((int)(mantissa * 2048.0f) & 0x3ff));
}

static float random_weight(struct check_random *random, enum data_kind kind) {
    switch (kind) {
    case DATA_ZERO:
        return random_u32(random) & 1 ? 0.0f : -0.0f;
    case DATA_TINY:
        return random_float(random) * (random_u32(random) % 3 ? 1e-38f : 1e-30f);
    case DATA_EXTREME:
        return ldexpf(random_float(random), random_int(random, -24, 15));
    default:
        return random_float(random) * 0.05f;
    }
}

static void fill_dense(struct check_random *random, char *out, enum mat_format format, size_t count,
                       enum data_kind kind) {
    for (size_t i = 0; i < count; i++) {
        float value = random_weight(random, kind);
        if (kind == DATA_SPECIAL && random_u32(random) % 400 == 0) value = random_u32(random) & 1 ? INFINITY : NAN;
        uint16_t half = f16_from(kind == DATA_TINY ? value * 1e31f : isfinite(value) ? value : 0);
        if (!isfinite(value)) half = isnan(value) ? 0x7e01 : 0xfc00;
        uint16_t brain = f32_to_bf16(value);
        if (format == MAT_F32) memcpy(out + i * 4, &value, 4);
        if (format == MAT_F16) memcpy(out + i * 2, &half, 2);
        if (format == MAT_BF16) memcpy(out + i * 2, &brain, 2);
    }
}

/* Half of the F32 matrices lie 2 bytes beside their alignment, as a file may have them. */
static void make_dense(struct check *check, struct mat *m, enum data_kind kind) {
    size_t count = (size_t)m->rows * (size_t)m->cols, size = m->format == MAT_F32 ? 4 : 2;
    size_t odd = m->format == MAT_F32 && random_u32(&check->random) & 1 ? 2 : 0;
    char *data = check_alloc(check, count * size + (check->at_front ? 0 : odd));
    fill_dense(&check->random, data, m->format, count, kind);
    m->data = data;
}

static float random_scale(struct check_random *random, enum data_kind kind) {
    float scale = 0.01f + fabsf(random_float(random));
    return kind == DATA_EXTREME ? ldexpf(scale, random_int(random, -60, 60)) : kind == DATA_ZERO ? 0 : scale;
}

static uint8_t random_e4m3(struct check_random *random, enum data_kind kind) {
    uint8_t byte = (uint8_t)random_u32(random);
    if (kind == DATA_ZERO) byte &= 0x80;
    if (kind == DATA_TINY) byte &= 0x87; /* subnormals only */
    if ((byte & 0x7f) != 0x7f) return byte;
    return kind == DATA_SPECIAL && random_u32(random) % 8 == 0 ? byte : 0x7e;
}

/* Half of the matrices have powers of two, as DeepSeek's do since V3.1: some kernels have a shorter way for these. */
static void fill_scales(struct check_random *random, float *scale, int n, enum data_kind kind) {
    const bool powers = random_u32(random) & 1;
    for (int i = 0; i < n; i++) {
        scale[i] = random_scale(random, kind);
        if (powers && scale[i] > 0) scale[i] = ldexpf(1, ilogbf(scale[i]));
    }
}

static void make_fp8(struct check *check, struct mat *m, enum data_kind kind) {
    const int choice_cols[] = {128, 128, 32, 96, 544, 1 << 30}, choice_rows[] = {128, 32, 1, 7, 1 << 30};
    struct check_random *random = &check->random;
    m->scale_cols = check->small_blocks ? 32 : choice_cols[random_int(random, 0, 5)];
    m->scale_rows = check->small_blocks && random_u32(random) % 4 ? 32 : choice_rows[random_int(random, 0, 4)];
    m->scale_stride = (m->cols - 1) / m->scale_cols + 1 + random_int(random, 0, 2);
    int scale_lines = (m->rows - 1) / m->scale_rows + 1;
    /* The padding after the last line's scales is not there. */
    int scales = (scale_lines - 1) * m->scale_stride + (m->cols - 1) / m->scale_cols + 1;
    float *scale = check_floats(check, scales);
    fill_scales(random, scale, scales, kind);
    m->scale = scale;
    size_t count = (size_t)m->rows * (size_t)m->cols;
    uint8_t *data = check_alloc(check, count);
    for (size_t i = 0; i < count; i++) data[i] = random_e4m3(random, kind);
    m->data = data;
}

/* Either sign: a search for the best scale may find that the values are better turned round. */
static uint16_t random_scale16(struct check_random *random, enum data_kind kind) {
    uint16_t sign = random_u32(random) & 1 ? 0x8000 : 0;
    uint16_t scale = f16_from(0.001f + fabsf(random_float(random)) * 0.01f);
    if (kind == DATA_TINY) scale = (uint16_t)(random_u32(random) & 0x3ff); /* subnormals only */
    if (kind == DATA_EXTREME) scale = (uint16_t)(random_u32(random) & 0x7bff);
    if (kind == DATA_SPECIAL && random_u32(random) % 100 == 0) scale = 0x7e00; /* NaN */
    return scale | sign;
}

static void fill_scales_of_words(struct check *check, struct mat *m, int n, enum data_kind kind) {
    static const enum mat_format formats[] = {MAT_F16, MAT_BF16, MAT_F32};
    m->scales_format = m->format == MAT_INT4_AWQ ? MAT_F16 : formats[random_int(&check->random, 0, 2)];
    uint8_t *scales = check_alloc(check, words_scale_bytes(m));
    for (int i = 0; i < n; i++) {
        const uint16_t half = random_scale16(&check->random, kind), brain = f32_to_bf16(f16_to_f32(half));
        const float single = f16_to_f32(half) * 1.0001f;
        if (m->scales_format == MAT_F16) memcpy(scales + i * 2, &half, sizeof half);
        if (m->scales_format == MAT_BF16) memcpy(scales + i * 2, &brain, sizeof brain);
        if (m->scales_format == MAT_F32) memcpy(scales + i * 4, &single, sizeof single);
    }
    m->scales16 = (const uint16_t *)(const void *)scales;
}

/* Other people's INT4: any zero points (PACKED at times none), GPTQ's of both versions, PACKED and GPTQ at times one group a row. */
static void make_words(struct check *check, struct mat *m, enum data_kind kind) {
    struct check_random *random = &check->random;
    static const uint32_t unset;
    m->group_size = 32 << random_int(random, 0, 2);
    m->one_group = m->format != MAT_INT4_AWQ && random_int(random, 0, 4) == 0;
    m->zero_bias = m->format == MAT_INT4_GPTQ ? random_int(random, 0, 1) : 0;
    if (m->format != MAT_INT4_PACKED || random_u32(random) & 1) m->zeros = &unset;
    const size_t n_data = mat_data_bytes(m) / 4, n_zeros = words_zero_bytes(m) / 4;
    const int groups = m->one_group ? 1 : (m->cols - 1) / m->group_size + 1;
    uint32_t *data = check_alloc(check, n_data * 4), *zeros = check_alloc(check, n_zeros * 4);
    for (size_t i = 0; i < n_data; i++) data[i] = kind == DATA_ZERO ? 0x88888888 : random_u32(random);
    for (size_t i = 0; i < n_zeros; i++) zeros[i] = kind == DATA_ZERO ? 0x88888888 : random_u32(random);
    if (m->zeros) m->zeros = zeros;
    m->data = data;
    fill_scales_of_words(check, m, groups * m->rows, kind);
}

static int8_t random_q(struct check_random *random, enum mat_format format, enum data_kind kind) {
    const int most = format == MAT_INT4 ? 7 : 127, least = format == MAT_INT4 ? -8 : -128;
    if (kind == DATA_ZERO) return 0;
    if (kind == DATA_EXTREME) return (int8_t)(random_u32(random) & 1 ? least : most);
    return (int8_t)random_int(random, least, most);
}

/* Whole groups by block_put_group; what lies past the matrix stays as block_clear leaves it. */
static void make_block(struct check *check, struct mat *m, enum data_kind kind) {
    m->group_size = 32 << random_int(&check->random, 0, 2);
    uint8_t *data = check_alloc(check, mat_bytes(m));
    block_clear(m, data);
    m->data = data;
    for (int row = 0; row < m->rows; row++)
        for (int k = 0; k < m->cols; k += m->group_size) {
            int8_t q[BLOCK_COLS] = {0};
            for (int i = 0; i < m->group_size && k + i < m->cols; i++) q[i] = random_q(&check->random, m->format, kind);
            block_put_group(m, data, row, k / m->group_size, q, random_scale16(&check->random, kind));
        }
}

/* A block's fp16 numbers, by where they are; IQ1_M's one lies in the high four bits of four words. */
static void put_halves(enum mat_format format, uint8_t *block, const uint16_t half[2]) {
    static const struct {
        int8_t n;
        uint8_t at[2];
    } halves[MAT_FORMATS] = {
        [MAT_Q4_0] = {1, {0}},    [MAT_Q4_1] = {2, {0, 2}},   [MAT_Q5_0] = {1, {0}},   [MAT_Q5_1] = {2, {0, 2}},
        [MAT_Q8_0] = {1, {0}},    [MAT_Q2_K] = {2, {80, 82}}, [MAT_Q3_K] = {1, {108}}, [MAT_Q4_K] = {2, {0, 2}},
        [MAT_Q5_K] = {2, {0, 2}}, [MAT_Q6_K] = {1, {208}},    [MAT_IQ4_NL] = {1, {0}}, [MAT_IQ4_XS] = {1, {0}},
        [MAT_IQ1_S] = {1, {0}},   [MAT_IQ2_XXS] = {1, {0}},   [MAT_IQ2_XS] = {1, {0}}, [MAT_IQ2_S] = {1, {0}},
        [MAT_IQ3_XXS] = {1, {0}}, [MAT_IQ3_S] = {1, {0}},     [MAT_TQ1_0] = {1, {52}}, [MAT_TQ2_0] = {1, {64}},
    };
    for (int i = 0; i < halves[format].n; i++) memcpy(block + halves[format].at[i], &half[i], sizeof *half);
    for (int i = 0; format == MAT_IQ1_M && i < 4; i++) {
        uint8_t *high = block + 49 + 2 * i;
        *high = (uint8_t)((*high & 15) | (half[0] >> 4 * i & 15) << 4);
    }
}

/* MXFP4 has powers of two, 2^(byte - 128): no zero but values of 0, no Inf and no NaN. */
static void put_power(struct check_random *random, enum data_kind kind, uint8_t *block) {
    if (kind == DATA_ZERO) memset(block, 0, 17);
    if (kind == DATA_PLAIN || kind == DATA_SPECIAL) block[0] = (uint8_t)random_int(random, 118, 126);
    if (kind == DATA_TINY) block[0] = (uint8_t)random_int(random, 20, 60);
    if (kind == DATA_EXTREME) block[0] = (uint8_t)random_int(random, 100, 150);
}

/* All 16 values, and scales of any size: 0 and 254, the least and the largest power, are among the extreme ones. */
static void make_fp4(struct check *check, struct mat *m, enum data_kind kind) {
    static const uint8_t extremes[] = {0, 1, 2, 253, 254};
    struct check_random *random = &check->random;
    const size_t n = mat_data_bytes(m), n_scales = mat_bytes(m) - n;
    uint8_t *data = check_alloc(check, n), *scales = check_alloc(check, n_scales);
    for (size_t i = 0; i < n; i++) data[i] = (uint8_t)(random_u32(random) >> 9 & (kind == DATA_ZERO ? 0x88 : 0xff));
    for (size_t i = 0; i < n_scales; i++) {
        scales[i] = (uint8_t)(kind == DATA_TINY ? random_int(random, 0, 60) : random_int(random, 117, 125));
        if (kind == DATA_EXTREME && random_u32(random) & 1) scales[i] = extremes[random_int(random, 0, 4)];
        if (kind == DATA_SPECIAL && random_u32(random) % 50 == 0) scales[i] = 255; /* NaN */
    }
    m->data = data;
    m->scales8 = scales;
}

/* Random bytes, but for the block's scales. */
static void make_gguf(struct check *check, struct mat *m, enum data_kind kind) {
    struct check_random *random = &check->random;
    const size_t bytes = mat_bytes(m);
    uint8_t *data = check_alloc(check, bytes);
    int values;
    size_t block;
    gguf_block(m->format, &values, &block);
    for (size_t i = 0; i < bytes; i++)
        data[i] = kind == DATA_EXTREME ? (uint8_t)(random_u32(random) >> 9 & 1 ? 0xff : 0)
                                       : (uint8_t)(random_u32(random) >> 9);
    for (size_t at = 0; at < bytes; at += block) {
        uint16_t half[2];
        for (int i = 0; i < 2; i++) {
            half[i] = random_scale16(random, kind);
            if (kind == DATA_ZERO) half[i] &= 0x8000;
            if (kind == DATA_SPECIAL && random_u32(random) % 100 == 0) half[i] = 0x7c00; /* Inf */
        }
        put_halves(m->format, data + at, half);
        if (m->format == MAT_MXFP4) put_power(random, kind, data + at);
    }
    m->data = data;
}

int check_round_rows(enum mat_format format, int rows) {
    return format == MAT_INT4_AWQ || format == MAT_INT4_GPTQ ? (rows + 7) / 8 * 8 : rows;
}

int check_round_cols(enum mat_format format, int cols) {
    int values = FP4_GROUP;
    size_t bytes;
    if (format == MAT_INT4_GPTQ) return (cols + 7) / 8 * 8;
    return format == MAT_FP4 || gguf_block(format, &values, &bytes) ? (cols + values - 1) / values * values : cols;
}

struct mat check_make_mat(struct check *check, enum mat_format format, int rows, int cols, enum data_kind kind) {
    struct mat m = {.format = format, .rows = rows, .cols = cols};
    if (format == MAT_FP8 || format == MAT_INT8_ROWS) {
        make_fp8(check, &m, kind);
    } else if (format == MAT_FP4) {
        make_fp4(check, &m, kind);
    } else if (mat_is_words(format)) {
        make_words(check, &m, kind);
    } else if (mat_is_integer(format)) {
        make_block(check, &m, kind);
    } else if (gguf_is_blocks(format)) {
        make_gguf(check, &m, kind);
    } else {
        make_dense(check, &m, kind);
    }
    return m;
}

void check_turn(struct check *check, struct mat *m) {
    struct mat turned = *m;
    turned.turned = true;
    uint8_t *data = check_alloc(check, mat_bytes(&turned));
    mat_turn(m, data);
    turned.data = data;
    *m = turned;
}

static float activation_size(struct check_random *random, enum data_kind kind) {
    if (kind != DATA_TINY) return 2.0f;
    return random_u32(random) % 8 ? 1e-6f : 1e-39f; /* some subnormal */
}

void check_make_activations(struct check *check, float **x, int n, int cols, enum data_kind kind) {
    for (int t = 0; t < n; t++) {
        x[t] = check_floats(check, cols);
        for (int k = 0; k < cols; k++) x[t][k] = random_float(&check->random) * activation_size(&check->random, kind);
    }
}

struct q8_row check_make_q8(struct check *check, const float *x, int n, int group) {
    int padded = (n + Q8_GROUP_MAX - 1) / Q8_GROUP_MAX * Q8_GROUP_MAX, groups = padded / group;
    struct q8_row row = {.q = check_alloc(check, (size_t)padded),
                         .scale = check_floats(check, groups),
                         .sum = check_alloc(check, (size_t)groups * sizeof(int32_t))};
    check->ref.quantize(x, n, group, &row);
    return row;
}
