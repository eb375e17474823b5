/* base/arena.h - memory by lifetime: everything that lives as long as an engine (or a request, or a step) comes
 * from one arena and goes with it. Blocks are zeroed, aligned to 64 bytes, and never freed one by one. */
#ifndef MOEBIUS_BASE_ARENA_H
#define MOEBIUS_BASE_ARENA_H

#include <stddef.h>

struct arena;

struct arena *arena_create(void);                 /* NULL when out of memory */
void arena_destroy(struct arena *arena);          /* accepts NULL */
void *arena_alloc(struct arena *arena, size_t n); /* zeroed, 64-byte aligned; NULL when out of memory */
void *arena_alloc_array(struct arena *arena, size_t count, size_t size); /* the same, overflow-checked */
char *arena_strdup(struct arena *arena, const char *text);
char *arena_strndup(struct arena *arena, const char *text, size_t n);

#endif
