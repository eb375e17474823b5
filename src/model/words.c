/* model/words.c - other people's INT4: groups of k with a zero point, eight values a word, packed in three ways; and the order that
 * all of them are turned into (format.h). */
#include <string.h>

#include "model/format.h"
#include "model/format_priv.h"

enum { WORD = 4, STEP_LINES = WORDS_STEP / 8 };

/* The zero point's bits in a turned scale. */
static const uint32_t zero_mask = 15;

/* ---- as published ---- */

/* Files promise only 2-byte alignment, so words are copied out. */
static uint32_t word_at(const void *base, size_t index) {
    uint32_t word;
    memcpy(&word, (const uint8_t *)base + index * WORD, WORD);
    return word;
}

static int nibble_of(uint32_t word, int place) {
    return (int)(word >> 4 * place & 15);
}

static int awq_place(int row) {
    static const uint8_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* awq_order turned round */
    return place[row % 8];
}

static size_t group_of(const struct mat *mat, int k) {
    return mat->one_group ? 0 : (size_t)(k / mat->group_size);
}

static size_t groups_of(const struct mat *mat) {
    return mat->one_group ? 1 : ceil_div(mat->cols, mat->group_size);
}

static int published_value(const struct mat *mat, int row, int k) {
    const size_t by_row = (size_t)row / 8, by_k = (size_t)k / 8;
    switch (mat->format) {
    case MAT_INT4_AWQ:
        return nibble_of(word_at(mat->data, (size_t)k * ((size_t)mat->rows / 8) + by_row), awq_place(row));
    case MAT_INT4_GPTQ:
        return nibble_of(word_at(mat->data, by_k * (size_t)mat->rows + (size_t)row), k % 8);
    default:
        return nibble_of(word_at(mat->data, (size_t)row * ceil_div(mat->cols, 8) + by_k), k % 8);
    }
}

static int published_zero(const struct mat *mat, int row, int k) {
    const size_t group = group_of(mat, k), by_row = (size_t)row / 8;
    if (!mat->zeros) return WORDS_MIDDLE;
    if (mat->format == MAT_INT4_PACKED) return nibble_of(word_at(mat->zeros, by_row * groups_of(mat) + group), row % 8);
    const uint32_t word = word_at(mat->zeros, group * ((size_t)mat->rows / 8) + by_row);
    if (mat->format == MAT_INT4_AWQ) return nibble_of(word, awq_place(row));
    return (nibble_of(word, row % 8) + mat->zero_bias) & 15;
}

static enum mat_format scales_format(const struct mat *mat) {
    return mat->format == MAT_INT4_AWQ ? MAT_F16 : mat->scales_format;
}

static uint32_t published_scale(const struct mat *mat, int row, int k) {
    const size_t group = group_of(mat, k), by_group = group * (size_t)mat->rows + (size_t)row;
    const size_t index = mat->format == MAT_INT4_PACKED ? (size_t)row * groups_of(mat) + group : by_group;
    uint16_t half;
    if (scales_format(mat) == MAT_F32) return word_at(mat->scales16, index) & ~zero_mask;
    memcpy(&half, (const uint8_t *)mat->scales16 + index * sizeof half, sizeof half);
    const float scale = scales_format(mat) == MAT_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    return bits & ~zero_mask; /* nothing is lost but of a NaN */
}

/* ---- turned ---- */

static int panels_of(const struct mat *mat) {
    return (mat->rows + TURN_ROWS - 1) / TURN_ROWS;
}

size_t words_panel_bytes(const struct mat *mat) {
    const size_t steps = ceil_div(mat->cols, WORDS_STEP), groups = ceil_div(mat->cols, mat->group_size);
    return (groups + steps * STEP_LINES) * BLOCK_LINE;
}

size_t words_turned_at(const struct mat *mat, int k) {
    const size_t group = (size_t)(k / mat->group_size), step = (size_t)(k / WORDS_STEP);
    return (group + step * STEP_LINES) * BLOCK_LINE;
}

