#include "backend/cuda/cuda.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void wait_for(struct cuda *cuda, const char *what) {
    cuda_keep(cuda, cuda->driver.stream_wait(cuda->stream), what);
}

/* Copies `bytes` from the card, for the taps. */
static void read_back(struct cuda *cuda, void *to, const void *from, size_t bytes, const char *what) {
    if (cuda->failure.code || bytes == 0) return;
    cuda_keep(cuda, cuda->driver.copy_out(to, (cuda_address)(uintptr_t)from, bytes, cuda->stream), what);
}

/* The step that ended last. */
static const struct flight *ended(const struct cuda *cuda) {
    return &cuda->flights[(cuda->n_ended - 1) % 2];
}

int cuda_blame(struct cuda *cuda, struct mo_error *error) {
    const struct flight *flight = ended(cuda);
    if (*flight->fault == ~0ull) return 0;
    int key = (int)(*flight->fault >> 32) - 1, row = (int)(*flight->fault & 0xffffffff), layer = key / FAULT_STAGES,
        layers = cuda->model->layers;
    const struct batch *b = flight->batch;
    const char *stage = "attn_in";
    char where[64], token[32] = "picked by itself";
    if (b->token[row] >= 0) snprintf(token, sizeof token, "%d", b->token[row]);
    switch (key % FAULT_STAGES) {
    case FAULT_BEFORE:
        stage = layer-- == 0 ? "embed" : "feed-forward";
        break;
    case FAULT_ENGRAM:
        stage = "engram";
        break;
    case FAULT_ATTENTION:
        stage = "attention";
        break;
    case FAULT_ROUTE:
        stage = "route";
        break;
    default:
        if (layer == layers) stage = "head";
    }
    cuda->fault_row = row;
    int seq = 0;
    while (seq < b->n_seqs - 1 && row >= b->seqs[seq].first_row + b->seqs[seq].n_rows) seq++;
    snprintf(where, sizeof where,
             layer < 0         ? "before layer 0"
             : layer == layers ? "after the last layer"
                               : "in layer %d",
             layer);
    return mo_error_set(error, MO_E_NUMERIC, "NaN or infinity %s, stage %s (batch row %d, position %d, token %s)",
                        where, stage, row, b->seqs[seq].first_pos + row - b->seqs[seq].first_row, token);
}

int cuda_wait_step(struct cuda *cuda, struct mo_error *error) {
    cuda->stage = "end"; /* a step that nobody waits for is ended by the thread that closes */
    cuda_keep(cuda, cuda->driver.context_use(cuda->card.context), "cuCtxSetCurrent");
    cuda_submit(cuda);
    cuda->n_ended++;
    cuda->stage = "end";
    if (!cuda->failure.code) cuda_keep(cuda, cuda->driver.event_wait(ended(cuda)->done), "the kernels of this step");
    if (cuda->failure.code && error) *error = cuda->failure;
    return cuda->failure.code;
}

static int cuda_end(struct backend *backend, struct mo_error *error) {
    struct cuda *cuda = (struct cuda *)backend;
    struct backend *cpu = cuda->offload.cpu;
    struct mo_error of_cpu = {0};
    int code = cuda_wait_step(cuda, error);
    int cpu_code = cpu ? cpu->ops->end(cpu, &of_cpu) : 0; /* every step that began there ends there */
    if (!code) code = cuda_link_end(cuda, error);
    if (!code) code = cuda_blame(cuda, error); /* what the CPU found then came of it */
    if (code || !cpu_code) return code;
    cuda->fault_row = cpu->ops->fault_row(cpu);
    if (error) *error = of_cpu;
    return cpu_code;
}

static int cuda_fault_row(struct backend *backend) {
    return ((struct cuda *)backend)->fault_row;
}

static const float *cuda_logits(struct backend *backend) {
    return ((struct cuda *)backend)->logits;
}

