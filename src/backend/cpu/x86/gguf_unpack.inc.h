/* backend/cpu/x86/gguf_unpack.inc.h - GGUF's blocks taken apart, VL rows at once; included by each level after its vector
 * words. The rows' words are turned so that a lane is a row (rows_to_lanes); from there on every format is shifts and masks,
 * scales included. What comes out is the same for all: lines of bytes as a product of bytes wants them, scales in fp32. */

#include <stdbool.h>

enum {
    GGUF_STEP = 256, /* k that are unpacked at a time */
    GGUF_LINES = GGUF_STEP / 4,
    GGUF_SUBS = GGUF_STEP / 16,
    GGUF_AT_ONCE = VL == 16 ? 8 : 4, /* tokens with their sums in registers */
};

/* How a level multiplies: VNNI's product of bytes takes them all alike. Without it products of bytes are summed in 16 bits,
 * of so many lines as fit: four of values below 32, two of values below 64; signed bytes are summed each for itself. */
enum gguf_kind { GGUF_5_BITS, GGUF_6_BITS, GGUF_8_BITS };

#if VL == 16 || defined(__AVXVNNI__)
enum { GGUF_KINDS = 1 };

/* sum[t] += `lines` lines times their activations. */
INLINE void gguf_add_lines(enum gguf_kind kind, int tokens, int lines, const ivec *line, const int8_t *const *q,
                           ivec *sum) {
    (void)kind;
    UNROLL
    for (int l = 0; l < lines; l++) {
        ivec v = line[l];
        UNROLL
        for (int t = 0; t < tokens; t++) sum[t] = block_dot(MAT_INT8, sum[t], v, block_activations(q[t] + 4 * l));
    }
}
#else
enum { GGUF_KINDS = 3 };

INLINE void gguf_add_lines(enum gguf_kind kind, int tokens, int lines, const ivec *line, const int8_t *const *q,
                           ivec *sum) {
    const int run_lines = kind == GGUF_5_BITS ? 4 : kind == GGUF_6_BITS ? 2 : 1;
    UNROLL
    for (int l = 0; l < lines; l += run_lines) {
        ivec run[GGUF_AT_ONCE];
        UNROLL
        for (int i = l; i < l + run_lines; i++) {
            ivec v = line[i];
            UNROLL
            for (int t = 0; t < tokens; t++) {
                ivec x4 = block_activations(q[t] + 4 * i);
                if (kind == GGUF_8_BITS)
                    sum[t] = block_dot(MAT_INT8, sum[t], v, x4);
                else
                    run[t] = i == l ? _mm256_maddubs_epi16(v, x4) : q8_dot(run[t], v, x4);
            }
        }
        UNROLL
        for (int t = 0; t < tokens && kind != GGUF_8_BITS; t++)
            sum[t] = ivec_add(sum[t], _mm256_madd_epi16(run[t], _mm256_set1_epi16(1)));
    }
}
#endif

/* VL rows x 256 k: byte i of a lane of lines[l] is k = 4l + i, plus the format's zero; sub-block j has 16 or 32 k. */
struct gguf_panel {
    ivec lines[GGUF_LINES];
    vec scale[GGUF_SUBS], low[GGUF_SUBS]; /* low: where the format has one */
};

/* Where a block's parts go: its lines to `lines`, for many tokens; or, where that is NULL, straight to the sums of one token
 * with activations q, so that nothing but sums is stored. */
struct gguf_to {
    ivec *lines;
    vec *scale, *low;
    const int8_t *q;
    ivec *sum; /* of each sub-block */
    enum gguf_kind kind;
    int sub; /* k of a sub-block */
};

/* Lines [line, line + 4): 16 k, so that they are all of one sub-block. */
INLINE void put_lines(const struct gguf_to *to, int line, const ivec v[4]) {
    if (to->lines) {
        UNROLL
        for (int i = 0; i < 4; i++) to->lines[line + i] = v[i];
    } else {
        const int8_t *q = to->q + 4 * line;
        ivec sum = to->sum[4 * line / to->sub];
        gguf_add_lines(to->kind, 1, 4, v, &q, &sum);
        to->sum[4 * line / to->sub] = sum;
    }
}

