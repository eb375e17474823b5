/* backend/cpu/x86/kern_avx512.c - the kernels for this level: the shared templates over its vector words.
 * The Makefile compiles this file alone with the level's instructions. */
#if defined(__x86_64__)
#include "backend/cpu/kern.h"

#include "backend/cpu/x86/vec_avx512.inc.h"
#include "backend/cpu/x86/fp8_scale.inc.h"
#include "backend/cpu/x86/dense.inc.h"
#include "backend/cpu/x86/fp8_table.inc.h"
#include "backend/cpu/x86/awq.inc.h"
#include "backend/cpu/x86/block.inc.h"
#include "backend/cpu/x86/words.inc.h"
#include "backend/cpu/x86/gguf_unpack.inc.h"
#include "backend/cpu/x86/gguf_grids.inc.h"
#include "backend/cpu/x86/fp4.inc.h"
#include "backend/cpu/x86/gguf.inc.h"
#include "backend/cpu/x86/fp4_few.inc.h"
#include "backend/cpu/x86/peak.inc.h"
#include "backend/cpu/x86/stages.inc.h"
#include "backend/cpu/x86/index.inc.h"

static bool has_byte_tables;

static void decode_fp8_best(const struct mat *w, int r0, int r1, float *out) {
    (has_byte_tables ? decode_fp8_by_table : decode_fp8)(w, r0, r1, out);
}

static void decode_rows(const struct mat *w, int r0, int r1, float *out) {
    static void (*const decode[MAT_FORMATS])(const struct mat *, int, int, float *) = {
        [MAT_F32] = format_decode_rows,       [MAT_F16] = decode_f16,        [MAT_BF16] = decode_bf16,
        [MAT_FP8] = decode_fp8_best,          [MAT_INT4_AWQ] = decode_words, [MAT_INT4_GPTQ] = decode_words,
        [MAT_INT4_PACKED] = decode_words,     [MAT_INT4] = decode_block,     [MAT_INT8] = decode_block,
        [MAT_INT8_ROWS] = format_decode_rows,
    };
    (decode[w->format] ? decode[w->format] : decode_gguf)(w, r0, r1, out);
}

/* Not used by this level: on Intel's it does half of what fp32 products do (docs/performance.md, entry 5), on AMD's twice that. */
__attribute__((target("avx512bf16"))) static double bf16_peak(int rounds) {
    FLOAT_PEAK(2 * VL, _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)a))
}

void kern_init_avx512(struct kern *kern) {
    kern->name = "avx512";
    kern->gemm[MAT_F32] = gemm_f32;
    kern->gemm[MAT_F16] = gemm_f16;
    kern->gemm[MAT_BF16] = gemm_bf16;
    kern->gemm[MAT_FP8] = gemm_fp8;
    kern->gemm[MAT_INT4] = gemm_int4;
    kern->gemm[MAT_INT8] = gemm_int8;
    kern->gemm_q8[MAT_INT4] = gemm_block_q8;
    kern->gemm_q8[MAT_INT8] = gemm_block_q8;
    gguf_init(kern);
    words_init(kern);
    kern->gemm_q8[MAT_FP4] = gemm_fp4_q8;
    kern->quantize = quantize;
    kern->decode_rows = decode_rows;
    kern->sum_rows[MAT_BF16] = sum_rows_bf16;
    kern->sum_rows[MAT_FP8] = sum_rows_fp8;
    if (__builtin_cpu_supports("gfni")) best_int4_sets = affine_sets;
    has_byte_tables = __builtin_cpu_supports("avx512vbmi");
    if (has_byte_tables) {
        fp4_best_table = FP4_64;
        fp8_fill_tables();
        kern->gemm[MAT_FP8] = gemm_fp8_by_table;
        kern->sum_rows[MAT_FP8] = sum_rows_fp8_by_table;
    }
    kern->dots = dots;
    kern->weighted_sum = kern->page_sum = weighted_sum;
    kern->relu_sum = relu_sum;
    kern->softmax_step = softmax_step;
    kern->rms_norm = rms_norm;
    kern->silu_mul = silu_mul;
    kern->add_scaled = add_scaled;
    kern->peak[PEAK_INT8] = int8_peak;
    kern->peak[PEAK_F32] = f32_peak;
    if (__builtin_cpu_supports("avx512bf16")) kern->peak[PEAK_BF16] = bf16_peak;
    kern->read_streams = read_streams;
}
#endif
