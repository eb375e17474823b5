/* backend/cuda/launch.c - kernels by name, and the launch of linear products. */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include "backend/cuda/cuda.h"
#include "backend/cuda/image.h"
#include "base/log.h"

/* CUfunction_attribute, in bytes: what a kernel declares, and what a launch may ask for beside it. */
enum { FUNCTION_OWN_SHARED_BYTES = 1, FUNCTION_SHARED_BYTES = 8 };

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

/* A driver older than the CUDA that made the kernels may take them, but nobody promises that. */
static int too_old(const struct cuda *cuda, struct mo_error *error) {
    int has = cuda->card.driver_version, made_by = cuda_images_version;
    return mo_error_set(error, MO_E_UNSUPPORTED,
                        "the GPU driver is too old: it knows CUDA %d.%d, and does not take these kernels, made by CUDA "
                        "%d.%d, which need a driver for %d.0 or newer",
                        has / 1000, has % 1000 / 10, made_by / 1000, made_by % 1000 / 10, made_by / 1000);
}

static int load_image(struct cuda *cuda, int i, struct mo_error *error) {
    if (cuda->modules[i]) return 0;
    int result = cuda->driver.module_load(&cuda->modules[i], cuda_images[i].data);
    if (result && cuda->card.driver_version / 1000 < cuda_images_version / 1000) return too_old(cuda, error);
    return cuda_check(&cuda->driver, result, error,
                      "GPU %d (%s, compute capability %d.%d, driver for CUDA %d.%d) does not take the kernels %s",
                      cuda->card.index, cuda->card.name, cuda->card.capability / 10, cuda->card.capability % 10,
                      cuda->card.driver_version / 1000, cuda->card.driver_version % 1000 / 10, cuda_images[i].name);
}

/* Lets the kernel ask for all the shared memory that a block may have, beside what it declares by itself. */
static int allow_shared_memory(const struct cuda *cuda, struct cuda_function *function) {
    int own = 0, result = cuda->driver.function_look(&own, FUNCTION_OWN_SHARED_BYTES, function);
    return result ? result : cuda->driver.function_set(function, FUNCTION_SHARED_BYTES, cuda->card.shared_bytes - own);
}

/* Images for cards without the instruction do not have it: products are then as without the wish. */
static int no_native(struct cuda *cuda) {
    cuda->fp8_native = false;
    cuda->kernels[KERNEL_FP8_NATIVE] = NULL;
    log_warn(
        "MOEBIUS_CUDA_FP8_NATIVE: GPU %d (compute capability %d.%d) has no kernels that multiply FP8 by themselves",
        cuda->card.index, cuda->card.capability / 10, cuda->card.capability % 10);
    return 0;
}

static int load_kernel(struct cuda *cuda, enum cuda_kernel kernel, struct mo_error *error) {
    const struct kernel_name *name = &kernel_names[kernel];
    int image = find_image(name->image);
    if (image < 0) return mo_error_set(error, MO_E_INTERNAL, "kernels %s are not in this binary", name->image);
    int code = load_image(cuda, image, error);
    if (code) return code;
    int result = cuda->driver.function_get(&cuda->kernels[kernel], cuda->modules[image], name->entry);
    if (result && kernel == KERNEL_FP8_NATIVE) return no_native(cuda);
    if (!result) result = allow_shared_memory(cuda, cuda->kernels[kernel]);
    return cuda_check(&cuda->driver, result, error, "GPU %d: kernel %s", cuda->card.index, name->entry);
}

