/* backend/cpu/x86/awq.inc.h - INT4_AWQ matrices, with fp32 and with 8-bit activations; included by each level
 * after its vector words.
 *
 * A line of the file holds one k for all rows, so lanes are rows and nothing is summed across lanes. VL words
 * (8 * VL rows) make a panel. k is walked in steps of 32, all panels of a block of rows inside a step: that
 * reads memory nearly in order. Each step's sum times its scale is added to `acc`, in both kernels, whatever
 * the number of tokens:
 *   fp32    acc = fma(sum of (q - z) * x, scale, acc)
 *   8 bits  acc = fma((float)(integer sum), wscale * xscale, acc)
 * Inside a panel values stand in the order that unpacking yields; they are put right when y is stored. */

enum {
    PANEL_ROWS = 8 * VL,
    PANELS = 2048 / PANEL_ROWS, /* in a block of rows, for one token */
    AWQ_TOKENS = 64,            /* tokens that share unpacked weights */
};

/* For each panel, in the order of its kernel: what a group of k has in common. */
struct awq_group {
    vec scale[PANELS * 8];
    vec zero[PANELS * 8]; /* fp32: as nibble_float gives it; 8 bits: int32 lanes */
};

/* Where the words of one block of rows lie. */
struct awq_view {
    const char *data; /* word 0 of the block at k = 0 */
    size_t pitch;     /* bytes from one k to the next */
    int words;
};

INLINE struct awq_view awq_view_rows(const struct mat *w, int r0, int r1) {
    return (struct awq_view){(const char *)w->data + (size_t)(r0 / 8) * 4, (size_t)(w->rows / 8) * 4, (r1 - r0) / 8};
}

/* The lines of the step to come, asked for while this one is worked on, in the order of memory and not in the
 * order of use: the processor's own prefetcher then sees streams and runs ahead of them. Several at once,
 * because one alone does not reach the bandwidth of a thread: stream s is the step's k from s * AWQ_STEP /
 * AWQ_STREAMS on. Into L2 (T1) only, since the lines of a power-of-two pitch would push each other out of L1.
 */
enum { AWQ_STREAMS = 4, AWQ_AHEAD_EVERY = AWQ_STREAMS * 16 / VL };

struct awq_ahead {
    const char *line; /* of the first stream */
    size_t stream;    /* bytes between streams */
    ptrdiff_t skip;   /* from the end of one k's lines to the next k's first; below 0 where lines are shared */
    int lines, left;  /* of one k */
};

INLINE struct awq_ahead awq_ahead_from(const char *p, size_t pitch, int words) {
    int lines = (words * 4 + 63) / 64;
    return (struct awq_ahead){p, pitch * (AWQ_STEP / AWQ_STREAMS), (ptrdiff_t)pitch - lines * 64, lines, lines};
}

/* At k = `at` of a panel: as many lines as the panel's words take, every AWQ_AHEAD_EVERY k. */
INLINE void awq_ahead_next(struct awq_ahead *ahead, int at) {
    if (at % AWQ_AHEAD_EVERY) return;
    UNROLL
    for (int i = 0; i < AWQ_STREAMS; i++) ask_for(ahead->line + (size_t)i * ahead->stream);
    ahead->line += 64;
    if (--ahead->left == 0) {
        ahead->left = ahead->lines;
        ahead->line += ahead->skip;
    }
}

INLINE ivec awq_load(const char *p, int words) {
    return words == VL ? ivec_load(p) : ivec_load_part(p, words);
}

/* Eight fp16 scales of a word's rows. */
INLINE __m128i awq_scales(const struct mat *w, int group, int row) {
    return _mm_loadu_si128(
        (const void *)((const char *)w->scales16 + ((size_t)group * (size_t)w->rows + (size_t)row) * 2));
}

INLINE const char *awq_zeros(const struct mat *w, int group, int row) {
    return (const char *)w->zeros + ((size_t)group * (size_t)(w->rows / 8) + (size_t)(row / 8)) * 4;
}

