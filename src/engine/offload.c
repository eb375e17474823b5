#include "engine/offload.h"

#include <math.h>
#include "base/log.h"
#include "engine/cards.h"
#include "engine/weights.h"
#include "plan/detect.h"
#include "plan/predict.h"

/* Of a machine as the line in the log speaks of it, and long steps go by: its memory, and its link to a card. */
static const double GIB = 1 << 30, RAM_GB_S = 50, LINK_GB_S = 25;

int engine_offload_settle(struct engine_options *o, struct mo_error *error) {
    if (o->cpu_moe && o->n_cpu_moe >= 0)
        return mo_error_set(error, MO_E_INVALID, "--cpu-moe and --n-cpu-moe %d: one of them", o->n_cpu_moe);
    if ((o->cpu_moe && o->expert_device == EXPERTS_ON_GPU) || (o->n_cpu_moe >= 0 && o->expert_device)) {
        return mo_error_set(error, MO_E_INVALID, "%s and --expert-device %s both say who computes experts: one of them",
                            o->cpu_moe ? "--cpu-moe" : "--n-cpu-moe",
                            o->expert_device == EXPERTS_ON_GPU ? "gpu" : "cpu");
    }
    if (o->op_offload_rows && (o->no_op_offload || o->batch_invariant)) {
        return mo_error_set(error, MO_E_INVALID,
                            "--op-offload-min-batch %d: with %s no step sends experts to a card: one of them",
                            o->op_offload_rows, o->no_op_offload ? "--no-op-offload" : "--batch-invariant");
    }
    if (o->cpu_moe) o->expert_device = EXPERTS_ON_CPU;
    if (o->n_cpu_moe == 0) o->expert_device = EXPERTS_ON_GPU;
    o->cpu_moe = false;
    if (o->n_cpu_moe == 0) o->n_cpu_moe = -1;
    return 0;
}

void engine_offload_begin(struct engine *engine) {
    const struct engine_options *o = &engine->options;
    int layers = model_moe_layers(&engine->model), asked = o->n_cpu_moe > 0 ? o->n_cpu_moe : 0;
    engine->cpu_layers = o->expert_device == EXPERTS_ON_CPU || asked > layers ? layers : asked;
}

void engine_offload_look(struct engine *engine) {
    struct plan_host host;
    if (plan_detect_host(&host, NULL)) return;
    const double share = fmin(1, (double)engine->options.threads / host.threads);
    engine->cpu_gflops = host.gflops * share;
    engine->cpu_gops16 = host.gops16 * share;
    engine->cpu_gops8 = host.gops8 * share;
}

static bool is_free(const struct engine *engine) {
    return engine->gpu >= 0 && !engine->options.expert_device && engine->options.n_cpu_moe < 0;
}

int engine_offload_most(const struct engine *engine) {
    return is_free(engine) ? model_moe_layers(&engine->model) : engine->cpu_layers;
}

double engine_offload_bytes(const struct engine *engine) {
    const struct model *m = &engine->model;
    int first = m->dense_layers, n = engine->gpu < 0 ? model_moe_layers(m) : engine->cpu_layers;
    double bytes = 0;
    for (int l = first; l < first + n; l++) {
        for (int e = 0; e < m->experts; e++) {
            const struct mlp *expert = &engine->weights.layers[l].experts[e];
            bytes += (double)(mat_bytes(&expert->gate) + mat_bytes(&expert->up) + mat_bytes(&expert->down));
        }
    }
    return bytes;
}

int engine_offload_link_rows(const struct engine *engine) {
    const struct engine_options *o = &engine->options;
    struct plan_arch arch;
    struct plan_weights weights;
    const bool are_shared = engine->split.count > 1; /* with other processes */
    if (!engine->cpu_layers || o->no_op_offload || o->batch_invariant || are_shared) return 0;
    if (cuda_link_refuses(&engine->model, &engine->weights, engine->cpu_layers, NULL)) return 0;
    if (o->op_offload_rows) return o->op_offload_rows;
    plan_arch_from_model(&arch, &engine->model, "model");
    plan_weights_from_model(&weights, &engine->model, &engine->weights);
    const struct plan_machine machine = {.gpu = {.host_gb_s = LINK_GB_S},
                                         .ram_gb_s = RAM_GB_S,
                                         .cpu_gflops = engine->cpu_gflops,
                                         .cpu_gops16 = engine->cpu_gops16,
                                         .cpu_gops8 = engine->cpu_gops8};
    return plan_link_rows(&arch, &weights, &machine);
}

