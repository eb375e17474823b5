#include "check/check_priv.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A case with all its tokens, their 8-bit copies and its results. */
enum { CHECK_SLOTS = 384, SLOT_BYTES = 1 << 24 };

/* ---- arrays between pages that fault ---- */

static size_t slot_pitch(const struct check *check) {
    return SLOT_BYTES + check->page_bytes;
}

static int reserve_slots(struct check *check, struct mo_error *error) {
    size_t bytes = CHECK_SLOTS * slot_pitch(check) + check->page_bytes;
    char *map = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bool failed = map == MAP_FAILED;
    for (int i = 0; i < CHECK_SLOTS && !failed; i++) {
        failed = mprotect(map + check->page_bytes + slot_pitch(check) * (size_t)i, SLOT_BYTES, PROT_READ | PROT_WRITE);
    }
    check->slots = map == MAP_FAILED ? NULL : map;
    if (!failed) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY, "no %.1f GiB of addresses for arrays between guard pages: %s",
                        (double)bytes / (1 << 30), strerror(errno));
}

void check_round(struct check *check, int round) {
    check->next_slot = 0;
    check->at_front = round % 4 == 3;
}

void *check_alloc(struct check *check, size_t bytes) {
    if (check->next_slot == CHECK_SLOTS || bytes > SLOT_BYTES) abort(); /* also in builds without asserts */
    char *slot = check->slots + check->page_bytes + slot_pitch(check) * (size_t)check->next_slot++;
    return check->at_front ? slot : slot + SLOT_BYTES - bytes;
}

float *check_floats(struct check *check, int n) {
    return check_alloc(check, (size_t)n * sizeof(float));
}

float *check_copy(struct check *check, const float *x, int n) {
    return memcpy(check_floats(check, n), x, (size_t)n * sizeof *x);
}

/* ---- the account ---- */

void check_begin(struct check *check, const char *kernel, uint64_t seed, const char *limit, double unit) {
    snprintf(check->kernel, sizeof check->kernel, "%s", kernel);
    check->limit = limit;
    check->unit = unit;
    check->worst = 0;
    check->faults = check->cases = 0;
    random_seed(&check->random, seed);
}

void check_end(struct check *check) {
    const struct check_line line = {
        .level = check->kern.name,
        .kernel = check->kernel,
        .cases = check->cases,
        .max_error = check->worst * check->unit,
        .limit = check->limit,
        .fault = check->faults ? check->fault : NULL,
    };
    check->faults ? check->failed++ : check->passed++;
    check->sink(check->context, &line);
}

void check_fault(struct check *check, const char *format, ...) {
    va_list arguments;
    if (check->faults++) return;
    va_start(arguments, format);
    vsnprintf(check->fault, sizeof check->fault, format, arguments);
    va_end(arguments);
}

bool check_same_bits(float a, float b) {
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

void check_value(struct check *check, const char *what, int index, float got, float expected, double allowed) {
    if (!isfinite(expected) || !isfinite(got)) {
        if (check_same_bits(got, expected)) return;
        bool may_overflow = check->kern.tile_order || check->kern.pair_order; /* as kern.h says */
        if (may_overflow && !isfinite(expected) && !isfinite(got)) return;
        check_fault(check, "%s [%d] is %g, expected %g", what, index, (double)got, (double)expected);
        return;
    }
    double error = fabs((double)got - (double)expected), share = error == 0 ? 0 : error / allowed;
    if (share > check->worst) check->worst = share;
    if (share <= 1) return;
    check_fault(check, "%s [%d] is %.9g, expected %.9g, allowed %.2g", what, index, (double)got, (double)expected,
                allowed);
}

void check_bits(struct check *check, const char *what, int index, float got, float expected) {
    if (check_same_bits(got, expected)) return;
    check_fault(check, "%s [%d] is %.9g, expected the bits of %.9g", what, index, (double)got, (double)expected);
}

int check_passed(const struct check *check) {
    return check->passed;
}

int check_failed(const struct check *check) {
    return check->failed;
}

const char *check_now_level(const struct check *check) {
    return check->kern.name;
}

const char *check_now_kernel(const struct check *check) {
    return check->kernel;
}

/* ---- the run ---- */

int check_open(struct check **out, check_sink *sink, void *context, struct mo_error *error) {
    struct check *check = calloc(1, sizeof *check);
    if (!check) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    check->sink = sink;
    check->context = context;
    check->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    kern_init(&check->ref, CPU_REF);
    check->kern = check->ref;
    int code = reserve_slots(check, error);
    if (code) {
        check_close(check);
        return code;
    }
    *out = check;
    return 0;
}

void check_close(struct check *check) {
    if (!check) return;
    if (check->slots) munmap(check->slots, CHECK_SLOTS * slot_pitch(check) + check->page_bytes);
    free(check);
}

static void check_name(struct check *check, enum cpu_level level) {
    check_begin(check, "table", 0, "(its name)", 1);
    check->cases = 1;
    if (strcmp(check->kern.name, cpu_level_name(level))) check_fault(check, "expected %s", cpu_level_name(level));
    check_end(check);
}

/* The table under test, and the plain C that has its bits. */
static void set_kern(struct check *check, const struct kern *kern) {
    check->kern = *kern;
    kern_init_plain(&check->ref, kern);
}

void check_level(struct check *check, enum cpu_level level) {
    struct kern kern;
    kern_init(&kern, level);
    set_kern(check, &kern);
    check_name(check, level);
    if (level == CPU_REF) check_float_formats(check);
    check_layouts(check);
    for (int format = 0; format < MAT_FORMATS; format++) {
        check_gemm(check, (enum mat_format)format, false);
        if (check->kern.gemm_q8[format]) check_gemm(check, (enum mat_format)format, true);
    }
    check_signed_zero(check);
    check_decoders(check);
    check_row_sums(check);
    check_attention(check);
    check_pairs(check);
    check_vectors(check);
}

void check_product(struct check *check, const struct kern *kern, enum mat_format format) {
    set_kern(check, kern);
    check_gemm(check, format, true);
}
