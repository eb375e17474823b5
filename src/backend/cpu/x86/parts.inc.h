/* backend/cpu/x86/parts.inc.h - floats cut into parts of bf16 (kern.h, "parts"), packed as tiles want them; included after
 * the vector words of AVX-512 and the tiles'. A step is 32 k: the 64 bytes of a tile's row. */
enum { STEP = 32, TILE_SIZE = TILE_ROWS * TILE_BYTES };

enum part_rounding { ROUND_DOWN = 0, ROUND_NEAREST = 0x8000 };

/* The upper halves of 2 * VL numbers' bits, in order. */
INLINE ivec upper_halves(ivec a, ivec b) {
    const ivec lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const ivec odd = ivec_add(_mm512_mullo_epi32(lane, ivec_set1(0x00040004)), ivec_set1(0x00030001));
    return _mm512_permutex2var_epi16(a, odd, b);
}

/* The next part of a step, as bf16; it is taken off what is left. */
INLINE ivec take_part(struct vec2 *left, enum part_rounding rounding) {
    const ivec upper = ivec_set1((int)0xffff0000), half = ivec_set1((int)rounding);
    ivec a = ivec_and(ivec_add(vec_bits(left->a), half), upper);
    ivec b = ivec_and(ivec_add(vec_bits(left->b), half), upper);
    left->a = vec_sub(left->a, vec_from_bits(a));
    left->b = vec_sub(left->b, vec_from_bits(b));
    return upper_halves(a, b);
}

/* The first `count` of a step (none if it is negative), the rest 0. */
INLINE struct vec2 load_step(const float *x, int count) {
    if (count >= STEP) return (struct vec2){vec_load(x), vec_load(x + VL)};
    return (struct vec2){vec_load_part(x, count), vec_load_part(x + VL, count - VL)};
}

/* 16 x 16 words turned over: word j of v[i] becomes word i of v[j]. */
INLINE void turn(ivec *v) {
    ivec a[16], b[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) { /* of each four words, b[i + j] has the j-th of rows i to i + 3 */
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL
    for (int j = 0; j < 4; j++) {
        ivec low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x44), high = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xee);
        ivec low2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x44),
             high2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xee);
        v[j] = _mm512_shuffle_i32x4(low, low2, 0x88);
        v[4 + j] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        v[8 + j] = _mm512_shuffle_i32x4(high, high2, 0x88);
        v[12 + j] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
}

/* A step of n rows of numbers as the columns of B tiles, one a part, `pitch` bytes apart. Missing rows are 0. */
INLINE void pack_columns(int parts, enum part_rounding rounding, const float *const *rows, int n, int at, int count,
                         uint8_t *out, size_t pitch) {
    ivec column[3][TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; i++) {
        struct vec2 left = i < n ? load_step(rows[i] + at, count) : (struct vec2){vec_zero(), vec_zero()};
        UNROLL
        for (int p = 0; p < parts; p++) column[p][i] = take_part(&left, rounding);
    }
    for (int p = 0; p < parts; p++) {
        turn(column[p]);
        for (int i = 0; i < TILE_ROWS; i++) ivec_store(out + (size_t)p * pitch + i * TILE_BYTES, column[p][i]);
    }
}

/* A step of n rows of numbers as the rows of two A tiles, one after the other. */
INLINE void pack_rows(const float *x, size_t stride, int n, int count, uint8_t *out) {
    for (int i = 0; i < TILE_ROWS; i++, out += TILE_BYTES) {
        struct vec2 left = i < n ? load_step(x + (size_t)i * stride, count) : (struct vec2){vec_zero(), vec_zero()};
        ivec_store(out, take_part(&left, ROUND_NEAREST));
        ivec_store(out + TILE_SIZE, take_part(&left, ROUND_NEAREST));
    }
}

/* Two rows of 16 numbers as a row of two B tiles, `pitch` bytes apart. */
INLINE void pack_pairs(vec even, vec odd, uint8_t *out, size_t pitch) {
    const ivec upper = ivec_set1((int)0xffff0000), half = ivec_set1(ROUND_NEAREST);
    UNROLL
    for (int p = 0; p < 2; p++) {
        ivec a = ivec_and(ivec_add(vec_bits(even), half), upper), b = ivec_and(ivec_add(vec_bits(odd), half), upper);
        even = vec_sub(even, vec_from_bits(a));
        odd = vec_sub(odd, vec_from_bits(b));
        ivec_store(out + (size_t)p * pitch, _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
    }
}
