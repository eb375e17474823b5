/* backend/cuda/profile.c - a step taken apart. cuda_launch asks here while a step is watched: launches are counted, and all but
 * one of a stage can be left out, so that this one is timed alone over all layers. */
#include <string.h>
#include "backend/cuda/cuda.h"
#include "backend/cuda/probe.h"

enum { REPEATS = 5, CAPTURE_THREAD_LOCAL = 1 };

/* Bytes of the matrices of a linear launch; with items, of the most that there can be: all, at batch 1. */
static double linear_bytes(const struct linear_params *p) {
    double bytes = 0;
    for (int j = 0; j < p->n_jobs; j++) {
        bytes += (double)p->job[j].groups * (double)(p->job[j].w.data_step + p->job[j].w.scale_step);
    }
    if (p->route.blocks) bytes += (double)p->route.experts * p->route.hidden * (p->route.router_is_bf16 ? 2 : 4);
    return bytes;
}

bool cuda_watch_launch(struct cuda *cuda, const char *image, const char *entry, int blocks, const void *params) {
    struct launch_watch *w = &cuda->watch;
    int index = w->n++;
    if (w->wanted >= 0 && w->wanted != index) return false;
    w->kernel = entry;
    w->blocks = blocks;
    if (!strncmp(image, "linear_", strlen("linear_"))) w->bytes += linear_bytes(params);
    return true;
}

/* One stage over the layers that have it. */
struct watched_stage {
    const char *name;
    cuda_stage_call *call;
    int first_layer, n_layers;
};

struct profiler {
    struct cuda *cuda;
    struct cuda_profile *out;
    struct cuda_event *first, *second;
    int launches[16]; /* of each stage, in one layer */
};

static int call_stage(struct cuda *cuda, const struct watched_stage *stage, int layer) {
    cuda->watch.n = 0;
    stage->call(&cuda->backend, layer);
    return cuda->watch.n;
}

static int keep(struct cuda *cuda, int result) {
    cuda->stage = "profile";
    cuda_keep(cuda, result, "timing its kernels");
    return cuda->failure.code;
}

typedef void record_call(struct cuda *cuda, const void *context);

/* Microseconds of what `record` launches, as a graph, the mean of REPEATS runs after one that is not counted. */
static double time_recorded(struct profiler *p, record_call *record, const void *context) {
    struct cuda *cuda = p->cuda;
    const struct cuda_driver *d = &cuda->driver;
    struct cuda_graph *graph = NULL;
    struct cuda_ready_graph *ready = NULL;
    float ms = 0;
    if (keep(cuda, d->capture_begin(cuda->stream, CAPTURE_THREAD_LOCAL))) return 0;
    record(cuda, context);
    keep(cuda, d->capture_end(cuda->stream, &graph));
    if (graph) keep(cuda, d->graph_prepare(&ready, graph, 0));
    for (int i = -1; i < REPEATS && !cuda->failure.code; i++) {
        if (i == 0) keep(cuda, d->event_record(p->first, cuda->stream));
        keep(cuda, d->graph_launch(ready, cuda->stream));
    }
    keep(cuda, d->event_record(p->second, cuda->stream));
    keep(cuda, d->event_wait(p->second));
    keep(cuda, d->event_elapsed(&ms, p->first, p->second));
    if (ready) d->graph_forget(ready);
    if (graph) d->graph_destroy(graph);
    return (double)ms * 1e3 / REPEATS;
}

static void record_stage(struct cuda *cuda, const void *context) {
    const struct watched_stage *stage = context;
    for (int i = 0; i < stage->n_layers; i++) call_stage(cuda, stage, stage->first_layer + i);
}

static void time_stage(struct profiler *p, const struct watched_stage *stage, int n_launches) {
    struct launch_watch *w = &p->cuda->watch;
    for (int i = 0; i < n_launches && p->out->n < CUDA_PROFILE_MAX; i++) {
        w->wanted = i;
        w->bytes = 0;
        double us = time_recorded(p, record_stage, stage);
        p->out->launches[p->out->n++] = (struct cuda_launch_time){.stage = stage->name,
                                                                  .kernel = w->kernel,
                                                                  .launch = i,
                                                                  .layers = stage->n_layers,
                                                                  .blocks = w->blocks,
                                                                  .us = us / stage->n_layers,
                                                                  .bytes = w->bytes / stage->n_layers};
    }
    w->wanted = -1;
}

enum { EMBED, ATTN_IN, ATTN, ATTN_OUT, FFN_DENSE, ROUTE, EXPERTS, HEAD, PICK, STAGES };

