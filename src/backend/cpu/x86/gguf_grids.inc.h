/* backend/cpu/x86/gguf_grids.inc.h - as gguf_unpack.inc.h, which is included before: GGUF's blocks whose values come in groups out of
 * a grid, and the ternary ones. A look-up brings each row's next eight values (IQ3: four) as places in a list of 16; signs move a
 * place to the list's second half, and the list holds what the product wants. */

/* `count` bits of each lane from bit `from` on, at bit `to`. */
INLINE ivec bits_moved(ivec v, int from, int count, int to) {
    const int mask = (int)(((1u << count) - 1) << to);
    if (from == to) return ivec_and(v, ivec_set1(mask));
    return ivec_and(from > to ? ivec_shift_right(v, from - to) : ivec_shift_left(v, to - from), ivec_set1(mask));
}

/* Odd numbers: (2 * field + 1) * d. */
INLINE vec odd_scale(ivec v, int from, int count, vec d) {
    ivec odd = from ? bits_moved(v, from, count, 1) : bits_moved(v, 0, count, 1);
    return vec_mul(d, vec_from_int(ivec_or(odd, ivec_set1(1))));
}

/* The fp16 number in the low half of each lane, times a power of two. */
INLINE vec half_times(ivec v, float power) {
    return vec_mul(vec_from_f16_bits(v), vec_set1(power));
}

/* Eight values of each row as two words. */
INLINE void take_eight(const uint32_t *grid, ivec index, ivec out[2]) {
    const ivec v = ivec_look_up(grid, index);
    out[0] = bits_at(v, 0, 15);
    out[1] = bits_at(v, 4, 15);
}

/* Four times seven bits become four bytes whose eighth bit makes their bits' number even. */
INLINE ivec even_signs(ivec seven) {
    static const int8_t odd[16] = {0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0};
    ivec folded = bits_at(ivec_xor(seven, ivec_shift_right(seven, 4)), 0, 15);
    return ivec_or(seven, bytes_look_up(odd, folded));
}

/* A word that begins with four times seven signs. */
INLINE ivec signs_of_word(ivec v) {
    ivec low = ivec_or(bits_moved(v, 0, 7, 0), bits_moved(v, 7, 7, 8));
    ivec high = ivec_or(bits_moved(v, 14, 7, 16), bits_moved(v, 21, 7, 24));
    return even_signs(ivec_or(low, high));
}

/* 16 values: places without signs in v [4], signs in bytes `byte` and `byte` + 1 of each lane. */
INLINE void put_signed(const struct gguf_to *to, int line, const int8_t *values, ivec v[4], ivec signs, int byte) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        const int bits = i % 2 ? (int)0x80402010 : 0x08040201;
        v[i] = look_up_values(values, bytes_add_where(v[i], bytes_repeat(signs, byte + i / 2), bits, 0x08080808));
    }
    put_lines(to, line, v);
}

/* ---- IQ2 ---- */

INLINE void unpack_iq2_xxs(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.125f);
    KEEP_LOOP
    for (int pair = 0; pair < 4; pair++) { /* of 32 values */
        ivec v[4], part[4];
        take_words(rows, 2 + 16 * pair, v);
        UNROLL
        for (int half = 0; half < 2; half++) {
            const ivec index = v[2 * half], signs = signs_of_word(v[2 * half + 1]);
            to->scale[2 * pair + half] = odd_scale(v[2 * half + 1], 28, 4, d);
            UNROLL
            for (int i = 0; i < 4; i++) {
                take_eight(gguf_iq2_xxs_grid, bits_moved(index, 8 * i, 8, 0), part + i % 2 * 2);
                if (i % 2) put_signed(to, 16 * pair + 8 * half + 2 * i - 2, gguf_iq2_values, part, signs, i - 1);
            }
        }
    }
}

