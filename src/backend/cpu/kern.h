/* backend/cpu/kern.h - the CPU kernels: a table of function pointers filled with the plain C reference, then
 * overwritten level by level (dav1d's scheme). Kernels see ranges of rows; threads sit above them.
 *
 * Sameness: every operation and its order is laid down here, and depends on the matrix alone, never on n, r0,
 * r1, pointers or the width of a register. So a token's result is the same bits alone or in any batch, and
 * every level gives the same bits as the plain C (any NaN standing for any other). The words used below:
 *   fma    one rounding for a * b + c; every other operation is rounded by itself (-ffp-contract=off).
 *   lanes  a sum over a row of n values is SUM_LANES sums side by side: lane l takes values l, l + 16, ... in
 *          ascending order, from 0, as if the row went on with zeros up to a multiple of 16.
 *   tree   the lanes' one sum: lane l += lane l + 8, for l < 8; then the same with 4, 2 and 1.
 *   exp    the polynomial of kern_ref.c; 0 below the smallest normal float.
 *
 * One level, amx-bf16, adds in another order where the table says `tile_order`: products of BF16 and FP8 weights, dots and
 * page_sum. It is laid down at these as "in tile order" and written in plain C in kern_tile_order.c. A token's result is the
 * same bits in any batch here too, but not the other levels' bits.
 *   parts  a float as a sum of bf16. Three are exact: each is the upper half of what is left. Two leave 2^-17 of it: the same,
 *          rounded to nearest (halves away from 0).
 *   step   c += 32 products of parts: those of even k in one sum from 0, those of odd k in another, ascending, by fma; then
 *          even + odd; then c + that. What lies past the row is 0. Subnormal numbers count as 0, going in and coming out.
 * Products smaller than 2^-126 are lost, and where Inf should come out, it may be NaN.
 *
 * Another, avx512-bf16, rounds activations to bf16 for products of BF16 and FP8 weights, and has sums of bf16 for attention, where
 * the table says `pair_order`; in plain C they are in kern_pair_order.c. gemm_unrounded leaves activations as they are. In any
 * batch the same bits here too.
 *   rounded  to the nearest bf16, halves to even.
 *   pairs    lanes, but lane l takes values 2l and 2l + 1, then 32 on: lane = fma(second, second, lane), then the same with the
 *            first ones; as if the row went on with zeros up to a multiple of 32. Subnormal numbers count as 0, going in and
 *            coming out, also where a number is rounded.
 *
 * No kernel allocates, and none reads or writes outside the arrays it is given. Pointers are 4-byte aligned;
 * weights as format.h says. Includes: base/cpu.h, model/format.h. */
#ifndef MOEBIUS_BACKEND_CPU_KERN_H
#define MOEBIUS_BACKEND_CPU_KERN_H

#include <stdbool.h>
#include "base/cpu.h"
#include "model/format.h"

enum {
    READ_STREAMS = 8, /* about what keeps a core's line buffers full */
    SUM_LANES = 16,
    FP8_CHUNK = 512, /* k with one partial sum, at most */
    AWQ_STEP = 32,   /* k with one partial sum; scale groups are multiples of it */
    Q8_GROUP_MIN = 32,
    Q8_GROUP_MAX = 128,
};

/* One token's activations in 8 bits: x[k] = q[k] * scale[k / group], for a group of 32, 64 or 128 (q8_group). Built by
 * kern.quantize; every level builds the same bits. q is x * (127 / amax), rounded to nearest even, so |q| <= 127. A
 * group whose amax is below 2^-100 counts as zero; one with Inf or NaN gets scale NaN and q 0, so that the fault shows
 * in the output. Arrays reach to a multiple of 128 k; what lies past the row is 0. */
struct q8_row {
    int8_t *q;    /* [cols rounded up to 128] */
    float *scale; /* [that / group] amax / 127; 0 for an all-zero group */
    int32_t *sum; /* [that / group] sum of q: what a weight's zero point multiplies */
};

/* The group of activations that gemm_q8 wants for a matrix; 0 if the format has none. */
static inline int q8_group(const struct mat *w) {
    if (mat_is_words(w->format) || w->format == MAT_FP4 || gguf_is_blocks(w->format)) return Q8_GROUP_MIN;
    return mat_is_integer(w->format) ? w->group_size : 0;
}

