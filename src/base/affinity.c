#include "base/affinity.h"

#include <stdio.h>
#include <stdlib.h>
#include "base/numa.h"

/* Whether no lower-numbered processor is of the same core; if nobody knows, yes. */
static bool is_first_of_core(int cpu) {
    char path[96];
    int first = cpu;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "r");
    if (!file) return true;
    if (fscanf(file, "%d", &first) != 1) first = cpu;
    fclose(file);
    return first == cpu;
}

/* The processors of this thread by node; those of no node that is known come last, as one more. Returns how many nodes. */
static int sort_by_node(cpu_set_t nodes[NUMA_NODES_MAX + 1]) {
    struct numa numa;
    cpu_set_t *rest;
    numa_look(&numa);
    rest = &nodes[numa.n];
    if (sched_getaffinity(0, sizeof *rest, rest)) return 0;
    for (int i = 0; i < numa.n; i++) {
        CPU_AND(&nodes[i], &numa.nodes[i].cpus, rest);
        CPU_XOR(rest, rest, &nodes[i]);
    }
    return numa.n + 1;
}

static int take_lowest(cpu_set_t *set) {
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, set)) continue;
        CPU_CLR(cpu, set);
        return cpu;
    }
    return -1;
}

/* Moves the other threads of cores out of `cpus`. */
static void split_cores(cpu_set_t *cpus, cpu_set_t *others) {
    CPU_ZERO(others);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, cpus) || is_first_of_core(cpu)) continue;
        CPU_SET(cpu, others);
        CPU_CLR(cpu, cpus);
    }
}

static int deal(cpu_set_t *nodes, int n_nodes, int *cpus, int n, int most) {
    for (int before = -1; n != before && n < most;) {
        before = n;
        for (int i = 0; i < n_nodes && n < most; i++) {
            int cpu = take_lowest(&nodes[i]);
            if (cpu >= 0) cpus[n++] = cpu;
        }
    }
    return n;
}

int affinity_list(int *cpus, int most) {
    cpu_set_t firsts[NUMA_NODES_MAX + 1], others[NUMA_NODES_MAX + 1];
    const int n_nodes = sort_by_node(firsts);
    for (int i = 0; i < n_nodes; i++) split_cores(&firsts[i], &others[i]);
    int n = deal(firsts, n_nodes, cpus, 0, most);
    return deal(others, n_nodes, cpus, n, most);
}

static void widen(int cpu, const cpu_set_t *nodes, int n_nodes, cpu_set_t *place) {
    for (int i = 0; i < n_nodes; i++) {
        if (CPU_ISSET(cpu, &nodes[i])) *place = nodes[i];
    }
}

bool affinity_places(enum affinity affinity, cpu_set_t *places, int n) {
    cpu_set_t nodes[NUMA_NODES_MAX + 1];
    int *cpus = calloc((size_t)n, sizeof *cpus);
    const bool is_known = affinity != AFFINITY_ANY && cpus && affinity_list(cpus, n) == n;
    const int n_nodes = is_known && affinity == AFFINITY_NODE ? sort_by_node(nodes) : 0;
    for (int i = 0; i < n && is_known; i++) {
        CPU_ZERO(&places[i]);
        CPU_SET(cpus[i], &places[i]);
        widen(cpus[i], nodes, n_nodes, &places[i]);
    }
    free(cpus);
    return is_known;
}
