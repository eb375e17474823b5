/* backend/cpu/x86/kern_amx_bf16.c - BF16 and FP8 weights and attention on the matrix unit's bf16 words, in tile order (kern.h).
 * Run in emulation only (tiles.inc.h), never yet on hardware: no machine takes this level unless told to.
 *
 * Products of weights: 16 rows x 32 k are an A tile, BF16 as they lie. 16 tokens, cut into three parts of bf16, are three B
 * tiles, whose products are summed apart. A chunk of k of all tokens' weights goes past GROUP_TOKENS tokens, 16 at a time:
 * their B tiles stay in the first cache, the weights (decoded first if FP8) and the sums in the second.
 * Attention: 16 queries are an A tile, keys or values B tiles, both cut into two parts.
 * The Makefile compiles this file alone with the level's instructions. */
#if defined(__x86_64__)
#include "backend/cpu/kern.h"

#include "backend/cpu/x86/vec_avx512.inc.h"
#include "backend/cpu/x86/fp8_scale.inc.h"
#include "backend/cpu/x86/tiles.inc.h"
#include "backend/cpu/x86/parts.inc.h"

/* ---- products of weights ---- */

enum {
    PARTS = 3,
    SET_SUMS = PARTS * 16, /* of one row and 16 tokens */
    GROUP_TOKENS = 64,
    GROUP_SETS = GROUP_TOKENS / 16,
    JOB_ROWS = 512,
    PAIR_ROWS = 2 * TILE_ROWS, /* rows that share a pass over the tokens */
    BF16_CHUNK = 256,
    COPY_PITCH = FP8_CHUNK + STEP, /* no power of two: rows of a tile must not meet in one cache set */
};

/* Some rows of one matrix for at most GROUP_TOKENS tokens. */
struct job {
    const struct mat *w;
    const float *const *x;
    float *const *y;
    int r0, rows, n;
    float *sums;     /* [GROUP_SETS][JOB_ROWS][SET_SUMS] */
    uint8_t *packed; /* [FP8_CHUNK / STEP][PARTS] tiles: one set's tokens */
    uint16_t *copy;  /* [JOB_ROWS][COPY_PITCH] weights that do not lie as they should */
    float *scale;    /* [JOB_ROWS] FP8 */
};

/* A chunk of a job's weights as bf16. */
struct chunk {
    int k, count, steps;
    const char *rows;
    size_t pitch; /* bytes */
};

static int job_pairs(const struct job *job) {
    return (job->rows + PAIR_ROWS - 1) / PAIR_ROWS;
}

INLINE void copy_row(const struct mat *w, enum mat_format format, int row, int k, int count, uint16_t *out) {
    const int size = format == MAT_FP8 ? 1 : 2;
    const char *from = (const char *)w->data + ((size_t)row * (size_t)w->cols + (size_t)k) * (size_t)size;
    for (int i = 0; i < count; i += STEP) {
        struct vec2 v = widen2_part(format, from + i * size, count - i, 1);
        ivec_store(out + i, upper_halves(vec_bits(v.a), vec_bits(v.b)));
    }
}

/* Rows past the last are 0. */
static void copy_rows(const struct job *job, int k, int count) {
    const struct mat *w = job->w;
    for (int i = 0; i < job_pairs(job) * PAIR_ROWS; i++) {
        uint16_t *out = job->copy + (size_t)i * COPY_PITCH;
        if (i >= job->rows) {
            memset(out, 0, COPY_PITCH * sizeof *out);
        } else if (w->format == MAT_FP8) {
            copy_row(w, MAT_FP8, job->r0 + i, k, count, out);
            job->scale[i] = fp8_scale(fp8_scales(w, job->r0 + i), k / w->scale_cols) * FP8_UNIT;
        } else {
            copy_row(w, MAT_BF16, job->r0 + i, k, count, out);
        }
    }
}

static struct chunk load_chunk(const struct job *job, int k) {
    const struct mat *w = job->w;
    int end = w->format == MAT_FP8 ? fp8_chunk_end(w, k) : w->cols - k > BF16_CHUNK ? k + BF16_CHUNK : w->cols;
    struct chunk chunk = {.k = k, .count = end - k, .steps = (end - k + STEP - 1) / STEP};
    if (w->format == MAT_BF16 && chunk.count % STEP == 0 && job->rows % PAIR_ROWS == 0) {
        chunk.pitch = (size_t)w->cols * 2;
        chunk.rows = (const char *)w->data + (size_t)job->r0 * chunk.pitch + (size_t)k * 2;
    } else {
        copy_rows(job, k, chunk.count);
        chunk.pitch = COPY_PITCH * sizeof *job->copy;
        chunk.rows = (const char *)job->copy;
    }
    return chunk;
}

