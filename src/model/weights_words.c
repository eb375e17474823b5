/* model/weights_words.c - finds the tensors of other people's INT4 and checks them: AutoAWQ's and AutoGPTQ's qweight, qzeros, scales and
 * g_idx; compressed-tensors' weight_packed, weight_scale, weight_zero_point and weight_shape. Sources: AutoGPTQ and GPTQModel (qlinear),
 * compressed-tensors (compressors/quantized_compressors/pack_quantized.py). */
#include <string.h>

#include "model/weights_priv.h"

/* One of the tensors of a matrix; dtype DTYPE_F32 stands for F16 and BF16, too. */
static int find_part(const struct binder *b, enum role role, const char *suffix, enum dtype dtype, int64_t rows,
                     int64_t cols, const struct tensor **out) {
    const struct tensor *tensor = weights_find(b, role, suffix);
    if (!tensor) return weights_missing(b, role, suffix, rows, cols);
    *out = tensor;
    int code = weights_check_shape(b, tensor, rows, cols);
    if (!code) code = weights_check_alignment(b, tensor);
    const bool any_float = dtype == DTYPE_F32 && (tensor->dtype == DTYPE_F16 || tensor->dtype == DTYPE_BF16);
    if (code || tensor->dtype == dtype || any_float) return code;
    return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "expected %s, found %s",
                          dtype == DTYPE_F32 ? "F16, BF16 or F32" : dtype_name(dtype), dtype_name(tensor->dtype));
}

static void take_scales(const struct tensor *scales, struct mat *mat) {
    mat->scales16 = scales->data;
    mat->scales_format = scales->dtype == DTYPE_F16 ? MAT_F16 : scales->dtype == DTYPE_BF16 ? MAT_BF16 : MAT_F32;
}

/* What k a group has; returns how many groups there are. */
static int64_t take_groups(const struct binder *b, struct mat *mat) {
    mat->one_group = !b->model->quant_group;
    mat->group_size = mat->one_group ? BLOCK_COLS : b->model->quant_group;
    return mat->one_group ? 1 : ((int64_t)mat->cols + mat->group_size - 1) / mat->group_size;
}

/* AWQ's, and GPTQ's, which lie along the rows but for the values. */
static int bind_rows(const struct binder *b, enum role role, int64_t rows, int64_t cols, enum dtype scale,
                     struct mat *mat) {
    const struct tensor *words, *zeros, *scales;
    const int64_t groups = take_groups(b, mat);
    int code = find_part(b, role, ".qweight", DTYPE_I32, rows, cols, &words);
    if (!code) code = find_part(b, role, ".qzeros", DTYPE_I32, groups, mat->rows / 8, &zeros);
    if (!code) code = find_part(b, role, ".scales", scale, groups, mat->rows, &scales);
    if (!code) code = weights_check_finite(b, scales);
    if (code) return code;
    mat->data = words->data;
    mat->zeros = zeros->data;
    take_scales(scales, mat);
    return 0;
}

static int bind_awq(const struct binder *b, enum role role, struct mat *mat) {
    mat->format = MAT_INT4_AWQ;
    return bind_rows(b, role, mat->cols, mat->rows / 8, DTYPE_F16, mat);
}

/* The group of each column, which must be what it would be without the tensor. */
static int check_order(const struct binder *b, enum role role, const struct mat *mat) {
    const struct tensor *order = weights_find(b, role, ".g_idx");
    if (!order) return 0;
    int code = weights_check_shape(b, order, mat->cols, 0);
    if (!code && order->dtype != DTYPE_I32)
        code = weights_refuse(b, MO_E_UNSUPPORTED, order, "expected I32, found %s", dtype_name(order->dtype));
    for (int k = 0; k < mat->cols && !code; k++) {
        const int expected = mat->one_group ? 0 : k / mat->group_size;
        int32_t group;
        memcpy(&group, (const uint8_t *)order->data + (size_t)k * sizeof group, sizeof group);
        if (group == expected) continue;
        code = weights_refuse(b, MO_E_UNSUPPORTED, order,
                              "column %d is in group %d, expected %d: columns that are sorted by activation (desc_act) "
                              "are not supported",
                              k, (int)group, expected);
    }
    return code;
}

