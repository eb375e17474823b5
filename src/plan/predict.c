#include "plan/predict.h"

#include <math.h>
#include <stdio.h>
#include "plan/detect.h"

static void add_mat(struct plan_weights *w, enum plan_group group, const struct mat *mat) {
    if (!mat->rows) return; /* a matrix that this model does not have */
    w->bytes[group] += (double)mat_bytes(mat);
    w->params[group] += (double)mat->rows * mat->cols;
    w->format[group].kernel = plan_kernel_of(mat->format);
    w->format[group].bits = w->bytes[group] * 8 / w->params[group];
    snprintf(w->format[group].name, sizeof w->format[group].name, "%s", mat_format_name(mat->format));
}

static void add_mlp(struct plan_weights *w, enum plan_group group, const struct mlp *mlp) {
    add_mat(w, group, &mlp->gate);
    add_mat(w, group, &mlp->up);
    add_mat(w, group, &mlp->down);
}

static void add_layer(struct plan_weights *w, const struct model *model, const struct layer *layer, bool dense) {
    add_mat(w, PLAN_ATTENTION, &layer->q);
    add_mat(w, PLAN_ATTENTION, &layer->q_a);
    add_mat(w, PLAN_ATTENTION, &layer->q_b);
    add_mat(w, PLAN_ATTENTION, &layer->kv_a);
    add_mat(w, PLAN_KV_B, &layer->kv_b);
    add_mat(w, PLAN_ATTENTION, &layer->o);
    add_mat(w, PLAN_ATTENTION, &layer->o_a);
    add_mat(w, PLAN_ROUTER, &layer->indexer.weights);
    add_mat(w, PLAN_KV_B, &layer->indexer.q);
    add_mat(w, PLAN_KV_B, &layer->indexer.k);
    add_mat(w, PLAN_KV_B, &layer->compressor.kv);
    add_mat(w, PLAN_KV_B, &layer->compressor.gate);
    add_mat(w, PLAN_KV_B, &layer->index_compressor.kv);
    add_mat(w, PLAN_KV_B, &layer->index_compressor.gate);
    add_mat(w, PLAN_ROUTER, &layer->attn_mixer.mix);
    add_mat(w, PLAN_ROUTER, &layer->ffn_mixer.mix);
    add_mat(w, PLAN_ATTENTION, &layer->engram.kv);
    add_mat(w, PLAN_TABLES, &layer->engram.table);
    if (dense) {
        add_mlp(w, PLAN_DENSE, &layer->dense);
        return;
    }
    add_mat(w, PLAN_ROUTER, &layer->router);
    add_mlp(w, PLAN_SHARED, &layer->shared);
    for (int e = 0; e < model->experts; e++) add_mlp(w, PLAN_ROUTED, &layer->experts[e]);
}

void plan_weights_from_model(struct plan_weights *weights, const struct model *model, const struct weights *bound) {
    *weights = (struct plan_weights){.measured = true};
    add_mat(weights, PLAN_EMBEDDING, &bound->embed);
    if (!model->tied_embedding) add_mat(weights, PLAN_HEAD, &bound->head);
    add_mat(weights, PLAN_ROUTER, &bound->head_mixer.mix);
    for (int i = 0; i < model->layers; i++)
        add_layer(weights, model, &bound->layers[i], model_layer_is_dense(model, i));
}

void plan_predictor_init(struct plan_predictor *p, const struct model *model, const struct weights *weights, int kv,
                         enum cpu_level level, double int8_tops) {
    *p = (struct plan_predictor){.kv = (enum kv_format)kv, .gops8 = int8_tops * 1e3};
    p->gflops = p->gops8 / plan_cpu_bytes_factor(level);
    p->gops16 = p->gflops * plan_cpu_bf16_factor(level);
    plan_arch_from_model(&p->arch, model, "model");
    plan_weights_from_model(&p->weights, model, weights);
}

struct plan_speed plan_predict_step(const struct plan_predictor *p, int batch, int depth, double read_gb_s,
                                    double counted_bytes) {
    struct plan_cpu_case c = {.arch = &p->arch,
                              .weights = &p->weights,
                              .kv = p->kv,
                              .read_gb_s = read_gb_s,
                              .gflops = p->gflops,
                              .gops16 = p->gops16,
                              .gops8 = p->gops8,
                              .routed_bytes = -1,
                              .cache_rows = -1,
                              .ssd_gb_s = p->ssd_gb_s,
                              .hit_rate = p->hit_rate};
    struct plan_speed speed;
    if (counted_bytes > 0) { /* what is neither fixed nor cache are experts; a cache that is shared counts once */
        double rest = counted_bytes - plan_weights_fixed_bytes(&p->arch, &p->weights);
        double row = plan_arch_read_bytes(&p->arch, p->kv, fmax(depth, 1)) / fmax(depth, 1);
        double rows = (double)batch * depth;
        c.cache_rows = fmin(rows, fmax(rest, 0) / row);
        if (p->arch.experts && rows > depth) c.cache_rows = fmin(c.cache_rows, depth + 64.0 * batch);
        c.routed_bytes = fmax(rest - c.cache_rows * row, 0);
    }
    plan_predict_cpu(&c, batch, depth, &speed);
    return speed;
}
