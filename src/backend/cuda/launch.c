/* backend/cuda/launch.c - kernels by name, and the launch of linear products. */
#include <stdio.h>
#include <string.h>
#include "backend/cuda/cuda.h"
#include "backend/cuda/image.h"

/* CUfunction_attribute: bytes of shared memory that a launch may ask for. */
enum {
    FUNCTION_SHARED_BYTES = 8,
    STATIC_SHARED_BYTES = 8192, /* the most that a kernel declares by itself: tests/cuda/gate.py watches it */
};

struct kernel_name {
    const char *image, *entry;
};
static const struct kernel_name kernel_names[CUDA_KERNEL_COUNT] = {
#define CUDA_KERNEL_NAME(name, image, entry) {#image, #entry},
    CUDA_KERNELS(CUDA_KERNEL_NAME)
#undef CUDA_KERNEL_NAME
};

static int find_image(const char *name) {
    for (int i = 0; cuda_images[i].name && i < MAX_IMAGES; i++) {
        if (!strcmp(cuda_images[i].name, name)) return i;
    }
    return -1;
}

static int load_image(struct cuda *cuda, int i, struct mo_error *error) {
    if (cuda->modules[i]) return 0;
    int result = cuda->driver.module_load(&cuda->modules[i], cuda_images[i].data);
    return cuda_check(&cuda->driver, result, error,
                      "GPU %d (%s, compute capability %d.%d, driver for CUDA %d.%d) does not take the kernels %s",
                      cuda->card.index, cuda->card.name, cuda->card.capability / 10, cuda->card.capability % 10,
                      cuda->card.driver_version / 1000, cuda->card.driver_version % 1000 / 10, cuda_images[i].name);
}

int cuda_load_kernels(struct cuda *cuda, struct mo_error *error) {
    if (!cuda_images[0].name) {
        return mo_error_set(
            error, MO_E_UNSUPPORTED,
            "this moebius was built without CUDA kernels: nvcc was not found then (or CUDA=0 was given)");
    }
    int needed = cuda_images_version / 1000 * 1000;
    if (cuda->card.driver_version < needed) {
        return mo_error_set(
            error, MO_E_UNSUPPORTED,
            "the GPU driver is too old: it knows CUDA %d.%d, and these kernels, made by CUDA %d.%d, need a "
            "driver for %d.0 or newer",
            cuda->card.driver_version / 1000, cuda->card.driver_version % 1000 / 10, cuda_images_version / 1000,
            cuda_images_version % 1000 / 10, needed / 1000);
    }
    for (int i = 0; i < CUDA_KERNEL_COUNT; i++) {
        int image = find_image(kernel_names[i].image);
        if (image < 0) {
            return mo_error_set(error, MO_E_INTERNAL, "kernels %s are not in this binary", kernel_names[i].image);
        }
        int code = load_image(cuda, image, error);
        if (code) return code;
        int result = cuda->driver.function_get(&cuda->kernels[i], cuda->modules[image], kernel_names[i].entry);
        int left = i == KERNEL_ATTN_BF16 || i == KERNEL_ATTN_FP8 ? 0 : STATIC_SHARED_BYTES;
        if (!result) {
            result = cuda->driver.function_set(cuda->kernels[i], FUNCTION_SHARED_BYTES, cuda->card.shared_bytes - left);
        }
        code = cuda_check(&cuda->driver, result, error, "GPU %d: kernel %s", cuda->card.index, kernel_names[i].entry);
        if (code) return code;
    }
    return 0;
}

void cuda_keep(struct cuda *cuda, int result, const char *what) {
    if (!result || cuda->failure.code) return;
    cuda_check(&cuda->driver, result, &cuda->failure, "GPU %d (%s), stage %s: %s", cuda->card.index, cuda->card.name,
               cuda->stage, what);
}

void cuda_launch(struct cuda *cuda, enum cuda_kernel kernel, int blocks, size_t shared_bytes, const void *params) {
    void *arguments[1];
    memcpy(arguments, &params, sizeof params); /* the driver only reads it */
    if (blocks == 0 || cuda->failure.code) return;
    const struct kernel_name *name = &kernel_names[kernel];
    if (cuda->watch.on && !cuda_watch_launch(cuda, name->image, name->entry, blocks, params)) return;
    int result = cuda->driver.launch(cuda->kernels[kernel], (unsigned)blocks, 1, 1, BLOCK_THREADS, 1, 1,
                                     (unsigned)shared_bytes, cuda->stream, arguments, NULL);
    cuda_keep(cuda, result, kernel_names[kernel].entry);
}

struct linear_params cuda_linear_begin(const struct cuda *cuda) {
    return (struct linear_params){.fault = cuda->scratch.fault, .eps = (float)cuda->model->norm_eps};
}

struct linear_job *cuda_linear_add(struct linear_params *p, const struct weight *w, int n, int groups) {
    struct linear_job *job = &p->job[p->n_jobs++];
    *job = (struct linear_job){.w = w->m, .n = n, .groups = groups};
    return job;
}

int cuda_linear_columns(int rows) {
    return rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
}

static int ceil_div_int(int a, int b) {
    return (a + b - 1) / b;
}

/* Rows up to 8 take the skinny variant, but for matrices of less than a block's k: there a warp a row tile is better. */
static enum cuda_kernel choose(enum weight_format format, int columns, bool wide) {
    if (wide && columns == 8) return KERNEL_BF16_WIDE1;
    int variant = columns == 8 ? 0 : columns == 16 ? 1 : columns == 32 ? 2 : 3;
    return (enum cuda_kernel)((int)KERNEL_BF16_SKINNY + (int)format * LINEAR_VARIANTS + variant);
}

static size_t shared_bytes(int columns, bool wide) {
    size_t cols = columns == 8 && !wide ? SKINNY_COLS : WIDE_COLS;
    size_t bytes = (size_t)columns * (cols + X_PAD) * sizeof(uint16_t);
    return bytes > ROUTE_SHARED ? bytes : ROUTE_SHARED; /* blocks of routing and rotation need less than that */
}

static void run(struct cuda *cuda, struct linear_params *p, enum weight_format format, int columns, bool wide) {
    int blocks = p->route.blocks + p->rope.blocks, warps = columns == 8 && !wide ? 1 : BLOCK_WARPS;
    for (int j = 0; j < p->n_jobs; j++) {
        struct linear_job *job = &p->job[j];
        job->row_blocks = ceil_div_int(job->w.row_tiles, warps);
        job->blocks = job->row_blocks * job->groups * (job->items ? 1 : ceil_div_int(job->n, columns));
        blocks += job->blocks;
    }
    cuda_launch(cuda, choose(format, columns, wide), blocks, shared_bytes(columns, wide), p);
}

void cuda_linear_run(struct cuda *cuda, struct linear_params *p, const struct weight *const *w, int rows) {
    int columns = cuda_linear_columns(rows);
    bool short_k = p->n_jobs == 1 && w[0]->format == WEIGHT_BF16 && p->job[0].groups > 1 && !p->job[0].items;
    if (p->n_jobs < 2 || w[0]->format == w[1]->format) {
        run(cuda, p, p->n_jobs ? w[0]->format : WEIGHT_BF16, columns, short_k);
        return;
    }
    struct linear_params second = *p;
    second.job[0] = p->job[1];
    second.n_jobs = p->n_jobs = 1;
    second.route.blocks = second.rope.blocks = 0;
    run(cuda, p, w[0]->format, columns, false);
    run(cuda, &second, w[1]->format, columns, false);
}
