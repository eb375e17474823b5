/* The kernels of V4's and V4.1's attention, but for the indexer and the attention over lists, beside plain C in double: compressors in any
 * chunks, rows and queries before attention, what comes after it. No model: odd sizes, several sequences, all formats of the cache. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "backend/cpu/cpu.h"
#include "backend/cuda/params_hybrid.h"
#include "bare_card.h"
#include "survey.h"

static struct cuda card;

static void *taken[64];
static int n_taken;
static void *take(size_t bytes) {
    return memset(taken[n_taken++] = bare_card_memory(&card, bytes), 0, bytes);
}
static void give_all_back(void) {
    while (n_taken) card.driver.memory_free((cuda_address)(uintptr_t)taken[--n_taken]);
}

static void run(enum cuda_kernel kernel, int blocks, const void *params) {
    cuda_launch(&card, kernel, blocks, 0, params);
    cuda_keep(&card, card.driver.stream_wait(card.stream), "waiting for the card");
    if (card.failure.code) card_is_lost(card.failure.message);
}

static uint64_t state = 11;
static float uniform(float low, float high) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (float)(uint32_t)(state >> 33) / 2147483648.0f;
}
static float *numbers(size_t n, float low, float high) {
    float *out = take(n * sizeof *out);
    for (size_t i = 0; i < n; i++) out[i] = uniform(low, high);
    return out;
}

/* ---- compressors ---- */

/* A row's, with more channels than a block has; and an index key's. */
enum { DIMS = 2, SEQS = 3, PAGES = 5, NEAR_PAGES = 3, MOST_TOKENS = 290, SUMS_AT = 64 * 48 };
static const int dims[DIMS] = {272, 24}, tokens[SEQS] = {MOST_TOKENS, 66, 131};

/* Values and gates of all tokens of all sequences; what came out of them; all near parts. */
struct compressing {
    int ratio, overlaps, n_dims;
    int width[DIMS];
    const float *values[SEQS][DIMS], *gates[SEQS][DIMS], *bias[DIMS];
    float *rows[SEQS][DIMS]; /* [tokens][dim], where a window ends */
    uint8_t *near;
    size_t near_bytes;
};

static void open_compressing(struct compressing *c, int ratio) {
    size_t floats = 0;
    *c = (struct compressing){
        .ratio = ratio, .overlaps = ratio == RATIO_SPARSE, .n_dims = ratio == RATIO_SPARSE ? 2 : 1};
    for (int d = 0; d < c->n_dims; d++) {
        c->width[d] = model_compress_dim(ratio, dims[d]);
        if (ratio > 2) c->bias[d] = numbers((size_t)(ratio * c->width[d]), -1, 1); /* V4.1 has none */
        floats += cache_state_floats(dims[d], 0, c->overlaps);
        for (int s = 0; s < SEQS; s++) {
            size_t n = (size_t)(tokens[s] * c->width[d]);
            c->values[s][d] = numbers(n, -2, 2);
            c->gates[s][d] = numbers(n, -6, 6);
            c->rows[s][d] = take((size_t)(tokens[s] * dims[d]) * sizeof(float));
        }
    }
    c->near_bytes = SUMS_AT + (floats * sizeof(float) + 15) / 16 * 16;
    c->near = take(SEQS * PAGES * c->near_bytes);
}

static int near_place(int seq, int page) {
    return (seq * PAGES + page) * 7 % (SEQS * PAGES);
}

