/* backend/cpu/moe_ranks.c - an expert layer whose experts are shared out among several processes: rank 0's side.
 *
 * The (row, expert) pairs of a step, sorted by expert, go in pieces of piece_pairs at most. Of each piece every rank gets its own
 * pairs and the rows they need in one message; rank 0 computes its own, and the shared experts, meanwhile. What comes back is each
 * pair's output as it is, and rank 0 adds them up in ascending order of expert: the bits are those of one process. The next
 * piece is on its way while one is added. Nothing else moves a message forward while rank 0 computes: what is too long to be sent
 * at once (MPI's eager limit, some tens of kilobytes) travels when rank 0 waits. */
#include "backend/cpu/moe_ranks.h"

#include <string.h>
#include "base/clock.h"
#include "base/numbers.h"

enum { ADD_COLUMNS = 512, LINE = 64 };

/* ---- memory ---- */

static size_t request_area(int count, int pairs, int hidden) {
    size_t heads = (size_t)count * (sizeof(struct wire_request) + 2 * 64);
    return round_up(heads + (size_t)pairs * (8 + 4 * (size_t)hidden), LINE);
}

/* A place for any answer of a rank, also for what went wrong. */
static size_t reply_room(int pairs, int hidden) {
    size_t bytes = reply_message_bytes(pairs, hidden), least = sizeof(struct wire_failed);
    return round_up(bytes > least ? bytes : least, LINE);
}

static size_t reply_area(int count, int pairs, int hidden) {
    return round_up((size_t)count * (reply_room(0, hidden) + 128) + (size_t)pairs * 4 * (size_t)hidden, LINE);
}

size_t exchange_bytes(const struct model *m, const struct backend_options *options) {
    const struct ranks_split *split = options->ranks;
    size_t shared = m->shared_experts ? (size_t)options->max_rows * (size_t)m->hidden * 4 : 0;
    return request_area(split->count, split->piece_pairs, m->hidden) +
           2 * reply_area(split->count, split->piece_pairs, m->hidden) + shared;
}

size_t exchange_stage_bytes(const struct model *m, const struct backend_options *options) {
    size_t pairs = (size_t)options->ranks->piece_pairs, experts = (size_t)m->experts;
    size_t lists = 2 * (pairs * (sizeof(float *) + sizeof(int)) + (experts + 2) * sizeof(int));
    size_t rows = (size_t)options->max_rows * (2 * sizeof(void *) + sizeof(int));
    size_t compute = pairs * (6 * sizeof(void *) + 2 * sizeof(struct q8_row)) +
                     (2 * experts + 4) * (sizeof(struct linear) + sizeof(int));
    return lists + rows + compute + 32 * 64;
}

struct exchange exchange_of(const struct cpu *cpu) {
    const struct ranks_split *split = cpu->options.ranks;
    struct exchange at = {.request = cpu->exchange};
    at.request_bytes = request_area(split->count, split->piece_pairs, cpu->model->hidden);
    at.reply_bytes = reply_area(split->count, split->piece_pairs, cpu->model->hidden);
    at.reply[0] = at.request + at.request_bytes;
    at.reply[1] = at.reply[0] + at.reply_bytes;
    at.shared = (float *)(at.reply[1] + at.reply_bytes);
    return at;
}

struct request_parts request_parts_of(struct wire_request *request, int n_pairs, int n_rows, int hidden) {
    uint8_t *at = (uint8_t *)request + sizeof *request;
    struct request_parts parts = {.row = (int32_t *)at, .expert = (int32_t *)at + n_pairs};
    at += round_up((size_t)n_pairs * 8, LINE);
    parts.x = (float *)at;
    parts.bytes = sizeof *request + round_up((size_t)n_pairs * 8, LINE) + (size_t)n_rows * (size_t)hidden * 4;
    return parts;
}

size_t reply_message_bytes(int n_pairs, int hidden) {
    return sizeof(struct wire_reply) + (size_t)n_pairs * (size_t)hidden * 4;
}

/* ---- a piece ---- */

