/* backend/cuda/offload.c - routed experts of some layers or all on the CPU, where they lie; everything else on the card. For models
 * whose experts do not fit there: only activations travel, some tens of kilobytes a row and layer, never weights.
 *
 * The CPU's backend is used through its own stage table: it gets the residual stream, routes it, and adds up the routed
 * experts from zero; the card meanwhile computes the shared ones. Then the sum goes back. */
#include <string.h>
#include "backend/cuda/cuda.h"

static size_t row_bytes(const struct cuda *cuda) {
    return (size_t)cuda->batch->n_rows * (size_t)cuda->model->hidden * sizeof(float);
}

/* The CPU's own residual stream, which is ours to fill between its stages. */
static float *residual_of(struct backend *cpu) {
    return (float *)(uintptr_t)cpu->ops->residual(cpu);
}

void cuda_offload_begin(struct offload *offload, const struct batch *batch) {
    offload->batch = *batch;
    offload->batch.n_logits = 0;
    offload->cpu->ops->begin(offload->cpu, &offload->batch);
}

void cuda_offload_route(struct cuda *cuda, int layer) {
    const struct cuda_driver *d = &cuda->driver;
    cuda_address x = (cuda_address)(uintptr_t)cuda->scratch.x;
    cuda_keep(cuda, d->copy_out(cuda->offload.x, x, row_bytes(cuda), cuda->stream), "reading the residual stream");
    cuda_keep(cuda, d->event_record(cuda->offload.copied, cuda->stream), "reading the residual stream");
    if (cuda->model->shared_experts) {
        cuda_shared_experts(cuda, layer);
    } else {
        cuda_streams_target(cuda);
    }
    cuda_keep(cuda, d->event_wait(cuda->offload.copied), "reading the residual stream");
    if (cuda->failure.code) return; /* nothing to compute with */
    memcpy(residual_of(cuda->offload.cpu), cuda->offload.x, row_bytes(cuda));
    cuda->offload.cpu->ops->route(cuda->offload.cpu, layer);
}

void cuda_offload_experts(struct cuda *cuda, int layer) {
    struct backend *cpu = cuda->offload.cpu;
    if (cuda->failure.code) return;
    memset(residual_of(cpu), 0, row_bytes(cuda));
    cpu->ops->experts(cpu, layer);
    memcpy(cuda->offload.sum, residual_of(cpu), row_bytes(cuda));
    cuda_address to = (cuda_address)(uintptr_t)cuda->scratch.routed;
    cuda_keep(cuda, cuda->driver.copy_in(to, cuda->offload.sum, row_bytes(cuda), cuda->stream),
              "sending the experts' sum");
    struct add_params p = {.x = cuda->scratch.x, .y = cuda->scratch.routed, .hidden = cuda->model->hidden};
    cuda_launch(cuda, KERNEL_ADD_ROWS, cuda->batch->n_rows, 0, &p);
    cuda_streams_end(cuda);
}

int cuda_offload_open(struct offload *offload, const struct model *model, const struct weights *weights,
                      const struct backend_options *wanted, struct mo_error *error) {
    struct backend_options options = *wanted;
    options.n_pages = 1; /* its attention is not used */
    options.max_logits = 1;
    options.kv = KV_F32;
    options.take_cache = false;
    options.predict_experts = false; /* its residual stream is not the model's when a layer ends */
    offload->model = *model;
    offload->model.index_topk = 0;    /* attention, and V4's streams, are the card's: */
    offload->model.hybrid.window = 0; /* it gets what a block reads, and gives what the block adds */
    offload->model.hybrid.engram.n_layers = 0;
    offload->model.shared_experts = 0; /* these are the card's */
    return cpu_backend_open(&offload->cpu, &offload->model, weights, &options, error);
}
