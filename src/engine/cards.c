#include "engine/cards.h"

#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "engine/device.h"
#include "engine/offload.h"
#include "engine/plan.h"

/* What a context takes that nobody asked for: a longer one is what is left. */
enum { CONTEXT_TOKENS = 8192, DEVICE_MAX = 255, ROUNDS = 50 };

static const double GIB = 1 << 30, SHARE_LEAST = 1e-9, SHARE_MOST = 1e9;

/* ---- what was asked for ---- */

static int refuse_device(const char *text, struct mo_error *error) {
    return mo_error_set(
        error, MO_E_INVALID,
        "--device: expected auto, cpu, cuda, cuda:N, or several different cards as cuda:0,cuda:1; found \"%s\"", text);
}

static int add_card(struct engine *engine, long device, const char *text, struct mo_error *error) {
    bool is_good = device >= 0 && device <= DEVICE_MAX && engine->n_parts < CUDA_PARTS_MAX;
    for (int i = 0; i < engine->n_parts; i++) is_good &= engine->parts[i].device != device;
    if (!is_good) return refuse_device(text, error);
    engine->parts[engine->n_parts++].device = (int)device;
    return 0;
}

/* "cuda:1", "cuda:0,cuda:1" */
static int parse_list(struct engine *engine, const char *text, struct mo_error *error) {
    const char *at = text;
    int code = 0;
    while (!code) {
        char *end = NULL;
        long device = strncmp(at, "cuda:", 5) ? -1 : strtol(at + 5, &end, 10);
        if (device < 0 || end == at + 5 || (*end && *end != ',')) return refuse_device(text, error);
        code = add_card(engine, device, text, error);
        if (!*end) break;
        at = end + 1;
    }
    return code;
}

/* "3,1" -> how many. Shares are limited so that dealing, which divides bytes by them, meets no infinity. */
static int parse_split(struct engine *engine, int *n, struct mo_error *error) {
    const char *text = engine->options.tensor_split, *at = text;
    for (*n = 0; *n < CUDA_PARTS_MAX;) {
        char *end;
        double share = strtod(at, &end);
        bool is_good = end != at && share >= SHARE_LEAST && share <= SHARE_MOST; /* no NaN is */
        if (!is_good || (*end && *end != ',')) break;
        engine->card_shares[(*n)++] = share;
        if (!*end) return 0;
        at = end + 1;
    }
    return mo_error_set(
        error, MO_E_INVALID,
        "--tensor-split: expected numbers above 0 (%g to %g), one for each of at most %d cards, as in 3,1; "
        "found \"%s\"",
        SHARE_LEAST, SHARE_MOST, CUDA_PARTS_MAX, text);
}

/* How many cards the other flags speak of; 0: of none. */
static int count_asked(struct engine *engine, int *n, struct mo_error *error) {
    const int pipeline = engine->options.pipeline_parallel;
    *n = pipeline;
    if (!engine->options.tensor_split) return 0;
    int code = parse_split(engine, n, error);
    if (code || !pipeline || *n == pipeline) return code;
    return mo_error_set(error, MO_E_INVALID, "--tensor-split %s is for %d cards, --pipeline-parallel-size for %d",
                        engine->options.tensor_split, *n, pipeline);
}

static const char *flag_of(const struct engine *engine) {
    return engine->options.tensor_split ? "--tensor-split" : "--pipeline-parallel-size";
}

int engine_cards_parse(struct engine *engine, struct mo_error *error) {
    const char *text = engine->options.device;
    int asked = 0, code = count_asked(engine, &asked, error);
    if (code) return code;
    if (!text || !strcmp(text, "auto") || !strcmp(text, "cpu")) {
        if (asked <= 1) return 0;
        return mo_error_set(error, MO_E_INVALID, "%s asks for %d cards: --device cuda takes them", flag_of(engine),
                            asked);
    }
    if (!strcmp(text, "cuda")) {
        engine->may_add_cards = !asked;
        for (int i = 0; i < (asked ? asked : 1) && !code; i++) code = add_card(engine, i, text, error);
        return code;
    }
    code = parse_list(engine, text, error);
    if (code || !asked || asked == engine->n_parts) return code;
    return mo_error_set(error, MO_E_INVALID, "--device %s names %d card%s, %s asks for %d", text, engine->n_parts,
                        engine->n_parts == 1 ? "" : "s", flag_of(engine), asked);
}

