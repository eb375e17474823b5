/* kv_b from the two parts that llama.cpp's converter has cut it into since April 2025.
 *
 * A head of kv_b is [nope rows | v rows] of kv_lora values. The file has its first part transposed, [heads][kv_lora][nope], and its
 * second as it is, [heads][v][kv_lora]. A transposed row crosses the blocks of a block format, so the whole is put together in
 * memory: in the parts' own type where that is F32, F16 or BF16, and of blocks in F16. That rounds a value to 11 bits, by
 * 2^-12 of itself at most: of Q8_0, the finest of them, not more than a thirtieth of a step. */
#include "model/gguf/gguf.h"

#include <math.h>
#include <stdlib.h>
#include "model/model.h"

enum mat_format gguf_joined_format(enum mat_format k, enum mat_format v) {
    if (k == v && (k == MAT_F32 || k == MAT_F16 || k == MAT_BF16)) return k;
    bool wide = k == MAT_F32 || v == MAT_F32 || k == MAT_BF16 || v == MAT_BF16;
    return wide ? MAT_F32 : MAT_F16;
}

/* A value that does not fit. */
struct fault {
    const struct tensor *part; /* NULL: none */
    float value;
};

/* The join in progress: a task is a head. */
struct joiner {
    const struct model *model;
    const struct tensor *k, *v;
    struct mat k_b, v_b;
    struct mat *mat;      /* [heads * (nope + v)][kv_lora] */
    void *data;           /* the same bytes as mat->data */
    size_t part_floats;   /* max(kv_lora * nope, v * kv_lora) */
    float *parts;         /* [threads][part_floats] */
    struct fault *faults; /* [heads] the last of each */
};

static void store(const struct joiner *j, struct fault *fault, const struct tensor *from, int64_t row, int64_t k,
                  float value) {
    int64_t at = row * j->mat->cols + k;
    float stored = value;
    if (j->mat->format == MAT_F32) {
        ((float *)j->data)[at] = value;
    } else if (j->mat->format == MAT_F16) {
        uint16_t bits = f32_to_f16(value);
        ((uint16_t *)j->data)[at] = bits;
        stored = f16_to_f32(bits);
    } else {
        ((uint16_t *)j->data)[at] = f32_to_bf16(value);
    }
    if (!isfinite(stored)) *fault = (struct fault){from, value};
}

static void join_head(void *context, int head, int worker) {
    const struct joiner *j = context;
    int nope = j->model->nope_dim, v_dim = j->model->v_dim, lora = j->model->kv_lora;
    int64_t first = (int64_t)head * (nope + v_dim);
    float *part = j->parts + (size_t)worker * j->part_floats;
    struct fault *fault = &j->faults[head];
    format_decode_rows(&j->k_b, head * lora, (head + 1) * lora, part);
    for (int i = 0; i < nope; i++) {
        for (int c = 0; c < lora; c++) store(j, fault, j->k, first + i, c, part[(int64_t)c * nope + i]);
    }
    format_decode_rows(&j->v_b, head * v_dim, (head + 1) * v_dim, part);
    for (int i = 0; i < v_dim; i++) {
        for (int c = 0; c < lora; c++) store(j, fault, j->v, first + nope + i, c, part[(int64_t)i * lora + c]);
    }
}

/* As a matrix of n_rows; older converters of other programs write two dimensions instead of three. */
static int view(const struct tensor *tensor, const char *path, int64_t n_rows, int cols, struct mat *mat,
                struct mo_error *error) {
    char found[TENSOR_SHAPE_BYTES];
    *mat = (struct mat){.rows = (int)n_rows, .cols = cols, .data = tensor->data};
    if (tensor->elements != n_rows * cols || tensor->shape[tensor->n_dims - 1] != cols) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: tensor %s: expected %lld rows of %d (by its keys), found %s",
                            path, tensor->name, (long long)n_rows, cols, tensor_shape_text(tensor, found));
    }
    if (gguf_mat_format(tensor->dtype, &mat->format)) return 0;
    return mo_error_set(error, MO_E_UNSUPPORTED, "%s: tensor %s: found %s, which a matrix cannot be", path,
                        tensor->name, dtype_name(tensor->dtype));
}

static int run_heads(struct joiner *j, const char *path, struct pool *pool, struct mo_error *error) {
    pool_run(pool, j->model->heads, join_head, j);
    for (int head = 0; head < j->model->heads; head++) {
        const struct fault *fault = &j->faults[head];
        if (!fault->part) continue;
        return mo_error_set(error, MO_E_NUMERIC, "%s: tensor %s: a value is %g: expected finite numbers", path,
                            fault->part->name, (double)fault->value);
    }
    return 0;
}

int gguf_join_kv_b(const struct model *model, const struct tensor *k, const struct tensor *v, const char *path,
                   struct pool *pool, struct arena *arena, struct mat *mat, struct mo_error *error) {
    int nope = model->nope_dim, v_dim = model->v_dim, lora = model->kv_lora;
    struct joiner j = {.model = model, .k = k, .v = v, .mat = mat};
    int code = view(k, path, (int64_t)model->heads * lora, nope, &j.k_b, error);
    if (!code) code = view(v, path, (int64_t)model->heads * v_dim, lora, &j.v_b, error);
    if (code) return code;
    *mat = (struct mat){
        .format = gguf_joined_format(j.k_b.format, j.v_b.format), .rows = model->heads * (nope + v_dim), .cols = lora};
    mat->data = j.data = arena_alloc(arena, mat_bytes(mat));
    j.part_floats = (size_t)lora * (size_t)(nope > v_dim ? nope : v_dim);
    j.parts = malloc((size_t)pool_threads(pool) * j.part_floats * sizeof *j.parts);
    j.faults = calloc((size_t)model->heads, sizeof *j.faults);
    code = j.data && j.parts && j.faults
               ? run_heads(&j, path, pool, error)
               : mo_error_set(error, MO_E_NO_MEMORY, "%s: tensor %s: no memory to join it with the other part", path,
                              k->name);
    free(j.parts);
    free(j.faults);
    return code;
}
