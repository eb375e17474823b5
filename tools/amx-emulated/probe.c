/* tools/amx-emulated/probe.c - does this machine, emulated or not, have AMX as the manual describes it? One line a question;
 * exits 0 if every answer is yes. Knows nothing of Moebius: a failure here is the machine's. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROWS = 16, BYTES = 64, ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18, ROUNDS = 3000 };

struct config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

struct tile {
    uint8_t bytes[ROWS][BYTES];
} __attribute__((aligned(64)));

static int failed;

/* To gcc a tile load reads no memory: what it loads has to be there by then. */
#define LOAD(TILE, BASE)                                                                                               \
    do {                                                                                                               \
        __asm__ volatile("" : : : "memory");                                                                           \
        _tile_loadd(TILE, BASE, BYTES);                                                                                \
    } while (0)

static void answer(const char *question, int yes) {
    printf("%-72s %s\n", question, yes ? "yes" : "NO");
    fflush(stdout);
    failed |= !yes;
}

static void configure(void) {
    struct config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = BYTES;
        config.rows[i] = ROWS;
    }
    __asm__ volatile("" : : "r"(&config) : "memory"); /* gcc's words for the instruction read 8 bytes of the 64 */
    _tile_loadconfig(&config);
}

static uint32_t next(uint32_t *state) {
    return *state = *state * 1664525u + 1013904223u;
}

static struct tile any_tile(uint32_t seed) {
    struct tile t;
    for (int i = 0; i < ROWS * BYTES; i++) t.bytes[i / BYTES][i % BYTES] = (uint8_t)(next(&seed) >> 24);
    return t;
}

/* ---- permission ---- */

/* A process that has not asked is killed by SIGILL at its first tile. */
static int is_refused(void) {
    pid_t child = fork();
    if (child == 0) {
        configure();
        _tile_zero(0);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGILL;
}

/* ---- products ---- */

/* c += a * b in plain C: a [16 m][16 k][4], b [16 k][16 n][4]. */
static void multiply(int32_t c[ROWS][16], const struct tile *a, const struct tile *b, int b_is_unsigned) {
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < BYTES; k++) {
                uint8_t right = b->bytes[k / 4][4 * n + k % 4];
                c[m][n] += (int8_t)a->bytes[m][k] * (b_is_unsigned ? (int)right : (int)(int8_t)right);
            }
}

static int integers_are_right(int b_is_unsigned) {
    struct tile a = any_tile(1), b = any_tile(2);
    int32_t want[ROWS][16] = {{0}}, got[ROWS][16];
    configure();
    _tile_zero(3);
    LOAD(5, &a);
    LOAD(1, &b);
    for (int twice = 0; twice < 2; twice++) {
        multiply(want, &a, &b, b_is_unsigned);
        if (b_is_unsigned) {
            _tile_dpbsud(3, 5, 1);
        } else {
            _tile_dpbssd(3, 5, 1);
        }
    }
    _tile_stored(3, got, BYTES);
    _tile_release();
    return memcmp(want, got, sizeof got) == 0;
}

/* Sums of small integers are exact, whatever their order; 2^-130 squared or alone counts as 0. */
static int bf16_is_right(void) {
    uint16_t a[ROWS][32], b[ROWS][32];
    float got[ROWS][16], want[ROWS][16] = {{0}};
    float left[ROWS][32], right[32][16];
    uint32_t seed = 3;
    for (int m = 0; m < ROWS; m++)
        for (int k = 0; k < 32; k++) {
            union {
                float f;
                uint32_t u;
            } x = {.f = (float)(int)(next(&seed) >> 29) - 3}, y = {.f = (float)(int)(next(&seed) >> 29) - 4};
            a[m][k] = (uint16_t)(x.u >> 16);
            left[m][k] = x.f;
            b[k / 2][2 * m + k % 2] = (uint16_t)(y.u >> 16);
            right[k][m] = y.f;
        }
    a[0][0] = 0x0010; /* subnormal */
    left[0][0] = 0;
    b[0][0] = 0x7f00; /* 2^127 */
    for (int m = 1; m < ROWS; m++) a[m][0] = 0, left[m][0] = 0;
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < 32; k++) want[m][n] += left[m][k] == 0 ? 0 : left[m][k] * right[k][n];
    configure();
    _tile_zero(0);
    LOAD(6, a);
    LOAD(7, b);
    _tile_dpbf16ps(0, 6, 7);
    _tile_stored(0, got, BYTES);
    _tile_release();
    return memcmp(want, got, sizeof got) == 0;
}

/* -2^-125 + 1.5 * 2^-125 is the least normal number, and no subnormal one. */
static int least_normal_is_kept(void) {
    uint16_t a[ROWS][32] = {{0x2040}}, b[ROWS][32] = {{0x2080}}; /* 1.5 * 2^-63 and 2^-62 */
    float c[ROWS][16] = {{-0x1p-125f}};
    configure();
    LOAD(0, c);
    LOAD(6, a);
    LOAD(7, b);
    _tile_dpbf16ps(0, 6, 7);
    _tile_stored(0, c, BYTES);
    _tile_release();
    return c[0][0] == 0x1p-126f && c[0][1] == 0 && c[1][0] == 0;
}

/* ---- tiles through context switches ---- */

static void *keep_tiles(void *seed) {
    struct tile in[2] = {any_tile((uint32_t)(uintptr_t)seed), any_tile((uint32_t)(uintptr_t)seed + 1000)}, out;
    intptr_t wrong = 0;
    configure();
    LOAD(0, &in[0]);
    LOAD(7, &in[1]);
    for (int i = 0; i < ROUNDS; i++) {
        sched_yield();
        if (i % 2) {
            _tile_stored(7, &out, BYTES);
        } else {
            _tile_stored(0, &out, BYTES);
        }
        wrong += memcmp(&out, &in[i % 2], sizeof out) != 0;
    }
    _tile_release();
    return (void *)wrong;
}

static int tiles_are_kept(void) {
    pthread_t threads[3];
    intptr_t wrong = 0;
    for (intptr_t i = 0; i < 3; i++) pthread_create(&threads[i], NULL, keep_tiles, (void *)(i + 10));
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(threads[i], &result);
        wrong += (intptr_t)result;
    }
    return wrong == 0;
}

int main(void) {
    answer("a process without the permission gets SIGILL", is_refused());
    long code = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA);
    answer("Linux gives the permission", code == 0);
    if (code) return 1;
    answer("TDPBSSD, int8 x int8", integers_are_right(0));
    answer("TDPBSUD, int8 x uint8", integers_are_right(1));
    answer("TDPBF16PS, with a subnormal number as 0", bf16_is_right());
    answer("TDPBF16PS keeps the least normal number", least_normal_is_kept());
    answer("three threads keep their tiles while they give way to each other", tiles_are_kept());
    return failed;
}