INLINE int awq_panels(int words) {
    return (words + VL - 1) / VL;
}

INLINE int awq_words_left(int words, int panel) {
    return words - panel * VL < VL ? words - panel * VL : VL;
}

/* ---- fp32 activations: vector j of a panel is nibble j of its words ---- */

/* Nibble j weighs 16^(j % 4) in its lane, which the scale takes back: a power of two, so it costs no
 * rounding. */
static void awq_group_f32(const struct mat *w, int group, int row, int words, struct awq_group *out) {
    static const float unit[4] = {1.0f, 0x1p-4f, 0x1p-8f, 0x1p-12f};
    for (int panel = 0; panel < awq_panels(words); panel++) {
        int left = awq_words_left(words, panel), first = row + panel * PANEL_ROWS;
        ivec z = ivec_load_part(awq_zeros(w, group, first), left);
        float *scale = (float *)&out->scale[panel * 8];
        for (int j = 0; j < 8; j++) out->zero[panel * 8 + j] = nibble_float(j < 4 ? z : ivec_shift_right(z, 16), j % 4);
        for (int word = 0; word < left; word++) {
            float eight[8];
            _mm256_storeu_ps(eight, _mm256_cvtph_ps(awq_scales(w, group, first + 8 * word)));
            for (int j = 0; j < 8; j++) scale[j * VL + word] = eight[awq_order[j]] * unit[j % 4];
        }
        for (int word = left; word < VL; word++)
            for (int j = 0; j < 8; j++) scale[j * VL + word] = 0;
    }
}

static int awq_place_f32(int row) {
    static const uint8_t nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* awq_order turned round */
    return nibble[row % 8] * VL + row / 8;
}

INLINE void awq_values(ivec v, const vec *zero, vec out[8]) {
    ivec high = ivec_shift_right(v, 16);
    UNROLL
    for (int j = 0; j < 8; j++) out[j] = vec_sub(nibble_float(j < 4 ? v : high, j % 4), zero[j]);
}

/* One token, one panel, one step. p is the panel's words at the step's first k. */
INLINE void awq_panel_f32(const char *p, size_t pitch, int words, int count, struct awq_ahead *ahead, const float *x,
                          const vec *scale, const vec *zero, vec *acc) {
    vec sum[8];
    UNROLL
    for (int j = 0; j < 8; j++) sum[j] = vec_zero();
    for (int k = 0; k < count; k++, p += pitch) {
        vec value[8], xk = vec_set1(x[k]);
        awq_ahead_next(ahead, k);
        awq_values(awq_load(p, words), zero, value);
        UNROLL
        for (int j = 0; j < 8; j++) sum[j] = vec_fma(value[j], xk, sum[j]);
    }
    UNROLL
    for (int j = 0; j < 8; j++) acc[j] = vec_fma(sum[j], scale[j], acc[j]);
}

static void awq_block_f32(const struct mat *w, int r0, int r1, const float *x, float *y) {
    struct awq_view view = awq_view_rows(w, r0, r1);
    struct awq_group group;
    vec acc[PANELS * 8];
    const int panels = awq_panels(view.words);
    for (int i = 0; i < panels * 8; i++) acc[i] = vec_zero();
    for (int k = 0; k < w->cols; k += AWQ_STEP) {
        int count = w->cols - k < AWQ_STEP ? w->cols - k : AWQ_STEP;
        const char *p = view.data + (size_t)k * view.pitch;
        struct awq_ahead ahead = awq_ahead_from(p + 1 * AWQ_STEP * view.pitch, view.pitch, view.words);
        if (k % w->group_size == 0) awq_group_f32(w, k / w->group_size, r0, view.words, &group);
        for (int i = 0; i < panels; i++) {
            const int words = awq_words_left(view.words, i);
            const vec *scale = group.scale + i * 8, *zero = group.zero + i * 8;
            if (words == VL)
                awq_panel_f32(p + i * VL * 4, view.pitch, VL, count, &ahead, x + k, scale, zero, acc + i * 8);
            else
                awq_panel_f32(p + i * VL * 4, view.pitch, words, count, &ahead, x + k, scale, zero, acc + i * 8);
        }
    }
    for (int r = 0; r < r1 - r0; r++)
        y[r0 + r] = ((const float *)&acc[r / PANEL_ROWS * 8])[awq_place_f32(r % PANEL_ROWS)];
}

