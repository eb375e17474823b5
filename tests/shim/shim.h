/* tests/shim/shim.h - what the kernels' words mean on a CPU. A block's threads are fibres: each has a stack of its own and runs
 * until a barrier or a warp operation, where it waits for the others (fibre.c). So the sources that nvcc compiles for a GPU run
 * here unchanged, and what they compute can be compared. Races are found by the same sources compiled once more (race.c);
 * blocks run one after another, and warps and lanes take turns between barriers, in orders shuffled by MOEBIUS_SHIM_SEED.
 *
 * Read before a kernel's file (-include). */
#ifndef MOEBIUS_TESTS_SHIM_H
#define MOEBIUS_TESTS_SHIM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef void shim_kernel(const void *params);
/* Makes a kernel known under its name. `own_bytes` of the block's shared memory are its own variables; here those lie elsewhere: 0. */
void shim_register(const char *name, shim_kernel *kernel, size_t params_bytes, int own_bytes);

#define KERNEL(name, type)                                                                                             \
    static void name(struct type p);                                                                                   \
    static void name##_call(const void *params) {                                                                      \
        name(*(const struct type *)params);                                                                            \
    }                                                                                                                  \
    __attribute__((constructor)) static void name##_register(void) {                                                   \
        shim_register(#name, name##_call, sizeof(struct type), 0);                                                     \
    }                                                                                                                  \
    static void name(struct type p)
#define KERNEL_TWICE(name, type) KERNEL(name, type)
#define DEVICE static inline __attribute__((unused))
#define SHARED static __attribute__((section("shim_own")))
#define UNROLL
#ifdef SHIM_RACES /* these are no memory of the kernel's */
#define THREAD shim_thread_of_fibre()
#define BLOCK shim_block_of_fibre()
#define BLOCKS shim_blocks_of_launch()
#else
#define THREAD shim_thread
#define BLOCK shim_block
#define BLOCKS shim_blocks
#endif
#define DYNAMIC_SHARED(type, name) type *name = (type *)shim_shared

extern int shim_thread, shim_block, shim_blocks; /* who runs now */
extern unsigned char shim_shared[];              /* the block's dynamic shared memory */
int shim_thread_of_fibre(void) __attribute__((const));
int shim_block_of_fibre(void) __attribute__((const));
int shim_blocks_of_launch(void) __attribute__((const));

enum shim_op {
    SHIM_MMA,
    SHIM_MMA_FP8,
    SHIM_TILES,
    SHIM_TILES_TURNED,
    SHIM_TURN,
    SHIM_SHUFFLE_XOR,
    SHIM_SHUFFLE_UP,
    SHIM_WARP_BARRIER,
    SHIM_MEETING
};

/* What a lane brings to a warp operation, and takes away. */
struct shim_lane {
    uint32_t a[4], b[2];
    float c[4];
    const void *row;
    uint32_t value;
    int mask;
    /* SHIM_MEETING, the same for all lanes: called once they are together. `place` is the caller's. */
    void (*meeting)(struct shim_lane *const *lanes);
    int place;
};
void shim_barrier(void);
/* Waits for all 32 lanes, which must ask for the same operation. */
void shim_warp(enum shim_op op, struct shim_lane *lane);

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
uint32_t shim_bf16(float value);
float shim_half(uint32_t bits);