/* What the batch has no use for is of no layer. */
static void list_stages(const struct model *m, const struct batch *batch, struct watched_stage stages[STAGES]) {
    int dense = m->dense_layers < m->layers ? m->dense_layers : m->layers, sparse = m->layers - dense;
    const struct watched_stage list[STAGES] = {
        {"embed", cuda_embed, 0, 1},
        {"attn_in", cuda_attn_in, 0, m->layers},
        {"attn", cuda_attn, 0, m->layers},
        {"attn_out", cuda_attn_out, 0, m->layers},
        {"ffn_dense", cuda_ffn_dense, 0, dense},
        {"route", cuda_route, dense, sparse},
        {"experts", cuda_experts, dense, sparse},
        {"head", cuda_head, 0, batch->n_logits ? 1 : 0},
        {"pick", cuda_pick, 0, batch->pick ? 1 : 0},
    };
    memcpy(stages, list, sizeof list);
}

/* A whole step, as forward() has it. */
static void record_step(struct cuda *cuda, const void *context) {
    const struct watched_stage *stages = context;
    const struct model *m = cuda->model;
    call_stage(cuda, &stages[EMBED], 0);
    for (int layer = 0; layer < m->layers; layer++) {
        for (int s = ATTN_IN; s <= ATTN_OUT; s++) call_stage(cuda, &stages[s], layer);
        if (model_layer_is_dense(m, layer)) {
            call_stage(cuda, &stages[FFN_DENSE], layer);
        } else {
            call_stage(cuda, &stages[ROUTE], layer);
            call_stage(cuda, &stages[EXPERTS], layer);
        }
    }
    if (cuda->batch->n_logits) call_stage(cuda, &stages[HEAD], 0);
    if (cuda->batch->pick) call_stage(cuda, &stages[PICK], 0);
}

/* Computes the batch once, stage by stage, and counts: of every stage in the last layer that has it. */
static void count_launches(struct profiler *p, const struct watched_stage *stages) {
    struct cuda_profile *out = p->out;
    for (int s = 0; s < STAGES; s++) p->launches[s] = 0;
    record_step(p->cuda, stages); /* leaves sane activations and routing behind */
    for (int s = 0; s < STAGES; s++) {
        if (stages[s].n_layers == 0) continue;
        p->launches[s] = call_stage(p->cuda, &stages[s], stages[s].first_layer + stages[s].n_layers - 1);
        out->step_kernels += p->launches[s] * stages[s].n_layers;
    }
    int attention = p->launches[ATTN_IN] + p->launches[ATTN] + p->launches[ATTN_OUT];
    if (stages[ROUTE].n_layers) out->layer_kernels = attention + p->launches[ROUTE] + p->launches[EXPERTS];
    if (stages[FFN_DENSE].n_layers) out->dense_layer_kernels = attention + p->launches[FFN_DENSE];
}

int cuda_profile_step(struct backend *backend, const struct batch *batch, bool timed, struct cuda_profile *out,
                      struct mo_error *error) {
    struct cuda *cuda = cuda_alone(backend);
    struct watched_stage stages[STAGES];
    struct profiler p = {.cuda = cuda, .out = out};
    *out = (struct cuda_profile){0};
    if (!cuda || cuda->offload.cpu) {
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "with several GPUs, or experts on the CPU, a step is not one GPU's alone");
    }
    bool off = cuda->recorder.off;
    list_stages(cuda->model, batch, stages);
    cuda->recorder.off = true; /* the stages are called by hand */
    backend->ops->begin(backend, batch);
    cuda->recorder.off = off;
    cuda->watch = (struct launch_watch){.on = true, .wanted = -1};
    keep(cuda, cuda->driver.event_create(&p.first, 0));
    keep(cuda, cuda->driver.event_create(&p.second, 0));
    count_launches(&p, stages);
    if (timed && !cuda->failure.code) out->step_us = time_recorded(&p, record_step, stages);
    for (int s = 0; s < STAGES && timed && !cuda->failure.code; s++) {
        if (p.launches[s]) time_stage(&p, &stages[s], p.launches[s]);
    }
    cuda->watch.on = false;
    if (p.first) cuda->driver.event_destroy(p.first);
    if (p.second) cuda->driver.event_destroy(p.second);
    int code = backend->ops->end(backend, error);
    return code == MO_E_NUMERIC ? 0 : code; /* stages called again and again leave no sane numbers, and need not */
}
