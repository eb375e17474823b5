/* model/weights_float.c - binds matrices of FP8 and FP4, and of others' INT8, whose scales are tensors of their own. V4's scales are powers of two
 * (F8_E8M0): those of FP8 become fp32, as the others' are, those of FP4 stay what they are. */
#include <math.h>
#include <string.h>
#include "model/weights_priv.h"

/* V4's files have a name of their own for scales by blocks; ours keep V3's. */
static const char *block_suffix(const struct binder *b) {
    const bool is_ours = b->model->quant == QUANT_MOEBIUS;
    return model_naming(b->model) == NAMES_HYBRID && !is_ours ? ".scale" : ".weight_scale_inv";
}

/* Powers of two, none of them NaN. All are looked at: they are a sixteenth of FP4's bytes, as good as nothing of FP8's. */
static int check_powers(const struct binder *b, const struct tensor *scale) {
    const uint8_t *bytes = scale->data, *nan = memchr(bytes, 255, scale->bytes);
    if (!nan) return 0;
    return weights_refuse(b, MO_E_NUMERIC, scale, "value %lld is nan: expected finite numbers",
                          (long long)(nan - bytes));
}

static int copy_scales(const struct binder *b, const struct tensor *scale, const float **out) {
    if (scale->dtype != DTYPE_F8_E8M0) return weights_copy_values(b, scale, out);
    int code = check_powers(b, scale);
    if (code) return code;
    float *values = arena_alloc_array(b->arena, (size_t)scale->elements, sizeof *values);
    if (!values) return weights_refuse(b, MO_E_NO_MEMORY, scale, "no memory for its values");
    for (int64_t i = 0; i < scale->elements; i++) values[i] = e8m0_to_f32(((const uint8_t *)scale->data)[i]);
    *out = values;
    return 0;
}

/* One scale per block (V3, V4 128x128; V4.1 32x32), per row, or for the whole matrix. */
static int bind_scales(const struct binder *b, enum role role, bool block, struct mat *mat) {
    const char *suffix = block ? block_suffix(b) : ".weight_scale";
    const int size = model_fp8_block(b->model), block_rows = size, block_cols = size;
    int64_t rows = block ? (mat->rows + block_rows - 1) / block_rows : mat->rows;
    int64_t cols = block ? (mat->cols + block_cols - 1) / block_cols : 1;
    const struct tensor *scale = weights_find(b, role, suffix);
    if (!scale) return weights_missing(b, role, suffix, rows, cols);
    mat->scale_stride = (int)cols;
    mat->scale_rows = block ? block_rows : 1;
    mat->scale_cols = block ? block_cols : mat->cols;
    if (!block && scale->elements == 1) {
        mat->scale_rows = mat->rows;
    } else if (block || scale->n_dims != 1 || scale->shape[0] != rows) { /* [rows] is as good as [rows, 1] */
        int code = weights_check_shape(b, scale, rows, cols);
        if (code) return code;
    }
    return copy_scales(b, scale, &mat->scale);
}

int weights_bind_fp8(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat) {
    const enum quant_kind quant = b->model->quant;
    const bool is_mixed = quant == QUANT_INT8; /* FP8 may stand beside these */
    if (quant != QUANT_FP8_BLOCK && quant != QUANT_FP8_SCALED && quant != QUANT_MOEBIUS && !is_mixed) {
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor,
                              "found F8_E4M3, but config.json has no FP8 quantization_config");
    }
    const bool block = is_mixed ? weights_find(b, role, ".weight_scale_inv") != NULL : quant != QUANT_FP8_SCALED;
    mat->format = MAT_FP8;
    return bind_scales(b, role, block, mat);
}

