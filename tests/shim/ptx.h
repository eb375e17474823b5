/* tests/shim/ptx.h - what PTX means, for the C that ptx_to_c.py makes of it: written from NVIDIA's "Parallel
 * Thread Execution ISA" (version 9.0), not from shim.h and fibre.c, so that the two are two readings of it; tests/ptx holds them together. Of the shim
 * it uses only who runs: fibres, their meetings and barriers, and copies that arrive when waited for.
 *
 * An address in the global space is the machine's. Those in others are small numbers, each space's own, so that one that is
 * taken for another's ends the program. So does what is not aligned, and what is past the end of the block's shared memory, of the
 * parameters or of a thread's own memory; global memory has pages for that. */
#ifndef MOEBIUS_TESTS_SHIM_PTX_H
#define MOEBIUS_TESTS_SHIM_PTX_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "fibre.h"

/* Where the spaces begin. A card's shared memory begins at 1024, too. */
#define PTX_SHARED UINT64_C(0x400)
#define PTX_PARAM UINT64_C(0x100000)
#define PTX_LOCAL UINT64_C(0x200000)
#define PTX_GLOBAL UINT64_C(0x300000)

/* A thread in its kernel. */
struct ptx_place {
    const char *kernel;
    const void *params;
    uint8_t *local;
    uint64_t params_bytes, local_bytes;
    bool waited; /* for the kernel before this one */
};
#define PTX_HERE &place, PTX_LINE

#define PTX_KERNEL(name, params_bytes_, own_bytes, local_bytes_, waits)                                                \
    static void ptx_##name(struct ptx_place place);                                                                    \
    static void name(const void *params) {                                                                             \
        uint8_t local[local_bytes_] __attribute__((aligned(16)));                                                      \
        memset(local, 0xff, sizeof local);                                                                             \
        ptx_##name((struct ptx_place){#name, params, local, params_bytes_, sizeof local, !(waits)});                   \
    }                                                                                                                  \
    __attribute__((constructor)) static void name##_register(void) {                                                   \
        shim_register(#name, name, params_bytes_, own_bytes);                                                          \
    }                                                                                                                  \
    static void ptx_##name(struct ptx_place place)

/* `line` of the kernel's PTX. */
void ptx_refuse(const struct ptx_place *place, int line, const char *what, uint64_t address, size_t bytes)
    __attribute__((noreturn, cold));

/* --- state spaces --------------------------------------------------------------------------------------------------- */

static inline void ptx_check(const struct ptx_place *place, uint64_t address, uint64_t first, uint64_t room,
                             size_t bytes, int line, const char *what) {
    if (address % bytes) ptx_refuse(place, line, "an address that is not aligned", address, bytes);
    if (address - first > room - bytes || address < first) ptx_refuse(place, line, what, address, bytes);
}
static inline void *ptx_shared(const struct ptx_place *place, uint64_t address, size_t bytes, int line) {
    ptx_check(place, address, PTX_SHARED, (uint64_t)shim_shared_bytes, bytes, line, "not in the block's shared memory");
    return shim_shared + (address - PTX_SHARED);
}
static inline void *ptx_param(const struct ptx_place *place, uint64_t address, size_t bytes, int line) {
    ptx_check(place, address, PTX_PARAM, place->params_bytes, bytes, line, "not in the kernel's parameters");
    return (void *)((uintptr_t)place->params + (address - PTX_PARAM)); /* nothing stores there */
}
static inline void *ptx_local(const struct ptx_place *place, uint64_t address, size_t bytes, int line) {
    ptx_check(place, address, PTX_LOCAL, place->local_bytes, bytes, line, "not in the thread's own memory");
    return place->local + (address - PTX_LOCAL);
}
/* Before the kernel before this one has ended (griddepcontrol.wait), only what no kernel of a step writes may be read. */
static inline void *ptx_global(const struct ptx_place *place, uint64_t address, size_t bytes, int line) {
    if (!place->waited)
        ptx_refuse(place, line, "in use by the kernel before this one, which has not ended", address, bytes);
    ptx_check(place, address, PTX_GLOBAL, UINT64_MAX - PTX_GLOBAL, bytes, line, "not in global memory");
    return (void *)(uintptr_t)address;
}
/* What is loaded by ld.global.nc is not written in the same kernel, by no thread of any block. */
enum ptx_use { PTX_CONSTANT = 1, PTX_STORED = 2 };
void ptx_note(const struct ptx_place *place, int line, uint64_t address, size_t bytes, enum ptx_use use);
static inline void *ptx_constant(const struct ptx_place *place, uint64_t address, size_t bytes, int line) {
    ptx_check(place, address, PTX_GLOBAL, UINT64_MAX - PTX_GLOBAL, bytes, line, "not in global memory");
    ptx_note(place, line, address, bytes, PTX_CONSTANT);
    return (void *)(uintptr_t)address;
}
static inline void *ptx_stored(const struct ptx_place *place, uint64_t address, size_t bytes, int line) {
    void *at = ptx_global(place, address, bytes, line);
    ptx_note(place, line, address, bytes, PTX_STORED);
    return at;
}
static inline void *ptx_hint(const struct ptx_place *place, uint64_t address, size_t bytes, int line) {
    return (void)place, (void)bytes, (void)line, (void *)(uintptr_t)address;
}