static const int32_t *cuda_picked(struct backend *backend) {
    return ended((struct cuda *)backend)->picked;
}

static const float *read_residual(struct cuda *cuda, const float *from, size_t row_floats) {
    size_t bytes = (size_t)cuda->batch->n_rows * row_floats * sizeof(float);
    read_back(cuda, cuda->residual, from, bytes, "reading the residual stream");
    wait_for(cuda, "reading the residual stream");
    return cuda->residual;
}

/* V4: by the head's mixer. */
static const float *cuda_residual(struct backend *backend) {
    struct cuda *cuda = (struct cuda *)backend;
    cuda_graph_flush(cuda);
    cuda_streams_read(cuda, &cuda->weights.head_mixer, NULL, cuda->batch->n_rows);
    return read_residual(cuda, cuda->scratch.x, (size_t)cuda->model->hidden);
}

static const float *cuda_streams(struct backend *backend) {
    struct cuda *cuda = (struct cuda *)backend;
    cuda_graph_flush(cuda);
    return read_residual(cuda, cuda_residual_at(cuda), model_residual_dim(cuda->model));
}

static void cuda_routing(struct backend *backend, const int32_t **ids, const float **weights) {
    struct cuda *cuda = (struct cuda *)backend;
    size_t bytes = (size_t)cuda->batch->n_rows * (size_t)cuda->model->top_k * 4;
    cuda_graph_flush(cuda);
    cuda_route_now(cuda);
    if (cuda->offload.has_routed) {
        cuda->offload.cpu->ops->routing(cuda->offload.cpu, ids, weights);
        return;
    }
    read_back(cuda, cuda->id, cuda->scratch.id, bytes, "reading the routing");
    read_back(cuda, cuda->weight, cuda->scratch.weight, bytes, "reading the routing");
    wait_for(cuda, "reading the routing");
    *ids = cuda->id;
    *weights = cuda->weight;
}

static void close_card(struct cuda *cuda) {
    const struct cuda_driver *d = &cuda->driver;
    d->context_use(cuda->card.context);
    if (cuda->stream) d->stream_wait(cuda->stream);
    cuda_graph_close(cuda);
    cuda_pages_close(cuda);
    cuda_engram_close(cuda);
    if (cuda->pinned) d->pinned_free(cuda->pinned);
    if (cuda->logits) d->pinned_free(cuda->logits);
    for (int i = 0; i < 2; i++) {
        if (cuda->flights[i].done) d->event_destroy(cuda->flights[i].done);
    }
    if (cuda->offload.x) d->pinned_free(cuda->offload.x);
    if (cuda->offload.sum) d->pinned_free(cuda->offload.sum);
    if (cuda->offload.copied) d->event_destroy(cuda->offload.copied);
    cuda_link_close(cuda);
    if (cuda->weights_at) d->memory_free(cuda->weights_at);
    if (cuda->scratch_at) d->memory_free(cuda->scratch_at);
    if (cuda->cache_at) d->memory_free(cuda->cache_at);
    for (int i = 0; i < MAX_IMAGES; i++) {
        if (cuda->modules[i]) d->module_unload(cuda->modules[i]);
    }
    if (cuda->stream) d->stream_destroy(cuda->stream);
    cuda_card_close(d, &cuda->card);
}

static void cuda_close(struct backend *backend) {
    struct cuda *cuda = (struct cuda *)backend;
    if (cuda->card_open) close_card(cuda);
    if (cuda->offload.cpu && !cuda->offload.is_shared) cuda->offload.cpu->ops->close(cuda->offload.cpu);
    cuda_driver_close(&cuda->driver);
    arena_destroy(cuda->arena);
    free(cuda);
}

/* The stage table's entries: each may be left to a recording. */
#define STAGE(name)                                                                                                    \
    static void stage_##name(struct backend *backend, int layer) {                                                     \
        cuda_stage((struct cuda *)backend, cuda_##name, layer);                                                        \
    }
