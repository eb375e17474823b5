/* backend/cpu/x86/words.inc.h - turned INT4 with zero points (model/format.h), which is what becomes of AWQ's, GPTQ's and
 * compressed-tensors' words; included by each level after awq.inc.h, whose tiles multiply here too, and block.inc.h.
 *
 * One token reads some panels in step, as INT4 does (block.inc.h): a thread reaches its share of the memory's bandwidth with several
 * streams, and with each line the one WORDS_AHEAD further on is asked for. For more tokens, and fp32, a step of eight vectors of rows is
 * taken apart once, and the tiles of awq.inc.h go over it. */

enum {
    WORDS_VECS = TURN_ROWS / VL,           /* vectors in a line */
    WORDS_PANELS = VL == 16 ? 8 : 4,       /* in step, for one token */
    WORDS_AHEAD = 2048,                    /* bytes */
    WORDS_STEP_BYTES = WORDS_STEP / 8 * BLOCK_LINE,
};

/* Some panels in step, and what the thread reads after them. */
struct words_walk {
    const uint8_t *data, *next;
    size_t pitch; /* from a panel to the next */
    int cols, group_size;
};

static struct words_walk words_walk_rows(const struct mat *w, int r, const void *next) {
    struct words_walk walk = {words_rows_at(w, r), next, words_panel_bytes(w), w->cols, w->group_size};
    return walk;
}

/* What lies WORDS_AHEAD behind byte `at` of a panel, less that place: in the panel itself or in what comes next. */
INLINE ptrdiff_t words_ahead(const struct words_walk *walk, const uint8_t *p) {
    const size_t at = (size_t)(p - walk->data) + WORDS_AHEAD;
    return at < walk->pitch || !walk->next ? WORDS_AHEAD : walk->next + (at - walk->pitch) - p;
}

/* A group's scales; its zero points. */
INLINE vec words_scale_of(ivec head) {
    return vec_from_bits(ivec_and(head, ivec_set1(~15)));
}

INLINE ivec words_zero_of(ivec head) {
    return ivec_and(head, ivec_set1(15));
}

/* The same four bits of every byte: k of the step's first half, or of its second. */
INLINE ivec words_nibbles(ivec line, int high) {
    return block_values(MAT_INT4, line, high);
}

/* ---- 8-bit activations, one token ---- */

/* f += a step of some panels; p is the first one's lines, head its group's scales. */
INLINE void words_step(int panels, const uint8_t *p, const uint8_t *head, size_t pitch, ptrdiff_t ahead, const int8_t *q,
                       float xscale, int xsum, vec *f) {
    ivec sum[WORDS_PANELS * WORDS_VECS];
    UNROLL
    for (int i = 0; i < panels * WORDS_VECS; i++) sum[i] = ivec_zero();
    UNROLL
    for (int l = 0; l < 4; l++, p += BLOCK_LINE) {
        const ivec low = block_activations(q + 4 * l), high = block_activations(q + 16 + 4 * l);
        UNROLL
        for (int i = 0; i < panels * WORDS_VECS; i++) {
            const uint8_t *line = p + (size_t)(i / WORDS_VECS) * pitch;
            if (i % WORDS_VECS == 0) ask_for(line + ahead);
            const ivec v = ivec_load(line + i % WORDS_VECS * VL * 4);
            sum[i] = q8_dot(q8_dot(sum[i], words_nibbles(v, 0), low), words_nibbles(v, 1), high);
        }
    }
    const ivec minus = ivec_set1(-xsum);
    const vec x = vec_set1(xscale);
    UNROLL
    for (int i = 0; i < panels * WORDS_VECS; i++) {
        const ivec group = ivec_load(head + (size_t)(i / WORDS_VECS) * pitch + i % WORDS_VECS * VL * 4);
        const ivec exact = q8_sum(sum[i], words_zero_of(group), minus);
        f[i] = vec_fma(vec_from_int(exact), vec_mul(words_scale_of(group), x), f[i]);
    }
}

INLINE void words_panels(int panels, const struct words_walk *walk, const struct q8_row *x, vec *f) {
    const uint8_t *p = walk->data, *head = p;
    UNROLL
    for (int i = 0; i < panels * WORDS_VECS; i++) f[i] = vec_zero();
    for (int k = 0; k < walk->cols; k += WORDS_STEP, p += WORDS_STEP_BYTES) {
        const ptrdiff_t ahead = words_ahead(walk, p);
        if (k % walk->group_size == 0) {
            head = p;
            UNROLL
            for (int i = 0; i < panels; i++) ask_for(p + (size_t)i * walk->pitch + ahead);
            p += BLOCK_LINE;
        }
        words_step(panels, p, head, walk->pitch, ahead, x->q + k, x->scale[k / WORDS_STEP], x->sum[k / WORDS_STEP], f);
    }
}

static void words_store(const vec *f, int vecs, float *y, int r0, int r1) {
    for (int i = 0, r = r0; i < vecs && r < r1; i++, r += VL) {
        if (r1 - r < VL)
            vec_store_part(y + r, f[i], r1 - r);
        else
            vec_store(y + r, f[i]);
    }
}