/* y[t][r] = sum_k W[r][k] * x[t][k] for r in [r0, r1), t in [0, n), in fp32. y[t] points at row 0.
 *   F32, F16, BF16, FP4, INT4, INT8, GGUF's blocks
 *                   lane = fma(w, x, lane); tree.
 *   FP8             by chunks: from k to the end of its scale block, FP8_CHUNK at most; no blocks where one
 *                   scale spans the row. In a chunk partial = fma(w / 256, x, partial), in lanes counted from
 *                   its start; then lane = fma(partial, scale * 256, lane); tree at the end. (An e4m3 value's
 *                   bits put into an fp16's places give 2^-8 of it.)
 *                   In tile order BF16 and FP8 make a sum of steps for each of the three parts of x; at the end
 *                   (third + second) + first. FP8: each chunk makes a partial sum from 0, of steps from its start, over
 *                   w / 256; then sum = fma(partial, scale * 256, sum).
 *                   In pair order BF16 and FP8 do as above, but with pairs, and x rounded.
 *   words           no lanes. By steps of AWQ_STEP k: sum = fma((q - z) * u, x, sum), ascending from 0; then
 *                   y = fma(sum, scale / u, y). u = 16^(j % 4), the row being nibble j of its word in
 *                   AWQ's order: so that there the nibble need not be shifted. */
typedef void kern_gemm(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y);
/* The same for 8-bit activations. For each group of k (q8_group), ascending, from y = 0:
 * y = fmaf((float)isum, wscale * xscale, y), where isum = sum of (q of the weight - zero point) * q is an exact integer.
 *   GGUF's blocks, FP4
 *                   the group of activations is 32 k; the sums are those of the 16 or 32 k that have a scale of their own (struct
 *                   gguf_parts), ascending. wscale = gguf_parts.scale, that is d * the block's own scale, which is exact;
 *                   isum has at most 24 bits, so that it is exact as a float too. Where the format has a minimum, y then
 *                   becomes fmaf(low, xscale * (float)xsum, y), where xsum = sum of q over the same k. */
/* `next` (or NULL) is where the caller will read weights after this call: they are asked for while the last ones are used. */
typedef void kern_gemm_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                          const void *next);

/* out[i][t] = sum_c k[t][c] * q[i][c]: the score side of attention. fma(k, q, lane) in lanes; tree. i in [0, n_q), t in
 * [0, n_k), c in [0, dim); *_stride in floats. In tile order: two parts of each, for every 32 c one step of first q first k,
 * one of second q first k, one of first q second k. */
struct kern_dots {
    const float *q, *k;
    float *out;
    size_t q_stride, k_stride, out_stride;
    int n_q, n_k, dim;
    const void
        *next; /* what will be read after this call: asked for bit by bit while the sums are made. NULL: nothing */
    size_t next_bytes;
};

/* acc[i][c] = acc[i][c] * keep[i] + sum_t p[i][t] * v[t][c]: the value side of attention (keep = the
 * softmax correction) and the absorbed projections (keep NULL means 0: acc is overwritten). The product
 * with keep first, then an fma for each t, ascending. i in [0, m), t in [0, n_t), c in [0, n_c); *_stride
 * in floats. */
typedef void kern_weighted_sum(float *acc, size_t acc_stride, const float *keep, const float *p, size_t p_stride,
                               const float *v, size_t v_stride, int m, int n_t, int n_c);

/* The same in pair order, of rows of bf16. *_stride in values. */
struct kern_pair_dots {
    const uint16_t *q, *k;
    float *out;
    size_t q_stride, k_stride, out_stride;
    int n_q, n_k, dim;
    const void *next; /* as above */
    size_t next_bytes;
};

/* page_sum in pair order, of p rounded and values of bf16: the product with keep first, then for every two t, ascending, an fma
 * for the second, and one for the first; a second one that is missing is 0. */
struct kern_pair_sum {
    float *acc;
    const float *keep, *p;
    const uint16_t *v;
    size_t acc_stride, p_stride, v_stride;
    int m, n_t, n_c;
};

/* Kinds of products: 8-bit integers to 32-bit sums, single precision, pairs of bf16 to single precision. */
enum kern_peak { PEAK_INT8, PEAK_F32, PEAK_BF16, KERN_PEAKS };

struct kern {
    const char *name; /* cpu_level_name */
    bool tile_order;  /* see above; such kernels also want many rows at once, as they pack x first */
    bool pair_order;  /* see above; the same */

    /* For INT4_AWQ, r0 and r1 are multiples of 8 (or r1 == rows), for what is turned of 16; others take any range. */
    kern_gemm *gemm[MAT_FORMATS];
    /* BF16 in lanes, x as it is, where the table's own product rounds x (pair order); else NULL. */
    kern_gemm *gemm_unrounded;
    /* NULL where q8_group is 0. For INT4 and INT8, r0 and r1 are multiples of 32 (or r1 == rows), for the rest as above. */
    kern_gemm_q8 *gemm_q8[MAT_FORMATS];

    /* x [n] -> q8 with round to nearest even; n any; group 32, 64 or 128. */
    void (*quantize)(const float *x, int n, int group, struct q8_row *out);

