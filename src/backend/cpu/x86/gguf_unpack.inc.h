/* backend/cpu/x86/gguf_unpack.inc.h - GGUF's blocks taken apart, VL rows at once; included by each level after its vector
 * words. The rows' words are turned so that a lane is a row (rows_to_lanes); from there on every format is shifts and masks,
 * scales included. What comes out is the same for all: lines of bytes as a product of bytes wants them, scales in fp32. */

#include <stdbool.h>

enum {
    GGUF_STEP = 256, /* k that are unpacked at a time */
    GGUF_LINES = GGUF_STEP / 4,
    GGUF_SUBS = GGUF_STEP / 16,
    IQ4_ZERO = BYTE_ZERO,
};

/* VL rows x 256 k: byte i of a lane of lines[l] is k = 4l + i, plus the format's zero; sub-block j has 16 or 32 k. */
struct gguf_panel {
    ivec lines[GGUF_LINES];
    vec scale[GGUF_SUBS], low[GGUF_SUBS]; /* low: where the format has one */
};

/* Where a block's parts go. */
struct gguf_to {
    ivec *lines;
    vec *scale, *low;
};

/* A block of each of VL rows, and what is to be asked for meanwhile: a few lines with every few words that are taken, as so many
 * requests at once would wait for one another. */
struct gguf_rows {
    const uint8_t *p; /* the first row's block */
    size_t pitch;     /* bytes from row to row */
    const uint8_t *ask;
    int asks; /* left, of ASK_ROWS lines each: all rows' first lines, then all rows' second ones, ... */
};

enum { ASK_ROWS = 4, LINE_ASKS = VL / ASK_ROWS };

INLINE void gguf_ask(struct gguf_rows *rows) {
    if (rows->asks <= 0) return;
    UNROLL
    for (int i = 0; i < ASK_ROWS; i++) _mm_prefetch(rows->ask + (size_t)i * rows->pitch, _MM_HINT_T0);
    rows->ask += ASK_ROWS * rows->pitch;
    if (--rows->asks % LINE_ASKS == 0) rows->ask += BLOCK_LINE - (ptrdiff_t)(VL * rows->pitch);
}

/* 16 bytes of each row's block, as four words. */
INLINE void take_words(struct gguf_rows *rows, int at, ivec words[4]) {
    rows_to_lanes(rows->p + at, rows->pitch, words);
    gguf_ask(rows);
}

/* The same four (two) bits of every byte. */
INLINE ivec bits_at(ivec v, int shift, int byte_mask) {
    return ivec_and(shift > 0   ? ivec_shift_right(v, shift)
                    : shift < 0 ? ivec_shift_left(v, -shift)
                                : v,
                    ivec_set1(byte_mask * 0x01010101));
}

INLINE vec vec_negative(vec v) {
    return vec_from_bits(ivec_xor(vec_bits(v), ivec_set1((int)0x80000000)));
}

/* Byte `which` of each lane, times d. */
INLINE vec scale_of_byte(ivec v, int which, int minus, vec d) {
    ivec byte = byte_of_each(v, which);
    if (minus) byte = ivec_sub(byte, ivec_set1(minus));
    return vec_mul(d, vec_from_int(byte));
}

INLINE ivec gguf_word(struct gguf_rows *rows, int at, int which) {
    ivec v[4];
    take_words(rows, at, v);
    return v[which];
}

/* ---- blocks of 32 ---- */

/* 16 bytes with 32 values of four bits: value i low, value i + 16 high. */
INLINE void unpack_nibbles(struct gguf_rows *rows, int at, ivec *lines) {
    ivec v[4];
    take_words(rows, at, v);
    UNROLL
    for (int i = 0; i < 4; i++) {
        lines[i] = bits_at(v[i], 0, 15);
        lines[4 + i] = bits_at(v[i], 4, 15);
    }
}

/* ... with a fifth bit each, in order. */
INLINE void unpack_five_bits(struct gguf_rows *rows, int at, ivec *lines) {
    ivec fifth = gguf_word(rows, at, 0);
    unpack_nibbles(rows, at + 4, lines);
    UNROLL
    for (int i = 0; i < 8; i++) {
        int bits = i % 2 ? (int)0x80402010 : 0x08040201;
        lines[i] = bytes_add_where(lines[i], bytes_repeat(fifth, i / 2), bits, 0x10101010);
    }
}

/* d, and m if there is one. */
INLINE void unpack_halves(struct gguf_rows *rows, bool has_low, struct gguf_to to) {
    ivec head = gguf_word(rows, 0, 0);
    *to.scale = vec_from_f16_bits(head);
    if (has_low) *to.low = vec_from_f16_bits(ivec_shift_right(head, 16));
}

