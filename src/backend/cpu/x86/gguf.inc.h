/* backend/cpu/x86/gguf.inc.h - matrices in GGUF's blocks times 8-bit and fp32 activations; included by each level after
 * block.inc.h, gguf_unpack.inc.h, gguf_grids.inc.h and fp4.inc.h. FP4's groups of 32 are blocks whose scales lie elsewhere.
 *
 * Some tokens: VL rows x 256 k are unpacked into the first cache, where all formats look the same, and there they meet every
 * token. One token: the sums are made while blocks are taken apart, as storing and reading lines would cost half of the time. */

enum {
    GGUF_TOKENS = 64,                    /* that share what is unpacked */
    GGUF_AHEAD = 2,                      /* steps that weights are asked for before they are used */
    TURNED_AHEAD = 8192,                 /* bytes that turned panels are asked for before they are used */
    GGUF_STEP_BYTES_MAX = 8 * 34,        /* of a row: Q8_0 */
    GGUF_PANELS_DENSE = VL / DENSE_ROWS, /* fp32: dense.inc.h's blocks of rows in a panel */
};

struct gguf_shape {
    void (*lines)(struct gguf_rows *rows, struct gguf_panel *panel, int blocks);
    /* The first lines of the panel are the sums of the sub-blocks instead, and begin with what is there. */
    void (*sums)(struct gguf_rows *rows, struct gguf_panel *panel, int blocks, const int8_t *q);
    enum gguf_kind kind;
    int zero, sub; /* k with one scale */
    bool has_low;
};

static const struct gguf_shape gguf_shapes[MAT_FORMATS] = {
    [MAT_Q4_0] = {q4_0_lines, q4_0_sums, GGUF_5_BITS, 8, 32, false},
    [MAT_Q4_1] = {q4_1_lines, q4_1_sums, GGUF_5_BITS, 0, 32, true},
    [MAT_Q5_0] = {q5_0_lines, q5_0_sums, GGUF_5_BITS, 16, 32, false},
    [MAT_Q5_1] = {q5_1_lines, q5_1_sums, GGUF_5_BITS, 0, 32, true},
    [MAT_Q8_0] = {q8_0_lines, q8_0_sums, GGUF_8_BITS, BYTE_ZERO, 32, false},
    [MAT_Q2_K] = {q2_k_lines, q2_k_sums, GGUF_5_BITS, 0, 16, true},
    [MAT_Q3_K] = {q3_k_lines, q3_k_sums, GGUF_5_BITS, 4, 16, false},
    [MAT_Q4_K] = {q4_k_lines, q4_k_sums, GGUF_5_BITS, 0, 32, true},
    [MAT_Q5_K] = {q5_k_lines, q5_k_sums, GGUF_5_BITS, 0, 32, true},
    [MAT_Q6_K] = {q6_k_lines, q6_k_sums, GGUF_6_BITS, 32, 16, false},
    [MAT_IQ4_NL] = {iq4_nl_lines, iq4_nl_sums, GGUF_8_BITS, BYTE_ZERO, 32, false},
    [MAT_IQ4_XS] = {iq4_xs_lines, iq4_xs_sums, GGUF_8_BITS, BYTE_ZERO, 32, false},
    [MAT_IQ1_S] = {iq1_s_lines, iq1_s_sums, GGUF_5_BITS, IQ1_ZERO, 32, false},
    [MAT_IQ1_M] = {iq1_m_lines, iq1_m_sums, GGUF_5_BITS, IQ1_ZERO, 16, false},
    [MAT_IQ2_XXS] = {iq2_xxs_lines, iq2_xxs_sums, GGUF_8_BITS, BYTE_ZERO, 32, false},
    [MAT_IQ2_XS] = {iq2_xs_lines, iq2_xs_sums, GGUF_8_BITS, BYTE_ZERO, 16, false},
    [MAT_IQ2_S] = {iq2_s_lines, iq2_s_sums, GGUF_8_BITS, BYTE_ZERO, 16, false},
    [MAT_IQ3_XXS] = {iq3_xxs_lines, iq3_xxs_sums, GGUF_8_BITS, BYTE_ZERO, 32, false},
    [MAT_IQ3_S] = {iq3_s_lines, iq3_s_sums, GGUF_8_BITS, BYTE_ZERO, 32, false},
    [MAT_TQ1_0] = {tq1_0_lines, tq1_0_sums, GGUF_5_BITS, 1, 32, false},
    [MAT_TQ2_0] = {tq2_0_lines, tq2_0_sums, GGUF_5_BITS, 1, 32, false},
    [MAT_FP4] = {fp4_lines, NULL, GGUF_5_BITS, FP4_ZERO, 32, false}, /* few tokens: fp4_few.inc.h */
    [MAT_MXFP4] = {mxfp4_lines, mxfp4_sums, GGUF_8_BITS, BYTE_ZERO, 32, false},
};

