/* backend/cpu/x86/vec_avx2.inc.h - the vector words that the kernel templates are written in, for AVX2 with
 * FMA, F16C and BMI2. vec_avx512.inc.h says the same words in AVX-512: keep the two in step.
 * A "part" is the first n of VL values; the rest reads as 0 and is never touched in memory. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "model/format.h"

#define INLINE static inline __attribute__((always_inline, unused))
#include "backend/cpu/x86/unroll.inc.h"

#define VL 8
#define TILE_TOKENS 3 /* 4 rows x 3 tokens = 12 of 16 registers */
#define SUM_VECS 2    /* weighted_sum: 4 rows x 2 registers */
#define DOT_ROWS 4    /* rows that one token takes at once: 8 accumulators */

typedef __m256 vec;
typedef __m256i ivec;

struct vec2 {
    vec a, b;
};

INLINE ivec part8(int n) {
    static const int32_t ramp[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    int clipped = n < 0 ? 0 : n > 8 ? 8 : n;
    return _mm256_loadu_si256((const void *)(ramp + 8 - clipped));
}

INLINE void ask_for(const void *p) {
    _mm_prefetch(p, _MM_HINT_T1);
}

INLINE vec vec_zero(void) {
    return _mm256_setzero_ps();
}

INLINE vec vec_set1(float value) {
    return _mm256_set1_ps(value);
}

INLINE vec vec_load(const float *p) {
    return _mm256_loadu_ps(p);
}

INLINE vec vec_load_f16(const void *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

INLINE vec vec_load_part(const float *p, int n) {
    return _mm256_maskload_ps(p, part8(n));
}

INLINE void vec_store(float *p, vec v) {
    _mm256_storeu_ps(p, v);
}

INLINE void vec_store_part(float *p, vec v, int n) {
    _mm256_maskstore_ps(p, part8(n), v);
}

INLINE vec vec_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}

INLINE vec vec_add(vec a, vec b) {
    return _mm256_add_ps(a, b);
}

INLINE vec vec_sub(vec a, vec b) {
    return _mm256_sub_ps(a, b);
}

INLINE vec vec_mul(vec a, vec b) {
    return _mm256_mul_ps(a, b);
}

INLINE vec vec_div(vec a, vec b) {
    return _mm256_div_ps(a, b);
}

/* b where either is NaN. */
INLINE vec vec_max(vec a, vec b) {
    return _mm256_max_ps(a, b);
}

INLINE vec vec_min(vec a, vec b) {
    return _mm256_min_ps(a, b);
}

/* Of numbers, not NaN; 0 or -0 where both are the largest. */
INLINE float vec_hmax(vec v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

INLINE vec vec_round(vec v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* v where x >= limit or is NaN, else 0. */
INLINE vec vec_keep_from(vec v, vec x, vec limit) {
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), v);
}

/* v * 2^n for whole n in [-252, 254]: in two steps, since 2^128 is no float. */
INLINE vec vec_scale2(vec v, vec n) {
    ivec whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    ivec first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    ivec second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}

INLINE float vec_sum(vec v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

INLINE vec vec_from_bits(ivec v) {
    return _mm256_castsi256_ps(v);
}

INLINE ivec vec_bits(vec v) {
    return _mm256_castps_si256(v);
}

INLINE ivec ivec_zero(void) {
    return _mm256_setzero_si256();
}

INLINE ivec ivec_set1(int value) {
    return _mm256_set1_epi32(value);
}

INLINE ivec ivec_load(const void *p) {
    return _mm256_loadu_si256((const void *)p);
}

INLINE ivec ivec_load_part(const void *p, int n) {
    return _mm256_maskload_epi32((const void *)p, part8(n));
}

INLINE void ivec_store(void *p, ivec v) {
    _mm256_storeu_si256((void *)p, v);
}

INLINE ivec ivec_and(ivec a, ivec b) {
    return _mm256_and_si256(a, b);
}

INLINE ivec ivec_or(ivec a, ivec b) {
    return _mm256_or_si256(a, b);
}

INLINE ivec ivec_xor(ivec a, ivec b) {
    return _mm256_xor_si256(a, b);
}

INLINE ivec ivec_max(ivec a, ivec b) {
    return _mm256_max_epi32(a, b);
}

INLINE ivec ivec_add(ivec a, ivec b) {
    return _mm256_add_epi32(a, b);
}

INLINE ivec ivec_sub(ivec a, ivec b) {
    return _mm256_sub_epi32(a, b);
}

INLINE ivec ivec_mul(ivec a, ivec b) {
    return _mm256_mullo_epi32(a, b);
}

/* VL unsigned bytes */
INLINE ivec ivec_load_bytes(const uint8_t *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
}

INLINE ivec ivec_load_signed_bytes(const int8_t *p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p));
}

