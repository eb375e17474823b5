/* backend/cpu/x86/kern_amx.c - INT4 and INT8 blocks for many tokens on the matrix unit; everything else, few tokens and
 * groups of 32 stay with AVX-512. The sums inside a group are exact integers and groups are added as block.inc.h adds
 * them, so the bits are the same. The Makefile compiles this file alone with the level's instructions.
 *
 * A panel's half of 16 rows x 64 k is a B tile: INT8 as it lies, INT4 with its nibbles spread first. Activations are
 * the A tiles, 16 tokens each, packed once for all panels of a call. Three A tiles meet two B tiles, which makes six
 * sums and eight tiles in all. While the unit works on a block, the vector registers spread the next one's nibbles and
 * add up the one before. */
#if defined(__x86_64__)
#include "backend/cpu/kern.h"

#include "backend/cpu/x86/vec_avx512.inc.h"
#include "backend/cpu/x86/tiles.inc.h"

enum {
    TOKEN_TILES = 3,
    SET_TOKENS = TOKEN_TILES * TILE_ROWS,
    FEW_TOKENS = 5,   /* below, streaming the weights through AVX-512 is faster */
    MAX_BLOCKS = 160, /* of one matrix's row: 20480 k */
    A_TILE = TILE_ROWS * TILE_BYTES,
    A_BLOCK = 2 * TOKEN_TILES * A_TILE, /* [k tile][token tile][16][64] */
};
/* Tile numbers are part of the instruction, and text to the compiler: 0 to 2 and 3 to 5 are sums. */
#define TILE_A 6
#define TILE_B 7

static kern_gemm_q8 *gemm_few;

/* Some panels of one matrix for at most SET_TOKENS tokens. */
struct amx_job {
    const struct mat *w;
    const struct q8_row *x;
    float *const *y;
    int n, blocks, group_size;
    size_t block, panel;
    const uint8_t *a; /* [blocks][A_BLOCK] */
};

static void pack_tokens(const struct q8_row *x, int n, int blocks, uint8_t *out) {
    for (int b = 0; b < blocks; b++)
        for (int k = 0; k < 2; k++)
            for (int t = 0; t < SET_TOKENS; t++, out += TILE_BYTES) {
                ivec line = t < n ? ivec_load(x[t].q + b * BLOCK_COLS + k * TILE_BYTES) : ivec_zero();
                ivec_store(out, line);
            }
}

/* The two B tiles of one k tile of a panel as they are multiplied: signed for INT4, with 128 added for INT8. */
static void spread_nibbles(const uint8_t *p, uint8_t *out) {
    const ivec low = _mm512_set1_epi8(15), zero = _mm512_set1_epi8(8);
    for (int half = 0; half < 2; half++, p += 2 * 512, out += A_TILE)
        for (int line = 0; line < 8; line++) {
            ivec v = ivec_load(p + line * BLOCK_LINE);
            ivec_store(out + line * 64, _mm512_sub_epi8(_mm512_and_si512(v, low), zero));
            ivec_store(out + (8 + line) * 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), low), zero));
        }
}

#define DOT(C, A)                                                                                                      \
    tile_load(TILE_A, A, 64);                                                                                          \
    if (format == MAT_INT4) {                                                                                          \
        tile_dot_signed(C, TILE_A, TILE_B);                                                                            \
    } else {                                                                                                           \
        tile_dot_unsigned(C, TILE_A, TILE_B);                                                                          \
    }

/* Tiles 0 to 5 += one k tile: a [TOKEN_TILES], of which `token_tiles` are worth it, times b [2], `half` bytes apart. */
INLINE void multiply_tile(enum mat_format format, int token_tiles, const uint8_t *a, const uint8_t *b, size_t half) {
    tile_load(TILE_B, b, 64);
    DOT(0, a)
    if (token_tiles > 1) {
        DOT(1, a + A_TILE)
    }
    if (token_tiles > 2) {
        DOT(2, a + 2 * A_TILE)
    }
    tile_load(TILE_B, b + half, 64);
    DOT(3, a)
    if (token_tiles > 1) {
        DOT(4, a + A_TILE)
    }
    if (token_tiles > 2) {
        DOT(5, a + 2 * A_TILE)
    }
}

/* Tiles 0 to 5 to sums [SET_TOKENS][32]; they start again from 0. */
INLINE void take_sums(int32_t *sums) {
    tile_store(0, sums, 128);
    tile_store(1, sums + 16 * 32, 128);
    tile_store(2, sums + 32 * 32, 128);
    tile_store(3, sums + 16, 128);
    tile_store(4, sums + 16 * 32 + 16, 128);
    tile_store(5, sums + 32 * 32 + 16, 128);
}

INLINE void zero_sums(void) {
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    tile_zero(4);
    tile_zero(5);
}

/* f [SET_TOKENS][2] = fma((float)(sum of q * x), wscale * xscale, f), as block.inc.h's block_add_group. */
INLINE void add_group(enum mat_format format, const uint8_t *scales, const struct amx_job *job, int group,
                      const int32_t *sums, vec *f) {
    const vec scale[2] = {vec_load_f16(scales), vec_load_f16(scales + 32)};
    for (int t = 0; t < job->n; t++) {
        vec xscale = vec_set1(job->x[t].scale[group]);
        ivec offset = ivec_set1(format == MAT_INT8 ? 128 * job->x[t].sum[group] : 0);
        for (int half = 0; half < 2; half++) {
            ivec exact = ivec_sub(ivec_load(sums + t * 32 + half * 16), offset);
            f[t * 2 + half] = vec_fma(vec_from_int(exact), vec_mul(scale[half], xscale), f[t * 2 + half]);
        }
    }
}

