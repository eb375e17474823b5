/* backend/cpu/x86/vec_avx512.inc.h - the vector words that the kernel templates are written in, for AVX-512
 * (F, BW, VL, DQ, VNNI). vec_avx2.inc.h says the same words in AVX2: keep the two in step.
 * A "part" is the first n of VL values; the rest reads as 0 and is never touched in memory. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "model/format.h"

#define INLINE static inline __attribute__((always_inline, unused))
#include "backend/cpu/x86/unroll.inc.h"

#define VL 16
#define TILE_TOKENS 6 /* 4 rows x 6 tokens = 24 of 32 registers */
#define SUM_VECS 4    /* weighted_sum: 4 rows x 4 registers */
#define DOT_ROWS 8    /* rows that one token takes at once: 8 accumulators, and 8 more for FP8 */

typedef __m512 vec;
typedef __m512i ivec;

struct vec2 {
    vec a, b;
};

INLINE __mmask16 part16(int n) {
    return (__mmask16)_bzhi_u32(0xffff, (unsigned)(n < 0 ? 0 : n > 16 ? 16 : n));
}

INLINE __mmask32 part32(int n) {
    return _bzhi_u32(0xffffffff, (unsigned)(n < 0 ? 0 : n > 32 ? 32 : n));
}

/* Asks for a line that will be read soon, into the second cache: the first waits for so few lines at a time that a Zen 4 reads at half
 * of its speed if asked for that one (docs/performance.md, 13). */
INLINE void ask_for(const void *p) {
    _mm_prefetch(p, _MM_HINT_T1);
}

INLINE vec vec_zero(void) {
    return _mm512_setzero_ps();
}

INLINE vec vec_set1(float value) {
    return _mm512_set1_ps(value);
}

INLINE vec vec_load(const float *p) {
    return _mm512_loadu_ps(p);
}

INLINE vec vec_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

INLINE vec vec_load_part(const float *p, int n) {
    return _mm512_maskz_loadu_ps(part16(n), p);
}

INLINE void vec_store(float *p, vec v) {
    _mm512_storeu_ps(p, v);
}

INLINE void vec_store_part(float *p, vec v, int n) {
    _mm512_mask_storeu_ps(p, part16(n), v);
}

INLINE vec vec_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}

INLINE vec vec_add(vec a, vec b) {
    return _mm512_add_ps(a, b);
}

INLINE vec vec_sub(vec a, vec b) {
    return _mm512_sub_ps(a, b);
}

INLINE vec vec_mul(vec a, vec b) {
    return _mm512_mul_ps(a, b);
}

INLINE vec vec_div(vec a, vec b) {
    return _mm512_div_ps(a, b);
}

/* b where either is NaN. */
INLINE vec vec_max(vec a, vec b) {
    return _mm512_max_ps(a, b);
}

INLINE vec vec_min(vec a, vec b) {
    return _mm512_min_ps(a, b);
}

/* Of numbers, not NaN; 0 or -0 where both are the largest. */
INLINE float vec_hmax(vec v) {
    return _mm512_reduce_max_ps(v);
}

INLINE vec vec_round(vec v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* v where x >= limit or is NaN, else 0. */
INLINE vec vec_keep_from(vec v, vec x, vec limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
}

/* v * 2^n for whole n. */
INLINE vec vec_scale2(vec v, vec n) {
    return _mm512_scalef_ps(v, n);
}

INLINE __m256 vec_half(vec v, int high) {
    return high ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v);
}

INLINE float vec_sum(vec v) {
    __m256 y = _mm256_add_ps(vec_half(v, 0), vec_half(v, 1));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

/* out[i] = vec_sum(v[i * step]) for four of them: the same tree, side by side. */
INLINE void vec_sum4(const vec *v, int step, float *out) {
    vec a = v[0], b = v[step], c = v[2 * step], d = v[3 * step];
    vec ab = vec_add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    vec cd = vec_add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    vec four = vec_add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    four = vec_add(four, _mm512_permute_ps(four, 0x4e));
    four = vec_add(four, _mm512_permute_ps(four, 0xb1));
    const __m512i first_of_each = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_each, four)));
}

