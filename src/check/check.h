/* check/check.h - every CPU kernel of every level against the plain C one, bit for bit, and against the same sums in double.
 *
 * Arrays end or begin at pages that may not be touched, so a stray access ends the program. Besides values, the sameness
 * that kern.h promises is checked: a token alone and in batches, a row alone and in ranges. The data has odd sizes, ragged
 * groups, subnormal numbers, extreme scales of either sign, NaN and Inf. The same random numbers come in every run.
 * One thread. Includes: base, model, backend. */
#ifndef MOEBIUS_CHECK_CHECK_H
#define MOEBIUS_CHECK_CHECK_H

#include <stdbool.h>
#include "backend/cpu/kern.h"
#include "base/error.h"

/* What one kernel of one level did over all its cases. */
struct check_line {
    const char *level, *kernel;
    int cases;
    double max_error; /* the largest, as a share of what `limit` says */
    const char *limit;
    const char *fault; /* the first one in words; NULL: none */
};
typedef void check_sink(void *context, const struct check_line *line);

struct check;
int check_open(struct check **check, check_sink *sink, void *context, struct mo_error *error);
void check_close(struct check *check); /* accepts NULL */

/* All kernels of a level that this machine has. */
void check_level(struct check *check, enum cpu_level level);
/* The products of one format with 8-bit activations alone, of any table: for tests of other builds of them. */
void check_product(struct check *check, const struct kern *kern, enum mat_format format);

int check_passed(const struct check *check);
int check_failed(const struct check *check);
/* What is being checked right now, for whoever catches a stray access. */
const char *check_now_level(const struct check *check);
const char *check_now_kernel(const struct check *check);

#endif
