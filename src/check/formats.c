/* What the bytes of each format mean, from its definition, and the decoding kernels. */
#include "check/check_priv.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- narrow floats: every one of them ---- */

static float small_float(int bits, int exponent_bits, int mantissa_bits) {
    int mantissa = bits & ((1 << mantissa_bits) - 1), exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double value = exponent ? ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)
                            : ldexp(mantissa, 1 - bias - mantissa_bits);
    return (float)(bits >> (exponent_bits + mantissa_bits) & 1 ? -value : value);
}

static void check_halves(struct check *check) {
    check_begin(check, "f16, bf16", 0, "(same bits)", 1);
    for (int i = 0; i < 65536; i++, check->cases++) {
        int exponent = i >> 10 & 31, mantissa = i & 0x3ff;
        float f16 = exponent < 31 ? small_float(i, 5, 10) : mantissa ? NAN : i >> 15 ? -INFINITY : INFINITY;
        check_bits(check, "f16", i, f16_to_f32((uint16_t)i), f16);
        float bf16 = bf16_to_f32((uint16_t)i);
        if (isfinite(bf16)) check_bits(check, "bf16", i, bf16, small_float(i, 8, 7));
        if (!isnan(bf16)) check_bits(check, "to bf16", i, f32_to_bf16(bf16), (float)i);
    }
    if (!isnan(bf16_to_f32(f32_to_bf16(NAN))) || f32_to_bf16(0x1.01p0f) != 0x3f80 || f32_to_bf16(0x1.03p0f) != 0x3f82)
        check_fault(check, "f32_to_bf16: NaN or a tie is wrong");
    check_end(check);
}

static void check_e4m3(struct check *check) {
    check_begin(check, "e4m3", 0, "(same bits)", 1);
    for (int i = 0; i < 256; i++, check->cases++) {
        float value = (i & 0x7f) == 0x7f ? NAN : small_float(i, 4, 3);
        check_bits(check, "e4m3", i, e4m3_to_f32((uint8_t)i), value);
        if (!isnan(value)) check_bits(check, "to e4m3", i, f32_to_e4m3(value), (float)i);
        if ((i & 0x7f) >= 0x7e) continue;
        /* Between two codes: below, at and above the middle, where the even code wins. */
        float next = small_float(i + 1, 4, 3), middle = (value + next) / 2;
        check_bits(check, "middle", i, f32_to_e4m3(middle), (float)(i + (i & 1)));
        check_bits(check, "below", i, f32_to_e4m3(nextafterf(middle, value)), (float)i);
        check_bits(check, "above", i, f32_to_e4m3(nextafterf(middle, next)), (float)(i + 1));
    }
    check_bits(check, "saturates", 0, f32_to_e4m3(1e9f), 0x7e);
    check_bits(check, "saturates", 1, f32_to_e4m3(-INFINITY), 0xfe);
    if ((f32_to_e4m3(NAN) & 0x7f) != 0x7f) check_fault(check, "NaN did not stay NaN");
    check_end(check);
}

static void check_e2m1(struct check *check) {
    check_begin(check, "e2m1, e8m0", 0, "(same bits)", 1);
    for (int i = 0; i < 8; i++, check->cases++) {
        float value = small_float(i, 2, 1), next = i < 7 ? small_float(i + 1, 2, 1) : 8, middle = (value + next) / 2;
        check_bits(check, "to e2m1", i, f32_to_e2m1(value), (float)i);
        check_bits(check, "to -e2m1", i, f32_to_e2m1(-value), (float)(i ? i + 8 : 0));
        check_bits(check, "below", i, f32_to_e2m1(nextafterf(middle, value)), (float)i);
        check_bits(check, "middle", i, f32_to_e2m1(middle), (float)(i < 7 ? i + (i & 1) : 7));
        check_bits(check, "above", i, f32_to_e2m1(nextafterf(middle, next)), (float)(i < 7 ? i + 1 : 7));
    }
    for (int i = 0; i < 256; i++, check->cases++)
        check_bits(check, "e8m0", i, e8m0_to_f32((uint8_t)i), i == 255 ? NAN : (float)ldexp(1, i - 127));
    check_end(check);
}

void check_float_formats(struct check *check) {
    check_e2m1(check);
    check_halves(check);
    check_e4m3(check);
}

/* ---- layouts ---- */

