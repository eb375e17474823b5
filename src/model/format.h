/* model/format.h - weight formats: what the bytes of a matrix mean. Everything here is plain data and plain C;
 * kernels read the same struct and are checked against format_decode_rows.
 *
 * A matrix has `rows` outputs and `cols` inputs: y[r] = sum_k W[r][k] * x[k].
 *   F32, F16, BF16  data [rows][cols]
 *   FP8             data [rows][cols] e4m3 (OCP "fn": no infinities, 0x7f and 0xff are NaN), times
 *                   scale[(r / scale_rows) * scale_stride + k / scale_cols]
 *                   (128x128 blocks, one per row, or one for all: see the three fields)
 *   FP4             DeepSeek-V4's experts (OCP's MXFP4, scales apart): data [rows][cols / 2], byte i holds the e2m1 values of
 *                   k = 2i low, 2i + 1 high; scales8 [rows][cols / 32] e8m0; w = 2^(scale - 128) * gguf_mxfp4_values[q], that is
 *                   2^(scale - 127) times the value (-0 being 0); a scale of 255 makes 32 NaN. cols is a multiple of 32
 *   INT4_AWQ        AutoAWQ "gemm": data [cols][rows/8] 32-bit words; nibble j of word c is row
 *                   8c + awq_order[j]; zeros [groups][rows/8] words in the same order; scales16
 *                   [groups][rows] fp16; w = (q - z) * scale; group = k / group_size, the last may be ragged
 *   INT4_GPTQ       AutoGPTQ: data [cols/8][rows] words, nibble j of word c is k = 8c + j; zeros [groups][rows/8] words,
 *                   nibble j of word c is row 8c + j: (z - zero_bias) mod 16; scales [groups][rows]; w as AWQ
 *   INT4_PACKED     compressed-tensors "pack-quantized": data [rows][cols/8] words, nibble j of word c is k = 8c + j; zeros
 *                   [rows/8][groups] words (rounded up), nibble j of word c is row 8c + j, or NULL: 8; scales [rows][groups]; w as AWQ
 *   INT8_ROWS       others' INT8 (compressed-tensors "int-quantized", SGLang's w8a8_int8 and blockwise_int8): data [rows][cols]
 *                   signed bytes, scales as FP8: no kernel but plain C reads it, it is turned into INT8 with groups of group_size
 *   INT4, INT8      our own: blocks of 32 rows x 128 k, see below
 *   Q4_0 ... MXFP4  GGUF's: blocks of 32 or 256 k of one row, as in the file, see below */
#ifndef MOEBIUS_MODEL_FORMAT_H
#define MOEBIUS_MODEL_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* clang-format off */
enum mat_format {
    MAT_F32, MAT_F16, MAT_BF16, MAT_FP8, MAT_FP4, MAT_INT4_AWQ, MAT_INT4_GPTQ, MAT_INT4_PACKED, MAT_INT8_ROWS,
    MAT_INT4, MAT_INT8,
    MAT_Q4_0, MAT_Q4_1, MAT_Q5_0, MAT_Q5_1, MAT_Q8_0, MAT_Q2_K, MAT_Q3_K, MAT_Q4_K, MAT_Q5_K, MAT_Q6_K,
    MAT_IQ4_NL, MAT_IQ4_XS, MAT_IQ1_S, MAT_IQ1_M, MAT_IQ2_XXS, MAT_IQ2_XS, MAT_IQ2_S, MAT_IQ3_XXS, MAT_IQ3_S,
    MAT_TQ1_0, MAT_TQ2_0, MAT_MXFP4,
    MAT_FORMATS
};
/* clang-format on */

struct mat {
    enum mat_format format;
    int rows, cols;
    const void *data; /* 2-byte aligned at least (FP4, MXFP4: not even that): files promise no more */

    const float *scale;         /* FP8, INT8_ROWS */
    int scale_rows, scale_cols; /* the same: weights per scale in each direction; scale_cols % 32 == 0 or >= cols */
    int scale_stride;           /* the same: scales per row of scales */

