/* PTX on the CPU (tests/shim/ptx_to_c.py, ptx.h) by a few lines of it written by hand, words.ptx: what the shim has a word for, on random
 * operands, against that word, another reading of the same manual; what PTX alone has rules for, against those; and what
 * must end the program. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "backend/cuda/driver.h"
#include "words.h"

/* The driver's functions, as far as they are needed here. */
int cuInit(unsigned flags);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuCtxSetCurrent(void *context);
int cuMemHostAlloc(void **at, size_t bytes, unsigned flags);
int cuStreamSynchronize(void *stream);
int cuModuleGetFunction(void **function, void *module, const char *name);
int cuLaunchKernelEx(const struct cuda_launch_config *config, const void *function, void **arguments, void **extra);

enum { REACHED_BY_KERNELS = 2 };
static uint32_t *in, *out, *expected; /* both the card's and the host's */

static void run(const char *kernel, uint32_t *to, int threads) {
    struct words_params params = {in, to};
    void *function = NULL, *arguments[] = {&params};
    const struct cuda_launch_config config = {.grid_x = 1,
                                              .grid_y = 1,
                                              .grid_z = 1,
                                              .block_x = (unsigned)threads,
                                              .block_y = 1,
                                              .block_z = 1,
                                              .shared_bytes = 256};
    assert_int_equal(cuModuleGetFunction(&function, NULL, kernel), 0);
    assert_int_equal(cuLaunchKernelEx(&config, function, arguments, NULL), 0);
    assert_int_equal(cuStreamSynchronize(NULL), 0);
}

static uint64_t draws = 1;
static uint32_t draw(void) {
    draws = draws * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(draws >> 32);
}
static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static float pick_float(void) {
    return (float)((int)(draw() % 2001) - 1000) * 0.01f + 0.001f;
}

static int is_nan_bf16(uint32_t half) {
    return (half & 0x7fff) > 0x7f80;
}

/* Two bf16 side by side: the same, or none a number. */
static void check_halves(uint32_t a, uint32_t b) {
    for (int i = 0; i < 2; i++, a >>= 16, b >>= 16) {
        if (!is_nan_bf16(a & 0xffff) || !is_nan_bf16(b & 0xffff)) assert_int_equal(a & 0xffff, b & 0xffff);
    }
}

/* `ulps` apart at most; two that are no numbers are alike, and so are two that .ftz makes zero (the shim does not). */
static void check_near(uint32_t a, uint32_t b, int ulps) {
    float x = float_of(a), y = float_of(b);
    if (isnan(x) && isnan(y)) return;
    if (ulps && fabsf(x) < 0x1p-126f && fabsf(y) < 0x1p-126f) return;
    if (abs((int)(a - b)) > ulps) fail_msg("%a, not %a", (double)x, (double)y);
}

/* What operands are: whole numbers in bf16 or in e4m3, whose sums are exact in any order, or any bits. */
enum kind { WHOLE_BF16, WHOLE_E4M3, ANY, KINDS };

static void compare(const uint32_t *a, const uint32_t *b, enum kind kind) {
    for (int i = 0; i < 4 && kind != ANY; i++) check_near(a[4 * (int)kind + i], b[4 * (int)kind + i], 0);
    for (int i = 8; i < 18; i++) assert_int_equal(a[i], b[i]);
    check_halves(a[18], b[18]);
    check_halves(a[19], b[19]);
    check_near(a[20], b[20], 0);
    assert_int_equal(a[21], b[21]);
    assert_int_equal(a[22], b[22]);
    for (int i = 23; i < 27; i++) check_near(a[i], b[i], 2);
}

static uint32_t operand(enum kind kind) {
    static const uint8_t whole[] = {0x00, 0x38, 0x40, 0x44, 0x48, 0x4a, 0xb8, 0xc0, 0xcc}; /* 0 1 2 3 4 5 -1 -2 -6 */
    uint32_t low = bits_of((float)(draw() % 33) - 16) >> 16, high = bits_of((float)(draw() % 33) - 16), bytes = 0;
    if (kind == WHOLE_BF16) return (high & 0xffff0000u) | low;
    for (int i = 0; i < 4; i++) bytes = bytes << 8 | whole[draw() % sizeof whole];
    return kind == WHOLE_E4M3 ? bytes : draw();
}

