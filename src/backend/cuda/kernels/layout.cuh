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
    int step, a, low; /* a: a0 .. a3 */
    if (bits > 4) {
        step = word / (bits / 4);
        a = bits == 16 ? word % 4 : word % 2 * 2 + slot / 2;
        low = bits == 16 ? slot : slot % 2;
    } else { /* also planes of two bits and one: half a word for the low columns, half for the high ones */
        int each = 16 / bits;
        step = word * (each / 4) + slot % each / 4;
        a = slot % 4;
        low = slot / each;
    }
    struct origin out = {step, a % 2, a / 2 * 2 + low};
    return out;
}

#endif