static void pack_set(const struct job *job, const struct chunk *chunk, int t) {
    for (int step = 0; step < chunk->steps; step++) {
        const int at = step * STEP;
        pack_columns(PARTS, ROUND_DOWN, job->x + t, job->n - t, chunk->k + at, chunk->count - at,
                     job->packed + (size_t)step * PARTS * TILE_SIZE, TILE_SIZE);
    }
}

/* Tiles 0 to 2 and 3 to 5 are the sums of the two halves of PAIR_ROWS rows. */
INLINE void multiply_steps(int steps, const char *rows, size_t pitch, const uint8_t *packed) {
    for (int step = 0; step < steps; step++, rows += 2 * STEP, packed += PARTS * TILE_SIZE) {
        tile_load(6, rows, pitch);
        tile_load(7, packed, TILE_BYTES);
        tile_dot_bf16(0, 6, 7);
        tile_load(7, packed + TILE_SIZE, TILE_BYTES);
        tile_dot_bf16(1, 6, 7);
        tile_load(7, packed + 2 * TILE_SIZE, TILE_BYTES);
        tile_dot_bf16(2, 6, 7);
        tile_load(6, rows + TILE_ROWS * pitch, pitch);
        tile_load(7, packed, TILE_BYTES);
        tile_dot_bf16(3, 6, 7);
        tile_load(7, packed + TILE_SIZE, TILE_BYTES);
        tile_dot_bf16(4, 6, 7);
        tile_load(7, packed + 2 * TILE_SIZE, TILE_BYTES);
        tile_dot_bf16(5, 6, 7);
    }
}

enum { SUMS_PITCH = SET_SUMS * 4, HALF_SUMS = TILE_ROWS * SET_SUMS };

INLINE void load_sums(const float *sums) {
    tile_load(0, sums, SUMS_PITCH);
    tile_load(1, sums + 16, SUMS_PITCH);
    tile_load(2, sums + 32, SUMS_PITCH);
    tile_load(3, sums + HALF_SUMS, SUMS_PITCH);
    tile_load(4, sums + HALF_SUMS + 16, SUMS_PITCH);
    tile_load(5, sums + HALF_SUMS + 32, SUMS_PITCH);
}

INLINE void store_sums(float *sums) {
    tile_store(0, sums, SUMS_PITCH);
    tile_store(1, sums + 16, SUMS_PITCH);
    tile_store(2, sums + 32, SUMS_PITCH);
    tile_store(3, sums + HALF_SUMS, SUMS_PITCH);
    tile_store(4, sums + HALF_SUMS + 16, SUMS_PITCH);
    tile_store(5, sums + HALF_SUMS + 32, SUMS_PITCH);
}

INLINE void zero_sums(void) {
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    tile_zero(4);
    tile_zero(5);
}

/* sums [PAIR_ROWS][SET_SUMS] += a chunk. */
static void add_chunk(const struct chunk *chunk, const char *rows, const uint8_t *packed, float *sums) {
    load_sums(sums);
    multiply_steps(chunk->steps, rows, chunk->pitch, packed);
    store_sums(sums);
}

static void add_chunk_scaled(const struct chunk *chunk, const char *rows, const uint8_t *packed, const float *scale,
                             float *sums) {
    _Alignas(64) float partial[PAIR_ROWS * SET_SUMS];
    zero_sums();
    multiply_steps(chunk->steps, rows, chunk->pitch, packed);
    store_sums(partial);
    for (int i = 0; i < PAIR_ROWS; i++) {
        vec factor = vec_set1(scale[i]);
        for (int at = i * SET_SUMS; at < (i + 1) * SET_SUMS; at += VL)
            vec_store(sums + at, vec_fma(vec_load(partial + at), factor, vec_load(sums + at)));
    }
}

static float *set_sums(const struct job *job, int t) {
    return job->sums + (size_t)(t / 16) * JOB_ROWS * SET_SUMS;
}

