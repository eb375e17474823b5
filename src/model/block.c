/* model/block.c - the block layout of INT4 and INT8: where each value lies. */
#include "model/format_priv.h"

#include <assert.h>
#include <string.h>

enum { HALF_ROWS = 16, NIBBLE_ZERO = 8, BYTE_ZERO = 128 };

static size_t value_bytes(enum mat_format format) {
    size_t values = (size_t)BLOCK_ROWS * BLOCK_COLS;
    return format == MAT_INT4 ? values / 2 : values;
}

size_t block_bytes(enum mat_format format, int group_size) {
    return value_bytes(format) + (size_t)(BLOCK_COLS / group_size) * BLOCK_ROWS * sizeof(uint16_t);
}

int block_format_of(size_t bytes, enum mat_format *format, int *group_size) {
    static const enum mat_format formats[] = {MAT_INT4, MAT_INT8};
    for (int i = 0; i < 2; i++) {
        for (int group = 32; group <= BLOCK_COLS; group *= 2) {
            if (block_bytes(formats[i], group) != bytes) continue;
            *format = formats[i];
            *group_size = group;
            return 0;
        }
    }
    return -1;
}

size_t block_panel_bytes(const struct mat *mat) {
    return ceil_div(mat->cols, BLOCK_COLS) * block_bytes(mat->format, mat->group_size);
}

/* Where (row, k) is: the byte, and for INT4 whether it is the high nibble. */
struct place {
    size_t byte;
    int high;
};

static size_t block_start(const struct mat *mat, int row, int k) {
    return (size_t)(row / BLOCK_ROWS) * block_panel_bytes(mat) +
           (size_t)(k / BLOCK_COLS) * block_bytes(mat->format, mat->group_size);
}

static struct place place_of(const struct mat *mat, int row, int k) {
    size_t tile_bytes = value_bytes(mat->format) / 4; /* a block is 2 halves of 2 tiles */
    int half = row % BLOCK_ROWS / HALF_ROWS, tile = k % BLOCK_COLS / BLOCK_TILE, within = k % BLOCK_TILE;
    int lines = (int)(tile_bytes / BLOCK_LINE), line = within / 4 % lines;
    size_t at = block_start(mat, row, k) + (size_t)(half * 2 + tile) * tile_bytes;
    at += (size_t)line * BLOCK_LINE + (size_t)(row % HALF_ROWS) * 4 + (size_t)(within % 4);
    return (struct place){at, mat->format == MAT_INT4 && within >= BLOCK_TILE / 2};
}

static size_t scale_place(const struct mat *mat, int row, int k) {
    int group = k % BLOCK_COLS / mat->group_size;
    return block_start(mat, row, k) + value_bytes(mat->format) +
           (size_t)(group * BLOCK_ROWS + row % BLOCK_ROWS) * sizeof(uint16_t);
}

void block_clear(const struct mat *mat, void *data) {
    size_t block = block_bytes(mat->format, mat->group_size), values = value_bytes(mat->format);
    int zero = mat->format == MAT_INT4 ? NIBBLE_ZERO << 4 | NIBBLE_ZERO : BYTE_ZERO;
    size_t n = mat_bytes(mat) / block;
    for (size_t i = 0; i < n; i++) {
        uint8_t *at = (uint8_t *)data + i * block;
        memset(at, zero, values);
        memset(at + values, 0, block - values);
    }
}

void block_put_group(const struct mat *mat, void *data, int row, int group, const int8_t *q, uint16_t scale) {
    uint8_t *bytes = data;
    int k0 = group * mat->group_size;
    for (int i = 0; i < mat->group_size; i++) {
        struct place place = place_of(mat, row, k0 + i);
        uint8_t *at = bytes + place.byte;
        if (mat->format == MAT_INT8) {
            *at = (uint8_t)(q[i] + BYTE_ZERO);
        } else if (place.high) {
            *at = (uint8_t)((*at & 15) | (q[i] + NIBBLE_ZERO) << 4);
        } else {
            *at = (uint8_t)((*at & 0xf0) | (q[i] + NIBBLE_ZERO));
        }
    }
    memcpy(bytes + scale_place(mat, row, k0), &scale, sizeof scale);
}

int block_value(const struct mat *mat, int row, int k) {
    struct place place = place_of(mat, row, k);
    int byte = ((const uint8_t *)mat->data)[place.byte];
    if (mat->format == MAT_INT8) return byte - BYTE_ZERO;
    return (place.high ? byte >> 4 : byte & 15) - NIBBLE_ZERO;
}

uint16_t block_scale(const struct mat *mat, int row, int k) {
    uint16_t scale;
    memcpy(&scale, (const uint8_t *)mat->data + scale_place(mat, row, k), sizeof scale);
    return scale;
}

void block_decode_span(const struct mat *mat, int row, int k0, int count, float *out) {
    assert(mat->format == MAT_INT4 || mat->format == MAT_INT8);
    for (int i = 0; i < count; i++) {
        out[i] = (float)block_value(mat, row, k0 + i) * f16_to_f32(block_scale(mat, row, k0 + i));
    }
}
