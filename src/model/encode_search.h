/* model/encode_search.h - shared by encode.c, gptq_rows.c and encode_search.c only: the sums that a search over scales compares. */
#ifndef MOEBIUS_MODEL_ENCODE_SEARCH_H
#define MOEBIUS_MODEL_ENCODE_SEARCH_H

#include <stdint.h>

/* `n` is a multiple of 32 everywhere; sums are made in 16 lanes, so that all levels of instructions agree. */
struct encode_kern {
    /* q = clamp(round(x * inverse)): sum of wx * q (with wx = w * x) and of w * q * q. */
    void (*integer)(const float *x, const float *wx, const float *w, int n, float inverse, float low, float high,
                    float *sum_xq, float *sum_qq);
    /* sum of w * (t - e4m3(t))^2 with t = x * inverse, |t| <= 448. */
    float (*e4m3)(const float *x, const float *w, int n, float inverse);
};
const struct encode_kern *encode_kern_get(void);

#endif
