#include "base/arena.h"

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_ALIGN = 64, ARENA_CHUNK = 1 << 18 };

/* Chunks form a list; the newest is filled first. A block larger than a quarter of a chunk gets its own. */
struct chunk {
    struct chunk *next;
    size_t used, size; /* bytes of the payload, which starts ARENA_ALIGN after the chunk */
};

struct arena {
    struct chunk *chunks;
};

struct arena *arena_create(void) {
    return calloc(1, sizeof(struct arena));
}

void arena_destroy(struct arena *arena) {
    if (!arena) return;
    for (struct chunk *chunk = arena->chunks; chunk;) {
        struct chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    free(arena);
}

static struct chunk *chunk_create(size_t size) {
    void *memory = NULL;
    if (size > SIZE_MAX - ARENA_ALIGN) return NULL;
    if (posix_memalign(&memory, ARENA_ALIGN, size + ARENA_ALIGN)) return NULL;
    struct chunk *chunk = memory;
    memset(chunk, 0, size + ARENA_ALIGN);
    chunk->size = size;
    return chunk;
}

static char *chunk_payload(struct chunk *chunk) {
    return (char *)chunk + ARENA_ALIGN;
}

static_assert(sizeof(struct chunk) <= ARENA_ALIGN, "the payload starts one alignment after the chunk");

void *arena_alloc(struct arena *arena, size_t n) {
    if (n > SIZE_MAX - ARENA_ALIGN) return NULL;
    n = (n + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    struct chunk *head = arena->chunks;
    if (!head || head->size - head->used < n) {
        bool own = n > ARENA_CHUNK / 4;
        struct chunk *chunk = chunk_create(own ? n : ARENA_CHUNK);
        if (!chunk) return NULL;
        if (own && head) { /* keep filling the chunk at the head */
            chunk->next = head->next;
            head->next = chunk;
        } else {
            chunk->next = head;
            arena->chunks = chunk;
        }
        head = chunk;
    }
    char *block = chunk_payload(head) + head->used;
    head->used += n;
    return block;
}

void *arena_alloc_array(struct arena *arena, size_t count, size_t size) {
    size_t n;
    if (__builtin_mul_overflow(count, size, &n)) return NULL;
    return arena_alloc(arena, n);
}

char *arena_strndup(struct arena *arena, const char *text, size_t n) {
    char *copy = arena_alloc(arena, n + 1);
    if (copy) memcpy(copy, text, n);
    return copy;
}

char *arena_strdup(struct arena *arena, const char *text) {
    return arena_strndup(arena, text, strlen(text));
}
