/* backend/cpu/x86/fp4_one.inc.h - FP4 times one token; included by each level after gguf.inc.h. Rows are taken as they lie, a cache line
 * of each of VL rows at a time: sums are turned then instead of weights, which are eight times as many. */

enum {
    FP4_SPAN = 16384,      /* k whose activations are prepared at once: whole rows of nearly every matrix */
    FP4_GROUPS = VL / 4,   /* in a register */
    FP4_REGISTER = 8 * VL, /* k in a register */
    FP4_LINE_GROUPS = 4,   /* in a cache line */
    FP4_LINE = FP4_LINE_GROUPS * FP4_GROUP,
};

/* A span of activations, for all rows. */
struct fp4_token {
    _Alignas(64) int8_t even[FP4_SPAN / 2];
    _Alignas(64) int8_t odd[FP4_SPAN / 2];
    int32_t zero[FP4_SPAN / FP4_GROUP]; /* what FP4_ZERO adds to the sums of each group */
    const float *scale;                 /* [groups] */
};

/* `count` k from k on, whole lines. */
static void fp4_prepare(const struct q8_row *x, int k, int count, struct fp4_token *out) {
    out->scale = x->scale + k / FP4_GROUP;
    for (int i = 0; i < count / FP4_GROUP; i++) out->zero[i] = FP4_ZERO * x->sum[k / FP4_GROUP + i];
    for (int i = 0; i < count; i += FP4_REGISTER) {
        ivec even, odd;
        bytes_even_odd(x->q + k + i, &even, &odd);
        ivec_store(out->even + i / 2, even);
        ivec_store(out->odd + i / 2, odd);
    }
}

/* How nibbles become bytes: by a table of 16, or (AVX512_VBMI) by one of 64, which looks at six bits, so that what stands beside a
 * nibble need not be taken away. The second in assembler: the level is compiled without it. */
enum fp4_table { FP4_16, FP4_64 };

INLINE ivec fp4_values(enum fp4_table table, ivec nibbles, int high) {
#if VL == 16
    if (table == FP4_64) {
        const ivec four_times = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)fp4_bytes));
        if (high) nibbles = _mm512_srli_epi16(nibbles, 4);
        __asm__("vpermb %2, %1, %0" : "=v"(nibbles) : "v"(nibbles), "v"(four_times));
        return nibbles;
    }
#endif
    (void)table;
    return bytes_look_up(fp4_bytes, bits_at(nibbles, high ? 4 : 0, 15));
}

/* sum[g] = those of group g of a register's k, a lane a row; `asks` lines from `ask` on are asked for. */
INLINE void fp4_sums(enum fp4_table table, const uint8_t *p, size_t pitch, int asks, const uint8_t *ask, ivec even,
                     ivec odd, ivec sum[FP4_GROUPS]) {
    ivec fours[FP4_GROUPS];
    UNROLL
    for (int i = 0; i < FP4_GROUPS; i++, p += 4 * pitch) { /* four rows */
        ivec v[4];
        __asm__("" : "+r"(p)); /* or all rows' places are worked out first, and lie where registers are missing */
        UNROLL
        for (int j = 0; j < 4; j++) {
            const ivec nibbles = ivec_load(p + (size_t)j * pitch);
            if (4 * i + j < asks) ask_for(ask + (4 * i + j) * BLOCK_LINE);
            v[j] = fp4_dot(fp4_values(table, nibbles, 0), even, fp4_values(table, nibbles, 1), odd);
        }
        fours[i] = ivec_sum_fours(v);
    }
    fours_to_rows(fours, sum);
}

/* f += a cache line of each of VL rows, the four bytes of `scales` theirs; `at` counts groups from the span on. */
INLINE vec fp4_add_line(enum fp4_table table, const uint8_t *p, size_t pitch, const uint8_t *ask, ivec scales,
                        const struct fp4_token *x, int at, vec f) {
    UNROLL
    for (int part = 0; part < FP4_LINE_GROUPS; part += FP4_GROUPS) {
        const int k = (at + part) * FP4_GROUP;
        ivec sum[FP4_GROUPS];
        fp4_sums(table, p + part * (FP4_GROUP / 2), pitch, part ? 0 : VL, ask, ivec_load(x->even + k / 2),
                 ivec_load(x->odd + k / 2), sum);
        UNROLL
        for (int g = 0; g < FP4_GROUPS; g++) {
            const ivec exact = ivec_sub(sum[g], ivec_set1(x->zero[at + part + g]));
            const vec scale = vec_mul(fp4_scale(scales, part + g), vec_set1(x->scale[at + part + g]));
            f = vec_fma(vec_from_int(exact), scale, f);
        }
    }
    return f;
}

