/* backend/cuda/kernels/device.cuh - the words that kernels are written in. They are C that nvcc and a C compiler both take:
 * under nvcc KERNEL makes an entry point; tests/shim gives the same words a meaning on the CPU, where each thread of a block is a
 * fibre, and so runs these very files. No templates, no classes; variants are constants passed to inlined functions.
 *
 * Sameness: no floating atomics, and every sum has one order that depends on the matrix alone, so a row's result is
 * the same bits whatever else is in its batch and whichever variant computes it.
 * Includes: params.h. */
#ifndef MOEBIUS_CUDA_DEVICE_CUH
#define MOEBIUS_CUDA_DEVICE_CUH

#include "../params.h"

#ifdef __CUDACC__
#define KERNEL_BLOCKS(name, params, blocks)                                                                            \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, blocks) name(const __grid_constant__ struct params p)
#define KERNEL(name, params) KERNEL_BLOCKS(name, params, 1)
/* Leaves room for a second block on the same processor. */
#define KERNEL_TWICE(name, params) KERNEL_BLOCKS(name, params, 2)
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
#define BLOCKS ((int)gridDim.x)
extern __shared__ __align__(16) unsigned char dynamic_shared[];
#define DYNAMIC_SHARED(type, name) type *name = (type *)dynamic_shared
#endif

#define WARP (THREAD / 32)
#define LANE (THREAD % 32)

/* Four words that are loaded and stored at once. */
struct __attribute__((aligned(16))) quad {
    uint32_t v[4];
};
struct __attribute__((aligned(8))) pair {
    uint32_t v[2];
};
struct __attribute__((aligned(16))) floats4 {
    float v[4];
};

#include "mma.cuh"

DEVICE int min_int(int a, int b) {
    return a < b ? a : b;
}
DEVICE int max_int(int a, int b) {
    return a > b ? a : b;
}
DEVICE int ceil_div_int(int a, int b) {
    return (a + b - 1) / b;
}

/* The sum of all lanes, the same in each: a tree, so one order. */
DEVICE float warp_sum(float value) {
    UNROLL
    for (int step = 16; step > 0; step /= 2) value += shuffle_xor_f32(value, step);
    return value;
}
DEVICE float warp_max(float value) {
    UNROLL
    for (int step = 16; step > 0; step /= 2) value = fmaxf(value, shuffle_xor_f32(value, step));
    return value;
}

DEVICE float bf16_value(uint16_t bits) {
    return bits_float((uint32_t)bits << 16);
}
DEVICE uint16_t bf16_bits(float value) {
    return (uint16_t)pack_bf16(value, 0);
}

/* Remembers the smallest key and row: the first stage that a bad number came out of. */
DEVICE void note_fault(unsigned long long *fault, int key, int row) {
    atomic_min_u64(fault, (unsigned long long)key << 32 | (unsigned)row);
}
DEVICE int is_finite(float value) {
    return (float_bits(value) & 0x7f800000u) != 0x7f800000u;
}

/* The last of `expected` blocks to come here gets 1 (all its threads), and sees what the others wrote. The counter is zero
 * again afterwards. The fences stand with the atomic operation, in one thread: so they make it a release and an acquire, and the
 * barriers on either side pass on what the other threads wrote and are to see. */
DEVICE int arrive_last(uint32_t *counter, uint32_t expected) {
    SHARED uint32_t last;
    barrier();
    if (THREAD == 0) {
        thread_fence();
        last = atomic_add_u32(counter, 1) == expected - 1;
        if (last) *counter = 0;
        thread_fence();
    }
    barrier();
    return (int)last;
}

/* Tells other blocks of the launch that what this one wrote is there: `told` becomes 1. The whole block. */
DEVICE void tell(uint32_t *told) {
    barrier();
    if (THREAD) return;
    thread_fence();
    atomic_add_u32(told, 1);
}
/* Waits for that. Only blocks of higher numbers may: cards begin blocks in ascending order, so who is to tell has begun, and waits for
 * nobody. The whole block; fences stand as in arrive_last. */
DEVICE void wait_for(const uint32_t *told) {
    if (THREAD == 0) {
        while (!load_now(told)) sleep_shortly();
        thread_fence();
    }
    barrier();
}

#endif
