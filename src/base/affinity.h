/* base/affinity.h - which processors this process may use, and keeping a thread on one of them. */
#ifndef MOEBIUS_BASE_AFFINITY_H
#define MOEBIUS_BASE_AFFINITY_H

/* Up to `most` of them: one of every core first, then the cores' other threads. Returns how many. */
int affinity_list(int *cpus, int most);
/* The calling thread runs on this processor from now on; where that is refused, nothing changes. */
void affinity_stay(int cpu);

#endif
