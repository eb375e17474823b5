/* backend/cuda/kernels/cache.cuh - reading rows of the latent cache. Includes: device.cuh. */
#ifndef MOEBIUS_CUDA_CACHE_CUH
#define MOEBIUS_CUDA_CACHE_CUH

#include "device.cuh"

/* Values c .. c + 3 of the latent of an fp8 row as bf16. */
DEVICE struct pair fp8_latent(const uint8_t *row, int kv_lora, int c) {
    uint32_t word = *(const uint32_t *)(row + c), sign = word & 0x80808080u, low = word & 0x7f7f7f7fu;
    float scale = *(const float *)(row + kv_lora + c / CACHE_GROUP * 4) * 0x1p120f, v[4];
    UNROLL
    for (int j = 0; j < 4; j++) {
        uint32_t bits = (sign >> (8 * j) & 0x80) << 24 | (low >> (8 * j) & 0x7f) << 20;
        v[j] = bits_float(bits) * scale;
    }
    struct pair out = {{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])}};
    return out;
}

/* Bytes before the rotated part of a row, which is bf16 in both formats. */
DEVICE int rope_offset(int kv_lora, const int fp8) {
    return fp8 ? kv_lora + ceil_div_int(kv_lora, CACHE_GROUP) * 4 : kv_lora * 2;
}

#endif