const char *engine_cards_name(const struct engine *engine, char text[CARDS_NAME_BYTES]) {
    size_t n = 0;
    text[0] = 0;
    for (int i = 0; i < engine->n_parts; i++) {
        const char *between = i == 0 ? "" : i == engine->n_parts - 1 ? " and " : ", ";
        n += (size_t)snprintf(text + n, CARDS_NAME_BYTES - n, "%sGPU %d", between, engine->parts[i].device);
    }
    return text;
}

const char *engine_cards_layers(const struct engine *engine, char text[CARDS_LAYERS_BYTES]) {
    size_t n = 0;
    text[0] = 0;
    for (int i = 0; i < engine->n_parts; i++) {
        const struct cuda_part *p = &engine->parts[i];
        const int last = p->first_layer + p->n_layers - 1;
        n += (size_t)snprintf(text + n, CARDS_LAYERS_BYTES - n, "%sGPU %d has layer%s %d", i ? ", " : "", p->device,
                              p->n_layers > 1 ? "s" : "", p->first_layer);
        if (p->n_layers > 1) n += (size_t)snprintf(text + n, CARDS_LAYERS_BYTES - n, " to %d", last);
    }
    return text;
}

/* ---- dealing layers ---- */

/* What each layer takes on a card, the embedding with the first and the head with the last; and the scratch of a card whose last
 * layer it is. */
struct layer_costs {
    int n;
    double *bytes, *scratch; /* [n] */
};

