#include "text/added.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int added_set_reserve(struct added_set *set, struct arena *arena, size_t n, struct mo_error *error) {
    *set = (struct added_set){.capacity = (uint32_t)n};
    set->tokens = arena_alloc_array(arena, n ? n : 1, sizeof *set->tokens);
    return set->tokens ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "out of memory for %zu added tokens", n);
}

void added_set_add(struct added_set *set, const char *text, size_t size, int32_t id) {
    assert(set->n < set->capacity && size > 0 && size <= ADDED_BYTES_MAX);
    set->tokens[set->n++] = (struct added_token){text, (uint32_t)size, id};
    if (size > set->size_max) set->size_max = (uint32_t)size;
}

static int compare(const void *a, const void *b) {
    const struct added_token *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->size < y->size ? x->size : y->size);
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

void added_set_sort(struct added_set *set) {
    qsort(set->tokens, set->n, sizeof *set->tokens, compare);
    uint32_t i = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        set->first[byte] = i;
        while (i < set->n && (uint8_t)set->tokens[i].text[0] == byte) i++;
    }
    set->first[256] = i;
}

/* The first token of [low, high) whose byte at `depth` is `byte` or more; tokens that end there come first.
 */
static uint32_t bound(const struct added_set *set, uint32_t low, uint32_t high, uint32_t depth, unsigned byte) {
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct added_token *token = &set->tokens[middle];
        if (token->size > depth && (uint8_t)token->text[depth] >= byte) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

const struct added_token *added_set_prefix(const struct added_set *set, const char *text, size_t n) {
    if (n == 0) return NULL;
    const struct added_token *longest = NULL;
    unsigned byte = (uint8_t)text[0];
    uint32_t low = set->first[byte], high = set->first[byte + 1];
    for (uint32_t depth = 1; low < high; depth++) {
        /* All of [low, high) share the first `depth` bytes with the text. */
        if (set->tokens[low].size == depth) longest = &set->tokens[low];
        if (depth == n) break;
        byte = (uint8_t)text[depth];
        low = bound(set, low, high, depth, byte);
        high = bound(set, low, high, depth, byte + 1);
    }
    return longest;
}

const struct added_token *added_set_find(const struct added_set *set, const char *text, size_t from, size_t end,
                                         size_t *at) {
    if (set->n == 0) return NULL;
    for (size_t i = from; i < end; i++) {
        unsigned byte = (uint8_t)text[i];
        if (set->first[byte] == set->first[byte + 1]) continue;
        const struct added_token *token = added_set_prefix(set, text + i, end - i);
        if (!token) continue;
        *at = i;
        return token;
    }
    return NULL;
}

const struct added_token *added_set_get(const struct added_set *set, const char *text, size_t size) {
    const struct added_token *token = added_set_prefix(set, text, size);
    return token && token->size == size ? token : NULL;
}
