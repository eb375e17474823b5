/* backend/cuda/upload_format.c - what becomes of a format on the card: which kernels multiply with it, how its scales lie, and
 * what it takes. */
#include "backend/cuda/upload.h"

static int log2_of(int n) {
    return 31 - __builtin_clz((unsigned)n);
}

static bool is_power_of_two(int n) {
    return n > 0 && (n & (n - 1)) == 0;
}

/* What there is for formats that are one thing only. */
static const struct known {
    enum raw_format raw;
    enum weight_format format;
    enum scale_coding coding;
    bool is_known;
} known[MAT_FORMATS] = {
    [MAT_F32] = {RAW_F32, WEIGHT_BF16, CODE_NONE, true},
    [MAT_F16] = {RAW_F16, WEIGHT_BF16, CODE_NONE, true},
    [MAT_BF16] = {RAW_BF16, WEIGHT_BF16, CODE_NONE, true},
    [MAT_FP8] = {RAW_FP8, WEIGHT_FP8, CODE_NONE, true},
    [MAT_FP4] = {RAW_FP4, WEIGHT_BITS4, CODE_EXPONENT, true},
    [MAT_INT4_AWQ] = {RAW_AWQ, WEIGHT_AWQ, CODE_NONE, true},
    [MAT_INT4_GPTQ] = {RAW_AWQ, WEIGHT_AWQ, CODE_NONE, true}, /* and PACKED: by way of AWQ's words (upload_words.c) */
    [MAT_INT4_PACKED] = {RAW_AWQ, WEIGHT_AWQ, CODE_NONE, true},
    [MAT_INT8_ROWS] = {RAW_INT8, WEIGHT_INT8, CODE_NONE, true}, /* by way of INT8 (upload_words.c) */
    [MAT_INT4] = {RAW_INT4, WEIGHT_INT4, CODE_NONE, true},
    [MAT_INT8] = {RAW_INT8, WEIGHT_INT8, CODE_NONE, true},
    [MAT_Q4_0] = {RAW_Q4_0, WEIGHT_INT4, CODE_NONE, true},
    [MAT_Q4_1] = {RAW_Q4_1, WEIGHT_BITS4, CODE_HALF_LOW, true},
    [MAT_Q5_0] = {RAW_Q5_0, WEIGHT_BITS5, CODE_HALF, true},
    [MAT_Q5_1] = {RAW_Q5_1, WEIGHT_BITS5, CODE_HALF_LOW, true},
    [MAT_Q8_0] = {RAW_Q8_0, WEIGHT_INT8, CODE_NONE, true},
    [MAT_Q2_K] = {RAW_Q2_K, WEIGHT_BITS3, CODE_NIBBLE_LOW, true},
    [MAT_Q3_K] = {RAW_Q3_K, WEIGHT_BITS3, CODE_BYTE, true},
    [MAT_Q4_K] = {RAW_Q4_K, WEIGHT_BITS4, CODE_BYTE_LOW, true},
    [MAT_Q5_K] = {RAW_Q5_K, WEIGHT_BITS5, CODE_BYTE_LOW, true},
    [MAT_Q6_K] = {RAW_Q6_K, WEIGHT_BITS6, CODE_BYTE, true},
    [MAT_IQ4_NL] = {RAW_IQ4_NL, WEIGHT_BITS4, CODE_HALF, true},
    [MAT_IQ4_XS] = {RAW_IQ4_XS, WEIGHT_BITS4, CODE_BYTE_32, true},
    [MAT_MXFP4] = {RAW_MXFP4, WEIGHT_BITS4, CODE_EXPONENT, true},
};

bool upload_knows(enum mat_format format) {
    return known[format].is_known;
}

enum raw_format upload_raw_format(const struct mat *mat) {
    return known[mat->format].raw;
}

static int shift_of(const struct mat *mat, enum weight_format format) {
    if (format == WEIGHT_BF16) return 31;
    if (format == WEIGHT_FP8) return mat->scale_cols >= mat->cols ? 31 : log2_of(mat->scale_cols);
    if (format >= WEIGHT_BITS4) return known[mat->format].coding <= CODE_HALF_LOW ? 6 : 8;
    return gguf_is_blocks(mat->format) ? 5 : log2_of(mat->group_size);
}

/* FP8 scales in steps that no tile follows are applied once, in bf16. */
struct upload_layout upload_layout_of(const struct mat *mat) {
    const struct known *k = &known[mat->format];
    enum weight_format format = k->format;
    if (format == WEIGHT_FP8 && mat->scale_cols < mat->cols && !is_power_of_two(mat->scale_cols)) format = WEIGHT_BF16;
    return (struct upload_layout){format, k->coding, shift_of(mat, format)};
}

bool upload_same_layout(const struct mat *a, const struct mat *b) {
    struct upload_layout x = upload_layout_of(a), y = upload_layout_of(b);
    return x.format == y.format && x.coding == y.coding && x.group_shift == y.group_shift;
}

size_t cuda_tile_bytes(enum weight_format format, enum scale_coding coding) {
    static const size_t bits[WEIGHT_FORMATS] = {16, 8, 4, 4, 8, 4, 5, 6, 3};
    return (coding == CODE_NIBBLE_LOW ? 2 : bits[format]) * (TILE_ROWS * SLAB_COLS / 8);
}

/* Of the scales of 16 rows and a group of k. */
static int chunk_bytes(const struct upload_layout *layout) {
    static const int scale[WEIGHT_FORMATS] = {0, 4, 2, 4, 2};
    static const int words[] = {[CODE_HALF] = 1,     [CODE_HALF_LOW] = 1, [CODE_BYTE] = 4,      [CODE_BYTE_32] = 2,
                                [CODE_EXPONENT] = 2, [CODE_BYTE_LOW] = 4, [CODE_NIBBLE_LOW] = 4};
    static const int beside[] = {[CODE_HALF] = 0,    [CODE_HALF_LOW] = 4, [CODE_BYTE] = 2,
                                 [CODE_BYTE_32] = 2, [CODE_BYTE_LOW] = 4, [CODE_NIBBLE_LOW] = 4};
    int row = layout->coding ? words[layout->coding] * 4 + beside[layout->coding] : scale[layout->format];
    return row * TILE_ROWS;
}

void upload_place(struct device_region *region, struct weight *out, struct upload_layout layout,
                  const struct upload_shape *shape) {
    struct device_matrix *m = &out->m;
    out->format = layout.format;
    *m = (struct device_matrix){.rows = shape->rows,
                                .cols = shape->cols,
                                .group_shift = layout.group_shift,
                                .coding = (int32_t)layout.coding,
                                .chunk_bytes = chunk_bytes(&layout)};
    m->row_tiles = (shape->rows + shape->tile_rows - 1) / shape->tile_rows;
    m->slabs = (shape->cols + SLAB_COLS - 1) / SLAB_COLS;
    if (layout.format != WEIGHT_BF16)
        m->scale_groups = m->group_shift == 31 ? 1 : ((shape->cols - 1) >> m->group_shift) + 1;
    m->data_step = (size_t)m->row_tiles * (size_t)m->slabs * cuda_tile_bytes(layout.format, layout.coding);
    m->scale_step = (size_t)m->row_tiles * (size_t)m->scale_groups * (size_t)m->chunk_bytes;
    m->data = device_take(region, (size_t)shape->n * m->data_step);
    m->scale = device_take(region, (size_t)shape->n * m->scale_step);
}
