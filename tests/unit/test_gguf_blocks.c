/* GGUF's blocks: what the plain C makes of bytes laid out here by hand, sizes, spans; and that `moebius check` notices when their
 * kernels are wrong. With `decode FORMAT ROWS COLS`: a matrix from standard input, as fp32 on standard output, by the plain C
 * and by the best kernels, one after the other; tests/test_formats_gguf.py compares them with the package `gguf`. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "backend/cpu/kern.h"
#include "check/check.h"
#include "model/turn.h"

static enum mat_format find_format(const char *name) {
    int format = 0;
    while (format < MAT_FORMATS && strcmp(name, mat_format_name((enum mat_format)format)) != 0) format++;
    return (enum mat_format)format;
}

/* ---- bytes by hand ---- */

enum { HALF_1 = 0x3c00, HALF_2 = 0x4000, HALF_MINUS_3 = 0xc200, BLOCK_MAX = 210 };

static void put_half(uint8_t *at, uint16_t half) {
    at[0] = (uint8_t)half;
    at[1] = (uint8_t)(half >> 8);
}

static float value_of(enum mat_format format, const uint8_t *block, int i) {
    int values;
    size_t bytes;
    float out;
    assert_true(gguf_block(format, &values, &bytes));
    struct mat mat = {.format = format, .rows = 1, .cols = values, .data = block};
    format_decode_span(&mat, 0, i, 1, &out);
    return out;
}

static void expect(enum mat_format format, const uint8_t *block, int i, float value) {
    float got = value_of(format, block, i);
    if (got != value) fail_msg("%s[%d] is %g, expected %g", mat_format_name(format), i, (double)got, (double)value);
}

static void test_blocks_of_32(void **state) {
    uint8_t b[BLOCK_MAX] = {0};
    (void)state;
    put_half(b, HALF_2);
    b[2 + 5] = 0xf3;
    expect(MAT_Q4_0, b, 5, 2 * (3 - 8));
    expect(MAT_Q4_0, b, 21, 2 * (15 - 8));
    expect(MAT_Q4_0, b, 4, 2 * -8);
    expect(MAT_IQ4_NL, b, 5, 2 * -65);
    expect(MAT_IQ4_NL, b, 21, 2 * 113);
    expect(MAT_Q8_0, b, 5, 2 * -13); /* the same byte is 0xf3 */
    put_half(b + 2, HALF_MINUS_3);
    b[4 + 15] = 0x72;
    expect(MAT_Q4_1, b, 15, 2 * 2 - 3);
    expect(MAT_Q4_1, b, 31, 2 * 7 - 3);
    memset(b + 2, 0, 20);
    b[2 + 1] = 0x20; /* fifth bit of value 13 */
    b[2 + 3] = 0x20; /* of value 29 */
    b[6 + 13] = 0x49;
    expect(MAT_Q5_0, b, 13, 2 * (9 + 16 - 16));
    expect(MAT_Q5_0, b, 29, 2 * (4 + 16 - 16));
    expect(MAT_Q5_0, b, 12, 2 * -16);
    memmove(b + 4, b + 2, 20);
    put_half(b + 2, HALF_1);
    expect(MAT_Q5_1, b, 13, 2 * 25 + 1);
    expect(MAT_Q5_1, b, 29, 2 * 20 + 1);
    expect(MAT_Q5_1, b, 12, 1);
}

static void test_four_and_five_bits(void **state) {
    uint8_t b[BLOCK_MAX] = {0};
    (void)state;
    put_half(b, HALF_2);
    put_half(b + 2, HALF_1);
    b[4 + 2] = 0xc0 | 33;  /* scale 2 = 33; the high bits of scale 6 = 3 */
    b[8 + 2] = 0x40 | 17;  /* minimum 2 = 17; of minimum 6 = 1 */
    b[12 + 2] = 0x95;      /* low bits: scale 6 = 5, minimum 6 = 9 */
    b[16 + 32 + 7] = 0x0b; /* value 64 + 7: sub-block 2 */
    b[16 + 96 + 7] = 0x0e; /* value 192 + 7: sub-block 6 */
    expect(MAT_Q4_K, b, 71, 2 * 33 * 11 - 17);
    expect(MAT_Q4_K, b, 199, 2 * (5 + 48) * 14 - (9 + 16));
    expect(MAT_Q4_K, b, 198, -(9 + 16));
    expect(MAT_Q4_K, b, 0, 0);
    memset(b + 16, 0, 128);
    b[16 + 7] = 1 << 6; /* the fifth bit of value 192 + 7 */
    b[48 + 96 + 7] = 0xe4;
    expect(MAT_Q5_K, b, 199, 2 * (5 + 48) * (16 + 4) - (9 + 16));
    expect(MAT_Q5_K, b, 231, 0); /* sub-block 7 has scale 0 */
}

