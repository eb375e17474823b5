#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"

/* The number after `label` in a small file of the system's; `fallback` if there is none. */
static double read_number(const char *path, const char *label, double fallback) {
    char *text;
    size_t size;
    if (file_read(path, 1 << 16, &text, &size, NULL)) return fallback;
    const char *at = strstr(text, label);
    char *end = NULL;
    double number = at ? strtod(at + strlen(label), &end) : 0;
    bool found = at && end != at + strlen(label);
    free(text);
    return found ? number : fallback;
}

/* The smallest limit of a control group and those around it: `root` is where their folders are, `path` where ours is below it
 * ("/a/b", or something that a container does not see: then its root counts). */
static double group_limit(const char *root, const char *path, const char *file, double fallback) {
    char name[4096];
    double least = fallback;
    for (size_t n = strcspn(path, "\n");; n--) {
        snprintf(name, sizeof name, "%s%.*s/%s", root, (int)n, path, file);
        double limit = read_number(name, "", fallback);
        least = limit < least ? limit : least;
        while (n > 0 && path[n - 1] != '/') n--;
        if (n == 0) return least;
    }
}

/* Both versions of control groups may be there. */
static double group_limits(double fallback) {
    char *text, *at;
    size_t size;
    double least = group_limit("/sys/fs/cgroup", "", "memory.max", fallback);
    if (file_read("/proc/self/cgroup", 1 << 16, &text, &size, NULL)) return least;
    if ((at = strstr(text, "0::"))) least = fmin(least, group_limit("/sys/fs/cgroup", at + 3, "memory.max", fallback));
    if ((at = strstr(text, ":memory:"))) {
        least = fmin(least, group_limit("/sys/fs/cgroup/memory", at + 8, "memory.limit_in_bytes", fallback));
    }
    free(text);
    return least;
}

double memory_available_bytes(void) {
    const char *said = getenv("MOEBIUS_MEMORY");
    double system = read_number("/proc/meminfo", "MemAvailable:", 0) * 1024;
    double least = fmin(system, group_limits(system)), most = said ? strtod(said, NULL) * (1 << 30) : 0;
    return most > 0 && most < least ? most : least;
}

double memory_resident_bytes(void) {
    return read_number("/proc/self/status", "VmRSS:", 0) * 1024;
}
