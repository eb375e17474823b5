/* backend/cuda/kernels/mma.cuh - everything of a kernel that is not C: matrix units, warps, asynchronous copies, atomics.
 * tests/shim defines the same functions in plain C. Includes: nothing (see device.cuh). */
#ifndef MOEBIUS_CUDA_MMA_CUH
#define MOEBIUS_CUDA_MMA_CUH

/* Compute capability 9.0 has the instruction too, but translates it to slower ones. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
#define HAS_FP8_MMA 1
#else
#define HAS_FP8_MMA 0
#endif

#ifdef __CUDACC__

#if HAS_FP8_MMA
/* c[16][8] += a[16][32] b[32][8] over a warp: e4m3 in, fp32 sums. */
DEVICE void mma_fp8(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
DEVICE void mma_fp8(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) { /* nothing calls it */
}
#endif

/* c[16][8] += a[16][16] b[16][8] over a warp: bf16 in, fp32 sums. */
DEVICE void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8x8 tiles of 16-bit values from shared memory; lane l names row l % 8 of tile l / 8. */
DEVICE void load_tiles(uint32_t *r, const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}
DEVICE void load_tiles_turned(uint32_t *r, const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* An 8x8 tile of 16-bit values, a row in each four lanes, turned round: the lanes get its columns. */
DEVICE uint32_t turn_tile(uint32_t pair) {
    uint32_t turned;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}

/* 16 bytes from global to shared memory, in the background. */
DEVICE void copy_async(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
}
DEVICE void copy_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until all but the last group of copies (or all) have arrived. */
DEVICE void copy_wait_all_but_one(void) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
}
DEVICE void copy_wait_all_but_two(void) {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
}
DEVICE void copy_wait_all(void) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

DEVICE void barrier(void) {
    __syncthreads();
}
DEVICE void warp_barrier(void) {
    __syncwarp();
}
DEVICE float shuffle_xor_f32(float value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
DEVICE int shuffle_xor_i32(int value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
DEVICE int shuffle_up_i32(int value, int lanes) {
    return __shfl_up_sync(0xffffffffu, value, (unsigned)lanes);
}

DEVICE void thread_fence(void) {
    __threadfence();
}
/* Another block's counter as it is now, not as it was when this block looked last. */
DEVICE uint32_t load_now(const uint32_t *at) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}
/* Leaves the processor to other warps for a moment. */
DEVICE void sleep_shortly(void) {
    __nanosleep(32);
}
DEVICE uint32_t atomic_add_u32(uint32_t *at, uint32_t value) {
    return atomicAdd(at, value);
}
DEVICE void atomic_add_u64(unsigned long long *at, unsigned long long value) {
    atomicAdd(at, value);
}
DEVICE void atomic_min_u32(uint32_t *at, uint32_t value) {
    atomicMin(at, value);
}
DEVICE void atomic_min_u64(unsigned long long *at, unsigned long long value) {
    atomicMin(at, value);
}

/* Weights are read once: they need not stay in the cache nearest to the processor. Volatile: a load stays where it is written,
 * long before its use. */
DEVICE struct quad load_once(const uint8_t *at) {
    struct quad q;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(q.v[0]), "=r"(q.v[1]), "=r"(q.v[2]), "=r"(q.v[3])
                 : "l"(at));
    return q;
}

DEVICE struct pair load_once_pair(const uint8_t *at) {
    struct pair p;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(p.v[0]), "=r"(p.v[1]) : "l"(at));
    return p;
}
DEVICE uint32_t load_once_word(const uint8_t *at) {
    uint32_t word;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(word) : "l"(at));
    return word;
}

/* What no kernel of a step writes: parts of weights that stay in the caches. */
DEVICE uint16_t constant_u16(const uint16_t *at) {
    return __ldg(at);
}
DEVICE uint32_t constant_u32(const uint32_t *at) {
    return __ldg(at);
}

/* Where kernels may begin early (MOEBIUS_CUDA_EARLY), waits for the end of the one before, and lets the next one begin: each
 * thread comes here before it touches anything in the card's memory but weights, which are read by the five words above. */
DEVICE void after_previous(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Asks for the 128 bytes at `at` to come into the cache that all processors share. */
DEVICE void prefetch(const void *at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

DEVICE uint32_t float_bits(float value) {
    return __float_as_uint(value);
}
DEVICE float bits_float(uint32_t bits) {
    return __uint_as_float(bits);
}
/* Two fp32 rounded to nearest even; `low` in the low half. */
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
/* a * b + c of two bf16 side by side, rounded once. */
DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE float half_value(uint32_t bits) {
    float value;
    asm("{.reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(value) : "r"(bits));
    return value;
}
/* a * b, a + b and a / b, rounded to nearest even and never merged into a fused operation: for the bits that the CPU gets. */
DEVICE float times(float a, float b) {
    return __fmul_rn(a, b);
}
DEVICE float plus(float a, float b) {
    return __fadd_rn(a, b);
}
DEVICE float divide_exactly(float a, float b) {
    return __fdiv_rn(a, b);
}
/* a / b within two units of the last place; 0 where b is infinite. */
DEVICE float divide_roughly(float a, float b) {
    return __fdividef(a, b);
}
/* a / b rounded to nearest but for a rare last bit; both of ordinary size. Without the branch that / takes for the others. */
DEVICE float divide(float a, float b) {
    float inverse, q;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    q = a * inverse;
    return fmaf(fmaf(-q, b, a), inverse, q);
}
/* 2^value within two units of the last place; 0 for -infinity. */
DEVICE float power_of_two(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}
DEVICE float inverse_root(float value) {
    return rsqrtf(value);
}
/* Bytes of (b:a) picked by the four hex digits of `pick`, lowest first. */
DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t pick) {
    return __byte_perm(a, b, pick);
}

#endif
#endif
