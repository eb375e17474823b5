/* backend/cpu/x86/gguf.inc.h - matrices in GGUF's blocks times 8-bit and fp32 activations; included by each level after
 * block.inc.h and gguf_unpack.inc.h.
 *
 * VL rows x 256 k are unpacked into the first cache, where all formats look the same, and there they meet every token. The
 * unpacking is the same work for one token as for many, so one token pays for it all; it is still about as fast as the memory. */

enum {
    GGUF_TOKENS = 64,                    /* that share what is unpacked */
    GGUF_AT_ONCE = VL == 16 ? 8 : 4,     /* tokens with their sums in registers */
    GGUF_AHEAD = 2,                      /* steps that weights are asked for before they are used */
    GGUF_STEP_BYTES_MAX = 8 * 34,        /* of a row: Q8_0 */
    GGUF_PANELS_DENSE = VL / DENSE_ROWS, /* fp32: dense.inc.h's blocks of rows in a panel */
};

/* How a level multiplies: VNNI's product of bytes takes them all alike. Without it products of bytes are summed in 16 bits,
 * of so many lines as fit: four of values below 32, two of values below 64; signed bytes are summed each for itself. */
enum gguf_kind { GGUF_5_BITS, GGUF_6_BITS, GGUF_8_BITS };

struct gguf_shape {
    void (*unpack)(const uint8_t *p, size_t pitch, struct gguf_to to);
    enum gguf_kind kind;
    int zero, sub; /* k with one scale */
    bool has_low;
};

static const struct gguf_shape gguf_shapes[MAT_FORMATS] = {
    [MAT_Q4_0] = {unpack_q4_0, GGUF_5_BITS, 8, 32, false},
    [MAT_Q4_1] = {unpack_q4_1, GGUF_5_BITS, 0, 32, true},
    [MAT_Q5_0] = {unpack_q5_0, GGUF_5_BITS, 16, 32, false},
    [MAT_Q5_1] = {unpack_q5_1, GGUF_5_BITS, 0, 32, true},
    [MAT_Q8_0] = {unpack_q8_0, GGUF_8_BITS, BYTE_ZERO, 32, false},
    [MAT_Q2_K] = {unpack_q2_k, GGUF_5_BITS, 0, 16, true},
    [MAT_Q3_K] = {unpack_q3_k, GGUF_5_BITS, 4, 16, false},
    [MAT_Q4_K] = {unpack_q4_k, GGUF_5_BITS, 0, 32, true},
    [MAT_Q5_K] = {unpack_q5_k, GGUF_5_BITS, 0, 32, true},
    [MAT_Q6_K] = {unpack_q6_k, GGUF_6_BITS, 32, 16, false},
    [MAT_IQ4_NL] = {unpack_iq4_nl, GGUF_8_BITS, IQ4_ZERO, 32, false},
    [MAT_IQ4_XS] = {unpack_iq4_xs, GGUF_8_BITS, IQ4_ZERO, 32, false},
};

/* ---- unpacking steps ---- */

/* A walk over VL rows (fewer at the end of a matrix), step by step. */
struct gguf_walk {
    const struct mat *w;
    const struct gguf_shape *shape;
    const uint8_t *data, *next; /* the first row's; what the thread reads after these rows */
    size_t pitch, block_bytes;
    int rows, values; /* of a block */
};

static struct gguf_walk gguf_walk_rows(const struct mat *w, int r, int rows, const void *next) {
    struct gguf_walk walk = {.w = w, .shape = &gguf_shapes[w->format], .rows = rows};
    gguf_block(w->format, &walk.values, &walk.block_bytes);
    walk.pitch = (size_t)(w->cols / walk.values) * walk.block_bytes;
    walk.data = gguf_block_at(w, r, 0);
    walk.next = next ? next : walk.data + VL * walk.pitch;
    return walk;
}

