/* tests/shim/race_report.c - races in words, on stderr, with the lines that addr2line finds. A program in whose kernels there were
 * races ends with status 66, as under the sanitizer. */
#include "race_report.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TOLD_MAX = 100, STATUS = 66 };

const char *race_kernel = "";

static long n_races;
static char first_told[256], line[256];
static struct told {
    const char *kernel;
    uint32_t later, earlier;
} told[TOLD_MAX];
static int n_told;

/* For tests of this: how many there were since it was asked last, and what was told of the first one that was new. */
__attribute__((visibility("default"))) long shim_races(const char **text);
long shim_races(const char **text) {
    long n = n_races;
    static char text_then[sizeof first_told];
    memcpy(text_then, first_told, sizeof text_then);
    *text = text_then;
    *first_told = 0;
    n_races = 0;
    return n;
}

static const char *library(const char **first) {
    static Dl_info info;
    if (!info.dli_fbase) dladdr((const void *)race_report, &info);
    if (first) *first = info.dli_fbase;
    return info.dli_fname;
}

uint32_t race_place(const void *pc) {
    static const char *first;
    if (!first) library(&first);
    return pc ? (uint32_t)((const char *)pc - first) : 0;
}

/* The line, and those of the functions that it was inlined into. */
static void print_place(uint32_t pc) {
    char command[4352], text[512];
    snprintf(command, sizeof command, "addr2line -f -i -s -p -e '%s' %#x 2>&1", library(NULL), pc - 1);
    FILE *lines = popen(command, "r");
    while (lines && fgets(text, sizeof text, lines)) fprintf(stderr, "        %s", text);
    if (lines) pclose(lines);
}

static bool was_told(const struct race_side *later, const struct race_side *earlier) {
    struct told here = {race_kernel, later->pc, earlier->pc};
    for (int i = 0; i < n_told; i++) {
        if (!strcmp(told[i].kernel, here.kernel) && told[i].later == here.later && told[i].earlier == here.earlier)
            return true;
    }
    if (n_told < TOLD_MAX) told[n_told++] = here;
    return n_told == TOLD_MAX;
}

void race_report(const struct race_side *later, const struct race_side *earlier, bool is_shared) {
    static const char *const names[] = {"read", "write", "atomic", "copy", "constant read", "the kernel before it"};
    n_races++;
    if (was_told(later, earlier)) return;
    snprintf(line, sizeof line, "%s: %s memory: %s (block %d, thread %d) is not after %s (block %d, thread %d)",
             race_kernel, is_shared ? "shared" : "global", names[later->kind], later->block, later->thread,
             earlier->kind == RACE_HOST ? "" : names[earlier->kind], earlier->block, earlier->thread);
    if (earlier->kind == RACE_HOST) {
        snprintf(line, sizeof line, "%s: the host's memory: %s (block %d, thread %d)", race_kernel, names[later->kind],
                 later->block, later->thread);
    }
    fprintf(stderr, "race: %s\n", line);
    if (!*first_told) memcpy(first_told, line, sizeof line);
    print_place(later->pc);
    if (earlier->kind == RACE_HOST) return;
    fprintf(stderr, "    is not after\n");
    if (earlier->kind != RACE_KERNEL) print_place(earlier->pc);
}

__attribute__((destructor)) static void say_races(void) {
    if (!n_races) return;
    fprintf(stderr, "race: %ld in all, %d%s different\n", n_races, n_told, n_told == TOLD_MAX ? " or more" : "");
    fflush(NULL);
    _exit(STATUS);
}