static inline void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    struct shim_lane lane = {.b = {b0, b1}};
    memcpy(lane.a, a, sizeof lane.a);
    memcpy(lane.c, c, sizeof lane.c);
    shim_warp(SHIM_MMA, &lane);
    memcpy(c, lane.c, sizeof lane.c);
}
static inline void mma_fp8(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    struct shim_lane lane = {.b = {b0, b1}};
    memcpy(lane.a, a, sizeof lane.a);
    memcpy(lane.c, c, sizeof lane.c);
    shim_warp(SHIM_MMA_FP8, &lane);
    memcpy(c, lane.c, sizeof lane.c);
}
static inline void load_tiles(uint32_t *r, const void *row) {
    struct shim_lane lane = {.row = row};
    shim_warp(SHIM_TILES, &lane);
    memcpy(r, lane.a, sizeof lane.a);
}
static inline void load_tiles_turned(uint32_t *r, const void *row) {
    struct shim_lane lane = {.row = row};
    shim_warp(SHIM_TILES_TURNED, &lane);
    memcpy(r, lane.a, sizeof lane.a);
}
static inline uint32_t turn_tile(uint32_t pair) {
    struct shim_lane lane = {.value = pair};
    shim_warp(SHIM_TURN, &lane);
    return lane.value;
}
/* A copy is late until it is waited for: shim_copy keeps it, so that code that reads too early finds the old bytes. */
void shim_copy(void *to, const void *from);
void shim_copy_commit(void);
void shim_copy_wait(int groups_left);
static inline void copy_async(void *shared, const void *global) {
    shim_copy(shared, global);
}
static inline void copy_commit(void) {
    shim_copy_commit();
}
static inline void copy_wait_all_but_one(void) {
    shim_copy_wait(1);
}
static inline void copy_wait_all_but_two(void) {
    shim_copy_wait(2);
}
static inline void copy_wait_all(void) {
    shim_copy_wait(0);
}
static inline void barrier(void) {
    shim_barrier();
}
static inline void warp_barrier(void) {
    struct shim_lane lane = {0};
    shim_warp(SHIM_WARP_BARRIER, &lane);
}
static inline float shuffle_xor_f32(float value, int mask) {
    struct shim_lane lane = {.value = float_bits(value), .mask = mask};
    shim_warp(SHIM_SHUFFLE_XOR, &lane);
    return bits_float(lane.value);
}
static inline int shuffle_xor_i32(int value, int mask) {
    struct shim_lane lane = {.value = (uint32_t)value, .mask = mask};
    shim_warp(SHIM_SHUFFLE_XOR, &lane);
    return (int)lane.value;
}
static inline int shuffle_up_i32(int value, int lanes) {
    struct shim_lane lane = {.value = (uint32_t)value, .mask = lanes};
    shim_warp(SHIM_SHUFFLE_UP, &lane);
    return (int)lane.value;
}
void shim_fence(void);
uint32_t shim_add_u32(uint32_t *at, uint32_t value);
void shim_add_u64(unsigned long long *at, unsigned long long value);
void shim_min_u32(uint32_t *at, uint32_t value);
void shim_min_u64(unsigned long long *at, unsigned long long value);
uint32_t shim_load_now(const uint32_t *at); /* an acquire */
/* The block waits for another: it begins anew once others have run, so it must have written nothing yet but what is its own. */
void shim_sleep(void);
static inline uint32_t load_now(const uint32_t *at) {
    return shim_load_now(at);
}
static inline void sleep_shortly(void) {
    shim_sleep();
}
static inline void thread_fence(void) {
    shim_fence();
}
#ifdef SHIM_RACES
void shim_after_previous(void);
#else
#define shim_after_previous() ((void)0)
#endif
static inline void after_previous(void) {
    shim_after_previous();
}
static inline void prefetch(const void *at) {
    (void)at;
}
static inline uint32_t atomic_add_u32(uint32_t *at, uint32_t value) {
    return shim_add_u32(at, value);
}
static inline void atomic_add_u64(unsigned long long *at, unsigned long long value) {
    shim_add_u64(at, value);
}
static inline void atomic_min_u32(uint32_t *at, uint32_t value) {
    shim_min_u32(at, value);
}
static inline void atomic_min_u64(unsigned long long *at, unsigned long long value) {
    shim_min_u64(at, value);
}
static inline float times(float a, float b) {
    return a * b;
}
static inline float plus(float a, float b) {
    return a + b;
}
static inline float divide_exactly(float a, float b) {
    return a / b;
}
static inline float divide_roughly(float a, float b) {
    return a / b;
}
static inline float divide(float a, float b) {
    return a / b;
}
static inline float power_of_two(float value) {
    return exp2f(value);
}
static inline float inverse_root(float value) {
    return 1 / sqrtf(value);
}
static inline uint32_t pack_bf16(float low, float high) {
    return shim_bf16(low) | shim_bf16(high) << 16;
}
/* a * b + c of bf16 values, whose last bit is set where bits were lost: rounding that to bf16 is then rounding once. */
static inline float fma_to_odd(float a, float b, float c) {
    double product = (double)a * b, sum = product + c, part = sum - product;
    double rest = (product - (sum - part)) + (c - part);
    float near = (float)sum;
    double over = fabs((double)near) - fabs(sum) - (sum < 0 ? -rest : rest);
    if (!(over > 0 || over < 0)) return near; /* exact, infinite or no number */
    return bits_float((float_bits(near) - (over > 0)) | 1);
}
static inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    float low = fma_to_odd(bits_float(a << 16), bits_float(b << 16), bits_float(c << 16));
    float high = fma_to_odd(bits_float(a & 0xffff0000u), bits_float(b & 0xffff0000u), bits_float(c & 0xffff0000u));
    return pack_bf16(low, high);
}
static inline float half_value(uint32_t bits) {
    return shim_half(bits);
}
static inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t pick) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= (uint32_t)(bytes >> (8 * (pick >> (4 * i) & 7)) & 0xff) << (8 * i);
    return out;
}

#ifdef SHIM_RACES
void shim_constant(void *to, const void *at, size_t bytes); /* complains about what this kernel has written */
#else
#define shim_constant memcpy
#endif
#define SHIM_CONSTANT(type, at)                                                                                        \
    ({                                                                                                                 \
        type constant;                                                                                                 \
        shim_constant(&constant, at, sizeof constant);                                                                 \
        constant;                                                                                                      \
    })
#define load_once(at) SHIM_CONSTANT(struct quad, at)
#define load_once_pair(at) SHIM_CONSTANT(struct pair, at)
#define load_once_word(at) SHIM_CONSTANT(uint32_t, at)
#define constant_u16(at) SHIM_CONSTANT(uint16_t, at)
#define constant_u32(at) SHIM_CONSTANT(uint32_t, at)

#endif
