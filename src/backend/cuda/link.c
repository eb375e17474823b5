/* backend/cuda/link.c - routed experts that lie in the machine's memory, computed by the card in long steps. A step of many rows meets
 * nearly all experts, so they are read once for all of its rows, and what a card multiplies in the meantime is more than a CPU
 * does: from some number of rows on it pays to send them over (backend_options.link_rows). They come by turns, as many as the
 * room for them holds, through pinned buffers as at load (upload.c). The card works on a turn when it has come, while the first
 * matrices of the next one are on their way. Steps of few rows stay with the CPU (offload.c).
 *
 * The kernels, their order and so the bits are those of experts that lie on the card. */
#include <stdlib.h>
#include <string.h>
#include "backend/cuda/upload.h"
#include "expert/store.h"

enum {
    TURN_BYTES = 384 << 20, /* of a turn, about: many matrices, so that their last blocks are few among all */
    AHEAD_BYTES = 96 << 20, /* on their way while the turn before is at work */
};

/* What would be put into another order for every step is not sent. */
static bool is_known(const struct mlp *mlp) {
    return !mat_must_turn(&mlp->gate) && upload_knows(mlp->gate.format) && upload_knows(mlp->up.format) &&
           upload_knows(mlp->down.format);
}

int cuda_link_refuses(const struct model *m, const struct weights *weights, int cpu_layers, struct mo_error *error) {
    for (int l = m->dense_layers; l < m->dense_layers + cpu_layers; l++) {
        const struct layer *layer = &weights->layers[l];
        if (!is_known(&layer->experts[0])) {
            return mo_error_set(error, MO_E_UNSUPPORTED, "layer %d: there are no GPU kernels for %s experts", l,
                                mat_format_name(layer->experts[0].down.format));
        }
        if (upload_count_alike(layer, m->experts) < m->experts) {
            return mo_error_set(error, MO_E_UNSUPPORTED, "layer %d: its experts have several formats", l);
        }
    }
    return 0;
}

static size_t bytes_of(const struct mlp *first, int n) {
    struct device_region region = {0};
    struct weight gate_up, down;
    upload_place_experts(&region, first, n, &gate_up, &down);
    return region.used;
}