/* Four vectors of a panel for some tokens: values [count][8], x[t] at the step's first k, acc [tokens][8]. */
INLINE void awq_tile_f32(int tokens, const vec *values, int count, const float *const *x, int k, const vec *scale,
                         vec *acc) {
    const float *xt[TILE_TOKENS];
    vec sum[4][TILE_TOKENS];
    UNROLL
    for (int t = 0; t < tokens; t++) {
        xt[t] = x[t] + k;
        UNROLL
        for (int j = 0; j < 4; j++) sum[j][t] = vec_zero();
    }
    for (int i = 0; i < count; i++, values += 8) {
        vec value[4] = {values[0], values[1], values[2], values[3]};
        UNROLL
        for (int t = 0; t < tokens; t++) {
            vec xk = vec_set1(xt[t][i]);
            UNROLL
            for (int j = 0; j < 4; j++) sum[j][t] = vec_fma(value[j], xk, sum[j][t]);
        }
    }
    UNROLL
    for (int t = 0; t < tokens; t++) {
        UNROLL
        for (int j = 0; j < 4; j++) acc[t * 8 + j] = vec_fma(sum[j][t], scale[j], acc[t * 8 + j]);
    }
}

#define AWQ_TILE_F32_CASE(T)                                                                                           \
    case T:                                                                                                            \
        awq_tile_f32(T, values + half, count, x + t, k, scale + half, acc + t * 8 + half);                             \
        break;

static void awq_tiles_f32(const vec *values, int count, const float *const *x, int n, int k, const vec *scale,
                          vec *acc) {
    for (int t = 0; t < n; t += TILE_TOKENS)
        for (int half = 0; half < 8; half += 4) switch (n - t < TILE_TOKENS ? n - t : TILE_TOKENS) {
                AWQ_TILE_F32_CASE(1)
                AWQ_TILE_F32_CASE(2)
                AWQ_TILE_F32_CASE(3)
#if TILE_TOKENS > 3
                AWQ_TILE_F32_CASE(4)
                AWQ_TILE_F32_CASE(5)
                AWQ_TILE_F32_CASE(6)
#endif
            }
}

/* One panel (r1 - r0 <= PANEL_ROWS) for at most AWQ_TOKENS tokens. */
static void awq_panel_tokens_f32(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    struct awq_view view = awq_view_rows(w, r0, r1);
    struct awq_group group;
    vec acc[AWQ_TOKENS * 8], values[AWQ_STEP * 8];
    for (int i = 0; i < n * 8; i++) acc[i] = vec_zero();
    for (int k = 0; k < w->cols; k += AWQ_STEP) {
        int count = w->cols - k < AWQ_STEP ? w->cols - k : AWQ_STEP;
        const char *p = view.data + (size_t)k * view.pitch;
        if (k % w->group_size == 0) awq_group_f32(w, k / w->group_size, r0, view.words, &group);
        for (int i = 0; i < count; i++, p += view.pitch) {
            ask_for(p + AWQ_STEP * view.pitch);
            awq_values(awq_load(p, view.words), group.zero, values + i * 8);
        }
        awq_tiles_f32(values, count, x, n, k, group.scale, acc);
    }
    for (int t = 0; t < n; t++)
        for (int r = 0; r < r1 - r0; r++) y[t][r0 + r] = ((const float *)&acc[t * 8])[awq_place_f32(r)];
}

