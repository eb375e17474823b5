#include "base/numa_pages.h"

#include <linux/mempolicy.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base/numa.h"

enum {
    LOOK = 4096,  /* pages at a time, that should be spread evenly: 16 MiB */
    MOVE = 16384, /* each call has all processors put their lists of pages in order first: few calls */
};

struct numa_pages {
    uint64_t nodes;
    bool moves;
    struct numa_tally tally;
    uint8_t resident[LOOK];
    void *page[LOOK];
    int at[LOOK], to[LOOK];
    void *move_page[MOVE];
    int move_to[MOVE], move_result[MOVE];
    size_t n_moves;
    uintptr_t last; /* page that was looked at: small matrices share some */
};

/* ---- the rule ---- */

static int emptiest(uint64_t nodes, const size_t *count) {
    int best = -1;
    for (int i = 0; i < NUMA_NODES_MAX; i++) {
        if (nodes >> i & 1 && (best < 0 || count[i] < count[best])) best = i;
    }
    return best;
}

size_t numa_pages_even(uint64_t nodes, const int *at, int *to, size_t n) {
    size_t count[NUMA_NODES_MAX] = {0}, known = 0, n_moves = 0;
    const size_t n_nodes = (size_t)__builtin_popcountll(nodes);
    for (size_t i = 0; i < n; i++) {
        if (at[i] < 0 || at[i] >= NUMA_NODES_MAX) continue;
        count[at[i]]++;
        known++;
    }
    const size_t most = n_nodes ? (known + n_nodes - 1) / n_nodes : known;
    for (size_t i = 0; i < n; i++) {
        to[i] = -1;
        if (!n_nodes || at[i] < 0 || at[i] >= NUMA_NODES_MAX) continue;
        if (nodes >> at[i] & 1 && count[at[i]] <= most) continue;
        to[i] = emptiest(nodes, count);
        count[at[i]]--;
        count[to[i]]++;
        n_moves++;
    }
    return n_moves;
}

/* ---- the pages ---- */

struct numa_pages *numa_pages_open(uint64_t nodes, bool moves) {
    struct numa_pages *pages = calloc(1, sizeof *pages);
    if (!pages) return NULL;
    pages->nodes = nodes;
    pages->moves = moves;
    return pages;
}

/* Only those that nobody else has mapped go. */
static void move(struct numa_pages *p) {
    if (!p->n_moves) return;
    long rest = syscall(SYS_move_pages, 0, p->n_moves, p->move_page, p->move_to, p->move_result, MPOL_MF_MOVE);
    for (size_t i = 0; i < p->n_moves && rest >= 0; i++) p->tally.moved += p->move_result[i] == p->move_to[i];
    p->n_moves = 0;
}

/* The system says where a page is once it is mapped, which takes a read. */
static size_t map_resident(struct numa_pages *p, uint8_t *begin, size_t n, size_t page_bytes) {
    size_t found = 0;
    if (mincore(begin, n * page_bytes, p->resident)) return 0;
    for (size_t i = 0; i < n; i++) {
        if (!(p->resident[i] & 1)) continue;
        p->page[found] = begin + i * page_bytes;
        (void)*(volatile const uint8_t *)p->page[found++];
    }
    return found;
}

static void look(struct numa_pages *p, uint8_t *begin, size_t n, size_t page_bytes) {
    const size_t found = map_resident(p, begin, n, page_bytes);
    if (!found || syscall(SYS_move_pages, 0, found, p->page, NULL, p->at, 0)) return;
    p->tally.seen += found;
    p->tally.wrong += numa_pages_even(p->nodes, p->at, p->to, found);
    for (size_t i = 0; i < found && p->moves; i++) {
        if (p->to[i] < 0) continue;
        p->move_page[p->n_moves] = p->page[i];
        p->move_to[p->n_moves] = p->to[i];
        p->move_result[p->n_moves++] = -1;
        if (p->n_moves == MOVE) move(p);
    }
}

void numa_pages_add(struct numa_pages *pages, const void *data, size_t bytes) {
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t at = (uintptr_t)data / page_bytes * page_bytes, end = (uintptr_t)data + bytes;
    if (at == pages->last) at += page_bytes;
    while (at < end) {
        const size_t rest = (end - at + page_bytes - 1) / page_bytes, n = rest < LOOK ? rest : LOOK;
        look(pages, (uint8_t *)at, n, page_bytes);
        at += n * page_bytes;
        pages->last = at - page_bytes;
    }
}

struct numa_tally numa_pages_close(struct numa_pages *pages) {
    struct numa_tally tally = {0};
    if (!pages) return tally;
    move(pages);
    tally = pages->tally;
    free(pages);
    return tally;
}
