/* cmd/check.h - what cmd/check.c and cmd/check_bench.c share. */
#ifndef MOEBIUS_CMD_CHECK_H
#define MOEBIUS_CMD_CHECK_H

#include <stdbool.h>
#include "base/cpu.h"
#include "base/error.h"

/* Times the kernels of every level up to `best`, of one kind of weights (speed_kind_name) or, if that is NULL, of all, beside what the
 * machine reads and computes; prints the result. */
int check_bench(enum cpu_level best, const char *name, int threads, bool json, struct mo_error *error);

#endif
