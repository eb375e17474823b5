/* tests/shim/race_hooks.c - what compilers call before each access to memory under -fsanitize=thread; and, under other names (the
 * Makefile sees to that), the functions that they make of copies of structures. */
#include "race.h"
#include "race_hooks.h"

#include <string.h>

void __tsan_init(void) {
}
void __tsan_func_entry(void *pc) {
    (void)pc;
}
void __tsan_func_exit(void) {
}

#define ACCESS(name, bytes, is_write)                                                                                  \
    void name(void *at);                                                                                               \
    void name(void *at) {                                                                                              \
        race_access(at, bytes, is_write, __builtin_return_address(0));                                                 \
    }
ACCESS(__tsan_read1, 1, false)
ACCESS(__tsan_read2, 2, false)
ACCESS(__tsan_read4, 4, false)
ACCESS(__tsan_read8, 8, false)
ACCESS(__tsan_read16, 16, false)
ACCESS(__tsan_write1, 1, true)
ACCESS(__tsan_write2, 2, true)
ACCESS(__tsan_write4, 4, true)
ACCESS(__tsan_write8, 8, true)
ACCESS(__tsan_write16, 16, true)
ACCESS(__tsan_unaligned_read2, 2, false)
ACCESS(__tsan_unaligned_read4, 4, false)
ACCESS(__tsan_unaligned_read8, 8, false)
ACCESS(__tsan_unaligned_read16, 16, false)
ACCESS(__tsan_unaligned_write2, 2, true)
ACCESS(__tsan_unaligned_write4, 4, true)
ACCESS(__tsan_unaligned_write8, 8, true)
ACCESS(__tsan_unaligned_write16, 16, true)

void __tsan_read_range(void *at, size_t bytes) {
    race_access(at, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void *at, size_t bytes) {
    race_access(at, bytes, true, __builtin_return_address(0));
}

void *shim_memcpy(void *to, const void *from, size_t bytes) {
    race_access(from, bytes, false, __builtin_return_address(0));
    race_access(to, bytes, true, __builtin_return_address(0));
    return memcpy(to, from, bytes);
}
void *shim_memset(void *to, int value, size_t bytes) {
    race_access(to, bytes, true, __builtin_return_address(0));
    return memset(to, value, bytes);
}

void shim_constant(void *to, const void *at, size_t bytes) {
    race_constant(at, bytes, __builtin_return_address(0));
    memcpy(to, at, bytes);
}

void shim_after_previous(void) {
    race_after_previous();
}