/* Rows [r0, r1) are as many panels as WORDS_SET says, the last one whole or not. */
typedef void words_set(const struct words_walk *walk, const struct q8_row *x, float *y, int r0, int r1);
#define WORDS_SET(PANELS)                                                                                              \
    static __attribute__((noinline)) void words_set_##PANELS(const struct words_walk *walk, const struct q8_row *x,    \
                                                             float *y, int r0, int r1) {                               \
        vec f[PANELS * WORDS_VECS];                                                                                    \
        words_panels(PANELS, walk, x, f);                                                                              \
        words_store(f, PANELS *WORDS_VECS, y, r0, r1);                                                                 \
    }
/* clang-format off */
WORDS_SET(1) WORDS_SET(2) WORDS_SET(4)
#if VL == 16
WORDS_SET(8)
static words_set *const words_sets[] = {words_set_1, words_set_2, words_set_4, words_set_8};
#else
static words_set *const words_sets[] = {words_set_1, words_set_2, words_set_4};
#endif
/* clang-format on */

static void words_one(const struct mat *w, int r0, int r1, const struct q8_row *x, float *y, const void *next) {
    const int steps = sizeof words_sets / sizeof *words_sets;
    for (int r = r0, end; r < r1; r = end) {
        const int left = (r1 - r + TURN_ROWS - 1) / TURN_ROWS;
        int step = steps - 1;
        while (1 << step > left) step--;
        end = r + (TURN_ROWS << step);
        const struct words_walk walk = words_walk_rows(w, r, end < r1 ? words_rows_at(w, end) : next);
        words_sets[step](&walk, x, y, r, r1);
    }
}

/* ---- more tokens, fp32 ---- */

enum { WORDS_ROWS = 8 * VL }; /* that are taken apart together */

/* Eight vectors of rows: where each begins. Those past the last row are the last again, and are not stored. */
struct words_rows {
    const uint8_t *at[8];
    int rows;
};

static struct words_rows words_rows_from(const struct mat *w, int r0, int r1) {
    struct words_rows rows = {.rows = r1 - r0 < WORDS_ROWS ? r1 - r0 : WORDS_ROWS};
    for (int j = 0; j < 8; j++) {
        const int vector = j * VL < rows.rows ? j : (rows.rows - 1) / VL, r = r0 + vector * VL;
        rows.at[j] = words_rows_at(w, r) + r % TURN_ROWS * 4;
    }
    return rows;
}

/* What a group has in common for the eight vectors. */
struct words_group {
    vec scale[8], zero[8]; /* zero: 8 bits: int32 lanes; fp32: -(2^23 + zero) * u */
};

/* Asks for what comes after byte `at` of each panel. */
INLINE void words_ask(const struct words_rows *rows, size_t at) {
    UNROLL
    for (int j = 0; j < 8; j += WORDS_VECS) {
        UNROLL
        for (int l = 0; l < 4; l++) ask_for(rows->at[j] + at + WORDS_AHEAD / 2 + l * BLOCK_LINE);
    }
}

static void words_tokens_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y) {
    const struct words_rows rows = words_rows_from(w, r0, r1);
    struct words_group group;
    vec acc[AWQ_TOKENS * 8];
    ivec nibbles[8 * 8];
    size_t at = 0;
    for (int i = 0; i < n * 8; i++) acc[i] = vec_zero();
    for (int k = 0; k < w->cols; k += WORDS_STEP, at += WORDS_STEP_BYTES) {
        if (k % w->group_size == 0) {
            UNROLL
            for (int j = 0; j < 8; j++) {
                const ivec head = ivec_load(rows.at[j] + at);
                group.scale[j] = words_scale_of(head);
                group.zero[j] = vec_from_bits(words_zero_of(head));
            }
            at += BLOCK_LINE;
        }
        words_ask(&rows, at);
        UNROLL
        for (int l = 0; l < 4; l++) {
            UNROLL
            for (int j = 0; j < 8; j++) {
                const ivec v = ivec_load(rows.at[j] + at + l * BLOCK_LINE);
                nibbles[l * 8 + j] = words_nibbles(v, 0);
                nibbles[(4 + l) * 8 + j] = words_nibbles(v, 1);
            }
        }
        awq_tiles_q8(nibbles, x, n, k / WORDS_STEP, group.scale, group.zero, acc);
    }
    for (int t = 0; t < n; t++) words_store(acc + t * 8, 8, y[t], r0, r0 + rows.rows);
}

static void gemm_words_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                          const void *next) {
    if (!w->turned) {
        (w->format == MAT_INT4_AWQ ? gemm_awq_q8 : kern_words_gemm_q8)(w, r0, r1, x, n, y, next);
        return;
    }
    if (n == 1) words_one(w, r0, r1, x, y[0], next);
    for (int t = 0; n > 1 && t < n; t += AWQ_TOKENS)
        for (int r = r0; r < r1; r += WORDS_ROWS)
            words_tokens_q8(w, r, r1, x + t, n - t < AWQ_TOKENS ? n - t : AWQ_TOKENS, y + t);
}

