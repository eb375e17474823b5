/* base/affinity.h - which processors this process may use, and keeping threads on some of them. */
#ifndef MOEBIUS_BASE_AFFINITY_H
#define MOEBIUS_BASE_AFFINITY_H

#include <sched.h>
#include <stdbool.h>

enum affinity {
    AFFINITY_ANY,
    AFFINITY_NODE,      /* a thread stays on the processors of one memory node */
    AFFINITY_PROCESSOR, /* or on one processor */
};

/* Up to `most` of them: one of every core first, then the cores' other threads; memory nodes take turns. Returns how many. */
int affinity_list(int *cpus, int most);
/* Where each of `n` threads is to stay, in the order of that list. False: they stay where they are, as there are more threads
 * than processors, or nobody knows these. */
bool affinity_places(enum affinity affinity, cpu_set_t *places, int n);

#endif