static void test_two_and_three_bits(void **state) {
    uint8_t b[BLOCK_MAX] = {0};
    (void)state;
    b[13] = 0x5c;           /* sub-block 13, values 208 to 223: scale 12, minimum 5 */
    b[16 + 32 + 18] = 0x20; /* of value 128 + 64 + 18: 2 */
    put_half(b + 80, HALF_1);
    put_half(b + 82, HALF_2);
    expect(MAT_Q2_K, b, 210, 12 * 2 - 2 * 5);
    expect(MAT_Q2_K, b, 211, -2 * 5);
    memset(b, 0, sizeof b);
    put_half(b + 108, HALF_2);
    b[96 + 5] = 0x70;       /* sub-block 13: low bits 7 */
    b[96 + 8 + 1] = 2 << 6; /* high bits 2 */
    b[32 + 32 + 18] = 0x20;
    expect(MAT_Q3_K, b, 210, 2 * (39 - 32) * (2 - 4));
    b[18] = 1 << 6; /* the highest bit of value 210 */
    expect(MAT_Q3_K, b, 210, 2 * (39 - 32) * 2);
    expect(MAT_Q3_K, b, 0, 2 * -32 * -4);
}

static void test_six_bits_and_a_table(void **state) {
    uint8_t b[BLOCK_MAX] = {0};
    (void)state;
    put_half(b + 208, HALF_2);
    b[192 + 13] = (uint8_t)-7;
    b[64 + 18] = 0xa0;       /* value 128 + 64 + 18, low bits 10 */
    b[128 + 32 + 18] = 0x30; /* its high bits 3 */
    expect(MAT_Q6_K, b, 210, 2 * -7 * (58 - 32));
    expect(MAT_Q6_K, b, 211, 2 * -7 * -32);
    memset(b, 0, sizeof b);
    put_half(b, HALF_2);
    b[3] = 2 << 2; /* sub-block 5: high bits 2 */
    b[4 + 2] = 0x90;
    b[8 + 5 * 16 + 3] = 0x4a;
    expect(MAT_IQ4_XS, b, 160 + 3, 2 * (41 - 32) * 25);
    expect(MAT_IQ4_XS, b, 160 + 19, 2 * (41 - 32) * -49);
    expect(MAT_IQ4_XS, b, 0, 2 * -32 * -127);
}

/* Values 176 to 183 are the third eight of the sixth 32; entry 3 of the grids of eight is 8, 43, 8, ..., entry 300 is 8, 25, 43, .... */
static void test_grids_of_eight(void **state) {
    uint8_t b[BLOCK_MAX] = {0};
    (void)state;
    put_half(b, HALF_2);
    b[2 + 40 + 2] = 3;
    b[2 + 40 + 5] = 0xc0; /* signs of values 176 and 177 */
    b[2 + 40 + 6] = 0x08; /* of 181; so the eighth is set too */
    b[2 + 40 + 7] = 0x50; /* scale 5 */
    expect(MAT_IQ2_XXS, b, 176, -2.75f * 8);
    expect(MAT_IQ2_XXS, b, 177, -2.75f * 43);
    expect(MAT_IQ2_XXS, b, 178, 2.75f * 8);
    expect(MAT_IQ2_XXS, b, 183, -2.75f * 8);
    expect(MAT_IQ2_XXS, b, 0, 0.25f * 8);
    memset(b + 2, 0, sizeof b - 2);
    b[2 + 44] = 3;
    b[2 + 45] = 2 << 1; /* the second sign, and so the eighth */
    b[66 + 5] = 0x50;   /* scale 11 is 5 */
    expect(MAT_IQ2_XS, b, 177, -2.75f * 43);
    expect(MAT_IQ2_XS, b, 182, 2.75f * 8);
    expect(MAT_IQ2_XS, b, 183, -2.75f * 8);
    memset(b + 2, 0, sizeof b - 2);
    b[2 + 22] = 300 - 256;
    b[34 + 22] = 1 << 2; /* the third sign alone */
    b[66 + 5] = 1 << 4;  /* the index' high bits */
    b[74 + 5] = 0x50;
    expect(MAT_IQ2_S, b, 177, 2.75f * 25);
    expect(MAT_IQ2_S, b, 178, -2.75f * 43);
    expect(MAT_IQ2_S, b, 183, 2.75f * 8);
}

