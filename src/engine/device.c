#include "engine/device.h"

#include <math.h>
#include <string.h>
#include "base/log.h"
#include "engine/cards.h"
#include "engine/weights.h"

/* The GPU's kernels have run as C on a CPU only (tests/shim). Until they have been seen to work on a card, a card is used by
 * those who ask for it. */
static const bool AUTO_TAKES_GPU = false;

enum { CPU = -1 };

/* What a backend would be opened with, as far as it decides whether the GPU can do it. */
static struct backend_options options_of(const struct engine *engine) {
    const struct engine_options *o = &engine->options;
    return (struct backend_options){.max_rows = 1,
                                    .max_logits = 1,
                                    .max_seqs = 1,
                                    .n_pages = 1,
                                    .kv = (enum kv_format)(o->kv - 1),
                                    .compute = (enum compute)o->compute,
                                    .attention = (enum attention)o->attention,
                                    .cpu_layers = engine->cpu_layers};
}

/* The CPU computes, and why. */
static int give_up(struct engine *engine, const struct mo_error *reason) {
    log_warn("%s; computing on the CPU", reason->message);
    engine->gpu = CPU;
    engine->n_parts = 0;
    return 0;
}

/* A machine without the first card has none, most of the time; one without another has not what was asked for. */
static int look_at_cards(struct engine *engine, struct mo_error *error) {
    struct mo_error reason = {0};
    for (int i = 0; i < engine->n_parts; i++) {
        struct cuda_card_info card;
        int code = cuda_backend_probe(engine->parts[i].device, &card, &reason);
        if (code == MO_E_NOT_FOUND && i == 0) return give_up(engine, &reason);
        if (code && error) *error = reason;
        if (code) return code;
        engine->gpu_free_bytes[i] = card.free_bytes;
    }
    return 0;
}

static int choose_asked(struct engine *engine, struct mo_error *error) {
    struct cuda_bytes bytes;
    struct backend_options options = options_of(engine);
    const struct cuda_part whole = cuda_whole(&engine->model, engine->gpu);
    int code = engine_will_quantize(engine)
                   ? 0 /* the weights that it will get are not made yet; they are counted then */
                   : cuda_backend_bytes(&engine->model, &engine->weights, &options, &whole, &bytes, error);
    return code ? code : look_at_cards(engine, error);
}

static void choose_freely(struct engine *engine) {
    struct mo_error reason = {0};
    struct cuda_card_info card;
    struct cuda_bytes bytes;
    struct backend_options options = options_of(engine);
    const struct cuda_part whole = cuda_whole(&engine->model, 0);
    if (cuda_backend_bytes(&engine->model, &engine->weights, &options, &whole, &bytes, &reason)) return;
    if (cuda_backend_probe(0, &card, &reason)) return;
    if (!AUTO_TAKES_GPU) {
        log_info("GPU 0 (%s) is left alone: its kernels have not been run on a card yet; --device cuda takes it",
                 card.name);
        return;
    }
    engine->gpu = 0;
    engine->n_parts = 1;
    engine->gpu_free_bytes[0] = card.free_bytes;
}

int engine_device_choose(struct engine *engine, struct mo_error *error) {
    const char *text = engine->options.device;
    int code = engine_cards_parse(engine, error);
    engine->gpu = code || !engine->n_parts ? CPU : engine->parts[0].device;
    if (code) return code;
    if (engine->n_parts) return choose_asked(engine, error);
    if (!text || !strcmp(text, "auto")) choose_freely(engine);
    return 0;
}

/* What a part's layers hold of a cache: not all of V4's hold as much. There is a near part for each of its pages, or for one in
 * KV_PAGES_A_NEAR, or something between, which is not settled yet: the larger share of the two. */
static double cache_share(const struct model *m, enum kv_format kv, const struct cuda_part *part) {
    double page = 0, all_pages = 0, near = 0, all_near = 0;
    for (int l = 0; l < m->layers; l++) {
        const bool is_here = l >= part->first_layer && l < part->first_layer + part->n_layers;
        all_pages += (double)kv_page_bytes(m, l, kv);
        all_near += (double)kv_near_bytes(m, l, kv);
        if (is_here) page += (double)kv_page_bytes(m, l, kv);
        if (is_here) near += (double)kv_near_bytes(m, l, kv);
    }
    const double pages = KV_PAGES_A_NEAR;
    return fmax((page + near) / (all_pages + all_near), (pages * page + near) / (pages * all_pages + all_near));
}

int engine_device_left(const struct engine *engine, const struct backend_options *backend, double *bytes,
                       struct mo_error *error) {
    for (int i = 0; i < engine->n_parts; i++) {
        const struct cuda_part *part = &engine->parts[i];
        struct cuda_bytes taken;
        int code = cuda_backend_bytes(&engine->model, &engine->weights, backend, part, &taken, error);
        if (code) return code;
        double room = (double)engine->gpu_free_bytes[i] * engine->options.memory_utilization;
        double left = (room - (double)(taken.weights + taken.scratch)) / cache_share(&engine->model, backend->kv, part);
        if (i == 0 || left < *bytes) *bytes = left; /* all cards have as many tokens */
    }
    return 0;
}

int engine_device_open(struct engine *engine, const struct backend_options *backend, struct mo_error *error) {
    if (engine->gpu == CPU) return cpu_backend_open(&engine->backend, &engine->model, &engine->weights, backend, error);
    char layers[CARDS_LAYERS_BYTES];
    int code = cuda_backend_open(&engine->backend, &engine->model, &engine->weights, backend, engine->parts,
                                 engine->n_parts, error);
    if (!code && engine->n_parts > 1) log_info("%s; they work one after another", engine_cards_layers(engine, layers));
    return code;
}
