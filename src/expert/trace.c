#include "expert/trace.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double COVERED[3] = {0.5, 0.8, 0.9};

static size_t per_token(const struct trace *trace) {
    return (size_t)trace->layers * (size_t)trace->model->top_k;
}

static uint16_t *choice_at(const struct trace *trace, int token, int layer) {
    return trace->choice + (size_t)token * per_token(trace) + (size_t)layer * (size_t)trace->model->top_k;
}

int trace_open(struct trace *trace, const struct model *model, int tokens, struct mo_error *error) {
    *trace = (struct trace){.model = model, .layers = model->layers - model->dense_layers, .room = tokens};
    if (!model->experts || trace->layers < 1) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "the model has no experts");
    }
    if (trace->layers * model->experts < STORE_MIN_SLOTS) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "the model has a single expert: there is nothing to choose");
    }
    trace->choice = calloc((size_t)tokens * per_token(trace), sizeof *trace->choice);
    trace->begins = calloc((size_t)tokens, sizeof *trace->begins);
    if (trace->choice && trace->begins) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the choices of %d tokens", tokens);
}

void trace_close(struct trace *trace) {
    free(trace->choice);
    free(trace->begins);
    *trace = (struct trace){0};
}

static int compare_experts(const void *a, const void *b) {
    return (int)*(const uint16_t *)a - (int)*(const uint16_t *)b;
}

void trace_record(struct trace *trace, int first, int layer, const int32_t *ids, int n_rows) {
    int k = trace->model->top_k;
    assert(first + n_rows <= trace->room);
    for (int i = 0; i < n_rows; i++) {
        uint16_t *to = choice_at(trace, first + i, layer);
        for (int j = 0; j < k; j++) to[j] = (uint16_t)ids[i * k + j];
        qsort(to, (size_t)k, sizeof *to, compare_experts);
    }
}

void trace_add(struct trace *trace, int n_rows, bool begins) {
    assert(trace->n + n_rows <= trace->room);
    trace->begins[trace->n] = begins;
    trace->n += n_rows;
}

/* ---- shares ---- */

/* How many of token t's experts the one before it had chosen. */
static int shared_with_last(const struct trace *trace, int token, int layer) {
    const uint16_t *a = choice_at(trace, token - 1, layer), *b = choice_at(trace, token, layer);
    int k = trace->model->top_k, n = 0;
    for (int i = 0, j = 0; i < k && j < k;) {
        n += a[i] == b[j];
        int step = (int)a[i] - (int)b[j];
        i += step <= 0;
        j += step >= 0;
    }
    return n;
}

static double reuse_of(const struct trace *trace, int from, int to) {
    int64_t n = 0, shared = 0;
    for (int t = 1; t < trace->n; t++) {
        for (int l = from; l < to && !trace->begins[t]; l++) {
            n += trace->model->top_k;
            shared += shared_with_last(trace, t, l);
        }
    }
    return n ? (double)shared / (double)n : 0;
}

static int compare_counts(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* `counts` [use->experts] in falling order, of `tokens` tokens with `choices` choices. */
static void settle_shares(const int64_t *counts, double tokens, double choices, struct trace_use *use) {
    int n = use->experts, reached = 0;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double share = (double)counts[i] / choices;
        sum += (double)counts[i];
        if (share > 0) use->entropy -= share * log2(share);
        while (reached < 3 && sum >= COVERED[reached] * choices) use->covers[reached++] = i + 1;
    }
    use->entropy /= n > 1 ? log2(n) : 1;
    use->most = (double)counts[0] / tokens;
    use->least = (double)counts[n - 1] / tokens;
    use->median = (double)(counts[n / 2] + counts[(n - 1) / 2]) / 2 / tokens;
}

static void count_choices(const struct trace *trace, int first_token, int from, int to, int64_t *counts) {
    for (int t = first_token; t < trace->n; t++) {
        for (int l = from; l < to; l++) {
            const uint16_t *choice = choice_at(trace, t, l);
            int64_t *of_layer = counts + (size_t)(l - from) * (size_t)trace->model->experts;
            for (int j = 0; j < trace->model->top_k; j++) of_layer[choice[j]]++;
        }
    }
}

