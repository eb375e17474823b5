/* model/int8_rows.c - other people's INT8, rows one after another with fp32 scales, as blocks of our own (format.h). */
#include <string.h>

#include "model/format.h"
#include "model/format_priv.h"

static float scale_at(const struct mat *mat, int row, int k) {
    return mat->scale[(size_t)(row / mat->scale_rows) * (size_t)mat->scale_stride + (size_t)(k / mat->scale_cols)];
}

/* 32 rows of 128 k; what lies past the matrix is 0. */
static void turn_block(const struct mat *from, int row0, int k0, void *out) {
    const struct mat block = {
        .format = MAT_INT8, .rows = BLOCK_ROWS, .cols = BLOCK_COLS, .group_size = from->group_size};
    const int rows = from->rows - row0 < BLOCK_ROWS ? from->rows - row0 : BLOCK_ROWS;
    const int cols = from->cols - k0 < BLOCK_COLS ? from->cols - k0 : BLOCK_COLS;
    const int groups = BLOCK_COLS / from->group_size;
    int8_t q[BLOCK_ROWS * BLOCK_COLS] = {0};
    uint16_t scales[BLOCK_ROWS * BLOCK_COLS / 32] = {0};
    for (int r = 0; r < rows; r++) {
        const size_t at = (size_t)(row0 + r) * (size_t)from->cols + (size_t)k0;
        memcpy(q + r * BLOCK_COLS, (const int8_t *)from->data + at, (size_t)cols);
        for (int k = 0; k < cols; k += from->group_size)
            scales[r * groups + k / from->group_size] = f32_to_f16(scale_at(from, row0 + r, k0 + k));
    }
    block_pack_panel(&block, q, scales, out);
}

void int8_rows_turn_panel(const struct mat *from, int panel, void *out) {
    uint8_t *to = out;
    for (int k = 0; k < from->cols; k += BLOCK_COLS, to += block_bytes(MAT_INT8, from->group_size))
        turn_block(from, panel * BLOCK_ROWS, k, to);
}