INLINE void unpack_iq2_xs(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.125f);
    ivec scales[4];
    take_words(rows, 58, scales);
    UNROLL
    for (int j = 0; j < 16; j++) to->scale[j] = odd_scale(scales[2 + j / 8], j % 8 * 4, 4, d);
    KEEP_LOOP
    for (int pair = 0; pair < 4; pair++) {
        ivec v[4], part[4];
        take_words(rows, 2 + 16 * pair, v);
        UNROLL
        for (int half = 0; half < 2; half++) {
            const ivec *word = v + 2 * half;
            ivec low = ivec_or(bits_moved(word[0], 9, 7, 0), bits_moved(word[0], 25, 7, 8));
            ivec signs = ivec_or(low, ivec_or(bits_moved(word[1], 9, 7, 16), bits_moved(word[1], 25, 7, 24)));
            signs = even_signs(signs);
            UNROLL
            for (int i = 0; i < 4; i++) {
                take_eight(gguf_iq2_xs_grid, bits_moved(word[i / 2], i % 2 * 16, 9, 0), part + i % 2 * 2);
                if (i % 2) put_signed(to, 16 * pair + 8 * half + 2 * i - 2, gguf_iq2_values, part, signs, i - 1);
            }
        }
    }
}

/* 128 values: 16 low bytes of indices in v, their high bits two a byte... in the low or the high half of `high`'s 64 bits. */
INLINE void unpack_iq2_s_half(struct gguf_rows *rows, int half, ivec high, const struct gguf_to *to) {
    ivec low[4], signs[4], part[4];
    take_words(rows, 2 + 16 * half, low);
    take_words(rows, 34 + 16 * half, signs);
    UNROLL
    for (int i = 0; i < 16; i++) {
        ivec index = ivec_or(bits_moved(low[i / 4], i % 4 * 8, 8, 0), bits_moved(high, 2 * i, 2, 8));
        take_eight(gguf_iq2_s_grid, index, part + i % 2 * 2);
        if (i % 2) put_signed(to, 32 * half + 2 * i - 2, gguf_iq2_values, part, signs[i / 4], i % 4 - 1);
    }
}

INLINE void unpack_iq2_s(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.125f);
    ivec v[4];
    take_words(rows, 66, v);
    UNROLL
    for (int j = 0; j < 16; j++) to->scale[j] = odd_scale(v[2 + j / 8], j % 8 * 4, 4, d);
    KEEP_LOOP
    for (int half = 0; half < 2; half++) unpack_iq2_s_half(rows, half, v[half], to);
}

/* ---- IQ3: two indices for eight values ---- */

INLINE void unpack_iq3_xxs(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.25f);
    ivec words[8];
    take_bits(rows, 66, words);
    KEEP_LOOP
    for (int pair = 0; pair < 4; pair++) {
        ivec v[4], part[4];
        take_words(rows, 2 + 16 * pair, v);
        UNROLL
        for (int half = 0; half < 2; half++) {
            const ivec word = words[2 * pair + half], signs = signs_of_word(word);
            to->scale[2 * pair + half] = odd_scale(word, 28, 4, d);
            UNROLL
            for (int i = 0; i < 8; i++) {
                part[i % 4] = ivec_look_up(gguf_iq3_xxs_grid, bits_moved(v[2 * half + i / 4], i % 4 * 8, 8, 0));
                if (i % 4 == 3) put_signed(to, 16 * pair + 8 * half + i - 3, gguf_iq3_xxs_values, part, signs, i / 4 * 2);
            }
        }
    }
}

INLINE void unpack_iq3_s(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = vec_from_f16_bits(gguf_word(rows, 0, 0));
    const ivec scales = gguf_word(rows, 94, 3);
    ivec high[4], signs[8];
    take_words(rows, 66, high);
    take_bits(rows, 74, signs);
    UNROLL
    for (int j = 0; j < 8; j++) to->scale[j] = odd_scale(scales, 4 * j, 4, d);
    KEEP_LOOP
    for (int pair = 0; pair < 4; pair++) {
        ivec v[4], part[4], above = pair & 1 ? ivec_shift_right(high[pair / 2], 16) : high[pair / 2];
        take_words(rows, 2 + 16 * pair, v);
        UNROLL
        for (int i = 0; i < 16; i++) {
            ivec index = ivec_or(bits_moved(v[i / 4], i % 4 * 8, 8, 0), bits_moved(above, i, 1, 8));
            part[i % 4] = ivec_look_up(gguf_iq3_s_grid, index);
            if (i % 4 == 3)
                put_signed(to, 16 * pair + i - 3, gguf_iq3_s_values, part, signs[2 * pair + i / 8], i / 4 % 2 * 2);
        }
    }
}

