/* sched/kv.h - who owns which page of the latent cache. A page is KV_PAGE_TOKENS tokens for all layers; the
 * bytes are the backend's, this keeps the numbers. Engine thread only. Includes: base, backend. */
#ifndef MOEBIUS_SCHED_KV_H
#define MOEBIUS_SCHED_KV_H

#include <stdint.h>
#include "base/error.h"

struct kv_pages {
    int32_t *free; /* [n_pages] stack of free page numbers */
    int n_free, n_pages;
};

int kv_pages_init(struct kv_pages *kv, int n_pages, struct mo_error *error);
void kv_pages_free(struct kv_pages *kv);

/* The pages of one sequence. */
struct kv_seq {
    int32_t *pages; /* [capacity] */
    int n_pages, capacity;
};
/* `max_tokens` bounds the sequence: its table is allocated once, here. */
int kv_seq_init(struct kv_seq *seq, int max_tokens, struct mo_error *error);
void kv_seq_free(struct kv_pages *kv, struct kv_seq *seq); /* gives all pages back; accepts a zeroed one */
/* Gives all pages back and keeps the table: the sequence starts again later. */
void kv_seq_release(struct kv_pages *kv, struct kv_seq *seq);
/* Takes pages until `n_tokens` fit. Returns 0, or MO_E_LIMIT with nothing changed when too few are free. */
int kv_seq_grow(struct kv_pages *kv, struct kv_seq *seq, int n_tokens);
int kv_pages_for(int n_tokens); /* pages that n_tokens need */

#endif