INLINE vec vec_from_bits(ivec v) {
    return _mm512_castsi512_ps(v);
}

INLINE ivec vec_bits(vec v) {
    return _mm512_castps_si512(v);
}

INLINE ivec ivec_zero(void) {
    return _mm512_setzero_si512();
}

INLINE ivec ivec_set1(int value) {
    return _mm512_set1_epi32(value);
}

INLINE ivec ivec_load(const void *p) {
    return _mm512_loadu_si512(p);
}

INLINE ivec ivec_load_part(const void *p, int n) {
    return _mm512_maskz_loadu_epi32(part16(n), p);
}

INLINE void ivec_store(void *p, ivec v) {
    _mm512_storeu_si512(p, v);
}

INLINE ivec ivec_and(ivec a, ivec b) {
    return _mm512_and_si512(a, b);
}

INLINE ivec ivec_or(ivec a, ivec b) {
    return _mm512_or_si512(a, b);
}

INLINE ivec ivec_xor(ivec a, ivec b) {
    return _mm512_xor_si512(a, b);
}

INLINE ivec ivec_max(ivec a, ivec b) {
    return _mm512_max_epi32(a, b);
}

INLINE ivec ivec_add(ivec a, ivec b) {
    return _mm512_add_epi32(a, b);
}

INLINE ivec ivec_sub(ivec a, ivec b) {
    return _mm512_sub_epi32(a, b);
}

INLINE ivec ivec_mul(ivec a, ivec b) {
    return _mm512_mullo_epi32(a, b);
}

/* VL unsigned bytes */
INLINE ivec ivec_load_bytes(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
}

INLINE ivec ivec_load_signed_bytes(const int8_t *p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p));
}

INLINE ivec ivec_shift_right(ivec v, int bits) {
    return _mm512_srli_epi32(v, (unsigned)bits);
}

INLINE ivec ivec_shift_left(ivec v, int bits) {
    return _mm512_slli_epi32(v, (unsigned)bits);
}

/* With copies of the sign. */
INLINE ivec ivec_shift_right_signed(ivec v, int bits) {
    return _mm512_srai_epi32(v, (unsigned)bits);
}

/* stride in 32-bit words */
INLINE ivec ivec_gather(const void *p, int stride) {
    const ivec lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_i32gather_epi32(_mm512_mullo_epi32(lane, ivec_set1(stride)), p, 4);
}

INLINE vec vec_from_int(ivec v) {
    return _mm512_cvtepi32_ps(v);
}

INLINE ivec vec_to_int(vec v) {
    return _mm512_cvtps_epi32(v);
}

INLINE int ivec_hmax(ivec v) {
    return _mm512_reduce_max_epi32(v);
}

INLINE int ivec_sum(ivec v) {
    return _mm512_reduce_add_epi32(v);
}

INLINE void ivec_store_int8(int8_t *p, ivec v) {
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(v));
}

/* ---- weights widened to fp32. An FP8 value comes out as value * 2^-8: its bits put into fp16's places. ----
 */

INLINE ivec fp8_to_f16(ivec wide, int check_nan) {
    ivec half = _mm512_and_si512(_mm512_slli_epi16(wide, 7), _mm512_set1_epi16((short)0xbf80));
    if (!check_nan) return half;
    const ivec all = _mm512_set1_epi16(0x7f);
    return _mm512_mask_mov_epi16(half, _mm512_cmpeq_epi16_mask(_mm512_and_si512(wide, all), all),
                                 _mm512_set1_epi16(0x7e00));
}

/* From memory the conversion needs one port, from a register two and a shuffle for the upper half; so the
 * halves go through the stack. In assembler, because compilers see through the detour and take it back. */
INLINE struct vec2 widen_fp8(__m256i bytes, int check_nan) {
    ivec half = fp8_to_f16(_mm512_cvtepi8_epi16(bytes), check_nan);
    struct vec2 out;
    __asm__("vcvtph2ps %1, %0" : "=v"(out.a) : "m"(*(const __m256i *)&half));
    __asm__("vcvtph2ps %1, %0" : "=v"(out.b) : "m"(*((const __m256i *)&half + 1)));
    return out;
}

