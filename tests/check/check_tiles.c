/* tests/check/check_tiles.c - the checks of `moebius check` over the matrix unit's kernels with its instructions in plain C
 * (kern_amx_in_c.c), so that they are checked on machines without the unit. They need AVX-512 beside it. */
#include <stdio.h>
#include "check/check.h"

void kern_init_amx_in_c(struct kern *kern);

static void print_line(void *context, const struct check_line *line) {
    (void)context;
    printf("%-7s %-18s %6d cases  max error %8.2g %s  %s%s\n", line->level, line->kernel, line->cases, line->max_error,
           line->limit, line->fault ? "FAILED: " : "ok", line->fault ? line->fault : "");
}

int main(void) {
    struct check *check;
    struct mo_error error;
    struct kern kern;
    if (cpu_detect() < CPU_AVX512) {
        printf("left out: the matrix unit's kernels in plain C, for want of AVX-512\n1 skipped\n");
        return 0;
    }
    if (check_open(&check, print_line, NULL, &error)) {
        fprintf(stderr, "check_tiles: %s\n", error.message);
        return 2;
    }
    kern_init(&kern, CPU_AVX512);
    kern_init_amx_in_c(&kern);
    kern.name = "amx in C";
    check_block_products(check, &kern);
    printf("%d passed, %d failed\n", check_passed(check), check_failed(check));
    int failed = check_failed(check);
    check_close(check);
    return failed != 0;
}
