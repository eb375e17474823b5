/* sched/kv.h - who owns which page of the latent cache. A page is KV_PAGE_TOKENS tokens for all layers; the
 * bytes are the backend's, this keeps the numbers.
 *
 * A full page never changes, so several sequences may share it, and it can be found by its tokens (prefix.h), also after its
 * last user has gone, until it is taken for something else: the one that was left longest ago goes first. V4's pages have near
 * parts besides (near.h): a sequence can begin with shared pages only where the last of them still have theirs. Engine thread only.
 * Includes: base, backend. */
#ifndef MOEBIUS_SCHED_KV_H
#define MOEBIUS_SCHED_KV_H

#include <stdint.h>
#include "base/error.h"
#include "sched/near.h"
#include "sched/prefix.h"

struct kv_page {
    int32_t users;          /* sequences that have it; 0: free */
    int32_t previous, next; /* free pages before and after it in the order of being taken; -1 */
};

struct kv_pages {
    struct kv_page *pages; /* [n_pages] */
    int32_t first, last;   /* free pages, the first to be taken first: those without known tokens, then by age; -1 */
    int n_free, n_pages;
    struct prefix_tree tree;
    struct near_parts near;
};

int kv_pages_init(struct kv_pages *kv, int n_pages, struct mo_error *error);
/* Before the first sequence: there are fewer near parts than pages. `window`: tokens that a query sees of them, itself included. */
int kv_pages_limit_near(struct kv_pages *kv, int n_near, int window, struct mo_error *error);
void kv_pages_free(struct kv_pages *kv);

/* The pages of one sequence. */
struct kv_seq {
    int32_t *pages; /* [capacity] */
    int n_pages, capacity;
    int first_near;  /* the first page at whose near part it looks */
    int n_known;     /* leading pages that the tree knows, as these or with the same tokens */
    uint64_t serial; /* of the last of those in the tree; of none: root */
    uint64_t root;   /* PREFIX_ROOT, or with PREFIX_SALTED in it */
};
/* `max_tokens` bounds the sequence: its table is allocated once, here. */
int kv_seq_init(struct kv_seq *seq, int max_tokens, uint64_t root, struct mo_error *error);
void kv_seq_free(struct kv_pages *kv, struct kv_seq *seq); /* gives all pages back; accepts a zeroed one */
/* Gives all pages back and keeps the table: the sequence starts again later. */
void kv_seq_release(struct kv_pages *kv, struct kv_seq *seq);
/* Takes pages until `n_tokens` fit. Returns 0, or MO_E_LIMIT with nothing changed when too few are free. */
int kv_seq_grow(struct kv_pages *kv, struct kv_seq *seq, int n_tokens);
int kv_pages_for(int n_tokens);               /* pages that n_tokens need */
int kv_pages_left(const struct kv_pages *kv); /* that could be taken now */
/* So many tokens are computed: lets go of the near parts that lie behind the window. */
void kv_seq_pass(struct kv_pages *kv, struct kv_seq *seq, int n_tokens);

/* The leading full pages of tokens [n_tokens] after `root` that a sequence could begin with. Returns how many; *n_used of them are
 * not free. */
int kv_find(const struct kv_pages *kv, uint64_t root, const int32_t *tokens, int n_tokens, int *n_used);
/* A sequence whose pages are all known, or that has none, shares those that follow. Returns how many it has. */
int kv_seq_share(struct kv_pages *kv, struct kv_seq *seq, const int32_t *tokens, int n_tokens);
/* The first `n_tokens` tokens are computed: the pages that they fill can be found from now on. */
void kv_seq_publish(struct kv_pages *kv, struct kv_seq *seq, const int32_t *tokens, int n_tokens);

#endif