/* Pairs [from, to) of a layer. */
struct piece {
    const struct moe *moe;
    int layer, from, to;
    uint8_t *replies;
    const float **product; /* [to - from] each pair's output: where it is, or where it is going to be */
    struct assignment own; /* of these, what is computed here */
    float *own_product;
    int n_pairs[RANKS_MAX]; /* of each rank */
    struct wire_reply *reply[RANKS_MAX];
    uint32_t serial;
};

static int first_pair(const struct piece *piece, int expert) {
    return larger(piece->from, piece->moe->assignment.first[expert]);
}

static int end_pair(const struct piece *piece, int expert) {
    return smaller(piece->to, piece->moe->assignment.first[expert + 1]);
}

static struct piece piece_take(const struct moe *moe, int layer, uint8_t *replies) {
    struct cpu *cpu = moe->cpu;
    size_t pairs = (size_t)cpu->options.ranks->piece_pairs, experts = (size_t)cpu->model->experts;
    struct piece piece = {.moe = moe, .layer = layer, .replies = replies};
    piece.product = stage_alloc(cpu, pairs * sizeof *piece.product);
    piece.own.row = stage_alloc(cpu, pairs * sizeof *piece.own.row);
    piece.own.first = stage_alloc(cpu, (experts + 2) * sizeof *piece.own.first);
    return piece;
}

/* Gives each pair a place among the outputs of its rank, in the order in which that rank is asked for them. */
static void piece_place(struct piece *piece, int from) {
    const struct cpu *cpu = piece->moe->cpu;
    const struct ranks_split *split = cpu->options.ranks;
    size_t hidden = (size_t)cpu->model->hidden;
    int placed[RANKS_MAX] = {0}, experts = cpu->model->experts;
    uint8_t *at = piece->replies;
    piece->from = from;
    piece->to = smaller(from + split->piece_pairs, piece->moe->assignment.first[experts]);
    memset(piece->n_pairs, 0, sizeof piece->n_pairs);
    for (int e = 0; e < experts; e++) {
        piece->n_pairs[split->owner[e]] += larger(0, end_pair(piece, e) - first_pair(piece, e));
    }
    for (int r = 0; r < split->count; r++) {
        piece->reply[r] = (struct wire_reply *)at;
        at += reply_room(piece->n_pairs[r], (int)hidden);
    }
    for (int e = 0; e < experts; e++) {
        int r = split->owner[e];
        for (int i = first_pair(piece, e); i < end_pair(piece, e); i++) {
            piece->product[i - piece->from] = (float *)(piece->reply[r] + 1) + (size_t)placed[r]++ * hidden;
        }
    }
}

static void piece_list_own(struct piece *piece) {
    const struct cpu *cpu = piece->moe->cpu;
    const struct ranks_split *split = cpu->options.ranks;
    int n = 0, experts = cpu->model->experts;
    for (int e = 0; e < experts; e++) {
        piece->own.first[e] = n;
        for (int i = first_pair(piece, e); split->owner[e] == split->self && i < end_pair(piece, e); i++) {
            piece->own.row[n++] = piece->moe->assignment.row[i];
        }
    }
    piece->own.first[experts] = n;
    piece->own_product = (float *)(piece->reply[split->self] + 1);
}

/* Each row once, however many of the rank's experts want it. `index` [n_rows] */
static int number_rows(const struct piece *piece, int rank, int *index) {
    const struct cpu *cpu = piece->moe->cpu;
    int n = 0;
    memset(index, -1, (size_t)cpu->batch->n_rows * sizeof *index);
    for (int e = 0; e < cpu->model->experts; e++) {
        if (cpu->options.ranks->owner[e] != rank) continue;
        for (int i = first_pair(piece, e); i < end_pair(piece, e); i++) {
            int *number = &index[piece->moe->assignment.row[i]];
            if (*number < 0) *number = n++;
        }
    }
    return n;
}

