/* plan/source.h - a path to what a plan needs: a folder, a config.json, a GGUF file, or a safetensors file, of which the leading
 * header bytes are enough. Reads config.json and headers, never a weight.
 * Includes: base, model, plan. */
#ifndef MOEBIUS_PLAN_SOURCE_H
#define MOEBIUS_PLAN_SOURCE_H

#include "model/overrides.h"
#include "plan/quant.h"

struct plan_source {
    const struct overrides *overrides; /* of config.json; borrowed while it is opened; or NULL */
    struct plan_arch arch;
    bool has_weights; /* from headers; else `weights` is not set and the published recipe is a good guess */
    struct plan_weights weights;
};
int plan_source_open(struct plan_source *source, const char *path, const struct overrides *overrides,
                     struct mo_error *error);

#endif