/* One step: rows [first, first + n) of each sequence. */
static void compress_step(struct compressing *c, const int *first, const int *n) {
    int rows = 0, blocks = 0, at[SEQS];
    for (int s = 0; s < SEQS; s++) rows += n[s];
    struct compress_params p = {.near_cache = c->near,
                                .near_bytes = c->near_bytes,
                                .sums_at = SUMS_AT,
                                .near_pages = NEAR_PAGES,
                                .ratio = c->ratio,
                                .overlaps = c->overlaps};
    struct seq_rows *seqs = take((SEQS + 1) * sizeof *seqs); /* one of them without rows */
    int32_t *near = take((size_t)rows * NEAR_PAGES * sizeof *near);
    float *values[DIMS];
    size_t state_at = 0;
    for (int d = 0; d < c->n_dims; d++) {
        size_t width = (size_t)c->width[d];
        float *gates = take((size_t)rows * width * 4);
        values[d] = take((size_t)rows * width * 4);
        for (int s = 0, row = 0; s < SEQS; row += n[s++]) {
            at[s] = row;
            memcpy(values[d] + (size_t)row * width, c->values[s][d] + (size_t)first[s] * width,
                   (size_t)n[s] * width * 4);
            memcpy(gates + (size_t)row * width, c->gates[s][d] + (size_t)first[s] * width, (size_t)n[s] * width * 4);
        }
        p.part[d] = (struct compress_part){values[d], gates,   c->bias[d],
                                           state_at,  dims[d], (dims[d] + BLOCK_THREADS - 1) / BLOCK_THREADS};
        state_at += cache_state_floats(dims[d], 0, c->overlaps);
        blocks += p.part[d].blocks;
    }
    for (int s = 0, k = 0; s < SEQS; s++) {
        if (n[s]) seqs[k++] = (struct seq_rows){at[s], n[s], first[s], 0};
        for (int i = 0; i < n[s] * NEAR_PAGES; i++) {
            int page = (first[s] + i / NEAR_PAGES) / PAGE_TOKENS - i % NEAR_PAGES;
            near[at[s] * NEAR_PAGES + i] = page < 0 ? -1 : near_place(s, page);
        }
    }
    p.seqs = seqs;
    p.near = near;
    run(KERNEL_COMPRESS_SUMS, blocks * (SEQS + 1), &p);
    for (int s = 0; s < SEQS; s++) {
        for (int i = 0; i < n[s]; i++) {
            if ((first[s] + i + 1) % c->ratio) continue;
            for (int d = 0; d < c->n_dims; d++) {
                memcpy(c->rows[s][d] + (first[s] + i) * dims[d], values[d] + (at[s] + i) * c->width[d],
                       (size_t)dims[d] * sizeof(float));
            }
        }
    }
}

/* All tokens, in steps of so many of each sequence. */
static void compress_in(struct compressing *c, const int *chunk) {
    int first[SEQS] = {0}, n[SEQS], before = n_taken, left = 1;
    memset(c->near, 0xff, SEQS * PAGES * c->near_bytes); /* NaN: nothing is read before it is written */
    while (left) {
        left = 0;
        for (int s = 0; s < SEQS; s++) {
            n[s] = tokens[s] - first[s] < chunk[s] ? tokens[s] - first[s] : chunk[s];
            left += n[s];
        }
        if (left) compress_step(c, first, n);
        for (int s = 0; s < SEQS; s++) first[s] += n[s];
        while (n_taken > before) card.driver.memory_free((cuda_address)(uintptr_t)taken[--n_taken]);
    }
}

/* A channel of the row that the window ending with token `last` makes. */
static double compressed(const struct compressing *c, int s, int d, int last, int channel) {
    const int width = c->width[d], own = width - dims[d], begin = last + 1 - c->ratio;
    double sum = 0, total = 0;
    for (int t = c->overlaps ? begin - c->ratio : begin; t <= last; t++) {
        if (t < 0) continue;
        int at = t * width + (t < begin ? 0 : own) + channel;
        int bias = t % c->ratio * width + (t < begin ? 0 : own) + channel;
        double share = exp((double)c->gates[s][d][at] + (c->bias[d] ? (double)c->bias[d][bias] : 0));
        total += share;
        sum += share * (double)c->values[s][d][at];
    }
    return sum / total;
}