enum { AWQ_ROWS = 16, AWQ_COLS = 70, AWQ_GROUP = 32, AWQ_GROUPS = 3 };

/* A matrix packed as AutoAWQ does it: nibble j of a word takes row order[j] of its eight. */
static struct mat pack_awq(struct check *check) {
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    size_t data_bytes = AWQ_COLS * AWQ_ROWS / 2, zeros_bytes = AWQ_GROUPS * AWQ_ROWS / 2;
    uint32_t *data = memset(check_alloc(check, data_bytes), 0, data_bytes),
             *zeros = memset(check_alloc(check, zeros_bytes), 0, zeros_bytes);
    uint16_t *scales = check_alloc(check, AWQ_GROUPS * AWQ_ROWS * sizeof *scales);
    for (int g = 0; g < AWQ_GROUPS; g++)
        for (int r = 0; r < AWQ_ROWS; r++)
            scales[g * AWQ_ROWS + r] = (uint16_t)(0x3c00 + (g << 10) + (r << 5)); /* 2^g (1 + r/32) */
    for (int c = 0; c < AWQ_ROWS / 8; c++)
        for (int j = 0; j < 8; j++) {
            int r = 8 * c + order[j];
            for (int k = 0; k < AWQ_COLS; k++) data[k * 2 + c] |= (uint32_t)((r + 3 * k) % 16) << 4 * j;
            for (int g = 0; g < AWQ_GROUPS; g++) zeros[g * 2 + c] |= (uint32_t)((r + g) % 16) << 4 * j;
        }
    return (struct mat){.format = MAT_INT4_AWQ,
                        .rows = AWQ_ROWS,
                        .cols = AWQ_COLS,
                        .data = data,
                        .zeros = zeros,
                        .scales16 = scales,
                        .group_size = AWQ_GROUP};
}

static void check_awq_layout(struct check *check) {
    check_begin(check, "awq layout", 0, "(same bits)", 1);
    check_round(check, 0);
    const struct mat m = pack_awq(check);
    float *out = check_floats(check, AWQ_ROWS * AWQ_COLS);
    check->kern.decode_rows(&m, 0, AWQ_ROWS, out);
    for (int r = 0; r < AWQ_ROWS; r++)
        for (int k = 0; k < AWQ_COLS; k++, check->cases++) {
            int g = k / AWQ_GROUP, q = (r + 3 * k) % 16, z = (r + g) % 16;
            check_bits(check, "awq", r * AWQ_COLS + k, out[r * AWQ_COLS + k],
                       (float)(q - z) * (float)(1 << g) * (1 + (float)r / 32));
        }
    size_t bytes = AWQ_COLS * AWQ_ROWS / 2 + AWQ_GROUPS * AWQ_ROWS / 2 + AWQ_GROUPS * AWQ_ROWS * 2;
    if (mat_bytes(&m) != bytes) check_fault(check, "mat_bytes is %zu, expected %zu", mat_bytes(&m), bytes);
    check_end(check);
}

/* Where format.h says that value k of row r lies in blocks of `block` bytes, three in a panel. */
static float block_value_at(const struct mat *m, size_t block, int r, int k) {
    const bool bytes = m->format == MAT_INT8;
    const int tile = bytes ? 1024 : 512;
    const uint8_t *b = (const uint8_t *)m->data + (size_t)(r / 32) * 3 * block + (size_t)(k / 128) * block;
    const uint8_t *t = b + (r % 32 / 16 * 2 + k % 128 / 64) * tile;
    int i = k % 64, line = bytes ? i / 4 : i % 32 / 4, byte = t[line * 64 + r % 16 * 4 + i % 4];
    int q = bytes ? byte - 128 : (i < 32 ? byte & 15 : byte >> 4) - 8;
    const uint8_t *s = b + 4 * tile + k % 128 / m->group_size * 64 + r % 32 * 2;
    return (float)q * f16_to_f32((uint16_t)(s[0] | s[1] << 8));
}

