/* backend/cpu/x86/gguf_grids.inc.h - as gguf_unpack.inc.h, which is included before: GGUF's blocks whose values come in groups out of
 * a grid, and the ternary ones. A look-up brings eight values (IQ3: four) of each row as places in a list of 16; signs move a place to
 * the list's second half, and the list holds what the product wants. */

/* `count` bits of each lane from bit `from` on, at bit `to`. */
INLINE ivec bits_moved(ivec v, int from, int count, int to) {
    const int mask = (int)(((1u << count) - 1) << to);
    if (from == to) return ivec_and(v, ivec_set1(mask));
    return ivec_and(from > to ? ivec_shift_right(v, from - to) : ivec_shift_left(v, to - from), ivec_set1(mask));
}

/* 2 * field + 1, times d. */
INLINE vec odd_scale(ivec v, int from, int count, vec d) {
    return vec_mul(d, vec_from_int(ivec_or(bits_moved(v, from, count, 1), ivec_set1(1))));
}

/* The fp16 number in the low half of each lane, times a power of two. */
INLINE vec half_times(ivec v, float power) {
    return vec_mul(vec_from_f16_bits(v), vec_set1(power));
}

/* The entries of two indices, in each lane's halves, as bytes of nibbles. */
INLINE void take_two(const uint16_t *grid, int entries, ivec indices, ivec out[2]) {
    halves_look_up(grid, entries, indices, out);
    UNROLL
    for (int i = 0; i < 2; i++) out[i] = bits_at(ivec_or(out[i], ivec_shift_left(out[i], 12)), 0, 15);
}

/* The entries of four indices: their low bytes are those of `low`, what is above lies in the high bytes of the halves of `even` (of
 * indices 0 and 2) and `odd` (1 and 3). */
INLINE void take_four(const uint16_t *grid, int entries, ivec low, ivec even, ivec odd, ivec out[4]) {
    const ivec bytes = ivec_set1(0x00ff00ff);
    ivec of_even[2], of_odd[2];
    take_two(grid, entries, ivec_or(ivec_and(low, bytes), even), of_even);
    take_two(grid, entries, ivec_or(ivec_and(ivec_shift_right(low, 8), bytes), odd), of_odd);
    UNROLL
    for (int i = 0; i < 4; i++) out[i] = (i % 2 ? of_odd : of_even)[i / 2];
}

/* Twice eight values from two entries: places in the list. */
INLINE void split_entries(const ivec entry[2], ivec out[4]) {
    UNROLL
    for (int i = 0; i < 4; i++) out[i] = bits_at(entry[i / 2], i % 2 * 2, 3);
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

/* 32 values: four entries of eight, and their signs a byte each. */
INLINE void put_iq2(const struct gguf_to *to, int line, const ivec entry[4], ivec signs) {
    ivec part[4];
    UNROLL
    for (int half = 0; half < 2; half++) {
        split_entries(entry + 2 * half, part);
        put_signed(to, line + 4 * half, gguf_iq2_values, part, signs, 2 * half);
    }
}

/* ---- IQ2 ---- */

INLINE void unpack_iq2_xxs(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.125f);
    KEEP_LOOP
    for (int pair = 0; pair < 4; pair++) { /* of 32 values */
        ivec v[4], entry[4];
        take_words(rows, 2 + 16 * pair, v);
        UNROLL
        for (int half = 0; half < 2; half++) {
            to->scale[2 * pair + half] = odd_scale(v[2 * half + 1], 28, 4, d);
            take_four(gguf_iq2_xxs_grid, 256, v[2 * half], ivec_zero(), ivec_zero(), entry);
            put_iq2(to, 16 * pair + 8 * half, entry, signs_of_word(v[2 * half + 1]));
        }
    }
}

/* Two words of two numbers each: nine bits of index, seven signs. */
INLINE void unpack_iq2_xs_32(const ivec word[2], int line, const struct gguf_to *to) {
    ivec entry[4], signs = ivec_zero();
    UNROLL
    for (int i = 0; i < 2; i++) {
        take_two(gguf_iq2_xs_grid, 512, ivec_and(word[i], ivec_set1(0x01ff01ff)), entry + 2 * i);
        signs = ivec_or(signs, ivec_or(bits_moved(word[i], 9, 7, 16 * i), bits_moved(word[i], 25, 7, 16 * i + 8)));
    }
    put_iq2(to, line, entry, even_signs(signs));
}

INLINE void unpack_iq2_xs(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.125f);
    ivec scales[4];
    take_words(rows, 58, scales);
    UNROLL
    for (int j = 0; j < 16; j++) to->scale[j] = odd_scale(scales[2 + j / 8], j % 8 * 4, 4, d);
    KEEP_LOOP
    for (int pair = 0; pair < 4; pair++) {
        ivec v[4];
        take_words(rows, 2 + 16 * pair, v);
        unpack_iq2_xs_32(v, 16 * pair, to);
        unpack_iq2_xs_32(v + 2, 16 * pair + 8, to);
    }
}