/* ---- unpacking steps ---- */

/* A walk over VL rows (fewer at the end of a matrix), step by step. */
struct gguf_walk {
    const struct mat *w;
    const struct gguf_shape *shape;
    const uint8_t *data, *next; /* the first row's, or panel's; what the thread reads after it */
    const uint8_t *scales;      /* FP4: the first row's */
    size_t pitch, block_bytes;  /* of one row */
    int rows, values;           /* of a block */
    int lane;                   /* of the first row in a turned panel */
};

static struct gguf_walk gguf_walk_rows(const struct mat *w, int r, int rows, const void *next) {
    struct gguf_walk walk = {.w = w, .shape = &gguf_shapes[w->format], .rows = rows, .lane = r % TURN_ROWS};
    if (w->format == MAT_FP4) {
        walk.values = FP4_GROUP;
        walk.block_bytes = FP4_GROUP / 2;
        walk.data = fp4_row_at(w, r);
        walk.scales = fp4_scales_at(w, r);
    } else {
        gguf_block(w->format, &walk.values, &walk.block_bytes);
        walk.data = gguf_rows_at(w, r);
    }
    walk.pitch = (size_t)(w->cols / walk.values) * walk.block_bytes;
    walk.next = next ? next : walk.data + (w->turned ? TURN_ROWS : VL) * walk.pitch;
    return walk;
}

/* What is asked for while `bytes` of the walk's `all` are used, of which `at` were: what lies `ahead`, or past the end what comes
 * next. */
static const uint8_t *gguf_ahead(const struct gguf_walk *walk, size_t at, size_t ahead, size_t all) {
    at += ahead;
    return at < all ? walk->data + at : walk->next + (at - all);
}

static void gguf_begin_asking(const struct gguf_walk *walk, size_t at, size_t bytes, struct gguf_rows *rows) {
    rows->ask = gguf_ahead(walk, at, GGUF_AHEAD * bytes, walk->pitch);
    rows->ask_pitch = walk->pitch;
    rows->asks = (int)((bytes + BLOCK_LINE - 1) / BLOCK_LINE) * LINE_ASKS;
}

/* The same for a turned panel, which is one stream. */
static struct gguf_rows gguf_begin_turned(const struct gguf_walk *walk, int k, int count) {
    const size_t blocks = (size_t)(walk->w->cols / walk->values), done = (size_t)(k / walk->values);
    const size_t block_lines = walk->block_bytes / 4, block_bytes = walk->block_bytes * TURN_ROWS;
    const size_t bytes = (size_t)(count / walk->values) * block_bytes, asked = BLOCK_LINE * ASK_ROWS;
    const uint8_t *halves = walk->data + blocks * block_lines * BLOCK_LINE;
    return (struct gguf_rows){
        .p = walk->data + done * block_lines * BLOCK_LINE + walk->lane * 4,
        .halves = halves + (done * TURN_ROWS + (size_t)walk->lane) * 2,
        .ask = gguf_ahead(walk, done * block_bytes, TURNED_AHEAD, blocks * block_bytes),
        .ask_pitch = BLOCK_LINE,
        .asks = walk->lane ? 0 : (int)((bytes + asked - 1) / asked),
    };
}