static void check_block_layout(struct check *check, enum mat_format format) {
    enum { ROWS = 70, COLS = 300 };
    check_begin(check, format == MAT_INT4 ? "int4 layout" : "int8 layout", 80, "(same bits)", 1);
    for (int group = 32; group <= 128; group *= 2) {
        struct mat m = {.format = format, .rows = ROWS, .cols = COLS, .group_size = group};
        const size_t block = (size_t)((format == MAT_INT8 ? 4096 : 2048) + 128 / group * 64);
        check_round(check, 0);
        if (mat_bytes(&m) != 9 * block) check_fault(check, "mat_bytes is %zu, expected %zu", mat_bytes(&m), 9 * block);
        uint8_t *data = check_alloc(check, 9 * block);
        for (size_t i = 0; i < 9 * block; i++) data[i] = (uint8_t)(random_u32(&check->random) >> 9 & 0xf7); /* no Inf */
        m.data = data;
        float *out = check_floats(check, ROWS * COLS);
        check->kern.decode_rows(&m, 0, ROWS, out);
        for (int r = 0; r < ROWS; r++)
            for (int k = 0; k < COLS; k++, check->cases++)
                check_bits(check, "block", r * COLS + k, out[r * COLS + k], block_value_at(&m, block, r, k));
    }
    check_end(check);
}

/* Every value with every scale, where format.h says that they lie. */
static void check_fp4_layout(struct check *check) {
    enum { ROWS = 70, COLS = 160, GROUPS = COLS / FP4_GROUP };
    struct mat m = {.format = MAT_FP4, .rows = ROWS, .cols = COLS};
    check_begin(check, "fp4 layout", 90, "(same bits)", 1);
    check_round(check, 0);
    uint8_t *data = check_alloc(check, ROWS * COLS / 2), *scales = check_alloc(check, ROWS * GROUPS);
    for (int i = 0; i < ROWS * COLS / 2; i++) data[i] = (uint8_t)((i % 8 * 2 + 1) << 4 | (i * 3) % 16);
    for (int i = 0; i < ROWS * GROUPS; i++) scales[i] = (uint8_t)i; /* to 255, and again */
    m.data = data;
    m.scales8 = scales;
    if (mat_bytes(&m) != ROWS * COLS / 2 + ROWS * GROUPS || mat_data_bytes(&m) != ROWS * COLS / 2)
        check_fault(check, "mat_bytes is %zu, mat_data_bytes %zu", mat_bytes(&m), mat_data_bytes(&m));
    float *out = check_floats(check, ROWS * COLS);
    check->kern.decode_rows(&m, 0, ROWS, out);
    for (int i = 0; i < ROWS * COLS; i++, check->cases++) {
        int scale = i / FP4_GROUP % 256, code = data[i / 2] >> i % 2 * 4 & 15;
        double value = scale == 255 ? (double)NAN : ldexp((double)small_float(code, 2, 1), scale - 127);
        check_bits(check, "fp4", i, out[i], (float)value + 0.0f); /* -0 is 0: they are whole numbers */
    }
    check_end(check);
}

/* GPTQ's and compressed-tensors' words, value by value where format.h says, and all three turned: the values stay. */
static void check_words_layout(struct check *check, enum mat_format format) {
    enum { ROWS = 24, COLS = 136, GROUP = 64, GROUPS = 3 };
    const bool packed = format == MAT_INT4_PACKED;
    uint32_t data[ROWS * COLS / 8] = {0}, zeros[ROWS / 8 * GROUPS] = {0}, scales[ROWS * GROUPS];
    check_begin(check, packed ? "packed layout" : "gptq layout", 0, "(same bits)", 1);
    check_round(check, 0);
    for (int r = 0; r < ROWS; r++) {
        for (int k = 0; k < COLS; k++)
            data[packed ? r * (COLS / 8) + k / 8 : k / 8 * ROWS + r] |= (uint32_t)((r + 3 * k) % 16) << 4 * (k % 8);
        for (int g = 0; g < GROUPS; g++) {
            const float scale = (float)(1 << g) * (1 + (float)r / 32);
            zeros[packed ? r / 8 * GROUPS + g : g * (ROWS / 8) + r / 8] |= (uint32_t)((r + g) % 16) << 4 * (r % 8);
            memcpy(&scales[packed ? r * GROUPS + g : g * ROWS + r], &scale, sizeof scale);
        }
    }
    struct mat m = {.format = format,
                    .rows = ROWS,
                    .cols = COLS,
                    .data = data,
                    .zeros = zeros,
                    .zero_bias = packed ? 0 : 1,
                    .scales16 = (const uint16_t *)(const void *)scales,
                    .scales_format = MAT_F32,
                    .group_size = GROUP};
    float *out = check_floats(check, ROWS * COLS);
    for (int turned = 0; turned < 2; turned++) {
        check->kern.decode_rows(&m, 0, ROWS, out);
        for (int r = 0; r < ROWS; r++)
            for (int k = 0; k < COLS; k++, check->cases++) {
                const int g = k / GROUP, q = (r + 3 * k) % 16, z = (r + g + (packed ? 0 : 1)) % 16;
                check_bits(check, turned ? "turned" : "published", r * COLS + k, out[r * COLS + k],
                           (float)(q - z) * (float)(1 << g) * (1 + (float)r / 32));
            }
        if (turned) break;
        check_turn(check, &m);
        if (mat_bytes(&m) != 2 * (GROUPS + 4 * 5) * 64) check_fault(check, "mat_bytes is %zu turned", mat_bytes(&m));
    }
    check_end(check);
}