#define STAGE_ALONE(name)                                                                                              \
    static void stage_##name(struct backend *backend) {                                                                \
        cuda_stage((struct cuda *)backend, cuda_##name, 0);                                                            \
    }
STAGE_ALONE(embed)
STAGE(attn_in)
STAGE(attn)
STAGE(attn_out)
STAGE(ffn_dense)
STAGE(route)
STAGE(experts)
STAGE_ALONE(head)
STAGE_ALONE(pick)

static const struct backend_ops cuda_ops = {
    .name = "cuda",
    .close = cuda_close,
    .begin = cuda_begin,
    .embed = stage_embed,
    .attn_in = stage_attn_in,
    .attn = stage_attn,
    .attn_out = stage_attn_out,
    .ffn_dense = stage_ffn_dense,
    .route = stage_route,
    .experts = stage_experts,
    .head = stage_head,
    .pick = stage_pick,
    .end = cuda_end,
    .fault_row = cuda_fault_row,
    .logits = cuda_logits,
    .picked = cuda_picked,
    .residual = cuda_residual,
    .streams = cuda_streams,
    .routing = cuda_routing,
    .page_out = cuda_page_out,
    .page_in = cuda_page_in,
};

int cuda_take_pinned(const struct cuda *cuda, size_t bytes, const char *what, void *at, struct mo_error *error) {
    enum { PORTABLE = 1 }; /* CU_MEMHOSTALLOC_PORTABLE: other cards may use it, too */
    void *memory = NULL;
    int code = cuda_check(&cuda->driver, cuda->driver.pinned_take(&memory, bytes, PORTABLE), error,
                          "%.2f GiB of pinned memory for the %s", (double)bytes / (1 << 30), what);
    memcpy(at, &memory, sizeof memory);
    return code;
}

/* Twice what goes to the card and comes back in a step. */
static int take_flights(struct cuda *cuda, struct mo_error *error) {
    size_t picked = cuda->step_bytes, fault = (picked + (size_t)cuda->options.max_logits * sizeof(int32_t) + 7) / 8 * 8;
    size_t each = fault + sizeof *cuda->flights[0].fault;
    int code = cuda_take_pinned(cuda, 2 * each, "batch", &cuda->pinned, error);
    for (int i = 0; i < 2 && !code; i++) {
        struct flight *flight = &cuda->flights[i];
        flight->staging = cuda->pinned + (size_t)i * each;
        flight->picked = (int32_t *)(void *)(flight->staging + picked);
        flight->fault = (unsigned long long *)(void *)(flight->staging + fault);
        code =
            cuda_check(&cuda->driver, cuda->driver.event_create(&flight->done, 2), error, "an event"); /* no timing */
    }
    return code;
}

static int take_host_memory(struct cuda *cuda, struct mo_error *error) {
    const struct model *m = cuda->model;
    size_t rows = (size_t)cuda->options.max_rows, pairs = rows * (size_t)m->top_k;
    cuda->frequency = arena_alloc_array(cuda->arena, (size_t)m->rope_dim, sizeof *cuda->frequency);
    cuda->residual = arena_alloc_array(cuda->arena, rows * model_residual_dim(m), sizeof *cuda->residual);
    cuda->id = arena_alloc_array(cuda->arena, pairs, sizeof *cuda->id);
    cuda->weight = arena_alloc_array(cuda->arena, pairs, sizeof *cuda->weight);
    cuda->far_frequency = arena_alloc_array(cuda->arena, (size_t)m->rope_dim, sizeof *cuda->far_frequency);
    if (!cuda->frequency || !cuda->far_frequency || !cuda->residual || !cuda->id || !cuda->weight) {
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
    }
    model_rope_frequencies(m, &m->rope, cuda->frequency);
    if (model_is_hybrid(m)) model_rope_frequencies(m, &m->hybrid.rope, cuda->far_frequency);
    size_t logits = (size_t)cuda->options.max_logits * (size_t)m->vocab * sizeof(float);
    int code = take_flights(cuda, error);
    if (!code && cuda_has_head(cuda)) code = cuda_take_pinned(cuda, logits, "logits", &cuda->logits, error);
    if (code || !cuda->offload.cpu) return code;
    size_t residual = rows * (size_t)m->hidden * sizeof(float);
    code = cuda_take_pinned(cuda, residual, "residual stream", &cuda->offload.x, error);
    if (!code) code = cuda_take_pinned(cuda, residual, "experts' sums", &cuda->offload.sum, error);
    if (!code) code = cuda_check(&cuda->driver, cuda->driver.event_create(&cuda->offload.copied, 2), error, "an event");
    return code;
}

