/* base/numbers.h - what C has no words for: the smaller, the larger, rounding up (whole numbers from 0 on), and qsort's order of
 * doubles. Includes: nothing. */
#ifndef MOEBIUS_BASE_NUMBERS_H
#define MOEBIUS_BASE_NUMBERS_H

#include <stddef.h>

static inline int smaller(int a, int b) {
    return a < b ? a : b;
}

static inline int larger(int a, int b) {
    return a > b ? a : b;
}

static inline size_t round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

static inline int order_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

#endif