static void check_compressed(const struct compressing *c) {
    for (int s = 0; s < SEQS; s++) {
        for (int d = 0; d < c->n_dims; d++) {
            struct survey survey = {0};
            for (int last = c->ratio - 1; last < tokens[s]; last += c->ratio) {
                for (int i = 0; i < dims[d]; i++) {
                    survey_add(&survey, (size_t)i, (size_t)last, compressed(c, s, d, last, i),
                               (double)c->rows[s][d][last * dims[d] + i], 1e-5);
                }
            }
            survey_tell(&survey, "ratio %d, sequence %d, part %d", c->ratio, s, d);
        }
    }
}

/* Rows, and sums that are left, have the same bits in any chunks. */
static void check_chunks(struct compressing *c, const int *chunk) {
    float *rows[SEQS][DIMS];
    size_t near_bytes = SEQS * PAGES * c->near_bytes;
    uint8_t *near = memcpy(take(near_bytes), c->near, near_bytes);
    for (int s = 0; s < SEQS; s++) {
        for (int d = 0; d < c->n_dims; d++) {
            rows[s][d] = c->rows[s][d];
            c->rows[s][d] = take((size_t)(tokens[s] * dims[d]) * sizeof(float));
        }
    }
    compress_in(c, chunk);
    for (int s = 0; s < SEQS; s++) {
        for (int d = 0; d < c->n_dims; d++) {
            struct survey survey = {0};
            survey_bits(&survey, rows[s][d], c->rows[s][d], (size_t)dims[d], (size_t)tokens[s]);
            survey_tell(&survey, "ratio %d, sequence %d, part %d: bits in chunks of %d", c->ratio, s, d, chunk[s]);
            c->rows[s][d] = rows[s][d];
        }
    }
    if (memcmp(near, c->near, near_bytes))
        complain("ratio %d: other sums are left in chunks of %d", c->ratio, chunk[0]);
}

static void test_compressors(void **unused) {
    (void)unused;
    static const int ratios[] = {RATIO_SPARSE, RATIO_DENSE, 2};
    for (int i = 0; i < 3; i++) {
        struct compressing c;
        open_compressing(&c, ratios[i]);
        compress_in(&c, (const int[]){MOST_TOKENS, MOST_TOKENS, MOST_TOKENS});
        check_compressed(&c);
        check_chunks(&c, (const int[]){61, 1, 3});
        check_chunks(&c, (const int[]){5, 65, 64});
        give_all_back();
    }
    no_complaints();
}

/* ---- before attention ---- */

enum { ROWS = 7, HEADS = 11, LORA = 208, ROPE = 16, DIM = LORA + ROPE, KEY_DIM = 40, INDEX_HEADS = 5, FAR_PAGES = 6 };
static const int row_pos[ROWS] = {0, 3, 4, 127, 66, 191, 323}; /* 66: just as many keys as topk */
static const float eps = 1e-6f;

struct rows_case {
    enum kv_format kv;
    int ratio; /* 1, 2: V4.1, which rounds what it keeps */
    struct hybrid_rows_params p;
    float *index_q; /* before */
    const float *far, *window;
    uint8_t *pages, *near;
    size_t near_size, pages_size;
};

static bool is_csa2(const struct rows_case *c) {
    return c->ratio == 1 || c->ratio == 2;
}

static struct cached_rows some_rows(int dim, int stride, const float *rotation) {
    return (struct cached_rows){
        numbers((size_t)(ROWS * stride), -3, 3), numbers((size_t)dim, 0.5f, 1.5f), rotation, (size_t)stride, dim, 0};
}

static const float *rotations(void) {
    float *out = take(ROWS * ROPE * sizeof *out);
    for (int i = 0; i < ROWS * ROPE / 2; i++) {
        double angle = (double)uniform(-3, 3);
        out[2 * i] = (float)cos(angle);
        out[2 * i + 1] = (float)sin(angle);
    }
    return out;
}

