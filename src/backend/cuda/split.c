/* backend/cuda/split.c - several cards behind one stage table: each has the layers of its part, with their cache, scratch and recorded
 * steps, and is the one card of cuda.c in everything else. A stage goes to the card that has its layer; where the next card's layers
 * begin, the residual stream of the step's rows follows, and so do the tokens that the last card picked when the first one is to
 * go on from them. So a row's bits are those of one card, and the cards work one after another.
 *
 * What travels goes through pinned memory of the host, in the cards' own streams and ordered by events: some tens of kilobytes a
 * step of decoding. Cards need not reach each other then, which few cards for desktops can, and there is one way to test. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cuda/cuda.h"

/* From a card to the next one. */
struct passage {
    float *x;                   /* pinned [max_rows][hidden], V4 [max_rows][streams][hidden] */
    struct cuda_event *written; /* by the card before, in its stream */
    struct cuda_event *read;    /* by the card behind: x may be written again */
};

struct split {
    struct backend backend; /* first */
    const struct model *model;
    int n, current; /* cards; whose stages are called */
    struct cuda *cards[CUDA_PARTS_MAX];
    struct passage passages[CUDA_PARTS_MAX - 1]; /* behind each card but the last */
    struct offload offload;                      /* the CPU that computes experts, for all cards */
    const struct batch *batch;                   /* of the step that began last */
    struct batch without_head[2];                /* the same for all cards but the last; step n is [n % 2] */
    unsigned n_begun;
    int fault_row;
};

static struct split *split_of(struct backend *backend) {
    return (struct split *)backend;
}

static struct cuda *last_of(const struct split *split) {
    return split->cards[split->n - 1];
}

/* Calls that follow are for this card. */
static struct cuda *take_turn(struct split *split, int i) {
    struct cuda *cuda = split->cards[i];
    split->current = i;
    cuda_keep(cuda, cuda->driver.context_use(cuda->card.context), "cuCtxSetCurrent");
    return cuda;
}

/* --- from card to card ----------------------------------------------------------------------------------------------- */

static size_t rows_bytes(const struct split *split) {
    return (size_t)split->batch->n_rows * model_residual_dim(split->model) * sizeof(float);
}

/* What a failed card would have sent nobody can go on with: its failure is that of all cards. */
static void share_failure(const struct cuda *from, struct cuda *to) {
    if (from->failure.code && !to->failure.code) to->failure = from->failure;
}

static void send_rows(const struct split *split, struct cuda *from, const struct passage *passage) {
    const struct cuda_driver *d = &from->driver;
    if (from->failure.code) return;
    from->stage = "to the next GPU";
    cuda_keep(from, d->stream_after(from->stream, passage->read, 0), "waiting for the rows before");
    cuda_keep(from,
              d->copy_out(passage->x, (cuda_address)(uintptr_t)cuda_residual_at(from), rows_bytes(split), from->stream),
              "sending the residual stream");
    cuda_keep(from, d->event_record(passage->written, from->stream), "sending the residual stream");
}

static void receive_rows(const struct split *split, struct cuda *to, const struct passage *passage) {
    const struct cuda_driver *d = &to->driver;
    if (to->failure.code) return;
    to->stage = "from the GPU before";
    cuda_keep(to, d->stream_after(to->stream, passage->written, 0), "waiting for the residual stream");
    cuda_keep(to, d->copy_in((cuda_address)(uintptr_t)cuda_residual_at(to), passage->x, rows_bytes(split), to->stream),
              "receiving the residual stream");
    cuda_keep(to, d->event_record(passage->read, to->stream), "receiving the residual stream");
}

static bool wants_picks(const struct batch *batch) {
    for (int i = 0; i < batch->n_rows; i++) {
        if (batch->token[i] < 0) return true;
    }
    return false;
}

/* What the last card picks in the step at work is what another looks up in this one. */
static void receive_picks(struct split *split, struct cuda *to) {
    struct cuda *last = last_of(split);
    const struct flight *flight = &last->flights[(last->n_begun - 1) % 2];
    const struct cuda_driver *d = &to->driver;
    size_t bytes = (size_t)flight->batch->n_logits * sizeof(int32_t);
    share_failure(last, to);
    if (to->failure.code) return;
    to->stage = "from the last GPU";
    cuda_keep(to, d->stream_after(to->stream, flight->done, 0), "waiting for the tokens");
    cuda_keep(to, d->copy_in((cuda_address)(uintptr_t)to->scratch.picked, flight->picked, bytes, to->stream),
              "receiving the tokens");
}

static const struct batch *batch_for(const struct split *split, int card) {
    return card == split->n - 1 ? split->batch : &split->without_head[(split->n_begun - 1) % 2];
}

/* V4: the caller has told the split where near parts are. */
static void share_near(const struct split *split, int card) {
    split->cards[card]->backend.near = split->backend.near;
}