static void gemm_awq(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    const int block = n == 1 ? PANELS * PANEL_ROWS : PANEL_ROWS;
    for (int t = 0; t < n; t += AWQ_TOKENS)
        for (int r = r0; r < r1; r += block) {
            int end = r1 - r < block ? r1 : r + block;
            if (n == 1)
                awq_block_f32(w, r, end, x[0], y[0]);
            else
                awq_panel_tokens_f32(w, r, end, x + t, n - t < AWQ_TOKENS ? n - t : AWQ_TOKENS, y + t);
        }
}

/* ---- 8-bit activations: vectors 2j and 2j + 1 of a panel as q8_spread makes them ---- */

/* A word's eight values in file order, first those of the low nibbles of its bytes, then the high ones. */
static void awq_group_q8(const struct mat *w, int group, int row, int words, struct awq_group *out) {
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    for (int panel = 0; panel < awq_panels(words); panel++) {
        int left = awq_words_left(words, panel), first = row + panel * PANEL_ROWS;
        const char *zeros = awq_zeros(w, group, first);
        for (int word = 0; word < VL; word++) {
            /* lane 4 * (word / 4) of vectors 2 * (word % 4) and the next */
            float *scale = (float *)&out->scale[panel * 8 + word % 4 * 2] + word / 4 * 4;
            float *zero = (float *)&out->zero[panel * 8 + word % 4 * 2] + word / 4 * 4;
            __m256 eight = _mm256_setzero_ps();
            uint32_t z = 0;
            if (word < left) {
                eight = _mm256_cvtph_ps(_mm_shuffle_epi8(awq_scales(w, group, first + 8 * word), order));
                memcpy(&z, zeros + 4 * word, sizeof z);
            }
            __m128i low = _mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)(z & 0x0f0f0f0f)));
            __m128i high = _mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)(z >> 4 & 0x0f0f0f0f)));
            _mm_storeu_ps(scale, _mm256_castps256_ps128(eight));
            _mm_storeu_ps(scale + VL, _mm256_extractf128_ps(eight, 1));
            _mm_storeu_ps(zero, _mm_castsi128_ps(low));
            _mm_storeu_ps(zero + VL, _mm_castsi128_ps(high));
        }
    }
}

static int awq_place_q8(int row) {
    /* row of the word -> 0..3: byte's low nibble, 4..7: high nibble */
    static const uint8_t nibble[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    int word = row / 8, place = nibble[row % 8];
    return (word % 4 * 2 + place / 4) * VL + word / 4 * 4 + place % 4;
}

/* Four k of a panel from k = at on, those from `count` on as zeros. */
INLINE void awq_load4(const char *p, size_t pitch, int words, int at, int count, ivec u[8]) {
    ivec v[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = at + i < count ? awq_load(p + (size_t)(at + i) * pitch, words) : ivec_zero();
    }
    q8_spread(v, u);
}

INLINE ivec awq_x4(const int8_t *q) {
    int four;
    memcpy(&four, q, sizeof four);
    return ivec_set1(four);
}

INLINE vec awq_add_q8(ivec sum, const vec *scale, const vec *zero, const struct q8_row *x, int group, vec acc) {
    ivec exact = q8_sum(sum, vec_bits(*zero), ivec_set1(-x->sum[group]));
    return vec_fma(vec_from_int(exact), vec_mul(*scale, vec_set1(x->scale[group])), acc);
}

/* One token, one panel, one step. p is the panel's words at the step's first k. */
INLINE void awq_panel_q8(const char *p, size_t pitch, int words, int count, struct awq_ahead *ahead,
                         const struct q8_row *x, int group, const vec *scale, const vec *zero, vec *acc) {
    ivec sum[8];
    UNROLL
    for (int j = 0; j < 8; j++) sum[j] = ivec_zero();
    for (int at = 0; at < count; at += 4) {
        ivec u[8], x4 = awq_x4(x->q + group * AWQ_STEP + at);
        awq_ahead_next(ahead, at);
        awq_load4(p, pitch, words, at, count, u);
        UNROLL
        for (int j = 0; j < 8; j++) sum[j] = q8_dot(sum[j], u[j], x4);
    }
    UNROLL
    for (int j = 0; j < 8; j++) acc[j] = awq_add_q8(sum[j], scale + j, zero + j, x, group, acc[j]);
}

static void awq_block_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, float *y) {
    struct awq_view view = awq_view_rows(w, r0, r1);
    struct awq_group group;
    vec acc[PANELS * 8];
    const int panels = awq_panels(view.words);
    for (int i = 0; i < panels * 8; i++) acc[i] = vec_zero();
    for (int k = 0; k < w->cols; k += AWQ_STEP) {
        int count = w->cols - k < AWQ_STEP ? w->cols - k : AWQ_STEP, step = k / AWQ_STEP;
        const char *p = view.data + (size_t)k * view.pitch;
        struct awq_ahead ahead = awq_ahead_from(p + 1 * AWQ_STEP * view.pitch, view.pitch, view.words);
        if (k % w->group_size == 0) awq_group_q8(w, k / w->group_size, r0, view.words, &group);
        for (int i = 0; i < panels; i++) {
            const int words = awq_words_left(view.words, i);
            const vec *scale = group.scale + i * 8, *zero = group.zero + i * 8;
            if (words == VL && count == AWQ_STEP)
                awq_panel_q8(p + i * VL * 4, view.pitch, VL, AWQ_STEP, &ahead, x, step, scale, zero, acc + i * 8);
            else
                awq_panel_q8(p + i * VL * 4, view.pitch, words, count, &ahead, x, step, scale, zero, acc + i * 8);
        }
    }
    for (int r = 0; r < r1 - r0; r++)
        y[r0 + r] = ((const float *)&acc[r / PANEL_ROWS * 8])[awq_place_q8(r % PANEL_ROWS)];
}