INLINE vec widen_bf16(__m256i v) {
    return vec_from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* 2 * VL weights. check_nan: FP8's NaN bytes become NaN, else they pass as 480 and the caller looks for them.
 */
INLINE struct vec2 widen2(enum mat_format format, const char *p, int check_nan) {
    if (format == MAT_F32) return (struct vec2){_mm512_loadu_ps(p), _mm512_loadu_ps(p + 64)};
    if (format == MAT_FP8) return widen_fp8(_mm256_loadu_si256((const void *)p), check_nan);
    __m256i a = _mm256_loadu_si256((const void *)p), b = _mm256_loadu_si256((const void *)(p + 32));
    if (format == MAT_F16) return (struct vec2){_mm512_cvtph_ps(a), _mm512_cvtph_ps(b)};
    return (struct vec2){widen_bf16(a), widen_bf16(b)};
}

/* The first n of 2 * VL weights, the rest 0. */
INLINE struct vec2 widen2_part(enum mat_format format, const char *p, int n, int check_nan) {
    if (format == MAT_F32)
        return (struct vec2){_mm512_maskz_loadu_ps(part16(n), p), _mm512_maskz_loadu_ps(part16(n - 16), p + 64)};
    if (format == MAT_FP8) return widen_fp8(_mm256_maskz_loadu_epi8(part32(n), p), check_nan);
    ivec v = _mm512_maskz_loadu_epi16(part32(n), p);
    __m256i a = _mm512_castsi512_si256(v), b = _mm512_extracti64x4_epi64(v, 1);
    if (format == MAT_F16) return (struct vec2){_mm512_cvtph_ps(a), _mm512_cvtph_ps(b)};
    return (struct vec2){widen_bf16(a), widen_bf16(b)};
}

/* FP8 NaN bytes (0x7f, 0xff) are the ones whose top bit flips when 1 is added: two operations for 4 * VL
 * bytes. */
INLINE ivec nan_look(ivec seen, const char *p) {
    ivec v = _mm512_loadu_si512(p);
    return _mm512_ternarylogic_epi32(seen, v, _mm512_add_epi8(v, _mm512_set1_epi8(1)), 0xf6);
}

INLINE int nan_seen(ivec seen) {
    return _mm512_movepi8_mask(seen) != 0;
}

/* ---- GGUF's blocks: a lane is a row ---- */

/* 16 bytes of each of four rows, `pitch` bytes apart. */
INLINE ivec four_rows(const uint8_t *p, size_t pitch) {
    ivec z = _mm512_castsi128_si512(_mm_loadu_si128((const void *)p));
    z = _mm512_inserti32x4(z, _mm_loadu_si128((const void *)(p + pitch)), 1);
    z = _mm512_inserti32x4(z, _mm_loadu_si128((const void *)(p + 2 * pitch)), 2);
    return _mm512_inserti32x4(z, _mm_loadu_si128((const void *)(p + 3 * pitch)), 3);
}

/* Of rows i, i + 4, i + 8 and i + 12 in z[i], lane l of out[j] = word j of row l. */
INLINE void turn_words(const ivec z[4], ivec out[4]) {
    ivec a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
    ivec c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
    out[0] = _mm512_unpacklo_epi64(a, c);
    out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d);
    out[3] = _mm512_unpackhi_epi64(b, d);
}

/* 16 bytes of each of VL rows, `pitch` bytes apart, as four words: lane i of out[j] is word j of row i. */
INLINE void rows_to_lanes(const uint8_t *p, size_t pitch, ivec out[4]) {
    ivec z[4];
    UNROLL
    for (int i = 0; i < 4; i++) z[i] = four_rows(p + (size_t)i * pitch, 4 * pitch);
    turn_words(z, out);
}