const uint8_t *words_rows_at(const struct mat *mat, int row) {
    return (const uint8_t *)mat->data + (size_t)(row / TURN_ROWS) * words_panel_bytes(mat);
}

/* Row `row`'s scale and zero point for column k. */
static uint32_t turned_head(const struct mat *mat, int row, int k) {
    const uint8_t *group = words_rows_at(mat, row) + words_turned_at(mat, k - k % mat->group_size);
    return word_at(group, (size_t)(row % TURN_ROWS));
}

static int turned_value(const struct mat *mat, int row, int k) {
    const uint8_t *step =
        words_rows_at(mat, row) + words_turned_at(mat, k) + BLOCK_LINE; /* behind the group's scales */
    const int at = k % WORDS_STEP, line = at % 16 / 4;
    const uint8_t byte = step[line * BLOCK_LINE + row % TURN_ROWS * WORD + at % 4];
    return at < 16 ? byte & 15 : byte >> 4;
}

/* Nibble j of word i becomes nibble i of word j, i and j below 8: blocks of four, of two, of one change places. */
static void transpose(uint32_t v[8]) {
    static const uint32_t masks[] = {0x0000ffff, 0x00ff00ff, 0x0f0f0f0f};
    for (int step = 0, n = 4; n > 0; step++, n /= 2)
        for (int i = 0; i < 8; i++) {
            if (i & n) continue;
            const uint32_t swap = (v[i] >> 4 * n ^ v[i + n]) & masks[step];
            v[i + n] ^= swap;
            v[i] ^= swap << 4 * n;
        }
}

enum { STEP_WORDS = WORDS_STEP / 8 };

/* out[c][r]: nibble j is the value of row first + r, column k + 8c + j; 0 past the row's end. */
static void take_awq(const struct mat *from, int first, int rows, int k, uint32_t out[STEP_WORDS][TURN_ROWS]) {
    const size_t pitch = (size_t)from->rows / 8;
    for (int c = 0; c < STEP_WORDS; c++, k += 8)
        for (int r = 0; r < rows; r += 8) {
            uint32_t v[8] = {0};
            for (int i = 0; i < 8 && k + i < from->cols; i++)
                v[i] = word_at(from->data, (size_t)(k + i) * pitch + (size_t)(first + r) / 8);
            transpose(v);
            for (int j = 0; j < 8; j++) out[c][r + awq_order[j]] = v[j];
        }
}

/* The same of GPTQ and PACKED, whose words are such already. */
static void take_others(const struct mat *from, int first, int rows, int k, uint32_t out[STEP_WORDS][TURN_ROWS]) {
    const size_t by_k = ceil_div(from->cols, 8), all = (size_t)from->rows;
    for (int c = 0; c < STEP_WORDS && k < from->cols; c++, k += 8) {
        const uint32_t mask = from->cols - k < 8 ? (1u << 4 * (from->cols - k)) - 1 : ~0u;
        for (int r = 0; r < rows; r++) {
            const size_t row = (size_t)(first + r), at = (size_t)k / 8;
            const uint32_t word =
                word_at(from->data, from->format == MAT_INT4_PACKED ? row * by_k + at : at * all + row);
            out[c][r] = word & mask;
        }
    }
}

/* Four nibbles as the low halves of four bytes. */
static uint32_t spread(uint32_t nibbles) {
    const uint32_t pairs = (nibbles & 0xff) | (nibbles & 0xff00) << 8;
    return (pairs & 0x000f000f) | (pairs & 0x00f000f0) << 4;
}

/* The values of WORDS_STEP k from k on of TURN_ROWS rows, as four lines. */
static void turn_step(const struct mat *from, int first, int rows, int k, uint8_t *lines) {
    uint32_t words[STEP_WORDS][TURN_ROWS] = {{0}};
    (from->format == MAT_INT4_AWQ ? take_awq : take_others)(from, first, rows, k, words);
    for (int l = 0; l < STEP_LINES; l++, lines += BLOCK_LINE) {
        const uint32_t *low = words[l / 2], *high = words[l / 2 + STEP_WORDS / 2];
        uint32_t line[TURN_ROWS];
        for (int r = 0; r < TURN_ROWS; r++)
            line[r] = spread(low[r] >> l % 2 * 16 & 0xffff) | spread(high[r] >> l % 2 * 16 & 0xffff) << 4;
        memcpy(lines, line, sizeof line);
    }
}

