/* model/fp4.c - the plain-C meaning of FP4: e2m1 values with an e8m0 scale for each 32 of a row. Source: OCP Microscaling Formats,
 * v1.0 (MXFP4); where the bytes lie: transformers 5.23, integrations/finegrained_fp8.py. */
#include "model/format.h"
#include "model/format_priv.h"

const uint8_t *fp4_row_at(const struct mat *mat, int row) {
    return (const uint8_t *)mat->data + (size_t)row * (size_t)(mat->cols / 2);
}

const uint8_t *fp4_scales_at(const struct mat *mat, int row) {
    return mat->scales8 + (size_t)row * (size_t)(mat->cols / FP4_GROUP);
}

void fp4_take_apart(const struct mat *mat, int row, int group, struct gguf_parts *out) {
    const uint8_t *at = fp4_row_at(mat, row) + group * (FP4_GROUP / 2);
    out->values = out->per_scale = FP4_GROUP;
    out->has_low = false;
    out->scale[0] = e8m0_to_f32(fp4_scales_at(mat, row)[group]) * 0.5f; /* exact: subnormal at most */
    for (int i = 0; i < FP4_GROUP; i++) out->q[i] = gguf_mxfp4_values[at[i / 2] >> i % 2 * 4 & 15];
}

void fp4_decode_span(const struct mat *mat, int row, int k0, int count, float *out) {
    struct gguf_parts parts;
    for (int k = k0; k < k0 + count; k++) {
        if (k == k0 || k % FP4_GROUP == 0) fp4_take_apart(mat, row, k / FP4_GROUP, &parts);
        *out++ = parts.scale[0] * (float)parts.q[k % FP4_GROUP];
    }
}
