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

enum { ANY_KIND = -1, KINDS_MAX = 32, STAGES_MAX = 7 + 2 * KINDS_MAX };

/* One stage over the layers of [first_layer, end_layer) that have it: those of one kind, which launch the same kernels. */
struct watched_stage {
    const char *name;
    cuda_stage_call *call;
    int first_layer, end_layer, kind;
    int n_layers, n_launches; /* in each */
};

struct profiler {
    struct cuda *cuda;
    struct cuda_profile *out;
    struct cuda_event *first, *second;
    struct watched_stage stages[STAGES_MAX];
    int n_stages;
};

/* For attention: V4's have one ratio; V4.1's besides make rows or choose among them, or do not, and some look up n-grams. */
static int kind_of(const struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    if (!model_is_hybrid(m)) return ANY_KIND;
    const bool narrows = cuda->is_narrowed && layer == m->hybrid.candidate_layer;
    const int has = (model_makes_rows(m, layer) > 0) + 2 * model_layer_indexes(m, layer) +
                    4 * (model_engram_of(m, layer) >= 0) + 8 * narrows;
    return m->hybrid.ratio[layer] * 16 + has;
}

static bool has_stage(const struct cuda *cuda, const struct watched_stage *stage, int layer) {
    return stage->kind == ANY_KIND || kind_of(cuda, layer) == stage->kind;
}

static int call_stage(struct cuda *cuda, cuda_stage_call *call, int layer) {
    cuda->watch.n = 0;
    call(&cuda->backend, layer);
    return cuda->watch.n;
}

static int keep(struct cuda *cuda, int result) {
    cuda->stage = "profile";
    cuda_keep(cuda, result, "timing its kernels");
    return cuda->failure.code;
}

typedef void record_call(struct cuda *cuda, const void *context);

/* What experts' second launch takes back, where it is left out. */
static void take_back_lists(struct cuda *cuda) {
    const cuda_address listed = (cuda_address)(uintptr_t)cuda->scratch.listed;
    const size_t bytes = (size_t)cuda->model->layers * sizeof *cuda->scratch.listed;
    keep(cuda, cuda->driver.fill(listed, 0, bytes, cuda->stream));
}

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
        if (cuda->watch.wanted >= 0) take_back_lists(cuda); /* next to nothing beside a launch of every layer */
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
    for (int layer = stage->first_layer; layer < stage->end_layer; layer++) {
        if (has_stage(cuda, stage, layer)) call_stage(cuda, stage->call, layer);
    }
}