/* A block of each of VL rows, and what is to be asked for meanwhile: a few lines with every few words that are taken, as so many
 * requests at once would wait for one another. */
struct gguf_rows {
    const uint8_t *p;      /* the first row's block; turned: the block's first line */
    size_t pitch;          /* bytes from row to row; 0: turned */
    const uint8_t *halves; /* turned: the block's lone halves */
    const uint8_t *ask;
    size_t ask_pitch;
    int asks; /* left, of ASK_ROWS lines each: all rows' first lines, then all rows' second ones, ... */
};

enum { ASK_ROWS = 4, LINE_ASKS = VL / ASK_ROWS };

INLINE void gguf_ask(struct gguf_rows *rows) {
    if (rows->asks <= 0) return;
    UNROLL
    for (int i = 0; i < ASK_ROWS; i++) ask_for(rows->ask + (size_t)i * rows->ask_pitch);
    rows->ask += ASK_ROWS * rows->ask_pitch;
    if (--rows->asks % LINE_ASKS == 0 && rows->pitch) rows->ask += BLOCK_LINE - (ptrdiff_t)(VL * rows->pitch);
}

/* The line of a turned block that byte `at` of every row's block is in. A lone half before it takes no place. */
INLINE const uint8_t *turned_line(const struct gguf_rows *rows, int at) {
    return rows->p + at / 4 * BLOCK_LINE;
}

/* 16 bytes of each row's block, as four words. */
INLINE void take_words(struct gguf_rows *rows, int at, ivec words[4]) {
    if (rows->pitch) {
        rows_to_lanes(rows->p + at, rows->pitch, words);
    } else {
        UNROLL
        for (int i = 0; i < 4; i++) words[i] = ivec_load(turned_line(rows, at + 4 * i));
    }
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

/* One word, the one at `at` + 4 * `which`; the 16 bytes from `at` on lie in the block. */
INLINE ivec gguf_word(struct gguf_rows *rows, int at, int which) {
    if (!rows->pitch) return ivec_load(turned_line(rows, at + 4 * which));
    ivec v[4];
    take_words(rows, at, v);
    return v[which];
}

/* The half of a word that a block of 4n + 2 bytes begins or ends with. */
INLINE vec gguf_first_half(struct gguf_rows *rows) {
    return rows->pitch ? vec_from_f16_bits(gguf_word(rows, 0, 0)) : vec_load_f16(rows->halves);
}

INLINE vec gguf_last_half(struct gguf_rows *rows, int at) {
    if (!rows->pitch) return vec_load_f16(rows->halves);
    return vec_from_f16_bits(ivec_shift_right(gguf_word(rows, at - 14, 3), 16));
}

/* ---- blocks of 32 ---- */

/* d, and m if there is one. */
INLINE void unpack_halves(struct gguf_rows *rows, bool has_low, const struct gguf_to *to) {
    if (!has_low) {
        *to->scale = gguf_first_half(rows);
        return;
    }
    ivec head = gguf_word(rows, 0, 0);
    *to->scale = vec_from_f16_bits(head);
    *to->low = vec_from_f16_bits(ivec_shift_right(head, 16));
}

/* A list of 16 values, plus the zero of GGUF_8_BITS. */
INLINE ivec look_up_values(const int8_t *values, ivec nibbles) {
    ivec v = bytes_look_up(values, nibbles);
    return BYTE_ZERO != 0 ? ivec_xor(v, ivec_set1((int)0x80808080)) : v;
}

/* 16 bytes with 32 values of four bits: value i low, value i + 16 high. They are places in a list of values, or (NULL) the values. */
INLINE void unpack_nibbles(struct gguf_rows *rows, int at, const int8_t *values, int line, const struct gguf_to *to) {
    ivec v[4], part[4];
    take_words(rows, at, v);
    UNROLL
    for (int high = 0; high < 2; high++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
            part[i] = bits_at(v[i], 4 * high, 15);
            if (values) part[i] = look_up_values(values, part[i]);
        }
        put_lines(to, line + 4 * high, part);
    }
}