/* Experts of a layer whose turn comes at once; MOEBIUS_CUDA_TURN: so many. */
static int in_a_turn(const struct cuda *cuda, const struct mlp *first) {
    const char *wanted = getenv("MOEBIUS_CUDA_TURN");
    const long most = cuda->model->experts, fit = (long)(TURN_BYTES / bytes_of(first, 1)),
               n = wanted ? strtol(wanted, NULL, 10) : fit;
    return (int)(n < 1 ? 1 : n < most ? n : most);
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Layouts are the same for all experts, what they come from need not be: bf16 or fp32. */
static size_t buffer_bytes(const struct layer *layer, int experts) {
    size_t most = 0;
    for (int e = 0; e < experts; e++) {
        const struct mlp *expert = &layer->experts[e];
        most = larger(most, upload_buffer_bytes(&expert->gate));
        most = larger(most, upload_buffer_bytes(&expert->up));
        most = larger(most, upload_buffer_bytes(&expert->down));
    }
    return most;
}

int cuda_link_plan(struct cuda *cuda, const struct weights *weights, struct mo_error *error) {
    struct expert_link *link = &cuda->link;
    *link = (struct expert_link){.rows = cuda->options.link_rows};
    if (link->rows > cuda->options.max_rows || !cuda_has_cpu_experts(cuda)) link->rows = 0;
    int code = link->rows ? cuda_link_refuses(cuda->model, weights, cuda->options.cpu_layers, error) : 0;
    if (code || !link->rows) return code;
    for (int l = cuda->part.first_layer; l < cuda_end_layer(cuda); l++) {
        if (!cuda_is_on_cpu(cuda, l)) continue;
        const struct layer *layer = &weights->layers[l];
        const struct mlp *first = &layer->experts[0];
        link->turn_bytes = larger(link->turn_bytes, bytes_of(first, in_a_turn(cuda, first)));
        link->buffer_bytes = larger(link->buffer_bytes, buffer_bytes(layer, cuda->model->experts));
    }
    return 0;
}

static int buffers_of(const struct expert_link *link) {
    const size_t n = AHEAD_BYTES / link->buffer_bytes;
    return n < UPLOAD_BUFFERS ? UPLOAD_BUFFERS : n < UPLOAD_BUFFERS_MAX ? (int)n : UPLOAD_BUFFERS_MAX;
}

void cuda_link_place(struct cuda *cuda, struct device_region *region) {
    struct expert_link *link = &cuda->link;
    size_t pairs = (size_t)cuda->options.max_rows * (size_t)cuda->model->top_k;
    link->turn = device_take(region, link->turn_bytes);
    link->buffers = device_take(region, (size_t)buffers_of(link) * link->buffer_bytes);
    link->items = device_take(region, (pairs + (size_t)cuda->model->experts) * sizeof *link->items);
    link->n_items = device_take(region, sizeof *link->n_items);
    link->fault = device_take(region, sizeof *link->fault);
}

/* The first of the layers that are here and the CPU's. */
static int first_layer(const struct cuda *cuda) {
    const int here = cuda->part.first_layer, experts = cuda->model->dense_layers;
    return here > experts ? here : experts;
}

static int keep_experts(struct cuda *cuda, const struct weights *weights) {
    const size_t n = (size_t)cuda->model->experts;
    const int first = first_layer(cuda);
    int end = first;
    while (end < cuda_end_layer(cuda) && cuda_is_on_cpu(cuda, end)) end++;
    struct mlp *to = arena_alloc_array(cuda->arena, (size_t)(end - first) * n, sizeof *to);
    cuda->link.experts = to;
    for (int l = first; l < end && to; l++, to += n) memcpy(to, weights->layers[l].experts, n * sizeof *to);
    return to ? 0 : MO_E_NO_MEMORY;
}

int cuda_link_open(struct cuda *cuda, const struct weights *weights, struct mo_error *error) {
    struct expert_link *link = &cuda->link;
    struct upload *u = link->upload = calloc(1, sizeof *u);
    if (!u) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
    *u = (struct upload){.cuda = cuda,
                         .weights = weights,
                         .buffer_bytes = link->buffer_bytes,
                         .fault = (cuda_address)(uintptr_t)link->fault,
                         .wanted = UINT32_MAX,
                         .layer = -1,
                         .expert = -1};
    if (keep_experts(cuda, weights)) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
    const int n = buffers_of(link);
    int code =
        cuda_take_pinned(cuda, (size_t)n * link->buffer_bytes, "experts that come over the link", &link->pinned, error);
    u->error = error;
    if (!code) code = upload_way_open(u, n, link->pinned, (cuda_address)(uintptr_t)link->buffers);
    u->error = &cuda->failure;
    return code ? code : upload_copy_open(u);
}

void cuda_link_close(struct cuda *cuda) {
    struct expert_link *link = &cuda->link;
    struct upload *u = link->upload;
    if (!u) return;
    upload_way_close(u);
    if (link->pinned) cuda->driver.pinned_free(link->pinned);
    upload_copy_close(u);
    free(u);
    link->upload = NULL;
}

/* The items of experts [first, first + n). */
static void list_turn(struct cuda *cuda, int first, int n) {
    const struct expert_link *link = &cuda->link;
    const struct turn_params p = {.items = cuda->scratch.items,
                                  .n_items = cuda->scratch.n_items,
                                  .turn_items = link->items,
                                  .n_turn_items = link->n_items,
                                  .first = first,
                                  .n = n};
    cuda_launch(cuda, KERNEL_TURN_LIST, 1, 0, &p);
}

/* ---- experts that are read from disk, if there is a store: asked for a turn ahead ---- */

static void ask(const struct cuda *cuda, int layer, int from, int to) {
    for (int e = from; e < to && cuda->options.store; e++) store_ask(cuda->options.store, layer, e);
}

static void release(const struct cuda *cuda, int layer, int from, int to) {
    for (int e = from; e < to && cuda->options.store; e++) store_release(cuda->options.store, layer, e);
}

/* As many as may be asked for at a time, twice over. */
static int visit(const struct cuda *cuda, int layer) {
    const int n = cuda->model->experts;
    struct store *store = cuda->options.store;
    int32_t all[MAX_EXPERTS];
    if (!store) return n;
    for (int e = 0; e < n; e++) all[e] = e;
    const int wave = store_visit(store, layer, all, n);
    const bool more =
        cuda->options.predict_experts && layer + 1 < cuda->model->layers && cuda_is_on_cpu(cuda, layer + 1);
    if (more) store_predict(store, layer + 1, all, n);
    return wave;
}

/* The step has failed then, and only that. */
static const struct mlp *fetch(struct cuda *cuda, int layer, int expert) {
    struct expert_link *link = &cuda->link;
    struct store *store = cuda->options.store;
    if (!store) return link->experts + (size_t)(layer - first_layer(cuda)) * (size_t)cuda->model->experts + expert;
    return store_wait(store, layer, expert, &link->failure) ? NULL : store_expert(store, layer, expert);
}

static bool has_failed(const struct cuda *cuda) {
    return cuda->failure.code || cuda->link.failure.code;
}

int cuda_link_end(struct cuda *cuda, struct mo_error *error) {
    if (!cuda->link.failure.code) return 0;
    if (error) *error = cuda->link.failure;
    return cuda->link.failure.code;
}

/* Experts [first, first + n), which are the card's own when the next ones come. */
static void bring_turn(struct cuda *cuda, int layer, int first, int n, const struct expert_turn *turn) {
    for (int i = 0; i < n && !has_failed(cuda); i++) {
        const struct mlp *expert = fetch(cuda, layer, first + i);
        if (expert) upload_expert(cuda->link.upload, expert, turn->gate_up, turn->down, i);
    }
}

void cuda_link_experts(struct cuda *cuda, int layer) {
    const struct expert_link *link = &cuda->link;
    const struct mlp *alike = link->experts + (size_t)(layer - first_layer(cuda)) * (size_t)cuda->model->experts;
    struct device_region region = {.base = (cuda_address)(uintptr_t)link->turn};
    struct weight gate_up, down;
    const struct expert_turn turn = {&gate_up, &down, link->items, link->n_items};
    if (has_failed(cuda)) return;
    const int all = cuda->model->experts, wave = visit(cuda, layer), most = in_a_turn(cuda, alike);
    const int step = most < wave ? most : wave;
    int asked = step < all ? step : all, brought = 0;
    upload_place_experts(&region, alike, step, &gate_up, &down);
    ask(cuda, layer, 0, asked);
    for (int first = 0; first < all && !has_failed(cuda); first += step) {
        const int n = all - first < step ? all - first : step, ahead = all - asked < step ? all - asked : step;
        ask(cuda, layer, asked, asked + ahead);
        asked += ahead;
        bring_turn(cuda, layer, first, n, &turn);
        brought = first + n;
        release(cuda, layer, first, brought); /* they have been copied */
        list_turn(cuda, first, n);
        cuda_experts_turn(cuda, layer, &turn);
    }
    release(cuda, layer, brought, asked); /* some, if the step has failed */
    cuda_experts_end(cuda, layer);
}