int trace_use_of(const struct trace *trace, int layer, struct trace_use *use, struct mo_error *error) {
    int from = layer < 0 ? 0 : layer, to = layer < 0 ? trace->layers : layer + 1, k = trace->model->top_k;
    double tokens = trace->n, chosen = tokens * k, square = 0;
    *use = (struct trace_use){.experts = (to - from) * trace->model->experts,
                              .by_chance = (double)k / trace->model->experts};
    int64_t *counts = calloc((size_t)use->experts, sizeof *counts);
    if (!counts) return mo_error_set(error, MO_E_NO_MEMORY, "no memory to count experts");
    assert(trace->n > 0);
    count_choices(trace, 0, from, to, counts);
    for (int i = 0; i < use->experts; i++) square += (double)counts[i] * (double)counts[i];
    use->by_shares = square / tokens / chosen / (to - from);
    use->reuse = reuse_of(trace, from, to);
    qsort(counts, (size_t)use->experts, sizeof *counts, compare_counts);
    settle_shares(counts, tokens, chosen * (to - from), use);
    free(counts);
    return 0;
}

double trace_distinct(const struct trace *trace, int tokens) {
    uint8_t seen[UINT16_MAX + 1];
    int64_t distinct = 0, groups = 0;
    for (int t = 0; t + tokens <= trace->n; t += tokens) {
        for (int l = 0; l < trace->layers; l++, groups++) {
            memset(seen, 0, (size_t)trace->model->experts);
            for (int i = 0; i < tokens; i++) {
                const uint16_t *choice = choice_at(trace, t + i, l);
                for (int j = 0; j < trace->model->top_k; j++) {
                    distinct += !seen[choice[j]];
                    seen[choice[j]] = 1;
                }
            }
        }
    }
    return groups ? (double)distinct / (double)groups : 0;
}

/* ---- what a cache finds ---- */

static int counted_from(const struct trace *trace) {
    return trace->n / 2;
}

/* As backend/cpu/moe_store.c takes a layer: in waves that fit, the next one asked for before this one is computed. */
static void replay_layer(struct store *store, int layer, const int *experts, int n) {
    int wave = store_visit(store, layer, experts, n), asked = 0;
    for (int from = 0; from < n; from += wave) {
        int to = from + wave < n ? from + wave : n, ahead = to + wave < n ? to + wave : n;
        for (; asked < ahead; asked++) store_ask(store, layer, experts[asked]);
        for (int i = from; i < to; i++) {
            store_wait(store, layer, experts[i], NULL); /* reads nothing, so it cannot fail */
        }
        for (int i = from; i < to; i++) store_release(store, layer, experts[i]);
    }
}

/* `experts` [top_k] is for its use. */
static void replay_token(const struct trace *trace, struct store *store, int token, int *experts) {
    int k = trace->model->top_k;
    for (int l = 0; l < trace->layers; l++) {
        const uint16_t *choice = choice_at(trace, token, l);
        for (int j = 0; j < k; j++) experts[j] = choice[j];
        replay_layer(store, trace->model->dense_layers + l, experts, k);
    }
}

int trace_replay(const struct trace *trace, int slots, struct trace_hits *cold, struct trace_hits *warm,
                 struct mo_error *error) {
    struct store *store;
    struct store_stats stats, half = {0};
    int *experts = calloc((size_t)trace->model->top_k, sizeof *experts);
    int code = experts ? store_open_empty(&store, trace->model, slots, error)
                       : mo_error_set(error, MO_E_NO_MEMORY, "no memory for the experts of a token");
    if (code) {
        free(experts);
        return code;
    }
    for (int t = 0; t < trace->n; t++) {
        if (t == counted_from(trace)) store_stats_get(store, &half);
        replay_token(trace, store, t, experts);
    }
    store_stats_get(store, &stats);
    store_close(store);
    free(experts);
    *cold = (struct trace_hits){stats.hits, stats.hits + stats.misses};
    *warm = (struct trace_hits){cold->hits - half.hits, cold->asked - half.hits - half.misses};
    return 0;
}

int trace_fixed(const struct trace *trace, int slots, struct trace_hits *warm, struct mo_error *error) {
    size_t records = (size_t)trace->layers * (size_t)trace->model->experts;
    int64_t *counts = calloc(records, sizeof *counts);
    if (!counts) return mo_error_set(error, MO_E_NO_MEMORY, "no memory to count experts");
    count_choices(trace, counted_from(trace), 0, trace->layers, counts);
    qsort(counts, records, sizeof *counts, compare_counts);
    *warm = (struct trace_hits){.asked = (uint64_t)(trace->n - counted_from(trace)) * per_token(trace)};
    for (size_t i = 0; i < records && i < (size_t)slots; i++) warm->hits += (uint64_t)counts[i];
    free(counts);
    return 0;
}

