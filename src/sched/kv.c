#include "sched/kv.h"

#include <assert.h>
#include <stdlib.h>
#include "backend/backend.h"

int kv_pages_init(struct kv_pages *kv, int n_pages, struct mo_error *error) {
    assert(n_pages > 0);
    *kv = (struct kv_pages){.n_pages = n_pages, .n_free = n_pages};
    kv->free = malloc((size_t)n_pages * sizeof *kv->free);
    if (!kv->free) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a table of %d pages", n_pages);
    for (int i = 0; i < n_pages; i++) kv->free[i] = n_pages - 1 - i; /* page 0 leaves first */
    return 0;
}

void kv_pages_free(struct kv_pages *kv) {
    free(kv->free);
    *kv = (struct kv_pages){0};
}

int kv_pages_for(int n_tokens) {
    assert(n_tokens >= 0);
    return n_tokens / KV_PAGE_TOKENS + (n_tokens % KV_PAGE_TOKENS != 0);
}

int kv_seq_init(struct kv_seq *seq, int max_tokens, struct mo_error *error) {
    *seq = (struct kv_seq){.capacity = kv_pages_for(max_tokens)};
    if (seq->capacity == 0) return 0;
    seq->pages = malloc((size_t)seq->capacity * sizeof *seq->pages);
    if (!seq->pages) {
        return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a sequence of %d tokens", max_tokens);
    }
    return 0;
}

void kv_seq_free(struct kv_pages *kv, struct kv_seq *seq) {
    kv_seq_release(kv, seq);
    free(seq->pages);
    *seq = (struct kv_seq){0};
}

void kv_seq_release(struct kv_pages *kv, struct kv_seq *seq) {
    assert(kv->n_free + seq->n_pages <= kv->n_pages);
    while (seq->n_pages > 0) kv->free[kv->n_free++] = seq->pages[--seq->n_pages];
}

int kv_seq_grow(struct kv_pages *kv, struct kv_seq *seq, int n_tokens) {
    int n_pages = kv_pages_for(n_tokens);
    assert(n_pages <= seq->capacity);
    if (n_pages - seq->n_pages > kv->n_free) return MO_E_LIMIT;
    while (seq->n_pages < n_pages) seq->pages[seq->n_pages++] = kv->free[--kv->n_free];
    return 0;
}