/* Milliseconds that a token takes longer, by the constants of `plan`. */
static double cost_ms(const struct engine *engine, double *bytes) {
    struct plan_arch arch;
    struct plan_weights weights;
    plan_arch_from_model(&arch, &engine->model, "model");
    plan_weights_from_model(&weights, &engine->model, &engine->weights);
    *bytes = plan_weights_routed_bytes(&arch, &weights, 1) * engine->cpu_layers / plan_arch_moe_layers(&arch);
    return *bytes / (RAM_GB_S * 1e9 * plan_share(PLAN_RAM_EXPERTS)) * 1e3;
}

static void say(const struct engine *engine, int context, double short_bytes) {
    char cards[CARDS_NAME_BYTES];
    double bytes, ms = cost_ms(engine, &bytes), have = 0;
    for (int i = 0; i < engine->n_parts; i++) have += (double)engine->gpu_free_bytes[i];
    log_info(
        "%s: %.2f GiB are missing (%.2f are free) for all of the model and a context of %d tokens. So the routed "
        "experts of %d of %d layers (%.2f GiB) stay in the machine's memory and are computed by the CPU (--n-cpu-moe "
        "%d): by plan's estimate %.1f ms more a token (%.0f MB) where memory gives %.0f GB/s. Fewer bits a weight, "
        "--kv-cache-dtype fp8, a smaller --max-model-len or --max-num-batched-tokens leave more on the card",
        engine_cards_name(engine, cards), short_bytes / GIB, have / GIB, context, engine->cpu_layers,
        model_moe_layers(&engine->model), engine_offload_bytes(engine) / GIB, engine->cpu_layers, ms, bytes * 1e-6,
        RAM_GB_S);
}

/* What is missing on the cards with the experts of `layers` layers on the CPU; below 0: it fits. */
static int missing(struct engine *engine, int layers, int context, double *bytes, struct mo_error *error) {
    engine->cpu_layers = layers;
    return engine_cards_missing(engine, context, bytes, error);
}

/* The fewest layers; all of them where even that is not enough, for a shorter context or an error with the numbers. */
static int choose(struct engine *engine, struct mo_error *error) {
    int asked = engine->options.max_model_len, most = engine->model.context;
    int context = engine_cards_context(engine);
    int low = 0, high = engine_offload_most(engine); /* too few, enough */
    double short_bytes, bytes;
    if (asked > most) return 0; /* too long for the model: engine_plan refuses it */
    int code = missing(engine, 0, context, &short_bytes, error);
    if (code || short_bytes <= 0 || !high) return code;
    while (high - low > 1 && !code) {
        int middle = (low + high) / 2;
        code = missing(engine, middle, context, &bytes, error);
        if (bytes <= 0) {
            high = middle;
        } else {
            low = middle;
        }
    }
    if (!code) code = missing(engine, high, asked ? asked : 1, &bytes, error);
    if (!code && bytes <= 0) say(engine, context, short_bytes);
    return code;
}

/* Who says from where on a step is long hears why none is. */
static void say_refusal(const struct engine *engine) {
    const int rows = engine->options.op_offload_rows;
    struct mo_error why;
    if (rows && cuda_link_refuses(&engine->model, &engine->weights, engine->cpu_layers, &why))
        log_warn("--op-offload-min-batch %d: %s; the CPU computes them in long steps, too", rows, why.message);
}

int engine_offload_choose(struct engine *engine, struct mo_error *error) {
    if (engine->gpu < 0) engine->cpu_layers = 0;
    int code = is_free(engine) ? choose(engine, error) : 0;
    if (!code) say_refusal(engine);
    return code ? code : engine_keep_weights(engine, error);
}