/* kern.h's u of a vector's rows, and 1 / u. */
INLINE vec words_units(bool inverse) {
    float unit[VL];
    for (int i = 0; i < VL; i++) unit[i] = inverse ? 1 / kern_words_unit(i) : kern_words_unit(i);
    return vec_load(unit);
}

/* values [32][8], of which column j: (q - zero) * u, exactly: nibble_float's 2^23 goes with the zero point's. */
INLINE void words_values(const uint8_t *p, vec unit, vec zero, vec *values) {
    UNROLL
    for (int l = 0; l < 4; l++) {
        const ivec v = ivec_load(p + l * BLOCK_LINE);
        UNROLL
        for (int i = 0; i < 4; i++) {
            const ivec low = ivec_shift_right(v, 8 * i), high = ivec_shift_right(v, 8 * i + 4);
            values[(4 * l + i) * 8] = vec_fma(nibble_float(low, 0), unit, zero);
            values[(16 + 4 * l + i) * 8] = vec_fma(nibble_float(high, 0), unit, zero);
        }
    }
}

static void words_tokens_f32(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    const struct words_rows rows = words_rows_from(w, r0, r1);
    const vec unit = words_units(false), inverse = words_units(true), none = vec_zero();
    struct words_group group;
    vec acc[AWQ_TOKENS * 8], values[WORDS_STEP * 8];
    size_t at = 0;
    for (int i = 0; i < n * 8; i++) acc[i] = vec_zero();
    for (int k = 0; k < w->cols; k += WORDS_STEP, at += WORDS_STEP_BYTES) {
        if (k % w->group_size == 0) {
            for (int j = 0; j < 8; j++) {
                const ivec head = ivec_load(rows.at[j] + at);
                group.scale[j] = vec_mul(words_scale_of(head), inverse);
                group.zero[j] = vec_sub(none, vec_mul(nibble_float(head, 0), unit));
            }
            at += BLOCK_LINE;
        }
        words_ask(&rows, at);
        for (int j = 0; j < 8; j++) words_values(rows.at[j] + at, unit, group.zero[j], values + j);
        awq_tiles_f32(values, w->cols - k < WORDS_STEP ? w->cols - k : WORDS_STEP, x, n, k, group.scale, acc);
    }
    for (int t = 0; t < n; t++) words_store(acc + t * 8, 8, y[t], r0, r0 + rows.rows);
}

static void gemm_words(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    if (!w->turned) {
        (w->format == MAT_INT4_AWQ ? gemm_awq : kern_words_gemm)(w, r0, r1, x, n, y);
        return;
    }
    for (int t = 0; t < n; t += AWQ_TOKENS)
        for (int r = r0; r < r1; r += WORDS_ROWS)
            words_tokens_f32(w, r, r1, x + t, n - t < AWQ_TOKENS ? n - t : AWQ_TOKENS, y + t);
}

/* ---- decoding ---- */

/* `count` values of a step of one lane: p is its words of the step's lines. */
INLINE void words_decode_lane(const uint8_t *p, int zero, float scale, int count, float *out) {
    uint8_t bytes[16];
    float values[WORDS_STEP];
    UNROLL
    for (int l = 0; l < 4; l++) memcpy(bytes + 4 * l, p + l * BLOCK_LINE, 4);
    UNROLL
    for (int i = 0; i < 16; i += VL) {
        const ivec v = ivec_load_bytes(bytes + i), low = ivec_and(v, ivec_set1(15)), high = ivec_shift_right(v, 4);
        vec_store(values + i, vec_mul(vec_from_int(ivec_sub(low, ivec_set1(zero))), vec_set1(scale)));
        vec_store(values + 16 + i, vec_mul(vec_from_int(ivec_sub(high, ivec_set1(zero))), vec_set1(scale)));
    }
    memcpy(out, values, (size_t)count * sizeof *values);
}

static void decode_words(const struct mat *w, int r0, int r1, float *out) {
    if (!w->turned) {
        (w->format == MAT_INT4_AWQ ? decode_awq : format_decode_rows)(w, r0, r1, out);
        return;
    }
    for (int r = r0; r < r1; r++, out += w->cols) {
        const uint8_t *p = words_rows_at(w, r) + r % TURN_ROWS * 4;
        int zero = 0;
        float scale = 0;
        for (int k = 0; k < w->cols; k += WORDS_STEP, p += WORDS_STEP_BYTES) {
            if (k % w->group_size == 0) {
                zero = words_zero(w, r, k);
                scale = words_scale(w, r, k);
                p += BLOCK_LINE;
            }
            words_decode_lane(p, zero, scale, w->cols - k < WORDS_STEP ? w->cols - k : WORDS_STEP, out + k);
        }
    }
}

static void words_init(struct kern *kern) {
    for (int format = MAT_INT4_AWQ; format <= MAT_INT4_PACKED; format++) {
        kern->gemm[format] = gemm_words;
        kern->gemm_q8[format] = gemm_words_q8;
    }
}
