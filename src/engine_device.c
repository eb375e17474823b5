#include "engine_device.h"

#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "engine_weights.h"

/* The GPU's kernels have run as C on a CPU only (tests/shim). Until they have been seen to work on a card, a card is used by
 * those who ask for it. */
static const bool AUTO_TAKES_GPU = false;

enum { CPU = -1, AUTO = -2 };

/* "auto", "cpu", "cuda" or "cuda:N" -> AUTO, CPU or N. */
static int parse_device(const char *text, int *device, struct mo_error *error) {
    char *end;
    if (!text || !strcmp(text, "auto")) {
        *device = AUTO;
    } else if (!strcmp(text, "cpu")) {
        *device = CPU;
    } else if (!strcmp(text, "cuda")) {
        *device = 0;
    } else {
        long n = strncmp(text, "cuda:", 5) ? -1 : strtol(text + 5, &end, 10);
        if (n < 0 || n > 255 || end == text + 5 || *end) {
            return mo_error_set(error, MO_E_INVALID, "--device: expected auto, cpu, cuda or cuda:N, found \"%s\"",
                                text);
        }
        *device = (int)n;
    }
    return 0;
}

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

static int choose_asked(struct engine *engine, struct mo_error *error) {
    struct mo_error reason = {0};
    struct cuda_card_info card;
    size_t bytes;
    struct backend_options options = options_of(engine);
    int code = engine_will_quantize(engine)
                   ? 0 /* the weights that it will get are not made yet; they are counted then */
                   : cuda_backend_bytes(&engine->model, &engine->weights, &options, &bytes, error);
    if (code) return code;
    code = cuda_backend_probe(engine->gpu, &card, &reason);
    if (!code) {
        engine->gpu_free_bytes = card.free_bytes;
        return 0;
    }
    if (code != MO_E_NOT_FOUND) {
        if (error) *error = reason;
        return code;
    }
    log_warn("%s; computing on the CPU", reason.message);
    engine->gpu = CPU;
    return 0;
}

static void choose_freely(struct engine *engine) {
    struct mo_error reason = {0};
    struct cuda_card_info card;
    size_t bytes;
    struct backend_options options = options_of(engine);
    engine->gpu = CPU;
    if (cuda_backend_bytes(&engine->model, &engine->weights, &options, &bytes, &reason)) return;
    if (cuda_backend_probe(0, &card, &reason)) return;
    if (!AUTO_TAKES_GPU) {
        log_info("GPU 0 (%s) is left alone: its kernels have not been run on a card yet; --device cuda takes it",
                 card.name);
        return;
    }
    engine->gpu = 0;
    engine->gpu_free_bytes = card.free_bytes;
}

int engine_device_choose(struct engine *engine, struct mo_error *error) {
    int code = parse_device(engine->options.device, &engine->gpu, error);
    if (code || engine->gpu == CPU) return code;
    if (engine->gpu != AUTO) return choose_asked(engine, error);
    choose_freely(engine);
    return 0;
}

int engine_device_left(const struct engine *engine, const struct backend_options *backend, double *bytes,
                       struct mo_error *error) {
    size_t taken = 0;
    int code = cuda_backend_bytes(&engine->model, &engine->weights, backend, &taken, error);
    *bytes = (double)engine->gpu_free_bytes * engine->options.memory_utilization - (double)taken;
    return code;
}

int engine_device_open(struct engine *engine, const struct backend_options *backend, struct mo_error *error) {
    if (engine->gpu == CPU) return cpu_backend_open(&engine->backend, &engine->model, &engine->weights, backend, error);
    return cuda_backend_open(&engine->backend, &engine->model, &engine->weights, backend, engine->gpu, error);
}
