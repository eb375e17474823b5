/* backend/cpu/x86/fp4_few.inc.h - FP4 times one token or a few; included by each level after gguf.inc.h. Rows are taken as they lie, a
 * cache line of each of VL rows at a time: sums are turned then instead of weights, which are eight times as many. */

enum {
    FP4_SPAN = 16384,      /* k whose activations are prepared at once: whole rows of nearly every matrix */
    FP4_GROUPS = VL / 4,   /* in a register */
    FP4_REGISTER = 8 * VL, /* k in a register */
    FP4_LINE_GROUPS = 4,   /* in a cache line */
    FP4_LINE = FP4_LINE_GROUPS * FP4_GROUP,
    FP4_TOKENS = VL / 4, /* that share bytes in registers */
    FP4_SETS = 3,        /* of so many tokens; for more it pays to unpack once */
};

/* A span of a token's activations, for all rows. */
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

/* sum[t][g] = those of group g of a register's k from k on, a lane a row; `asks` lines from `ask` on are asked for. */
INLINE void fp4_sums(enum fp4_table table, int tokens, const uint8_t *p, size_t pitch, int asks, const uint8_t *ask,
                     const struct fp4_token *x, int k, ivec sum[][FP4_GROUPS]) {
    ivec fours[FP4_TOKENS][FP4_GROUPS];
    UNROLL
    for (int i = 0; i < FP4_GROUPS; i++, p += 4 * pitch) { /* four rows */
        ivec v[FP4_TOKENS][4];
        __asm__("" : "+r"(p)); /* or all rows' places are worked out first, and lie where registers are missing */
        UNROLL
        for (int j = 0; j < 4; j++) {
            const ivec nibbles = ivec_load(p + (size_t)j * pitch);
            const ivec low = fp4_values(table, nibbles, 0), high = fp4_values(table, nibbles, 1);
            if (4 * i + j < asks) ask_for(ask + (4 * i + j) * BLOCK_LINE);
            UNROLL
            for (int t = 0; t < tokens; t++)
                v[t][j] = fp4_dot(low, ivec_load(x[t].even + k / 2), high, ivec_load(x[t].odd + k / 2));
        }
        UNROLL
        for (int t = 0; t < tokens; t++) fours[t][i] = ivec_sum_fours(v[t]);
    }
    UNROLL
    for (int t = 0; t < tokens; t++) fours_to_rows(fours[t], sum[t]);
}

/* f [tokens] += a cache line of each of VL rows, the four bytes of `scales` theirs; `at` counts groups from the span on. */
INLINE void fp4_add_line(enum fp4_table table, int tokens, const uint8_t *p, size_t pitch, const uint8_t *ask,
                         ivec scales, const struct fp4_token *x, int at, vec *f) {
    UNROLL
    for (int part = 0; part < FP4_LINE_GROUPS; part += FP4_GROUPS, p += FP4_REGISTER / 2) {
        ivec sum[FP4_TOKENS][FP4_GROUPS];
        fp4_sums(table, tokens, p, pitch, part ? 0 : VL, ask, x, (at + part) * FP4_GROUP, sum);
        UNROLL
        for (int g = 0; g < FP4_GROUPS; g++) {
            const vec scale = fp4_scale(scales, part + g);
            UNROLL
            for (int t = 0; t < tokens; t++) {
                const ivec exact = ivec_sub(sum[t][g], ivec_set1(x[t].zero[at + part + g]));
                f[t] = vec_fma(vec_from_int(exact), vec_mul(scale, vec_set1(x[t].scale[at + part + g])), f[t]);
            }
        }
    }
}

/* f [tokens] += VL rows from r on, `count` k from k on. The VL rows at `next` are asked for meanwhile, line by line in the order of
 * memory. */
INLINE void fp4_panel(enum fp4_table table, int tokens, const struct mat *w, int r, int k, int count,
                      const uint8_t *next, const struct fp4_token *x, vec *f) {
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
        fp4_add_line(table, tokens, p, pitch, next, words[g % FP4_SCALES / FP4_LINE_GROUPS], x, g, f);
        p += BLOCK_LINE;
        next += VL * BLOCK_LINE;
        scales_next += VL * FP4_LINE_GROUPS;
    }
}

