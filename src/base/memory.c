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

/* Of one group, whose folder this is: the limit less what is in use and cannot be taken back, as pages of files can. */
static double left_in(const char *folder, bool is_v1, double fallback) {
    char path[4200];
    snprintf(path, sizeof path, "%s/memory.%s", folder, is_v1 ? "limit_in_bytes" : "max");
    double limit = read_number(path, "", -1); /* "max" is no number */
    if (limit < 0) return fallback;
    snprintf(path, sizeof path, "%s/memory.%s", folder, is_v1 ? "usage_in_bytes" : "current");
    double used = read_number(path, "", 0);
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    used -= read_number(path, "\ninactive_file ", 0) + read_number(path, "\nactive_file ", 0);
    return used > 0 ? fmax(limit - used, 0) : limit;
}

/* A container does not see the path that its group has outside: then the root counts. */
double memory_group_left_bytes(const char *root, const char *path, bool is_v1, double fallback) {
    char folder[4096];
    double least = fallback;
    for (size_t n = strcspn(path, "\n");; n--) {
        snprintf(folder, sizeof folder, "%s%.*s", root, (int)n, path);
        least = fmin(least, left_in(folder, is_v1, fallback));
        while (n > 0 && path[n - 1] != '/') n--;
        if (n == 0) return least;
    }
}

/* Both versions of control groups may be there. */
static double groups_left(double fallback) {
    char *text, *at;
    size_t size;
    double least = memory_group_left_bytes("/sys/fs/cgroup", "", false, fallback);
    if (file_read("/proc/self/cgroup", 1 << 16, &text, &size, NULL)) return least;
    if ((at = strstr(text, "0::"))) {
        least = fmin(least, memory_group_left_bytes("/sys/fs/cgroup", at + 3, false, fallback));
    }
    if ((at = strstr(text, ":memory:"))) {
        least = fmin(least, memory_group_left_bytes("/sys/fs/cgroup/memory", at + 8, true, fallback));
    }
    free(text);
    return least;
}

double memory_available_bytes(void) {
    const char *said = getenv("MOEBIUS_MEMORY");
    double system = read_number("/proc/meminfo", "MemAvailable:", 0) * 1024;
    double least = fmin(system, groups_left(system)), most = said ? strtod(said, NULL) * (1 << 30) : 0;
    return most > 0 && most < least ? most : least;
}

double memory_resident_bytes(void) {
    return read_number("/proc/self/status", "VmRSS:", 0) * 1024;
}