/* Four vectors of a panel for some tokens: nibbles [AWQ_STEP / 4][8], acc [tokens][8]. */
INLINE void awq_tile_q8(int tokens, const ivec *nibbles, const struct q8_row *x, int group, const vec *scale,
                        const vec *zero, vec *acc) {
    const int8_t *xt[TILE_TOKENS];
    ivec sum[4][TILE_TOKENS];
    UNROLL
    for (int t = 0; t < tokens; t++) {
        xt[t] = x[t].q + group * AWQ_STEP;
        UNROLL
        for (int j = 0; j < 4; j++) sum[j][t] = ivec_zero();
    }
    KEEP_LOOP
    for (int at = 0; at < AWQ_STEP; at += 4, nibbles += 8) {
        ivec u[4] = {nibbles[0], nibbles[1], nibbles[2], nibbles[3]};
        UNROLL
        for (int t = 0; t < tokens; t++) {
            ivec x4 = awq_x4(xt[t] + at);
            UNROLL
            for (int j = 0; j < 4; j++) sum[j][t] = q8_dot(sum[j][t], u[j], x4);
        }
    }
    UNROLL
    for (int t = 0; t < tokens; t++) {
        UNROLL
        for (int j = 0; j < 4; j++)
            acc[t * 8 + j] = awq_add_q8(sum[j][t], scale + j, zero + j, &x[t], group, acc[t * 8 + j]);
    }
}

#define AWQ_TILE_Q8_CASE(T)                                                                                            \
    case T:                                                                                                            \
        awq_tile_q8(T, nibbles + half, x + t, step, scale + half, zero + half, acc + t * 8 + half);                    \
        break;

static void awq_tiles_q8(const ivec *nibbles, const struct q8_row *x, int n, int step, const vec *scale,
                         const vec *zero, vec *acc) {
    for (int t = 0; t < n; t += TILE_TOKENS)
        for (int half = 0; half < 8; half += 4) switch (n - t < TILE_TOKENS ? n - t : TILE_TOKENS) {
                AWQ_TILE_Q8_CASE(1)
                AWQ_TILE_Q8_CASE(2)
                AWQ_TILE_Q8_CASE(3)
#if TILE_TOKENS > 3
                AWQ_TILE_Q8_CASE(4)
                AWQ_TILE_Q8_CASE(5)
                AWQ_TILE_Q8_CASE(6)
#endif
            }
}