/* The first blocks of the step at column k: `few` [VL][GGUF_STEP_BYTES_MAX] is where rows that are missing become 0. */
static struct gguf_rows gguf_begin_step(const struct gguf_walk *walk, int k, int count, uint8_t *few) {
    const size_t at = (size_t)(k / walk->values) * walk->block_bytes;
    const size_t bytes = (size_t)(count / walk->values) * walk->block_bytes;
    struct gguf_rows rows = {.p = walk->data + at, .halves = walk->data, .pitch = walk->pitch};
    if (walk->w->turned) return gguf_begin_turned(walk, k, count);
    if (walk->rows == VL) {
        gguf_begin_asking(walk, at, bytes, &rows);
        return rows;
    }
    memset(few, 0, VL * GGUF_STEP_BYTES_MAX);
    for (int i = 0; i < walk->rows; i++) memcpy(few + i * GGUF_STEP_BYTES_MAX, rows.p + (size_t)i * walk->pitch, bytes);
    return (struct gguf_rows){.p = few, .halves = few, .pitch = GGUF_STEP_BYTES_MAX};
}

static int gguf_step_cols(const struct gguf_walk *walk, int k) {
    return walk->w->cols - k < GGUF_STEP ? walk->w->cols - k : GGUF_STEP;
}

/* Columns [k, k + GGUF_STEP) or to the end; returns how many. What is left to ask for stays in `rows`. */
static int gguf_unpack_step(const struct gguf_walk *walk, int k, struct gguf_rows *rows, struct gguf_panel *panel) {
    const int count = gguf_step_cols(walk, k);
    uint8_t few[VL * GGUF_STEP_BYTES_MAX];
    *rows = gguf_begin_step(walk, k, count, few);
    walk->shape->lines(rows, panel, count / walk->values);
    if (walk->scales)
        fp4_step_scales(walk->scales, walk->w->cols / FP4_GROUP, k / FP4_GROUP, walk->rows, count / FP4_GROUP,
                        panel->scale);
    return count;
}

/* ---- products with 8-bit activations ---- */

/* What a token brings to a step. */
struct gguf_x {
    const int8_t *q;
    const float *scale;       /* of each 32 k */
    int32_t start[GGUF_SUBS]; /* of each sub-block, in the order of its sums: what the weights' zero makes of them */
    float low[GGUF_SUBS];     /* the same: scale * sum */
};

/* Where gguf_sums leaves the sum of each sub-block of 16 k. */
#define SUM_PLACE(J) ((J) / VL * VL + (J) % (VL / 4) * 4 + (J) % VL / (VL / 4))
static const uint8_t sum_places[GGUF_SUBS] = {SUM_PLACE(0),  SUM_PLACE(1),  SUM_PLACE(2),  SUM_PLACE(3),
                                              SUM_PLACE(4),  SUM_PLACE(5),  SUM_PLACE(6),  SUM_PLACE(7),
                                              SUM_PLACE(8),  SUM_PLACE(9),  SUM_PLACE(10), SUM_PLACE(11),
                                              SUM_PLACE(12), SUM_PLACE(13), SUM_PLACE(14), SUM_PLACE(15)};

/* Sums of 16 activations each: those of VL sub-blocks. */
INLINE ivec gguf_sums(const int8_t *q) {
    const ivec ones = ivec_set1(0x01010101);
    ivec v[4];
    UNROLL
    for (int j = 0; j < 4; j++) {
#if VL == 16 || defined(__AVXVNNI__)
        v[j] = block_dot(MAT_INT8, ivec_zero(), ones, ivec_load(q + j * VL * 4));
#else
        v[j] = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, ivec_load(q + j * VL * 4)), _mm256_set1_epi16(1));
#endif
    }
    return ivec_sum_fours(v);
}