static void multiply_chunk(const struct job *job, const struct chunk *chunk) {
    for (int t = 0; t < job->n; t += 16) {
        pack_set(job, chunk, t);
        for (int i = 0; i < job_pairs(job) * PAIR_ROWS; i += PAIR_ROWS) {
            const char *rows = chunk->rows + (size_t)i * chunk->pitch;
            float *sums = set_sums(job, t) + (size_t)i * SET_SUMS;
            if (job->w->format == MAT_FP8) {
                add_chunk_scaled(chunk, rows, job->packed, job->scale + i, sums);
            } else {
                add_chunk(chunk, rows, job->packed, sums);
            }
        }
    }
}

/* The three parts' sums together, 16 rows of 16 tokens at a time. */
static void store_set(const struct job *job, int t0) {
    const int tokens = job->n - t0 < 16 ? job->n - t0 : 16;
    for (int r = 0; r < job->rows; r += 16) {
        const float *from = set_sums(job, t0) + (size_t)r * SET_SUMS;
        ivec v[16];
        for (int i = 0; i < 16; i++, from += SET_SUMS)
            v[i] = vec_bits(vec_add(vec_add(vec_load(from + 32), vec_load(from + 16)), vec_load(from)));
        turn(v);
        for (int t = 0; t < tokens; t++)
            vec_store_part(job->y[t0 + t] + job->r0 + r, vec_from_bits(v[t]), job->rows - r);
    }
}

static void run_job(const struct job *job) {
    for (int t = 0; t < job->n; t += 16)
        memset(set_sums(job, t), 0, (size_t)(job_pairs(job) * PAIR_ROWS) * SET_SUMS * sizeof(float));
    for (int k = 0; k < job->w->cols;) {
        struct chunk chunk = load_chunk(job, k);
        multiply_chunk(job, &chunk);
        k += chunk.count;
    }
    for (int t = 0; t < job->n; t += 16) store_set(job, t);
}

static void gemm_parts(const struct mat *w, int r0, int r1, const float *const *x, int n, float *const *y) {
    _Alignas(64) float sums[GROUP_SETS * JOB_ROWS * SET_SUMS], scale[JOB_ROWS] = {0};
    _Alignas(64) uint8_t packed[FP8_CHUNK / STEP * PARTS * TILE_SIZE];
    _Alignas(64) uint16_t copy[JOB_ROWS * COPY_PITCH];
    struct job job = {.w = w, .sums = sums, .packed = packed, .copy = copy, .scale = scale};
    tiles_begin();
    for (job.r0 = r0; job.r0 < r1; job.r0 += JOB_ROWS) {
        job.rows = r1 - job.r0 < JOB_ROWS ? r1 - job.r0 : JOB_ROWS;
        for (int t = 0; t < n; t += GROUP_TOKENS) {
            job.n = n - t < GROUP_TOKENS ? n - t : GROUP_TOKENS;
            job.x = x + t;
            job.y = y + t;
            run_job(&job);
        }
    }
    tiles_end();
}

/* ---- attention ---- */

enum {
    WIDE = 4 * 16,                          /* keys, or columns of values, of a product */
    ROWS_STEP = 2 * TILE_SIZE,              /* 16 queries' two parts */
    WIDE_STEP = 2 * 4 * TILE_SIZE,          /* [part][tile] */
    SUM_STEPS = 2,                          /* page_sum: positions at once, in steps */
    SUM_TOKENS = SUM_STEPS * STEP,          /* a page */
    SUM_TILES = 8,                          /* of rows that share the packed values */
    DIM_CHUNK = 1024,                       /* dots: columns at once */
    WIDE_PITCH = WIDE * (int)sizeof(float), /* of sums [16][WIDE] */
};

/* Tiles 0 to 3 += 16 rows of one part times WIDE columns of one part. */
INLINE void multiply_wide(const uint8_t *a, const uint8_t *b) {
    tile_load(4, a, TILE_BYTES);
    tile_load(5, b, TILE_BYTES);
    tile_load(6, b + TILE_SIZE, TILE_BYTES);
    tile_dot_bf16(0, 4, 5);
    tile_dot_bf16(1, 4, 6);
    tile_load(5, b + 2 * TILE_SIZE, TILE_BYTES);
    tile_load(6, b + 3 * TILE_SIZE, TILE_BYTES);
    tile_dot_bf16(2, 4, 5);
    tile_dot_bf16(3, 4, 6);
}