    bool has_scales8;              /* FP8: scales8 instead of scale and its three fields */
    const uint8_t *scales8;        /* FP4; FP8 with has_scales8: [rows][cols / 32] e8m0 */
    const uint32_t *zeros;         /* words of AWQ, GPTQ, PACKED */
    const uint16_t *scales16;      /* the same, in scales_format: halves, or floats */
    enum mat_format scales_format; /* F16 (AWQ always), BF16, or F32, whose last four bits count as 0 */
    int zero_bias;                 /* GPTQ: 1 in files of the first version, which store z - 1 */
    bool one_group; /* GPTQ, PACKED: the file has one scale and zero point a row, whatever group_size says */
    int group_size; /* words, INT4, INT8: k with one scale: 32, 64 or 128; INT8_ROWS: once it is turned */

    bool turned; /* words, GGUF's blocks: TURN_ROWS rows side by side, see below */
};

/* The block layout of INT4 and INT8, w = q * scale, symmetric. A matrix is panels of 32 rows; a panel is its blocks in
 * ascending k, one after another; a block is 32 rows x 128 k, its scales behind its values:
 *
 *   for each half of 16 rows
 *     for each tile of 64 k
 *       INT4  8 lines of 64 bytes: line l, byte 4n + i is row n; low nibble k = 4l + i, high nibble k = 32 + 4l + i;
 *             a nibble is q + 8, q in [-8, 7]
 *       INT8  16 lines of 64 bytes: line l, byte 4n + i is row n, k = 4l + i; a byte is q + 128 (what is made here has no -128)
 *   for each group of k in the block (1, 2 or 4 of them)
 *     scales of the 32 rows, fp16
 *
 * So a line is what a dot product of bytes wants (a lane is a row, no sum across lanes), and a tile is what a matrix
 * unit wants. A block is a whole number of lines, never a power of two, so that parallel streams of panels do not meet
 * in one cache set. Rows past the last and k past the last are q = 0 with scale 0. Blocks start at multiples of 64 bytes
 * in files and in memory that we make; readers need no alignment. */
enum { BLOCK_ROWS = 32, BLOCK_COLS = 128, BLOCK_TILE = 64, BLOCK_LINE = 64 };

/* Is it stored in these blocks? */
static inline bool mat_is_integer(enum mat_format format) {
    return format == MAT_INT4 || format == MAT_INT8;
}

/* What one block takes: 2112, 2176 or 2304 bytes for INT4 and 4160, 4224 or 4352 for INT8, at groups of 128, 64, 32. */
size_t block_bytes(enum mat_format format, int group_size);
/* The format and group size of blocks of this many bytes; returns -1 if there are none. */
int block_format_of(size_t bytes, enum mat_format *format, int *group_size);
/* Bytes of one panel: from a panel to the next. */
size_t block_panel_bytes(const struct mat *mat);
/* Writes one row of one group: q [group_size] (values past the end of the row are 0) and the scale's fp16 bits. `data` is
 * the matrix's blocks, zeroed by block_clear before. */
void block_put_group(const struct mat *mat, void *data, int row, int group, const int8_t *q, uint16_t scale);
/* One value, q, and its scale's fp16 bits. */
int block_value(const struct mat *mat, int row, int k);
uint16_t block_scale(const struct mat *mat, int row, int k);
/* All q = 0 and all scales 0: `data` [mat_bytes(mat)]. */
void block_clear(const struct mat *mat, void *data);

/* Writes one whole panel, block_panel_bytes(mat) of it: q [32][blocks * 128] and the scales' fp16 bits [32][blocks * groups a
 * block]; what lies past the matrix must be 0 in both. */
void block_pack_panel(const struct mat *mat, const int8_t *q, const uint16_t *scales, void *panel);

/* Makes what lies past the matrix 0 in some of its panels. */
void block_clear_outside(const struct mat *mat, void *data, int from_panel, int to_panel);

/* Is it other people's INT4, with zero points? All three are turned into one order, which is what fast kernels read: panels of 16
 * rows, the missing ones of the last 0. A panel is, for each group of k, a line with a word for each row, the scale's fp32 bits with
 * the zero point in the last four (fp16 and bf16 have none there, so nothing is lost); then for each 32 k four lines with a word for
 * each row: byte i of line l holds k = 4l + i low, k = 16 + 4l + i high. k past the last are q = 0. */
