#include "sched/stop.h"

#include <string.h>

/* The longest stop string that ends where text [size] ends, or -1. */
static int match_at_end(const struct stop_matcher *matcher, const char *text, size_t size) {
    int found = -1;
    for (int i = 0; i < matcher->n; i++) {
        size_t length = matcher->sizes[i];
        if (length > size || (found >= 0 && length <= matcher->sizes[found])) continue;
        if (memcmp(text + size - length, matcher->strings[i], length) == 0) found = i;
    }
    return found;
}

/* Size of the longest end of text [size] that a stop string begins with. */
static size_t partial_at_end(const struct stop_matcher *matcher, const char *text, size_t size) {
    size_t best = 0;
    for (int i = 0; i < matcher->n; i++) {
        size_t length = matcher->sizes[i] - 1;
        if (length > size) length = size;
        for (; length > best; length--) {
            if (memcmp(text + size - length, matcher->strings[i], length) == 0) best = length;
        }
    }
    return best;
}

int stop_matcher_push(struct stop_matcher *matcher, const char *text, size_t size, char *out, size_t *out_size) {
    size_t old = matcher->n_held, total = old + size;
    if (old > 0) memcpy(out, matcher->held, old);
    if (size > 0) memcpy(out + old, text, size);
    matcher->n_held = 0;
    for (size_t end = old + 1; end <= total; end++) { /* a match that ends in the held part was found before */
        int found = match_at_end(matcher, out, end);
        if (found < 0) continue;
        *out_size = matcher->include ? end : end - matcher->sizes[found];
        return found;
    }
    matcher->n_held = partial_at_end(matcher, out, total);
    *out_size = total - matcher->n_held;
    if (matcher->n_held > 0) memcpy(matcher->held, out + *out_size, matcher->n_held);
    return -1;
}

size_t stop_matcher_finish(struct stop_matcher *matcher, char *out) {
    size_t size = matcher->n_held;
    if (size > 0) memcpy(out, matcher->held, size);
    matcher->n_held = 0;
    return size;
}