/* ... with a fifth bit each, in order, before them. */
INLINE void unpack_five_bits(struct gguf_rows *rows, int at, const struct gguf_to *to) {
    ivec v[4], part[4], fifth = gguf_word(rows, at, 0);
    take_words(rows, at + 4, v);
    UNROLL
    for (int high = 0; high < 2; high++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
            const int bits = i % 2 ? (int)0x80402010 : 0x08040201;
            part[i] =
                bytes_add_where(bits_at(v[i], 4 * high, 15), bytes_repeat(fifth, 2 * high + i / 2), bits, 0x10101010);
        }
        put_lines(to, 4 * high, part);
    }
}

INLINE void unpack_q4_0(struct gguf_rows *rows, const struct gguf_to *to) {
    unpack_halves(rows, false, to);
    unpack_nibbles(rows, 2, NULL, 0, to);
}

INLINE void unpack_q4_1(struct gguf_rows *rows, const struct gguf_to *to) {
    unpack_halves(rows, true, to);
    unpack_nibbles(rows, 4, NULL, 0, to);
}

INLINE void unpack_q5_0(struct gguf_rows *rows, const struct gguf_to *to) {
    unpack_halves(rows, false, to);
    unpack_five_bits(rows, 2, to);
}

INLINE void unpack_q5_1(struct gguf_rows *rows, const struct gguf_to *to) {
    unpack_halves(rows, true, to);
    unpack_five_bits(rows, 4, to);
}

INLINE void unpack_q8_0(struct gguf_rows *rows, const struct gguf_to *to) {
    unpack_halves(rows, false, to);
    UNROLL
    for (int half = 0; half < 2; half++) {
        ivec v[4];
        take_words(rows, 2 + half * 16, v);
        UNROLL
        for (int i = 0; BYTE_ZERO != 0 && i < 4; i++) v[i] = ivec_xor(v[i], ivec_set1((int)0x80808080));
        put_lines(to, half * 4, v);
    }
}

INLINE void unpack_iq4_nl(struct gguf_rows *rows, const struct gguf_to *to) {
    unpack_halves(rows, false, to);
    unpack_nibbles(rows, 2, gguf_iq4_values, 0, to);
}

/* ---- blocks of 256 ---- */

/* 32 bytes with a bit of every value: byte i has those of values i, i + 32, ... */
INLINE void take_bits(struct gguf_rows *rows, int at, ivec bits[8]) {
    take_words(rows, at, bits);
    take_words(rows, at + 16, bits + 4);
}

/* 64 bytes of two bits, 32 bytes for 128 values; `third` is NULL or has every value's third bit. */
INLINE void unpack_two_bits(struct gguf_rows *rows, int at, const ivec *third, const struct gguf_to *to) {
    UNROLL
    for (int unit = 0; unit < 4; unit++) {
        ivec v[4], part[4];
        take_words(rows, at + unit * 16, v);
        UNROLL
        for (int s = 0; s < 4; s++) {
            UNROLL
            for (int i = 0; i < 4; i++) {
                part[i] = bits_at(v[i], 2 * s, 3);
                if (third) part[i] = ivec_or(part[i], bits_at(third[unit % 2 * 4 + i], unit / 2 * 4 + s - 2, 4));
            }
            put_lines(to, unit / 2 * 32 + 8 * s + unit % 2 * 4, part);
        }
    }
}

INLINE void unpack_q2_k(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec v[4], head = gguf_word(rows, 68, 3);
    vec d = vec_from_f16_bits(head), minus = vec_negative(vec_from_f16_bits(ivec_shift_right(head, 16)));
    take_words(rows, 0, v);
    UNROLL
    for (int j = 0; j < 16; j++) {
        to->scale[j] = scale_of_byte(bits_at(v[j / 4], 0, 15), j % 4, 0, d);
        to->low[j] = scale_of_byte(bits_at(v[j / 4], 4, 15), j % 4, 0, minus);
    }
    unpack_two_bits(rows, 16, NULL, to);
}

