/* The race detector of tests/shim: each kernel of planted.cu has a race that must be found, and none once it is put right. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "backend/cuda/driver.h"
#include "backend/cuda/params_bench.h"
#include "planted.h"

/* The driver's functions, as far as they are needed here. */
int cuInit(unsigned flags);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuCtxSetCurrent(void *context);
int cuMemAlloc_v2(uint64_t *at, size_t bytes);
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream);
int cuMemFree_v2(uint64_t at);
int cuStreamSynchronize(void *stream);
int cuModuleGetFunction(void **function, void *module, const char *name);
int cuLaunchKernelEx(const struct cuda_launch_config *config, const void *function, void **arguments, void **extra);
/* Races since it was asked last, and what was told of the first one. */
long shim_races(const char **text);

static const struct planted {
    const char *kernel, *says;
} planted[] = {
    {"planted_barrier", "shared memory: "},
    {"planted_store_of_result", "shared memory: "},
    {"planted_second_barrier", "shared memory: "},
    {"planted_warp_barrier", "shared memory: "},
    {"planted_shuffle_for_barrier", "shared memory: write"},
    {"planted_tiles", "shared memory: read"},
    {"planted_read_of_atomic", "shared memory: "},
    {"planted_one_word", "global memory: write"},
    {"planted_bytes", "global memory: write"},
    {"planted_fence_before", "global memory: read"},
    {"planted_fence_behind", "global memory: read"},
    {"planted_arrival_too_early", "global memory: "},
    {"planted_arrival_without_barrier", "global memory: "},
    {"planted_stage_too_early", "shared memory: "},
    {"planted_wait_too_short", "shared memory: read"},
    {"planted_wait_without_barrier", "shared memory: "},
    {"planted_constant", "global memory: constant read"},
    {"planted_early", "global memory: read"},
    {"planted_host", "the host's memory: read"},
};
enum { PLANTED = sizeof planted / sizeof *planted };

static uint32_t *take(void) {
    uint64_t at = 0;
    size_t bytes = PLANTED_WORDS * sizeof(uint32_t) + 16;
    assert_int_equal(cuMemAlloc_v2(&at, bytes), 0);
    assert_int_equal(cuMemsetD8Async(at, 0, bytes, NULL), 0);
    return (uint32_t *)(uintptr_t)at;
}

static long races(const char *kernel, void *params, const void *memory, const char **text) {
    void *function = NULL, *arguments[] = {params};
    const struct cuda_launch_attribute early = {.id = CUDA_MAY_BEGIN_EARLY, .value = {1}};
    const struct cuda_launch_config config = {.grid_x = PLANTED_BLOCKS,
                                              .grid_y = 1,
                                              .grid_z = 1,
                                              .block_x = 256,
                                              .block_y = 1,
                                              .block_z = 1,
                                              .shared_bytes = 48 << 10,
                                              .attributes = &early,
                                              .n_attributes = !strcmp(kernel, "planted_early")};
    if (cuModuleGetFunction(&function, NULL, kernel)) fail_msg("there is no kernel %s", kernel);
    assert_int_equal(cuLaunchKernelEx(&config, function, arguments, NULL), 0);
    assert_int_equal(cuStreamSynchronize(NULL), 0);
    assert_int_equal(cuMemFree_v2((uint64_t)(uintptr_t)memory), 0);
    return shim_races(text);
}

static long planted_races(const char *kernel, int right, const char **text) {
    static const uint32_t host[256];
    struct planted_params params = {.data = take(), .host = host, .right = right};
    params.counter = params.data + PLANTED_WORDS;
    return races(kernel, &params, params.data, text);
}

static void test_planted(void **state) {
    const struct planted *p = *state;
    const char *text = "";
    assert_true(planted_races(p->kernel, 0, &text) > 0);
    if (strncmp(text, p->kernel, strlen(p->kernel)) || !strstr(text, p->says)) {
        fail_msg("%s: expected \"%s\", found \"%s\"", p->kernel, p->says, text);
    }
}

static void test_right(void **state) {
    const struct planted *p = *state;
    const char *text = "";
    if (planted_races(p->kernel, 1, &text)) fail_msg("there is no race here, but found: %s", text);
}

/* The product's kernels that measure a card. Blocks that wait for each other give up here: they run one after another. */
static void test_probes(void **unused) {
    static const char *const kernels[] = {"probe_empty", "probe_read", "probe_barrier"};
    (void)unused;
    for (int i = 0; i < 3; i++) {
        uint32_t *memory = take();
        const char *text = "";
        struct probe_params params = {.data = (const uint8_t *)memory,
                                      .bytes = PLANTED_WORDS * sizeof *memory,
                                      .sink = memory + PLANTED_WORDS,
                                      .counter = memory + PLANTED_WORDS + 1,
                                      .rounds = 2,
                                      .blocks = PLANTED_BLOCKS};
        if (races(kernels[i], &params, memory, &text)) fail_msg("%s", text);
    }
}

int main(void) {
    struct CMUnitTest tests[2 * PLANTED + 1] = {cmocka_unit_test(test_probes)};
    void *context;
    if (cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context)) return 1;
    for (int i = 0; i < PLANTED; i++) {
        void *state = (void *)(uintptr_t)&planted[i];
        tests[2 * i + 1] = (struct CMUnitTest){planted[i].kernel, test_planted, NULL, NULL, state};
        tests[2 * i + 2] = (struct CMUnitTest){planted[i].kernel, test_right, NULL, NULL, state};
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