    /* As format_decode_rows, same bits; r0 and r1 of GGUF's turned blocks as gemm wants them. */
    void (*decode_rows)(const struct mat *w, int r0, int r1, float *out);

    /* sum[c] = sum_r p[r - r0] * W[r][c] for r in [r0, r1), ascending from 0: decode_rows and weighted_sum in one, same bits,
     * for one row of weights p. NULL: there is nothing better than these two. */
    void (*sum_rows[MAT_FORMATS])(const struct mat *w, int r0, int r1, const float *p, float *sum);

    void (*dots)(const struct kern_dots *job);

    kern_weighted_sum *weighted_sum;
    /* The same for attention's values. In tile order: the product with keep, then for every 32 t the three steps of dots, of
     * the parts of p and v. */
    kern_weighted_sum *page_sum;

    /* out[t] = sum_h w[h] * max(s[h][t], 0), fma from 0, h ascending: V3.2's score of a cached token. h in [0, heads), t in [0, n);
     * s_stride in floats. A NaN stays one. */
    void (*relu_sum)(const float *w, const float *s, size_t s_stride, int heads, int n, float *out);

    /* What attention takes instead of dots and page_sum where these are (else NULL). to_bf16: n numbers, rounded. */
    void (*to_bf16)(const float *x, int n, uint16_t *out);
    void (*pair_dots)(const struct kern_pair_dots *job);
    void (*pair_sum)(const struct kern_pair_sum *job);

    /* One online-softmax step over scores s[n], n >= 1: s *= scale; new max = max(*max, max s);
     * s[i] = exp(s[i] - new max); *sum = *sum * keep + sum of s (lanes, tree); returns keep = exp(old max -
     * new max) (old *max may be -INFINITY: keep is then 0). A maximum of -0 becomes 0: which of the two a
     * search finds would depend on its order. */
    float (*softmax_step)(float *s, int n, float scale, float *max, float *sum);

    /* out[i] = x[i] * (1 / sqrt(mean + eps)) * weight[i], where mean = sum of x^2 (fma in lanes, tree) / n;
     * returns the mean, so that a caller sees NaN and Inf for free. out may be x. */
    float (*rms_norm)(const float *x, const float *weight, int n, float eps, float *out);

    /* gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i] */
    void (*silu_mul)(float *gate, const float *up, int n);

    /* x[i] = fma(a, y[i], x[i]) */
    void (*add_scaled)(float *x, float a, const float *y, int n);

    /* For measuring: that many rounds of products in registers (the matrix unit's tiles come from the first cache, as they do
     * in a product of matrices); returns the operations done, where a product and a sum are two. NULL: no such
     * instructions. */
    double (*peak[KERN_PEAKS])(int rounds);
    /* The same for memory: reads READ_STREAMS streams of `stream_bytes` (a multiple of 64), one after another in memory, a
     * line of each in turn, as a product over as many rows does. Returns a sum over everything. */
    uint64_t (*read_streams)(const char *p, size_t stream_bytes);
};

/* The product of activations as they are, for what decides: two experts that are nearly tied. */
static inline kern_gemm *kern_gemm_unrounded(const struct kern *kern, enum mat_format format) {
    return format == MAT_BF16 && kern->gemm_unrounded ? kern->gemm_unrounded : kern->gemm[format];
}

/* The level whose table a backend takes: with every sum in fp32 (--compute f32) none that rounds activations. */
enum cpu_level kern_level(enum cpu_level level, bool in_f32);
/* The table for a level. Each kern_init_* overwrites what it does better. */
void kern_init(struct kern *kern, enum cpu_level level);
void kern_init_ref(struct kern *kern);
void kern_init_avx2(struct kern *kern);
void kern_init_avx_vnni(struct kern *kern);
void kern_init_avx512(struct kern *kern);
void kern_init_avx512_bf16(struct kern *kern); /* after kern_init_avx512 */
void kern_init_amx(struct kern *kern);         /* the same */
void kern_init_amx_bf16(struct kern *kern);
/* What amx-bf16 computes, and avx512-bf16, in plain C, over the plain C table. */
void kern_init_tile_order(struct kern *kern);
void kern_init_pair_order(struct kern *kern);
/* Plain C for words as they are published, for which a level has nothing better. */
kern_gemm kern_words_gemm;
kern_gemm_q8 kern_words_gemm_q8;
/* u of a row of words (see above). */
float kern_words_unit(int row);
/* The plain C that has the bits of a table. */
void kern_init_plain(struct kern *plain, const struct kern *like);
/* For what is written in plain C (see above): where the chunk that begins at k ends; and its FP8 weights without their scale,
 * divided by 256, which returns the scale times 256. */
int kern_chunk_end(const struct mat *w, int k);
float kern_fp8_decode(const struct mat *w, int row, int k0, int count, float *out);

#endif
