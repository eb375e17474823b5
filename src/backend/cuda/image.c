#include "backend/cuda/image.h"

#include <stddef.h>

/* cuda.mk defines MOEBIUS_CUDA_IMAGES, the folder of the fatbins, when there was an nvcc to make them. */
#ifdef MOEBIUS_CUDA_IMAGES
#define IMAGES(X)                                                                                                      \
    X(linear_bf16)                                                                                                     \
    X(linear_fp8) X(linear_int4) X(linear_awq) X(linear_int8) X(linear_bits4) X(linear_bits5) \
    X(linear_bits6) X(linear_bits3) X(attn) X(expanded) X(index) X(listed) X(compress) \
    X(hybrid) X(simple) X(repack) X(pick) X(generate) X(probe) X(streams) X(engram)

#define EMBED(name)                                                                                                    \
    extern const unsigned char cuda_image_##name[];                                                                    \
    __asm__(".pushsection .rodata\n.balign 64\ncuda_image_" #name ":\n.incbin \"" MOEBIUS_CUDA_IMAGES "/" #name        \
            ".fatbin\"\n.byte 0\n.popsection\n");
IMAGES(EMBED)

#define ROW(name) {#name, cuda_image_##name},
const struct cuda_image cuda_images[] = {IMAGES(ROW){NULL, NULL}};
#else
const struct cuda_image cuda_images[] = {{NULL, NULL}};
#define MOEBIUS_CUDA_VERSION 0
#endif

const int cuda_images_version = MOEBIUS_CUDA_VERSION;