/* A scale that fp16 cannot hold would be lost when the matrix is turned; those that are too small have nothing to lose. */
static int check_scales_fit(const struct binder *b, const struct tensor *tensor, const struct mat *mat) {
    const size_t n = (mat_bytes(mat) - mat_data_bytes(mat)) / sizeof *mat->scale;
    for (size_t i = 0; i < n; i++) {
        if (isfinite(f16_to_f32(f32_to_f16(mat->scale[i])))) continue;
        return weights_refuse(b, MO_E_NUMERIC, tensor, "scale %zu is %g: expected numbers of at most 65504", i,
                              (double)mat->scale[i]);
    }
    return 0;
}

/* Symmetric, so that there are none, or zeros. */
static int check_zero_points(const struct binder *b, enum role role) {
    const struct tensor *zeros = weights_find(b, role, ".weight_zero_point");
    for (size_t i = 0; zeros && i < zeros->bytes; i++) {
        if (((const uint8_t *)zeros->data)[i])
            return weights_refuse(b, MO_E_UNSUPPORTED, zeros, "expected zeros (INT8 is symmetric), found others");
    }
    return 0;
}

int weights_bind_int8(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat) {
    const int block = b->model->quant_block[0];
    int code = weights_check_shape(b, tensor, mat->rows, mat->cols);
    mat->format = MAT_INT8_ROWS;
    mat->group_size = block ? block : BLOCK_COLS;
    mat->data = tensor->data;
    if (!code) code = bind_scales(b, role, block != 0, mat);
    if (!code) code = check_zero_points(b, role);
    return code ? code : check_scales_fit(b, tensor, mat);
}

int weights_bind_fp8_rows(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat) {
    const char *suffix = block_suffix(b);
    if (mat->cols % FP8_ROW_GROUP) {
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "expected a multiple of %d columns (FP8 table), found %d",
                              FP8_ROW_GROUP, mat->cols);
    }
    const int64_t rows = mat->rows, cols = mat->cols / FP8_ROW_GROUP;
    const struct tensor *scale = weights_find(b, role, suffix);
    if (!scale) return weights_missing(b, role, suffix, rows, cols);
    int code = weights_check_shape(b, scale, rows, cols);
    if (!code && scale->dtype != DTYPE_F8_E8M0) {
        code = weights_refuse(b, MO_E_UNSUPPORTED, scale, "expected F8_E8M0 (scales of a table's rows), found %s",
                              dtype_name(scale->dtype));
    }
    mat->format = MAT_FP8;
    mat->data = tensor->data;
    mat->has_scales8 = true;
    mat->scales8 = scale->data;
    return code;
}

/* I8 [rows][cols / 2] as published, or F4 [rows][cols], which is how safetensors counts them. */
int weights_bind_fp4(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat) {
    const char *suffix = block_suffix(b);
    const bool is_ours = b->model->quant == QUANT_MOEBIUS;
    if (b->model->quant != QUANT_FP8_BLOCK && !is_ours) {
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "found %s, but config.json has no FP8 quantization_config",
                              dtype_name(tensor->dtype));
    }
    if (mat->cols % FP4_GROUP) {
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "expected inputs in multiples of %d for FP4, found %d",
                              FP4_GROUP, mat->cols);
    }
    int code = weights_check_shape(b, tensor, mat->rows, tensor->dtype == DTYPE_I8 ? mat->cols / 2 : mat->cols);
    if (code) return code;
    const struct tensor *scale = weights_find(b, role, suffix);
    if (!scale) return weights_missing(b, role, suffix, mat->rows, mat->cols / FP4_GROUP);
    code = weights_check_shape(b, scale, mat->rows, mat->cols / FP4_GROUP);
    if (!code && scale->dtype != DTYPE_F8_E8M0) {
        code = weights_refuse(b, MO_E_UNSUPPORTED, scale, "expected F8_E8M0 (scales of FP4), found %s",
                              dtype_name(scale->dtype));
    }
    if (!code && !is_ours) code = check_powers(b, scale); /* of our files `info --verify` looks at them */
    mat->format = MAT_FP4;
    mat->data = tensor->data;
    mat->scales8 = scale->data;
    return code;
}
