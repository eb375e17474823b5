/* backend/cuda/engram.c - V4.1's n-gram memory beside a card. Its tables stay in the mapped files: the host looks up what a step's rows want
 * of all of them, as the CPU backend does (engram_lookup.h), and sends that with the batch, in bf16, as activations are multiplied: tables
 * as published lose nothing. Products and gates are the card's. */
#include "backend/cuda/cuda.h"
#include "backend/cuda/params_streams.h"

static const struct engram_model *engram_of(const struct cuda *cuda) {
    return &cuda->model->hybrid.engram;
}

size_t cuda_engram_row_values(const struct cuda *cuda) {
    return (size_t)engram_columns(engram_of(cuda)) * (size_t)engram_of(cuda)->dim;
}

int cuda_engram_open(struct cuda *cuda, const struct weights *weights, struct mo_error *error) {
    const struct engram_model *e = engram_of(cuda);
    const size_t rows = (size_t)e->n_layers * (size_t)cuda->options.max_rows;
    if (!e->n_layers) return 0;
    int32_t *room = arena_alloc_array(cuda->arena, rows * (size_t)engram_columns(e), sizeof *room);
    if (!room) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
    int code = engram_lookup_open(&cuda->engram.lookup, cuda->model, weights, cuda->options.max_rows, room, error);
    return code ? code : pool_create(&cuda->engram.pool, cuda->options.threads, error);
}

void cuda_engram_close(struct cuda *cuda) {
    pool_destroy(cuda->engram.pool);
}

/* ---- what a step looks up ---- */

static const struct batch_seq *seq_of(const struct batch *batch, int row) {
    const struct batch_seq *seq = batch->seqs;
    while (row >= seq->first_row + seq->n_rows) seq++;
    return seq;
}

static void find_rows(void *context, int index, int worker) {
    (void)worker;
    const struct cuda *cuda = context;
    const int n = cuda->batch->n_rows, row = index % n;
    engram_lookup_find(&cuda->engram.lookup, cuda->batch, seq_of(cuda->batch, row), index / n, row);
}

/* Random weights are made on the card, and nobody has tables: any values will do. */
static void make_up(float *out, int n, uint32_t seed) {
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        out[i] = (float)((int)(seed >> 24) - 128) / 8192;
    }
}

/* A row of the batch in one of the tables; hashes of one length of n-grams at a time. */
static void gather(void *context, int index, int worker) {
    (void)worker;
    const struct cuda *cuda = context;
    const struct engram_model *e = engram_of(cuda);
    const int n = cuda->batch->n_rows, which = index / n, row = index % n;
    const bool is_there = cuda->engram.lookup.weights->layers[e->layer[which]].engram.table.data != NULL;
    uint16_t *to = cuda->engram.to + (size_t)index * cuda_engram_row_values(cuda);
    float values[ENGRAM_MAX_DIM];
    for (int c = 0; c < engram_columns(e); c++, to += e->dim) {
        if (is_there) {
            engram_lookup_values(&cuda->engram.lookup, which, row, c, 1, values);
        } else {
            make_up(values, e->dim, (uint32_t)(index * engram_columns(e) + c));
        }
        for (int i = 0; i < e->dim; i++) to[i] = f32_to_bf16(values[i]);
    }
}

void cuda_engram_begin(struct cuda *cuda, uint16_t *to) {
    const int tasks = engram_of(cuda)->n_layers * cuda->batch->n_rows;
    cuda->engram.to = to;
    pool_run(cuda->engram.pool, tasks, find_rows, cuda);
    pool_run(cuda->engram.pool, tasks, gather, cuda);
}

/* ---- what it says ---- */

static void multiply(struct cuda *cuda, const struct device_layer *w, int which) {
    const int n = cuda->batch->n_rows;
    const struct weight *kv = &w->engram_kv;
    const size_t values = cuda_engram_row_values(cuda);
    struct linear_params p = cuda_linear_begin(cuda);
    struct linear_job *job = cuda_linear_add(&p, kv, n, 1);
    job->x_kind = X_BF16;
    job->x = cuda->step.engram + (size_t)which * (size_t)n * values;
    job->x_stride = values;
    job->y = cuda->scratch.engram_kv;
    job->y_stride = (size_t)kv->m.rows;
    job->y_kind = Y_F32;
    cuda_linear_run(cuda, &p, &kv, n);
}

void cuda_engram_add(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    const struct device_layer *w = &cuda->weights.layers[layer];
    const int which = model_engram_of(m, layer);
    const struct engram_params p = {.residual = cuda->scratch.streams,
                                    .kv = cuda->scratch.engram_kv,
                                    .q_weight = w->engram_q_weight,
                                    .k_weight = w->engram_k_weight,
                                    .fault = cuda->scratch.fault,
                                    .hidden = m->hidden,
                                    .streams = model_streams(m),
                                    .fault_key = fault_key(layer, FAULT_ENGRAM),
                                    .fault_before = fault_key(layer, FAULT_BEFORE),
                                    .eps = (float)m->norm_eps};
    if (which < 0) return;
    multiply(cuda, w, which);
    cuda_launch(cuda, KERNEL_ENGRAM_ADD, cuda->batch->n_rows * model_streams(m), 0, &p);
}
