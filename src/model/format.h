/* model/format.h - weight formats: what the bytes of a matrix mean. Everything here is plain data and plain C;
 * kernels read the same struct and are checked against format_decode_rows.
 *
 * A matrix has `rows` outputs and `cols` inputs: y[r] = sum_k W[r][k] * x[k].
 *   F32, F16, BF16  data [rows][cols]
 *   FP8             data [rows][cols] e4m3 (OCP "fn": no infinities, 0x7f and 0xff are NaN), times
 *                   scale[(r / scale_rows) * scale_stride + k / scale_cols]
 *                   (128x128 blocks, one per row, or one for all: see the three fields)
 *   INT4_AWQ        AutoAWQ "gemm": data [cols][rows/8] 32-bit words; nibble j of word c is row
 *                   8c + awq_order[j]; zeros [groups][rows/8] words in the same order; scales16
 *                   [groups][rows] fp16; w = (q - z) * scale; group = k / group_size, the last may be ragged */
#ifndef MOEBIUS_MODEL_FORMAT_H
#define MOEBIUS_MODEL_FORMAT_H

#include <stddef.h>
#include <stdint.h>

enum mat_format { MAT_F32, MAT_F16, MAT_BF16, MAT_FP8, MAT_INT4_AWQ, MAT_FORMATS };

struct mat {
    enum mat_format format;
    int rows, cols;
    const void *data; /* 2-byte aligned at least: safetensors promises no more */

    const float *scale;         /* FP8 */
    int scale_rows, scale_cols; /* FP8: weights per scale in each direction; scale_cols % 32 == 0 or >= cols */
    int scale_stride;           /* FP8: scales per row of scales */

    const uint32_t *zeros;    /* INT4_AWQ [groups][rows/8] */
    const uint16_t *scales16; /* INT4_AWQ [groups][rows] fp16 */
    int group_size;           /* INT4_AWQ: 32, 64 or 128 */
};

extern const uint8_t awq_order[8]; /* {0, 2, 4, 6, 1, 3, 5, 7} */

const char *mat_format_name(enum mat_format format);
/* Bytes that the matrix occupies, scales and zeros included. */
size_t mat_bytes(const struct mat *mat);

/* Exact widening of one value. */
float f16_to_f32(uint16_t bits);
float bf16_to_f32(uint16_t bits);
float e4m3_to_f32(uint8_t bits);
/* Round to nearest even; e4m3 saturates at 448, NaN stays NaN. */
uint16_t f32_to_bf16(float value);
uint8_t f32_to_e4m3(float value);

/* Plain-C decoder, scales applied: rows [r0, r1) into out [r1 - r0][cols] fp32. The definition of every format. */
void format_decode_rows(const struct mat *mat, int r0, int r1, float *out);
/* The same for `count` values of one row, from column k0 on. */
void format_decode_span(const struct mat *mat, int row, int k0, int count, float *out);

#endif