/* V4's layers with tables of experts by token may go on behind a border. */
static void share_picks(struct split *split, struct cuda *to) {
    bool has_table = model_layer_is_hashed(split->model, to->part.first_layer);
    if (has_table && to != last_of(split) && wants_picks(split->batch)) receive_picks(split, to);
}

/* The rows go on to the next card, whose part of the step begins. What was called so far is on its way then. */
static void move_on(struct split *split) {
    const struct passage *passage = &split->passages[split->current];
    struct cuda *from = split->cards[split->current];
    cuda_submit(from);
    send_rows(split, from, passage);
    struct cuda *to = take_turn(split, split->current + 1);
    share_failure(from, to);
    receive_rows(split, to, passage);
    share_near(split, split->current);
    share_picks(split, to);
    cuda_begin(&to->backend, batch_for(split, split->current));
}

/* The card that has a layer; behind the last layer, that with the head. */
static struct backend *card_of(struct backend *backend, int layer) {
    struct split *split = split_of(backend);
    while (split->current < split->n - 1 && layer >= cuda_end_layer(split->cards[split->current])) move_on(split);
    return &split->cards[split->current]->backend;
}

/* All of the step that began last, on all cards. */
static void submit(struct split *split) {
    if (!split->n_begun) return;
    card_of(&split->backend, split->model->layers);
    cuda_submit(take_turn(split, split->n - 1));
}

/* --- the stage table -------------------------------------------------------------------------------------------------- */

static void split_begin(struct backend *backend, const struct batch *batch) {
    struct split *split = split_of(backend);
    submit(split);
    split->batch = batch;
    split->fault_row = -1;
    struct batch *shown = &split->without_head[split->n_begun++ % 2];
    *shown = *batch;
    shown->n_logits = 0;
    shown->pick = NULL;
    struct cuda *first = take_turn(split, 0);
    if (wants_picks(batch)) receive_picks(split, first);
    if (split->offload.cpu) cuda_offload_begin(&split->offload, batch);
    share_near(split, 0);
    cuda_begin(&first->backend, batch_for(split, 0));
}

#define STAGE(name)                                                                                                    \
    static void split_##name(struct backend *backend, int layer) {                                                     \
        struct backend *card = card_of(backend, layer);                                                                \
        card->ops->name(card, layer);                                                                                  \
    }
#define STAGE_AT(name, layer)                                                                                          \
    static void split_##name(struct backend *backend) {                                                                \
        struct backend *card = card_of(backend, layer);                                                                \
        card->ops->name(card);                                                                                         \
    }
STAGE_AT(embed, 0)
STAGE(attn_in)
STAGE(attn)
STAGE(attn_out)
STAGE(ffn_dense)
STAGE(route)
STAGE(experts)
STAGE_AT(head, split_of(backend)->model->layers)
STAGE_AT(pick, split_of(backend)->model->layers)

/* The first card that failed; else the first NaN, in the order of layers; else what the CPU found, which no card's NaN led to. */
static int split_end(struct backend *backend, struct mo_error *error) {
    struct split *split = split_of(backend);
    struct backend *cpu = split->offload.cpu;
    struct mo_error of_cpu = {0};
    int code = 0;
    submit(split);
    for (int i = 0; i < split->n; i++) { /* all of them have begun, and end */
        int failed = cuda_wait_step(split->cards[i], code ? NULL : error);
        if (!code) code = failed;
    }
    int cpu_code = cpu ? cpu->ops->end(cpu, &of_cpu) : 0;
    for (int i = 0; i < split->n && !code; i++) code = cuda_link_end(split->cards[i], error);
    for (int i = 0; i < split->n && !code; i++) {
        code = cuda_blame(split->cards[i], error);
        if (code) split->fault_row = split->cards[i]->fault_row;
    }
    if (code || !cpu_code) return code;
    split->fault_row = cpu->ops->fault_row(cpu);
    if (error) *error = of_cpu;
    return cpu_code;
}

static int split_fault_row(struct backend *backend) {
    return split_of(backend)->fault_row;
}

static const float *split_logits(struct backend *backend) {
    struct backend *last = &last_of(split_of(backend))->backend;
    return last->ops->logits(last);
}

static const int32_t *split_picked(struct backend *backend) {
    struct backend *last = &last_of(split_of(backend))->backend;
    return last->ops->picked(last);
}

static const float *split_residual(struct backend *backend) {
    struct backend *card = &take_turn(split_of(backend), split_of(backend)->current)->backend;
    return card->ops->residual(card);
}

static const float *split_streams(struct backend *backend) {
    struct backend *card = &take_turn(split_of(backend), split_of(backend)->current)->backend;
    return card->ops->streams(card);
}

static void split_routing(struct backend *backend, const int32_t **ids, const float **weights) {
    struct backend *card = &take_turn(split_of(backend), split_of(backend)->current)->backend;
    card->ops->routing(card, ids, weights);
}