INLINE void unpack_q3_k(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec v[4], third[8];
    vec d = gguf_last_half(rows, 108);
    take_words(rows, 92, v);
    UNROLL
    for (int i = 0; i < 4; i++) { /* four scales each */
        ivec low = bits_at(v[1 + i % 2], i / 2 * 4, 15), high = bits_at(v[3], 2 * i - 4, 0x30);
        UNROLL
        for (int j = 0; j < 4; j++) to->scale[4 * i + j] = scale_of_byte(ivec_or(low, high), j, 32, d);
    }
    take_bits(rows, 0, third);
    unpack_two_bits(rows, 32, third, to);
}

/* The 16 bytes that Q4_K and Q5_K begin with. */
INLINE void unpack_six_bits(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec v[4];
    take_words(rows, 0, v);
    vec d = vec_from_f16_bits(v[0]), minus = vec_negative(vec_from_f16_bits(ivec_shift_right(v[0], 16)));
    ivec scale[2] = {bits_at(v[1], 0, 63), ivec_or(bits_at(v[3], 0, 15), bits_at(v[1], 2, 0x30))};
    ivec low[2] = {bits_at(v[2], 0, 63), ivec_or(bits_at(v[3], 4, 15), bits_at(v[2], 2, 0x30))};
    UNROLL
    for (int j = 0; j < 8; j++) {
        to->scale[j] = scale_of_byte(scale[j / 4], j % 4, 0, d);
        to->low[j] = scale_of_byte(low[j / 4], j % 4, 0, minus);
    }
}

/* 128 bytes of four bits, 32 bytes for 64 values; `fifth` is NULL or has every value's fifth bit. */
INLINE void unpack_four_bits(struct gguf_rows *rows, int at, const ivec *fifth, const struct gguf_to *to) {
    UNROLL
    for (int unit = 0; unit < 8; unit++) {
        ivec v[4], part[4];
        take_words(rows, at + unit * 16, v);
        UNROLL
        for (int high = 0; high < 2; high++) {
            const int j = unit / 2 * 2 + high;
            UNROLL
            for (int i = 0; i < 4; i++) {
                part[i] = bits_at(v[i], 4 * high, 15);
                if (fifth) part[i] = ivec_or(part[i], bits_at(fifth[unit % 2 * 4 + i], j - 4, 16));
            }
            put_lines(to, 8 * j + unit % 2 * 4, part);
        }
    }
}

INLINE void unpack_q4_k(struct gguf_rows *rows, const struct gguf_to *to) {
    unpack_six_bits(rows, to);
    unpack_four_bits(rows, 16, NULL, to);
}

INLINE void unpack_q5_k(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec fifth[8];
    unpack_six_bits(rows, to);
    take_bits(rows, 16, fifth);
    unpack_four_bits(rows, 48, fifth, to);
}

/* Half of Q6_K's values: 64 bytes of low bits, 32 of high ones. */
INLINE void unpack_q6_k_half(struct gguf_rows *rows, int half, const struct gguf_to *to) {
    ivec two[8];
    take_bits(rows, 128 + 32 * half, two);
    UNROLL
    for (int unit = 0; unit < 4; unit++) {
        ivec v[4], part[4];
        take_words(rows, 64 * half + unit * 16, v);
        UNROLL
        for (int high = 0; high < 2; high++) {
            UNROLL
            for (int i = 0; i < 4; i++) {
                ivec above = bits_at(two[unit % 2 * 4 + i], 4 * high + unit / 2 * 2 - 4, 0x30);
                part[i] = ivec_or(bits_at(v[i], 4 * high, 15), above);
            }
            put_lines(to, 32 * half + 16 * high + 4 * unit, part);
        }
    }
}