static void unpack_q4_0(struct gguf_rows *rows, struct gguf_to to) {
    unpack_halves(rows, false, to);
    unpack_nibbles(rows, 2, to.lines);
}

static void unpack_q4_1(struct gguf_rows *rows, struct gguf_to to) {
    unpack_halves(rows, true, to);
    unpack_nibbles(rows, 4, to.lines);
}

static void unpack_q5_0(struct gguf_rows *rows, struct gguf_to to) {
    unpack_halves(rows, false, to);
    unpack_five_bits(rows, 2, to.lines);
}

static void unpack_q5_1(struct gguf_rows *rows, struct gguf_to to) {
    unpack_halves(rows, true, to);
    unpack_five_bits(rows, 4, to.lines);
}

static void unpack_q8_0(struct gguf_rows *rows, struct gguf_to to) {
    unpack_halves(rows, false, to);
    UNROLL
    for (int half = 0; half < 2; half++) {
        take_words(rows, 2 + half * 16, to.lines + half * 4);
        UNROLL
        for (int i = half * 4; BYTE_ZERO && i < half * 4 + 4; i++)
            to.lines[i] = ivec_xor(to.lines[i], ivec_set1((int)0x80808080));
    }
}

/* gguf_iq4_values plus their zero. */
INLINE void look_up_iq4(ivec *lines) {
    UNROLL
    for (int i = 0; i < 8; i++) {
        ivec v = bytes_look_up(gguf_iq4_values, lines[i]);
        lines[i] = IQ4_ZERO ? ivec_xor(v, ivec_set1((int)0x80808080)) : v;
    }
}

static void unpack_iq4_nl(struct gguf_rows *rows, struct gguf_to to) {
    unpack_q4_0(rows, to);
    look_up_iq4(to.lines);
}

/* ---- blocks of 256 ---- */

/* 64 bytes of two bits, 32 bytes for 128 values. */
INLINE void unpack_two_bits(struct gguf_rows *rows, int at, ivec *lines) {
    UNROLL
    for (int unit = 0; unit < 4; unit++) {
        ivec v[4], *to = lines + unit / 2 * 32 + unit % 2 * 4;
        take_words(rows, at + unit * 16, v);
        UNROLL
        for (int i = 0; i < 4; i++) {
            UNROLL
            for (int s = 0; s < 4; s++) to[8 * s + i] = bits_at(v[i], 2 * s, 3);
        }
    }
}

static void unpack_q2_k(struct gguf_rows *rows, struct gguf_to to) {
    ivec v[4], head = gguf_word(rows, 68, 3);
    vec d = vec_from_f16_bits(head), minus = vec_negative(vec_from_f16_bits(ivec_shift_right(head, 16)));
    take_words(rows, 0, v);
    UNROLL
    for (int j = 0; j < 16; j++) {
        to.scale[j] = scale_of_byte(bits_at(v[j / 4], 0, 15), j % 4, 0, d);
        to.low[j] = scale_of_byte(bits_at(v[j / 4], 4, 15), j % 4, 0, minus);
    }
    unpack_two_bits(rows, 16, to.lines);
}

/* One bit a value in 32 bytes: byte i has those of values i, i + 32, ... */
INLINE void add_bits(struct gguf_rows *rows, int at, int place, ivec *lines) {
    UNROLL
    for (int unit = 0; unit < 2; unit++) {
        ivec v[4];
        take_words(rows, at + unit * 16, v);
        UNROLL
        for (int i = 0; i < 4; i++) {
            UNROLL
            for (int j = 0; j < 8; j++) {
                ivec *line = lines + 8 * j + 4 * unit + i;
                *line = ivec_or(*line, bits_at(v[i], j - place, 1 << place));
            }
        }
    }
}

static void unpack_q3_k(struct gguf_rows *rows, struct gguf_to to) {
    ivec v[4];
    vec d = vec_from_f16_bits(ivec_shift_right(gguf_word(rows, 94, 3), 16));
    take_words(rows, 92, v);
    UNROLL
    for (int i = 0; i < 4; i++) { /* four scales each */
        ivec low = bits_at(v[1 + i % 2], i / 2 * 4, 15), high = bits_at(v[3], 2 * i - 4, 0x30);
        UNROLL
        for (int j = 0; j < 4; j++) to.scale[4 * i + j] = scale_of_byte(ivec_or(low, high), j, 32, d);
    }
    unpack_two_bits(rows, 32, to.lines);
    add_bits(rows, 0, 2, to.lines);
}