INLINE ivec ivec_shift_right(ivec v, int bits) {
    return _mm256_srli_epi32(v, bits);
}

INLINE ivec ivec_shift_left(ivec v, int bits) {
    return _mm256_slli_epi32(v, bits);
}

/* With copies of the sign. */
INLINE ivec ivec_shift_right_signed(ivec v, int bits) {
    return _mm256_srai_epi32(v, bits);
}

/* stride in 32-bit words */
INLINE ivec ivec_gather(const void *p, int stride) {
    const ivec lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_i32gather_epi32((const void *)p, _mm256_mullo_epi32(lane, ivec_set1(stride)), 4);
}

INLINE vec vec_from_int(ivec v) {
    return _mm256_cvtepi32_ps(v);
}

INLINE ivec vec_to_int(vec v) {
    return _mm256_cvtps_epi32(v);
}

INLINE int ivec_hmax(ivec v) {
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

INLINE int ivec_sum(ivec v) {
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

INLINE void ivec_store_int8(int8_t *p, ivec v) {
    __m128i x = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((void *)p, _mm_packs_epi16(x, x));
}

/* ---- weights widened to fp32. An FP8 value comes out as value * 2^-8: its bits put into fp16's places. ----
 */

/* From memory the conversion needs one port, from a register two and a shuffle for the upper half; so the
 * halves go through the stack. In assembler, because compilers see through the detour and take it back. */
INLINE struct vec2 widen_fp8(__m128i bytes, int check_nan) {
    ivec wide = _mm256_cvtepi8_epi16(bytes), all = _mm256_set1_epi16(0x7f);
    ivec half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16((short)0xbf80));
    if (check_nan) half = _mm256_or_si256(half, _mm256_cmpeq_epi16(_mm256_and_si256(wide, all), all));
    struct vec2 out;
    __asm__("vcvtph2ps %1, %0" : "=x"(out.a) : "m"(*(const __m128i *)&half));
    __asm__("vcvtph2ps %1, %0" : "=x"(out.b) : "m"(*((const __m128i *)&half + 1)));
    return out;
}

INLINE vec widen_bf16(__m128i v) {
    return vec_from_bits(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* 2 * VL weights. check_nan: FP8's NaN bytes become NaN, else they pass as 480 and the caller looks for them.
 */
INLINE struct vec2 widen2(enum mat_format format, const char *p, int check_nan) {
    if (format == MAT_F32)
        return (struct vec2){_mm256_loadu_ps((const void *)p), _mm256_loadu_ps((const void *)(p + 32))};
    if (format == MAT_FP8) return widen_fp8(_mm_loadu_si128((const void *)p), check_nan);
    __m128i a = _mm_loadu_si128((const void *)p), b = _mm_loadu_si128((const void *)(p + 16));
    if (format == MAT_F16) return (struct vec2){_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)};
    return (struct vec2){widen_bf16(a), widen_bf16(b)};
}

/* The first n of 2 * VL weights, the rest 0. There is no masked load for narrow types, so they are copied. */
INLINE struct vec2 widen2_part(enum mat_format format, const char *p, int n, int check_nan) {
    char copy[2 * VL * 4] = {0};
    size_t size = format == MAT_F32 ? 4 : format == MAT_FP8 ? 1 : 2;
    memcpy(copy, p, size * (size_t)(n < 2 * VL ? n : 2 * VL));
    return widen2(format, copy, check_nan);
}

/* FP8 NaN bytes (0x7f, 0xff) are 0xff once the sign is set. For 4 * VL bytes. */
INLINE ivec nan_look(ivec seen, const char *p) {
    return _mm256_max_epu8(seen, _mm256_or_si256(ivec_load(p), _mm256_set1_epi8((char)0x80)));
}

INLINE int nan_seen(ivec seen) {
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(seen, _mm256_set1_epi8(-1))) != 0;
}

/* ---- GGUF's blocks: a lane is a row ---- */

/* 16 bytes of each of two rows, `pitch` bytes apart. */
INLINE ivec two_rows(const uint8_t *p, size_t pitch) {
    ivec first = _mm256_castsi128_si256(_mm_loadu_si128((const void *)p));
    return _mm256_inserti128_si256(first, _mm_loadu_si128((const void *)(p + pitch)), 1);
}

/* Of rows i and i + 4 in y[i], lane l of out[j] = word j of row l. */
INLINE void turn_words(const ivec y[4], ivec out[4]) {
    ivec a = _mm256_unpacklo_epi32(y[0], y[1]), b = _mm256_unpackhi_epi32(y[0], y[1]);
    ivec c = _mm256_unpacklo_epi32(y[2], y[3]), d = _mm256_unpackhi_epi32(y[2], y[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

/* 16 bytes of each of VL rows, `pitch` bytes apart, as four words: lane i of out[j] is word j of row i. */
INLINE void rows_to_lanes(const uint8_t *p, size_t pitch, ivec out[4]) {
    ivec y[4];
    UNROLL
    for (int i = 0; i < 4; i++) y[i] = two_rows(p + (size_t)i * pitch, 4 * pitch);
    turn_words(y, out);
}

/* 16 bytes of nibbles of each of VL rows, the even one low: 32 values[nibble], in order, as eight words. */
INLINE void nibbles_to_lanes(const uint8_t *p, size_t pitch, const int8_t *values, ivec out[8]) {
    const ivec table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)values)), low = _mm256_set1_epi8(15);
    ivec first[4], second[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        ivec y = two_rows(p + (size_t)i * pitch, 4 * pitch);
        ivec even = _mm256_shuffle_epi8(table, _mm256_and_si256(y, low));
        ivec odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(y, 4), low));
        first[i] = _mm256_unpacklo_epi8(even, odd);
        second[i] = _mm256_unpackhi_epi8(even, odd);
    }
    turn_words(first, out);
    turn_words(second, out + 4);
}