/* The bytes of a step of all rows, GGUF_AHEAD of them ahead; past the end of the rows those that come next. */
static void gguf_prefetch(const struct gguf_walk *walk, size_t at, size_t bytes) {
    const uint8_t *p = walk->data + at + GGUF_AHEAD * bytes;
    if (at + GGUF_AHEAD * bytes >= walk->pitch) p = walk->next + (at + GGUF_AHEAD * bytes - walk->pitch);
    for (int i = 0; i < VL; i++, p += walk->pitch)
        for (size_t line = 0; line < bytes; line += 64) _mm_prefetch(p + line, _MM_HINT_T0);
}

/* Columns [k, k + GGUF_STEP) or to the end; returns how many. Rows that are missing become 0. */
static int gguf_unpack_step(const struct gguf_walk *walk, int k, struct gguf_panel *panel) {
    const int left = walk->w->cols - k, count = left < GGUF_STEP ? left : GGUF_STEP,
              subs = walk->values / walk->shape->sub;
    const size_t at = (size_t)(k / walk->values) * walk->block_bytes;
    const size_t bytes = (size_t)(count / walk->values) * walk->block_bytes;
    const uint8_t *p = walk->data + at;
    size_t pitch = walk->pitch;
    uint8_t few[VL * GGUF_STEP_BYTES_MAX];
    if (walk->rows < VL) {
        memset(few, 0, sizeof few);
        for (int i = 0; i < walk->rows; i++) memcpy(few + i * GGUF_STEP_BYTES_MAX, p + (size_t)i * pitch, bytes);
        p = few;
        pitch = GGUF_STEP_BYTES_MAX;
    } else {
        gguf_prefetch(walk, at, bytes);
    }
    struct gguf_to to = {panel->lines, panel->scale, panel->low};
    for (int i = 0; i < count; i += walk->values, p += walk->block_bytes) {
        walk->shape->unpack(p, pitch, to);
        to = (struct gguf_to){to.lines + walk->values / 4, to.scale + subs, to.low + subs};
    }
    return count;
}

/* ---- products with 8-bit activations ---- */

/* What a token brings to a step. */
struct gguf_x {
    const int8_t *q;
    const float *scale; /* of each 32 k */
    const int32_t *sum; /* of each sub-block, in the order of sum_place */
};

#if VL == 16 || defined(__AVXVNNI__)
enum { GGUF_KINDS = 1 };

/* sum[t] += `lines` lines times their activations. */
INLINE void gguf_add_lines(enum gguf_kind kind, int tokens, int lines, const ivec *line, const int8_t *const *q,
                           ivec *sum) {
    (void)kind;
    UNROLL
    for (int l = 0; l < lines; l++) {
        ivec v = line[l];
        UNROLL
        for (int t = 0; t < tokens; t++) sum[t] = block_dot(MAT_INT8, sum[t], v, block_activations(q[t] + 4 * l));
    }
}
#else
enum { GGUF_KINDS = 3 };

INLINE void gguf_add_lines(enum gguf_kind kind, int tokens, int lines, const ivec *line, const int8_t *const *q,
                           ivec *sum) {
    const int run_lines = kind == GGUF_5_BITS ? 4 : kind == GGUF_6_BITS ? 2 : 1;
    UNROLL
    for (int l = 0; l < lines; l += run_lines) {
        ivec run[GGUF_AT_ONCE];
        UNROLL
        for (int i = l; i < l + run_lines; i++) {
            ivec v = line[i];
            UNROLL
            for (int t = 0; t < tokens; t++) {
                ivec x4 = block_activations(q[t] + 4 * i);
                if (kind == GGUF_8_BITS)
                    sum[t] = block_dot(MAT_INT8, sum[t], v, x4);
                else
                    run[t] = i == l ? _mm256_maddubs_epi16(v, x4) : q8_dot(run[t], v, x4);
            }
        }
        UNROLL
        for (int t = 0; t < tokens && kind != GGUF_8_BITS; t++)
            sum[t] = ivec_add(sum[t], _mm256_madd_epi16(run[t], _mm256_set1_epi16(1)));
    }
}
#endif

