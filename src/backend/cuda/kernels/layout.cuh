/* backend/cuda/kernels/layout.cuh - which weight lies where in a lane's share of a tile (params.h). Includes: device.cuh. */
#ifndef MOEBIUS_CUDA_LAYOUT_CUH
#define MOEBIUS_CUDA_LAYOUT_CUH

#include "device.cuh"

DEVICE int format_bits(int format) {
    return format == WEIGHT_BF16 ? 16 : format == WEIGHT_FP8 || format == WEIGHT_INT8 ? 8 : 4;
}

/* Bits of a weight that is zero. */
DEVICE uint32_t format_zero(int format) {
    return format == WEIGHT_INT4 ? 8 : format == WEIGHT_INT8 ? 128 : 0;
}

/* Which value stands at place `slot` of word `word` of a lane's share: step of 16 k, half of the rows, column of the lane's 4. */
struct origin {
    int step, half, column;
};
DEVICE struct origin origin_of(int word, int slot, int bits) {
    int words = bits / 4;                                                           /* words of a step */
    int a = bits == 16 ? word % 4 : bits == 8 ? word % 2 * 2 + slot / 2 : slot % 4; /* a0 .. a3 */
    int low = bits == 16 ? slot : bits == 8 ? slot % 2 : slot / 4;
    struct origin out = {word / words, a % 2, a / 2 * 2 + low};
    return out;
}

#endif
