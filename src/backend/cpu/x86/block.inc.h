/* backend/cpu/x86/block.inc.h - INT4 and INT8 matrices in blocks (model/format.h) times 8-bit activations; included by
 * each level after its vector words.
 *
 * A line of a block holds four k of sixteen rows, so a lane is a row and nothing is summed across lanes. Some panels are
 * read in step, because a thread reaches its share of the memory's bandwidth only with several streams; and with each
 * line the one a block further on is asked for. A block is walked in quarters of 32 k, the smallest group of a scale. */

#include <stdbool.h>

enum {
    LINE_VECS = SUM_LANES / VL,  /* vectors in a line */
    PANEL_VECS = 2 * LINE_VECS,  /* in four k of a panel: two lines of sixteen rows */
    QUARTER = BLOCK_COLS / 4,    /* k */
    QUARTER_LINES = QUARTER / 4, /* of each half of a panel */
};

/* A set of panels, and what the thread reads after it. */
struct block_walk {
    const uint8_t *data, *next;
    size_t panel, block; /* bytes from one to the next */
    int blocks, group_size;
    bool is_near; /* the set was read just before: ask for what lies at its places in the next set instead */
};

/* Bytes of the values of 16 rows x 64 k. */
INLINE int block_tile_bytes(enum mat_format format) {
    return 16 * BLOCK_TILE / (format != MAT_INT8 ? 2 : 1);
}

/* Four activations of a token in every lane. */
INLINE ivec block_activations(const int8_t *q) {
    int four;
    memcpy(&four, q, sizeof four);
    return ivec_set1(four);
}

/* Vector j of a line step of some panels; p is the line of the first panel's first half. */
INLINE ivec block_line(enum mat_format format, const uint8_t *p, size_t panel, ptrdiff_t ahead, int high, int j) {
    const int half = 2 * block_tile_bytes(format);
    p += (size_t)(j / PANEL_VECS) * panel + j / LINE_VECS % 2 * half + j % LINE_VECS * (BLOCK_LINE / LINE_VECS);
    if (j % LINE_VECS == 0 && (format == MAT_INT8 || !high)) ask_for(p + ahead);
    return block_values(format, ivec_load(p), high);
}

/* sum [tokens][panels * PANEL_VECS] += 32 k of some panels. p is the tile of the first panel's first half, q[t] the
 * tile's activations; `high` the quarter of the tile; the set's next block begins `ahead` bytes on. Few tokens keep
 * their activations in registers and stream the lines past them, many the other way round. */
INLINE void block_quarter(enum mat_format format, int tokens, int panels, const uint8_t *p, size_t panel,
                          ptrdiff_t ahead, int high, const int8_t *const *q, ivec *sum) {
    const int vecs = panels * PANEL_VECS;
    ivec run[BLOCK_SUMS];
    UNROLL
    for (int i = 0; i < tokens * vecs; i++) run[i] = block_run_begin(format, sum[i]);
    if (format == MAT_INT8) p += high * QUARTER_LINES * BLOCK_LINE;
    KEEP_LOOP
    for (int line = 0; line < QUARTER_LINES; line++, p += BLOCK_LINE) {
        const int at = high * QUARTER + line * 4;
        if (tokens > vecs) {
            ivec v[BLOCK_SUMS];
            UNROLL
            for (int j = 0; j < vecs; j++) v[j] = block_line(format, p, panel, ahead, high, j);
            UNROLL
            for (int t = 0; t < tokens; t++) {
                ivec x4 = block_activations(q[t] + at);
                UNROLL
                for (int j = 0; j < vecs; j++) run[t * vecs + j] = block_dot(format, run[t * vecs + j], v[j], x4);
            }
        } else {
            ivec x4[BLOCK_TOKENS];
            UNROLL
            for (int t = 0; t < tokens; t++) x4[t] = block_activations(q[t] + at);
            UNROLL
            for (int j = 0; j < vecs; j++) {
                ivec v = block_line(format, p, panel, ahead, high, j);
                UNROLL
                for (int t = 0; t < tokens; t++) run[t * vecs + j] = block_dot(format, run[t * vecs + j], v, x4[t]);
            }
        }
    }
    UNROLL
    for (int i = 0; i < tokens * vecs; i++) sum[i] = block_run_end(format, sum[i], run[i]);
}