static void fill(enum kind kind) {
    for (int i = 0; i < WORDS_THREADS * WORDS_IN; i++) {
        int is_c = i % WORDS_IN >= 6 && i % WORDS_IN < 10;
        in[i] = !is_c ? operand(kind) : bits_of(kind == ANY ? pick_float() : (float)(draw() % 999) - 500);
    }
}

static void test_words(void **state) {
    (void)state;
    for (int round = 0; round < 60; round++) {
        enum kind kind = (enum kind)(round % KINDS);
        fill(kind);
        run("words_c", expected, WORDS_THREADS);
        run("words_ptx", out, WORDS_THREADS);
        for (int i = 0; i < WORDS_THREADS; i++) compare(out + i * WORDS_OUT, expected + i * WORDS_OUT, kind);
    }
}

static void test_rules(void **state) {
    (void)state;
    const uint32_t wanted[] = {
        0,          /* -5 << 40 */
        0,          /* 4294967291 >> 40 */
        0xffffffff, /* -5 >> 40 */
        0xfffffffe, /* high half of -5 * 2^30 */
        25,
        0xfffffff6, /* 4294967291 squared */
        0xf0000000, /* eight bits at 28: four */
        0xffffff80, /* 16 bits from 24 on: eight, and the sign */
        0xff441180, /* bytes 0, 4, 7, and eight times the sign of byte 0 */
        0,
        1,          /* NaN != 1: ordered no, unordered yes */
        0x3f800000, /* max(NaN, 1) */
        0,
        0x7fffffff,
        0,            /* (uint32_t)-1.0, (int32_t)inf, NaN in [0, 1] */
        0x3f800002,   /* (1 + 2^-23)^2, downwards */
        (uint32_t)-5, /* the signed byte of -5, wider and wider */
        40,           /* high half of {-5, 40} */
        0xbf800000,   /* -1 and nearly 2^-23 less, towards zero */
        0x3fb504f3,   /* the root of 2 */
        0xffffffff,   /* a byte of -5 / 0, which is anything (here all bits): not the number of the thread */
        0,
        0x23456788, /* two words by 36, which is 4: upwards, the upper one */
        0x88000000, /* downwards, the lower one */
    };
    enum { N = sizeof wanted / sizeof *wanted, BYTE = 20 };
    memset(out, 0, sizeof wanted);
    out[BYTE] = 0xffffff55; /* three bytes stay */
    run("rules_ptx", out, 32);
    for (int i = 0; i < N; i++) {
        if (out[i] != wanted[i]) fail_msg("word %d: %08x, not %08x", i, out[i], wanted[i]);
    }
}

static const struct {
    const char *kernel, *says;
} faults[] = {
    {"fault_unaligned", "not aligned"},
    {"fault_mixed_up", "not in global memory"},
    {"fault_past_shared", "not in the block's shared memory"},
    {"fault_past_params", "not in the kernel's parameters"},
    {"fault_constant", "in one kernel"},
    {"fault_too_early", "has not ended"},
    {"fault_aligned", ".aligned"},
    {"fault_barriers", "different barriers"},
};

/* In a process of its own: what it says before it ends. */
static int end_of(const char *kernel, char *text, size_t room) {
    int ends[2], status = 0;
    size_t n = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], 2);
        run(kernel, out, 32);
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t got = 1; got > 0 && n < room - 1; n += (size_t)got) {
        got = read(ends[0], text + n, room - 1 - n);
        if (got < 0) got = 0;
    }
    text[n] = 0;
    close(ends[0]);
    waitpid(child, &status, 0);
    return status;
}

static void test_faults(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        char text[512];
        int status = end_of(faults[i].kernel, text, sizeof text);
        if (!WIFSIGNALED(status) || !strstr(text, faults[i].says))
            fail_msg("%s: status %d, and said: %s", faults[i].kernel, status, text);
    }
}

static int open_card(void **state) {
    void *context = NULL;
    uint32_t **const all[] = {&in, &out, &expected};
    size_t bytes = sizeof(uint32_t) * WORDS_THREADS * WORDS_OUT;
    (void)state;
    int code = cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context);
    for (int i = 0; i < 3 && !code; i++) code = cuMemHostAlloc((void **)all[i], bytes, REACHED_BY_KERNELS);
    return code;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, open_card, NULL);
}