/* The scale, of 32 k, that goes with each of these sums. */
#define SUM_SCALE(P) (((P) % 4 * (VL / 4) + (P) / 4) / 2)
static const int32_t sum_scales[VL] = {
    SUM_SCALE(0),  SUM_SCALE(1),  SUM_SCALE(2),  SUM_SCALE(3),
    SUM_SCALE(4),  SUM_SCALE(5),  SUM_SCALE(6),  SUM_SCALE(7),
#if VL == 16
    SUM_SCALE(8),  SUM_SCALE(9),  SUM_SCALE(10), SUM_SCALE(11),
    SUM_SCALE(12), SUM_SCALE(13), SUM_SCALE(14), SUM_SCALE(15),
#endif
};

static void gguf_prepare_16(const struct gguf_shape *shape, struct gguf_x *x) {
    UNROLL
    for (int i = 0; i < GGUF_SUBS; i += VL) {
        ivec sum = gguf_sums(x->q + i * 16);
        ivec_store(x->start + i, ivec_mul(sum, ivec_set1(-shape->zero)));
        if (!shape->has_low) continue;
        vec scale = vec_in_order(vec_load_part(x->scale + i / 2, VL / 2), sum_scales);
        vec_store(x->low + i, vec_mul(scale, vec_from_int(sum)));
    }
}

/* `count` k of a token from k on. */
static void gguf_prepare(const struct gguf_shape *shape, const struct q8_row *row, int k, int count, struct gguf_x *x) {
    x->q = row->q + k;
    x->scale = row->scale + k / 32;
    if (shape->sub == 16) {
        gguf_prepare_16(shape, x);
        return;
    }
    ivec sum = ivec_load_part(row->sum + k / 32, count / 32);
    ivec_store(x->start, ivec_mul(sum, ivec_set1(-shape->zero)));
    if (shape->has_low) vec_store(x->low, vec_mul(vec_load_part(x->scale, count / 32), vec_from_int(sum)));
}

/* acc [tokens] += `count` k of a panel. With each sub-block some more of `rows` is asked for. */
INLINE void gguf_dot(enum gguf_kind kind, int sub, int tokens, const struct gguf_shape *shape,
                     const struct gguf_panel *panel, int count, struct gguf_rows *rows, const struct gguf_x *x,
                     vec *acc) {
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
        const int group = j * sub / 32, place = sub == 16 ? sum_places[j] : j;
        ivec sum[GGUF_AT_ONCE];
        UNROLL
        for (int t = 0; t < tokens; t++) sum[t] = ivec_set1(x[t].start[place]);
        gguf_add_lines(kind, tokens, lines, panel->lines + j * lines, q, sum);
        gguf_ask(rows);
        UNROLL
        for (int t = 0; t < tokens; t++) {
            f[t] = vec_fma(vec_from_int(sum[t]), vec_mul(panel->scale[j], vec_set1(x[t].scale[group])), f[t]);
            if (shape->has_low) f[t] = vec_fma(panel->low[j], vec_set1(x[t].low[place]), f[t]);
            q[t] += sub;
        }
    }
    UNROLL
    for (int t = 0; t < tokens; t++) acc[t] = f[t];
}

typedef void gguf_dots(const struct gguf_shape *shape, const struct gguf_panel *panel, int count,
                       struct gguf_rows *rows, const struct gguf_x *x, vec *acc);