/* ---- IQ1: an eighth more or less is one of an eighth's eightfold ---- */

enum { IQ1_ZERO = 9 };

/* Eight values: 8 * (0, 1 or 2), and 2 more where the bit `less` of `signs` is not set: q + IQ1_ZERO. */
INLINE void put_eighths(ivec index, ivec signs, int less, ivec out[2]) {
    const ivec v = ivec_look_up(gguf_iq1_grid, index);
    const ivec is_more = ivec_sub(bits_moved(signs, less, 1, 0), ivec_set1(1));
    const ivec more = ivec_and(is_more, ivec_set1(0x02020202));
    out[0] = ivec_or(ivec_shift_left(bits_at(v, 0, 3), 3), more);
    out[1] = ivec_or(bits_at(v, 1, 0x18), more);
}

INLINE void unpack_iq1_s(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.125f);
    ivec high[4];
    take_words(rows, 34, high);
    KEEP_LOOP
    for (int half = 0; half < 2; half++) {
        ivec v[4], part[4];
        take_words(rows, 2 + 16 * half, v);
        UNROLL
        for (int j = 0; j < 4; j++) { /* 32 values each */
            const ivec word = high[2 * half + j / 2];
            const int at = j % 2 * 16;
            to->scale[4 * half + j] = odd_scale(word, at + 12, 3, d);
            UNROLL
            for (int i = 0; i < 4; i++) {
                ivec index = ivec_or(bits_moved(v[j], 8 * i, 8, 0), bits_moved(word, at + 3 * i, 3, 8));
                put_eighths(index, word, at + 15, part + i % 2 * 2);
                if (i % 2) put_lines(to, 32 * half + 8 * j + 2 * i - 2, part);
            }
        }
    }
}

INLINE void unpack_iq1_m(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec high[4], scales[4];
    take_words(rows, 32, high);
    take_words(rows, 40, scales);
    ivec low_half = ivec_or(bits_moved(scales[2], 12, 4, 0), bits_moved(scales[2], 28, 4, 4));
    ivec high_half = ivec_or(bits_moved(scales[3], 12, 4, 8), bits_moved(scales[3], 28, 4, 12));
    const vec d = half_times(ivec_or(low_half, high_half), 0.125f);
    UNROLL
    for (int j = 0; j < 16; j++) to->scale[j] = odd_scale(scales[2 + j / 8], j % 8 / 4 * 16 + j % 4 * 3, 3, d);
    KEEP_LOOP
    for (int half = 0; half < 2; half++) {
        ivec v[4], part[4];
        take_words(rows, 16 * half, v);
        UNROLL
        for (int i = 0; i < 16; i++) {
            const ivec word = high[2 * half + i / 8];
            const int at = i % 8 * 4;
            ivec index = ivec_or(bits_moved(v[i / 4], i % 4 * 8, 8, 0), bits_moved(word, at, 3, 8));
            put_eighths(index, word, at + 3, part + i % 2 * 2);
            if (i % 2) put_lines(to, 32 * half + 2 * i - 2, part);
        }
    }
}

/* ---- -1, 0 and 1 alone: one d for the block ---- */

INLINE void put_one_scale(vec d, const struct gguf_to *to) {
    UNROLL
    for (int j = 0; j < 8; j++) to->scale[j] = d;
}

INLINE void unpack_tq2_0(struct gguf_rows *rows, const struct gguf_to *to) {
    put_one_scale(vec_from_f16_bits(ivec_shift_right(gguf_word(rows, 50, 3), 16)), to);
    unpack_two_bits(rows, 0, NULL, to);
}

