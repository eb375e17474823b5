#include "base/cpu.h"

#include <stdlib.h>
#include <string.h>

static const char *const level_names[] = {"ref", "avx2", "avx512"};

const char *cpu_level_name(enum cpu_level level) {
    return level_names[level];
}

#if defined(__x86_64__)
#include <cpuid.h>

/* Which register files the operating system saves: a processor's flag is worth nothing without it. */
static unsigned saved_state(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has_all(unsigned value, unsigned bits) {
    return (value & bits) == bits;
}

enum cpu_level cpu_detect(void) {
    enum { STATE_AVX = 0x06, STATE_AVX512 = 0xe6 };
    const unsigned need_leaf1_ecx = bit_FMA | bit_AVX | bit_F16C | bit_OSXSAVE;
    const unsigned need_avx2_ebx = bit_AVX2 | bit_BMI | bit_BMI2;
    const unsigned need_avx512_ebx = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has_all(c, need_leaf1_ecx)) return CPU_REF;
    unsigned saved = saved_state();
    if (!has_all(saved, STATE_AVX)) return CPU_REF;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has_all(b, need_avx2_ebx)) return CPU_REF;
    if (!has_all(saved, STATE_AVX512) || !has_all(b, need_avx512_ebx) || !has_all(c, bit_AVX512VNNI)) return CPU_AVX2;
    return CPU_AVX512;
}
#else
enum cpu_level cpu_detect(void) {
    return CPU_REF;
}
#endif

int cpu_level_get(enum cpu_level *level, struct mo_error *error) {
    enum cpu_level best = cpu_detect();
    const char *wanted = getenv("MOEBIUS_CPU");
    *level = best;
    if (!wanted || !*wanted) return 0;
    for (int i = CPU_REF; i <= CPU_AVX512; i++) {
        if (strcmp(wanted, level_names[i]) != 0) continue;
        if (i > (int)best)
            return mo_error_set(error, MO_E_UNSUPPORTED, "MOEBIUS_CPU asks for %s, but this machine offers only %s",
                                wanted, cpu_level_name(best));
        *level = (enum cpu_level)i;
        return 0;
    }
    return mo_error_set(error, MO_E_INVALID, "MOEBIUS_CPU is \"%s\"; expected ref, avx2 or avx512", wanted);
}