INLINE void unpack_q6_k(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec v[4];
    vec d = gguf_last_half(rows, 208);
    take_words(rows, 192, v);
    UNROLL
    for (int j = 0; j < 16; j++) {
        ivec byte = ivec_shift_right_signed(ivec_shift_left(v[j / 4], 24 - j % 4 * 8), 24);
        to->scale[j] = vec_mul(d, vec_from_int(byte));
    }
    KEEP_LOOP
    for (int half = 0; half < 2; half++) unpack_q6_k_half(rows, half, to);
}

INLINE void unpack_iq4_xs(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec v[4];
    take_words(rows, 0, v);
    vec d = vec_from_f16_bits(v[0]);
    UNROLL
    for (int j = 0; j < 8; j++) {
        ivec low = ivec_and(ivec_shift_right(v[1], 4 * j), ivec_set1(15));
        ivec high = ivec_and(ivec_shift_right(v[0], 16 + 2 * j), ivec_set1(3));
        ivec scale = ivec_sub(ivec_or(low, ivec_shift_left(high, 4)), ivec_set1(32));
        to->scale[j] = vec_mul(d, vec_from_int(scale));
    }
    KEEP_LOOP
    for (int j = 0; j < 8; j++) unpack_nibbles(rows, 8 + 16 * j, gguf_iq4_values, 8 * j, to);
}

/* ---- a step: `blocks` of them, one after another; each format twice ---- */

INLINE void unpack_step(void (*unpack)(struct gguf_rows *rows, const struct gguf_to *to), int values, int bytes,
                        struct gguf_rows *rows, struct gguf_to to, int blocks) {
    struct gguf_rows at = *rows; /* whose fields no store can change */
    const int step = at.pitch ? bytes : bytes / 4 * BLOCK_LINE;
    KEEP_LOOP
    for (int i = 0; i < blocks; i++, at.p += step, at.halves += TURN_ROWS * 2) {
        unpack(&at, &to);
        if (to.lines) to.lines += values / 4;
        to.scale += values / to.sub;
        to.low += values / to.sub;
        to.q += values;
        to.sum += values / to.sub;
    }
    rows->ask = at.ask;
    rows->asks = at.asks;
}

#define GGUF_UNPACK(NAME, KIND, SUB, VALUES, BYTES)                                                                    \
    static void NAME##_lines(struct gguf_rows *rows, struct gguf_panel *panel, int blocks) {                           \
        struct gguf_to to = {                                                                                          \
            .lines = panel->lines, .scale = panel->scale, .low = panel->low, .kind = KIND, .sub = SUB};                \
        unpack_step(unpack_##NAME, VALUES, BYTES, rows, to, blocks);                                                   \
    }                                                                                                                  \
    static void NAME##_sums(struct gguf_rows *rows, struct gguf_panel *panel, int blocks, const int8_t *q) {           \
        struct gguf_to to = {NULL, panel->scale, panel->low, q, panel->lines, KIND, SUB};                              \
        unpack_step(unpack_##NAME, VALUES, BYTES, rows, to, blocks);                                                   \
    }
GGUF_UNPACK(q4_0, GGUF_5_BITS, 32, 32, 18)
GGUF_UNPACK(q4_1, GGUF_5_BITS, 32, 32, 20)
GGUF_UNPACK(q5_0, GGUF_5_BITS, 32, 32, 22)
GGUF_UNPACK(q5_1, GGUF_5_BITS, 32, 32, 24)
GGUF_UNPACK(q8_0, GGUF_8_BITS, 32, 32, 34)
GGUF_UNPACK(q2_k, GGUF_5_BITS, 16, 256, 84)
GGUF_UNPACK(q3_k, GGUF_5_BITS, 16, 256, 110)
GGUF_UNPACK(q4_k, GGUF_5_BITS, 32, 256, 144)
GGUF_UNPACK(q5_k, GGUF_5_BITS, 32, 256, 176)
GGUF_UNPACK(q6_k, GGUF_6_BITS, 16, 256, 210)
GGUF_UNPACK(iq4_nl, GGUF_8_BITS, 32, 32, 18)
GGUF_UNPACK(iq4_xs, GGUF_8_BITS, 32, 256, 136)