#define GGUF_DOT(KIND, SUB, T)                                                                                         \
    static __attribute__((noinline)) void gguf_dot_##KIND##_##SUB##_##T(                                               \
        const struct gguf_shape *shape, const struct gguf_panel *panel, int count, struct gguf_rows *rows,             \
        const struct gguf_x *x, vec *acc) {                                                                            \
        gguf_dot(KIND, SUB, T, shape, panel, count, rows, x, acc);                                                     \
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
GGUF_DOTS(GGUF_6_BITS, 16) GGUF_DOTS(GGUF_8_BITS, 16) GGUF_DOTS(GGUF_8_BITS, 32)
static gguf_dots *const gguf_sets[GGUF_KINDS][2][4] = {
    [GGUF_5_BITS] = {GGUF_ROW(GGUF_5_BITS, 16), GGUF_ROW(GGUF_5_BITS, 32)},
    [GGUF_6_BITS] = {GGUF_ROW(GGUF_6_BITS, 16)},
    [GGUF_8_BITS] = {GGUF_ROW(GGUF_8_BITS, 16), GGUF_ROW(GGUF_8_BITS, 32)},
};
#endif
/* clang-format on */

/* A step of at most GGUF_TOKENS tokens. */
static void gguf_multiply(const struct gguf_shape *shape, const struct gguf_panel *panel, int k, int count,
                          struct gguf_rows *rows, const struct q8_row *x, int n, vec *acc) {
    gguf_dots *const *sets = gguf_sets[shape->kind % GGUF_KINDS][shape->sub == 32];
    struct gguf_x at[GGUF_AT_ONCE];
    for (int t = 0, step = 3; t < n; t += 1 << step) {
        while (1 << step > n - t || 1 << step > GGUF_AT_ONCE) step--;
        for (int i = 0; i < 1 << step; i++) gguf_prepare(shape, &x[t + i], k, count, &at[i]);
        sets[step](shape, panel, count, rows, at, acc + t);
    }
}

/* One token: a step's sums are made while its blocks are taken apart. */
static int gguf_multiply_one(const struct gguf_walk *walk, int k, const struct q8_row *row, vec *acc) {
    const struct gguf_shape *shape = walk->shape;
    const int count = gguf_step_cols(walk, k), subs = count / shape->sub;
    uint8_t few[VL * GGUF_STEP_BYTES_MAX];
    struct gguf_rows rows = gguf_begin_step(walk, k, count, few);
    struct gguf_panel panel;
    struct gguf_x x = {0};
    vec f = *acc;
    gguf_prepare(shape, row, k, count, &x);
    for (int j = 0; j < subs; j++) panel.lines[j] = ivec_set1(x.start[shape->sub == 16 ? sum_places[j] : j]);
    shape->sums(&rows, &panel, count / walk->values, x.q);
    for (int j = 0; j < subs; j++) {
        const int group = j * shape->sub / 32, place = shape->sub == 16 ? sum_places[j] : j;
        f = vec_fma(vec_from_int(panel.lines[j]), vec_mul(panel.scale[j], vec_set1(x.scale[group])), f);
        if (shape->has_low) f = vec_fma(panel.low[j], vec_set1(x.low[place]), f);
    }
    while (rows.asks > 0) gguf_ask(&rows);
    *acc = f;
    return count;
}

static int gguf_multiply_many(const struct gguf_walk *walk, int k, const struct q8_row *x, int n, vec *acc) {
    struct gguf_panel panel;
    struct gguf_rows rows;
    const int count = gguf_unpack_step(walk, k, &rows, &panel);
    gguf_multiply(walk->shape, &panel, k, count, &rows, x, n, acc);
    while (rows.asks > 0) gguf_ask(&rows);
    return count;
}

static void gguf_multiply_rows(const struct gguf_walk *walk, int r, const struct q8_row *x, int n, float *const *y) {
    vec acc[GGUF_TOKENS];
    for (int t = 0; t < n; t++) acc[t] = vec_zero();
    const bool one = n == 1 && walk->shape->sums;
    for (int k = 0; k < walk->w->cols;)
        k += one ? gguf_multiply_one(walk, k, x, acc) : gguf_multiply_many(walk, k, x, n, acc);
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
            gguf_multiply_rows(&walk, r, x + t, n - t < GGUF_TOKENS ? n - t : GGUF_TOKENS, y + t);
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
    struct gguf_rows rows;
    const int count = gguf_unpack_step(walk, k, &rows, &panel);
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
        if (!gguf_shapes[format].lines) continue;
        kern->gemm_q8[format] = gemm_gguf_q8;
        kern->gemm[format] = gemm_gguf;
    }
}