/* Whole panels of rows [r0, r1), and of these whole lines. */
struct fp4_job {
    const struct mat *w;
    int r0, r1;
    const struct q8_row *x;
    float *const *y;
    const uint8_t *next;
};

static int fp4_whole_cols(const struct mat *w) {
    return w->cols / FP4_LINE * FP4_LINE;
}

INLINE void fp4_panels(enum fp4_table table, int tokens, const struct fp4_job *job) {
    const struct mat *w = job->w;
    struct fp4_token token[FP4_TOKENS];
    for (int k = 0, end = fp4_whole_cols(w); k < end; k += FP4_SPAN) {
        const int count = end - k < FP4_SPAN ? end - k : FP4_SPAN;
        for (int t = 0; t < tokens; t++) fp4_prepare(&job->x[t], k, count, &token[t]);
        for (int r = job->r0; r + VL <= job->r1; r += VL) {
            const uint8_t *next = job->next ? job->next : fp4_row_at(w, r); /* nothing new */
            vec f[FP4_TOKENS];
            UNROLL
            for (int t = 0; t < tokens; t++) f[t] = k ? vec_load(job->y[t] + r) : vec_zero();
            if (r + 2 * VL <= job->r1) next = fp4_row_at(w, r + VL);
            fp4_panel(table, tokens, w, r, k, count, next + (size_t)k / 2 * VL, token, f);
            UNROLL
            for (int t = 0; t < tokens; t++) vec_store(job->y[t] + r, f[t]);
        }
    }
}

#define FP4_PANELS(TABLE, T)                                                                                           \
    static __attribute__((noinline)) void fp4_panels_##TABLE##_##T(const struct fp4_job *job) {                        \
        fp4_panels(TABLE, T, job);                                                                                     \
    }
/* clang-format off */
FP4_PANELS(FP4_16, 1) FP4_PANELS(FP4_16, 2)
#if VL == 16
FP4_PANELS(FP4_16, 3) FP4_PANELS(FP4_16, 4)
FP4_PANELS(FP4_64, 1) FP4_PANELS(FP4_64, 2) FP4_PANELS(FP4_64, 3) FP4_PANELS(FP4_64, 4)
static void (*const fp4_sets[][FP4_TOKENS])(const struct fp4_job *) = {
    [FP4_16] = {fp4_panels_FP4_16_1, fp4_panels_FP4_16_2, fp4_panels_FP4_16_3, fp4_panels_FP4_16_4},
    [FP4_64] = {fp4_panels_FP4_64_1, fp4_panels_FP4_64_2, fp4_panels_FP4_64_3, fp4_panels_FP4_64_4} };
#else
static void (*const fp4_sets[][FP4_TOKENS])(const struct fp4_job *) = { {fp4_panels_FP4_16_1, fp4_panels_FP4_16_2} };
#endif
/* clang-format on */
static enum fp4_table fp4_best_table = FP4_16; /* until this processor is known */

/* The ends of rows, and the last rows, which no line of VL rows has. */
static void fp4_rest(const struct fp4_job *job, int n) {
    const int end = fp4_whole_cols(job->w), cols = job->w->cols;
    for (int r = job->r0; r < job->r1; r += VL) {
        const int rows = job->r1 - r < VL ? job->r1 - r : VL, from = rows == VL ? end : 0;
        if (from == cols) continue;
        const struct gguf_walk walk = gguf_walk_rows(job->w, r, rows, job->next);
        for (int t = 0; t < n; t++) {
            vec f = from ? vec_load(job->y[t] + r) : vec_zero();
            for (int k = from; k < cols;) k += gguf_multiply_many(&walk, k, &job->x[t], 1, &f);
            vec_store_part(job->y[t] + r, f, rows);
        }
    }
}

static void gemm_fp4_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                        const void *next) {
    struct fp4_job job = {w, r0, r1, x, y, next};
    const int sets = (n + FP4_TOKENS - 1) / FP4_TOKENS;
    if (sets > FP4_SETS) {
        gemm_gguf_q8(w, r0, r1, x, n, y, next);
        return;
    }
    for (int i = 0, t = 0; i < sets; i++) {
        const int end = n * (i + 1) / sets;
        job.x = x + t;
        job.y = y + t;
        fp4_sets[fp4_best_table][end - t - 1](&job);
        fp4_rest(&job, end - t);
        t = end;
    }
}
