/* model/weights_priv.h - what the files that bind tensors share: weights.c, weights_hybrid.c for V4's own, and those of formats. Private to
 * src/model. */
#ifndef MOEBIUS_MODEL_WEIGHTS_PRIV_H
#define MOEBIUS_MODEL_WEIGHTS_PRIV_H

#include "base/arena.h"
#include "base/pool.h"
#include "model/weights.h"

/* The binding in progress. `used` marks tensors that have found their place; what is left at the end is unknown. */
struct binder {
    const struct model *model;
    const struct checkpoint *checkpoint;
    struct arena *arena;
    bool *used;        /* [n_tensors] */
    int layer, expert; /* what names are made with */
    int threads;
    struct pool *pool; /* NULL before the first kv_b that is joined */
    struct mo_error *error;
};

/* The tensor of a role, marked as used; NULL: there is none. */
const struct tensor *weights_find(const struct binder *b, enum role role, const char *suffix);
/* An error that names file and tensor. */
__attribute__((format(printf, 4, 5))) int weights_refuse(const struct binder *b, int code, const struct tensor *tensor,
                                                         const char *format, ...);
/* An error that names the tensor which is not there, and the shape that it should have (cols 0: one dimension). */
int weights_missing(const struct binder *b, enum role role, const char *suffix, int64_t rows, int64_t cols);
int weights_check_shape(const struct binder *b, const struct tensor *tensor, int64_t rows, int64_t cols);
int weights_check_alignment(const struct binder *b, const struct tensor *tensor);
/* Every value of an F32, F16 or BF16 tensor. */
int weights_check_finite(const struct binder *b, const struct tensor *tensor);
/* A small tensor as fp32 in the arena, every value finite. */
int weights_copy_values(const struct binder *b, const struct tensor *tensor, const float **out);
int weights_bind_vector(const struct binder *b, enum role role, const char *suffix, int n, const float **out);
int weights_bind_matrix(const struct binder *b, enum role role, int rows, int cols, struct mat *mat);

/* weights_float.c: narrow floats and INT8, whose scales are tensors of their own. `tensor` has the values; its shape is FP4's and INT8's
 * to check. */
int weights_bind_fp8(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat);
int weights_bind_int8(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat);
int weights_bind_fp4(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat);

/* An n-gram table of FP8: [rows][cols] with a scale for every 32 values of a row, which nobody looks at before it is used. */
int weights_bind_fp8_rows(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat);

/* weights_words.c: other people's INT4. Whether the role has such tensors, and the first of them. */
const struct tensor *weights_find_words(const struct binder *b, enum role role);
int weights_bind_words(const struct binder *b, enum role role, const struct tensor *words, struct mat *mat);

/* weights_hybrid.c: attention and hyper-connections of a layer, the table of one that chooses by token, and the head's mixer. */
int weights_bind_hybrid_layer(struct binder *b, struct layer *layer);
int weights_bind_hybrid_table(struct binder *b, struct layer *layer);
int weights_bind_hybrid_head(struct binder *b, struct weights *weights);

#endif
