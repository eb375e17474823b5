/* selftest/kernels.h - shared by kernels.c (products) and rows.c (all other kernels): memory, numbers, and how a difference is told.
 * Includes: selftest.h. */
#ifndef MOEBIUS_SELFTEST_KERNELS_H
#define MOEBIUS_SELFTEST_KERNELS_H

#include "selftest/selftest.h"

enum {
    SELF_TOKENS = 3, /* different ones; plain C is slow */
    SELF_FEW = 4,    /* batches of them: each kernel has other code for one, for few and for many */
    SELF_MANY = 23,
    SELF_ROWS = 256, /* weight rows for one token: eight panels in step */
    SELF_ROWS_MANY = 64,
    SELF_QUERIES = 9,
    SELF_KEYS = 37,
    SELF_VALUES = 16, /* rows of kv_b */
};

struct self_kernels {
    const struct selftest *test;
    const struct kern *kern; /* under test */
    struct kern plain;       /* has its bits */
    struct selftest_report *report;
    struct mo_error *error;

    float *x[SELF_TOKENS];         /* [widest] activations */
    struct q8_row q[SELF_TOKENS];  /* the same in 8 bits, by plain C */
    struct q8_row got_q;           /* one of them, by the kernel */
    float *got, *want;             /* [SELF_MANY][SELF_ROWS], or [SELF_QUERIES][kv_lora] */
    float *got_row, *want_row;     /* [SELF_KEYS][latent], or [hidden] */
    float *query;                  /* [SELF_QUERIES][latent] */
    float *got_score, *want_score; /* [SELF_QUERIES][KV_PAGE_TOKENS] */
    uint8_t *cache;                /* [SELF_KEYS] rows of the cache, any format */
    uint16_t *query16;             /* [SELF_QUERIES][latent] in bf16 */
    uint16_t *key16, *got16;       /* [SELF_KEYS][latent] */
};

/* The same numbers in every run, roughly normal. */
void self_fill(float *x, int n, uint64_t seed);

/* What has been compared so far, of one kernel. */
struct self_difference {
    int values, differing;
    int first_column; /* what the first value of a row is called */
    int row, column;  /* of the first that differs */
    float got, want;
    double largest;
};
/* Row `row` of what a kernel gave, bit for bit (any NaN stands for any other). */
void self_compare(struct self_difference *d, int row, const float *got, const float *want, int n);
/* 0, or the error: the kernel, where it was used, and the difference. `row` says what a row of the comparison is. */
int self_judge(struct self_kernels *k, const struct self_difference *d, const char *kernel, const char *where,
               const char *row);

/* rows.c: decoders, attention, norms. */
int self_test_rows(struct self_kernels *k);

#endif
