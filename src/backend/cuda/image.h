/* backend/cuda/image.h - the compiled kernels, as the build embedded them: one fatbin for each kernels/NAME.cu. A build without
 * nvcc has none, and says so. Includes: nothing of the project. */
#ifndef MOEBIUS_BACKEND_CUDA_IMAGE_H
#define MOEBIUS_BACKEND_CUDA_IMAGE_H

struct cuda_image {
    const char *name; /* "linear_bf16" */
    const unsigned char *data;
};

/* Ends with an entry without a name. */
extern const struct cuda_image cuda_images[];

/* Of the nvcc that made them: 13000 is CUDA 13.0. A driver for an older major version does not take them. */
extern const int cuda_images_version;

#endif
