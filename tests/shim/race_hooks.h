/* tests/shim/race_hooks.h - between race_hooks.c and race.c. */
#ifndef MOEBIUS_TESTS_SHIM_RACE_HOOKS_H
#define MOEBIUS_TESTS_SHIM_RACE_HOOKS_H

#include <stdbool.h>
#include <stddef.h>

/* By the thread that runs. */
void race_access(const void *at, size_t bytes, bool is_write, const void *pc);
void race_constant(const void *at, size_t bytes, const void *pc);

/* The compiler's names. */
void __tsan_init(void);
void __tsan_func_entry(void *pc);
void __tsan_func_exit(void);
void __tsan_read_range(void *at, size_t bytes);
void __tsan_write_range(void *at, size_t bytes);
void *shim_memcpy(void *to, const void *from, size_t bytes);
void *shim_memset(void *to, int value, size_t bytes);
void shim_constant(void *to, const void *at, size_t bytes);
void shim_after_previous(void);

#endif