/* of[i] = the four lanes i of each of v, in order. */
INLINE void fours_to_rows(const ivec v[2], ivec of[2]) {
    of[0] = _mm256_permute2x128_si256(v[0], v[1], 0x20);
    of[1] = _mm256_permute2x128_si256(v[0], v[1], 0x31);
}

/* 8 * VL bytes, those at even places and those at odd ones. */
INLINE void bytes_even_odd(const int8_t *p, ivec *even, ivec *odd) {
    const ivec a = ivec_load(p), b = ivec_load(p + 32);
    const ivec low = _mm256_packs_epi16(_mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8),
                                        _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const ivec high = _mm256_packs_epi16(_mm256_srai_epi16(a, 8), _mm256_srai_epi16(b, 8));
    *even = _mm256_permute4x64_epi64(low, 0xd8);
    *odd = _mm256_permute4x64_epi64(high, 0xd8);
}

/* Sums of four lanes each: those of v[j]'s lanes 4i to 4i + 3 in lane 4i + j. */
INLINE ivec ivec_sum_fours(const ivec v[4]) {
    ivec a = ivec_add(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
    ivec b = ivec_add(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
    return ivec_add(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/* Lane order[i] of v in lane i. */
INLINE vec vec_in_order(vec v, const int32_t *order) {
    return _mm256_permutevar8x32_ps(v, ivec_load(order));
}

/* The low 16 bits of each lane, an fp16. */
INLINE vec vec_from_f16_bits(ivec v) {
    ivec low = ivec_and(v, ivec_set1(0xffff)), packed = _mm256_packus_epi32(low, low);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

/* table[i] for each byte i < 16. */
INLINE ivec bytes_look_up(const int8_t *table, ivec indices) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table)), indices);
}

/* table[i] of 16 bits for each half of a lane, the low ones first; 32 bits can be read at the last entry, too. */
INLINE void halves_look_up(const uint16_t *table, int entries, ivec indices, ivec out[2]) {
    const ivec low = ivec_set1(0xffff);
    (void)entries;
    out[0] = ivec_and(_mm256_i32gather_epi32((const int *)table, ivec_and(indices, low), 2), low);
    out[1] = ivec_and(_mm256_i32gather_epi32((const int *)table, ivec_shift_right(indices, 16), 2), low);
}

/* Byte `which` of each lane in all four. */
INLINE ivec bytes_repeat(ivec v, int which) {
    const int spread = which * 0x01010101;
    const __m128i each = _mm_setr_epi32(spread, 0x04040404 + spread, 0x08080808 + spread, 0x0c0c0c0c + spread);
    return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(each));
}

