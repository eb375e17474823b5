/* plan/host.c - processors and limits, by the system's word. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include "base/file.h"
#include "base/group.h"
#include "base/memory.h"
#include "base/numa.h"
#include "base/pool.h"
#include "plan/detect.h"

/* A small file of the system's, or NULL; the caller frees it. */
static char *read_small(const char *path) {
    char *text;
    size_t size;
    return file_read(path, 4 << 20, &text, &size, NULL) ? NULL : text;
}

/* The number after `label`, or `fallback`. */
static double read_number(const char *path, const char *label, double fallback) {
    char *text = read_small(path), *end = NULL;
    const char *at = text ? strstr(text, label) : NULL;
    double number = 0;
    if (at) {
        at += strlen(label);
        at += strspn(at, " \t:");
        number = strtod(at, &end);
    }
    bool found = at && end != at;
    free(text);
    return found ? number : fallback;
}

static void read_processor_name(struct plan_host *host) {
    char *text = read_small("/proc/cpuinfo"), *at = text ? strstr(text, "model name") : NULL;
    if (at) at = strchr(at, ':');
    if (at) at += strspn(at, ": \t");
    if (at) snprintf(host->processor, sizeof host->processor, "%.*s", (int)strcspn(at, "\n"), at);
    free(text);
}

/* Multiply-adds a core does in a clock, as operations: two units of 4, 8 or 16 lanes. */
static double ops_a_clock(enum cpu_level level) {
    return level >= CPU_AVX512 ? 64 : level >= CPU_AVX2 ? 32 : 16;
}

/* The matrix unit does 16 x 16 x 64 in 16 clocks; VNNI four to a lane; AVX2 two in 16 bits. */
double plan_cpu_bytes_factor(enum cpu_level level) {
    return level >= CPU_AMX ? 32 : level >= CPU_AVX_VNNI ? 4 : level == CPU_AVX2 ? 2 : 1;
}

/* vdpbf16ps takes as long as an fma where it is taken by itself, and does twice the work; AMX's of bf16 are never taken by themselves. */
double plan_cpu_bf16_factor(enum cpu_level level) {
    return level == CPU_AVX512_BF16 ? 2 : 1;
}

static void read_speed(struct plan_host *host) {
    double siblings = read_number("/proc/cpuinfo", "siblings", 1), cores = read_number("/proc/cpuinfo", "cpu cores", 1);
    double khz = read_number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "", 0);
    host->cores = host->threads * (cores > 0 && siblings >= cores ? cores / siblings : 1);
    if (host->cores < 1) host->cores = 1;
    host->ghz = khz > 0 ? khz * 1e-6 : read_number("/proc/cpuinfo", "cpu MHz", 0) * 1e-3;
    host->gflops = host->cores * host->ghz * ops_a_clock(host->level);
    host->gops16 = host->gflops * plan_cpu_bf16_factor(host->level);
    host->gops8 = host->gflops * plan_cpu_bytes_factor(host->level);
}

static int count_numa_nodes(void) {
    struct numa numa;
    numa_look(&numa);
    return numa.n > 1 ? numa.n : 1;
}

/* "always [madvise] never": the one in brackets. */
static void read_huge_pages(struct plan_host *host) {
    char *text = read_small("/sys/kernel/mm/transparent_hugepage/enabled"), *at = text ? strchr(text, '[') : NULL;
    if (at)
        snprintf(host->huge_pages, sizeof host->huge_pages, "%.*s", (int)fmin((double)strcspn(at + 1, "]"), 15.0),
                 at + 1);
    free(text);
}

static double read_limit(int which) {
    struct rlimit limit;
    if (getrlimit(which, &limit) || limit.rlim_cur == RLIM_INFINITY) return INFINITY;
    return (double)limit.rlim_cur;
}

int plan_detect_host(struct plan_host *host, struct mo_error *error) {
    *host = (struct plan_host){.threads = pool_default_threads(), .numa_nodes = count_numa_nodes()};
    int code = cpu_level_get(&host->level, error);
    if (code) return code;
    read_processor_name(host);
    read_speed(host);
    host->memory_bytes = read_number("/proc/meminfo", "MemTotal", 0) * 1024;
    host->swap_bytes = read_number("/proc/meminfo", "SwapTotal", 0) * 1024;
    host->available_bytes = memory_available_bytes();
    const double limit = group_least("memory", group_memory_limit, INFINITY);
    host->group_bytes = isfinite(limit) ? limit : 0;
    read_huge_pages(host);
    host->overcommit = (int)read_number("/proc/sys/vm/overcommit_memory", "", -1);
    host->locked_bytes = read_limit(RLIMIT_MEMLOCK);
    host->address_bytes = read_limit(RLIMIT_AS);
    host->files = read_limit(RLIMIT_NOFILE);
    return 0;
}