/* Returns its bytes. */
static size_t write_request(const struct piece *piece, int rank, uint8_t *to, int *index) {
    const struct cpu *cpu = piece->moe->cpu;
    struct wire_request *request = (struct wire_request *)to;
    size_t hidden = (size_t)cpu->model->hidden;
    int n_rows = number_rows(piece, rank, index), n = 0;
    *request = (struct wire_request){.head = {WIRE_MAGIC, WIRE_REQUEST},
                                     .layer = piece->layer,
                                     .n_rows = n_rows,
                                     .n_pairs = piece->n_pairs[rank],
                                     .serial = piece->serial};
    struct request_parts parts = request_parts_of(request, request->n_pairs, n_rows, (int)hidden);
    for (int e = 0; e < cpu->model->experts; e++) {
        if (cpu->options.ranks->owner[e] != rank) continue;
        for (int i = first_pair(piece, e); i < end_pair(piece, e); i++) {
            parts.row[n] = index[piece->moe->assignment.row[i]];
            parts.expert[n++] = e;
        }
    }
    for (int row = 0; row < cpu->batch->n_rows; row++) {
        if (index[row] >= 0) memcpy(parts.x + (size_t)index[row] * hidden, piece->moe->x[row], hidden * 4);
    }
    return parts.bytes;
}

static void expect_all(const struct piece *piece) {
    const struct ranks_split *split = piece->moe->cpu->options.ranks;
    struct mo_error error;
    for (int r = 0; r < split->count; r++) {
        size_t room = reply_room(piece->n_pairs[r], piece->moe->cpu->model->hidden);
        if (r == split->self || !piece->n_pairs[r]) continue;
        if (ranks_begin_receive(r, piece->reply[r], room, &error)) ranks_give_up(&error);
    }
}

/* Returns when all requests are on their way for good. */
static void ask_all(struct piece *piece) {
    struct cpu *cpu = piece->moe->cpu;
    const struct ranks_split *split = cpu->options.ranks;
    uint8_t *at = exchange_of(cpu).request;
    struct mo_error error;
    int *index = stage_alloc(cpu, (size_t)cpu->batch->n_rows * sizeof *index);
    piece->serial = ++cpu->serial;
    for (int r = 0; r < split->count; r++) {
        if (r == split->self || !piece->n_pairs[r]) continue;
        size_t bytes = write_request(piece, r, at, index);
        if (ranks_begin_send(r, at, bytes, &error)) ranks_give_up(&error);
        ranks_stats_add(&(struct ranks_stats){.sent_bytes = bytes});
        at += round_up(bytes, LINE);
    }
    for (int r = 0; r < split->count; r++) {
        if (r != split->self && piece->n_pairs[r] && ranks_wait_sent(r, &error)) ranks_give_up(&error);
    }
}

static void piece_begin(struct piece *piece, int from) {
    struct cpu *cpu = piece->moe->cpu;
    size_t mark = cpu->stage.used;
    piece_place(piece, from);
    expect_all(piece);
    ask_all(piece);
    piece_list_own(piece);
    cpu->stage.used = mark;
}

static void piece_compute_own(const struct piece *piece) {
    struct cpu *cpu = piece->moe->cpu;
    size_t mark = cpu->stage.used;
    struct moe own = moe_begin_pairs(cpu, piece->layer, piece->own, piece->moe->x, piece->moe->q);
    moe_compute_pairs(&own, piece->own_product);
    cpu->stage.used = mark;
}

/* A rank that could not do it says so, and the step fails; one that answers something else is no longer in step. */
static int check_reply(const struct piece *piece, int rank, size_t bytes, struct mo_error *error) {
    const struct wire_reply *reply = piece->reply[rank];
    const struct wire_failed *failed = (const struct wire_failed *)reply;
    bool is_whole = bytes >= sizeof reply->head && reply->head.magic == WIRE_MAGIC;
    if (is_whole && reply->head.kind == WIRE_FAILED && bytes == sizeof *failed) {
        return mo_error_set(error, failed->code < 0 ? failed->code : MO_E_CORRUPT, "%s: %.*s", ranks_name(rank),
                            (int)sizeof failed->text - 1, failed->text);
    }
    if (is_whole && reply->head.kind == WIRE_REPLY && reply->serial == piece->serial &&
        reply->n_pairs == piece->n_pairs[rank] &&
        bytes == reply_message_bytes(reply->n_pairs, piece->moe->cpu->model->hidden)) {
        return 0;
    }
    struct mo_error lost;
    mo_error_set(&lost, MO_E_CORRUPT, "%s has answered something else than it was asked", ranks_name(rank));
    ranks_give_up(&lost);
}

