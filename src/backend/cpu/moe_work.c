/* backend/cpu/moe_work.c - an expert layer whose experts are shared out among several processes: what a rank does that is not
 * the first. It knows rows and experts, and neither sequences nor tokens; its backend is rank 0's with a cache of one page. */
#include <stddef.h>
#include <string.h>
#include "backend/cpu/moe_ranks.h"

/* Only rank 0 talks to us, but a message that is not what it should be must not be believed. */
static int check_request(const struct cpu *cpu, struct wire_request *request, size_t bytes, struct mo_error *error) {
    const struct model *m = cpu->model;
    int pairs = request->n_pairs, rows = request->n_rows, before = 0;
    if (bytes < sizeof *request || request->layer < m->dense_layers || request->layer >= m->layers || pairs < 1 ||
        pairs > cpu->options.ranks->piece_pairs || rows < 1 || rows > cpu->options.max_rows || rows > pairs) {
        return mo_error_set(error, MO_E_CORRUPT, "a request of %zu bytes for layer %d, %d rows, %d pairs", bytes,
                            request->layer, rows, pairs);
    }
    struct request_parts parts = request_parts_of(request, pairs, rows, m->hidden);
    if (bytes != parts.bytes) {
        return mo_error_set(error, MO_E_CORRUPT, "a request of %zu bytes, expected %zu", bytes, parts.bytes);
    }
    for (int i = 0; i < pairs; i++) {
        bool is_ours = parts.expert[i] >= before && parts.expert[i] < m->experts &&
                       cpu->options.ranks->owner[parts.expert[i]] == cpu->options.ranks->self;
        if (!is_ours || parts.row[i] < 0 || parts.row[i] >= rows) {
            return mo_error_set(error, MO_E_CORRUPT, "a request for expert %d, row %d of %d", parts.expert[i],
                                parts.row[i], rows);
        }
        before = parts.expert[i];
    }
    return 0;
}

/* The request's pairs as they come: sorted by expert already. */
static struct assignment assign(struct cpu *cpu, const struct request_parts *parts, int n_pairs) {
    int experts = cpu->model->experts;
    struct assignment a = {.first = stage_alloc(cpu, (size_t)(experts + 2) * sizeof(int)), .row = parts->row};
    for (int e = 0, i = 0; e <= experts; e++) {
        while (i < n_pairs && parts->expert[i] < e) i++;
        a.first[e] = i;
    }
    return a;
}

static int answer(struct cpu *cpu, struct wire_request *request, struct mo_error *error) {
    const struct model *m = cpu->model;
    struct wire_reply *reply = (struct wire_reply *)exchange_of(cpu).reply[0];
    struct request_parts parts = request_parts_of(request, request->n_pairs, request->n_rows, m->hidden);
    const struct batch batch = {.n_rows = request->n_rows};
    const struct mat *gate = &cpu->weights->layers[request->layer].experts[0].gate;
    stage_begin(cpu);
    cpu->batch = &batch;
    float **rows = cpu_row_pointers(cpu, parts.x, (size_t)m->hidden, request->n_rows);
    const float *const *x = (const float *const *)rows;
    const struct q8_row *q = cpu_quantize(cpu, gate, x, request->n_rows);
    struct moe moe = moe_begin_pairs(cpu, request->layer, assign(cpu, &parts, request->n_pairs), x, q);
    moe_compute_pairs(&moe, (float *)(reply + 1));
    cpu->batch = NULL;
    *reply =
        (struct wire_reply){.head = {WIRE_MAGIC, WIRE_REPLY}, .n_pairs = request->n_pairs, .serial = request->serial};
    return ranks_send(0, reply, reply_message_bytes(request->n_pairs, m->hidden), error);
}

static int refuse(const struct mo_error *why, struct mo_error *error) {
    struct wire_failed failed = {.head = {WIRE_MAGIC, WIRE_FAILED}, .code = why->code};
    memcpy(failed.text, why->message, sizeof failed.text);
    return ranks_send(0, &failed, sizeof failed, error);
}

int cpu_backend_work(struct backend *backend, struct mo_error *error) {
    struct cpu *cpu = (struct cpu *)backend;
    struct exchange exchange = exchange_of(cpu);
    struct wire_request *request = (struct wire_request *)exchange.request;
    for (;;) {
        int rank = 0;
        size_t bytes;
        struct mo_error wrong = {0};
        int code = ranks_receive(&rank, request, exchange.request_bytes, &bytes, -1, error);
        if (code || request->head.kind == WIRE_CLOSE) return code;
        if (request->head.kind != WIRE_REQUEST) {
            return mo_error_set(error, MO_E_CORRUPT, "rank 0 has sent a message of kind %u", request->head.kind);
        }
        code = check_request(cpu, request, bytes, &wrong) ? refuse(&wrong, error) : answer(cpu, request, error);
        if (code) return code;
    }
}