/* --- values --------------------------------------------------------------------------------------------------------- */

static inline float ptx_as_f32(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t ptx_bits_b32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline double ptx_as_f64(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint64_t ptx_bits_b64(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* bfi: `a`'s lowest bits in `b`'s place from bit `at & 0xff` on, `n & 0xff` of them, as far as there are. */
static inline uint64_t ptx_bfi(uint64_t a, uint64_t b, uint32_t at, uint32_t n, uint32_t width) {
    for (uint32_t i = 0, first = at & 0xff; i < (n & 0xff) && first + i < width; i++) {
        uint64_t bit = UINT64_C(1) << (first + i);
        b = a >> i & 1 ? b | bit : b & ~bit;
    }
    return b;
}
/* bfe, signed: bits that are not there are like the last one that is. */
static inline int32_t ptx_bfe(int32_t a, uint32_t at, uint32_t n) {
    uint32_t first = at & 0xff, bits = n & 0xff, out = 0;
    uint32_t last = bits == 0 ? 32 : first + bits - 1 < 31 ? first + bits - 1 : 31;
    for (uint32_t i = 0; i < 32; i++) {
        uint32_t from = i < bits && first + i < 32 ? first + i : last;
        out |= (from < 32 ? (uint32_t)a >> from & 1 : 0) << i;
    }
    return (int32_t)out;
}
/* prmt: a byte of {b, a} for each four bits of `pick`; their highest one asks for its sign eight times. */
static inline uint32_t ptx_prmt(uint32_t a, uint32_t b, uint32_t pick) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t select = pick >> 4 * i & 0xf, word = select & 4 ? b : a;
        uint32_t byte = word >> 8 * (select & 3) & 0xff;
        if (select & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << 8 * i;
    }
    return out;
}

/* min and max: a number beats what is none, +0 beats -0. */
static inline float ptx_max(float a, float b) {
    if (a != a || b != b) return a == a ? a : b == b ? b : ptx_as_f32(0x7fffffff);
    return a > b || (a == b && !signbit(a)) ? a : b;
}
static inline float ptx_min(float a, float b) {
    if (a != a || b != b) return a == a ? a : b == b ? b : ptx_as_f32(0x7fffffff);
    return a < b || (a == b && signbit(a)) ? a : b;
}
float ptx_fma_down(float a, float b, float c);
float ptx_add_to_zero(float a, float b);
float ptx_div_approx(float a, float b);
float ptx_rcp_approx_ftz(float a);
float ptx_rsqrt_approx(float a);
float ptx_ex2_approx_ftz(float a);
float ptx_half(uint16_t bits);
uint32_t ptx_bf16(float value);
uint32_t ptx_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);

/* --- warps and blocks ------------------------------------------------------------------------------------------------ */

enum ptx_shuffle { PTX_UP, PTX_BFLY };

void ptx_barrier(const struct ptx_place *place, int line);
void ptx_warp_barrier(const struct ptx_place *place, int line, uint32_t members);
uint32_t ptx_shuffle(const struct ptx_place *place, int line, enum ptx_shuffle mode, uint32_t a, uint32_t b, uint32_t c,
                     uint32_t members);
void ptx_mma_bf16(const struct ptx_place *place, int line, float *d, const uint32_t *a, const uint32_t *b,
                  const float *c);
void ptx_mma_e4m3(const struct ptx_place *place, int line, float *d, const uint32_t *a, const uint32_t *b,
                  const float *c);
void ptx_ldmatrix(const struct ptx_place *place, int line, bool turned, uint32_t *r, const void *row);
uint32_t ptx_movmatrix(const struct ptx_place *place, int line, uint32_t a);

#endif
