#include "base/cpu.h"

#include <stdlib.h>
#include <string.h>

static const char *const level_names[] = {"ref", "avx2", "avx-vnni", "avx512", "avx512-bf16", "amx", "amx-bf16"};

const char *cpu_level_name(enum cpu_level level) {
    return level_names[level];
}

const char *cpu_level_bits(enum cpu_level level) {
    return level == CPU_AVX512_BF16 || level == CPU_AMX_BF16 ? level_names[level] : "plain C";
}

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Which register files the operating system saves: a processor's flag is worth nothing without it. */
static unsigned saved_state(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has_all(unsigned value, unsigned bits) {
    return (value & bits) == bits;
}

/* Linux gives the tiles' registers, 8 KiB a thread, only to processes that ask. */
static int may_use_tiles(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

static bool has_avx512_bf16(void) {
    enum { VBMI = 1 << 1, BF16 = 1 << 5 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has_all(c, VBMI)) return false;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && has_all(a, BF16);
}

static bool is_amd(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
}

/* What there is beside AVX-512, from the processor's flags. A test's build has tiles in plain C (tiles.inc.h). */
static enum cpu_level detect_tiles(unsigned saved, unsigned flags_edx) {
    enum { STATE_TILES = 0x60000, TILE_INT8 = 3 << 24, BF16 = 1 << 22 };
#if defined(MOEBIUS_TILES_IN_C)
    return CPU_AMX_BF16;
#endif
    if (!has_all(saved, STATE_TILES) || !has_all(flags_edx, TILE_INT8) || !may_use_tiles())
        return has_avx512_bf16() ? CPU_AVX512_BF16 : CPU_AVX512;
    return has_all(flags_edx, BF16) ? CPU_AMX_BF16 : CPU_AMX;
}

static bool has_avx_vnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
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
    bool has_avx512 = has_all(saved, STATE_AVX512) && has_all(b, need_avx512_ebx) && has_all(c, bit_AVX512VNNI);
    if (!has_avx512) return has_avx_vnni() ? CPU_AVX_VNNI : CPU_AVX2;
    return detect_tiles(saved, d);
}
#else
static bool has_avx_vnni(void) {
    return false;
}

static bool has_avx512_bf16(void) {
    return false;
}

static bool is_amd(void) {
    return false;
}

enum cpu_level cpu_detect(void) {
    return CPU_REF;
}
#endif

bool cpu_offers(enum cpu_level level) {
    if (level == CPU_AVX_VNNI && !has_avx_vnni()) return false;
    if (level == CPU_AVX512_BF16 && !has_avx512_bf16()) return false;
    return level <= cpu_detect();
}

/* Never amx-bf16, and avx512-bf16 by vendor: a timing would make answers depend on noise. */
static enum cpu_level taken_by_itself(enum cpu_level best) {
    if (best > CPU_AMX) return CPU_AMX;
    return best == CPU_AVX512_BF16 && !is_amd() ? CPU_AVX512 : best;
}

int cpu_level_get(enum cpu_level *level, struct mo_error *error) {
    enum cpu_level best = cpu_detect();
    const char *wanted = getenv("MOEBIUS_CPU");
    *level = taken_by_itself(best);
    if (!wanted || !*wanted) return 0;
    for (int i = CPU_REF; i < CPU_LEVELS; i++) {
        if (strcmp(wanted, level_names[i]) != 0) continue;
        if (!cpu_offers((enum cpu_level)i))
            return mo_error_set(error, MO_E_UNSUPPORTED,
                                "MOEBIUS_CPU asks for %s, which this machine lacks; its best is %s", wanted,
                                cpu_level_name(best));
        *level = (enum cpu_level)i;
        return 0;
    }
    return mo_error_set(error, MO_E_INVALID,
                        "MOEBIUS_CPU is \"%s\"; expected ref, avx2, avx-vnni, avx512, avx512-bf16, amx or amx-bf16",
                        wanted);
}