static inline bool mat_is_words(enum mat_format format) {
    return format >= MAT_INT4_AWQ && format <= MAT_INT4_PACKED;
}
enum { WORDS_STEP = 32, WORDS_MIDDLE = 8 /* the zero point where the file has none */ };
/* w = (value - zero) * scale, as published or turned. */
int words_value(const struct mat *mat, int row, int k);
int words_zero(const struct mat *mat, int row, int k);
float words_scale(const struct mat *mat, int row, int k);
/* Rows [8 * word, 8 * word + 8) of GPTQ's or PACKED's words as AWQ's: fills their places in to's data, zeros and scales16 (all
 * rows'), which are written whatever the qualifiers say. Takes rows in eights. False: a scale is no fp16 number. */
bool words_to_awq(const struct mat *from, int word, const struct mat *to);
/* Bytes beside mat->data, as published: scales; zero points. */
size_t words_scale_bytes(const struct mat *mat);
size_t words_zero_bytes(const struct mat *mat);
/* Turned: bytes from a panel to the next; where the panel that a row is in begins; bytes from there to the line before the values of
 * column k's step, which is the group's line of scales where the step begins a group. */
size_t words_panel_bytes(const struct mat *mat);
const uint8_t *words_rows_at(const struct mat *mat, int row);
size_t words_turned_at(const struct mat *mat, int k);

/* The formats of GGUF files that have blocks. Source: llama.cpp, ggml/src/ggml-common.h (the blocks) and ggml-quants.c (what
 * they mean). data [rows][cols / values] blocks, cols a multiple of the block's values; numbers are little-endian, d, m and
 * dmin fp16. A block of 256 has a scale for each 16 or 32 values in turn, number j of them that of values j * 16 or j * 32 on.
 * Sets of bits, lowest first; "nibbles" are 16 bytes for 32 values: byte i holds value i low, value i + 16 high.
 *
 *   name    values  bytes
 *   Q4_0    32      18   d, nibbles; w = d * (q - 8)
 *   Q4_1    32      20   d, m, nibbles; w = d * q + m
 *   Q5_0    32      22   d, 32 fifth bits (one a value, in order), nibbles; w = d * (q - 16)
 *   Q5_1    32      24   d, m, 32 fifth bits, nibbles; w = d * q + m
 *   Q8_0    32      34   d, 32 signed bytes; w = d * q
 *   IQ4_NL  32      18   d, nibbles; w = d * gguf_iq4_values[q]
 *   Q2_K    256     84   16 bytes: a scale low, a minimum high, four bits each; 64 bytes of two bits; d, dmin;
 *                        w = d * scale * q - dmin * minimum
 *   Q3_K    256     110  32 bytes of highest bits: byte i holds those of values i, i + 32, ...; 64 bytes of two bits;
 *                        12 bytes of scales; d; w = d * (scale - 32) * (q - 4), q of three bits. The scales have six bits:
 *                        the low four are the nibbles of eight bytes (byte i: scale i low, scale i + 8 high), the high
 *                        two lie in the last four (byte i: those of scales i, i + 4, i + 8, i + 12)
 *   Q4_K    256     144  d, dmin; 12 bytes of scales and minimums; 128 bytes of four bits; w as Q2_K. Six bits each: scale j
 *                        and minimum j, j < 4, are the low six of bytes j and 4 + j; of scale and minimum 4 + j the low
 *                        four bits are the nibbles of byte 8 + j and the high two those of bytes j and 4 + j
 *   Q5_K    256     176  d, dmin; 12 bytes as Q4_K; 32 bytes of fifth bits as Q3_K's highest; 128 bytes of four bits; w as Q2_K
 *   Q6_K    256     210  128 bytes of low four bits, 64 of them for 128 values: byte i holds value i low, value i + 64 high;
 *                        64 bytes of the high two bits; 16 scales, signed bytes; d; w = d * scale * (q - 32)
 *   IQ4_XS  256     136  d; 16 bits: the high two of eight scales; 4 bytes: their low four, two a byte; nibbles of each 32
 *                        values; w = d * (scale - 32) * gguf_iq4_values[q]
 *   MXFP4   32      17   8 bits e, nibbles; w = 2^(e - 128) * gguf_mxfp4_values[q]
 *   TQ2_0   256     66   64 bytes of two bits; d; w = d * (q - 1)
 *   TQ1_0   256     54   five base-3 digits a byte: 32 bytes hold values i, i + 32, ..., i + 128, then 16 bytes values 160 + i, i +
 *                        16, ..., i + 64, then 4 bytes values 240 + i, ..., i + 12 (four digits); d; w = d * (q - 1). Digit n of a
 *                        byte is the whole part of 3 / 256 times (byte * 3^n mod 256)
 *   IQ2_XXS 256     66   d; for each 32 values: four indices of 8 bits, then a word: four times seven signs, a scale of four bits
 *   IQ2_XS  256     74   d; for each 8 values 16 bits: an index of nine bits, seven signs; 16 scales of four bits
 *   IQ2_S   256     82   d; 32 low bytes of indices; 32 bytes of signs; 8 bytes: the high two bits of 32 indices; 16 scales of
 *                        four bits; all three: w = d * (2 * scale + 1) / 8 * value
 *   IQ3_XXS 256     98   d; 64 indices of 8 bits; eight words as IQ2_XXS has; w = d * (2 * scale + 1) / 4 * value
 *   IQ3_S   256     110  d; 64 low bytes of indices; 64 high bits of these; 32 bytes of signs; 8 scales of four bits;
 *                        w = d * (2 * scale + 1) * value
 *   IQ1_S   256     50   d; 32 low bytes of indices; for each 32 values 16 bits: the high three bits of four indices, a scale of
 *                        three bits, a sign; w = d * (2 * scale + 1) * (value + 1/8, or - 1/8 where the sign is set)
 *   IQ1_M   256     56   32 low bytes of indices; 32 nibbles: the high three bits of an index, a sign; 8 bytes: four times 16 bits
 *                        with four scales of three bits and four bits of d, lowest first; w as IQ1_S
 *
 * Two bits: 32 bytes hold 128 values, byte i value i lowest, then i + 32, i + 64 and i + 96. Four bits (Q4_K, Q5_K): 32 bytes
 * hold 64 values, byte i value i low, value i + 32 high. IQ1 and IQ2 have an index for each eight values, IQ3 for each four: grids
 * say what it stands for. Signs come in eights, a bit is set where a value is negative; of seven the eighth makes their number even.
 * Products are exact in fp32, so w has one rounding where it has a difference or a sum, and none elsewhere (IQ1 becomes a product of
 * eighths). */