/* Of the grids of four, entry 44 of IQ3_XXS is 62, 44, 36, 4, and 300 of IQ3_S 3, 5, 3, 7. */
static void test_grids_of_four(void **state) {
    uint8_t b[BLOCK_MAX] = {0};
    (void)state;
    put_half(b, HALF_2);
    b[2 + 44] = 44;
    b[66 + 20 + 1] = 0x80; /* the second sign, and so the eighth */
    b[66 + 20 + 3] = 0x50;
    expect(MAT_IQ3_XXS, b, 176, 5.5f * 62);
    expect(MAT_IQ3_XXS, b, 177, -5.5f * 44);
    expect(MAT_IQ3_XXS, b, 182, 5.5f * 4);
    expect(MAT_IQ3_XXS, b, 183, -5.5f * 4);
    memset(b + 66, 0, sizeof b - 66);
    b[66 + 5] = 1 << 4;
    b[74 + 22] = 1 << 1;
    b[106 + 2] = 0x50;
    expect(MAT_IQ3_S, b, 176, 22 * 3);
    expect(MAT_IQ3_S, b, 177, 22 * -5);
    expect(MAT_IQ3_S, b, 179, 22 * 7);
    expect(MAT_IQ3_S, b, 183, 22 * 1);
}

/* Entry 300 of IQ1's grid is 0, -1, 0, -1, 0, 0, 0, -1. */
static void test_one_bit(void **state) {
    uint8_t b[BLOCK_MAX] = {0};
    (void)state;
    put_half(b, HALF_2);
    b[2 + 22] = 300 - 256;
    put_half(b + 34 + 10, 0x8000 | 5 << 12 | 1 << 6); /* less; scale 5; the third index' high bits */
    expect(MAT_IQ1_S, b, 176, 22 * -0.125f);
    expect(MAT_IQ1_S, b, 177, 22 * -1.125f);
    put_half(b + 34 + 10, 5 << 12 | 1 << 6);
    expect(MAT_IQ1_S, b, 177, 22 * -0.875f);
    memset(b, 0, sizeof b);
    b[22] = 300 - 256;
    b[32 + 11] = 8 | 1;      /* less; the index' high bits */
    b[48 + 5] = 5 << 1;      /* scale 11 is 5 */
    b[48 + 7] = HALF_2 >> 8; /* the highest four bits of d, the others are 0 */
    expect(MAT_IQ1_M, b, 176, 22 * -0.125f);
    expect(MAT_IQ1_M, b, 177, 22 * -1.125f);
    expect(MAT_IQ1_M, b, 184, 22 * -0.875f);
}

/* A byte of 7 has the digits 0, 0, 0, 2, 0. */
static void test_ternary_and_powers(void **state) {
    uint8_t b[BLOCK_MAX] = {0};
    (void)state;
    put_half(b + 52, HALF_2);
    b[4] = b[32 + 5] = b[48 + 1] = 7;
    expect(MAT_TQ1_0, b, 3 * 32 + 4, 2);
    expect(MAT_TQ1_0, b, 4 * 32 + 4, -2);
    expect(MAT_TQ1_0, b, 160 + 3 * 16 + 5, 2);
    expect(MAT_TQ1_0, b, 240 + 3 * 4 + 1, 2);
    expect(MAT_TQ1_0, b, 255, -2);
    memset(b, 0, sizeof b);
    put_half(b + 64, HALF_2);
    b[32 + 18] = 0x20; /* of value 128 + 64 + 18: 2 */
    expect(MAT_TQ2_0, b, 210, 2);
    expect(MAT_TQ2_0, b, 211, -2);
    memset(b, 0, sizeof b);
    b[0] = 129;
    b[1 + 5] = 0xa3;
    expect(MAT_MXFP4, b, 5, 2 * 3);
    expect(MAT_MXFP4, b, 21, 2 * -2);
    b[0] = 0;
    expect(MAT_MXFP4, b, 5, 3 * 0x1p-128f);
}

/* ---- matrices ---- */

static uint8_t *random_bytes(size_t n) {
    uint8_t *bytes = malloc(n);
    uint32_t word = 1;
    assert_non_null(bytes);
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)((word = word * 1664525 + 1013904223) >> 24 & 0x77); /* finite */
    return bytes;
}

