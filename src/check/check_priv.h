/* check/check_priv.h - what the files of this folder share: the run, its account of faults, and what the kernels are fed. */
#ifndef MOEBIUS_CHECK_CHECK_PRIV_H
#define MOEBIUS_CHECK_CHECK_PRIV_H

#include "check/check.h"
#include "check/random.h"

enum { CHECK_TOKENS_MAX = 70 };

struct check {
    struct kern ref, kern; /* the plain C of the same order, and what is compared with it */
    struct check_random random;

    char *slots; /* [CHECK_SLOTS] of SLOT_BYTES each, between pages that fault */
    size_t page_bytes;
    int next_slot;
    bool small_blocks; /* FP8 matrices have blocks of 32 columns and, mostly, 32 rows */
    bool at_front;     /* arrays begin at the front page instead of ending at the back one */

    char kernel[32]; /* what is being checked */
    const char *limit;
    double unit;  /* of `limit` */
    double worst; /* largest error, as a share of what is allowed */
    int faults, cases;
    char fault[256]; /* the first one */

    check_sink *sink;
    void *context;
    int passed, failed;
};

/* From here to check_end one kernel is checked; `limit` says what errors are a share of, `unit` how much of it is allowed. */
void check_begin(struct check *check, const char *kernel, uint64_t seed, const char *limit, double unit);
void check_end(struct check *check);

void check_fault(struct check *check, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool check_same_bits(float a, float b); /* any NaN stands for any other */
/* Within `allowed` of the expected value; NaN and Inf exactly where expected. */
void check_value(struct check *check, const char *what, int index, float got, float expected, double allowed);
void check_bits(struct check *check, const char *what, int index, float got, float expected);

/* Forgets all arrays; every fourth round they begin at the front page. */
void check_round(struct check *check, int round);
void *check_alloc(struct check *check, size_t bytes); /* until the next round */
float *check_floats(struct check *check, int n);
float *check_copy(struct check *check, const float *x, int n);

/* Random matrices of every format, and what goes into them. */
enum data_kind { DATA_PLAIN, DATA_TINY, DATA_EXTREME, DATA_ZERO, DATA_SPECIAL, DATA_KINDS };
struct mat check_make_mat(struct check *check, enum mat_format format, int rows, int cols, enum data_kind kind);
/* The same matrix turned (format.h), as the engine likes it best. */
void check_turn(struct check *check, struct mat *m);
/* The least that a matrix of this format can have, of `rows`, and `cols`, or more. */
int check_round_rows(enum mat_format format, int rows);
int check_round_cols(enum mat_format format, int cols);
void check_make_activations(struct check *check, float **x, int n, int cols, enum data_kind kind);
struct q8_row check_make_q8(struct check *check, const float *x, int n, int group); /* by the plain C kernel */

void check_gemm(struct check *check, enum mat_format format, bool quantized); /* gemm.c */
void check_signed_zero(struct check *check);
void check_attention(struct check *check);     /* attention.c */
void check_pairs(struct check *check);         /* pairs.c */
void check_vectors(struct check *check);       /* vectors.c */
void check_float_formats(struct check *check); /* formats.c */
void check_layouts(struct check *check);
void check_decoders(struct check *check);
void check_row_sums(struct check *check);

#endif
