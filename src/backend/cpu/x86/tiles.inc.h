/* backend/cpu/x86/tiles.inc.h - the words of the matrix unit (AMX): eight tiles of 16 rows x 64 bytes. With
 * MOEBIUS_TILES_IN_C they are plain C, so that tests can run the kernels where the unit is missing.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. */
#ifndef MOEBIUS_BACKEND_CPU_X86_TILES_INC_H
#define MOEBIUS_BACKEND_CPU_X86_TILES_INC_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { TILES = 8, TILE_ROWS = 16, TILE_BYTES = 64 };

#if defined(MOEBIUS_TILES_IN_C)

static _Thread_local uint8_t tile_data[TILES][TILE_ROWS][TILE_BYTES];

#define tiles_begin() memset(tile_data, 0xee, sizeof tile_data)
#define tiles_end() memset(tile_data, 0xee, sizeof tile_data)
#define tile_zero(T) memset(tile_data[T], 0, sizeof tile_data[T])

static inline void tile_load_rows(int tile, const void *base, size_t stride) {
    for (int i = 0; i < TILE_ROWS; i++)
        memcpy(tile_data[tile][i], (const uint8_t *)base + (size_t)i * stride, TILE_BYTES);
}

static inline void tile_store_rows(int tile, void *base, size_t stride) {
    for (int i = 0; i < TILE_ROWS; i++) memcpy((uint8_t *)base + (size_t)i * stride, tile_data[tile][i], TILE_BYTES);
}

static inline void tile_dot(int c, int a, int b, int b_unsigned) {
    for (int m = 0; m < TILE_ROWS; m++) {
        for (int n = 0; n < TILE_BYTES / 4; n++) {
            int32_t sum;
            memcpy(&sum, &tile_data[c][m][4 * n], sizeof sum);
            for (int k = 0; k < TILE_BYTES; k++) {
                uint8_t byte = tile_data[b][k / 4][4 * n + k % 4];
                sum += (int8_t)tile_data[a][m][k] * (b_unsigned ? (int)byte : (int)(int8_t)byte);
            }
            memcpy(&tile_data[c][m][4 * n], &sum, sizeof sum);
        }
    }
}

/* Subnormal numbers count as 0. */
static inline float tile_flush(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? x * 0 : x;
}

static inline float tile_bf16(uint32_t pair, int odd) {
    uint32_t bits = odd ? pair & 0xffff0000 : pair << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return tile_flush(value);
}

/* Of a dword's two bf16 each has its own sum from 0; both are added to c at the end. The manual's words for TDPBF16PS. */
static inline void tile_dot_bf16_pairs(int c, int a, int b) {
    for (int m = 0; m < TILE_ROWS; m++) {
        float sum[2][TILE_BYTES / 4] = {{0}}, to[TILE_BYTES / 4];
        for (int k = 0; k < TILE_ROWS; k++) {
            uint32_t row[TILE_BYTES / 4], pair;
            memcpy(row, tile_data[b][k], sizeof row);
            memcpy(&pair, &tile_data[a][m][4 * k], sizeof pair);
            for (int odd = 0; odd < 2; odd++) {
                float x = tile_bf16(pair, odd);
                for (int n = 0; n < TILE_BYTES / 4; n++)
                    sum[odd][n] = tile_flush(__builtin_fmaf(x, tile_bf16(row[n], odd), sum[odd][n]));
            }
        }
        memcpy(to, tile_data[c][m], sizeof to);
        for (int n = 0; n < TILE_BYTES / 4; n++)
            to[n] = tile_flush(tile_flush(to[n]) + tile_flush(sum[0][n] + sum[1][n]));
        memcpy(tile_data[c][m], to, sizeof to);
    }
}

#define tile_load(T, BASE, STRIDE) tile_load_rows(T, BASE, STRIDE)
#define tile_store(T, BASE, STRIDE) tile_store_rows(T, BASE, STRIDE)
#define tile_dot_signed(C, A, B) tile_dot(C, A, B, 0)
#define tile_dot_unsigned(C, A, B) tile_dot(C, A, B, 1)
#define tile_dot_bf16(C, A, B) tile_dot_bf16_pairs(C, A, B)

#else

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

static inline void tiles_begin(void) {
    struct tile_config config = {.palette = 1};
    for (int i = 0; i < TILES; i++) {
        config.row_bytes[i] = TILE_BYTES;
        config.rows[i] = TILE_ROWS;
    }
    /* gcc 12 and others say that the instruction reads eight bytes, and may leave out what fills the other 56. */
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

#define tiles_end() _tile_release()
#define tile_zero(T) _tile_zero(T)
/* A compiler may move stores past a load that it does not know to read memory. */
#define tile_load(T, BASE, STRIDE)                                                                                     \
    do {                                                                                                               \
        __asm__ volatile("" ::: "memory");                                                                             \
        _tile_loadd(T, BASE, (size_t)(STRIDE));                                                                        \
    } while (0)
#define tile_store(T, BASE, STRIDE) _tile_stored(T, BASE, (size_t)(STRIDE))
#define tile_dot_signed(C, A, B) _tile_dpbssd(C, A, B)   /* int8 x int8 */
#define tile_dot_unsigned(C, A, B) _tile_dpbsud(C, A, B) /* int8 x uint8 */
#define tile_dot_bf16(C, A, B) _tile_dpbf16ps(C, A, B)

#endif
#endif