struct gguf_parts { /* a block taken apart: w = scale * q (+ low, if there is one) */
    int values, per_scale;
    bool has_low;
    float scale[16]; /* [values / per_scale] with d */
    float low[16];   /* [values / per_scale] what is added: m, or -dmin * minimum */
    int8_t q[256];   /* [values] */
};

/* The values and bytes of a block; false if the format is none of GGUF's, and nothing is written. */
bool gguf_block(enum mat_format format, int *values, size_t *bytes);
bool gguf_is_blocks(enum mat_format format);
/* Where the blocks of a row begin; turned: of the panel that the row is in. */
const uint8_t *gguf_rows_at(const struct mat *mat, int row);
/* One block, as in the file: there, or put together in room [GGUF_BLOCK_MAX]. */
const uint8_t *gguf_block_at(const struct mat *mat, int row, int block, uint8_t *room);

/* The same blocks turned: what a product reads when rows are lanes, line after line. A matrix is panels of 16 rows, the missing
 * ones of the last 0. A panel is, for each block, word after word (32 bits) those of all rows; then, where a block has 4n + 2
 * bytes, for each block the lone halves of all rows, which are in none of the words: the block's first (d), or Q3_K's and Q6_K's
 * last. So a panel has the bytes of its rows. Kernels take r0 that are multiples of 16 then. */
enum { TURN_ROWS = 16, GGUF_BLOCK_MAX = 210 };
/* Words, and the formats of blocks without a grid, down to IQ4_XS. */
bool mat_can_turn(enum mat_format format);
/* Are there no fast kernels for it as it is? INT8_ROWS becomes another format, INT8, whose scales are the nearest fp16: those of bf16
 * down to 2^-17 stay, of fp32 2^-11 of themselves is lost at most, where fp16 is not subnormal. */
