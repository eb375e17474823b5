/* cmd/bench/machine.h - what the machine itself can do, so that a model's speed can be given as a share of it. */
#ifndef MOEBIUS_CMD_BENCH_MACHINE_H
#define MOEBIUS_CMD_BENCH_MACHINE_H

#include "backend/cpu/kern.h"
#include "base/error.h"

/* Median and range of repeated measurements. */
struct bench_spread {
    double median, min, max;
};
/* Sorts `values` [n], n >= 1. */
struct bench_spread bench_spread_of(double *values, int n);

/* Measures again and again how fast memory is read, because machines drift: a buffer far larger than the caches, and the
 * threads to read it. */
struct bench_reader;
int bench_reader_open(struct bench_reader **reader, int threads, struct mo_error *error);
void bench_reader_close(struct bench_reader *reader); /* accepts NULL */
/* GB/s (1e9 bytes) of all threads together, over `passes` passes, BENCH_PASSES_MAX at most. */
enum { BENCH_PASSES_MAX = 16 };
struct bench_spread bench_reader_measure(struct bench_reader *reader, int passes);

/* Open, measure once, close. */
int bench_measure_read(int threads, struct bench_spread *gb_s, struct mo_error *error);

/* The most operations of a kind a second (1e12; a product and a sum are two) that `threads` threads do in registers, at the
 * processor level in use; zeros where it has no such instructions. */
int bench_measure_peak(enum kern_peak kind, int threads, struct bench_spread *tops, struct mo_error *error);

#endif
