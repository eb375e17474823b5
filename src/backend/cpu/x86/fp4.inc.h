/* backend/cpu/x86/fp4.inc.h - FP4: groups of 32 nibbles with their scales elsewhere, as gguf.inc.h wants them for many tokens; included
 * by each level after gguf_unpack.inc.h. */

enum {
    FP4_ZERO = 12,   /* what stands for 0 in fp4_bytes */
    FP4_SCALES = 16, /* of a row that are taken at once */
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

/* scale [groups], of at most GGUF_STEP k from group `at` on; rows have `all`. */
static void fp4_step_scales(const uint8_t *p, int all, int at, int rows, int groups, vec *scale) {
    const int there = all - at < FP4_SCALES ? all - at : FP4_SCALES, half = FP4_SCALES / 2;
    ivec words[4];
    if (rows == VL && groups == half && there == half && at >= half) { /* the last ones, behind others */
        rows_to_lanes(p + at - half, (size_t)all, words);
        memcpy(words, words + 2, 2 * sizeof *words);
    } else {
        fp4_take_scales(p + at, (size_t)all, rows, there, words);
    }
    UNROLL
    for (int j = 0; j < GGUF_STEP / FP4_GROUP; j++) scale[j] = fp4_scale(words[j / 4], j % 4);
}
