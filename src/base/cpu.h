/* base/cpu.h - which bundle of instructions kernels may use. Levels are deployable bundles, not single CPUID
 * bits; MOEBIUS_CPU=ref|avx2|avx-vnni|avx512|avx512-bf16|amx|amx-bf16 says which, for tests and bug reports. Two have bits of their
 * own (kern.h). avx512-bf16 is taken by itself on AMD's processors, whose products of bf16 do twice the work of float ones; Intel's do
 * half of it. amx-bf16 is never taken by itself: it has only been run in emulation. */
#ifndef MOEBIUS_BASE_CPU_H
#define MOEBIUS_BASE_CPU_H

#include <stdbool.h>
#include "base/error.h"

enum cpu_level {
    CPU_REF,      /* plain C */
    CPU_AVX2,     /* AVX2, FMA, F16C, BMI2: x86-64-v3 */
    CPU_AVX_VNNI, /* and 8-bit products of 256 bits: desktop processors without AVX-512. Some with it lack this level */
    CPU_AVX512,   /* F, BW, VL, DQ and VNNI */
    CPU_AVX512_BF16, /* and BF16 and VBMI: what Zen 4 and later have. Some with more lack this level */
    CPU_AMX,         /* AVX-512 and the matrix unit: TILE and INT8, with the kernel's leave to use it */
    CPU_AMX_BF16,
    CPU_LEVELS
};

enum cpu_level cpu_detect(void); /* the best that the processor and the kernel offer */
bool cpu_offers(enum cpu_level level);
/* The best that is taken by itself, or what MOEBIUS_CPU says. An unknown name or a level that this machine lacks is an error. */
int cpu_level_get(enum cpu_level *level, struct mo_error *error);
const char *cpu_level_name(enum cpu_level level);
/* Whose bits a level's products and sums have: "plain C", or its own name. */
const char *cpu_level_bits(enum cpu_level level);

#endif
