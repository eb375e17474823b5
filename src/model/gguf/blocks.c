/* model/gguf/blocks.c - the plain-C meaning of GGUF's blocks. Nothing here is fast; everything is exact. */
#include "model/format.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/format_priv.h"

enum { HALF_BYTES = 2 };

static const struct {
    uint8_t bytes, per_scale;
    int16_t values;
    bool has_low;
} shapes[MAT_FORMATS] = {
    [MAT_Q4_0] = {18, 32, 32, false},    [MAT_Q4_1] = {20, 32, 32, true},    [MAT_Q5_0] = {22, 32, 32, false},
    [MAT_Q5_1] = {24, 32, 32, true},     [MAT_Q8_0] = {34, 32, 32, false},   [MAT_Q2_K] = {84, 16, 256, true},
    [MAT_Q3_K] = {110, 16, 256, false},  [MAT_Q4_K] = {144, 32, 256, true},  [MAT_Q5_K] = {176, 32, 256, true},
    [MAT_Q6_K] = {210, 16, 256, false},  [MAT_IQ4_NL] = {18, 32, 32, false}, [MAT_IQ4_XS] = {136, 32, 256, false},
    [MAT_IQ1_S] = {50, 32, 256, false},  [MAT_IQ1_M] = {56, 16, 256, false}, [MAT_IQ2_XXS] = {66, 32, 256, false},
    [MAT_IQ2_XS] = {74, 16, 256, false}, [MAT_IQ2_S] = {82, 16, 256, false}, [MAT_IQ3_XXS] = {98, 32, 256, false},
    [MAT_IQ3_S] = {110, 32, 256, false}, [MAT_TQ1_0] = {54, 32, 256, false}, [MAT_TQ2_0] = {66, 32, 256, false},
    [MAT_MXFP4] = {17, 32, 32, false},
};

const int8_t gguf_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t gguf_mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

bool gguf_block(enum mat_format format, int *values, size_t *bytes) {
    if (!shapes[format].bytes) return false;
    *values = shapes[format].values;
    *bytes = shapes[format].bytes;
    return true;
}

bool gguf_is_blocks(enum mat_format format) {
    return shapes[format].bytes != 0;
}

/* ---- blocks of 32 values ---- */

static int nibble(const uint8_t *bytes, int i) {
    return i < 16 ? bytes[i] & 15 : bytes[i - 16] >> 4;
}

static int bit(const uint8_t *bytes, int i) {
    return bytes[i / 8] >> i % 8 & 1;
}

static void read_mxfp4(const uint8_t *at, struct gguf_parts *out) {
    out->scale[0] = ldexpf(1, at[0] - 128);
    for (int i = 0; i < 32; i++) out->q[i] = gguf_mxfp4_values[nibble(at + 1, i)];
}

static void read_32(enum mat_format format, const uint8_t *at, struct gguf_parts *out) {
    const bool fifth = format == MAT_Q5_0 || format == MAT_Q5_1;
    const int zero = format == MAT_Q4_0 ? 8 : format == MAT_Q5_0 ? 16 : 0;
    const uint8_t *high = at + HALF_BYTES * (out->has_low ? 2 : 1), *low = high + (fifth ? 4 : 0);
    out->scale[0] = half_at(at);
    if (out->has_low) out->low[0] = half_at(at + HALF_BYTES);
    for (int i = 0; i < 32; i++) {
        if (format == MAT_Q8_0)
            out->q[i] = (int8_t)low[i];
        else if (format == MAT_IQ4_NL)
            out->q[i] = gguf_iq4_values[nibble(low, i)];
        else
            out->q[i] = (int8_t)((nibble(low, i) | (fifth ? bit(high, i) << 4 : 0)) - zero);
    }
}

/* ---- blocks of 256 values ---- */

