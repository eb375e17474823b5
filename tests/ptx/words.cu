/* What is not C in a kernel, by the shim's words; words.ptx says the same in PTX. Of 16 words in, a to d are the first four. */
#include "words.h"

KERNEL(words_c, words_params) {
    SHARED uint32_t tiles[WORDS_THREADS * 4] __attribute__((aligned(16)));
    const uint32_t *in = p.in + THREAD * WORDS_IN;
    uint32_t *out = p.out + THREAD * WORDS_OUT;
    float c[4], sum[4];
    memcpy(c, in + 6, sizeof c);
    memcpy(sum, c, sizeof c);
    mma_bf16(sum, in, in[4], in[5]);
    memcpy(out, sum, sizeof sum);
    memcpy(sum, c, sizeof c);
    mma_fp8(sum, in, in[4], in[5]);
    memcpy(out + 4, sum, sizeof sum);
    memcpy(&tiles[THREAD * 4], in, 16);
    barrier();
    int row = THREAD ^ 5; /* any one of the warp */
    load_tiles(out + 8, &tiles[row * 4]);
    load_tiles_turned(out + 12, &tiles[row * 4]);
    out[16] = turn_tile(in[0]);
    out[17] = permute_bytes(in[0], in[1], in[2] & 0x7777);
    out[18] = pack_bf16(bits_float(in[0]), bits_float(in[1]));
    out[19] = fma_bf16x2(in[0], in[1], in[2]);
    out[20] = float_bits(half_value(in[0] & 0xffff));
    out[21] = (uint32_t)shuffle_xor_i32((int)in[0], 9);
    out[22] = (uint32_t)shuffle_up_i32((int)in[0], 3);
    out[23] = float_bits(divide_roughly(c[0], c[1]));
    out[24] = float_bits(power_of_two(c[2]));
    out[25] = float_bits(inverse_root(fabsf(c[3])));
    out[26] = float_bits(1 / c[0]);
    for (int i = 27; i < WORDS_OUT; i++) out[i] = 0;
}
