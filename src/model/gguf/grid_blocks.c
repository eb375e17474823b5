/* model/gguf/grid_blocks.c - the plain-C meaning of the blocks whose values come in groups out of a grid, and of the ternary ones. */
#include "model/format_priv.h"

static const uint8_t grid_places[4] = {0, 8, 4, 12};
const int8_t gguf_iq2_values[16] = {8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43};
const int8_t gguf_iq3_xxs_values[16] = {4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62};
const int8_t gguf_iq3_s_values[16] = {1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15};

static unsigned word16(const uint8_t *at) {
    return (unsigned)(at[0] | at[1] << 8);
}

static uint32_t word32(const uint8_t *at) {
    return word16(at) | (uint32_t)word16(at + 2) << 16;
}

static int nibble(const uint8_t *bytes, int i) {
    return bytes[i / 2] >> i % 2 * 4 & 15;
}

/* Eight signs of which seven are stored: an even number of values is negative. */
static unsigned even_signs(unsigned seven) {
    seven &= 127;
    return seven | (unsigned)__builtin_parity(seven) << 7;
}

/* Value i of an entry of eight: its place in the list. */
static unsigned of_eight(uint16_t entry, int i) {
    return entry >> (grid_places[i % 4] + i / 4 * 2) & 3;
}

/* Eight values; a sign puts a value into the second half of the list. */
static void put_eight(const int8_t values[16], uint16_t entry, unsigned signs, int8_t *q) {
    for (int i = 0; i < 8; i++) q[i] = values[of_eight(entry, i) | (signs >> i & 1) << 3];
}

/* Eight values out of two entries of four. */
static void put_twice_four(const int8_t values[16], uint16_t first, uint16_t second, unsigned signs, int8_t *q) {
    for (int i = 0; i < 8; i++) {
        const unsigned place = (i < 4 ? first : second) >> grid_places[i % 4] & 15;
        q[i] = values[place | (signs >> i & 1) << 3];
    }
}

/* ---- two bits: each eight values an entry ---- */

static void read_iq2_xxs(const uint8_t *at, struct gguf_parts *out) {
    const float d = half_at(at) * 0.125f;
    for (int j = 0; j < 8; j++) {
        const uint8_t *index = at + 2 + 8 * j;
        const uint32_t word = word32(index + 4);
        out->scale[j] = d * (float)(2 * (word >> 28) + 1);
        for (int i = 0; i < 4; i++)
            put_eight(gguf_iq2_values, gguf_iq2_xxs_grid[index[i]], even_signs(word >> 7 * i), out->q + 32 * j + 8 * i);
    }
}

static void read_iq2_xs(const uint8_t *at, struct gguf_parts *out) {
    const float d = half_at(at) * 0.125f;
    for (int j = 0; j < 16; j++) out->scale[j] = d * (float)(2 * nibble(at + 66, j) + 1);
    for (int i = 0; i < 32; i++) {
        const unsigned word = word16(at + 2 + 2 * i);
        put_eight(gguf_iq2_values, gguf_iq2_xs_grid[word & 511], even_signs(word >> 9), out->q + 8 * i);
    }
}

static void read_iq2_s(const uint8_t *at, struct gguf_parts *out) {
    const uint8_t *low = at + 2, *signs = at + 34, *high = at + 66;
    const float d = half_at(at) * 0.125f;
    for (int j = 0; j < 16; j++) out->scale[j] = d * (float)(2 * nibble(at + 74, j) + 1);
    for (int i = 0; i < 32; i++) {
        const unsigned index = low[i] | (high[i / 4] >> i % 4 * 2 & 3u) << 8;
        put_eight(gguf_iq2_values, gguf_iq2_s_grid[index], signs[i], out->q + 8 * i);
    }
}

/* ---- three bits: each four values an entry ---- */

static void read_iq3_xxs(const uint8_t *at, struct gguf_parts *out) {
    const uint16_t *grid = gguf_iq3_xxs_grid;
    const float d = half_at(at) * 0.25f;
    for (int j = 0; j < 8; j++) {
        const uint8_t *index = at + 2 + 8 * j;
        const uint32_t word = word32(at + 66 + 4 * j);
        out->scale[j] = d * (float)(2 * (word >> 28) + 1);
        for (int i = 0; i < 4; i++)
            put_twice_four(gguf_iq3_xxs_values, grid[index[2 * i]], grid[index[2 * i + 1]], even_signs(word >> 7 * i),
                           out->q + 32 * j + 8 * i);
    }
}

