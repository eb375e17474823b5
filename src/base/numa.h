/* base/numa.h - memory nodes: parts of the memory that are nearer to some processors than to others (sockets, and the parts that a BIOS
 * may make of one). Policies are asked of the kernel directly: no library. MOEBIUS_NODES names another folder than
 * /sys/devices/system/node. Includes: error.h. */
#ifndef MOEBIUS_BASE_NUMA_H
#define MOEBIUS_BASE_NUMA_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"

enum { NUMA_NODES_MAX = 64 }; /* a bit each */

struct numa_node {
    int id;
    cpu_set_t cpus; /* that the calling thread may use */
    int n_cpus;
    double memory_bytes; /* 0: processors alone, or none that it may use */
};

struct numa {
    int n;
    struct numa_node nodes[NUMA_NODES_MAX]; /* in ascending order, those that the thread may not use, too */
};

/* What the system says; no nodes where it says nothing. */
void numa_look(struct numa *numa);
/* Bits of the nodes that have processors for this thread, and memory. */
uint64_t numa_usable(const struct numa *numa);

/* --numa, as llama.cpp's; the words of the flag in this order. */
enum numa_use {
    NUMA_AUTO,       /* NUMA_DISTRIBUTE, unless the process is bound to something already */
    NUMA_DISTRIBUTE, /* pages over all nodes by turns, and threads alike */
    NUMA_ISOLATE,    /* both on the node where the caller runs */
    NUMA_AS_IT_IS,   /* "numactl": as the system, or who started us, has it */
};

struct numa_choice {
    enum numa_use wished;
    enum numa_use use;       /* never NUMA_AUTO */
    uint64_t nodes;          /* bits of those where pages should lie, alike; 0: nobody says */
    double memory_bytes;     /* of these nodes */
    bool has_several;        /* nodes that could have been used */
    bool is_bound;           /* a policy for memory was there before */
    struct mo_error why_not; /* MO_E_UNSUPPORTED: the system refused, and nothing has changed */
};

/* Sets the policies of the calling thread, which those that it starts take over: to be called before there are any, and before memory
 * is taken or files are read. */
void numa_settle(enum numa_use wished, struct numa_choice *choice);

#endif