/* The 16 bytes that Q4_K and Q5_K begin with. */
INLINE void unpack_six_bits(struct gguf_rows *rows, struct gguf_to to) {
    ivec v[4];
    take_words(rows, 0, v);
    vec d = vec_from_f16_bits(v[0]), minus = vec_negative(vec_from_f16_bits(ivec_shift_right(v[0], 16)));
    ivec scale[2] = {bits_at(v[1], 0, 63), ivec_or(bits_at(v[3], 0, 15), bits_at(v[1], 2, 0x30))};
    ivec low[2] = {bits_at(v[2], 0, 63), ivec_or(bits_at(v[3], 4, 15), bits_at(v[2], 2, 0x30))};
    UNROLL
    for (int j = 0; j < 8; j++) {
        to.scale[j] = scale_of_byte(scale[j / 4], j % 4, 0, d);
        to.low[j] = scale_of_byte(low[j / 4], j % 4, 0, minus);
    }
}

/* 128 bytes of four bits, 32 bytes for 64 values. */
INLINE void unpack_four_bits(struct gguf_rows *rows, int at, ivec *lines) {
    KEEP_LOOP
    for (int unit = 0; unit < 8; unit++) {
        ivec v[4], *to = lines + unit / 2 * 16 + unit % 2 * 4;
        take_words(rows, at + unit * 16, v);
        UNROLL
        for (int i = 0; i < 4; i++) {
            to[i] = bits_at(v[i], 0, 15);
            to[8 + i] = bits_at(v[i], 4, 15);
        }
    }
}

static void unpack_q4_k(struct gguf_rows *rows, struct gguf_to to) {
    unpack_six_bits(rows, to);
    unpack_four_bits(rows, 16, to.lines);
}

static void unpack_q5_k(struct gguf_rows *rows, struct gguf_to to) {
    unpack_six_bits(rows, to);
    unpack_four_bits(rows, 48, to.lines);
    add_bits(rows, 16, 4, to.lines);
}

/* Half of Q6_K's values: 64 bytes of low bits, 32 of high ones. */
INLINE void unpack_q6_k_half(struct gguf_rows *rows, int half, ivec *lines) {
    ivec h[8];
    take_words(rows, 128 + 32 * half, h);
    take_words(rows, 144 + 32 * half, h + 4);
    UNROLL
    for (int unit = 0; unit < 4; unit++) {
        ivec v[4];
        take_words(rows, 64 * half + unit * 16, v);
        UNROLL
        for (int i = 0; i < 4; i++) {
            ivec two = h[unit % 2 * 4 + i];
            lines[4 * unit + i] = ivec_or(bits_at(v[i], 0, 15), bits_at(two, unit / 2 * 2 - 4, 0x30));
            lines[16 + 4 * unit + i] = ivec_or(bits_at(v[i], 4, 15), bits_at(two, unit / 2 * 2, 0x30));
        }
    }
}

static void unpack_q6_k(struct gguf_rows *rows, struct gguf_to to) {
    ivec v[4];
    vec d = vec_from_f16_bits(ivec_shift_right(gguf_word(rows, 194, 3), 16));
    take_words(rows, 192, v);
    UNROLL
    for (int j = 0; j < 16; j++) {
        ivec byte = ivec_shift_right_signed(ivec_shift_left(v[j / 4], 24 - j % 4 * 8), 24);
        to.scale[j] = vec_mul(d, vec_from_int(byte));
    }
    KEEP_LOOP
    for (int half = 0; half < 2; half++) unpack_q6_k_half(rows, half, to.lines + 32 * half);
}

static void unpack_iq4_xs(struct gguf_rows *rows, struct gguf_to to) {
    ivec v[4];
    take_words(rows, 0, v);
    vec d = vec_from_f16_bits(v[0]);
    UNROLL
    for (int j = 0; j < 8; j++) {
        ivec low = ivec_and(ivec_shift_right(v[1], 4 * j), ivec_set1(15));
        ivec high = ivec_and(ivec_shift_right(v[0], 16 + 2 * j), ivec_set1(3));
        ivec scale = ivec_sub(ivec_or(low, ivec_shift_left(high, 4)), ivec_set1(32));
        to.scale[j] = vec_mul(d, vec_from_int(scale));
    }
    KEEP_LOOP
    for (int j = 0; j < 8; j++) {
        unpack_nibbles(rows, 8 + 16 * j, to.lines + 8 * j);
        look_up_iq4(to.lines + 8 * j);
    }
}