/* Where gguf_sums leaves the sum of sub-block j of 16 k. */
INLINE int sum_place(int j) {
    const int fours = VL / 4;
    return j / VL * VL + j % fours * 4 + j % VL / fours;
}

/* Sums of 16 activations each, of a step. What lies past the end of the row is not read. */
static void gguf_sums(const int8_t *q, int32_t *sum) {
    const ivec ones = ivec_set1(0x01010101);
    for (int i = 0; i < GGUF_SUBS; i += VL) {
        ivec v[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
#if VL == 16 || defined(__AVXVNNI__)
            v[j] = block_dot(MAT_INT8, ivec_zero(), ones, ivec_load(q + i * 16 + j * VL * 4));
#else
            v[j] = _mm256_maddubs_epi16(ones, ivec_load(q + i * 16 + j * VL * 4));
            v[j] = _mm256_madd_epi16(v[j], _mm256_set1_epi16(1));
#endif
        }
        ivec_store(sum + i, ivec_sum_fours(v));
    }
}

/* acc [tokens] += `count` k of a panel. */
INLINE void gguf_dot(enum gguf_kind kind, int sub, int tokens, const struct gguf_shape *shape,
                     const struct gguf_panel *panel, int count, const struct gguf_x *x, vec *acc) {
    const int lines = sub / 4;
    const int8_t *q[GGUF_AT_ONCE];
    vec f[GGUF_AT_ONCE];
    UNROLL
    for (int t = 0; t < tokens; t++) {
        q[t] = x[t].q;
        f[t] = acc[t];
    }
    KEEP_LOOP
    for (int j = 0; j * sub < count; j++) {
        const int group = j * sub / 32, place = sub == 16 ? sum_place(j) : j;
        ivec sum[GGUF_AT_ONCE];
        UNROLL
        for (int t = 0; t < tokens; t++) sum[t] = ivec_set1(-shape->zero * x[t].sum[place]);
        gguf_add_lines(kind, tokens, lines, panel->lines + j * lines, q, sum);
        UNROLL
        for (int t = 0; t < tokens; t++) {
            float scale = x[t].scale[group];
            f[t] = vec_fma(vec_from_int(sum[t]), vec_mul(panel->scale[j], vec_set1(scale)), f[t]);
            if (shape->has_low) f[t] = vec_fma(panel->low[j], vec_set1(scale * (float)x[t].sum[place]), f[t]);
            q[t] += sub;
        }
    }
    UNROLL
    for (int t = 0; t < tokens; t++) acc[t] = f[t];
}

typedef void gguf_dots(const struct gguf_shape *shape, const struct gguf_panel *panel, int count,
                       const struct gguf_x *x, vec *acc);

#define GGUF_DOT(KIND, SUB, T)                                                                                         \
    static __attribute__((noinline)) void gguf_dot_##KIND##_##SUB##_##T(                                               \
        const struct gguf_shape *shape, const struct gguf_panel *panel, int count, const struct gguf_x *x, vec *acc) { \
        gguf_dot(KIND, SUB, T, shape, panel, count, x, acc);                                                           \
    }
/* clang-format off */
#if VL == 16
#define GGUF_DOTS(KIND, SUB) \
    GGUF_DOT(KIND, SUB, 1) GGUF_DOT(KIND, SUB, 2) GGUF_DOT(KIND, SUB, 4) GGUF_DOT(KIND, SUB, 8)
#define GGUF_ROW(KIND, SUB) { \
    gguf_dot_##KIND##_##SUB##_1, gguf_dot_##KIND##_##SUB##_2, gguf_dot_##KIND##_##SUB##_4, gguf_dot_##KIND##_##SUB##_8 }