/* What is needed, without a card: sizes alone. */
static int count(struct cuda *cuda, const struct weights *weights, struct mo_error *error) {
    struct device_region region = {0};
    int code = cuda_check_model(cuda->model, &cuda->options, error);
    if (code) return code;
    code = cuda_cache_plan(cuda, error);
    if (!code) code = cuda_expanded_plan(cuda, error);
    if (code) return code;
    code = cuda_link_plan(cuda, weights, error);
    if (code) return code;
    cuda->max_slots = cuda_max_slots(cuda);
    cuda->step_bytes = cuda_step_bytes(cuda);
    cuda_place_scratch(cuda, &region);
    cuda->scratch_bytes = region.used;
    return cuda_upload(cuda, weights, error);
}

static int clear_counters(struct cuda *cuda, struct mo_error *error) {
    size_t bytes = cuda_counters(cuda) * sizeof *cuda->scratch.arrived;
    int result = cuda->driver.fill((cuda_address)(uintptr_t)cuda->scratch.arrived, 0, bytes, cuda->stream);
    if (!result) result = cuda->driver.stream_wait(cuda->stream);
    return cuda_check(&cuda->driver, result, error, "GPU %d: clearing its counters", cuda->card.index);
}

static bool switch_of(const char *name, bool normal) {
    const char *text = getenv(name);
    return text ? strcmp(text, "0") != 0 : normal;
}

/* The CPU that computes experts: its own, or that of all the cards. */
static int open_cpu(struct cuda *cuda, const struct weights *weights, struct backend *shared, struct mo_error *error) {
    if (!cuda_has_cpu_experts(cuda)) return 0;
    cuda->offload.cpu = shared;
    cuda->offload.is_shared = shared != NULL;
    return shared ? 0 : cuda_offload_open(&cuda->offload, cuda->model, weights, &cuda->options, error);
}

static int open_all(struct cuda *cuda, const struct weights *weights, struct backend *cpu, struct mo_error *error) {
    int device = cuda->part.device, code = count(cuda, weights, error);
    if (!code) code = cuda_driver_open(&cuda->driver, error);
    if (!code) code = cuda_card_open(&cuda->driver, device, &cuda->card, error);
    if (code) return code;
    cuda->card_open = true;
    code = cuda_check(&cuda->driver, cuda->driver.stream_create(&cuda->stream, 1), error, "GPU %d: no stream", device);
    if (!code) code = cuda_load_kernels(cuda, error);
    if (!code) code = cuda_take_memory(cuda, error);
    if (!code) code = open_cpu(cuda, weights, cpu, error);
    if (!code) code = cuda_engram_open(cuda, weights, error);
    if (!code) code = take_host_memory(cuda, error);
    if (!code) code = cuda_pages_open(cuda, error);
    if (!code) code = cuda_graph_open(cuda, error);
    if (!code) code = clear_counters(cuda, error);
    if (!code) code = cuda_upload(cuda, weights, error);
    if (!code && cuda->link.rows) code = cuda_link_open(cuda, weights, error);
    /* From here on all kernels are a step's, and wait for the one before where they need it (after_previous). */
    cuda->early = switch_of("MOEBIUS_CUDA_EARLY", false) && cuda->card.capability >= 90;
    return code;
}