static void open_rows(struct rows_case *c, enum kv_format kv, int ratio, bool indexed) {
    const size_t row_bytes = cache_row_bytes(LORA, ROPE, kv), far_bytes = cache_compressed_bytes(LORA, ROPE, kv);
    const size_t heads = ROWS * HEADS, index_q = ROWS * INDEX_HEADS * KEY_DIM;
    int32_t *pos = take(ROWS * sizeof *pos), *page = take(ROWS * sizeof *page);
    int32_t *near = take(ROWS * NEAR_PAGES * sizeof *near);
    *c = (struct rows_case){.kv = kv, .ratio = ratio};
    for (int r = 0; r < ROWS; r++) {
        pos[r] = row_pos[r];
        page[r] = (r * 5 + 2) % FAR_PAGES;
        near[r * NEAR_PAGES] = ROWS - 1 - r;
        for (int i = 1; i < NEAR_PAGES; i++) near[r * NEAR_PAGES + i] = -1;
    }
    size_t page_bytes = cache_far_bytes(LORA, ROPE, KEY_DIM, ratio, kv), near_bytes = 64 * row_bytes + 32;
    c->pages_size = FAR_PAGES * page_bytes;
    c->near_size = ROWS * near_bytes;
    c->pages = memset(take(c->pages_size + 16), 0xa5, c->pages_size + 16);
    c->near = memset(take(c->near_size), 0xa5, c->near_size);
    c->p = (struct hybrid_rows_params){.own = some_rows(DIM, DIM, rotations()),
                                       .q = numbers(heads * DIM, -2, 2),
                                       .q_latent = take(heads * DIM * 2),
                                       .pos = pos,
                                       .page = page,
                                       .near = near,
                                       .pages = c->pages,
                                       .near_cache = c->near,
                                       .row_bytes = row_bytes,
                                       .far_bytes = far_bytes,
                                       .page_bytes = page_bytes,
                                       .near_bytes = near_bytes,
                                       .fault = take(8),
                                       .heads = HEADS,
                                       .kv_lora = LORA,
                                       .rope = ROPE,
                                       .fp8 = kv >= KV_FP8,
                                       .csa2 = is_csa2(c),
                                       .ratio = ratio,
                                       .near_pages = NEAR_PAGES,
                                       .index_heads = INDEX_HEADS,
                                       .topk = 16,
                                       .fault_key = 21,
                                       .eps = eps};
    memset(c->p.fault, 0xff, 8);
    if (ratio) c->p.compressed = some_rows(DIM, model_compress_dim(ratio, DIM), rotations());
    if (cache_has_keys(ratio))
        c->p.key = some_rows(KEY_DIM, is_csa2(c) ? KEY_DIM : 2 * KEY_DIM, c->p.compressed.rotation);
    c->p.keys = (struct index_keys){.data = c->pages + (size_t)cache_compressed_rows(ratio) * far_bytes,
                                    .page_bytes = page_bytes,
                                    .ratio = ratio,
                                    .dim = KEY_DIM,
                                    .fp8 = kv >= KV_FP8,
                                    .page_shift = ratio == 1   ? 6
                                                  : ratio == 2 ? 5
                                                               : 4,
                                    .csa2 = is_csa2(c)};
    if (!cache_has_keys(ratio) || !indexed) return;
    c->p.index_q = numbers(index_q, -2, 2);
    c->index_q = memcpy(take(index_q * 4), c->p.index_q, index_q * 4);
}

static void run_rows(const struct rows_case *c) {
    int parts = 1 + (c->ratio > 0) + cache_has_keys(c->ratio) + (HEADS + BLOCK_WARPS - 1) / BLOCK_WARPS;
    run(KERNEL_HYBRID_ROWS, ROWS * (parts + (c->p.index_q != NULL)), &c->p);
}

static void turn(const float *rotation, int row, double sign, double *pairs) {
    for (int i = 0; i < ROPE; i += 2) {
        double a = pairs[i], b = pairs[i + 1], cos = (double)rotation[row * ROPE + i];
        double sin = sign * (double)rotation[row * ROPE + i + 1];
        pairs[i] = a * cos - b * sin;
        pairs[i + 1] = a * sin + b * cos;
    }
}

