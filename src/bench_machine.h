/* bench_machine.h - what the machine itself can do, so that a model's speed can be given as a share of it. */
#ifndef MOEBIUS_BENCH_MACHINE_H
#define MOEBIUS_BENCH_MACHINE_H

#include "base/error.h"

/* Median and range of repeated measurements. */
struct bench_spread {
    double median, min, max;
};
/* Sorts `values` [n], n >= 1. */
struct bench_spread bench_spread_of(double *values, int n);

/* GB/s (1e9 bytes) that `threads` threads read from memory together, over a buffer far larger than the caches. */
int bench_measure_read(int threads, struct bench_spread *gb_s, struct mo_error *error);

#endif
