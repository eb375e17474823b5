/* tests/cuda/card_fixture.h - a model of odd sizes on the shim's card, and what its kernels' results are compared with. */
#ifndef MOEBIUS_TESTS_CUDA_CARD_FIXTURE_H
#define MOEBIUS_TESTS_CUDA_CARD_FIXTURE_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "backend/cuda/cuda.h"

enum { MAX_ROWS = 160, MOST_ROWS = 137, EXPERTS = 12, TOP_K = 3 };

struct fixture {
    struct model model;
    struct weights weights;
    struct layer layers[2];
    struct mlp experts[EXPERTS];
    struct arena *arena;
    struct backend *backend;
    struct cuda *cuda;
};

extern const struct model odd_model;
extern const struct model
    blocks_model; /* whose rows are long enough for GGUF's blocks of 256, where they are not odd */

/* A format and how its scales lie. */
struct style {
    const char *name;
    enum mat_format format;
    int group;                  /* AWQ, INT4, INT8 */
    int scale_rows, scale_cols; /* FP8; 0: one for all */
};

enum { FIRST_GGUF = 16, STYLES = FIRST_GGUF + 13, STYLE_BF16 = 2, STYLE_INT4 = 11, STYLE_Q4_K = FIRST_GGUF + 7 };
extern const struct style styles[STYLES];
/* The model of odd sizes that a style goes with. */
const struct model *model_for(const struct style *style);

uint32_t draw(void);
float uniform(float low, float high);
void fixture_open_as(struct fixture *f, const struct style *style, const struct model *model, enum kv_format kv,
                     enum attention attention);
void fixture_open(struct fixture *f, const struct style *style, const struct model *model, enum kv_format kv);
void fixture_close(struct fixture *f);
float *decode(const struct fixture *f, const struct mat *mat, int r0, int rows);
/* sum of w x, and what an error is measured by: the sum of sizes. */
double dot(const float *w, const float *x, int n, double *size);
void wait_for(struct fixture *f);
/* Set-up and tear-down of a group: memory of a real card is taken where both sides reach it, and the driver is kept in use, so
 * that a card is not prepared anew for every fixture. */
int driver_open(void **unused);
int driver_close(void **unused);
/* Memory that kernels read and write, and so do we. On the shim it ends where nothing may be touched. */
void *card_memory(struct fixture *f, size_t bytes);
void give_back(struct fixture *f, void *at);
/* One product of n rows; x is fp32 or (x_kind X_BF16) bf16. */
void multiply(struct fixture *f, const struct weight *w, enum x_kind kind, const void *x, float *y, int n);
/* Begins a step of one sequence whose rows start at first_pos. */
void begin(struct fixture *f, int n, int first_pos);
void end(struct fixture *f);
float cached(const struct fixture *f, const uint8_t *row, int c);
void fill_cache(struct fixture *f);
/* One (row, head) in double: softmax over the cache, values up; what is wrong is complained of (survey.h). */
void check_attended(const struct fixture *f, int row, int head, int pos, const float *kv_b);

#endif