/* VL rows from r on, `count` k from k on. The VL rows at `next` are asked for meanwhile, line by line in the order of memory. */
INLINE vec fp4_panel(enum fp4_table table, const struct mat *w, int r, int k, int count, const uint8_t *next,
                     const struct fp4_token *x, vec f) {
    const size_t pitch = (size_t)w->cols / 2, scales_pitch = (size_t)w->cols / FP4_GROUP;
    const uint8_t *p = fp4_row_at(w, r) + k / 2, *scales = fp4_scales_at(w, r) + k / FP4_GROUP;
    const uint8_t *scales_next = scales + VL * scales_pitch;
    const int groups = count / FP4_GROUP, left = (w->cols - k) / FP4_GROUP;
    ivec words[4];
    KEEP_LOOP
    for (int g = 0; g < groups; g += FP4_LINE_GROUPS) {
        if (g % FP4_SCALES == 0)
            fp4_take_scales(scales + g, scales_pitch, VL, left - g < FP4_SCALES ? left - g : FP4_SCALES, words);
        ask_for(scales_next);
        f = fp4_add_line(table, p, pitch, next, words[g % FP4_SCALES / FP4_LINE_GROUPS], x, g, f);
        p += BLOCK_LINE;
        next += VL * BLOCK_LINE;
        scales_next += VL * FP4_LINE_GROUPS;
    }
    return f;
}

/* Whole lines of whole panels; returns how many k that is. */
INLINE int fp4_panels(enum fp4_table table, const struct mat *w, int r0, int r1, const struct q8_row *x, float *y,
                      const uint8_t *next) {
    const int end = w->cols / FP4_LINE * FP4_LINE;
    struct fp4_token token;
    for (int k = 0; k < end; k += FP4_SPAN) {
        const int count = end - k < FP4_SPAN ? end - k : FP4_SPAN;
        fp4_prepare(x, k, count, &token);
        for (int r = r0; r + VL <= r1; r += VL) {
            const uint8_t *ask = r + 2 * VL <= r1 ? fp4_row_at(w, r + VL) : next ? next : fp4_row_at(w, r);
            vec f = k ? vec_load(y + r) : vec_zero();
            vec_store(y + r, fp4_panel(table, w, r, k, count, ask + (size_t)k / 2 * VL, &token, f));
        }
    }
    return end;
}

static int fp4_panels_16(const struct mat *w, int r0, int r1, const struct q8_row *x, float *y, const uint8_t *next) {
    return fp4_panels(FP4_16, w, r0, r1, x, y, next);
}

#if VL == 16
static int fp4_panels_64(const struct mat *w, int r0, int r1, const struct q8_row *x, float *y, const uint8_t *next) {
    return fp4_panels(FP4_64, w, r0, r1, x, y, next);
}
#endif

/* Once this processor is known. */
static int (*best_fp4_panels)(const struct mat *, int, int, const struct q8_row *, float *,
                              const uint8_t *) = fp4_panels_16;

static void gemm_fp4_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                        const void *next) {
    if (n != 1) {
        gemm_gguf_q8(w, r0, r1, x, n, y, next);
        return;
    }
    const int end = best_fp4_panels(w, r0, r1, x, y[0], next);
    for (int r = r0; r < r1; r += VL) { /* the ends of rows, and the last rows */
        const int rows = r1 - r < VL ? r1 - r : VL;
        if (rows == VL && end == w->cols) continue;
        const struct gguf_walk walk = gguf_walk_rows(w, r, rows, next);
        vec f = rows == VL && end ? vec_load(y[0] + r) : vec_zero();
        for (int k = rows == VL ? end : 0; k < w->cols;) k += gguf_multiply_many(&walk, k, x, 1, &f);
        vec_store_part(y[0] + r, f, rows);
    }
}