/* The sums of q * x of a group begin with what the weights' zero point makes of it: -zero * sum of x. */
INLINE void block_begin_group(enum mat_format format, int tokens, int panels, const struct q8_row *x, int group,
                              ivec *sum) {
    const int vecs = panels * PANEL_VECS, zero = format != MAT_INT8 ? 8 : BYTE_ZERO;
    UNROLL
    for (int t = 0; t < tokens; t++) {
        ivec begin = ivec_set1(-zero * x[t].sum[group]);
        UNROLL
        for (int j = 0; j < vecs; j++) sum[t * vecs + j] = begin;
    }
}

/* The end of a group: f = fma((float)(sum of q * x), wscale * xscale, f). */
INLINE void block_add_group(int tokens, int panels, const uint8_t *scales, size_t panel, ptrdiff_t ahead,
                            const struct q8_row *x, int group, const ivec *sum, vec *f) {
    const int vecs = panels * PANEL_VECS;
    UNROLL
    for (int j = 0; j < vecs; j++) {
        const uint8_t *from = scales + (size_t)(j / PANEL_VECS) * panel + j % PANEL_VECS * VL * 2;
        if (j % PANEL_VECS == 0) ask_for(from + ahead);
        vec scale = vec_load_f16(from);
        UNROLL
        for (int t = 0; t < tokens; t++) {
            int i = t * vecs + j;
            f[i] = vec_fma(vec_from_int(sum[i]), vec_mul(scale, vec_set1(x[t].scale[group])), f[i]);
        }
    }
}

/* f [tokens][panels * PANEL_VECS] = the products of some panels. */
INLINE void block_panels(enum mat_format format, int tokens, int panels, const struct block_walk *walk,
                         const struct q8_row *x, vec *f) {
    const int n = tokens * panels * PANEL_VECS, tile_bytes = block_tile_bytes(format);
    const int quarters_mask = walk->group_size / QUARTER - 1; /* 0, 1 or 3 */
    const uint8_t *p = walk->data;
    const int8_t *q[BLOCK_TOKENS];
    ivec sum[BLOCK_SUMS];
    UNROLL
    for (int i = 0; i < n; i++) f[i] = vec_zero();
    UNROLL
    for (int t = 0; t < tokens; t++) q[t] = x[t].q;
    for (int b = 0, group = 0; b < walk->blocks; b++, p += walk->block) {
        ptrdiff_t ahead = (b + 1 < walk->blocks ? p + walk->block : walk->next) - p;
        if (walk->is_near) ahead = walk->next - walk->data;
        const uint8_t *scales = p + 4 * tile_bytes;
        KEEP_LOOP
        for (int tile = 0; tile < 2; tile++) {
            UNROLL
            for (int high = 0; high < 2; high++) {
                if (!((2 * tile + high) & quarters_mask)) block_begin_group(format, tokens, panels, x, group, sum);
                block_quarter(format, tokens, panels, p + tile * tile_bytes, walk->panel, ahead, high, q, sum);
                if ((2 * tile + high + 1) & quarters_mask) continue;
                block_add_group(tokens, panels, scales, walk->panel, ahead, x, group++, sum, f);
                scales += BLOCK_ROWS * 2;
            }
            UNROLL
            for (int t = 0; t < tokens; t++) q[t] += BLOCK_TILE;
        }
    }
}

/* Rows from r0 on, those below r1. */
INLINE void block_store(int tokens, int panels, const vec *f, float *const *y, int r0, int r1) {
    const int vecs = panels * PANEL_VECS;
    UNROLL
    for (int t = 0; t < tokens; t++) {
        UNROLL
        for (int j = 0; j < vecs; j++) {
            int row = r0 + j * VL;
            if (row + VL <= r1)
                vec_store(y[t] + row, f[t * vecs + j]);
            else if (row < r1)
                vec_store_part(y[t] + row, f[t * vecs + j], r1 - row);
        }
    }
}

/* The panels of rows [r0, r1), r0 a multiple of 32. */
struct block_job {
    const struct block_walk *walk;
    const struct q8_row *x;
    float *const *y;
    int r0, r1;
};

#define BLOCK_SET(FORMAT, NAME, T, P)                                                                                  \
    static __attribute__((noinline)) void NAME##_##T##x##P(const struct block_job *job) {                              \
        vec f[BLOCK_SUMS];                                                                                             \
        block_panels(FORMAT, T, P, job->walk, job->x, f);                                                              \
        block_store(T, P, f, job->y, job->r0, job->r1);                                                                \
    }
#define BLOCK_SETS(T, P) BLOCK_SET(MAT_INT4, int4, T, P) BLOCK_SET(MAT_INT8, int8, T, P)

typedef void block_set(const struct block_job *job);

/* Sets by tokens and panels; sizes that a level leaves out are made of smaller ones. INT4_AFFINE is for so many tokens that the
 * products are what takes the time. */