/* Each card's layers of a page, one after another. */
static int split_page_out(struct backend *backend, int32_t page, void *to, struct mo_error *error) {
    const struct split *split = split_of(backend);
    uint8_t *at = to;
    int code = 0;
    for (int i = 0; i < split->n && !code; at += cuda_page_bytes(split->cards[i++])) {
        share_near(split, i);
        code = cuda_page_out(&split->cards[i]->backend, page, at, error);
    }
    return code;
}

static int split_page_in(struct backend *backend, int32_t page, const void *from, struct mo_error *error) {
    const struct split *split = split_of(backend);
    const uint8_t *at = from;
    int code = 0;
    for (int i = 0; i < split->n && !code; at += cuda_page_bytes(split->cards[i++])) {
        share_near(split, i);
        code = cuda_page_in(&split->cards[i]->backend, page, at, error);
    }
    return code;
}

/* --- opening and closing ---------------------------------------------------------------------------------------------- */

static void close_passage(struct split *split, int i) {
    struct passage *passage = &split->passages[i];
    struct cuda *from = take_turn(split, i);
    from->driver.stream_wait(from->stream);
    if (passage->written) from->driver.event_destroy(passage->written);
    struct cuda *to = take_turn(split, i + 1);
    to->driver.stream_wait(to->stream);
    if (passage->read) to->driver.event_destroy(passage->read);
    if (passage->x) to->driver.pinned_free(passage->x);
}

static void split_close(struct backend *backend) {
    struct split *split = split_of(backend);
    for (int i = 0; i < split->n - 1; i++) close_passage(split, i);
    for (int i = split->n; i-- > 0;) split->cards[i]->backend.ops->close(&split->cards[i]->backend);
    if (split->offload.cpu) split->offload.cpu->ops->close(split->offload.cpu);
    free(split);
}

static const struct backend_ops split_ops = {
    .name = "cuda",
    .close = split_close,
    .begin = split_begin,
    .embed = split_embed,
    .attn_in = split_attn_in,
    .attn = split_attn,
    .attn_out = split_attn_out,
    .ffn_dense = split_ffn_dense,
    .route = split_route,
    .experts = split_experts,
    .head = split_head,
    .pick = split_pick,
    .end = split_end,
    .fault_row = split_fault_row,
    .logits = split_logits,
    .picked = split_picked,
    .residual = split_residual,
    .streams = split_streams,
    .routing = split_routing,
    .page_out = split_page_out,
    .page_in = split_page_in,
};

struct cuda *cuda_alone(struct backend *backend) {
    return backend->ops == &split_ops ? NULL : (struct cuda *)backend;
}

struct cuda_load cuda_backend_load(const struct backend *backend) {
    const struct split *split = (const struct split *)backend;
    if (backend->ops != &split_ops) return ((const struct cuda *)backend)->load;
    struct cuda_load sum = split->cards[0]->load;
    for (int i = 1; i < split->n; i++) { /* one after another */
        sum.bytes += split->cards[i]->load.bytes;
        sum.s += split->cards[i]->load.s;
    }
    return sum;
}

/* Between card i and the next one. */
static int open_passage(struct split *split, int i, const struct backend_options *options, struct mo_error *error) {
    struct passage *passage = &split->passages[i];
    size_t bytes = (size_t)options->max_rows * model_residual_dim(split->model) * sizeof(float);
    const struct cuda *from = take_turn(split, i);
    int code = cuda_take_pinned(from, bytes, "residual stream", &passage->x, error);
    if (!code)
        code = cuda_check(&from->driver, from->driver.event_create(&passage->written, 2), error,
                          "an event"); /* no timing */
    const struct cuda *to = take_turn(split, i + 1);
    if (!code) code = cuda_check(&to->driver, to->driver.event_create(&passage->read, 2), error, "an event");
    return code;
}

static int open_all(struct split *split, const struct weights *weights, const struct backend_options *options,
                    const struct cuda_part *parts, int n_parts, struct mo_error *error) {
    int code = 0;
    if (options->cpu_layers) code = cuda_offload_open(&split->offload, split->model, weights, options, error);
    for (int i = 0; i < n_parts && !code; i++) {
        code = cuda_open(&split->cards[i], split->model, weights, options, &parts[i], split->offload.cpu, error);
        if (!code) split->n++;
    }
    for (int i = 0; i < n_parts - 1 && !code; i++) code = open_passage(split, i, options, error);
    return code;
}

int cuda_split_open(struct backend **backend, const struct model *model, const struct weights *weights,
                    const struct backend_options *options, const struct cuda_part *parts, int n_parts,
                    struct mo_error *error) {
    assert(n_parts <= CUDA_PARTS_MAX && !model_is_csa2(model));
    struct split *split = calloc(1, sizeof *split);
    if (!split) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
    *split = (struct split){.backend = {.ops = &split_ops}, .model = model, .fault_row = -1};
    int code = open_all(split, weights, options, parts, n_parts, error);
    if (code) {
        split_close(&split->backend);
        return code;
    }
    split->backend.picks = last_of(split)->backend.picks;
    split->backend.runs_ahead = last_of(split)->backend.runs_ahead;
    *backend = &split->backend;
    return 0;
}