static void test_spans_and_sizes(void **state) {
    (void)state;
    int found = 0;
    for (int f = 0; f < MAT_FORMATS; f++) {
        struct mat mat = {.format = (enum mat_format)f, .rows = 3};
        size_t bytes;
        int values;
        if (!gguf_block(mat.format, &values, &bytes)) continue;
        found++;
        mat.cols = 3 * values;
        assert_int_equal(mat_bytes(&mat), 9 * bytes);
        assert_int_equal(mat_data_bytes(&mat), 9 * bytes);
        uint8_t *data = random_bytes(9 * bytes);
        float *whole = malloc(9 * (size_t)values * sizeof *whole), part[700];
        mat.data = data;
        format_decode_rows(&mat, 0, 3, whole);
        const int spans[][2] = {{0, 1}, {values - 1, 2}, {values / 2 + 3, 2 * values}, {3 * values - 1, 1}};
        for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) {
            format_decode_span(&mat, 1, spans[i][0], spans[i][1], part);
            assert_memory_equal(part, whole + mat.cols + spans[i][0], (size_t)spans[i][1] * sizeof *part);
        }
        free(whole);
        free(data);
    }
    assert_int_equal(found, 22);
}

/* ---- does the check notice? ---- */

static struct kern good;

static void note(void *context, const struct check_line *line) {
    int *faults = context;
    assert_true(line->cases > 0);
    *faults += line->fault != NULL;
}

static int faults_of(enum mat_format format, kern_gemm_q8 *gemm) {
    struct check *check;
    struct kern kern = good;
    int faults = 0;
    kern.gemm_q8[format] = gemm;
    assert_int_equal(check_open(&check, note, &faults, NULL), 0);
    check_product(check, &kern, format);
    check_close(check);
    return faults;
}

static void last_bit(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                     const void *next) {
    good.gemm_q8[w->format](w, r0, r1, x, n, y, next);
    if (n > 0 && r1 > r0 && y[n - 1][r1 - 1] != 0) y[n - 1][r1 - 1] = nextafterf(y[n - 1][r1 - 1], 0);
}

static void write_beside(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                         const void *next) {
    good.gemm_q8[w->format](w, r0, r1, x, n, y, next);
    if (n > 0 && r0 > 0) y[0][r0 - 1] = 1;
}

static void test_wrong_kernels_are_noticed(void **state) {
    (void)state;
    assert_int_equal(faults_of(MAT_Q4_K, good.gemm_q8[MAT_Q4_K]), 0);
    /* as they lie, and turned */
    assert_int_equal(faults_of(MAT_Q4_K, last_bit), 2);
    assert_int_equal(faults_of(MAT_Q6_K, write_beside), 2);
}

/* ---- turned beside other work ---- */

/* A model of a head alone. */
static struct model head_of(int rows, int cols, struct weights *weights, const void *data) {
    *weights = (struct weights){.head = {.format = MAT_Q4_K, .rows = rows, .cols = cols, .data = data}};
    return (struct model){.vocab = rows, .hidden = cols};
}

/* Who reads a matrix meanwhile finds it as it was, also when its pages have been given back; then it is another. */
static void test_turner(void **state) {
    (void)state;
    enum { ROWS = 200, COLS = 512, BYTES = ROWS * 2 * 144 };
    uint8_t *data =
        mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); /* keeps what it has */
    uint8_t room[GGUF_BLOCK_MAX];
    assert_true(data != MAP_FAILED);
    for (int i = 0; i < BYTES; i++) data[i] = (uint8_t)(i * 7 % 251);
    struct weights weights;
    struct turner *turner = NULL;
    struct mo_error error;
    const struct model model = head_of(ROWS, COLS, &weights, data);
    const struct mat before = weights.head;
    assert_int_equal(turner_begin(&turner, &model, &weights, (struct turn_choice){0}, 2, &error), 0);
    assert_ptr_equal(weights.head.data, data);
    turner_wait(turner);
    assert_true(weights.head.turned);
    for (int i = 0; i < BYTES; i++) assert_int_equal(data[i], i * 7 % 251);
    for (int row = 0; row < ROWS; row++)
        assert_memory_equal(gguf_block_at(&weights.head, row, 1, room), gguf_block_at(&before, row, 1, NULL), 144);
    turner_end(turner);
    weights_free(&weights);
    munmap(data, BYTES);
}