/* clang-format off */
#if VL == 16
enum { PANEL_STEPS = 4 };
BLOCK_SETS(1, 1) BLOCK_SETS(1, 2) BLOCK_SETS(1, 4) BLOCK_SETS(1, 8)
BLOCK_SETS(2, 1) BLOCK_SETS(2, 2) BLOCK_SETS(2, 4)
BLOCK_SETS(3, 1) BLOCK_SETS(3, 2) BLOCK_SETS(3, 4)
BLOCK_SETS(4, 1) BLOCK_SETS(4, 2)
BLOCK_SETS(5, 1) BLOCK_SETS(5, 2)
BLOCK_SETS(6, 1) BLOCK_SETS(6, 2)
BLOCK_SET(INT4_AFFINE, affine, 3, 1) BLOCK_SET(INT4_AFFINE, affine, 3, 2) BLOCK_SET(INT4_AFFINE, affine, 3, 4)
BLOCK_SET(INT4_AFFINE, affine, 4, 1) BLOCK_SET(INT4_AFFINE, affine, 4, 2)
BLOCK_SET(INT4_AFFINE, affine, 5, 1) BLOCK_SET(INT4_AFFINE, affine, 5, 2)
BLOCK_SET(INT4_AFFINE, affine, 6, 1) BLOCK_SET(INT4_AFFINE, affine, 6, 2)
#define BLOCK_TABLE(FEW, N) {                                                                                          \
    {FEW##_1x1, FEW##_1x2, FEW##_1x4, FEW##_1x8}, {FEW##_2x1, FEW##_2x2, FEW##_2x4}, {N##_3x1, N##_3x2, N##_3x4},      \
    {N##_4x1, N##_4x2}, {N##_5x1, N##_5x2}, {N##_6x1, N##_6x2} }
static block_set *const affine_sets[BLOCK_TOKENS][PANEL_STEPS] = BLOCK_TABLE(int4, affine);
#else
enum { PANEL_STEPS = 2 };
BLOCK_SETS(1, 1) BLOCK_SETS(1, 2) BLOCK_SETS(2, 1) BLOCK_SETS(3, 1)
#define BLOCK_TABLE(FEW, N) { {FEW##_1x1, FEW##_1x2}, {N##_2x1}, {N##_3x1} }
#endif
/* clang-format on */
static block_set *const int4_sets[BLOCK_TOKENS][PANEL_STEPS] = BLOCK_TABLE(int4, int4);
static block_set *const int8_sets[BLOCK_TOKENS][PANEL_STEPS] = BLOCK_TABLE(int8, int8);
static block_set *const (*best_int4_sets)[PANEL_STEPS] = int4_sets; /* once this processor is known */

/* log2 of the panels that the next set takes. */
static int block_step(block_set *const *sets, int panels_left) {
    int step = PANEL_STEPS - 1;
    while (step > 0 && (!sets[step] || 1 << step > panels_left)) step--;
    return step;
}

/* All tokens in tiles of nearly equal size, so that no tile is left with a single one. The first brings the set near, the
 * second asks for the next set, and the rest finds everything in the caches. */
static void block_tokens(block_set *const (*sets)[PANEL_STEPS], int step, struct block_walk *walk, struct block_job job,
                         int n) {
    int tiles = (n + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    const uint8_t *next = walk->next;
    job.walk = walk;
    for (int t = 0, i = 0; i < tiles; i++) {
        int end = n * (i + 1) / tiles;
        walk->is_near = i > 0;
        walk->next = i == 1 || tiles == 1 ? next : walk->data;
        sets[end - t - 1][step](&job);
        job.x += end - t;
        job.y += end - t;
        t = end;
    }
}

static void gemm_block_q8(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                          const void *next) {
    block_set *const(*sets)[PANEL_STEPS] = w->format == MAT_INT8 ? int8_sets : best_int4_sets;
    struct block_walk walk = {
        .block = block_bytes(w->format, w->group_size),
        .panel = block_panel_bytes(w),
        .blocks = (w->cols + BLOCK_COLS - 1) / BLOCK_COLS,
        .group_size = w->group_size,
    };
    const int most = (n + BLOCK_TOKENS - 1) / BLOCK_TOKENS, size = n ? (n + most - 1) / most : 1;
    for (int r = r0; r < r1;) {
        int left = (r1 - r + BLOCK_ROWS - 1) / BLOCK_ROWS, step = block_step(sets[size - 1], left);
        int rows = BLOCK_ROWS << step, end = r + rows < r1 ? r + rows : r1;
        walk.data = (const uint8_t *)w->data + (size_t)(r / BLOCK_ROWS) * walk.panel;
        walk.next = walk.data; /* nothing new */
        if (r + rows < r1) {
            walk.next = walk.data + (walk.panel << step);
        } else if (next) {
            walk.next = next;
        }
        block_tokens(sets, step, &walk, (struct block_job){NULL, x, y, r, end}, n);
        r += rows;
    }
}

/* ---- decoding ---- */

/* `count` k of a quarter of one row. p is the row's dword in the quarter's first line. */
INLINE void block_decode_quarter(enum mat_format format, const uint8_t *p, int high, vec scale, int count, float *out) {
    const ivec zero = ivec_set1(format == MAT_INT4 ? 8 : 128);
    uint8_t bytes[QUARTER];
    for (int line = 0; line < QUARTER_LINES; line++) {
        uint32_t four;
        memcpy(&four, p + line * BLOCK_LINE, sizeof four);
        if (format == MAT_INT4) four = four >> 4 * high & 0x0f0f0f0f;
        memcpy(bytes + line * 4, &four, sizeof four);
    }
    for (int k = 0; k < count; k += VL) {
        vec q = vec_from_int(ivec_sub(ivec_load_bytes(bytes + k), zero));
        vec_store_part(out + k, vec_mul(q, scale), count - k);
    }
}

/* Columns [k0, k1) of a row; k0 is a multiple of QUARTER. */
INLINE void decode_block_part(enum mat_format format, const struct mat *w, int row, int k0, int k1, float *out) {
    const int tile_bytes = block_tile_bytes(format), half = row % BLOCK_ROWS / 16;
    const size_t block = block_bytes(format, w->group_size);
    const uint8_t *base = (const uint8_t *)w->data + (size_t)(row / BLOCK_ROWS) * block_panel_bytes(w);
    for (int k = k0; k < k1; k += QUARTER) {
        int tile = k % BLOCK_COLS / BLOCK_TILE, high = k % BLOCK_TILE / QUARTER, group = k % BLOCK_COLS / w->group_size;
        const uint8_t *p = base + (size_t)(k / BLOCK_COLS) * block;
        uint16_t bits;
        memcpy(&bits, p + 4 * tile_bytes + (group * BLOCK_ROWS + row % BLOCK_ROWS) * 2, sizeof bits);
        p += (half * 2 + tile) * tile_bytes + row % 16 * 4;
        if (format == MAT_INT8) p += high * QUARTER_LINES * BLOCK_LINE;
        int count = k1 - k < QUARTER ? k1 - k : QUARTER;
        block_decode_quarter(format, p, high, vec_set1(_cvtsh_ss(bits)), count, out + (k - k0));
    }
}

static void decode_block(const struct mat *w, int r0, int r1, float *out) {
    for (int row = r0; row < r1; row++, out += w->cols) {
        if (w->format == MAT_INT4)
            decode_block_part(MAT_INT4, w, row, 0, w->cols, out);
        else
            decode_block_part(MAT_INT8, w, row, 0, w->cols, out);
    }
}

/* ---- the same matrices times fp32 activations: decoded, then as dense.inc.h does ---- */

INLINE void block_dense(const struct mat *w, enum mat_format format, int r, int rows, const float *const *x, int n,
                        float *const *y) {
    vec acc[DENSE_ACC];
    float wide[DENSE_ROWS * DENSE_CHUNK] __attribute__((aligned(64)));
    dense_clear(acc, n);
    for (int k = 0; k < w->cols; k += DENSE_CHUNK) {
        int end = k + DENSE_CHUNK < w->cols ? k + DENSE_CHUNK : w->cols;
        memset(wide, 0, sizeof wide); /* missing rows, columns past the last */
        for (int i = 0; i < rows; i++) decode_block_part(format, w, r + i, k, end, wide + i * DENSE_CHUNK);
        dense_tiles(wide, x, n, k, end - k, acc);
    }
    dense_store(acc, r, rows, n, y);
}

#define BLOCK_DENSE(NAME, FORMAT)                                                                                      \
    static void NAME(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {             \
        for (int t = 0; t < n; t += DENSE_TOKENS)                                                                      \
            for (int r = r0; r < r1; r += DENSE_ROWS)                                                                  \
                block_dense(w, FORMAT, r, r1 - r < DENSE_ROWS ? r1 - r : DENSE_ROWS, x + t,                            \
                            n - t < DENSE_TOKENS ? n - t : DENSE_TOKENS, y + t);                                       \
    }
BLOCK_DENSE(gemm_int4, MAT_INT4)
BLOCK_DENSE(gemm_int8, MAT_INT8)
