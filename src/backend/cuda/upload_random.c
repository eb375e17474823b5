/* backend/cuda/upload_random.c - weights that nobody has (bench --like): each matrix is made where it belongs, on the card, so
 * that the host neither holds nor sends a byte of it. */
#include <math.h>
#include <stdlib.h>
#include "backend/cuda/upload.h"
#include "backend/cuda/params_bench.h"
#include "model/synth.h"

/* The finaliser of SplitMix64, so that neighbouring numbers are streams far apart. */
static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t stream_of(const struct upload *u) {
    return mix(u->weights->later->seed * 0x9e3779b97f4a7c15u + u->n);
}

static float deviation_of(const struct upload *u, const struct mat *mat) {
    enum role role = mat == &u->weights->embed ? ROLE_EMBED : mat == &u->weights->head ? ROLE_HEAD : ROLE_O;
    return synth_deviation(role, mat->cols);
}

static uint32_t float_bits_of(float value) {
    union {
        float f;
        uint32_t bits;
    } u = {value};
    return u.bits;
}

/* Scales from 0.75 to 1.25 of what gives the values the wanted deviation, as bits: these are in the same order. */
static void set_scales(struct generate_params *p, enum weight_format format, float deviation) {
    static const enum mat_format formats[WEIGHT_FORMATS] = {
        [WEIGHT_FP8] = MAT_FP8, [WEIGHT_INT4] = MAT_INT4, [WEIGHT_INT8] = MAT_INT8};
    float scale = deviation / synth_root_mean_square(formats[format]), low = 0.75f * scale, high = 1.25f * scale;
    p->scale_low = format == WEIGHT_FP8 ? float_bits_of(low) : f32_to_f16(low);
    p->scale_span = (format == WEIGHT_FP8 ? float_bits_of(high) : f32_to_f16(high)) - p->scale_low + 1;
}

/* FP4's are powers of two: the two beside the wanted scale, the larger one as often as makes the squares right. */
static void set_exponents(struct generate_params *p, float deviation) {
    int exponent;
    float part = 2 * frexpf(deviation / synth_root_mean_square(MAT_FP4), &exponent); /* from 1 to 2 */
    p->scale_low = (uint32_t)(127 + exponent - 1);
    p->scale_span = (uint32_t)((part * part - 1) / 3 * 65536);
}

/* Blocks' scales are one d for all, times codes that differ (generate.cu). Only what recipes name is made. */
static int set_codes(struct upload *u, struct generate_params *p, enum weight_format format, float deviation) {
    /* The mean square of codes times integers, and dmin in d. Q4_K: 32 to 63, q - 7.5; Q5_0: no codes, -16 to 15; Q6_K: 64 to 127,
     * -32 to 31. */
    static const struct {
        enum weight_format format;
        enum scale_coding coding;
        float mean_square, low;
    } kinds[] = {{WEIGHT_BITS4, CODE_BYTE_LOW, 2341.5f * 21.25f, 7.5f},
                 {WEIGHT_BITS5, CODE_HALF, 85.5f, 0},
                 {WEIGHT_BITS6, CODE_BYTE, 9461.5f * 341.5f, 0}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (kinds[i].format != format || (int32_t)kinds[i].coding != p->to.coding) continue;
        float d = deviation / sqrtf(kinds[i].mean_square);
        p->scale_low = f32_to_f16(d);
        p->low_bits = f32_to_f16(d * kinds[i].low);
        return 0;
    }
    return mo_error_set(u->error, MO_E_UNSUPPORTED,
                        "random weights on a GPU: of GGUF's blocks mxfp4, q4_k, q5_0 and q6_k only");
}

static struct generate_params params_of(const struct upload *u, const struct mat *mat) {
    return (struct generate_params){.stream = stream_of(u), .step = deviation_of(u, mat) * sqrtf(3) / 32768};
}

static int blocks_for(size_t threads) {
    return (int)((threads + BLOCK_THREADS - 1) / BLOCK_THREADS);
}

static int finish(struct upload *u, size_t bytes) {
    u->done_bytes += bytes;
    progress_update(&u->progress, (double)u->done_bytes);
    if (u->cuda->failure.code) *u->error = u->cuda->failure;
    return u->cuda->failure.code;
}

bool upload_is_random(const struct upload *u, const struct mat *mat) {
    return !mat->data && u->weights->later && !u->weights->later->make;
}

int upload_random_tiles(struct upload *u, const struct mat *mat, const struct weight *w, int index, int tile_rows) {
    struct generate_params p = params_of(u, mat);
    p.to = w->m;
    p.to.data += (size_t)index * p.to.data_step;
    p.to.scale += (size_t)index * p.to.scale_step;
    p.stream += (uint64_t)index << 40; /* the heads of one matrix */
    p.format = (int32_t)w->format;
    p.tile_rows = tile_rows;
    size_t tiles = (size_t)p.to.row_tiles * (size_t)p.to.slabs;
    if (w->format != WEIGHT_BF16) {
        int code = 0;
        if (w->m.coding == CODE_EXPONENT) {
            set_exponents(&p, deviation_of(u, mat));
        } else if (w->m.coding) {
            code = set_codes(u, &p, w->format, deviation_of(u, mat));
        } else {
            set_scales(&p, w->format, deviation_of(u, mat));
        }
        if (code) return code;
        size_t scales = (size_t)p.to.row_tiles * (size_t)p.to.scale_groups * TILE_ROWS;
        cuda_launch(u->cuda, KERNEL_GENERATE_SCALES, blocks_for(scales), 0, &p);
    }
    cuda_launch(u->cuda, KERNEL_GENERATE_TILES, blocks_for(tiles * 32), 0, &p);
    return finish(u, p.to.data_step);
}

/* Routers and V4's mixers in fp32 are few: the host makes them. */
static int send_random(struct upload *u, const struct generate_params *p) {
    const struct cuda_driver *d = &u->cuda->driver;
    float *values = malloc(p->count * sizeof *values);
    if (!values) return mo_error_set(u->error, MO_E_NO_MEMORY, "no memory for random weights");
    for (size_t i = 0; i < p->count; i++) {
        const int32_t place = (int32_t)(mix(p->stream + i) >> 48) - 32768;
        values[i] = p->step * ((float)place + 0.5f);
    }
    int result = d->copy_in((cuda_address)(uintptr_t)p->to.data, values, p->count * sizeof *values, u->cuda->stream);
    if (!result) result = d->stream_wait(u->cuda->stream);
    free(values);
    return cuda_check(d, result, u->error, "GPU %d: sending random weights", u->cuda->card.index);
}

int upload_random_rows(struct upload *u, const struct mat *mat, void *to, enum repack_target target) {
    struct generate_params p = params_of(u, mat);
    p.to.data = to;
    p.count = (size_t)mat->rows * (size_t)mat->cols;
    if (target == REPACK_ROWS_BLOCKS) {
        return mo_error_set(u->error, MO_E_UNSUPPORTED, "random weights on a GPU: embedding in bf16 or fp32 only");
    }
    if (target == REPACK_ROWS_F32) {
        int code = send_random(u, &p);
        return code ? code : finish(u, p.count * 4);
    }
    cuda_launch(u->cuda, KERNEL_GENERATE_ROWS, blocks_for((p.count + 7) / 8), 0, &p);
    return finish(u, p.count * 2);
}
