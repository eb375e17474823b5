#include "base/memory.h"

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

double memory_available_bytes(void) {
    double system = read_number("/proc/meminfo", "MemAvailable:", 0) * 1024;
    double group = read_number("/sys/fs/cgroup/memory.max", "", system);
    return group < system ? group : system;
}

double memory_resident_bytes(void) {
    return read_number("/proc/self/status", "VmRSS:", 0) * 1024;
}
