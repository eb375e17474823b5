#include "base/affinity.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>

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

int affinity_list(int *cpus, int most) {
    cpu_set_t set;
    int n = 0;
    if (sched_getaffinity(0, sizeof set, &set)) return 0;
    for (int others = 0; others < 2; others++) {
        for (int cpu = 0; cpu < CPU_SETSIZE && n < most; cpu++) {
            if (CPU_ISSET(cpu, &set) && is_first_of_core(cpu) != (bool)others) cpus[n++] = cpu;
        }
    }
    return n;
}

void affinity_stay(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}