void words_turn_panel(const struct mat *from, int panel, void *out) {
    const int first = panel * TURN_ROWS, left = from->rows - first, rows = left < TURN_ROWS ? left : TURN_ROWS;
    uint8_t *to = out;
    for (int k = 0; k < from->cols; k += WORDS_STEP, to += STEP_LINES * BLOCK_LINE) {
        if (k % from->group_size == 0) {
            memset(to, 0, BLOCK_LINE);
            for (int r = 0; r < rows; r++) {
                const uint32_t head =
                    published_scale(from, first + r, k) | (uint32_t)published_zero(from, first + r, k);
                memcpy(to + r * WORD, &head, WORD);
            }
            to += BLOCK_LINE;
        }
        turn_step(from, first, rows, k, to);
    }
}

/* ---- as AWQ's ---- */

bool words_to_awq(const struct mat *from, int word, const struct mat *to) {
    const size_t pitch = (size_t)from->rows / 8;
    uint8_t *data = (uint8_t *)(uintptr_t)to->data, *zeros = (uint8_t *)(uintptr_t)to->zeros;
    uint8_t *scales = (uint8_t *)(uintptr_t)to->scales16;
    for (int k = 0; k < from->cols; k++) {
        uint32_t q = 0, z = 0;
        for (int j = 0; j < 8; j++) q |= (uint32_t)published_value(from, word * 8 + awq_order[j], k) << 4 * j;
        memcpy(data + ((size_t)k * pitch + (size_t)word) * WORD, &q, WORD);
        if (k % to->group_size) continue;
        const size_t group = (size_t)(k / to->group_size);
        for (int j = 0; j < 8; j++) {
            const float scale = words_scale(from, word * 8 + j, k);
            const uint16_t half = f32_to_f16(scale);
            z |= (uint32_t)published_zero(from, word * 8 + awq_order[j], k) << 4 * j;
            if (f16_to_f32(half) != scale) return false;
            memcpy(scales + (group * (size_t)from->rows + (size_t)word * 8 + (size_t)j) * sizeof half, &half,
                   sizeof half);
        }
        memcpy(zeros + (group * pitch + (size_t)word) * WORD, &z, WORD);
    }
    return true;
}

/* ---- both ---- */

int words_value(const struct mat *mat, int row, int k) {
    return mat->turned ? turned_value(mat, row, k) : published_value(mat, row, k);
}

int words_zero(const struct mat *mat, int row, int k) {
    return mat->turned ? (int)(turned_head(mat, row, k) & zero_mask) : published_zero(mat, row, k);
}

float words_scale(const struct mat *mat, int row, int k) {
    const uint32_t bits = mat->turned ? turned_head(mat, row, k) & ~zero_mask : published_scale(mat, row, k);
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

void words_decode_span(const struct mat *mat, int row, int k0, int count, float *out) {
    for (int k = k0; k < k0 + count; k++)
        *out++ = (float)(words_value(mat, row, k) - words_zero(mat, row, k)) * words_scale(mat, row, k);
}

size_t words_data_bytes(const struct mat *mat) {
    if (mat->turned) return (size_t)panels_of(mat) * words_panel_bytes(mat);
    if (mat->format == MAT_INT4_PACKED) return (size_t)mat->rows * ceil_div(mat->cols, 8) * WORD;
    return (size_t)mat->rows * (size_t)mat->cols / 2;
}

size_t words_scale_bytes(const struct mat *mat) {
    return groups_of(mat) * (size_t)mat->rows * (scales_format(mat) == MAT_F32 ? 4 : 2);
}

size_t words_zero_bytes(const struct mat *mat) {
    if (mat->format == MAT_INT4_PACKED && !mat->zeros) return 0;
    return groups_of(mat) * ceil_div(mat->rows, 8) * WORD;
}