/* [dim] values normed, with gains or without, and the last of them turned. */
static void norm_and_turn(const float *from, const float *gain, int dim, const float *rotation, int row, double *out) {
    double squares = 0;
    for (int i = 0; i < dim; i++) squares += (double)from[i] * (double)from[i];
    double factor = 1 / sqrt(squares / dim + (double)eps);
    for (int i = 0; i < dim; i++) out[i] = (double)from[i] * factor * (gain ? (double)gain[i] : 1);
    turn(rotation, row, 1, out + dim - ROPE);
}

/* e4m3 has 3 bits behind the first, and steps of 2^-9 of its scale. */
static void check_fp8(struct survey *s, int row, const uint8_t *at, float scale, const double *want, int from, int n) {
    double amax = 0;
    for (int i = from; i < from + n; i++) amax = fmax(amax, fabs(want[i]));
    survey_add(s, (size_t)from, (size_t)row, amax / 448, (double)scale, amax / 448 * 1e-5);
    for (int i = from; i < from + n; i++) {
        double found = (double)e4m3_to_f32(at[i]) * (double)scale;
        survey_add(s, (size_t)i, (size_t)row, want[i], found, fabs(want[i]) / 15.99 + (double)scale / 1023);
    }
}

static void check_bf16(struct survey *s, int row, const void *at, const double *want, int from, int n) {
    for (int i = from; i < from + n; i++) {
        uint16_t bits;
        memcpy(&bits, (const uint8_t *)at + 2 * (i - from), 2);
        survey_add(s, (size_t)i, (size_t)row, want[i], (double)bf16_to_f32(bits), fabs(want[i]) / 255 + 1e-6);
    }
}

/* What V4.1 keeps: how the CPU unpacks it, and how it rounds (cache_round.c). */
static const struct kept {
    void (*unpack)(const uint8_t *at, int n, float *values);
    void (*round)(float *values, int n);
} own_row = {csa2_unpack_row, csa2_round_row}, far_row = {csa2_unpack_compressed, csa2_round_compressed},
  index_key = {csa2_unpack_key, csa2_round_key};

/* What is wanted is computed in double: of a row's values one or another may lie just where rounding turns. */
static void check_kept(struct survey *s, int row, const struct kept *kept, const float *found, const double *want,
                       int n) {
    float rounded[DIM];
    int turned = 0;
    for (int i = 0; i < n; i++) rounded[i] = (float)want[i];
    kept->round(rounded, n);
    for (int i = 0; i < n; i++) {
        const bool is_turned = fabsf(rounded[i] - found[i]) > 0;
        if (is_turned && fabs(want[i] - (double)found[i]) <= 0.3 * fabs(want[i]) && turned++ < 2) continue;
        survey_add(s, (size_t)i, (size_t)row, (double)rounded[i], (double)found[i], 0);
    }
}

static void check_kept_at(struct survey *s, const struct rows_case *c, int row, const struct kept *kept,
                          const uint8_t *at, const double *want, int n) {
    float found[DIM];
    for (int i = 0; i < n && c->kv == KV_BF16; i++) {
        uint16_t bits;
        memcpy(&bits, at + 2 * (size_t)i, 2);
        found[i] = bf16_to_f32(bits);
    }
    if (c->kv == KV_CSA2) kept->unpack(at, n, found);
    check_kept(s, row, kept, found, want, n);
}

/* A row of the cache beside the numbers that it holds. */
static void check_row(struct survey *s, const struct rows_case *c, int row, const uint8_t *at, const double *want) {
    if (c->kv == KV_BF16) {
        check_bf16(s, row, at, want, 0, DIM);
        return;
    }
    float scales[2];
    memcpy(scales, at + LORA, sizeof scales);
    check_fp8(s, row, at, scales[0], want, 0, KV_SCALE_GROUP);
    check_fp8(s, row, at, scales[1], want, KV_SCALE_GROUP, LORA - KV_SCALE_GROUP);
    check_bf16(s, row, at + LORA + sizeof scales, want, LORA, ROPE);
}