static int bind_gptq(const struct binder *b, enum role role, const struct tensor *words, struct mat *mat) {
    if (mat->cols % 8)
        return weights_refuse(b, MO_E_UNSUPPORTED, words, "expected inputs in eights, found %d", mat->cols);
    mat->format = MAT_INT4_GPTQ;
    mat->zero_bias = b->model->quant_zero_bias;
    int code = bind_rows(b, role, mat->cols / 8, mat->rows, DTYPE_F32, mat);
    return code ? code : check_order(b, role, mat);
}

/* The matrix's own shape, which its words do not tell. */
static int check_own_shape(const struct binder *b, enum role role, const struct mat *mat) {
    const struct tensor *shape;
    int64_t size[2];
    int code = find_part(b, role, ".weight_shape", DTYPE_I64, 2, 0, &shape);
    if (code) return code;
    memcpy(size, shape->data, sizeof size);
    if (size[0] == mat->rows && size[1] == mat->cols) return 0;
    return weights_refuse(b, MO_E_CORRUPT, shape, "expected %d, %d (by config.json), found %lld, %lld", mat->rows,
                          mat->cols, (long long)size[0], (long long)size[1]);
}

static int bind_packed(const struct binder *b, enum role role, struct mat *mat) {
    const struct tensor *words, *scales, *zeros = NULL, *order = weights_find(b, role, ".weight_g_idx");
    const int64_t groups = take_groups(b, mat), rows = mat->rows;
    if (order) {
        return weights_refuse(b, MO_E_UNSUPPORTED, order,
                              "columns that are sorted by activation (actorder) are not supported");
    }
    int code = find_part(b, role, ".weight_packed", DTYPE_I32, rows, (mat->cols + 7) / 8, &words);
    if (!code) code = find_part(b, role, ".weight_scale", DTYPE_F32, rows, groups, &scales);
    if (!code && !b->model->quant_symmetric)
        code = find_part(b, role, ".weight_zero_point", DTYPE_I32, (rows + 7) / 8, groups, &zeros);
    if (!code) code = check_own_shape(b, role, mat);
    if (!code) code = weights_check_finite(b, scales);
    if (code) return code;
    mat->format = MAT_INT4_PACKED;
    mat->data = words->data;
    mat->zeros = zeros ? zeros->data : NULL;
    take_scales(scales, mat);
    return 0;
}

const struct tensor *weights_find_words(const struct binder *b, enum role role) {
    const struct tensor *words = weights_find(b, role, ".qweight");
    return words ? words : weights_find(b, role, ".weight_packed");
}

int weights_bind_words(const struct binder *b, enum role role, const struct tensor *words, struct mat *mat) {
    const enum quant_kind quant = b->model->quant;
    const size_t length = strlen(words->name), end = strlen(".qweight");
    const bool is_packed = length < end || strcmp(words->name + length - end, ".qweight") != 0;
    if (is_packed ? quant != QUANT_PACKED : quant != QUANT_AWQ && quant != QUANT_GPTQ) {
        return weights_refuse(b, MO_E_UNSUPPORTED, words,
                              "found packed weights, but config.json has no %s quantization_config",
                              is_packed ? "pack-quantized" : "AWQ or GPTQ");
    }
    if (is_packed) return bind_packed(b, role, mat);
    if (mat->rows % 8)
        return weights_refuse(b, MO_E_UNSUPPORTED, words, "expected outputs in eights, found %d", mat->rows);
    return quant == QUANT_AWQ ? bind_awq(b, role, mat) : bind_gptq(b, role, words, mat);
}
