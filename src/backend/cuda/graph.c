/* backend/cuda/graph.c - decode steps as recorded graphs. A step of few rows is 220 short kernels: started one by one, the
 * host would be the slowest part. So the second step of a shape is recorded while its stages are called, and later ones replay
 * the recording in one call. Everything that kernels are told lies in the step's data at places that depend on the shape alone
 * (step.c), so a recording fits every step of its shape.
 *
 * Stages of a replayed step do nothing until it is sent on its way (cuda_submit). A tap that wants to see the middle of a step makes it an eager one: the
 * stages called so far are run then. Where the CPU computes the experts of the first layers, a recording begins behind them. */
#include <stdlib.h>
#include <string.h>
#include "backend/cuda/cuda.h"
#include "base/log.h"

/* Relaxed: a step may be ended by another thread than began it, and with it the recording. */
enum { GRAPH_ROWS = 64, CAPTURE_RELAXED = 2 };

static struct step_graph *find(struct step_recorder *r, const struct batch *batch, const struct step_data *step) {
    const struct step_graph wanted = {.rows = batch->n_rows,
                                      .logits = batch->n_logits,
                                      .items = step->n_items,
                                      .splits = step->listed_splits,
                                      .chunks = step->index_chunks,
                                      .picks = batch->pick != NULL};
    for (int i = 0; i < r->n_graphs; i++) {
        struct step_graph *g = &r->graphs[i];
        if (g->rows == wanted.rows && g->logits == wanted.logits && g->items == wanted.items &&
            g->splits == wanted.splits && g->chunks == wanted.chunks && g->picks == wanted.picks)
            return g;
    }
    if (r->n_graphs == GRAPHS_MAX) return NULL;
    r->graphs[r->n_graphs] = wanted;
    return &r->graphs[r->n_graphs++];
}

static void start(struct cuda *cuda) {
    struct step_recorder *r = &cuda->recorder;
    r->n_calls = 0;
    if (r->off || cuda->batch->n_rows > GRAPH_ROWS || cuda->expanded.n_passes || cuda->failure.code) return;
    r->graph = find(r, cuda->batch, &cuda->step);
    if (!r->graph) return;
    if (r->graph->ready) {
        r->mode = STEP_REPLAY;
    } else if (!r->full && r->graph->seen++) { /* a shape that is met once is not worth a recording */
        r->mode = STEP_RECORD;
        cuda_keep(cuda, cuda->driver.capture_begin(cuda->stream, CAPTURE_RELAXED), "recording a step");
    }
}

void cuda_graph_begin(struct cuda *cuda) {
    cuda->recorder.n_calls = 0;
    cuda->recorder.mode = STEP_EAGER;
    cuda->recorder.graph = NULL;
    if (!cuda_has_cpu_experts(cuda)) start(cuda);
}

void cuda_stage(struct cuda *cuda, cuda_stage_call *call, int layer) {
    struct step_recorder *r = &cuda->recorder;
    r->calls[r->n_calls++] = (struct stage_call){call, layer};
    if (r->mode != STEP_REPLAY) call(&cuda->backend, layer);
    bool is_last_of_cpu = cuda_is_on_cpu(cuda, layer) && !cuda_is_on_cpu(cuda, layer + 1);
    if (is_last_of_cpu && call == cuda_experts) start(cuda);
}

static struct cuda_graph *stop_recording(struct cuda *cuda) {
    struct cuda_graph *graph = NULL;
    cuda_keep(cuda, cuda->driver.capture_end(cuda->stream, &graph), "recording a step");
    return graph;
}

/* Runs the stages called so far, which were only noted. */
static void run_eagerly(struct cuda *cuda) {
    struct step_recorder *r = &cuda->recorder;
    r->mode = STEP_EAGER;
    for (int i = 0; i < r->n_calls; i++) r->calls[i].call(&cuda->backend, r->calls[i].layer);
}

void cuda_graph_flush(struct cuda *cuda) {
    struct step_recorder *r = &cuda->recorder;
    if (r->mode == STEP_EAGER) return;
    if (r->mode == STEP_RECORD) {
        struct cuda_graph *graph = stop_recording(cuda);
        if (graph) cuda->driver.graph_destroy(graph);
    }
    run_eagerly(cuda);
}

/* Makes the recording ready to run. Without room for it on the card this step and all later ones of new shapes run stage by
 * stage: slower, with the same result. */
static void finish_recording(struct cuda *cuda) {
    struct step_recorder *r = &cuda->recorder;
    struct cuda_graph *graph = stop_recording(cuda);
    if (cuda->failure.code || !graph) return;
    int result = cuda->driver.graph_prepare(&r->graph->ready, graph, 0);
    cuda->driver.graph_destroy(graph);
    if (result == CUDA_NO_MEMORY) {
        log_warn("GPU %d: no memory for a recorded step; steps of this and other new shapes run kernel by kernel",
                 cuda->card.index);
        r->graph->ready = NULL;
        r->full = true;
        run_eagerly(cuda);
    } else {
        cuda_keep(cuda, result, "preparing a recorded step");
    }
}

void cuda_graph_end(struct cuda *cuda) {
    struct step_recorder *r = &cuda->recorder;
    if (r->mode == STEP_RECORD) finish_recording(cuda);
    if (r->mode == STEP_EAGER || cuda->failure.code) return;
    cuda_keep(cuda, cuda->driver.graph_launch(r->graph->ready, cuda->stream), "a recorded step");
}

int cuda_graph_open(struct cuda *cuda, struct mo_error *error) {
    const char *text = getenv("MOEBIUS_CUDA_GRAPHS");
    bool only_head = cuda_has_cpu_experts(cuda) && !cuda_has_experts(cuda); /* is left behind the CPU's last layer */
    cuda->recorder.off = (text && !strcmp(text, "0")) || only_head || cuda->waits; /* a recording cannot wait */
    /* embed, head, pick, and at most five stages a layer */
    cuda->recorder.calls =
        arena_alloc_array(cuda->arena, (size_t)cuda->part.n_layers * 5 + 3, sizeof *cuda->recorder.calls);
    return cuda->recorder.calls ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
}

void cuda_graph_close(struct cuda *cuda) {
    for (int i = 0; i < cuda->recorder.n_graphs; i++) {
        if (cuda->recorder.graphs[i].ready) cuda->driver.graph_forget(cuda->recorder.graphs[i].ready);
    }
}