void check_layouts(struct check *check) {
    check_fp4_layout(check);
    check_awq_layout(check);
    check_words_layout(check, MAT_INT4_GPTQ);
    check_words_layout(check, MAT_INT4_PACKED);
    check_block_layout(check, MAT_INT4);
    check_block_layout(check, MAT_INT8);
}

/* ---- decode_rows ---- */

static void check_decode(struct check *check, enum mat_format format) {
    struct check_random *random = &check->random;
    char name[32];
    snprintf(name, sizeof name, "decode %s", mat_format_name(format));
    check_begin(check, name, 30 + (uint64_t)format, "(same bits)", 1);
    const int rounds = gguf_is_blocks(format) ? 20 : 60;
    for (int round = 0; round < rounds; round++, check->cases++) {
        check_round(check, round);
        int rows = check_round_rows(format, random_int(random, 1, 48));
        int cols = check_round_cols(format, random_int(random, 1, 600));
        struct mat m = check_make_mat(check, format, rows, cols, (enum data_kind)(round % DATA_KINDS));
        int r0 = random_int(random, 0, rows - 1), r1 = random_int(random, r0, rows), count = (r1 - r0) * cols;
        float *got = check_floats(check, count), *expected = check_floats(check, count);
        format_decode_rows(&m, r0, r1, expected);
        check->kern.decode_rows(&m, r0, r1, got);
        for (int i = 0; i < count; i++) check_bits(check, "value", i, got[i], expected[i]);
        if (!mat_is_words(format)) continue;
        check_turn(check, &m);
        check->kern.decode_rows(&m, r0, r1, got);
        for (int i = 0; i < count; i++) check_bits(check, "turned", i, got[i], expected[i]);
    }
    check_end(check);
}

void check_decoders(struct check *check) {
    for (int format = 0; format < MAT_FORMATS; format++) check_decode(check, (enum mat_format)format);
}

/* ---- sum_rows: decode_rows and weighted_sum of the plain C level in one ---- */

static void check_sums_of(struct check *check, enum mat_format format) {
    struct check_random *random = &check->random;
    char name[32];
    snprintf(name, sizeof name, "sum rows %s", mat_format_name(format));
    check_begin(check, name, 50 + (uint64_t)format, "(same bits)", 1);
    for (int round = 0; round < 60; round++, check->cases++) {
        check_round(check, round);
        int rows = random_int(random, 1, 40), cols = random_int(random, 1, 600);
        struct mat m = check_make_mat(check, format, rows, cols, (enum data_kind)(round % DATA_KINDS));
        int r0 = random_int(random, 0, rows - 1), n = random_int(random, 1, rows - r0);
        float *p = check_floats(check, n), *decoded = check_floats(check, n * cols);
        float *got = check_floats(check, cols), *expected = check_floats(check, cols);
        for (int i = 0; i < n; i++) p[i] = random_float(random);
        format_decode_rows(&m, r0, r0 + n, decoded);
        check->ref.weighted_sum(expected, (size_t)cols, NULL, p, (size_t)n, decoded, (size_t)cols, 1, n, cols);
        check->kern.sum_rows[format](&m, r0, r0 + n, p, got);
        for (int i = 0; i < cols; i++) check_bits(check, "sum", i, got[i], expected[i]);
    }
    check_end(check);
}

void check_row_sums(struct check *check) {
    for (int format = 0; format < MAT_FORMATS; format++)
        if (check->kern.sum_rows[format]) check_sums_of(check, (enum mat_format)format);
}
