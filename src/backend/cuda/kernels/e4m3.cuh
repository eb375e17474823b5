/* backend/cuda/kernels/e4m3.cuh - one value of e4m3, widened. Includes: device.cuh. */
#ifndef MOEBIUS_CUDA_E4M3_CUH
#define MOEBIUS_CUDA_E4M3_CUH

#include "device.cuh"

/* The last eight bits; NaN becomes 480. */
DEVICE float e4m3_value(uint32_t bits) {
    return bits_float((bits & 0x80) << 24 | (bits & 0x7f) << 20) * 0x1p120f;
}

#endif
