#include "base/group.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"

double group_read_number(const char *path, const char *label, double fallback) {
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

static double number_in(const char *folder, const char *name, const char *label, double fallback) {
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return group_read_number(path, label, fallback);
}

double group_memory_limit(const char *folder, bool is_v1, double none) {
    double limit = number_in(folder, is_v1 ? "memory.limit_in_bytes" : "memory.max", "", -1); /* "max" is no number */
    return limit < 0 ? none : limit;
}

/* The limit less what is in use and cannot be taken back, as pages of files can. */
double group_memory_left(const char *folder, bool is_v1, double none) {
    double limit = group_memory_limit(folder, is_v1, -1);
    if (limit < 0) return none;
    double used = number_in(folder, is_v1 ? "memory.usage_in_bytes" : "memory.current", "", 0);
    used -= number_in(folder, "memory.stat", "\ninactive_file ", 0);
    used -= number_in(folder, "memory.stat", "\nactive_file ", 0);
    return used > 0 ? fmax(limit - used, 0) : limit;
}

/* "200000 100000" is 200000 of every 100000 microseconds: two processors. "max" and -1 are no limit. */
double group_processors(const char *folder, bool is_v1, double none) {
    double quota_us = number_in(folder, is_v1 ? "cpu.cfs_quota_us" : "cpu.max", "", -1);
    double period_us =
        is_v1 ? number_in(folder, "cpu.cfs_period_us", "", 0) : number_in(folder, "cpu.max", " ", 0); /* behind it */
    return quota_us > 0 && period_us > 0 ? quota_us / period_us : none;
}

double group_least_at(const char *root, const char *path, bool is_v1, group_measure *measure, double none) {
    char folder[4096];
    double least = none;
    for (size_t n = strcspn(path, "\n");; n--) {
        snprintf(folder, sizeof folder, "%s%.*s", root, (int)n, path);
        least = fmin(least, measure(folder, is_v1, none));
        while (n > 0 && path[n - 1] != '/') n--;
        if (n == 0) return least;
    }
}

/* The path in a line "4:cpu,cpuacct:/path", if the controller is among its names. */
static const char *path_of(const char *line, const char *controller) {
    const char *at = strchr(line, ':'), *end = at ? strchr(at + 1, ':') : NULL;
    size_t n = strlen(controller);
    if (!end) return NULL;
    while (at < end) {
        size_t name = strcspn(++at, ",:");
        if (name == n && !strncmp(at, controller, n)) return end + 1;
        at += name;
    }
    return NULL;
}

double group_least(const char *controller, group_measure *measure, double none) {
    char *text, root[64];
    size_t size;
    double least = group_least_at("/sys/fs/cgroup", "", false, measure, none);
    if (file_read("/proc/self/cgroup", 1 << 16, &text, &size, NULL)) return least;
    snprintf(root, sizeof root, "/sys/fs/cgroup/%s", controller);
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        const char *path = path_of(line, controller);
        if (!strncmp(line, "0::", 3))
            least = fmin(least, group_least_at("/sys/fs/cgroup", line + 3, false, measure, none));
        else if (path)
            least = fmin(least, group_least_at(root, path, true, measure, none));
    }
    free(text);
    return least;
}
