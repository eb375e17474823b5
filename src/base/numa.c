#include "base/numa.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- what there is ---- */

static FILE *open_of_node(int id, const char *name) {
    const char *root = getenv("MOEBIUS_NODES");
    char path[4200];
    int n = snprintf(path, sizeof path, "%s/node%d/%s", root ? root : "/sys/devices/system/node", id, name);
    return n < (int)sizeof path ? fopen(path, "re") : NULL;
}

/* "0-3,8,10-11", or nothing; a processor that a cpu_set_t cannot count is left out, and so is all behind what is no number. */
static void read_cpus(FILE *file, cpu_set_t *cpus) {
    int first, last;
    CPU_ZERO(cpus);
    while (fscanf(file, "%d", &first) == 1) {
        if (fscanf(file, "-%d", &last) != 1) last = first;
        for (int cpu = first < 0 ? 0 : first; cpu <= last && cpu < CPU_SETSIZE; cpu++) CPU_SET(cpu, cpus);
        if (fgetc(file) != ',') return;
    }
}

static double read_memory_bytes(int id) {
    double kib = 0;
    FILE *file = open_of_node(id, "meminfo");
    if (!file) return 0;
    if (fscanf(file, "Node %*d MemTotal: %lf", &kib) != 1) kib = 0;
    fclose(file);
    return kib * 1024;
}

/* A container may have the processors of a node and not its memory. Nobody asks so of nodes that a test plays. */
static uint64_t allowed_memory(void) {
    unsigned long nodes[1024 / 8 / sizeof(unsigned long)] = {0}; /* as many as any kernel counts */
    if (getenv("MOEBIUS_NODES")) return UINT64_MAX;
    return syscall(SYS_get_mempolicy, NULL, nodes, sizeof nodes * 8, NULL, MPOL_F_MEMS_ALLOWED) ? UINT64_MAX : nodes[0];
}

void numa_look(struct numa *numa) {
    const uint64_t allowed = allowed_memory();
    cpu_set_t ours;
    *numa = (struct numa){0};
    if (sched_getaffinity(0, sizeof ours, &ours)) return;
    for (int id = 0; id < NUMA_NODES_MAX; id++) {
        FILE *file = open_of_node(id, "cpulist");
        if (!file) continue;
        struct numa_node *node = &numa->nodes[numa->n++];
        node->id = id;
        read_cpus(file, &node->cpus);
        fclose(file);
        CPU_AND(&node->cpus, &node->cpus, &ours);
        node->n_cpus = CPU_COUNT(&node->cpus);
        node->memory_bytes = allowed >> id & 1 ? read_memory_bytes(id) : 0;
    }
}

uint64_t numa_usable(const struct numa *numa) {
    uint64_t nodes = 0;
    for (int i = 0; i < numa->n; i++) {
        if (numa->nodes[i].n_cpus && numa->nodes[i].memory_bytes > 0) nodes |= UINT64_C(1) << numa->nodes[i].id;
    }
    return nodes;
}

/* ---- what is to be ---- */

static bool has_policy(void) {
    int mode = MPOL_DEFAULT;
    return !syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0) && mode != MPOL_DEFAULT && mode != MPOL_LOCAL;
}

static int set_policy(int mode, uint64_t nodes, struct mo_error *error) {
    const unsigned long mask = nodes;
    if (!syscall(SYS_set_mempolicy, mode, &mask, sizeof mask * 8 + 1)) return 0; /* the kernel takes one bit less */
    return mo_error_set(error, MO_E_UNSUPPORTED,
                        "the system does not let this process say on which node memory lies: %s%s", strerror(errno),
                        errno == EPERM ? " (in a container: --cap-add SYS_NICE)" : "");
}

static const struct numa_node *node_of_caller(const struct numa *numa, uint64_t nodes) {
    const int cpu = sched_getcpu();
    const struct numa_node *first = NULL;
    for (int i = 0; i < numa->n; i++) {
        const struct numa_node *node = &numa->nodes[i];
        if (!(nodes >> node->id & 1)) continue;
        if (cpu >= 0 && CPU_ISSET(cpu, &node->cpus)) return node;
        if (!first) first = node;
    }
    return first;
}

/* Not MPOL_BIND: what one node has no room for goes to the next, and nobody is killed for it. */
static int isolate(const struct numa *numa, struct numa_choice *choice, struct mo_error *error) {
    const struct numa_node *node = node_of_caller(numa, choice->nodes);
    choice->nodes = UINT64_C(1) << node->id;
    int code = set_policy(MPOL_PREFERRED, choice->nodes, error);
    if (!code && sched_setaffinity(0, sizeof node->cpus, &node->cpus))
        code = mo_error_set(error, MO_E_UNSUPPORTED, "the system does not let this process stay on a node: %s",
                            strerror(errno));
    return code;
}

static double memory_of(const struct numa *numa, uint64_t nodes) {
    double bytes = 0;
    for (int i = 0; i < numa->n; i++) bytes += nodes >> numa->nodes[i].id & 1 ? numa->nodes[i].memory_bytes : 0;
    return bytes;
}

void numa_settle(enum numa_use wished, struct numa_choice *choice) {
    struct numa numa;
    struct mo_error *error = &choice->why_not;
    int code = 0;
    numa_look(&numa);
    *choice = (struct numa_choice){.wished = wished, .use = wished, .nodes = numa.n > 1 ? numa_usable(&numa) : 0};
    choice->has_several = choice->nodes & (choice->nodes - 1);
    choice->is_bound = has_policy();
    const bool is_left = wished == NUMA_AS_IT_IS || (wished == NUMA_AUTO && choice->is_bound);
    if (is_left) choice->nodes = 0;
    if (is_left || !choice->has_several) choice->use = NUMA_AS_IT_IS;
    if (choice->use == NUMA_AUTO) choice->use = NUMA_DISTRIBUTE;
    if (choice->use == NUMA_DISTRIBUTE) code = set_policy(MPOL_INTERLEAVE, choice->nodes, error);
    if (choice->use == NUMA_ISOLATE) code = isolate(&numa, choice, error);
    if (code) {
        choice->use = NUMA_AS_IT_IS;
        choice->nodes = 0;
    }
    choice->memory_bytes = memory_of(&numa, choice->nodes);
}