/* sums [16][WIDE] += a [steps][2 parts] times b [steps][2 parts][4]: three of the four products, as kern.h says. */
static void multiply_parts(int steps, const uint8_t *a, const uint8_t *b, float *sums) {
    tile_load(0, sums, WIDE_PITCH);
    tile_load(1, sums + 16, WIDE_PITCH);
    tile_load(2, sums + 32, WIDE_PITCH);
    tile_load(3, sums + 48, WIDE_PITCH);
    for (int step = 0; step < steps; step++, a += ROWS_STEP, b += WIDE_STEP) {
        multiply_wide(a, b);
        multiply_wide(a + TILE_SIZE, b);
        multiply_wide(a, b + WIDE_STEP / 2);
    }
    tile_store(0, sums, WIDE_PITCH);
    tile_store(1, sums + 16, WIDE_PITCH);
    tile_store(2, sums + 32, WIDE_PITCH);
    tile_store(3, sums + 48, WIDE_PITCH);
}

static void pack_keys(const float *k, size_t stride, int n, int dim, uint8_t *out) {
    for (int tile = 0; tile < 4; tile++, k += 16 * stride, n -= 16, out += TILE_SIZE) {
        const float *rows[16];
        for (int i = 0; i < 16 && i < n; i++) rows[i] = k + (size_t)i * stride;
        for (int c = 0; c < dim; c += STEP)
            pack_columns(2, ROUND_NEAREST, rows, n, c, dim - c, out + (size_t)(c / STEP) * WIDE_STEP, WIDE_STEP / 2);
    }
}

/* The scores of 16 queries (or the `n_q` there are) and WIDE keys, begun or gone on with in `out`. */
static void dots_wide(const uint8_t *a, const uint8_t *b, int steps, bool is_first, int n_q, int n_k, float *out,
                      size_t out_stride) {
    _Alignas(64) float sums[16 * WIDE] = {0};
    for (int i = 0; i < 16 && i < n_q && !is_first; i++)
        for (int t = 0; t < WIDE && t < n_k; t += VL)
            vec_store(sums + i * WIDE + t, vec_load_part(out + (size_t)i * out_stride + t, n_k - t));
    multiply_parts(steps, a, b, sums);
    for (int i = 0; i < 16 && i < n_q; i++)
        for (int t = 0; t < WIDE && t < n_k; t += VL)
            vec_store_part(out + (size_t)i * out_stride + t, vec_load(sums + i * WIDE + t), n_k - t);
}

/* DIM_CHUNK columns from c0. `next` is not asked for: the products are few beside packing, which reads all the time. */
static void dots_chunk(const struct kern_dots *job, int c0) {
    const int dim = job->dim - c0 < DIM_CHUNK ? job->dim - c0 : DIM_CHUNK;
    _Alignas(64) uint8_t a[DIM_CHUNK / STEP * ROWS_STEP], b[DIM_CHUNK / STEP * WIDE_STEP];
    for (int t = 0; t < job->n_k; t += WIDE) {
        pack_keys(job->k + (size_t)t * job->k_stride + c0, job->k_stride, job->n_k - t, dim, b);
        for (int i = 0; i < job->n_q; i += 16) {
            const float *from = job->q + (size_t)i * job->q_stride + c0;
            for (int c = 0; c < dim; c += STEP)
                pack_rows(from + c, job->q_stride, job->n_q - i, dim - c, a + (size_t)(c / STEP) * ROWS_STEP);
            dots_wide(a, b, (dim + STEP - 1) / STEP, c0 == 0, job->n_q - i, job->n_k - t,
                      job->out + (size_t)i * job->out_stride + t, job->out_stride);
        }
    }
}

static void dots(const struct kern_dots *job) {
    tiles_begin();
    for (int c = 0; c < job->dim; c += DIM_CHUNK) dots_chunk(job, c);
    tiles_end();
}

/* One part of page_sum: at most SUM_TILES tiles of rows and SUM_TOKENS positions. */
struct sum_job {
    float *acc;
    const float *keep, *p, *v;
    size_t acc_stride, p_stride, v_stride;
    int m, n_t;
    bool is_first; /* of the positions: keep, or its absence, counts */
};

static void pack_values(const struct sum_job *job, int c, int count, uint8_t *out) {
    for (int t = 0; t < job->n_t; t += 2) {
        uint8_t *line = out + (size_t)(t / STEP) * WIDE_STEP + (size_t)(t % STEP / 2) * TILE_BYTES;
        for (int tile = 0; tile < 4; tile++) {
            const int left = count - tile * 16;
            if (left <= 0) break;
            const float *even = job->v + (size_t)t * job->v_stride + c + tile * 16;
            vec odd = t + 1 < job->n_t ? vec_load_part(even + job->v_stride, left) : vec_zero();
            pack_pairs(vec_load_part(even, left), odd, line + tile * TILE_SIZE, WIDE_STEP / 2);
        }
    }
}

