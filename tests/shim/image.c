/* tests/shim/image.c - stands in for the embedded kernels: the fake driver knows them by name. */
#include "backend/cuda/image.h"

const struct cuda_image cuda_images[] = {
    {"linear_bf16", (const unsigned char *)""},
    {"linear_fp8", (const unsigned char *)""},
    {"linear_int4", (const unsigned char *)""},
    {"linear_awq", (const unsigned char *)""},
    {"linear_int8", (const unsigned char *)""},
    {"linear_bits4", (const unsigned char *)""},
    {"linear_bits5", (const unsigned char *)""},
    {"linear_bits6", (const unsigned char *)""},
    {"linear_bits3", (const unsigned char *)""},
    {"attn", (const unsigned char *)""},
    {"expanded", (const unsigned char *)""},
    {"index", (const unsigned char *)""},
    {"listed", (const unsigned char *)""},
    {"compress", (const unsigned char *)""},
    {"hybrid", (const unsigned char *)""},
    {"simple", (const unsigned char *)""},
    {"repack", (const unsigned char *)""},
    {"pick", (const unsigned char *)""},
    {"generate", (const unsigned char *)""},
    {"probe", (const unsigned char *)""},
    {"streams", (const unsigned char *)""},
    {"engram", (const unsigned char *)""},
    {0},
};
const int cuda_images_version = 13000;