/* Where group g of a row has its scales: groups of a panel are numbered through its blocks. */
INLINE const uint8_t *group_scales(const struct amx_job *job, const uint8_t *panel, int group, size_t values) {
    int a_block = BLOCK_COLS / job->group_size;
    return panel + (size_t)(group / a_block) * job->block + values + (size_t)(group % a_block) * BLOCK_ROWS * 2;
}

/* One panel. A group is one or two k tiles; its sums are added while the next one is multiplied. */
INLINE void panel_tokens(enum mat_format format, const struct amx_job *job, const uint8_t *panel, vec *f) {
    _Alignas(64) uint8_t spread[2][2 * A_TILE];
    _Alignas(64) int32_t sums[2][SET_TOKENS * 32];
    const int token_tiles = (job->n + TILE_ROWS - 1) / TILE_ROWS, tiles = 2 * job->blocks,
              group_tiles = job->group_size / BLOCK_TILE;
    const size_t tile_bytes = format == MAT_INT4 ? 512 : 1024;
    int group = 0;
    if (format == MAT_INT4) spread_nibbles(panel, spread[0]);
    zero_sums();
    for (int tile = 0; tile < tiles; tile++) {
        const uint8_t *b = panel + (size_t)(tile / 2) * job->block + (size_t)(tile % 2) * tile_bytes;
        const uint8_t *a = job->a + (size_t)(tile / 2) * A_BLOCK + (size_t)(tile % 2) * (A_BLOCK / 2);
        multiply_tile(format, token_tiles, a, format == MAT_INT4 ? spread[tile % 2] : b,
                      format == MAT_INT4 ? A_TILE : 2 * tile_bytes);
        if (format == MAT_INT4 && tile + 1 < tiles) {
            int next = tile + 1;
            spread_nibbles(panel + (size_t)(next / 2) * job->block + (size_t)(next % 2) * tile_bytes, spread[next % 2]);
        }
        if ((tile + 1) % group_tiles) continue;
        take_sums(sums[group % 2]);
        zero_sums();
        if (group > 0) {
            add_group(format, group_scales(job, panel, group - 1, 4 * tile_bytes), job, group - 1,
                      sums[(group - 1) % 2], f);
        }
        group++;
    }
    add_group(format, group_scales(job, panel, group - 1, 4 * tile_bytes), job, group - 1, sums[(group - 1) % 2], f);
}

static void panel_int4(const struct amx_job *job, const uint8_t *panel, vec *f) {
    panel_tokens(MAT_INT4, job, panel, f);
}

static void panel_int8(const struct amx_job *job, const uint8_t *panel, vec *f) {
    panel_tokens(MAT_INT8, job, panel, f);
}

static void set_of_tokens(const struct amx_job *job, int r0, int r1) {
    vec f[SET_TOKENS * 2];
    for (int r = r0; r < r1; r += BLOCK_ROWS) {
        const uint8_t *panel = (const uint8_t *)job->w->data + (size_t)(r / BLOCK_ROWS) * job->panel;
        for (int i = 0; i < SET_TOKENS * 2; i++) f[i] = vec_zero();
        (job->w->format == MAT_INT4 ? panel_int4 : panel_int8)(job, panel, f);
        for (int t = 0; t < job->n; t++)
            for (int half = 0; half < 2; half++) {
                int row = r + 16 * half, count = r1 - row < 16 ? r1 - row : 16;
                if (count > 0) vec_store_part(job->y[t] + row, f[t * 2 + half], count);
            }
    }
}

static void gemm_amx(const struct mat *w, int r0, int r1, const struct q8_row *x, int n, float *const *y,
                     const void *next) {

    int blocks = (w->cols + BLOCK_COLS - 1) / BLOCK_COLS;
    if (n < FEW_TOKENS || w->group_size < BLOCK_TILE || blocks > MAX_BLOCKS) {
        gemm_few(w, r0, r1, x, n, y, next);
        return;
    }
    _Alignas(64) uint8_t a[MAX_BLOCKS * A_BLOCK];
    struct amx_job job = {.w = w, .blocks = blocks, .group_size = w->group_size, .a = a};
    job.block = block_bytes(w->format, w->group_size);
    job.panel = block_panel_bytes(w);
    tiles_begin();
    for (int t = 0; t < n; t += SET_TOKENS) {
        job.n = n - t < SET_TOKENS ? n - t : SET_TOKENS;
        job.x = x + t;
        job.y = y + t;
        pack_tokens(job.x, job.n, blocks, a);
        set_of_tokens(&job, r0, r1);
    }
    tiles_end();
}

/* As multiply_tile does it, over operands that stay in the first cache: two loads of weights and six of tokens for six
 * products. */
static double tiles_peak(int rounds) {
    static const _Alignas(64) uint8_t a[TOKEN_TILES * A_TILE], b[2 * A_TILE];
    tiles_begin();
    zero_sums();
    for (int round = 0; round < rounds; round++) multiply_tile(MAT_INT4, TOKEN_TILES, a, b, A_TILE);
    tiles_end();
    return 2.0 * TILE_ROWS * 16 * TILE_BYTES * 2 * TOKEN_TILES * rounds;
}

void kern_init_amx(struct kern *kern) {
    kern->name = "amx";
    gemm_few = kern->gemm_q8[MAT_INT4];
    kern->gemm_q8[MAT_INT4] = gemm_amx;
    kern->gemm_q8[MAT_INT8] = gemm_amx;
    kern->peak[PEAK_INT8] = tiles_peak;
}
#endif