#else
#define GGUF_DOTS(KIND, SUB) GGUF_DOT(KIND, SUB, 1) GGUF_DOT(KIND, SUB, 2) GGUF_DOT(KIND, SUB, 4)
#define GGUF_ROW(KIND, SUB) { \
    gguf_dot_##KIND##_##SUB##_1, gguf_dot_##KIND##_##SUB##_2, gguf_dot_##KIND##_##SUB##_4 }
#endif
GGUF_DOTS(GGUF_5_BITS, 16) GGUF_DOTS(GGUF_5_BITS, 32)
#if VL == 16 || defined(__AVXVNNI__)
static gguf_dots *const gguf_sets[1][2][4] = { {GGUF_ROW(GGUF_5_BITS, 16), GGUF_ROW(GGUF_5_BITS, 32)} };
#else
GGUF_DOTS(GGUF_6_BITS, 16) GGUF_DOTS(GGUF_8_BITS, 32)
static gguf_dots *const gguf_sets[GGUF_KINDS][2][4] = {
    [GGUF_5_BITS] = {GGUF_ROW(GGUF_5_BITS, 16), GGUF_ROW(GGUF_5_BITS, 32)},
    [GGUF_6_BITS] = {GGUF_ROW(GGUF_6_BITS, 16)},
    [GGUF_8_BITS] = {[1] = GGUF_ROW(GGUF_8_BITS, 32)},
};
#endif
/* clang-format on */

/* A step of at most GGUF_TOKENS tokens. */
static void gguf_multiply(const struct gguf_shape *shape, const struct gguf_panel *panel, int k, int count,
                          const struct q8_row *x, int n, vec *acc) {
    gguf_dots *const *sets = gguf_sets[shape->kind % GGUF_KINDS][shape->sub == 32];
    int32_t sums[GGUF_AT_ONCE][GGUF_SUBS];
    for (int t = 0, step = 3; t < n; t += 1 << step) {
        struct gguf_x at[GGUF_AT_ONCE];
        while (1 << step > n - t || 1 << step > GGUF_AT_ONCE) step--;
        for (int i = 0; i < 1 << step; i++) {
            const struct q8_row *row = &x[t + i];
            at[i] = (struct gguf_x){row->q + k, row->scale + k / 32, row->sum + k / 32};
            if (shape->sub == 32) continue;
            gguf_sums(at[i].q, sums[i]);
            at[i].sum = sums[i];
        }
        sets[step](shape, panel, count, at, acc + t);
    }
}

static void gguf_rows(const struct gguf_walk *walk, int r, const struct q8_row *x, int n, float *const *y) {
    struct gguf_panel panel;
    vec acc[GGUF_TOKENS];
    for (int t = 0; t < n; t++) acc[t] = vec_zero();
    for (int k = 0, count; k < walk->w->cols; k += count) {
        count = gguf_unpack_step(walk, k, &panel);
        gguf_multiply(walk->shape, &panel, k, count, x, n, acc);
    }
    for (int t = 0; t < n; t++) {
        if (walk->rows < VL)
            vec_store_part(y[t] + r, acc[t], walk->rows);
        else
            vec_store(y[t] + r, acc[t]);
    }
}

static void gemm_gguf_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                         const void *next) {
    for (int t = 0; t < n; t += GGUF_TOKENS)
        for (int r = r0; r < r1; r += VL) {
            struct gguf_walk walk = gguf_walk_rows(w, r, r1 - r < VL ? r1 - r : VL, r + VL < r1 ? NULL : next);
            gguf_rows(&walk, r, x + t, n - t < GGUF_TOKENS ? n - t : GGUF_TOKENS, y + t);
        }
}

/* ---- decoding, and fp32 activations: decoded, then as dense.inc.h does ---- */

