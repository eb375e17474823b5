/* Do the checks of `moebius check` notice wrong kernels? Each test breaks one thing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check/check.h"

static struct kern good;
static int lines, faults;
static char first_fault[256];

static void note(void *context, const struct check_line *line) {
    (void)context;
    lines++;
    assert_true(line->cases > 0);
    if (!line->fault) return;
    if (!faults++) snprintf(first_fault, sizeof first_fault, "%s", line->fault);
}

/* The faults that are found when INT4 and INT8 are multiplied like that. */
static int faults_of(kern_gemm_q8 *gemm) {
    struct check *check;
    struct mo_error error;
    struct kern kern = good;
    lines = faults = 0;
    if (gemm) kern.gemm_q8[MAT_INT4] = kern.gemm_q8[MAT_INT8] = gemm;
    assert_int_equal(check_open(&check, note, NULL, &error), 0);
    check_product(check, &kern, MAT_INT4);
    check_product(check, &kern, MAT_INT8);
    assert_int_equal(lines, 2);
    assert_int_equal(check_failed(check), faults);
    assert_int_equal(check_passed(check), 2 - faults);
    check_close(check);
    return faults;
}

static void test_right_kernels_pass(void **state) {
    (void)state;
    assert_int_equal(faults_of(NULL), 0);
}

static void last_bit(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                     const void *next) {
    good.gemm_q8[w->format](w, r0, r1, x, n, y, next);
    if (n > 0 && r1 > r0 && y[n - 1][r1 - 1] != 0) y[n - 1][r1 - 1] = nextafterf(y[n - 1][r1 - 1], 0);
}

static void test_a_last_bit(void **state) {
    (void)state;
    assert_int_equal(faults_of(last_bit), 2);
    assert_non_null(strstr(first_fault, "expected the bits of"));
}

/* As a kernel would that takes scales for positive. */
static void positive_scales(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                            const void *next) {
    size_t size = block_bytes(w->format, w->group_size), scales = (size_t)(BLOCK_COLS / w->group_size) * 64;
    uint8_t *copy = malloc(mat_bytes(w));
    assert_non_null(copy);
    memcpy(copy, w->data, mat_bytes(w));
    for (size_t at = size; at <= mat_bytes(w); at += size)
        for (size_t i = 1; i < scales; i += 2) copy[at - scales + i] &= 0x7f;
    struct mat changed = *w;
    changed.data = copy;
    good.gemm_q8[w->format](&changed, r0, r1, x, n, y, next);
    free(copy);
}

static void test_scales_of_either_sign(void **state) {
    (void)state;
    assert_int_equal(faults_of(positive_scales), 2);
}

static void write_beside(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                         const void *next) {
    good.gemm_q8[w->format](w, r0, r1, x, n, y, next);
    if (n > 0 && r0 > 0) y[0][r0 - 1] = 1;
}

static void test_a_row_that_was_not_asked_for(void **state) {
    (void)state;
    assert_int_equal(faults_of(write_beside), 2);
    assert_non_null(strstr(first_fault, "rows "));
}

/* One more than it should of what is read last. */
static void read_beside(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                        const void *next) {
    volatile const uint8_t *data = w->data;
    (void)data[mat_bytes(w)];
    good.gemm_q8[w->format](w, r0, r1, x, n, y, next);
}

static void test_a_byte_past_the_end(void **state) {
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* not cmocka's, which would call it a failed test */
        faults_of(read_beside);
        _exit(0);
    }
    int status = 0;
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_kernels_pass),    cmocka_unit_test(test_a_last_bit),
        cmocka_unit_test(test_scales_of_either_sign), cmocka_unit_test(test_a_row_that_was_not_asked_for),
        cmocka_unit_test(test_a_byte_past_the_end),
    };
    kern_init(&good, cpu_detect());
    return cmocka_run_group_tests(tests, NULL, NULL);
}
