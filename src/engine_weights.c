#include "engine_weights.h"

#include <stdio.h>
#include <string.h>
#include "base/log.h"
#include "base/pool.h"
#include "model/quantize.h"
#include "model/synth.h"

enum { GROUP_SIZE = 128 };

/* What --quantization may say for a checkpoint that is used as it is, the first being its own name. */
static const char *const *names_of(enum quant_kind quant) {
    static const char *const none[] = {"none", NULL}, *const fp8[] = {"fp8", "deepseekv3_fp8", NULL},
                             *const scaled[] = {"fp8", "compressed-tensors", NULL},
                             *const awq[] = {"awq", "awq_marlin", "auto-awq", NULL}, *const own[] = {"moebius", NULL};
    switch (quant) {
    case QUANT_FP8_BLOCK:
        return fp8;
    case QUANT_FP8_SCALED:
        return scaled;
    case QUANT_AWQ:
        return awq;
    case QUANT_MOEBIUS:
        return own;
    case QUANT_NONE:
        break;
    }
    return none;
}

static bool is_as_it_is(const struct model *model, const char *name) {
    if (!name || !strcmp(name, "auto")) return true;
    for (const char *const *own = names_of(model->quant); *own; own++) {
        if (!strcmp(name, *own)) return true;
    }
    return false;
}

int engine_check_quantization(const struct model *model, const char *name, struct mo_error *error) {
    struct recipe recipe;
    struct mo_error reason;
    if (is_as_it_is(model, name) || !recipe_parse(&recipe, name, GROUP_SIZE, &reason)) return 0;
    return mo_error_set(
        error, MO_E_UNSUPPORTED,
        "--quantization %s: this checkpoint's weights are used as they are (%s), or become int4, int8, fp8 "
        "or bf16 while they are loaded",
        name, names_of(model->quant)[0]);
}

static int quantize(struct engine *engine, const char *name, struct mo_error *error) {
    struct recipe recipe;
    struct make_report report;
    struct pool *pool = NULL;
    int code = recipe_parse(&recipe, name, GROUP_SIZE, error);
    if (!code) code = pool_create(&pool, engine->options.threads, error);
    if (!code) {
        const struct quantize job = {.model = &engine->model,
                                     .checkpoint = &engine->checkpoint,
                                     .weights = &engine->weights,
                                     .recipe = &recipe,
                                     .pool = pool};
        code = quantize_memory(&job, &engine->weights, &report, error);
    }
    pool_destroy(pool);
    return code;
}

int engine_bind_weights(struct engine *engine, struct mo_error *error) {
    const char *name = engine->options.quantization;
    int code = engine_check_quantization(&engine->model, name, error);
    if (!code) code = weights_bind(&engine->weights, &engine->model, &engine->checkpoint, error);
    if (!code && !is_as_it_is(&engine->model, name)) code = quantize(engine, name, error);
    if (!code && engine->model.synthetic) {
        log_warn("%s holds random weights (moebius synth): good for measuring only", engine->path);
    }
    return code;
}

int engine_make_weights(struct engine *engine, struct mo_error *error) {
    const struct engine_options *o = &engine->options;
    struct recipe recipe;
    struct make_report report;
    struct pool *pool = NULL;
    json_t *config = NULL;
    int code = recipe_parse(&recipe, o->quantization ? o->quantization : "bf16", GROUP_SIZE, error);
    if (!code) code = synth_config(&config, o->like, 0, error);
    if (!code) code = pool_create(&pool, o->threads, error);
    const struct synth job = {.config = config, .recipe = &recipe, .pool = pool, .seed = 1, .name = o->like};
    if (!code) code = synth_model(&job, &engine->model, error);
    if (!code) code = synth_memory(&job, &engine->model, &engine->weights, &report, error);
    snprintf(engine->path, sizeof engine->path, "%s", o->like);
    engine->checkpoint.is_packed = true; /* one that holds nothing: no file is looked for beside it */
    pool_destroy(pool);
    json_decref(config);
    return code;
}
