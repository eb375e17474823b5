/* model/slots.h - every matrix, vector and table that a model has, from its description alone, in the order in which our files hold
 * them: the three matrices of an expert lie side by side. Includes: base, model. */
#ifndef MOEBIUS_MODEL_SLOTS_H
#define MOEBIUS_MODEL_SLOTS_H

#include "base/arena.h"
#include "model/model.h"
#include "model/names.h"

struct slot {
    enum role role;
    int layer, expert;
    int rows, cols; /* cols 0: a vector of `rows` values, or a table */
    int entries;    /* of a row of a table: int32 [rows][entries]; 0: no table */
};

/* *slots [*n] in the arena. */
int slots_list(const struct model *model, struct arena *arena, struct slot **slots, int *n, struct mo_error *error);

#endif