static inline bool mat_must_turn(const struct mat *mat) {
    return mat->format == MAT_INT8_ROWS ||
           ((mat->format == MAT_INT4_GPTQ || mat->format == MAT_INT4_PACKED) && !mat->turned);
}
/* What a matrix is once it is turned, into panels at `data`: mat_bytes of that are what they take. */
struct mat mat_turned(const struct mat *from, const void *data);
int mat_panels(const struct mat *from);
/* Writes one whole panel of `from`, which is as in the file. */
void mat_turn_panel(const struct mat *from, int panel, void *out);
void mat_turn(const struct mat *from, void *out); /* all of them, one after another */
void gguf_take_apart(enum mat_format format, const void *block, struct gguf_parts *out);
extern const int8_t gguf_iq4_values[16], gguf_mxfp4_values[16];

/* What an index stands for: four nibbles, number i at bit 0, 8, 4 or 12. IQ3: each is a value's place in the list of values, whose
 * second half has them negative. IQ1 and IQ2: the low two bits are value i's place, the high two value i + 4's; the values of IQ1 are
 * their places - 1. So bytes of nibbles are (entry | entry << 12) & 0x0f0f0f0f. Behind the last entry 32 bits can be read, too. */
extern const uint16_t gguf_iq1_grid[2048 + 1], gguf_iq2_xxs_grid[256 + 1], gguf_iq2_xs_grid[512 + 1];
extern const uint16_t gguf_iq2_s_grid[1024 + 1], gguf_iq3_xxs_grid[256 + 1], gguf_iq3_s_grid[512 + 1];
extern const int8_t gguf_iq2_values[16], gguf_iq3_xxs_values[16], gguf_iq3_s_values[16];

/* FP8 with a scale for every 32 values of a row, e8m0: what tables of rows are that are looked up and never multiplied (V4.1's n-gram
 * memory). `has_scales8` says so; kernels do not know it. */
enum { FP8_ROW_GROUP = 32 };

/* FP4. Twice the values of e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the same with a sign. That is gguf_mxfp4_values. */
enum { FP4_GROUP = 32 };
/* Where the values of row `row` begin, [cols / 2]; its scales, [cols / 32]. */
const uint8_t *fp4_row_at(const struct mat *mat, int row);
const uint8_t *fp4_scales_at(const struct mat *mat, int row);
/* Group `group` of a row: 32 values and one scale, as of a block of GGUF's. */
void fp4_take_apart(const struct mat *mat, int row, int group, struct gguf_parts *out);

extern const uint8_t awq_order[8]; /* {0, 2, 4, 6, 1, 3, 5, 7} */

const char *mat_format_name(enum mat_format format);
/* Bytes that the matrix occupies, scales and zeros included. */
size_t mat_bytes(const struct mat *mat);
/* Bytes that begin at mat->data: without the scales of FP8 and FP4, the scales and zeros of words, which are elsewhere. */
size_t mat_data_bytes(const struct mat *mat);
/* FP8, FP4 and INT8_ROWS: where the scales are, mat_bytes - mat_data_bytes of them; NULL for the others. */
const void *mat_scales(const struct mat *mat);
void mat_set_scales(struct mat *mat, const void *scales);

/* Exact widening of one value. */
float f16_to_f32(uint16_t bits);
float bf16_to_f32(uint16_t bits);
float e4m3_to_f32(uint8_t bits);
float e8m0_to_f32(uint8_t bits); /* 2^(bits - 127); 255 is NaN */
/* Round to nearest even; e4m3 saturates at 448, NaN stays NaN; e2m1 saturates at 6 and has none (and no -0). */
uint16_t f32_to_bf16(float value);
uint16_t f32_to_f16(float value); /* too large becomes infinity */
uint8_t f32_to_e4m3(float value);
uint8_t f32_to_e2m1(float value);

/* Plain-C decoder, scales applied: rows [r0, r1) into out [r1 - r0][cols] fp32. The definition of every format. */
void format_decode_rows(const struct mat *mat, int r0, int r1, float *out);
/* The same for `count` values of one row, from column k0 on. */
void format_decode_span(const struct mat *mat, int row, int k0, int count, float *out);

#endif