int cuda_load_kernels(struct cuda *cuda, struct mo_error *error) {
    if (!cuda_images[0].name) {
        return mo_error_set(
            error, MO_E_UNSUPPORTED,
            "this moebius was built without CUDA kernels: nvcc was not found then (or CUDA=0 was given)");
    }
    for (int i = 0; i < CUDA_KERNEL_COUNT; i++) {
        int code = i == KERNEL_FP8_NATIVE && !cuda->fp8_native ? 0 : load_kernel(cuda, (enum cuda_kernel)i, error);
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
    /* Products look at their weights before they wait for the kernel before: not at such as are being brought. */
    const bool may_be_early = cuda->early && !cuda->link.is_used;
    const struct cuda_launch_attribute early = {.id = CUDA_MAY_BEGIN_EARLY, .value = {1}};
    const struct cuda_launch_config config = {.grid_x = (unsigned)blocks,
                                              .grid_y = 1,
                                              .grid_z = 1,
                                              .block_x = BLOCK_THREADS,
                                              .block_y = 1,
                                              .block_z = 1,
                                              .shared_bytes = (unsigned)shared_bytes,
                                              .stream = cuda->stream,
                                              .attributes = &early,
                                              .n_attributes = may_be_early ? 1 : 0};
    int result = cuda->driver.launch_as(&config, cuda->kernels[kernel], arguments, NULL);
    /* A card tells of a kernel's fault when somebody waits, and not whose it was. */
    bool is_recorded = cuda->recorder.mode == STEP_RECORD || cuda->watch.on;
    if (!result && cuda->waits && !is_recorded) result = cuda->driver.stream_wait(cuda->stream);
    cuda_keep(cuda, result, name->entry);
}

struct linear_params cuda_linear_begin(const struct cuda *cuda) {
    return (struct linear_params){.fault = cuda->scratch.fault, .eps = (float)cuda->model->norm_eps};
}

struct linear_job *cuda_linear_add(struct linear_params *p, const struct weight *w, int n, int groups) {
    struct linear_job *job = &p->job[p->n_jobs++];
    *job = (struct linear_job){.w = w->m, .n = n, .groups = groups};
    return job;
}

void cuda_linear_add_normed(struct linear_params *p, const struct weight *w, const float *x, const float *gain,
                            float *y, int n, int fault) {
    struct linear_job *job = cuda_linear_add(p, w, n, 1);
    job->x_kind = X_F32;
    job->x = x;
    job->x_stride = (size_t)w->m.cols;
    job->gain = gain;
    job->fault_key = fault;
    job->y = y;
    job->y_stride = (size_t)w->m.rows;
    job->y_kind = Y_F32;
}

int cuda_linear_columns(int rows) {
    return rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : rows <= FEW_ROWS ? FEW_ROWS : MANY_TOKENS;
}

static int ceil_div_int(int a, int b) {
    return (a + b - 1) / b;
}

static enum cuda_kernel variant(enum weight_format format, int number) {
    return (enum cuda_kernel)((int)KERNEL_BF16_SKINNY + (int)format * LINEAR_VARIANTS + number);
}

/* Rows up to 8 take the skinny variant, but for matrices of less than a block's k: there a warp a row tile is better. */
static enum cuda_kernel choose(enum weight_format format, int columns, bool wide) {
    if (wide && columns == 8) return KERNEL_BF16_WIDE1;
    return variant(format, columns == 8 ? 0 : columns == 16 ? 1 : columns == 32 ? 2 : 3);
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

static size_t many_shared_bytes(enum weight_format format) {
    size_t tile_bytes = cuda_tile_bytes(format, CODE_NONE),
           stages = tile_bytes < 1024 ? MANY_STAGES_SMALL : MANY_STAGES;
    size_t scales = format == WEIGHT_BF16 ? 0 : MANY_SCALE_BYTES;
    return stages * (MANY_X_BYTES + MANY_ROWS / TILE_ROWS * tile_bytes + scales) + MANY_TOKENS * sizeof(int);
}

/* Whether a job's activations are as linear_many copies them: bf16, rows of whole pieces of 16 bytes. */
static bool is_packed(const struct linear_job *job) {
    return job->x_kind == X_BF16 && job->x_stride == (size_t)job->w.cols && job->x_stride % 8 == 0;
}

static bool reads_the_same(const struct linear_job *a, const struct linear_job *b) {
    return a->x == b->x && a->gain == b->gain && a->x_row == b->x_row && a->n == b->n && a->w.cols == b->w.cols &&
           !a->items && !b->items;
}

/* The largest scale groups that e4m3 activations go with are those of 128 of their own, or multiples. */
static bool is_native(const struct cuda *cuda, const struct linear_params *p, enum weight_format format) {
    bool fits = cuda->fp8_native && format == WEIGHT_FP8;
    for (int j = 0; j < p->n_jobs && fits; j++) fits = p->job[j].w.group_shift >= 7;
    return fits;
}

/* Job j's activations as the kernel wants them; *used bytes of the room for these are taken. */
static void pack(struct cuda *cuda, const struct linear_params *p, int j, struct linear_job *job, bool native,
                 size_t *used) {
    size_t stride = (size_t)job->w.slabs * SLAB_COLS, groups = (stride + 127) / 128;
    struct pack_params pack = {.job = p->job[j],
                               .fault = p->fault,
                               .to = cuda->scratch.packed + *used,
                               .factor = cuda->scratch.factor + (size_t)j * (size_t)cuda->options.max_rows,
                               .eps = p->eps};
    *used += (size_t)job->n * (native ? groups * NATIVE_ROW_BYTES : stride * sizeof(uint16_t));
    assert(*used <= cuda->packed_bytes);
    if (job->items) pack.job.x_row = NULL; /* rows as they are: the product picks them */
    cuda_launch(cuda, native ? KERNEL_PACK_ROWS_NATIVE : KERNEL_PACK_ROWS, job->n, 0, &pack);
    job->x = pack.to;
    job->x_stride = stride;
    job->x_in_order = !job->items;
    if (job->gain) job->factor = pack.factor;
}

static int many_tiles(const struct linear_job *job) {
    int rows = ceil_div_int(job->w.row_tiles, MANY_ROWS / TILE_ROWS);
    return rows * (job->items ? job->groups : ceil_div_int(job->n, MANY_TOKENS));
}

/* Tiles are taken in turn by as many blocks as the card has processors: each fills one. */
static void run_many(struct cuda *cuda, const struct linear_params *p, enum weight_format format) {
    struct linear_params many = *p;
    bool native = is_native(cuda, p, format);
    int blocks = 0;
    size_t used = 0;
    for (int j = 0; j < p->n_jobs; j++) {
        struct linear_job *job = &many.job[j];
        if (!native && is_packed(job)) {
            job->x_in_order = 0;
        } else if (j && reads_the_same(&p->job[0], &p->job[j])) {
            job->x = many.job[0].x;
            job->x_stride = many.job[0].x_stride;
            job->x_in_order = many.job[0].x_in_order;
            job->factor = many.job[0].factor;
        } else {
            pack(cuda, p, j, job, native, &used);
        }
        job->row_blocks = ceil_div_int(job->w.row_tiles, MANY_ROWS / TILE_ROWS);
        blocks += job->blocks = many_tiles(job);
    }
    size_t bytes = native ? 2 * NATIVE_STAGE_BYTES + MANY_TOKENS * sizeof(int) : many_shared_bytes(format);
    if (blocks > cuda->card.processors) blocks = cuda->card.processors;
    cuda_launch(cuda, native ? KERNEL_FP8_NATIVE : variant(format, LINEAR_VARIANTS - 1), blocks, bytes, &many);
}

/* Tiles of 128 x 128 may be so few that most of the card would be idle: blocks of 64 rows of x are twice as many. Lists are cut
 * for their variant already. A guess: it has not been measured on any card. */
static bool are_few(const struct cuda *cuda, const struct linear_params *p) {
    int tiles = 0;
    for (int j = 0; j < p->n_jobs; j++) {
        if (p->job[j].items) return false;
        tiles += many_tiles(&p->job[j]);
    }
    return 2 * tiles <= cuda->card.processors;
}

/* Jobs of one format. */
static void run_jobs(struct cuda *cuda, struct linear_params *p, enum weight_format format, int columns, bool short_k) {
    if (columns < MANY_TOKENS) {
        run(cuda, p, format, columns, short_k);
        return;
    }
    run_many(cuda, p, format);
    p->n_jobs = 0;
    run(cuda, p, WEIGHT_BF16, 8, false); /* routing and rotation */
}

void cuda_linear_run(struct cuda *cuda, struct linear_params *p, const struct weight *const *w, int rows) {
    int columns = cuda_linear_columns(rows);
    bool heads = p->n_jobs == 1 && p->job[0].groups > 1 && !p->job[0].items;
    if (columns == MANY_TOKENS && (heads || are_few(cuda, p))) columns = FEW_ROWS;
    const bool short_k = heads && w[0]->format == WEIGHT_BF16 && w[0]->m.cols < SKINNY_COLS;
    if (p->n_jobs < 2 || w[0]->format == w[1]->format) {
        run_jobs(cuda, p, p->n_jobs ? w[0]->format : WEIGHT_BF16, columns, short_k);
        return;
    }
    struct linear_params second = *p;
    second.job[0] = p->job[1];
    second.n_jobs = p->n_jobs = 1;
    second.route.blocks = second.rope.blocks = 0;
    /* The first launch is over when the second begins, so blocks of the second alone are counted. */
    second.sum.n_items = (const int32_t *)cuda->scratch.arrived + cuda_counters(cuda) - 1;
    p->sum.arrived = NULL;
    run_jobs(cuda, p, w[0]->format, columns, false);
    run_jobs(cuda, &second, w[1]->format, columns, false);
}
