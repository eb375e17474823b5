/* model/format.c - the plain-C meaning of every weight format. Nothing here is fast; everything is exact. */
#include "model/format.h"
#include "model/format_priv.h"

#include <assert.h>
#include <math.h>
#include <string.h>

const uint8_t awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

const char *mat_format_name(enum mat_format format) {
    static const char *const names[MAT_FORMATS] = {
        "f32",   "f16",     "bf16",  "fp8",    "fp4",    "int4_awq", "int4_gptq", "int4_packed", "int8_rows",
        "int4",  "int8",    "q4_0",  "q4_1",   "q5_0",   "q5_1",     "q8_0",      "q2_k",        "q3_k",
        "q4_k",  "q5_k",    "q6_k",  "iq4_nl", "iq4_xs", "iq1_s",    "iq1_m",     "iq2_xxs",     "iq2_xs",
        "iq2_s", "iq3_xxs", "iq3_s", "tq1_0",  "tq2_0",  "mxfp4",
    };
    return names[format];
}

size_t mat_bytes(const struct mat *mat) {
    if (gguf_is_blocks(mat->format)) return gguf_bytes(mat);
    size_t count = (size_t)mat->rows * (size_t)mat->cols;
    switch (mat->format) {
    case MAT_F32:
        return count * 4;
    case MAT_F16:
    case MAT_BF16:
        return count * 2;
    case MAT_FP8:
    case MAT_INT8_ROWS:
        if (mat->has_scales8) return count + count / FP8_ROW_GROUP;
        return count + ceil_div(mat->rows, mat->scale_rows) * (size_t)mat->scale_stride * sizeof(float);
    case MAT_FP4:
        return count / 2 + count / FP4_GROUP;
    case MAT_INT4_AWQ:
    case MAT_INT4_GPTQ:
    case MAT_INT4_PACKED:
        return words_data_bytes(mat) + (mat->turned ? 0 : words_scale_bytes(mat) + words_zero_bytes(mat));
    case MAT_INT4:
    case MAT_INT8:
        return ceil_div(mat->rows, BLOCK_ROWS) * block_panel_bytes(mat);
    default:
        break;
    }
    assert(0 && "a matrix has a format");
    return 0;
}

/* In `scale`, or in scales8. */
static bool has_scales(const struct mat *mat) {
    return mat->format == MAT_FP8 || mat->format == MAT_INT8_ROWS;
}

size_t mat_data_bytes(const struct mat *mat) {
    size_t count = (size_t)mat->rows * (size_t)mat->cols;
    if (has_scales(mat)) return count;
    if (mat_is_words(mat->format)) return words_data_bytes(mat);
    return mat->format == MAT_FP4 ? count / 2 : mat_bytes(mat);
}

const void *mat_scales(const struct mat *mat) {
    if (mat->format == MAT_FP4 || mat->has_scales8) return mat->scales8;
    return has_scales(mat) ? mat->scale : NULL;
}

void mat_set_scales(struct mat *mat, const void *scales) {
    if (mat->format == MAT_FP4 || mat->has_scales8) {
        mat->scales8 = scales;
    } else if (has_scales(mat)) {
        mat->scale = scales;
    }
}

static float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float f16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return float_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    /* The bits in float's places have an exponent that is too small by 112; subnormals come out right too,
     * because 2^-126 * 2^112 is the step that they stand on. */
    float value = float_from_bits(magnitude << 13) * 0x1p112f;
    return float_from_bits(sign | float_bits(value));
}

float bf16_to_f32(uint16_t bits) {
    return float_from_bits((uint32_t)bits << 16);
}

float e8m0_to_f32(uint8_t bits) {
    return bits == 255 ? NAN : ldexpf(1, bits - 127);
}

float e4m3_to_f32(uint8_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x80) << 24, magnitude = bits & 0x7f;
    if (magnitude == 0x7f) return float_from_bits(sign | 0x7fc00000);
    float value = float_from_bits(magnitude << 20) * 0x1p120f; /* as in f16_to_f32: 127 - 7 = 120 */
    return float_from_bits(sign | float_bits(value));
}

uint16_t f32_to_bf16(float value) {
    uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40); /* quiet, and never rounded to Inf */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t f32_to_f16(float value) {
    uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    float absolute = float_from_bits(magnitude);
    if (absolute >= 65520.0f) return sign | 0x7c00;
    /* Below 2^-14 the steps are even, 2^-24 each; step 1024 is the code of the smallest normal value. */
    if (absolute < 0x1p-14f) return (uint16_t)(sign | (uint16_t)lrintf(absolute * 0x1p24f));
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | ((rounded >> 13) - ((127 - 15) << 10)));
}

uint8_t f32_to_e4m3(float value) {
    uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff;
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    if (magnitude > 0x7f800000) return sign | 0x7f;
    float absolute = float_from_bits(magnitude);
    if (absolute >= 448.0f) return sign | 0x7e;
    /* Below 2^-6 the steps are even, 2^-9 each; step 8 is the code of the smallest normal value. */
    if (absolute < 0x1p-6f) return (uint8_t)(sign | (uint8_t)lrintf(absolute * 0x1p9f));
    uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
    return (uint8_t)(sign | ((rounded >> 20) - ((127 - 7) << 3)));
}