/* What row i, which may be missing, begins with. */
INLINE vec sum_begin(const struct sum_job *job, int i, int c, int left) {
    if (i >= job->m || left <= 0 || (job->is_first && !job->keep)) return vec_zero();
    vec old = vec_load_part(job->acc + (size_t)i * job->acc_stride + c, left);
    return job->is_first ? vec_mul(old, vec_set1(job->keep[i])) : old;
}

/* 16 rows from i0, WIDE columns from c of which `count` exist. */
static void sum_wide(const struct sum_job *job, int i0, int c, int count, const uint8_t *a, const uint8_t *b) {
    _Alignas(64) float sums[16 * WIDE];
    for (int i = 0; i < 16; i++)
        for (int at = 0; at < WIDE; at += VL)
            vec_store(sums + i * WIDE + at, sum_begin(job, i0 + i, c + at, count - at));
    multiply_parts((job->n_t + STEP - 1) / STEP, a, b, sums);
    for (int i = 0; i < 16 && i0 + i < job->m; i++)
        for (int at = 0; at < WIDE && at < count; at += VL)
            vec_store_part(job->acc + (size_t)(i0 + i) * job->acc_stride + c + at, vec_load(sums + i * WIDE + at),
                           count - at);
}

static void run_sum(const struct sum_job *job, int n_c) {
    _Alignas(64) uint8_t a[SUM_TILES * SUM_STEPS * ROWS_STEP], b[SUM_STEPS * WIDE_STEP] = {0};
    for (int i = 0; i < job->m; i += 16)
        for (int t = 0; t < job->n_t; t += STEP)
            pack_rows(job->p + (size_t)i * job->p_stride + t, job->p_stride, job->m - i, job->n_t - t,
                      a + (size_t)(i / 16 * SUM_STEPS + t / STEP) * ROWS_STEP);
    for (int c = 0; c < n_c; c += WIDE) {
        pack_values(job, c, n_c - c, b);
        for (int i = 0; i < job->m; i += 16)
            sum_wide(job, i, c, n_c - c, a + (size_t)(i / 16) * SUM_STEPS * ROWS_STEP, b);
    }
}

static void page_sum(float *acc, size_t acc_stride, const float *keep, const float *p, size_t p_stride, const float *v,
                     size_t v_stride, int m, int n_t, int n_c) {
    struct sum_job job = {.acc_stride = acc_stride, .p_stride = p_stride, .v_stride = v_stride};
    tiles_begin();
    for (int i = 0; i < m; i += SUM_TILES * 16) {
        job.acc = acc + (size_t)i * acc_stride;
        job.keep = keep ? keep + i : NULL;
        job.m = m - i < SUM_TILES * 16 ? m - i : SUM_TILES * 16;
        for (int t = 0; t < n_t || t == 0; t += SUM_TOKENS) {
            job.is_first = t == 0;
            job.p = p + (size_t)i * p_stride + t;
            job.v = v + (size_t)t * v_stride;
            job.n_t = n_t - t < SUM_TOKENS ? n_t - t : SUM_TOKENS;
            run_sum(&job, n_c);
        }
    }
    tiles_end();
}

/* ---- the table ---- */

/* As multiply_steps does it, over operands that stay in the first cache. */
static double bf16_tiles_peak(int rounds) {
    static const _Alignas(64) uint8_t rows[2 * TILE_SIZE], packed[PARTS * TILE_SIZE];
    tiles_begin();
    zero_sums();
    for (int round = 0; round < rounds; round++) multiply_steps(1, (const char *)rows, TILE_BYTES, packed);
    tiles_end();
    return 2.0 * PAIR_ROWS * SET_SUMS * STEP * rounds;
}

void kern_init_amx_bf16(struct kern *kern) {
    kern->name = "amx-bf16";
    kern->tile_order = true;
    kern->gemm[MAT_BF16] = kern->gemm[MAT_FP8] = gemm_parts;
    kern->dots = dots;
    kern->page_sum = page_sum;
    kern->peak[PEAK_BF16] = bf16_tiles_peak;
}
#endif