static uint16_t iq3_s_entry(const uint8_t *at, int i) {
    return gguf_iq3_s_grid[at[2 + i] | (at[66 + i / 8] >> i % 8 & 1) << 8];
}

static void read_iq3_s(const uint8_t *at, struct gguf_parts *out) {
    const float d = half_at(at);
    for (int j = 0; j < 8; j++) out->scale[j] = d * (float)(2 * nibble(at + 106, j) + 1);
    for (int i = 0; i < 32; i++)
        put_twice_four(gguf_iq3_s_values, iq3_s_entry(at, 2 * i), iq3_s_entry(at, 2 * i + 1), at[74 + i],
                       out->q + 8 * i);
}

/* ---- one bit: each eight values an entry of -1, 0 and 1, all of them an eighth more or less ---- */

static void put_eighths(uint16_t entry, bool is_less, int8_t *q) {
    for (int i = 0; i < 8; i++) q[i] = (int8_t)(8 * ((int)of_eight(entry, i) - 1) + (is_less ? -1 : 1));
}

static void read_iq1_s(const uint8_t *at, struct gguf_parts *out) {
    const float d = half_at(at) * 0.125f;
    for (int j = 0; j < 8; j++) {
        const unsigned high = word16(at + 34 + 2 * j);
        out->scale[j] = d * (float)(2 * (high >> 12 & 7) + 1);
        for (int i = 0; i < 4; i++) {
            const unsigned index = at[2 + 4 * j + i] | (high >> 3 * i & 7) << 8;
            put_eighths(gguf_iq1_grid[index], high >> 15, out->q + 32 * j + 8 * i);
        }
    }
}

static void read_iq1_m(const uint8_t *at, struct gguf_parts *out) {
    const uint8_t *scales = at + 48;
    unsigned half = 0;
    for (int i = 0; i < 4; i++) half |= word16(scales + 2 * i) >> 12 << 4 * i;
    const float d = f16_to_f32((uint16_t)half) * 0.125f;
    for (int j = 0; j < 16; j++) out->scale[j] = d * (float)(2 * (word16(scales + j / 4 * 2) >> j % 4 * 3 & 7) + 1);
    for (int i = 0; i < 32; i++) {
        const unsigned high = (unsigned)nibble(at + 32, i);
        put_eighths(gguf_iq1_grid[at[i] | (high & 7) << 8], high >> 3, out->q + 8 * i);
    }
}

/* ---- -1, 0 and 1 alone ---- */

static void read_tq1_0(const uint8_t *at, struct gguf_parts *out) {
    static const struct { int bytes, digits; } parts[] = {{32, 5}, {16, 5}, {4, 4}};
    int8_t *q = out->q;
    for (int part = 0; part < 3; part++) {
        unsigned power = 1;
        for (int digit = 0; digit < parts[part].digits; digit++, power *= 3)
            for (int i = 0; i < parts[part].bytes; i++) *q++ = (int8_t)((int)((at[i] * power & 255) * 3 >> 8) - 1);
        at += parts[part].bytes;
    }
    for (int j = 0; j < 8; j++) out->scale[j] = half_at(at);
}

static void read_tq2_0(const uint8_t *at, struct gguf_parts *out) {
    for (int j = 0; j < 8; j++) out->scale[j] = half_at(at + 64);
    for (int i = 0; i < 256; i++) out->q[i] = (int8_t)((at[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - 1);
}

void gguf_read_grid(enum mat_format format, const uint8_t *at, struct gguf_parts *out) {
    static void (*const read[MAT_FORMATS])(const uint8_t *, struct gguf_parts *) = {
        [MAT_IQ1_S] = read_iq1_s,   [MAT_IQ1_M] = read_iq1_m, [MAT_IQ2_XXS] = read_iq2_xxs,
        [MAT_IQ2_XS] = read_iq2_xs, [MAT_IQ2_S] = read_iq2_s, [MAT_IQ3_XXS] = read_iq3_xxs,
        [MAT_IQ3_S] = read_iq3_s,   [MAT_TQ1_0] = read_tq1_0, [MAT_TQ2_0] = read_tq2_0,
    };
    read[format](at, out);
}