/* Byte `which` of each lane, alone. */
INLINE ivec byte_of_each(ivec v, int which) {
    const int none = (int)0x80808000 + which;
    return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_setr_epi32(none, none + 4, none + 8, none + 12)));
}

/* v + value in the bytes where v2 has one of the `bits`, one in each byte. */
INLINE ivec bytes_add_where(ivec v, ivec v2, int bits, int value) {
    const ivec b = ivec_set1(bits);
    return _mm256_add_epi8(v, ivec_and(_mm256_cmpeq_epi8(ivec_and(v2, b), b), ivec_set1(value)));
}

/* ---- AWQ: a register holds VL words of one k; lane = word, nibble j = row awq_order[j] of the word's eight
 * ---- */

/* Nibble `place` (0..3) of each lane as a float with 2^23 added, times 16^place. */
INLINE vec nibble_float(ivec v, int place) {
    return vec_from_bits(_mm256_or_si256(_mm256_and_si256(v, ivec_set1(15 << 4 * place)), ivec_set1(0x4b000000)));
}

/* 8-bit dot: from words of four k, u[2j] and u[2j + 1] hold in each lane four k of one row: the low and high
 * nibble of byte (lane % 4) of word 4 * (lane / 4) + j. */
INLINE void q8_spread(const ivec v[4], ivec u[8]) {
    const ivec low = _mm256_set1_epi8(15);
    ivec t0 = _mm256_unpacklo_epi8(v[0], v[1]), t1 = _mm256_unpackhi_epi8(v[0], v[1]);
    ivec t2 = _mm256_unpacklo_epi8(v[2], v[3]), t3 = _mm256_unpackhi_epi8(v[2], v[3]);
    ivec w[4] = {_mm256_unpacklo_epi16(t0, t2), _mm256_unpackhi_epi16(t0, t2), _mm256_unpacklo_epi16(t1, t3),
                 _mm256_unpackhi_epi16(t1, t3)};
    UNROLL
    for (int j = 0; j < 4; j++) {
        u[2 * j] = _mm256_and_si256(w[j], low);
        u[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16(w[j], 4), low);
    }
}

#ifdef __AVXVNNI__
/* As vec_avx512.inc.h, in 256 bits. */
INLINE ivec q8_dot(ivec acc, ivec nibbles, ivec x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(nibbles), "x"(x));
    return acc;
}