/* 16 bytes of nibbles of each of VL rows, the even one low: 32 values[nibble], in order, as eight words. */
INLINE void nibbles_to_lanes(const uint8_t *p, size_t pitch, const int8_t *values, ivec out[8]) {
    const ivec table = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)values)), low = _mm512_set1_epi8(15);
    ivec first[4], second[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        ivec z = four_rows(p + (size_t)i * pitch, 4 * pitch);
        ivec even = _mm512_shuffle_epi8(table, _mm512_and_si512(z, low));
        ivec odd = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(z, 4), low));
        first[i] = _mm512_unpacklo_epi8(even, odd);
        second[i] = _mm512_unpackhi_epi8(even, odd);
    }
    turn_words(first, out);
    turn_words(second, out + 4);
}

/* of[i] = the four lanes i of each of v, in order. */
INLINE void fours_to_rows(const ivec v[4], ivec of[4]) {
    ivec a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
    ivec c = _mm512_shuffle_i32x4(v[2], v[3], 0x44), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    of[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    of[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    of[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    of[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

/* 8 * VL bytes, those at even places and those at odd ones. */
INLINE void bytes_even_odd(const int8_t *p, ivec *even, ivec *odd) {
    const ivec a = ivec_load(p), b = ivec_load(p + 64);
    *even = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
    *odd = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(_mm512_srli_epi16(a, 8))),
                              _mm512_cvtepi16_epi8(_mm512_srli_epi16(b, 8)), 1);
}

/* Sums of four lanes each: those of v[j]'s lanes 4i to 4i + 3 in lane 4i + j. */
INLINE ivec ivec_sum_fours(const ivec v[4]) {
    ivec a = ivec_add(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    ivec b = ivec_add(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return ivec_add(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Lane order[i] of v in lane i. */
INLINE vec vec_in_order(vec v, const int32_t *order) {
    return _mm512_permutexvar_ps(ivec_load(order), v);
}

/* The low 16 bits of each lane, an fp16. */
INLINE vec vec_from_f16_bits(ivec v) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}

/* table[i] for each byte i < 16. */
INLINE ivec bytes_look_up(const int8_t *table, ivec indices) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)), indices);
}

/* 64 entries at a time pass through registers; of twice as many a bit of the indices chooses the half. */
INLINE ivec halves_of_64(const uint16_t *table, ivec indices) {
    return _mm512_permutex2var_epi16(_mm512_loadu_si512(table), indices, _mm512_loadu_si512(table + 32));
}

#define HALVES_OF_TWICE(N, TWICE)                                                                                      \
    INLINE ivec halves_of_##TWICE(const uint16_t *table, ivec indices) {                                               \
        const __mmask32 upper = _mm512_test_epi16_mask(indices, _mm512_set1_epi16(N));                                 \
        return _mm512_mask_mov_epi16(halves_of_##N(table, indices), upper, halves_of_##N(table + N, indices));         \
    }
HALVES_OF_TWICE(64, 128)
HALVES_OF_TWICE(128, 256)
HALVES_OF_TWICE(256, 512)
HALVES_OF_TWICE(512, 1024)

/* table[i] of 16 bits for each half of a lane, the low ones first; 32 bits can be read at the last entry, too. */
INLINE void halves_look_up(const uint16_t *table, int entries, ivec indices, ivec out[2]) {
    const ivec low = ivec_set1(0xffff);
    if (entries > 1024) {
        out[0] = ivec_and(_mm512_i32gather_epi32(ivec_and(indices, low), table, 2), low);
        out[1] = ivec_and(_mm512_i32gather_epi32(ivec_shift_right(indices, 16), table, 2), low);
        return;
    }
    ivec both = entries == 256   ? halves_of_256(table, indices)
                : entries == 512 ? halves_of_512(table, indices)
                                 : halves_of_1024(table, indices);
    out[0] = ivec_and(both, low);
    out[1] = ivec_shift_right(both, 16);
}

/* Byte `which` of each lane in all four. */
INLINE ivec bytes_repeat(ivec v, int which) {
    const int spread = which * 0x01010101;
    return _mm512_shuffle_epi8(
        v, _mm512_set4_epi32(0x0c0c0c0c + spread, 0x08080808 + spread, 0x04040404 + spread, spread));
}

/* Byte `which` of each lane, alone. */
INLINE ivec byte_of_each(ivec v, int which) {
    const int none = (int)0x80808000 + which;
    return _mm512_shuffle_epi8(v, _mm512_set4_epi32(none + 12, none + 8, none + 4, none));
}

/* v + value in the bytes where v2 has one of the `bits`. */
INLINE ivec bytes_add_where(ivec v, ivec v2, int bits, int value) {
    return _mm512_mask_add_epi8(v, _mm512_test_epi8_mask(v2, ivec_set1(bits)), v, ivec_set1(value));
}

/* ---- AWQ: a register holds VL words of one k; lane = word, nibble j = row awq_order[j] of the word's eight
 * ---- */

/* Nibble `place` (0..3) of each lane as a float with 2^23 added, times 16^place. */
INLINE vec nibble_float(ivec v, int place) {
    return vec_from_bits(_mm512_ternarylogic_epi32(v, ivec_set1(15 << 4 * place), ivec_set1(0x4b000000), 0xea));
}

/* 8-bit dot: from words of four k, u[2j] and u[2j + 1] hold in each lane four k of one row: the low and high
 * nibble of byte (lane % 4) of word 4 * (lane / 4) + j. */
INLINE void q8_spread(const ivec v[4], ivec u[8]) {
    const ivec low = _mm512_set1_epi8(15);
    ivec t0 = _mm512_unpacklo_epi8(v[0], v[1]), t1 = _mm512_unpackhi_epi8(v[0], v[1]);
    ivec t2 = _mm512_unpacklo_epi8(v[2], v[3]), t3 = _mm512_unpackhi_epi8(v[2], v[3]);
    ivec w[4] = {_mm512_unpacklo_epi16(t0, t2), _mm512_unpackhi_epi16(t0, t2), _mm512_unpacklo_epi16(t1, t3),
                 _mm512_unpackhi_epi16(t1, t3)};
    UNROLL
    for (int j = 0; j < 4; j++) {
        u[2 * j] = _mm512_and_si512(w[j], low);
        u[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(w[j], 4), low);
    }
}

/* acc += the lane's four products. The running form of acc is this level's own until q8_sum. */
INLINE ivec q8_dot(ivec acc, ivec nibbles, ivec x) {
    /* The builtin makes gcc 12 copy accumulators around. */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(nibbles), "v"(x));
    return acc;
}

/* sum of nibble * q over 32 k, plus zero * minus_qsum: both factors fit 16 bits. */
INLINE ivec q8_sum(ivec acc, ivec zero, ivec minus_qsum) {
    return _mm512_dpwssd_epi32(acc, zero, minus_qsum);
}

/* ---- INT4 and INT8 in blocks: bytes of four k for 16 rows times four activations, exact ---- */

enum {
    BLOCK_TOKENS = 6, /* that share a line */
    BLOCK_SUMS = 24,  /* registers of sums */
    BYTE_ZERO = 128,  /* what stands for 0 in the bytes that block_values yields for INT8 */
};

/* MAT_INT4 where a matrix of bits takes out the upper nibbles (GFNI), in one instruction instead of two. */
#define INT4_AFFINE MAT_FORMATS

INLINE ivec block_values(enum mat_format format, ivec line, int high) {
    if (format == MAT_INT8) return line;
    if (format == INT4_AFFINE && high) {
        const ivec upper_half = _mm512_set1_epi64(0x1020408000000000); /* bit i = bit i + 4; the rest 0 */
        __asm__("vgf2p8affineqb $0, %2, %1, %0" : "=v"(line) : "v"(line), "v"(upper_half));
        return line;
    }
    return _mm512_and_si512(high ? _mm512_srli_epi16(line, 4) : line, _mm512_set1_epi8(15));
}

/* A sum may have another form while it runs; here it has not. */
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
    return q8_dot(run, values, x4);
}

/* Four products a lane of bytes up to 24, and four more. */
INLINE ivec fp4_dot(ivec values, ivec x4, ivec more, ivec more_x4) {
    return q8_dot(q8_dot(ivec_zero(), values, x4), more, more_x4);
}