static struct cuda *create(const struct model *model, const struct backend_options *options,
                           const struct cuda_part *part) {
    struct cuda *cuda = calloc(1, sizeof *cuda);
    struct arena *arena = arena_create();
    if (!cuda || !arena) {
        arena_destroy(arena);
        free(cuda);
        return NULL;
    }
    *cuda = (struct cuda){.model = model, .part = *part, .options = *options, .arena = arena, .fault_row = -1};
    bool picks = switch_of("MOEBIUS_CUDA_PICKS", true); /* 0: the host chooses every token, as on the CPU */
    cuda->no_fold = !switch_of("MOEBIUS_CUDA_FOLD", true);
    cuda->no_join = !switch_of("MOEBIUS_CUDA_JOIN", true);
    cuda->prefetch = switch_of("MOEBIUS_CUDA_PREFETCH", false);
    cuda->waits = switch_of("MOEBIUS_CUDA_WAIT", false);
    cuda->backend = (struct backend){.ops = &cuda_ops, .picks = picks};
    /* Experts on the CPU have one step at a time; n-grams are looked up by tokens that the host knows. */
    cuda->backend.runs_ahead = picks && !options->cpu_layers && !model->hybrid.engram.n_layers;
    cuda->options.kv = cache_layout(model_is_csa2(model), options->kv);
    /* Only prompts of many rows take it, so the same token gets other bits there than in a decode step. */
    cuda->fp8_native = switch_of("MOEBIUS_CUDA_FP8_NATIVE", false) && !options->batch_invariant;
    cuda->magnitude = (float)model_rope_magnitude(model);
    cuda->softmax_scale = (float)model_softmax_scale(model);
    return cuda;
}

int cuda_backend_bytes(const struct model *model, const struct weights *weights, const struct backend_options *options,
                       const struct cuda_part *part, struct cuda_bytes *bytes, struct mo_error *error) {
    struct cuda *cuda = create(model, options, part);
    if (!cuda) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
    int code = count(cuda, weights, error);
    *bytes = (struct cuda_bytes){cuda->weights_bytes, cuda->scratch_bytes};
    cuda_close(&cuda->backend);
    return code;
}

int cuda_backend_probe(int device, struct cuda_card_info *info, struct mo_error *error) {
    struct cuda_driver driver;
    struct cuda_card card;
    int code = cuda_driver_open(&driver, error);
    if (code) return code;
    code = cuda_card_open(&driver, device, &card, error);
    if (!code) {
        *info = (struct cuda_card_info){
            .capability = card.capability, .free_bytes = card.free_bytes, .total_bytes = card.total_bytes};
        snprintf(info->name, sizeof info->name, "%s", card.name);
        cuda_card_close(&driver, &card);
    }
    cuda_driver_close(&driver);
    return code;
}

int cuda_open(struct cuda **out, const struct model *model, const struct weights *weights,
              const struct backend_options *options, const struct cuda_part *part, struct backend *cpu,
              struct mo_error *error) {
    struct cuda *cuda = create(model, options, part);
    if (!cuda) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
    int code = open_all(cuda, weights, cpu, error);
    if (code) {
        cuda_close(&cuda->backend);
        return code;
    }
    *out = cuda;
    return 0;
}

int cuda_backend_open(struct backend **backend, const struct model *model, const struct weights *weights,
                      const struct backend_options *options, const struct cuda_part *parts, int n_parts,
                      struct mo_error *error) {
    struct cuda *cuda = NULL;
    if (n_parts > 1) return cuda_split_open(backend, model, weights, options, parts, n_parts, error);
    int code = cuda_open(&cuda, model, weights, options, parts, NULL, error);
    if (!code) *backend = &cuda->backend;
    return code;
}