/* Of a row's bytes, or a compressed one's. */
static size_t row_used(const struct rows_case *c, bool far) {
    if (c->kv == KV_CSA2) return far ? DIM / 2 + DIM / 16 : DIM + DIM / 32;
    return c->kv == KV_FP8 ? LORA + 8 + 2 * ROPE : c->p.row_bytes;
}

/* Looked at: nothing else may have been written. */
static void forget(uint8_t *at, size_t bytes) {
    memset(at, 0xa5, bytes);
}

static void check_own(const struct rows_case *c) {
    struct survey survey = {0};
    double want[DIM];
    for (int r = 0; r < ROWS; r++) {
        uint8_t *at = c->near + (size_t)(ROWS - 1 - r) * c->p.near_bytes + (size_t)(row_pos[r] % 64) * c->p.row_bytes;
        norm_and_turn(c->p.own.values + r * DIM, c->p.own.gain, DIM, c->p.own.rotation, r, want);
        if (is_csa2(c)) {
            check_kept_at(&survey, c, r, &own_row, at, want, DIM);
        } else {
            check_row(&survey, c, r, at, want);
        }
        forget(at, row_used(c, false));
    }
    survey_tell(&survey, "kv %d, ratio %d: tokens' rows", c->kv, c->ratio);
}

static void check_keys(const struct rows_case *c, struct survey *s, int row) {
    const int slot = row_pos[row] % 64 / c->ratio;
    const size_t key_bytes = c->kv == KV_CSA2  ? cache_key_bytes(KEY_DIM, c->kv)
                             : c->kv == KV_FP8 ? KEY_DIM
                                               : 2 * KEY_DIM;
    uint8_t *keys = c->p.keys.data + (size_t)c->p.page[row] * c->p.page_bytes, *at = keys + (size_t)slot * key_bytes;
    double want[KEY_DIM];
    norm_and_turn(c->p.key.values + (size_t)row * c->p.key.stride, c->p.key.gain, KEY_DIM, c->p.key.rotation, row,
                  want);
    if (is_csa2(c)) {
        check_kept_at(s, c, row, &index_key, at, want, KEY_DIM);
    } else if (c->kv == KV_FP8) {
        float scale;
        uint8_t *scale_at = keys + 16 * KEY_DIM + 4 * slot;
        memcpy(&scale, scale_at, 4);
        check_fp8(s, row, at, scale, want, 0, KEY_DIM);
        forget(scale_at, 4);
    } else {
        check_bf16(s, row, at, want, 0, KEY_DIM);
    }
    forget(at, key_bytes);
}

static void check_windows(const struct rows_case *c) {
    struct survey rows = {0}, keys = {0};
    double want[DIM];
    for (int r = 0; r < ROWS && c->ratio; r++) {
        if ((row_pos[r] + 1) % c->ratio) continue;
        const size_t slot = c->ratio < 64 ? (size_t)(row_pos[r] % 64 / c->ratio) : 0;
        uint8_t *at = c->pages + (size_t)c->p.page[r] * c->p.page_bytes + slot * c->p.far_bytes;
        norm_and_turn(c->p.compressed.values + (size_t)r * c->p.compressed.stride, c->p.compressed.gain, DIM,
                      c->p.compressed.rotation, r, want);
        if (is_csa2(c)) {
            check_kept_at(&rows, c, r, &far_row, at, want, DIM);
        } else {
            check_row(&rows, c, r, at, want);
        }
        forget(at, row_used(c, true));
        if (cache_has_keys(c->ratio)) check_keys(c, &keys, r);
    }
    survey_tell(&rows, "kv %d, ratio %d: compressed rows", c->kv, c->ratio);
    survey_tell(&keys, "kv %d: index keys", c->kv);
}

