/* model/gguf/turn.c - GGUF's blocks with 16 rows side by side (format.h says how). */
#include "model/format.h"

#include <string.h>

#include "model/format_priv.h"

enum { WORD = 4, HALF = 2 };

/* A block of 4n + 2 bytes has a half that is in none of its words: at its end, or else at its begin. */
static bool half_is_last(enum mat_format format) {
    return format == MAT_Q3_K || format == MAT_Q6_K;
}

/* Where a format's blocks have their words and their lone half. */
struct turn_shape {
    size_t block_bytes;
    int blocks, words;     /* in a row, in a block */
    int words_at, half_at; /* bytes from the block on; half_at -1: there is none */
};

static struct turn_shape turn_shape(const struct mat *mat) {
    struct turn_shape t = {.half_at = -1};
    int values;
    gguf_block(mat->format, &values, &t.block_bytes);
    t.blocks = mat->cols / values;
    t.words = (int)(t.block_bytes / WORD);
    if (t.block_bytes % WORD == 0) return t;
    t.half_at = half_is_last(mat->format) ? (int)t.block_bytes - HALF : 0;
    t.words_at = t.half_at ? 0 : HALF;
    return t;
}

/* Bytes from the panel on: word 0 of its first row's block; its halves. */
static size_t words_of(const struct turn_shape *t, int block) {
    return (size_t)block * (size_t)t->words * TURN_ROWS * WORD;
}

static size_t halves_of(const struct turn_shape *t, int block) {
    return words_of(t, t->blocks) + (size_t)block * TURN_ROWS * HALF;
}

/* Block `block` of 16 rows, row[i] being their first blocks. */
static void turn_block(const struct turn_shape *t, const uint8_t *const *row, int block, uint8_t *panel) {
    const size_t at = (size_t)block * t->block_bytes;
    uint8_t *out = panel + words_of(t, block);
    for (int w = 0; w < t->words; w++, out += TURN_ROWS * WORD)
        for (int i = 0; i < TURN_ROWS; i++) memcpy(out + i * WORD, row[i] + at + t->words_at + w * WORD, WORD);
    if (t->half_at < 0) return;
    out = panel + halves_of(t, block);
    for (int i = 0; i < TURN_ROWS; i++) memcpy(out + i * HALF, row[i] + at + t->half_at, HALF);
}

/* The last rows of a matrix that is no whole number of panels, one by one. */
static void turn_row(const struct turn_shape *t, const uint8_t *row, int index, uint8_t *panel) {
    for (int b = 0; b < t->blocks; b++, row += t->block_bytes) {
        uint8_t *out = panel + words_of(t, b) + index * WORD;
        for (int w = 0; w < t->words; w++) memcpy(out + w * TURN_ROWS * WORD, row + t->words_at + w * WORD, WORD);
        if (t->half_at >= 0) memcpy(panel + halves_of(t, b) + index * HALF, row + t->half_at, HALF);
    }
}

void gguf_turn_panel(const struct mat *from, int panel, void *out) {
    const struct turn_shape t = turn_shape(from);
    const int first = panel * TURN_ROWS, rows = from->rows - first;
    const uint8_t *row[TURN_ROWS];
    for (int i = 0; i < TURN_ROWS && i < rows; i++) row[i] = gguf_rows_at(from, first + i);
    if (rows >= TURN_ROWS) {
        for (int b = 0; b < t.blocks; b++) turn_block(&t, row, b, out);
    } else {
        memset(out, 0, halves_of(&t, t.half_at < 0 ? 0 : t.blocks));
        for (int i = 0; i < rows; i++) turn_row(&t, row[i], i, out);
    }
}

void gguf_turn_back(const struct mat *mat, const uint8_t *panel, int row, int block, uint8_t *out) {
    const struct turn_shape t = turn_shape(mat);
    const uint8_t *from = panel + words_of(&t, block) + row * WORD;
    for (int w = 0; w < t.words; w++) memcpy(out + t.words_at + w * WORD, from + w * TURN_ROWS * WORD, WORD);
    if (t.half_at >= 0) memcpy(out + t.half_at, panel + halves_of(&t, block) + row * HALF, HALF);
}
