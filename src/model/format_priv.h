/* model/format_priv.h - shared by format.c, block.c, int8_rows.c, words.c, fp4.c and gguf_*.c only. */
#ifndef MOEBIUS_MODEL_FORMAT_PRIV_H
#define MOEBIUS_MODEL_FORMAT_PRIV_H

#include "model/format.h"

static inline size_t ceil_div(int a, int b) {
    return ((size_t)a + (size_t)b - 1) / (size_t)b;
}

/* The fp16 number of two bytes. */
static inline float half_at(const uint8_t *at) {
    return f16_to_f32((uint16_t)(at[0] | at[1] << 8));
}

/* format_decode_span for INT4 and INT8. */
void block_decode_span(const struct mat *mat, int row, int k0, int count, float *out);

/* The same for words; what they take at mat->data; a panel of them turned. */
void words_decode_span(const struct mat *mat, int row, int k0, int count, float *out);
size_t words_data_bytes(const struct mat *mat);
void words_turn_panel(const struct mat *from, int panel, void *out);

/* A panel of INT8_ROWS as one of INT8. */
void int8_rows_turn_panel(const struct mat *from, int panel, void *out);

/* The same for FP4. */
void fp4_decode_span(const struct mat *mat, int row, int k0, int count, float *out);

/* mat_bytes and format_decode_span for GGUF's blocks. */
size_t gguf_bytes(const struct mat *mat);
/* gguf/turn.c: a panel; a block of row `row` of a panel, as in the file. */
void gguf_turn_panel(const struct mat *from, int panel, void *out);
void gguf_turn_back(const struct mat *mat, const uint8_t *panel, int row, int block, uint8_t *out);
void gguf_decode_span(const struct mat *mat, int row, int k0, int count, float *out);

/* gguf_take_apart for what has a grid, and TQ1_0 and TQ2_0. */
void gguf_read_grid(enum mat_format format, const uint8_t *at, struct gguf_parts *out);

#endif