/* One panel (r1 - r0 <= PANEL_ROWS) for at most AWQ_TOKENS tokens. */
static void awq_panel_tokens_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y) {
    struct awq_view view = awq_view_rows(w, r0, r1);
    struct awq_group group;
    vec acc[AWQ_TOKENS * 8];
    ivec nibbles[AWQ_STEP / 4 * 8];
    for (int i = 0; i < n * 8; i++) acc[i] = vec_zero();
    for (int k = 0; k < w->cols; k += AWQ_STEP) {
        int count = w->cols - k < AWQ_STEP ? w->cols - k : AWQ_STEP;
        const char *p = view.data + (size_t)k * view.pitch;
        if (k % w->group_size == 0) awq_group_q8(w, k / w->group_size, r0, view.words, &group);
        for (int i = 0; i < AWQ_STEP; i++) ask_for(p + (size_t)(AWQ_STEP + i) * view.pitch);
        for (int at = 0; at < AWQ_STEP; at += 4) awq_load4(p, view.pitch, view.words, at, count, nibbles + at * 2);
        awq_tiles_q8(nibbles, x, n, k / AWQ_STEP, group.scale, group.zero, acc);
    }
    for (int t = 0; t < n; t++)
        for (int r = 0; r < r1 - r0; r++) y[t][r0 + r] = ((const float *)&acc[t * 8])[awq_place_q8(r)];
}

static void gemm_awq_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                        const void *next) {
    (void)next;

    const int block = n == 1 ? PANELS * PANEL_ROWS : PANEL_ROWS;
    for (int t = 0; t < n; t += AWQ_TOKENS)
        for (int r = r0; r < r1; r += block) {
            int end = r1 - r < block ? r1 : r + block;
            if (n == 1)
                awq_block_q8(w, r, end, x, y[0]);
            else
                awq_panel_tokens_q8(w, r, end, x + t, n - t < AWQ_TOKENS ? n - t : AWQ_TOKENS, y + t);
        }
}

/* ---- decoding: VL k of a word at a time, so that a lane is a k and rows are written in line ---- */

/* Rows of one word, columns [k0, k1) of one group; out is row r0's column 0. */
static void awq_decode_word(const struct mat *w, int word, int k0, int k1, int r0, int r1, float *out) {
    const int stride = w->rows / 8, group = k0 / w->group_size, first = word * 8;
    const char *p = (const char *)w->data + (size_t)word * 4;
    float scale[8];
    uint32_t z;
    memcpy(&z, awq_zeros(w, group, first), sizeof z);
    _mm256_storeu_ps(scale, _mm256_cvtph_ps(awq_scales(w, group, first)));
    for (int k = k0; k < k1; k += VL) {
        int count = k1 - k < VL ? k1 - k : VL;
        uint32_t few[VL] = {0};
        for (int i = 0; count < VL && i < count; i++) memcpy(&few[i], p + (size_t)(k + i) * (size_t)stride * 4, 4);
        ivec v = count == VL ? ivec_gather(p + (size_t)k * (size_t)stride * 4, stride) : ivec_load(few);
        for (int j = 0; j < 8; j++, v = ivec_shift_right(v, 4)) {
            int row = first + awq_order[j], zero = z >> 4 * j & 15;
            if (row < r0 || row >= r1) continue;
            vec q = vec_from_int(ivec_and(v, ivec_set1(15)));
            vec value = vec_mul(vec_sub(q, vec_set1((float)zero)), vec_set1(scale[awq_order[j]]));
            vec_store_part(out + (size_t)(row - r0) * (size_t)w->cols + k, value, count);
        }
    }
}

static void decode_awq(const struct mat *w, int r0, int r1, float *out) {
    for (int k = 0, end; k < w->cols; k = end) {
        end = k + w->group_size < w->cols ? k + w->group_size : w->cols;
        for (int word = r0 / 8; word * 8 < r1; word++) awq_decode_word(w, word, k, end, r0, r1, out);
    }
}