/* `count` k of row `lane` of a panel. */
INLINE void gguf_decode_lane(const struct gguf_shape *shape, const struct gguf_panel *panel, int lane, int count,
                             float *out) {
    const ivec zero = ivec_set1(shape->zero);
    for (int k = 0; k < count; k += 16) {
        uint8_t bytes[16];
        const int j = k / shape->sub;
        UNROLL
        for (int i = 0; i < 4; i++) memcpy(bytes + 4 * i, (const uint8_t *)&panel->lines[k / 4 + i] + 4 * lane, 4);
        const vec scale = vec_set1(((const float *)&panel->scale[j])[lane]);
        const vec low = shape->has_low ? vec_set1(((const float *)&panel->low[j])[lane]) : vec_zero();
        UNROLL
        for (int i = 0; i < 16; i += VL) {
            ivec q = shape->kind == GGUF_8_BITS && !BYTE_ZERO ? ivec_load_signed_bytes((const int8_t *)bytes + i)
                                                              : ivec_sub(ivec_load_bytes(bytes + i), zero);
            vec value = vec_mul(scale, vec_from_int(q));
            vec_store(out + k + i, shape->has_low ? vec_add(value, low) : value);
        }
    }
}

/* out[i] [GGUF_STEP or to the end] = a step of row i, `stride` floats from one to the next. */
static void gguf_decode_step(const struct gguf_walk *walk, int k, float *out, size_t stride) {
    struct gguf_panel panel;
    const int count = gguf_unpack_step(walk, k, &panel);
    for (int i = 0; i < walk->rows; i++, out += stride) gguf_decode_lane(walk->shape, &panel, i, count, out);
}

static void decode_gguf(const struct mat *w, int r0, int r1, float *out) {
    const size_t cols = (size_t)w->cols;
    for (int r = r0; r < r1; r += VL, out += VL * cols) {
        struct gguf_walk walk = gguf_walk_rows(w, r, r1 - r < VL ? r1 - r : VL, NULL);
        for (int k = 0; k < w->cols; k += GGUF_STEP) gguf_decode_step(&walk, k, out + k, cols);
    }
}

static void gguf_dense(const struct gguf_walk *walk, int r, const float *const *x, int n, float *const *y) {
    vec acc[GGUF_PANELS_DENSE][DENSE_ACC];
    float wide[VL * DENSE_CHUNK] __attribute__((aligned(64)));
    const int cols = walk->w->cols;
    for (int i = 0; i < GGUF_PANELS_DENSE; i++) dense_clear(acc[i], n);
    memset(wide, 0, sizeof wide); /* missing rows */
    for (int k = 0; k < cols; k += GGUF_STEP) {
        gguf_decode_step(walk, k, wide, DENSE_CHUNK);
        for (int i = 0; i < GGUF_PANELS_DENSE; i++)
            dense_tiles(wide + i * DENSE_ROWS * DENSE_CHUNK, x, n, k, cols - k < GGUF_STEP ? cols - k : GGUF_STEP,
                        acc[i]);
    }
    for (int i = 0; i < GGUF_PANELS_DENSE && i * DENSE_ROWS < walk->rows; i++) {
        int left = walk->rows - i * DENSE_ROWS;
        dense_store(acc[i], r + i * DENSE_ROWS, left < DENSE_ROWS ? left : DENSE_ROWS, n, y);
    }
}

static void gemm_gguf(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    for (int t = 0; t < n; t += DENSE_TOKENS)
        for (int r = r0; r < r1; r += VL) {
            struct gguf_walk walk = gguf_walk_rows(w, r, r1 - r < VL ? r1 - r : VL, NULL);
            gguf_dense(&walk, r, x + t, n - t < DENSE_TOKENS ? n - t : DENSE_TOKENS, y + t);
        }
}

static void gguf_init(struct kern *kern) {
    for (int format = 0; format < MAT_FORMATS; format++) {
        if (!gguf_is_blocks((enum mat_format)format)) continue;
        kern->gemm_q8[format] = gemm_gguf_q8;
        kern->gemm[format] = gemm_gguf;
    }
}
