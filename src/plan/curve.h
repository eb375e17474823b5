/* plan/curve.h - how often a text's experts are found in a cache, by its size: what `moebius experts MODEL --text FILE -o CURVE`
 * has written, as far as a plan needs it.
 * Includes: base, plan/arch.h. */
#ifndef MOEBIUS_PLAN_CURVE_H
#define MOEBIUS_PLAN_CURVE_H

#include "plan/arch.h"

enum { PLAN_MAX_CURVE = 64 };

struct plan_curve {
    int n; /* 0: none */
    double share[PLAN_MAX_CURVE], hit_rate[PLAN_MAX_CURVE];
    int tokens;
    bool synthetic, generated; /* of random weights; of what the model wrote */
    char source[128];          /* the text's name, fit to be shown */
};

/* Of a model with other experts: MO_E_INVALID. */
int plan_curve_read(struct plan_curve *curve, const char *path, const struct plan_arch *arch, struct mo_error *error);
/* The same of JSON that is read already; `where` names it in messages. */
int plan_curve_from(struct plan_curve *curve, const json_t *root, const char *where, const struct plan_arch *arch,
                    struct mo_error *error);
/* Where `share` of the experts is in memory: between the two sizes around it in proportion; none finds nothing, all find all. */
double plan_curve_at(const struct plan_curve *curve, double share);

#endif