INLINE ivec q8_sum(ivec acc, ivec zero, ivec minus_qsum) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(zero, minus_qsum));
}
#else
/* acc += the lane's four products, as two 16-bit sums: over 32 k they stay within 8 * 2 * 15 * 128 = 30720.
 * The running form of acc is this level's own until q8_sum. */
INLINE ivec q8_dot(ivec acc, ivec nibbles, ivec x) {
    ivec pairs = _mm256_maddubs_epi16(nibbles, x);
    __asm__("vpaddw %1, %0, %0" : "+x"(acc) : "x"(pairs));
    return acc;
}

/* sum of nibble * q over 32 k, plus zero * minus_qsum: both factors fit 16 bits. */
INLINE ivec q8_sum(ivec acc, ivec zero, ivec minus_qsum) {
    return _mm256_add_epi32(_mm256_madd_epi16(acc, _mm256_set1_epi16(1)), _mm256_madd_epi16(zero, minus_qsum));
}
#endif

/* ---- INT4 and INT8 in blocks: bytes of four k for 8 rows times four activations, exact ---- */

enum {
    BLOCK_TOKENS = 3, /* that share a line */
    BLOCK_SUMS = 12,  /* registers of sums */
};

#ifdef __AVXVNNI__
/* As vec_avx512.inc.h, in 256 bits. */
enum { BYTE_ZERO = 128 };

INLINE ivec block_values(enum mat_format format, ivec line, int high) {
    if (format == MAT_INT8) return line;
    return _mm256_and_si256(high ? _mm256_srli_epi16(line, 4) : line, _mm256_set1_epi8(15));
}

INLINE ivec block_run_begin(enum mat_format format, ivec sum) {
    (void)format;
    return sum;
}

INLINE ivec block_run_end(enum mat_format format, ivec sum, ivec run) {
    (void)format, (void)sum;
    return run;
}

INLINE ivec block_dot(enum mat_format format, ivec run, ivec values, ivec x4) {
    (void)format;
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(run) : "x"(values), "x"(x4));
    return run;
}

/* Four products a lane of bytes up to 24, and four more. */
INLINE ivec fp4_dot(ivec values, ivec x4, ivec more, ivec more_x4) {
    return block_dot(MAT_INT8, block_dot(MAT_INT8, ivec_zero(), values, x4), more, more_x4);
}
#else
enum { BYTE_ZERO = 0 }; /* what stands for 0 in the bytes that block_values yields for INT8 */

INLINE ivec block_values(enum mat_format format, ivec line, int high) {
    if (format == MAT_INT8) return _mm256_xor_si256(line, _mm256_set1_epi8((char)0x80));
    return _mm256_and_si256(high ? _mm256_srli_epi16(line, 4) : line, _mm256_set1_epi8(15));
}

/* The sums of INT4 run in 16 bits for 32 k: q8_dot. */
INLINE ivec block_run_begin(enum mat_format format, ivec sum) {
    return format == MAT_INT4 ? ivec_zero() : sum;
}

INLINE ivec block_run_end(enum mat_format format, ivec sum, ivec run) {
    if (format == MAT_INT8) return run;
    return _mm256_add_epi32(sum, _mm256_madd_epi16(run, _mm256_set1_epi16(1)));
}

/* INT8 moves the sign to the activations, whose products then fit: 2 * 127 * 127 = 32258. */
INLINE ivec block_dot(enum mat_format format, ivec run, ivec values, ivec x4) {
    if (format == MAT_INT4) return q8_dot(run, values, x4);
    ivec pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(values), _mm256_sign_epi8(x4, values));
    pairs = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __asm__("vpaddd %1, %0, %0" : "+x"(run) : "x"(pairs));
    return run;
}

INLINE ivec fp4_dot(ivec values, ivec x4, ivec more, ivec more_x4) {
    ivec pairs = _mm256_add_epi16(_mm256_maddubs_epi16(values, x4), _mm256_maddubs_epi16(more, more_x4));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#endif