/* Value i's two bits, where 32 bytes hold 128 values: those of 32 values in each place. */
static int two_bits(const uint8_t *bytes, int i) {
    return bytes[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

/* Value i's four bits, where 32 bytes hold 64 values: 32 low, 32 high. */
static int four_bits(const uint8_t *bytes, int i) {
    return bytes[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
}

static void read_q2_k(const uint8_t *at, struct gguf_parts *out) {
    const float d = half_at(at + 80), dmin = half_at(at + 82);
    for (int j = 0; j < 16; j++) {
        out->scale[j] = d * (float)(at[j] & 15);
        out->low[j] = -(dmin * (float)(at[j] >> 4));
    }
    for (int i = 0; i < 256; i++) out->q[i] = (int8_t)two_bits(at + 16, i);
}

static void read_q3_k(const uint8_t *at, struct gguf_parts *out) {
    const uint8_t *scales = at + 96;
    const float d = half_at(at + 108);
    for (int j = 0; j < 16; j++) {
        int low = scales[j % 8] >> (j < 8 ? 0 : 4) & 15, high = scales[8 + j % 4] >> j / 4 * 2 & 3;
        out->scale[j] = d * (float)((low | high << 4) - 32);
    }
    for (int i = 0; i < 256; i++) out->q[i] = (int8_t)((two_bits(at + 32, i) | (at[i % 32] >> i / 32 & 1) << 2) - 4);
}

/* The scales and minimums of Q4_K and Q5_K, twelve bytes from at + 4 on. */
static void read_six_bits(const uint8_t *at, struct gguf_parts *out) {
    const uint8_t *s = at + 4;
    const float d = half_at(at), dmin = half_at(at + HALF_BYTES);
    for (int j = 0; j < 8; j++) {
        int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
        out->scale[j] = d * (float)scale;
        out->low[j] = -(dmin * (float)min);
    }
}

static void read_q4_k(const uint8_t *at, struct gguf_parts *out) {
    read_six_bits(at, out);
    for (int i = 0; i < 256; i++) out->q[i] = (int8_t)four_bits(at + 16, i);
}

static void read_q5_k(const uint8_t *at, struct gguf_parts *out) {
    read_six_bits(at, out);
    for (int i = 0; i < 256; i++) out->q[i] = (int8_t)(four_bits(at + 48, i) | (at[16 + i % 32] >> i / 32 & 1) << 4);
}

static void read_q6_k(const uint8_t *at, struct gguf_parts *out) {
    const float d = half_at(at + 208);
    for (int j = 0; j < 16; j++) out->scale[j] = d * (float)(int8_t)at[192 + j];
    for (int i = 0; i < 256; i++) {
        int low = at[i / 128 * 64 + i % 64] >> i % 128 / 64 * 4 & 15;
        out->q[i] = (int8_t)((low | two_bits(at + 128, i) << 4) - 32);
    }
}

static void read_iq4_xs(const uint8_t *at, struct gguf_parts *out) {
    const float d = half_at(at);
    const int high = at[2] | at[3] << 8;
    for (int j = 0; j < 8; j++) {
        int low = at[4 + j / 2] >> j % 2 * 4 & 15;
        out->scale[j] = d * (float)((low | (high >> 2 * j & 3) << 4) - 32);
    }
    for (int i = 0; i < 256; i++) out->q[i] = gguf_iq4_values[nibble(at + 8 + i / 32 * 16, i % 32)];
}

void gguf_take_apart(enum mat_format format, const void *block, struct gguf_parts *out) {
    assert(gguf_is_blocks(format));
    out->values = shapes[format].values;
    out->per_scale = shapes[format].per_scale;
    out->has_low = shapes[format].has_low;
    switch (format) {
    case MAT_Q2_K:
        return read_q2_k(block, out);
    case MAT_Q3_K:
        return read_q3_k(block, out);
    case MAT_Q4_K:
        return read_q4_k(block, out);
    case MAT_Q5_K:
        return read_q5_k(block, out);
    case MAT_Q6_K:
        return read_q6_k(block, out);
    case MAT_IQ4_XS:
        return read_iq4_xs(block, out);
    case MAT_MXFP4:
        return read_mxfp4(block, out);
    case MAT_Q4_0:
    case MAT_Q4_1:
    case MAT_Q5_0:
    case MAT_Q5_1:
    case MAT_Q8_0:
    case MAT_IQ4_NL:
        return read_32(format, block, out);
    default:
        gguf_read_grid(format, block, out);
    }
}

/* ---- matrices ---- */

static size_t row_bytes(const struct mat *mat) {
    return (size_t)(mat->cols / shapes[mat->format].values) * shapes[mat->format].bytes;
}

const uint8_t *gguf_rows_at(const struct mat *mat, int row) {
    if (mat->turned) row -= row % TURN_ROWS;
    return (const uint8_t *)mat->data + (size_t)row * row_bytes(mat);
}

const uint8_t *gguf_block_at(const struct mat *mat, int row, int block, uint8_t *room) {
    const uint8_t *rows = gguf_rows_at(mat, row);
    if (!mat->turned) return rows + (size_t)block * shapes[mat->format].bytes;
    gguf_turn_back(mat, rows, row % TURN_ROWS, block, room);
    return room;
}

size_t gguf_bytes(const struct mat *mat) {
    const int values = shapes[mat->format].values;
    assert(mat->cols % values == 0);
    const int rows = mat->turned ? (mat->rows + TURN_ROWS - 1) / TURN_ROWS * TURN_ROWS : mat->rows;
    return (size_t)rows * row_bytes(mat);
}

void gguf_decode_span(const struct mat *mat, int row, int k0, int count, float *out) {
    const int values = shapes[mat->format].values, end = k0 + count;
    uint8_t room[GGUF_BLOCK_MAX];
    struct gguf_parts parts;
    for (int k = k0; k < end;) {
        const int first = k - k % values;
        gguf_take_apart(mat->format, gguf_block_at(mat, row, k / values, room), &parts);
        while (k < end && k < first + values) { /* what has one scale */
            const int j = (k - first) / parts.per_scale, stop = first + (j + 1) * parts.per_scale;
            for (; k < end && k < stop; k++) {
                float value = parts.scale[j] * (float)parts.q[k - first];
                *out++ = parts.has_low ? value + parts.low[j] : value;
            }
        }
    }
}