static void check_queries(const struct rows_case *c) {
    struct survey survey = {0}, indexed = {0};
    double want[DIM];
    for (int i = 0; i < ROWS * HEADS; i++) {
        norm_and_turn(c->p.q + i * DIM, NULL, DIM, c->p.own.rotation, i / HEADS, want);
        for (int k = 0; k < DIM && is_csa2(c); k++) want[k] = (double)c->p.q[i * DIM + k];
        if (is_csa2(c)) turn(c->p.own.rotation, i / HEADS, 1, want + LORA);
        check_bf16(&survey, i, c->p.q_latent + i * DIM, want, 0, DIM);
    }
    survey_tell(&survey, "ratio %d: queries", c->ratio);
    for (int i = 0; i < ROWS * INDEX_HEADS && c->index_q; i++) {
        int row = i / INDEX_HEADS;
        for (int k = 0; k < KEY_DIM; k++) want[k] = (double)c->index_q[i * KEY_DIM + k];
        const bool is_sparse = (row_pos[row] + 1) / c->ratio > c->p.topk;
        if (is_sparse) turn(c->p.own.rotation, row, 1, want + KEY_DIM - ROPE);
        if (is_sparse && is_csa2(c)) {
            check_kept(&indexed, i, &index_key, c->p.index_q + i * KEY_DIM, want, KEY_DIM);
            continue;
        }
        for (int k = 0; k < KEY_DIM; k++) {
            survey_add(&indexed, (size_t)k, (size_t)i, want[k], (double)c->p.index_q[i * KEY_DIM + k], 1e-5);
        }
    }
    survey_tell(&indexed, "the indexer's queries");
}

static void check_untouched(const struct rows_case *c) {
    size_t touched = 0;
    for (size_t i = 0; i < c->near_size; i++) touched += c->near[i] != 0xa5;
    for (size_t i = 0; i < c->pages_size + 16; i++) touched += c->pages[i] != 0xa5;
    if (touched)
        complain("kv %d, ratio %d: %zu bytes of the cache written that are no row's", c->kv, c->ratio, touched);
}

static void test_rows(void **unused) {
    (void)unused;
    static const int ratios[] = {0, RATIO_SPARSE, RATIO_DENSE, RATIO_SPARSE, 1, 2, 1};
    for (int i = 0; i < 14; i++) {
        struct rows_case c;
        const enum kv_format fp8 = ratios[i / 2] == 1 || ratios[i / 2] == 2 ? KV_CSA2 : KV_FP8;
        open_rows(&c, i % 2 ? fp8 : KV_BF16, ratios[i / 2], i / 2 == 3 || i / 2 >= 5);
        run_rows(&c);
        check_own(&c);
        check_windows(&c);
        check_queries(&c);
        check_untouched(&c);
        if (*c.p.fault != ~0ull) complain("kv %d, ratio %d: a fault where there is none", c.kv, c.ratio);
        give_all_back();
    }
    no_complaints();
}

/* A bad number is blamed on its row, but for one in a row that no window's end makes. */
static void test_faults(void **unused) {
    (void)unused;
    for (int i = 0; i < 5; i++) {
        struct rows_case c;
        open_rows(&c, KV_BF16, RATIO_SPARSE, false);
        float *places[] = {(float *)(uintptr_t)c.p.own.values + 2 * DIM + 7,
                           (float *)(uintptr_t)c.p.q + (2 * HEADS + 10) * DIM,
                           (float *)(uintptr_t)c.p.compressed.values + 3 * 2 * DIM + 223,
                           (float *)(uintptr_t)c.p.key.values + 3 * 2 * KEY_DIM,
                           (float *)(uintptr_t)c.p.compressed.values + 2 * 2 * DIM};
        static const int rows[] = {2, 2, 3, 3, -1};
        *places[i] = i % 2 ? NAN : INFINITY;
        run_rows(&c);
        unsigned long long want = rows[i] < 0 ? ~0ull : 21ull << 32 | (unsigned)rows[i];
        if (*c.p.fault != want) complain("bad number %d: fault %llx, expected %llx", i, *c.p.fault, want);
        give_all_back();
    }
    no_complaints();
}

