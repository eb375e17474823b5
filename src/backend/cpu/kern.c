#include "backend/cpu/kern.h"

enum cpu_level kern_level(enum cpu_level level, bool in_f32) {
    return in_f32 && level == CPU_AVX512_BF16 ? CPU_AVX512 : level;
}

void kern_init(struct kern *kern, enum cpu_level level) {
    kern_init_ref(kern);
#if defined(__x86_64__)
    if (level >= CPU_AVX2) kern_init_avx2(kern);
    if (level >= CPU_AVX_VNNI) kern_init_avx_vnni(kern);
    if (level >= CPU_AVX512) kern_init_avx512(kern);
    if (level == CPU_AVX512_BF16) kern_init_avx512_bf16(kern); /* with bits of its own, and slower where there is AMX */
    if (level >= CPU_AMX) kern_init_amx(kern);
    if (level >= CPU_AMX_BF16) kern_init_amx_bf16(kern);
#else
    (void)level;
#endif
}

void kern_init_plain(struct kern *plain, const struct kern *like) {
    kern_init(plain, CPU_REF);
    if (like->tile_order) kern_init_tile_order(plain);
    if (like->pair_order) kern_init_pair_order(plain);
}