/* Of all, even if one has failed: the next step must not find an old answer. */
static int piece_wait(const struct piece *piece, struct mo_error *error) {
    const struct ranks_split *split = piece->moe->cpu->options.ranks;
    struct ranks_stats more = {.exchanges = 1, .wait_s = -clock_now_s()};
    struct mo_error broken;
    int code = 0;
    for (int r = 0; r < split->count; r++) {
        size_t bytes;
        if (r == split->self || !piece->n_pairs[r]) continue;
        if (ranks_wait_received(r, &bytes, &broken)) ranks_give_up(&broken);
        int failed = check_reply(piece, r, bytes, code ? NULL : error);
        code = code ? code : failed;
        more.received_bytes += bytes;
    }
    more.wait_s += clock_now_s();
    ranks_stats_add(&more);
    return code;
}

/* ---- adding up ---- */

static void add_columns(void *context, int index, int worker) {
    (void)worker;
    const struct piece *piece = context;
    const struct assignment *assignment = &piece->moe->assignment;
    const struct cpu *cpu = piece->moe->cpu;
    int hidden = cpu->model->hidden, first = index * ADD_COLUMNS, n = smaller(ADD_COLUMNS, hidden - first);
    for (int i = piece->from; i < piece->to; i++) {
        float *to = cpu->target + (size_t)assignment->row[i] * (size_t)hidden + first;
        cpu->kern.add_scaled(to, assignment->weight[i], piece->product[i - piece->from] + first, n);
    }
}

static void piece_add(struct piece *piece) {
    const struct cpu *cpu = piece->moe->cpu;
    pool_run(cpu->pool, (cpu->model->hidden + ADD_COLUMNS - 1) / ADD_COLUMNS, add_columns, piece);
}

/* All of the shared experts but adding them, which comes last. */
static void compute_shared(const struct moe *moe, float *product) {
    struct cpu *cpu = moe->cpu;
    struct linear jobs[2];
    size_t mark = cpu->stage.used;
    int n = moe_list_shared_gate_up(moe, jobs);
    if (n) {
        float **rows = cpu_row_pointers(cpu, product, (size_t)cpu->model->hidden, cpu->batch->n_rows);
        cpu_linear_each(cpu, jobs, n);
        moe_shared_silu(moe);
        n = moe_list_shared_down(moe, rows, jobs);
        cpu_linear_each(cpu, jobs, n);
    }
    cpu->stage.used = mark;
}

static void add_shared(struct cpu *cpu, const float *product) {
    int hidden = cpu->model->hidden;
    for (int i = 0; i < cpu->batch->n_rows && cpu->model->shared_experts; i++) {
        size_t at = (size_t)i * (size_t)hidden;
        cpu->kern.add_scaled(cpu->target + at, 1, product + at, hidden);
    }
}

void moe_compute_with_ranks(struct cpu *cpu, int layer) {
    struct exchange exchange = exchange_of(cpu);
    struct moe moe = moe_begin(cpu, layer);
    int all = moe.assignment.first[cpu->model->experts], code = 0;
    struct piece pieces[2] = {piece_take(&moe, layer, exchange.reply[0]), piece_take(&moe, layer, exchange.reply[1])};
    piece_begin(&pieces[0], 0);
    for (int i = 0, done = 0; done < all; i++) {
        struct piece *piece = &pieces[i % 2];
        piece_compute_own(piece);
        if (i == 0) compute_shared(&moe, exchange.shared);
        code = piece_wait(piece, &cpu->failure);
        if (code) return;
        done = piece->to;
        if (done < all) piece_begin(&pieces[(i + 1) % 2], done);
        piece_add(piece);
    }
    add_shared(cpu, exchange.shared);
}
