#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include "base/group.h"

double memory_available_bytes(void) {
    const char *said = getenv("MOEBIUS_MEMORY");
    double system = group_read_number("/proc/meminfo", "MemAvailable:", 0) * 1024;
    double least = fmin(system, group_least("memory", group_memory_left, system)),
           most = said ? strtod(said, NULL) * (1 << 30) : 0;
    return most > 0 && most < least ? most : least;
}

double memory_resident_bytes(void) {
    return group_read_number("/proc/self/status", "VmRSS:", 0) * 1024;
}
