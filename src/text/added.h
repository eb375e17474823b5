/* text/added.h - sets of strings to look for in a text, leftmost first and longest first: added tokens, and
 * the ASCII look-alikes of them. Immutable once sorted. Includes: base. */
#ifndef MOEBIUS_TEXT_ADDED_H
#define MOEBIUS_TEXT_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/error.h"

enum { ADDED_BYTES_MAX = 1024 }; /* longest string */

struct added_token {
    const char *text; /* [size], in the arena */
    uint32_t size;
    int32_t id;
};

struct added_set {
    struct added_token *tokens; /* [n] sorted by text once added_set_sort has run */
    uint32_t first[257];        /* tokens that begin with byte b are [first[b], first[b + 1]) */
    uint32_t n, capacity;
    uint32_t size_max; /* bytes of the longest */
};

int added_set_reserve(struct added_set *set, struct arena *arena, size_t n, struct mo_error *error);
/* `text` must live as long as the set; size is 1 .. ADDED_BYTES_MAX. */
void added_set_add(struct added_set *set, const char *text, size_t size, int32_t id);
void added_set_sort(struct added_set *set);

/* The longest string of the set that text [n] begins with, or NULL. */
const struct added_token *added_set_prefix(const struct added_set *set, const char *text, size_t n);
/* The first string of the set in text[from, end), longest if several begin there; NULL if none. Writes where.
 */
const struct added_token *added_set_find(const struct added_set *set, const char *text, size_t from, size_t end,
                                         size_t *at);
/* The string itself, by exact content. */
const struct added_token *added_set_get(const struct added_set *set, const char *text, size_t size);

#endif
