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

static void clear_value(const struct mat *mat, uint8_t *bytes, int row, int k) {
    struct place place = place_of(mat, row, k);
    uint8_t *at = bytes + place.byte;
    if (mat->format == MAT_INT8) {
        *at = BYTE_ZERO;
    } else {
        *at = (uint8_t)(place.high ? (*at & 15) | NIBBLE_ZERO << 4 : (*at & 0xf0) | NIBBLE_ZERO);
    }
}

void block_clear_outside(const struct mat *mat, void *data, int from_panel, int to_panel) {
    int end = (int)ceil_div(mat->cols, BLOCK_COLS) * BLOCK_COLS;
    for (int row = from_panel * BLOCK_ROWS; row < to_panel * BLOCK_ROWS; row++) {
        int first = row < mat->rows ? mat->cols : 0, group = mat->group_size;
        for (int k = first; k < end; k++) clear_value(mat, data, row, k);
        for (int k = (first + group - 1) / group * group; k < end; k += group) {
            memset((uint8_t *)data + scale_place(mat, row, k), 0, sizeof(uint16_t));
        }
    }
}

/* Four values that lie side by side, at any address. */
static uint32_t load4(const int8_t *q) {
    uint32_t word;
    memcpy(&word, q, sizeof word);
    return word;
}

/* One tile: 16 rows of 64 k, from q with `pitch` values a row. */
static void pack_tile(enum mat_format format, const int8_t *q, size_t pitch, uint8_t *out) {
    int lines = format == MAT_INT4 ? 8 : 16;
    for (int line = 0; line < lines; line++) {
        for (int row = 0; row < HALF_ROWS; row++) {
            const int8_t *at = q + (size_t)row * pitch + line * 4;
            uint32_t word = load4(at) ^ 0x80808080u; /* q + 128 in each byte */
            if (format == MAT_INT4) { /* q + 8 in each nibble: the low four bits with the highest turned over */
                uint32_t low = (load4(at) & 0x0f0f0f0fu) ^ 0x08080808u,
                         high = (load4(at + 32) & 0x0f0f0f0fu) ^ 0x08080808u;
                word = low | high << 4;
            }
            memcpy(out + line * BLOCK_LINE + row * 4, &word, sizeof word);
        }
    }
}

void block_pack_panel(const struct mat *mat, const int8_t *q, const uint16_t *scales, void *panel) {
    size_t blocks = ceil_div(mat->cols, BLOCK_COLS), pitch = blocks * BLOCK_COLS;
    size_t values = value_bytes(mat->format), block = block_bytes(mat->format, mat->group_size);
    int groups = BLOCK_COLS / mat->group_size;
    for (size_t b = 0; b < blocks; b++) {
        uint8_t *out = (uint8_t *)panel + b * block;
        for (int tile = 0; tile < 4; tile++) {
            const int8_t *from =
                q + (size_t)(tile / 2 * HALF_ROWS) * pitch + b * BLOCK_COLS + (size_t)(tile % 2 * BLOCK_TILE);
            pack_tile(mat->format, from, pitch, out + (size_t)tile * (values / 4));
        }
        for (int i = 0; i < groups * BLOCK_ROWS; i++) {
            size_t row = (size_t)(i % BLOCK_ROWS), group = b * (size_t)groups + (size_t)(i / BLOCK_ROWS);
            memcpy(out + values + (size_t)i * 2, &scales[row * blocks * (size_t)groups + group], 2);
        }
    }
}

void block_decode_span(const struct mat *mat, int row, int k0, int count, float *out) {
    assert(mat_is_integer(mat->format));
    for (int i = 0; i < count; i++) {
        out[i] = (float)block_value(mat, row, k0 + i) * f16_to_f32(block_scale(mat, row, k0 + i));
    }
}