/* ---- one who knows the future ---- */

/* Choices are numbered as they come. `next` of one is that of the same expert's next choice, `n` if there is none. */
struct future {
    const struct trace *trace;
    size_t n;
    size_t *next;  /* [n] */
    int32_t *of;   /* [n] the record */
    size_t *until; /* [records] when a record that is there is wanted next; NOT_THERE */
    size_t *heap;  /* [n_heap] choices, the one whose `next` is furthest on top; some are of the past */
    size_t n_heap;
};
static const size_t NOT_THERE = SIZE_MAX;

static void heap_swap(size_t *heap, size_t a, size_t b) {
    size_t kept = heap[a];
    heap[a] = heap[b];
    heap[b] = kept;
}

static void heap_push(struct future *f, size_t choice) {
    size_t at = f->n_heap++;
    f->heap[at] = choice;
    for (; at && f->next[f->heap[at]] > f->next[f->heap[(at - 1) / 2]]; at = (at - 1) / 2) {
        heap_swap(f->heap, at, (at - 1) / 2);
    }
}

static void heap_pop(struct future *f) {
    size_t at = 0;
    f->heap[0] = f->heap[--f->n_heap];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < f->n_heap && f->next[f->heap[child + 1]] > f->next[f->heap[child]]) child++;
        if (child >= f->n_heap || f->next[f->heap[child]] <= f->next[f->heap[at]]) return;
        heap_swap(f->heap, at, child);
        at = child;
    }
}

/* Of what is there, the latest choice of the one that is wanted last. A choice that is not its expert's latest, or whose expert was
 * given away, says nothing any more. */
static size_t find_furthest(struct future *f) {
    while (f->until[f->of[f->heap[0]]] != f->next[f->heap[0]]) heap_pop(f);
    return f->heap[0];
}

static int look_ahead(struct future *f, size_t records, struct mo_error *error) {
    const struct trace *trace = f->trace;
    f->n = (size_t)trace->n * per_token(trace);
    f->next = calloc(f->n, sizeof *f->next);
    f->of = calloc(f->n, sizeof *f->of);
    f->until = calloc(records, sizeof *f->until);
    f->heap = calloc(f->n, sizeof *f->heap);
    if (!f->next || !f->of || !f->until || !f->heap)
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory to look ahead over %zu choices", f->n);
    for (size_t i = 0; i < records; i++) f->until[i] = f->n;
    for (size_t i = f->n; i-- > 0;) {
        size_t layer = i / (size_t)trace->model->top_k % (size_t)trace->layers;
        f->of[i] = (int32_t)(layer * (size_t)trace->model->experts + trace->choice[i]);
        f->next[i] = f->until[f->of[i]];
        f->until[f->of[i]] = i;
    }
    for (size_t i = 0; i < records; i++) f->until[i] = NOT_THERE;
    return 0;
}

/* Begins with what is wanted first, and leaves out what is wanted later than all that is there. */
static void follow(struct future *f, size_t slots, struct trace_hits *warm) {
    size_t from = (size_t)counted_from(f->trace) * per_token(f->trace), n_there = 0;
    *warm = (struct trace_hits){.asked = f->n - from};
    for (size_t i = from; i < f->n; i++) {
        size_t *until = &f->until[f->of[i]];
        bool is_there = *until != NOT_THERE || n_there < slots;
        warm->hits += is_there;
        n_there += *until == NOT_THERE && n_there < slots;
        if (!is_there) {
            size_t furthest = find_furthest(f);
            if (f->next[furthest] <= f->next[i]) continue;
            f->until[f->of[furthest]] = NOT_THERE;
        }
        *until = f->next[i];
        heap_push(f, i);
    }
}

int trace_best(const struct trace *trace, int slots, struct trace_hits *warm, struct mo_error *error) {
    struct future f = {.trace = trace};
    int code = look_ahead(&f, (size_t)trace->layers * (size_t)trace->model->experts, error);
    if (!code) follow(&f, (size_t)slots, warm);
    free(f.next);
    free(f.of);
    free(f.until);
    free(f.heap);
    return code;
}
