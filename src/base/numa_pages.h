/* base/numa_pages.h - on which memory node pages are, and taking them elsewhere. A policy says where new pages go; a file that the system
 * has in memory already stays where it was first read, whoever maps it, so its pages are moved one by one. Includes: numa.h. */
#ifndef MOEBIUS_BASE_NUMA_PAGES_H
#define MOEBIUS_BASE_NUMA_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In pages. */
struct numa_tally {
    size_t seen;  /* in memory */
    size_t wrong; /* not where they should be */
    size_t moved; /* of these */
};

struct numa_pages;
/* Pages should lie on `nodes` alike. NULL: no memory. */
struct numa_pages *numa_pages_open(uint64_t nodes, bool moves);
/* Looks at those of a mapped range that are in memory. What is small is moved later, with more. */
void numa_pages_add(struct numa_pages *pages, const void *data, size_t bytes);
/* Moves what is left, and ends. */
struct numa_tally numa_pages_close(struct numa_pages *pages); /* accepts NULL */

/* The rule, for pages that are read at once: at[i] is a page's node (below 0: unknown, it stays), to[i] becomes the one it should
 * go to or -1. As few as possible move. Returns how many. */
size_t numa_pages_even(uint64_t nodes, const int *at, int *to, size_t n);

#endif
