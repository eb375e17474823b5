#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <sys/sysinfo.h>
#include "base/group.h"

/* Where /proc is not there to ask. What files could give back is not in it. */
static double free_bytes(void) {
    struct sysinfo info;
    return sysinfo(&info) ? 0 : ((double)info.freeram + (double)info.bufferram) * info.mem_unit;
}

double memory_available_bytes(void) {
    const char *said = getenv("MOEBIUS_MEMORY");
    double system = group_read_number("/proc/meminfo", "MemAvailable:", -1) * 1024;
    if (system < 0) system = free_bytes();
    double least = fmin(system, group_least("memory", group_memory_left, system)),
           most = said ? strtod(said, NULL) * (1 << 30) : 0;
    return most > 0 && most < least ? most : least;
}

double memory_resident_bytes(void) {
    return group_read_number("/proc/self/status", "VmRSS:", 0) * 1024;
}
