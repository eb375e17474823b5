/* The cache's memory is taken beside whoever writes there, by the system's own way and by the one of old systems: all of it, and
 * nothing that was written is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "backend/cpu/cpu.h"
#include "base/clock.h"

enum { LAYERS = 3, PAGES = 150, WAIT_S = 60 };

static atomic_bool g_is_old;    /* the system does not know how */
static atomic_int g_refuses;    /* what it says instead, if not 0 */
static atomic_int g_n_populate; /* times that it was asked */

/* Before libc's. */
int madvise(void *at, size_t size, int advice) {
    int refuses = atomic_load(&g_refuses);
    if (advice == MADV_POPULATE_WRITE) {
        atomic_fetch_add(&g_n_populate, 1);
        if (atomic_load(&g_is_old) || refuses) {
            errno = refuses ? refuses : EINVAL;
            return -1;
        }
    }
    return (int)syscall(SYS_madvise, at, size, advice);
}

static size_t count_missing(const struct cpu *cpu) {
    static unsigned char taken[1 << 16];
    size_t system_page = (size_t)sysconf(_SC_PAGESIZE), n = (cpu->cache_bytes + system_page - 1) / system_page, sum = 0;
    assert_true(n <= sizeof taken);
    assert_int_equal(mincore(cpu->cache, cpu->cache_bytes, taken), 0);
    for (size_t i = 0; i < n; i++) sum += taken[i] & 1;
    return n - sum;
}

static void open_cache(struct cpu *cpu, struct model *model) {
    *model = (struct model){.layers = LAYERS, .kv_lora = 512, .rope_dim = 64};
    static struct cache_layer layers[LAYERS];
    *cpu = (struct cpu){
        .model = model, .cache_layers = layers, .options = {.n_pages = PAGES, .kv = KV_BF16, .take_cache = true}};
    atomic_store(&g_n_populate, 0);
    assert_int_equal(kv_cache_open(cpu, NULL), 0);
}

static uint8_t byte_at(size_t at) {
    return (uint8_t)(at * 31 + at / 4096);
}

/* Writes into the first layer while all of it is taken, and finds that afterwards. */
static void check_taken(void) {
    struct model model;
    struct cpu cpu;
    open_cache(&cpu, &model);
    size_t written = cpu.cache_bytes / LAYERS;
    for (size_t at = 0; at < written; at += 7) cpu.cache[at] = byte_at(at);
    double until_s = clock_now_s() + WAIT_S;
    while (count_missing(&cpu) && clock_now_s() < until_s) usleep(1000);
    assert_int_equal(count_missing(&cpu), 0);
    kv_take_end(&cpu);
    for (size_t at = 0; at < cpu.cache_bytes; at++) {
        uint8_t wanted = at < written && at % 7 == 0 ? byte_at(at) : 0;
        if (cpu.cache[at] != wanted) fail_msg("byte %zu was changed", at);
    }
    kv_cache_close(&cpu);
}

static void test_taken(void **state) {
    (void)state;
    atomic_store(&g_is_old, false);
    check_taken();
}

static void test_taken_before_linux_5_14(void **state) {
    (void)state;
    atomic_store(&g_is_old, true);
    check_taken();
    atomic_store(&g_is_old, false);
}

/* It is said once, and the cache is there all the same. */
static void test_no_memory(void **state) {
    (void)state;
    struct model model;
    struct cpu cpu;
    atomic_store(&g_refuses, ENOMEM);
    open_cache(&cpu, &model);
    double until_s = clock_now_s() + WAIT_S;
    while (!atomic_load(&g_n_populate) && clock_now_s() < until_s) usleep(1000);
    memset(cpu.cache, 1, cpu.cache_bytes);
    kv_cache_close(&cpu);
    assert_int_equal(atomic_load(&g_n_populate), 1);
    atomic_store(&g_refuses, 0);
}

static void test_closed_at_once(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct model model;
        struct cpu cpu;
        open_cache(&cpu, &model);
        kv_cache_close(&cpu);
        assert_null(cpu.taker);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken),
        cmocka_unit_test(test_taken_before_linux_5_14),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_closed_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
