/* backend/cuda/streams.c - V4's and V4.1's residual streams around the blocks, as launches (kernels/streams.cu); backend/cpu/streams.c is the
 * same on the CPU. For all other models nothing happens: x is the residual stream. */
#include "backend/cuda/cuda.h"
#include "backend/cuda/params_streams.h"

static int pieces(const struct model *m) {
    return (m->hidden * model_streams(m) + STREAM_COLS - 1) / STREAM_COLS;
}

size_t cuda_streams_piece_floats(const struct model *m) {
    return (size_t)pieces(m) * (size_t)(model_mix_dim(m) + 1);
}

static struct streams_params params(const struct cuda *cuda, int n) {
    const struct model *m = cuda->model;
    return (struct streams_params){.residual = cuda->scratch.streams,
                                   .x = cuda->scratch.x,
                                   .piece = cuda->scratch.mix_piece,
                                   .mix = cuda->scratch.mix,
                                   .before = cuda->scratch.before,
                                   .n = n,
                                   .hidden = m->hidden,
                                   .streams = m->hybrid.streams,
                                   .numbers = model_mix_dim(m),
                                   .pieces = pieces(m),
                                   .iterations = m->hybrid.sinkhorn_iterations,
                                   .norm_eps = (float)m->norm_eps,
                                   .mix_eps = (float)m->hybrid.mix_eps};
}

static void collapse(struct cuda *cuda, struct streams_params *p, const struct device_mixer *mixer) {
    p->matrix = mixer->mix;
    p->base = mixer->base;
    p->scale = mixer->scale;
    cuda_launch(cuda, KERNEL_STREAMS_MULTIPLY, p->pieces * ((p->n + STREAM_ROWS - 1) / STREAM_ROWS), 0, p);
    cuda_launch(cuda, KERNEL_STREAMS_COLLAPSE, p->n, 0, p);
}

void cuda_streams_spread(struct cuda *cuda) {
    struct streams_params p = params(cuda, cuda->batch->n_rows);
    if (model_is_hybrid(cuda->model)) cuda_launch(cuda, KERNEL_STREAMS_SPREAD, p.n, 0, &p);
}

void cuda_streams_begin(struct cuda *cuda, const struct device_mixer *mixer) {
    struct streams_params p = params(cuda, cuda->batch->n_rows);
    if (model_is_hybrid(cuda->model)) collapse(cuda, &p, mixer);
}

void cuda_streams_target(struct cuda *cuda) {
    struct streams_params p = params(cuda, cuda->batch->n_rows);
    if (model_is_hybrid(cuda->model)) cuda_launch(cuda, KERNEL_STREAMS_CLEAR, p.n, 0, &p);
}

void cuda_streams_end(struct cuda *cuda) {
    struct streams_params p = params(cuda, cuda->batch->n_rows);
    int blocks = p.n * ((p.hidden + MIX_COLS - 1) / MIX_COLS);
    if (model_is_hybrid(cuda->model)) cuda_launch(cuda, KERNEL_STREAMS_MIX, blocks, 0, &p);
}

void cuda_streams_read(struct cuda *cuda, const struct device_mixer *mixer, const int32_t *rows, int n) {
    struct streams_params p = params(cuda, n);
    p.rows = rows;
    p.numbers = p.streams;
    if (model_is_csa2(cuda->model)) {
        cuda_launch(cuda, KERNEL_STREAMS_READ, n, 0, &p);
    } else if (model_is_hybrid(cuda->model)) {
        collapse(cuda, &p, mixer);
    }
}
