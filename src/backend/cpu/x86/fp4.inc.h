/* backend/cpu/x86/fp4.inc.h - FP4: groups of 32 nibbles with their scales elsewhere; included by each level after
 * gguf_unpack.inc.h. Many tokens take what gguf.inc.h makes of any blocks. One token takes rows as they lie, a line of each at a time:
 * sums are turned then instead of weights, which are eight times as many. */

enum {
    FP4_ZERO = 12,           /* what stands for 0 in fp4_bytes */
    FP4_GROUPS = VL / 4,     /* in a register */
    FP4_ASK_GROUPS = 4,      /* in a cache line */
    FP4_SCALES = 16,         /* of a row that are taken at once */
    FP4_AHEAD = 256,         /* bytes of a row that it is asked for before they are used */
};

/* The values, from 0 up: no sum of four products with 8-bit activations leaves 16 bits. */
static const int8_t fp4_bytes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/* 2^(e - 128), e being byte `which`; NaN for 255: half of 2^(e - 127), taken away from it. */
INLINE vec fp4_scale(ivec words, int which) {
    const int up = 23 - 8 * which;
    ivec bits = up > 0 ? ivec_shift_left(words, up) : ivec_shift_right(words, -up);
    bits = ivec_max(ivec_and(bits, ivec_set1(0x7f800000)), ivec_set1(0x00400000)); /* 2^-127 has no exponent of its own */
    return vec_fma(vec_from_bits(bits), vec_set1(-0.5f), vec_from_bits(bits));
}

/* The first `count` scales (FP4_SCALES at most) of VL rows, as words; rows that are missing get 0. */
INLINE void fp4_take_scales(const uint8_t *p, size_t pitch, int rows, int count, ivec words[4]) {
    uint8_t few[VL * FP4_SCALES];
    if (rows == VL && count == FP4_SCALES) {
        rows_to_lanes(p, pitch, words);
        return;
    }
    memset(few, 0, sizeof few);
    for (int i = 0; i < rows; i++) memcpy(few + i * FP4_SCALES, p + (size_t)i * pitch, (size_t)count);
    rows_to_lanes(few, FP4_SCALES, words);
}

/* ---- many tokens ---- */

INLINE void unpack_fp4(struct gguf_rows *rows, const struct gguf_to *to) {
    ivec v[8];
    nibbles_to_lanes(rows->p, rows->pitch, fp4_bytes, v);
    gguf_ask(rows);
    put_lines(to, 0, v);
    put_lines(to, 4, v + 4);
}

static void fp4_lines(struct gguf_rows *rows, struct gguf_panel *panel, int blocks) {
    struct gguf_to to = {.lines = panel->lines, .scale = panel->scale, .low = panel->low, .sub = FP4_GROUP};
    unpack_step(unpack_fp4, FP4_GROUP, FP4_GROUP / 2, rows, to, blocks);
}

/* scale [groups], of at most GGUF_STEP k */
static void fp4_step_scales(const uint8_t *p, size_t pitch, int rows, int groups, vec *scale) {
    ivec words[4];
    fp4_take_scales(p, pitch, rows, groups, words);
    UNROLL
    for (int j = 0; j < GGUF_STEP / FP4_GROUP; j++) scale[j] = fp4_scale(words[j / 4], j % 4);
}

/* ---- one token ---- */

/* sum[g] = those of group g of a register's k, a lane a row. ask: NULL, or what to ask for of every row. */
INLINE void fp4_sums(const uint8_t *p, size_t pitch, const uint8_t *ask, const int8_t *q, ivec sum[FP4_GROUPS]) {
    ivec even, odd, fours[FP4_GROUPS];
    bytes_even_odd(q, &even, &odd);
    UNROLL
    for (int i = 0; i < FP4_GROUPS; i++) { /* four rows */
        ivec v[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            const size_t at = (size_t)(4 * i + j) * pitch;
            const ivec nibbles = ivec_load(p + at);
            if (ask) ask_for(ask + at);
            v[j] = fp4_dot(bytes_look_up(fp4_bytes, bits_at(nibbles, 0, 15)), even,
                           bytes_look_up(fp4_bytes, bits_at(nibbles, 4, 15)), odd);
        }
        fours[i] = ivec_sum_fours(v);
    }
    fours_to_rows(fours, sum);
}

/* A cache line of each of VL rows, the four bytes of `scales` theirs; q, xscale and xsum from there on. */
INLINE vec fp4_add_lines(const uint8_t *p, size_t pitch, const uint8_t *ask, ivec scales, const int8_t *q,
                         const float *xscale, const int32_t *xsum, vec f) {
    UNROLL
    for (int part = 0; part < FP4_ASK_GROUPS; part += FP4_GROUPS) {
        ivec sum[FP4_GROUPS];
        fp4_sums(p + part * (FP4_GROUP / 2), pitch, part ? NULL : ask, q + part * FP4_GROUP, sum);
        UNROLL
        for (int g = 0; g < FP4_GROUPS; g++) {
            const ivec exact = ivec_sub(sum[g], ivec_set1(FP4_ZERO * xsum[part + g]));
            const vec scale = vec_mul(fp4_scale(scales, part + g), vec_set1(xscale[part + g]));
            f = vec_fma(vec_from_int(exact), scale, f);
        }
    }
    return f;
}
