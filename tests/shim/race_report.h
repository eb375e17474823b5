/* tests/shim/race_report.h - how race.c tells what it found. */
#ifndef MOEBIUS_TESTS_SHIM_RACE_REPORT_H
#define MOEBIUS_TESTS_SHIM_RACE_REPORT_H

#include <stdbool.h>
#include <stdint.h>

/* RACE_CONSTANT: a read by the path for data that no kernel writes while it is read (load_once). RACE_KERNEL: all that the kernel
 * before does. RACE_HOST: it is the host's memory. */
enum race_kind { RACE_READ, RACE_WRITE, RACE_ATOMIC, RACE_COPY, RACE_CONSTANT, RACE_KERNEL, RACE_HOST };

/* One of two accesses. */
struct race_side {
    enum race_kind kind;
    int block, thread;
    uint32_t pc; /* race_place */
};

extern const char *race_kernel; /* that runs */
/* An address in the kernels, as a number from the library's first byte on; 0 for none. */
uint32_t race_place(const void *pc);
/* A pair of places is told once for each kernel; all are counted. */
void race_report(const struct race_side *later, const struct race_side *earlier, bool is_shared);

#endif
