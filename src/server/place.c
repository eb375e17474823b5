#include "server/place.h"

#include <assert.h>

int place_take(struct exchange *exchange, struct api_error *error) {
    struct server *server = exchange->server;
    assert(!exchange->has_place);
    /* counted first: one that sees no drain yet is seen by the drain */
    atomic_fetch_add(&server->n_answers, 1);
    exchange->has_place = true;
    if (!atomic_load(&server->draining)) return 0;
    place_leave(exchange);
    api_error_set(error, 503, NULL, "shutting_down", "the server is shutting down and takes no new requests");
    error->retry_after_s = 10;
    return -1;
}

void place_leave(struct exchange *exchange) {
    if (!exchange->has_place) return;
    exchange->has_place = false;
    atomic_fetch_sub(&exchange->server->n_answers, 1);
}

static int queue_full(int n_waiting, struct api_error *error) {
    api_error_set(error, 429, NULL, "queue_full", "%d requests are waiting already; try again later", n_waiting);
    error->retry_after_s = 5;
    return -1;
}

int place_check_queue(const struct server *server, struct api_error *error) {
    struct sched_stats stats;
    sched_stats_get(atomic_load(&server->engine)->sched, &stats);
    return stats.n_waiting < server->options.max_queue ? 0 : queue_full(stats.n_waiting, error);
}

int place_check_choices(const struct server *server, const struct api_request *request, struct api_error *error) {
    const struct engine *engine = atomic_load(&server->engine);
    int n = request->n_prompts * request->n, most = server->options.max_queue + engine->options.max_num_seqs;
    if (n > most) {
        return api_error_field(error, request->n > 1 ? "n" : "prompt",
                               "at most %d answers in one request: %d prompts, n %d (--max-queue %d)", most,
                               request->n_prompts, request->n, server->options.max_queue);
    }
    struct sched_stats stats;
    sched_stats_get(engine->sched, &stats);
    return stats.n_running + stats.n_waiting + n <= most ? 0 : queue_full(stats.n_waiting, error);
}
