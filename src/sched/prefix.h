/* sched/prefix.h - finds full pages of the latent cache by the tokens they were computed from. What a page holds depends on
 * all tokens before it too, so a page is known by the page it follows and its own tokens: a tree, walked from its root.
 *
 * A page in the tree has a serial number that is never given twice. A child names its parent by that, not by the page's
 * number, so a page that was used again for something else is nobody's parent; and tokens are compared, so a hash that two
 * texts share never mixes them up. Engine thread only. Includes: base, backend. */
#ifndef MOEBIUS_SCHED_PREFIX_H
#define MOEBIUS_SCHED_PREFIX_H

#include <stdint.h>
#include "base/error.h"

/* The parents of first pages: serials are smaller than all salted roots. Pages of different roots never meet. */
enum { PREFIX_ROOT = 0 };
#define PREFIX_SALTED (UINT64_C(1) << 63)

struct prefix_page {
    uint64_t serial, parent; /* serial 0: not in the tree */
    int32_t next;            /* in its bucket; -1 */
};

struct prefix_tree {
    struct prefix_page *pages; /* [n_pages] */
    int32_t *tokens;           /* [n_pages][KV_PAGE_TOKENS] */
    int32_t *buckets;          /* [n_buckets] first page, -1; a power of two */
    uint32_t n_buckets;
    uint64_t last_serial;
};

int prefix_init(struct prefix_tree *tree, int n_pages, struct mo_error *error);
void prefix_free(struct prefix_tree *tree); /* accepts a zeroed one */

/* The page that follows `parent` and holds tokens [KV_PAGE_TOKENS]; -1 if there is none. */
int32_t prefix_find(const struct prefix_tree *tree, uint64_t parent, const int32_t *tokens);
/* Puts a page in that is not there, and returns its serial. prefix_find must not know the same. */
uint64_t prefix_add(struct prefix_tree *tree, int32_t page, uint64_t parent, const int32_t *tokens);
void prefix_remove(struct prefix_tree *tree, int32_t page); /* ignores one that is not there */
/* `to`, which is not there, takes the place of `from`, and its serial: what follows stays where it is. */
void prefix_move(struct prefix_tree *tree, int32_t from, int32_t to);
uint64_t prefix_serial(const struct prefix_tree *tree, int32_t page);

#endif
