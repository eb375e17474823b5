#include "backend/cpu/kern.h"

void kern_init(struct kern *kern, enum cpu_level level) {
    kern_init_ref(kern);
#if defined(__x86_64__)
    if (level >= CPU_AVX2) kern_init_avx2(kern);
    if (level >= CPU_AVX_VNNI) kern_init_avx_vnni(kern);
    if (level >= CPU_AVX512) kern_init_avx512(kern);
    if (level >= CPU_AMX) kern_init_amx(kern);
    if (level >= CPU_AMX_BF16) kern_init_amx_bf16(kern);
#else
    (void)level;
#endif
}
