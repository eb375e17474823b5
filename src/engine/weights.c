#include "engine/weights.h"

#include <stdio.h>
#include <string.h>
#include "base/log.h"
#include "base/pool.h"
#include "engine/experts.h"
#include "engine/plan.h"
#include "model/quantize.h"
#include "model/synth.h"

enum { GROUP_SIZE = 128 };

/* What --quantization may say for a checkpoint that is used as it is, the first being its own name. */
static const char *const *names_of(enum quant_kind quant) {
    static const char *const
        none[] = {"none", NULL},
        *const fp8[] = {"fp8", "deepseekv3_fp8", NULL}, *const scaled[] = {"fp8", "compressed-tensors", NULL},
        *const awq[] = {"awq", "awq_marlin", "auto-awq", "auto-round", NULL}, *const own[] = {"moebius", NULL},
        *const gptq[] = {"gptq", "gptq_marlin", "auto-round", NULL}, *const packed[] = {"compressed-tensors", NULL},
        *const int8_rows[] = {"compressed-tensors", "w8a8_int8", "blockwise_int8", NULL};
    switch (quant) {
    case QUANT_FP8_BLOCK:
        return fp8;
    case QUANT_FP8_SCALED:
        return scaled;
    case QUANT_AWQ:
        return awq;
    case QUANT_GPTQ:
        return gptq;
    case QUANT_PACKED:
        return packed;
    case QUANT_INT8:
        return int8_rows;
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
        "--quantization %s: this checkpoint's weights are used as they are (%s), or become int4, fp4, int8, fp8 "
        "or bf16 while they are loaded",
        name, names_of(model->quant)[0]);
}

bool engine_will_quantize(const struct engine *engine) {
    return !engine->options.like && !is_as_it_is(&engine->model, engine->options.quantization);
}

/* A GPU takes each matrix once, and nothing else looks at its bytes then; what the CPU computes is made after that is known. */
static bool may_be_later(const struct engine *engine) {
    return engine->gpu >= 0 && engine->cpu_layers < model_moe_layers(&engine->model);
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
        code = may_be_later(engine) ? quantize_later(&job, &engine->weights, error)
                                    : quantize_memory(&job, &engine->weights, &report, error);
    }
    if (!engine->weights.later) pool_destroy(pool);
    return code;
}

int engine_bind_weights(struct engine *engine, struct mo_error *error) {
    const char *name = engine->options.quantization;
    int code = engine_check_quantization(&engine->model, name, error);
    if (!code)
        code = weights_bind(&engine->weights, &engine->model, &engine->checkpoint, engine->options.threads, error);
    if (!code && engine->model.synthetic) {
        log_warn("%s holds random weights (moebius synth): good for measuring only", engine->path);
    }
    return code;
}

static int make_config(const struct engine_options *o, json_t **config, struct mo_error *error) {
    if (o->like_config) return synth_config_read(config, o->like_config, o->like_layers, error);
    return synth_config(config, o->like, o->like_layers, error);
}

static int make_weights(struct engine *engine, const struct synth *job, bool later, struct mo_error *error) {
    struct make_report report;
    int code = synth_model(job, &engine->model, error);
    if (!code) code = engine_plan_check_context(engine, error);
    if (!code) {
        code = later ? synth_later(job, &engine->model, &engine->weights, error)
                     : synth_memory(job, &engine->model, &engine->weights, &report, error);
    }
    snprintf(engine->path, sizeof engine->path, "%s", job->name);
    engine->checkpoint.is_packed = true; /* one that holds nothing: no file is looked for beside it */
    return code;
}

static int make_like(struct engine *engine, bool later, struct mo_error *error) {
    const struct engine_options *o = &engine->options;
    struct recipe recipe;
    struct pool *pool = NULL;
    json_t *config = NULL;
    const char *quant = o->quantization ? o->quantization : "bf16";
    int code = later ? recipe_parse_made_up(&recipe, quant, GROUP_SIZE, error)
                     : recipe_parse(&recipe, quant, GROUP_SIZE, error);
    if (code) return mo_error_prefix(error, "--quantization");
    code = make_config(o, &config, error);
    if (code) return code;
    const char *name = o->like_config ? o->like_config : o->like;
    code = pool_create(&pool, o->threads, error);
    struct synth job = {.config = config, .recipe = &recipe, .pool = pool, .seed = o->like_seed, .name = name};
    if (!code) code = make_weights(engine, &job, later, error);
    pool_destroy(pool);
    json_decref(config);
    return code;
}

int engine_make_weights(struct engine *engine, struct mo_error *error) {
    return make_like(engine, true, error);
}

int engine_settle_weights(struct engine *engine, struct mo_error *error) {
    const char *name = engine->options.quantization;
    if (!engine->options.like && is_as_it_is(&engine->model, name)) return 0;
    int code = engine_experts_check_made(&engine->options, error);
    if (code) return code;
    if (!engine->options.like) return quantize(engine, name, error);
    if (may_be_later(engine)) return 0;
    weights_free(&engine->weights);
    return make_like(engine, false, error);
}

int engine_keep_weights(struct engine *engine, struct mo_error *error) {
    if (!engine->weights.later || !engine->cpu_layers) return 0;
    if (!engine->options.like) return weights_keep(&engine->weights, &engine->model, engine->cpu_layers, error);
    weights_free(&engine->weights);
    return make_like(engine, false, error);
}
