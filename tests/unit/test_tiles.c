/* The configuration of the matrix unit as the instruction finds it in memory. gcc's header declares that LDTILECFG reads
 * eight bytes, so a compiler may leave out the stores of the other 56, and gcc 12 does: here an instruction declared like that copies all
 * of them. What the kernels compute with tiles is tests/test_tiles.py's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#if defined(__x86_64__)
#include <immintrin.h>

static struct { uint8_t bytes[64]; } seen;

#define _tile_loadconfig(CONFIG)                                                                                       \
    __asm__ volatile("lea %1, %%rsi\n\tlea %0, %%rdi\n\tmov $64, %%ecx\n\trep movsb"                                   \
                     : "=m"(seen)                                                                                      \
                     : "m"(*(const void *const *)(CONFIG))                                                             \
                     : "rsi", "rdi", "rcx")

#include "backend/cpu/x86/tiles.inc.h"

/* Alone, so that nothing after it keeps what it writes. */
static __attribute__((noinline)) void begin(void) {
    tiles_begin();
}

/* Palette 1; eight tiles of 16 rows of 64 bytes, the widths from byte 16, two each, the heights from byte 48; 0 between. */
static void test_config_is_written_whole(void **state) {
    (void)state;
    begin();
    for (int i = 0; i < 64; i++) {
        int expected = i == 0 ? 1 : i >= 16 && i < 32 && i % 2 == 0 ? 64 : i >= 48 && i < 56 ? 16 : 0;
        assert_int_equal(seen.bytes[i], expected);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_config_is_written_whole)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void) {
    return 0;
}
#endif
