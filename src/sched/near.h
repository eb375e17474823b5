/* sched/near.h - V4: where the near part of each page lies. A page's far part (compressed rows) is there as long as the page; its near
 * part (the tokens' own rows, and what is summed up of rows being made) is looked at by queries a window away at most, and by whoever goes
 * on from its end. There are fewer near parts than pages: one that no sequence looks at any more stays with its page until another
 * page wants it. Those go first that one sequence alone has had and passed by: nobody may ever go on from there. Behind them, the one
 * left longest ago first, come the ends of sequences, where a talk goes on, and what several had in common. Engine thread only.
 * Includes: base. */
#ifndef MOEBIUS_SCHED_NEAR_H
#define MOEBIUS_SCHED_NEAR_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"

struct near_page {
    int32_t users;          /* sequences that look at it */
    bool is_common;         /* more than one has had it, or computed the same */
    int32_t previous, next; /* pages with a part that nobody looks at, in the order of losing it; -1 */
};

/* Zeroed: every page has one of its own, and the functions below do nothing. */
struct near_parts {
    int32_t *place;          /* [n_pages] the number of a page's part; -1: it has none. What the backend reads */
    struct near_page *pages; /* [n_pages] */
    int32_t *unused;         /* [n_unused] parts of no page */
    int n_unused, n_idle;    /* n_idle: pages in the list */
    int32_t first, last;
    int window; /* tokens that a query sees, itself included */
};

int near_init(struct near_parts *parts, int n_pages, int n_parts, int window, struct mo_error *error);
void near_free(struct near_parts *parts); /* accepts a zeroed one */

bool near_has(const struct near_parts *parts, int32_t page);
int near_left(const struct near_parts *parts); /* pages that could get one */
/* The page is to be filled anew, by a sequence that looks at it: it gets a part if it has none. near_left is not 0. */
void near_begin(struct near_parts *parts, int32_t page);
/* Another sequence looks at what is in it. The page has a part. */
void near_share(struct near_parts *parts, int32_t page);
/* A sequence that computed the page found that others had. */
void near_meet(struct near_parts *parts, int32_t page);
/* A sequence that ends leaves the page, or one that passes on. */
void near_leave(struct near_parts *parts, int32_t page, bool ends);
/* The first page loses its part: n_idle is not 0. */
void near_lose(struct near_parts *parts);
/* Of a sequence with so many computed tokens, the first of its pages that it looks at, also if it goes back to the beginning of its
 * last page. */
int near_first(const struct near_parts *parts, int n_tokens);

#endif