static int count_layers(const struct engine *engine, struct layer_costs *costs, struct mo_error *error) {
    const struct model *m = &engine->model;
    struct backend_options options;
    engine_plan_options(engine, &options);
    const int pages = (engine_cards_context(engine) + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    int code = 0;
    for (int l = 0; l < m->layers && !code; l++) {
        const struct cuda_part part = {0, l, 1};
        struct cuda_bytes bytes;
        code = cuda_backend_bytes(m, &engine->weights, &options, &part, &bytes, error);
        const size_t page = kv_page_bytes(m, l, options.kv) + kv_near_bytes(m, l, options.kv);
        costs->bytes[l] = (double)bytes.weights + (double)page * pages;
        costs->scratch[l] = (double)bytes.scratch;
    }
    return code;
}

static double room_of(const struct engine *engine, int card) {
    const double free_bytes = (double)engine->gpu_free_bytes[card];
    return engine->options.tensor_split ? engine->card_shares[card] : free_bytes > 0 ? free_bytes : 1;
}

/* Each card takes layers until `level` times its room is full, the last one what is left: whether that is no more. */
static bool deal(struct engine *engine, const struct layer_costs *costs, double level) {
    int layer = 0, n = engine->n_parts;
    bool fits = true;
    for (int i = 0; i < n; i++) {
        int first = layer, end = costs->n - (n - 1 - i); /* one for each that follows */
        double room = level * room_of(engine, i), used = 0;
        for (; layer < end; layer++) {
            bool is_full = used + costs->bytes[layer] + costs->scratch[layer] > room;
            if (i < n - 1 && layer > first && is_full) break;
            used += costs->bytes[layer];
        }
        fits &= used + costs->scratch[layer - 1] <= room;
        engine->parts[i].first_layer = first;
        engine->parts[i].n_layers = layer - first;
    }
    return fits;
}

static void deal_evenly(struct engine *engine, const struct layer_costs *costs) {
    double low = 0, high = 1;
    while (!deal(engine, costs, high)) high *= 2;
    for (int i = 0; i < ROUNDS; i++) {
        double middle = (low + high) / 2;
        if (deal(engine, costs, middle)) {
            high = middle;
        } else {
            low = middle;
        }
    }
    deal(engine, costs, high);
}

/* V4.1's layers read what layers before them keep in the cache, and by what these say of the streams: that does not travel. */
static bool goes_on_one_card(const struct engine *engine) {
    return model_is_csa2(&engine->model);
}

int engine_cards_split(struct engine *engine, struct mo_error *error) {
    const int layers = engine->model.layers;
    engine->parts[0] = cuda_whole(&engine->model, engine->parts[0].device);
    if (engine->n_parts < 2) return 0;
    if (goes_on_one_card(engine)) {
        return mo_error_set(
            error, MO_E_UNSUPPORTED,
            "%d cards are asked for, and DeepSeek-V4.1 (DeepseekV41ForCausalLM) goes on one: its layers "
            "share rows of the cache (--device cuda:%d; --n-cpu-moe N leaves routed experts to the CPU)",
            engine->n_parts, engine->parts[0].device);
    }
    if (engine->n_parts > layers) {
        return mo_error_set(error, MO_E_INVALID, "%d cards are asked for, and the model has %d layers", engine->n_parts,
                            layers);
    }
    struct layer_costs costs = {layers, calloc((size_t)layers, sizeof(double)), calloc((size_t)layers, sizeof(double))};
    int code = costs.bytes && costs.scratch ? count_layers(engine, &costs, error)
                                            : mo_error_set(error, MO_E_NO_MEMORY, "no memory to deal layers");
    if (!code) deal_evenly(engine, &costs);
    free(costs.bytes);
    free(costs.scratch);
    return code;
}

/* ---- what fits ---- */

int engine_cards_context(const struct engine *engine) {
    const int asked = engine->options.max_model_len, most = engine->model.context;
    return asked && asked < most ? asked : !asked && CONTEXT_TOKENS < most ? CONTEXT_TOKENS : most;
}

int engine_cards_missing(struct engine *engine, int context, double *bytes, struct mo_error *error) {
    struct backend_options backend;
    double left = 0;
    int code = engine_cards_split(engine, error);
    if (code) return code;
    engine_plan_options(engine, &backend);
    code = engine_device_left(engine, &backend, &left, error);
    *bytes = engine_plan_cache_bytes(engine, &backend, context) - left;
    return code;
}

/* One more, if there is one that can compute. */
static bool add_next(struct engine *engine) {
    const int n = engine->n_parts;
    struct cuda_card_info card;
    if (goes_on_one_card(engine) || n == CUDA_PARTS_MAX || n == engine->model.layers ||
        cuda_backend_probe(n, &card, NULL))
        return false;
    engine->parts[n].device = n;
    engine->gpu_free_bytes[n] = card.free_bytes;
    engine->n_parts++;
    return true;
}

/* Not even all cards hold everything: the first one is taken, if it holds what cannot stay in the machine's memory; else all are. */
static int share_with_cpu(struct engine *engine, struct mo_error *error) {
    const int cards = engine->n_parts, on_cpu = engine->cpu_layers;
    double bytes = 0;
    engine->n_parts = 1;
    engine->cpu_layers = engine_offload_most(engine);
    int least = engine->options.max_model_len ? engine_cards_context(engine) : 1;
    int code = engine_cards_missing(engine, least, &bytes, error);
    engine->cpu_layers = on_cpu;
    if (bytes > 0) engine->n_parts = cards;
    return code;
}

int engine_cards_add(struct engine *engine, struct mo_error *error) {
    const int context = engine_cards_context(engine);
    double of_one = 0, bytes = 0;
    if (!engine->may_add_cards) return engine_cards_split(engine, error);
    int code = engine_cards_missing(engine, context, &of_one, error);
    bytes = of_one;
    while (!code && bytes > 0 && add_next(engine)) code = engine_cards_missing(engine, context, &bytes, error);
    if (!code && bytes > 0) code = share_with_cpu(engine, error);
    if (code) return code;
    if (engine->n_parts > 1 && bytes <= 0) {
        log_info("%.2f GiB are missing on GPU 0 for all of the model and a context of %d tokens: %d GPUs hold them",
                 of_one / GIB, context, engine->n_parts);
    }
    return engine_cards_split(engine, error);
}