/* Where a value lies half way between two, the even code wins. */
uint8_t f32_to_e2m1(float value) {
    const float v = fabsf(value);
    const int code = (v > 0.25f) + (v >= 0.75f) + (v > 1.25f) + (v >= 1.75f) + (v > 2.5f) + (v >= 3.5f) + (v > 5.0f);
    return (uint8_t)(code && value < 0 ? code | 8 : code);
}

/* Files promise only 2-byte alignment, so wider words are copied out. */
static uint32_t load_u32(const void *base, size_t index) {
    uint32_t word;
    memcpy(&word, (const char *)base + index * sizeof word, sizeof word);
    return word;
}

static uint16_t load_u16(const void *base, size_t index) {
    uint16_t word;
    memcpy(&word, (const char *)base + index * sizeof word, sizeof word);
    return word;
}

static void decode_fp8_by_row(const struct mat *mat, int row, int k0, int count, float *out) {
    const size_t first = (size_t)row * (size_t)mat->cols + (size_t)k0;
    const uint8_t *data = mat->data;
    for (size_t i = first; i < first + (size_t)count; i++)
        *out++ = e4m3_to_f32(data[i]) * e8m0_to_f32(mat->scales8[i / FP8_ROW_GROUP]);
}

/* INT8_ROWS, too. */
static void decode_fp8(const struct mat *mat, int row, int k0, int count, float *out) {
    if (mat->has_scales8) {
        decode_fp8_by_row(mat, row, k0, count, out);
        return;
    }
    const uint8_t *data = (const uint8_t *)mat->data + (size_t)row * (size_t)mat->cols;
    const float *scale = mat->scale + (size_t)(row / mat->scale_rows) * (size_t)mat->scale_stride;
    for (int i = 0; i < count; i++) {
        float factor = float_from_bits(load_u32(scale, (size_t)((k0 + i) / mat->scale_cols)));
        const uint8_t byte = data[k0 + i];
        out[i] = (mat->format == MAT_FP8 ? e4m3_to_f32(byte) : (float)(int8_t)byte) * factor;
    }
}

void format_decode_span(const struct mat *mat, int row, int k0, int count, float *out) {
    size_t first = (size_t)row * (size_t)mat->cols + (size_t)k0;
    switch (mat->format) {
    case MAT_F32:
        memcpy(out, (const char *)mat->data + first * 4, (size_t)count * 4);
        break;
    case MAT_F16:
        for (int i = 0; i < count; i++) out[i] = f16_to_f32(load_u16(mat->data, first + (size_t)i));
        break;
    case MAT_BF16:
        for (int i = 0; i < count; i++) out[i] = bf16_to_f32(load_u16(mat->data, first + (size_t)i));
        break;
    case MAT_FP8:
    case MAT_INT8_ROWS:
        decode_fp8(mat, row, k0, count, out);
        break;
    case MAT_FP4:
        fp4_decode_span(mat, row, k0, count, out);
        break;
    case MAT_INT4_AWQ:
    case MAT_INT4_GPTQ:
    case MAT_INT4_PACKED:
        words_decode_span(mat, row, k0, count, out);
        break;
    case MAT_INT4:
    case MAT_INT8:
        block_decode_span(mat, row, k0, count, out);
        break;
    default:
        gguf_decode_span(mat, row, k0, count, out);
    }
}

bool mat_can_turn(enum mat_format format) {
    return mat_is_words(format) || (format >= MAT_Q4_0 && format <= MAT_IQ4_XS);
}

struct mat mat_turned(const struct mat *from, const void *data) {
    struct mat turned = *from;
    turned.turned = true;
    if (from->format == MAT_INT8_ROWS)
        turned =
            (struct mat){.format = MAT_INT8, .rows = from->rows, .cols = from->cols, .group_size = from->group_size};
    turned.data = data;
    return turned;
}

int mat_panels(const struct mat *from) {
    return (int)ceil_div(from->rows, from->format == MAT_INT8_ROWS ? BLOCK_ROWS : TURN_ROWS);
}

void mat_turn_panel(const struct mat *from, int panel, void *out) {
    if (from->format == MAT_INT8_ROWS) {
        int8_rows_turn_panel(from, panel, out);
    } else {
        (mat_is_words(from->format) ? words_turn_panel : gguf_turn_panel)(from, panel, out);
    }
}

void mat_turn(const struct mat *from, void *out) {
    const struct mat turned = mat_turned(from, out);
    const int panels = mat_panels(from);
    const size_t panel_bytes = mat_bytes(&turned) / (size_t)panels;
    for (int i = 0; i < panels; i++) mat_turn_panel(from, i, (uint8_t *)out + panel_bytes * (size_t)i);
}

void format_decode_rows(const struct mat *mat, int r0, int r1, float *out) {
    for (int row = r0; row < r1; row++)
        format_decode_span(mat, row, 0, mat->cols, out + (size_t)(row - r0) * (size_t)mat->cols);
}
