/* Stands before the library's kern_init in tests/moebius_broken (Makefile: --wrap): a program whose kernels are wrong. MOEBIUS_BROKEN is
 * a list of LEVEL:KERNEL, separated by commas; a wrong kernel is wrong in one bit of one value. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cpu/kern.h"

void __real_kern_init(struct kern *kern, enum cpu_level level);
void __wrap_kern_init(struct kern *kern, enum cpu_level level);

static struct kern right[CPU_LEVELS]; /* by level: several tables live at once */
static enum cpu_level broken_level;

static void flip(float *value) {
    uint32_t word;
    memcpy(&word, value, sizeof word);
    word ^= 1;
    memcpy(value, &word, sizeof word);
}

static void wrong_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                     const void *next) {
    right[broken_level].gemm_q8[w->format](w, r0, r1, x, n, y, next);
    flip(&y[n - 1][r1 - 1]);
}

static void wrong_gemm(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    right[broken_level].gemm[w->format](w, r0, r1, x, n, y);
    flip(&y[n - 1][r1 - 1]);
}

static void wrong_dots(const struct kern_dots *job) {
    right[broken_level].dots(job);
    flip(&job->out[0]);
}

static void wrong_pair_dots(const struct kern_pair_dots *job) {
    right[broken_level].pair_dots(job);
    flip(&job->out[0]);
}

static void break_kernel(struct kern *kern, const char *name) {
    for (int format = 0; format < MAT_FORMATS; format++) {
        if (!strcmp(name, "gemm_q8") && kern->gemm_q8[format]) kern->gemm_q8[format] = wrong_q8;
        if (!strcmp(name, "gemm")) kern->gemm[format] = wrong_gemm;
    }
    if (!strcmp(name, "dots")) kern->dots = wrong_dots;
    if (!strcmp(name, "pair_dots") && kern->pair_dots) kern->pair_dots = wrong_pair_dots;
}

void __wrap_kern_init(struct kern *kern, enum cpu_level level) {
    char list[256];
    __real_kern_init(kern, level);
    snprintf(list, sizeof list, "%s", getenv("MOEBIUS_BROKEN") ? getenv("MOEBIUS_BROKEN") : "");
    for (char *rest, *item = strtok_r(list, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        char *colon = strchr(item, ':');
        if (!colon) continue;
        *colon = '\0';
        if (strcmp(item, cpu_level_name(level)) != 0) continue;
        right[level] = *kern;
        broken_level = level;
        break_kernel(kern, colon + 1);
    }
}