/* The next base-3 digit of every byte. Bytes are kept as two sets in halves of 16 bits: three times one is the digit and what is left. */
INLINE ivec next_digits(ivec *even, ivec *odd) {
    ivec e = ivec_add(*even, ivec_add(*even, *even)), o = ivec_add(*odd, ivec_add(*odd, *odd));
    *even = ivec_and(e, ivec_set1(0x00ff00ff));
    *odd = ivec_and(o, ivec_set1(0x00ff00ff));
    return ivec_or(ivec_and(ivec_shift_right(e, 8), ivec_set1(0x00ff00ff)), ivec_and(o, ivec_set1((int)0xff00ff00)));
}

/* 16 bytes of five digits each; `step` lines from a digit to the next. */
INLINE void unpack_digits(struct gguf_rows *rows, int at, int line, int step, const struct gguf_to *to) {
    ivec v[4], even[4], odd[4], part[4];
    take_words(rows, at, v);
    UNROLL
    for (int i = 0; i < 4; i++) {
        even[i] = ivec_and(v[i], ivec_set1(0x00ff00ff));
        odd[i] = ivec_and(ivec_shift_right(v[i], 8), ivec_set1(0x00ff00ff));
    }
    UNROLL
    for (int digit = 0; digit < 5; digit++) {
        UNROLL
        for (int i = 0; i < 4; i++) part[i] = next_digits(&even[i], &odd[i]);
        put_lines(to, line + digit * step, part);
    }
}

INLINE void unpack_tq1_0(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec v[4], part[4];
    take_words(rows, 38, v);
    put_one_scale(vec_from_f16_bits(ivec_shift_right(v[3], 16)), to);
    unpack_digits(rows, 0, 0, 8, to);
    unpack_digits(rows, 16, 4, 8, to);
    unpack_digits(rows, 32, 40, 4, to);
    ivec last = ivec_or(ivec_shift_right(v[2], 16), ivec_shift_left(v[3], 16)); /* bytes 48 to 51 */
    ivec even = ivec_and(last, ivec_set1(0x00ff00ff)), odd = ivec_and(ivec_shift_right(last, 8), ivec_set1(0x00ff00ff));
    UNROLL
    for (int i = 0; i < 4; i++) part[i] = next_digits(&even, &odd);
    put_lines(to, 60, part);
}

/* 2^(e - 128), e the lowest byte, in two factors that are normal numbers both. */
INLINE vec power_of_byte(ivec v) {
    ivec e = bits_moved(v, 0, 8, 0), half = ivec_shift_right(e, 1), bias = ivec_set1(63);
    vec first = vec_from_bits(ivec_shift_left(ivec_add(half, bias), 23));
    return vec_mul(first, vec_from_bits(ivec_shift_left(ivec_add(ivec_sub(e, half), bias), 23)));
}

INLINE void unpack_mxfp4(struct gguf_rows *rows, const struct gguf_to *to) {
    *to->scale = power_of_byte(gguf_word(rows, 0, 0));
    unpack_nibbles(rows, 1, gguf_mxfp4_values, 0, to);
}

GGUF_UNPACK(iq1_s, GGUF_5_BITS, 32, 256, 50)
GGUF_UNPACK(iq1_m, GGUF_5_BITS, 16, 256, 56)
GGUF_UNPACK(iq2_xxs, GGUF_8_BITS, 32, 256, 66)
GGUF_UNPACK(iq2_xs, GGUF_8_BITS, 16, 256, 74)
GGUF_UNPACK(iq2_s, GGUF_8_BITS, 16, 256, 82)
GGUF_UNPACK(iq3_xxs, GGUF_8_BITS, 32, 256, 98)
GGUF_UNPACK(iq3_s, GGUF_8_BITS, 32, 256, 110)
GGUF_UNPACK(tq1_0, GGUF_5_BITS, 32, 256, 54)
GGUF_UNPACK(tq2_0, GGUF_5_BITS, 32, 256, 66)
GGUF_UNPACK(mxfp4, GGUF_8_BITS, 32, 32, 17)
