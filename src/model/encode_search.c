#include "model/encode_search.h"

#include <string.h>
#include "base/cpu.h"

enum { LANES = 16 };

static float fold(const float lanes[LANES]) {
    float sum = 0;
    for (int i = 0; i < LANES / 2; i++) sum += lanes[i] + lanes[i + LANES / 2];
    return sum;
}

/* To the nearest integer, ties to even, for |x| < 2^22. */
static float round_even(float x) {
    const float magic = 0x1.8p23f;
    return (x + magic) - magic;
}

static void integer_ref(const float *x, const float *wx, const float *w, int n, float inverse, float low, float high,
                        float *sum_xq, float *sum_qq) {
    float xq[LANES] = {0}, qq[LANES] = {0};
    for (int i = 0; i < n; i++) {
        float t = x[i] * inverse;
        t = t < high ? t : high;
        t = t > low ? t : low;
        float q = round_even(t);
        xq[i % LANES] += wx[i] * q;
        qq[i % LANES] += w[i] * q * q;
    }
    *sum_xq = fold(xq);
    *sum_qq = fold(qq);
}

/* Three bits behind the leading one: a number whose last place is 2^(e-3) rounds at the right bit. Below 2^-6 the steps are
 * even. */
static float round_e4m3(float t) {
    uint32_t bits, floor;
    const float smallest = 0x1p-6f;
    memcpy(&bits, &t, sizeof bits);
    memcpy(&floor, &smallest, sizeof floor);
    bits &= 0x7f800000;
    if (bits < floor) bits = floor;
    bits = (bits + (20u << 23)) | 0x400000;
    float magic;
    memcpy(&magic, &bits, sizeof magic);
    return (t + magic) - magic;
}

static float e4m3_ref(const float *x, const float *w, int n, float inverse) {
    float lanes[LANES] = {0};
    for (int i = 0; i < n; i++) {
        float t = x[i] * inverse, d = t - round_e4m3(t);
        lanes[i % LANES] += w[i] * d * d;
    }
    return fold(lanes);
}

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))

AVX2 static float fold_avx2(__m256 a, __m256 b) {
    float lanes[LANES];
    _mm256_storeu_ps(lanes, a);
    _mm256_storeu_ps(lanes + 8, b);
    return fold(lanes);
}

AVX2 static __m256 integer8(const float *x, __m256 inverse, __m256 low, __m256 high) {
    __m256 t = _mm256_mul_ps(_mm256_loadu_ps(x), inverse);
    t = _mm256_max_ps(_mm256_min_ps(t, high), low);
    return _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

AVX2 static void integer_avx2(const float *x, const float *wx, const float *w, int n, float inverse, float low,
                              float high, float *sum_xq, float *sum_qq) {
    __m256 inv = _mm256_set1_ps(inverse), lo = _mm256_set1_ps(low), hi = _mm256_set1_ps(high);
    __m256 xq0 = _mm256_setzero_ps(), xq1 = xq0, qq0 = xq0, qq1 = xq0;
    for (int i = 0; i < n; i += LANES) {
        __m256 q0 = integer8(x + i, inv, lo, hi), q1 = integer8(x + i + 8, inv, lo, hi);
        xq0 = _mm256_add_ps(xq0, _mm256_mul_ps(_mm256_loadu_ps(wx + i), q0));
        xq1 = _mm256_add_ps(xq1, _mm256_mul_ps(_mm256_loadu_ps(wx + i + 8), q1));
        qq0 = _mm256_add_ps(qq0, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(w + i), q0), q0));
        qq1 = _mm256_add_ps(qq1, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(w + i + 8), q1), q1));
    }
    *sum_xq = fold_avx2(xq0, xq1);
    *sum_qq = fold_avx2(qq0, qq1);
}

AVX2 static __m256 e4m3_error8(const float *x, const float *w, __m256 inverse) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000), floor = _mm256_castps_si256(_mm256_set1_ps(0x1p-6f));
    __m256 t = _mm256_mul_ps(_mm256_loadu_ps(x), inverse);
    __m256i bits = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(t), exponent), floor);
    bits = _mm256_or_si256(_mm256_add_epi32(bits, _mm256_set1_epi32(20 << 23)), _mm256_set1_epi32(0x400000));
    __m256 magic = _mm256_castsi256_ps(bits);
    __m256 d = _mm256_sub_ps(t, _mm256_sub_ps(_mm256_add_ps(t, magic), magic));
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(w), d), d);
}

AVX2 static float e4m3_avx2(const float *x, const float *w, int n, float inverse) {
    __m256 inv = _mm256_set1_ps(inverse), a = _mm256_setzero_ps(), b = a;
    for (int i = 0; i < n; i += LANES) {
        a = _mm256_add_ps(a, e4m3_error8(x + i, w + i, inv));
        b = _mm256_add_ps(b, e4m3_error8(x + i + 8, w + i + 8, inv));
    }
    return fold_avx2(a, b);
}
#endif

const struct encode_kern *encode_kern_get(void) {
    static const struct encode_kern ref = {integer_ref, e4m3_ref};
#if defined(__x86_64__)
    static const struct encode_kern avx2 = {integer_avx2, e4m3_avx2};
    enum cpu_level level;
    if (cpu_level_get(&level, NULL) == 0 && level >= CPU_AVX2) return &avx2;
#endif
    return &ref;
}