INLINE void unpack_iq2_s(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.125f);
    ivec v[4];
    take_words(rows, 66, v);
    UNROLL
    for (int j = 0; j < 16; j++) to->scale[j] = odd_scale(v[2 + j / 8], j % 8 * 4, 4, d);
    KEEP_LOOP
    for (int half = 0; half < 2; half++) {
        ivec low[4], signs[4], entry[4];
        take_words(rows, 2 + 16 * half, low);
        take_words(rows, 34 + 16 * half, signs);
        UNROLL
        for (int j = 0; j < 4; j++) { /* 32 values each, with a byte of the high bits */
            const int at = 8 * j;
            ivec even = ivec_or(bits_moved(v[half], at, 2, 8), bits_moved(v[half], at + 4, 2, 24));
            ivec odd = ivec_or(bits_moved(v[half], at + 2, 2, 8), bits_moved(v[half], at + 6, 2, 24));
            take_four(gguf_iq2_s_grid, 1024, low[j], even, odd, entry);
            put_iq2(to, 32 * half + 8 * j, entry, signs[j]);
        }
    }
}

/* ---- IQ3: two entries for eight values ---- */

INLINE void unpack_iq3_xxs(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.25f);
    ivec words[8];
    take_bits(rows, 66, words);
    KEEP_LOOP
    for (int pair = 0; pair < 4; pair++) { /* of 32 values */
        ivec v[4], part[4];
        take_words(rows, 2 + 16 * pair, v);
        UNROLL
        for (int half = 0; half < 2; half++) {
            const ivec word = words[2 * pair + half], signs = signs_of_word(word);
            to->scale[2 * pair + half] = odd_scale(word, 28, 4, d);
            UNROLL
            for (int i = 0; i < 2; i++) {
                take_four(gguf_iq3_xxs_grid, 256, v[2 * half + i], ivec_zero(), ivec_zero(), part);
                put_signed(to, 16 * pair + 8 * half + 4 * i, gguf_iq3_xxs_values, part, signs, 2 * i);
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
        for (int i = 0; i < 4; i++) { /* 16 values each, with four of the high bits */
            ivec even = ivec_or(bits_moved(above, 4 * i, 1, 8), bits_moved(above, 4 * i + 2, 1, 24));
            ivec odd = ivec_or(bits_moved(above, 4 * i + 1, 1, 8), bits_moved(above, 4 * i + 3, 1, 24));
            take_four(gguf_iq3_s_grid, 512, v[i], even, odd, part);
            put_signed(to, 16 * pair + 4 * i, gguf_iq3_s_values, part, signs[2 * pair + i / 2], i % 2 * 2);
        }
    }
}

/* ---- IQ1: an eighth more or less is one of an eighth's eightfold ---- */

enum { IQ1_ZERO = 9 };

/* Where bit `less` of a lane is not set, 2 in every byte. */
INLINE ivec two_unless(ivec v, int less) {
    return ivec_and(ivec_sub(bits_moved(v, less, 1, 0), ivec_set1(1)), ivec_set1(0x02020202));
}

/* 16 values from two entries: 8 * (0, 1 or 2), and `more` of each entry: q + IQ1_ZERO. */
INLINE void put_eighths(const struct gguf_to *to, int line, const ivec entry[2], ivec more0, ivec more1) {
    ivec part[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        ivec eighths = bits_at(entry[i / 2], i % 2 ? -1 : -3, 0x18);
        part[i] = ivec_or(eighths, i < 2 ? more0 : more1);
    }
    put_lines(to, line, part);
}

INLINE void unpack_iq1_s(struct gguf_rows *rows, const struct gguf_to *to) {
    const vec d = half_times(gguf_word(rows, 0, 0), 0.125f);
    ivec high[4];
    take_words(rows, 34, high);
    KEEP_LOOP
    for (int half = 0; half < 2; half++) {
        ivec v[4], entry[4];
        take_words(rows, 2 + 16 * half, v);
        UNROLL
        for (int j = 0; j < 4; j++) { /* 32 values each */
            const ivec word = high[2 * half + j / 2];
            const int at = j % 2 * 16, line = 32 * half + 8 * j;
            const ivec more = two_unless(word, at + 15);
            to->scale[4 * half + j] = odd_scale(word, at + 12, 3, d);
            ivec even = ivec_or(bits_moved(word, at, 3, 8), bits_moved(word, at + 6, 3, 24));
            ivec odd = ivec_or(bits_moved(word, at + 3, 3, 8), bits_moved(word, at + 9, 3, 24));
            take_four(gguf_iq1_grid, 2048, v[j], even, odd, entry);
            put_eighths(to, line, entry, more, more);
            put_eighths(to, line + 4, entry + 2, more, more);
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
        ivec v[4], entry[4];
        take_words(rows, 16 * half, v);
        UNROLL
        for (int j = 0; j < 4; j++) { /* 32 values each, with four nibbles */
            const ivec word = high[2 * half + j / 2];
            const int at = j % 2 * 16, line = 32 * half + 8 * j;
            ivec even = ivec_or(bits_moved(word, at, 3, 8), bits_moved(word, at + 8, 3, 24));
            ivec odd = ivec_or(bits_moved(word, at + 4, 3, 8), bits_moved(word, at + 12, 3, 24));
            take_four(gguf_iq1_grid, 2048, v[j], even, odd, entry);
            put_eighths(to, line, entry, two_unless(word, at + 3), two_unless(word, at + 7));
            put_eighths(to, line + 4, entry + 2, two_unless(word, at + 11), two_unless(word, at + 15));
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
