#include "model/gptq_kern.h"

#include "base/cpu.h"

#define LEVEL ref
#define TARGET
#define WIDTH 16
#include "model/gptq_kern.inc.h"

#if defined(__x86_64__)
#define LEVEL avx2
#define TARGET __attribute__((target("avx2")))
#define WIDTH 32
#include "model/gptq_kern.inc.h"

#define LEVEL avx512
#define TARGET __attribute__((target("avx512f")))
#define WIDTH 64
#include "model/gptq_kern.inc.h"
#endif

const struct gptq_kern *gptq_kern_get(void) {
#if defined(__x86_64__)
    enum cpu_level level;
    int code = cpu_level_get(&level, NULL);
    if (code == 0 && level >= CPU_AVX512) return &kern_avx512;
    if (code == 0 && level >= CPU_AVX2) return &kern_avx2;
#endif
    return &kern_ref;
}
