/* plan/predict.h - what this machine's CPU should do with a model that is open, for `bench` to print beside what it did:
 *
 *     struct plan_predictor p;
 *     plan_predictor_init(&p, &engine->model, &engine->weights, kv, level, int8_tops);
 *     p.ssd_gb_s = ..., p.hit_rate = ...;                  where experts are read from a disk
 *     struct plan_speed s = plan_predict_step(&p, batch, depth, read_gb_s, counted_bytes);
 *     plan_speed_limit(&s), plan_speed_expected(&s)        tokens/s of all sequences together
 *
 * Includes: base, model, plan. */
#ifndef MOEBIUS_PLAN_PREDICT_H
#define MOEBIUS_PLAN_PREDICT_H

#include "base/cpu.h"
#include "model/weights.h"
#include "plan/speed.h"

struct plan_predictor {
    struct plan_arch arch;
    struct plan_weights weights;
    enum kv_format kv;
    double gflops, gops16, gops8;
    double ssd_gb_s, hit_rate; /* of steps, as in struct plan_cpu_case; init: everything is in memory */
};

/* `kv`: the backend's enum kv_format. `int8_tops` as measured (bench_measure_peak); 0: operations cost nothing. */
void plan_predictor_init(struct plan_predictor *predictor, const struct model *model, const struct weights *weights,
                         int kv, enum cpu_level level, double int8_tops);
/* One decode step. `counted_bytes`: what the step really had to read (cmd/bench/bytes.h), so that the choice of experts is no
 * part of the comparison; 0: as many experts as independent tokens meet. */
struct plan_speed plan_predict_step(const struct plan_predictor *predictor, int batch, int depth, double read_gb_s,
                                    double counted_bytes);

/* Bytes by group of matrices that are bound. */
void plan_weights_from_model(struct plan_weights *weights, const struct model *model, const struct weights *bound);

#endif