/* More than a processor addresses: nothing is taken, and the weights are as they were. */
static void test_turner_without_memory(void **state) {
    (void)state;
    struct weights weights;
    struct turner *turner = NULL;
    struct mo_error error;
    const struct model model = head_of(1 << 30, 1 << 20, &weights, "");
    assert_int_equal(turner_begin(&turner, &model, &weights, (struct turn_choice){0}, 1, &error), MO_E_NO_MEMORY);
    assert_non_null(strstr(error.message, "GB of memory"));
    assert_true(!turner && !weights.made && !weights.made_bytes && !weights.head.turned);
    weights_free(&weights);
}

/* ---- the door for Python ---- */

static int decode(int argc, char **argv) {
    struct mat mat = {.format = argc == 5 ? find_format(argv[2]) : MAT_FORMATS};
    if (mat.format == MAT_FORMATS || !gguf_is_blocks(mat.format)) return 2;
    mat.rows = atoi(argv[3]);
    mat.cols = atoi(argv[4]);
    size_t bytes = mat_bytes(&mat), count = (size_t)mat.rows * (size_t)mat.cols;
    uint8_t *data = malloc(bytes);
    float *out = malloc(count * sizeof *out);
    bool whole = data && out && fread(data, 1, bytes, stdin) == bytes;
    if (whole) {
        mat.data = data;
        format_decode_rows(&mat, 0, mat.rows, out);
        whole = fwrite(out, sizeof *out, count, stdout) == count;
        good.decode_rows(&mat, 0, mat.rows, out);
        whole = fwrite(out, sizeof *out, count, stdout) == count && whole;
    }
    free(data);
    free(out);
    return whole ? 0 : 1;
}

/* ---- turned ---- */

enum { TURNED_ROWS_MAX = 40 };

/* A matrix of random bytes and the same turned: every block comes back, and the best kernel decodes both alike. */
static void turn_and_compare(enum mat_format format, int rows, int blocks) {
    int values;
    size_t bytes;
    gguf_block(format, &values, &bytes);
    struct mat mat = {.format = format, .rows = rows, .cols = blocks * values}, turned = mat;
    turned.turned = true;
    const int panels = (rows + TURN_ROWS - 1) / TURN_ROWS;
    assert_int_equal(mat_bytes(&turned), (size_t)panels * TURN_ROWS * (size_t)blocks * bytes);
    uint8_t *data = malloc(mat_bytes(&mat)), *out = malloc(mat_bytes(&turned)), room[GGUF_BLOCK_MAX];
    for (size_t i = 0; i < mat_bytes(&mat); i++) data[i] = (uint8_t)(rand() >> 8 & 0x3f); /* finite halves */
    mat.data = data;
    turned.data = out;
    mat_turn(&mat, out);
    for (int row = 0; row < rows; row++)
        for (int b = 0; b < blocks; b++)
            assert_memory_equal(gguf_block_at(&turned, row, b, room), gguf_block_at(&mat, row, b, NULL), bytes);
    float *as_it_is = malloc((size_t)rows * (size_t)mat.cols * sizeof *as_it_is);
    float *decoded = malloc((size_t)rows * (size_t)mat.cols * sizeof *decoded);
    good.decode_rows(&mat, 0, rows, as_it_is);
    good.decode_rows(&turned, 0, rows, decoded);
    assert_memory_equal(decoded, as_it_is, (size_t)rows * (size_t)mat.cols * sizeof *decoded);
    free(decoded);
    free(as_it_is);
    free(out);
    free(data);
}

static void test_turned(void **state) {
    (void)state;
    int n = 0;
    srand(1);
    for (int format = 0; format < MAT_FORMATS; format++) {
        if (!mat_can_turn((enum mat_format)format) || !gguf_is_blocks((enum mat_format)format)) continue;
        for (int rows = 1; rows <= TURNED_ROWS_MAX; rows += 3)
            turn_and_compare((enum mat_format)format, rows, 1 + rows % 5);
        n++;
    }
    assert_int_equal(n, 12);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_of_32),
        cmocka_unit_test(test_four_and_five_bits),
        cmocka_unit_test(test_two_and_three_bits),
        cmocka_unit_test(test_six_bits_and_a_table),
        cmocka_unit_test(test_grids_of_eight),
        cmocka_unit_test(test_grids_of_four),
        cmocka_unit_test(test_one_bit),
        cmocka_unit_test(test_ternary_and_powers),
        cmocka_unit_test(test_spans_and_sizes),
        cmocka_unit_test(test_wrong_kernels_are_noticed),
        cmocka_unit_test(test_turned),
        cmocka_unit_test(test_turner),
        cmocka_unit_test(test_turner_without_memory),
    };
    kern_init(&good, cpu_detect());
    if (argc > 1 && !strcmp(argv[1], "decode")) return decode(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
