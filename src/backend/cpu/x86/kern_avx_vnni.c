/* backend/cpu/x86/kern_avx_vnni.c - INT4, INT8, FP4, words and GGUF blocks times 8-bit activations where AVX2 has VNNI's product of bytes: one
 * instruction instead of two or four. Everything else stays with AVX2. The Makefile compiles this file alone with the level's
 * instructions. */
#if defined(__x86_64__)
#include "backend/cpu/kern.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* most of the templates are for other levels */
#include "backend/cpu/x86/vec_avx2.inc.h"
#include "backend/cpu/x86/fp8_scale.inc.h"
#include "backend/cpu/x86/dense.inc.h"
#include "backend/cpu/x86/awq.inc.h"
#include "backend/cpu/x86/block.inc.h"
#include "backend/cpu/x86/words.inc.h"
#include "backend/cpu/x86/gguf_unpack.inc.h"
#include "backend/cpu/x86/gguf_grids.inc.h"
#include "backend/cpu/x86/fp4.inc.h"
#include "backend/cpu/x86/gguf.inc.h"
#include "backend/cpu/x86/fp4_few.inc.h"
#include "backend/cpu/x86/peak.inc.h"

void kern_init_avx_vnni(struct kern *kern) {
    kern->name = "avx-vnni";
    kern->gemm_q8[MAT_INT4] = gemm_block_q8;
    kern->gemm_q8[MAT_INT8] = gemm_block_q8;
    for (int format = 0; format < MAT_FORMATS; format++)
        if (gguf_shapes[format].lines) kern->gemm_q8[format] = gemm_gguf_q8;
    for (int format = MAT_INT4_AWQ; format <= MAT_INT4_PACKED; format++) kern->gemm_q8[format] = gemm_words_q8;
    kern->gemm_q8[MAT_FP4] = gemm_fp4_q8;
    kern->peak[PEAK_INT8] = int8_peak;
}
#endif