static void time_stage(struct profiler *p, const struct watched_stage *stage) {
    struct launch_watch *w = &p->cuda->watch;
    for (int i = 0; i < stage->n_launches && p->out->n < CUDA_PROFILE_MAX; i++) {
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

static void add_stage(struct profiler *p, struct watched_stage stage) {
    int last = 0;
    for (int layer = stage.first_layer; layer < stage.end_layer; layer++) {
        if (!has_stage(p->cuda, &stage, layer)) continue;
        stage.n_layers++;
        last = layer;
    }
    if (stage.n_layers == 0) return;
    stage.n_launches = call_stage(p->cuda, stage.call, last);
    p->stages[p->n_stages++] = stage;
}

static bool is_first_of_kind(const struct cuda *cuda, int layer) {
    for (int l = 0; l < layer; l++) {
        if (kind_of(cuda, l) == kind_of(cuda, layer)) return false;
    }
    return true;
}

/* What the batch has no use for is of no layer. */
static void list_stages(struct profiler *p, const struct batch *batch) {
    const struct model *m = p->cuda->model;
    const int dense = m->dense_layers < m->layers ? m->dense_layers : m->layers;
    add_stage(p, (struct watched_stage){"embed", cuda_embed, 0, 1, ANY_KIND, 0, 0});
    for (int l = 0, kinds = 0; l < m->layers && kinds < KINDS_MAX; l++) {
        const int kind = kind_of(p->cuda, l);
        if (!is_first_of_kind(p->cuda, l)) continue;
        add_stage(p, (struct watched_stage){"attn_in", cuda_attn_in, 0, m->layers, kind, 0, 0});
        add_stage(p, (struct watched_stage){"attn", cuda_attn, 0, m->layers, kind, 0, 0});
        kinds++;
    }
    add_stage(p, (struct watched_stage){"attn_out", cuda_attn_out, 0, m->layers, ANY_KIND, 0, 0});
    add_stage(p, (struct watched_stage){"ffn_dense", cuda_ffn_dense, 0, dense, ANY_KIND, 0, 0});
    add_stage(p, (struct watched_stage){"route", cuda_route, dense, m->layers, ANY_KIND, 0, 0});
    add_stage(p, (struct watched_stage){"experts", cuda_experts, dense, m->layers, ANY_KIND, 0, 0});
    add_stage(p, (struct watched_stage){"head", cuda_head, 0, batch->n_logits ? 1 : 0, ANY_KIND, 0, 0});
    add_stage(p, (struct watched_stage){"pick", cuda_pick, 0, batch->pick ? 1 : 0, ANY_KIND, 0, 0});
}

static void call_layer(struct cuda *cuda, int layer, struct cuda_profile *out) {
    const bool is_dense = model_layer_is_dense(cuda->model, layer);
    int n = call_stage(cuda, cuda_attn_in, layer), *most = is_dense ? &out->dense_layer_kernels : &out->layer_kernels;
    n += call_stage(cuda, cuda_attn, layer);
    n += call_stage(cuda, cuda_attn_out, layer);
    if (is_dense) {
        n += call_stage(cuda, cuda_ffn_dense, layer);
    } else {
        n += call_stage(cuda, cuda_route, layer);
        n += call_stage(cuda, cuda_experts, layer);
    }
    out->step_kernels += n;
    if (n > *most) *most = n;
}

/* A whole step, as forward() has it, and how many kernels it launches. */
static void call_step(struct cuda *cuda, struct cuda_profile *out) {
    out->step_kernels += call_stage(cuda, cuda_embed, 0);
    for (int layer = 0; layer < cuda->model->layers; layer++) call_layer(cuda, layer, out);
    if (cuda->batch->n_logits) out->step_kernels += call_stage(cuda, cuda_head, 0);
    if (cuda->batch->pick) out->step_kernels += call_stage(cuda, cuda_pick, 0);
}

static void record_step(struct cuda *cuda, const void *unused) {
    struct cuda_profile counted = {0};
    (void)unused;
    call_step(cuda, &counted);
}

int cuda_profile_step(struct backend *backend, const struct batch *batch, bool timed, struct cuda_profile *out,
                      struct mo_error *error) {
    struct cuda *cuda = cuda_alone(backend);
    struct profiler p = {.cuda = cuda, .out = out};
    *out = (struct cuda_profile){0};
    if (!cuda || cuda->offload.cpu) {
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "with several GPUs, or experts on the CPU, a step is not one GPU's alone");
    }
    bool off = cuda->recorder.off;
    cuda->recorder.off = true; /* the stages are called by hand */
    backend->ops->begin(backend, batch);
    cuda->recorder.off = off;
    cuda->watch = (struct launch_watch){.on = true, .wanted = -1};
    keep(cuda, cuda->driver.event_create(&p.first, 0));
    keep(cuda, cuda->driver.event_create(&p.second, 0));
    call_step(cuda, out); /* leaves sane activations and routing behind */
    list_stages(&p, batch);
    if (timed && !cuda->failure.code) out->step_us = time_recorded(&p, record_step, NULL);
    for (int s = 0; s < p.n_stages && timed && !cuda->failure.code; s++) time_stage(&p, &p.stages[s]);
    take_back_lists(cuda);
    cuda->watch.on = false;
    if (p.first) cuda->driver.event_destroy(p.first);
    if (p.second) cuda->driver.event_destroy(p.second);
    int code = backend->ops->end(backend, error);
    return code == MO_E_NUMERIC ? 0 : code; /* stages called again and again leave no sane numbers, and need not */
}