/* ---- after attention ---- */

enum { SLOTS = 20 };

static void attended(const struct hybrid_merge_params *p, int row, int head, int slots, double *out) {
    double max = (double)p->sinks[head], total = 0;
    const size_t width = DIM + 2;
    const float *part = p->partial + (size_t)(p->rows.slot_first[row] * HEADS + head) * width;
    for (int s = 0; s < slots; s++) max = fmax(max, (double)part[(size_t)s * HEADS * width + DIM]);
    for (int i = 0; i < DIM; i++) out[i] = 0;
    for (int s = 0; s < slots; s++, part += HEADS * width) {
        double share = exp((double)part[DIM] - max);
        total += share * (double)part[DIM + 1];
        for (int i = 0; i < DIM; i++) out[i] += share * (double)part[i];
    }
    total += exp((double)p->sinks[head] - max);
    for (int i = 0; i < DIM; i++) out[i] /= total;
    turn(p->rotation, row, -1, out + LORA);
}

/* Lists of 1 to 5 splits; sinks far below all scores, among them, and far above. */
static void check_merge(int splits) {
    static const int pos[ROWS] = {0, 4000, 300, 1023, 99, 2200, 17}, slots[ROWS] = {1, 5, 1, 2, 1, 3, 1};
    int32_t *position = take(sizeof pos), *first = take(sizeof pos), *count = take(sizeof pos), at = 0;
    float *partial = numbers(SLOTS * HEADS * (DIM + 2), -3, 3), *sinks = numbers(HEADS, -60, 60);
    uint16_t *out = memset(take(ROWS * HEADS * DIM * 2), 0x77, ROWS * HEADS * DIM * 2);
    double want[DIM];
    struct survey survey = {0};
    for (int r = 0; r < ROWS; r++) {
        position[r] = pos[r];
        first[r] = at;
        count[r] = r == 2 ? 0 : 1; /* it takes another form of attention */
        at += splits == 1 ? 1 : slots[r];
    }
    for (int i = 0; i < SLOTS * HEADS; i++) {
        partial[i * (DIM + 2) + DIM] = uniform(-20, 20);
        partial[i * (DIM + 2) + DIM + 1] = uniform(1, 200);
    }
    const struct hybrid_merge_params p = {
        .rows = {position, first, count, .ratio = 4, .topk = 1000, .window = 128, .splits = splits},
        .partial = partial,
        .sinks = sinks,
        .rotation = rotations(),
        .attended = out,
        .heads = HEADS,
        .dim = DIM,
        .rope = ROPE};
    run(KERNEL_HYBRID_MERGE, ROWS * ((HEADS + BLOCK_WARPS - 1) / BLOCK_WARPS), &p);
    for (int i = 0; i < ROWS * HEADS; i++) {
        int row = i / HEADS;
        attended(&p, row, i % HEADS, splits == 1 ? 1 : slots[row], want);
        if (row != 2) check_bf16(&survey, i, out + i * DIM, want, 0, DIM);
        for (int c = 0; c < DIM && row == 2; c++)
            survey_add(&survey, (size_t)c, (size_t)i, 0x7777, out[i * DIM + c], 0);
    }
    survey_tell(&survey, "merged, %d splits", splits);
    give_all_back();
}

static void test_merge(void **unused) {
    (void)unused;
    check_merge(8);
    check_merge(1);
    no_complaints();
}

static int open_card(void **unused) {
    (void)unused;
    bare_card_open(&card, "test");
    return 0;
}
static int close_card(void **unused) {
    (void)unused;
    cuda_card_close(&card.driver, &card.card);
    cuda_driver_close(&card.driver);
    return 0;
}

int main(int n, char **arguments) {
    static struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compressors),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_merge),
    };
    return survey_run(n, arguments, tests, sizeof tests / sizeof *tests, open_card, close_card);
}
