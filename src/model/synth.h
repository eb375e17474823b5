/* model/synth.h - models of the published shapes with random weights, for measuring speed and memory without a download. The
 * numbers are sane (each matrix keeps the size of what goes through it, so the residual stays finite, the logits spread and
 * every expert is chosen), no two tensors are alike, and nothing compresses. Formats are written directly: nothing is
 * quantised. Includes: base, model. */
#ifndef MOEBIUS_MODEL_SYNTH_H
#define MOEBIUS_MODEL_SYNTH_H

#include "model/make.h"

/* config.json of a published model (without its quantization_config) with `layers` layers (0: all of them). The caller
 * releases it. */
int synth_config(json_t **config, const char *name, int layers, struct mo_error *error);
/* The same from a config.json of the caller's. */
int synth_config_read(json_t **config, const char *path, int layers, struct mo_error *error);

struct synth {
    const json_t *config;
    const struct recipe *recipe;
    struct pool *pool;
    uint64_t seed;
    const char *name; /* what it is like: for the record */
};
/* The model that the config describes, marked as synthetic. */
int synth_model(const struct synth *synth, struct model *model, struct mo_error *error);
int synth_file(const struct synth *synth, const char *path, const char *quant, struct make_report *report,
               struct mo_error *error);
/* The same in memory: fills `weights`, which weights_free releases. */
int synth_memory(const struct synth *synth, const struct model *model, struct weights *weights,
                 struct make_report *report, struct mo_error *error);
/* Only described: vectors, and matrices for weights->later, for a backend that makes its own numbers up. */
int synth_later(const struct synth *synth, const struct model *model, struct weights *weights, struct mo_error *error);

/* What the values of a matrix should deviate by, and the root mean square of what random bits of a format stand for (BF16 is not
 * asked for). */
float synth_deviation(enum role role, int cols);
float synth_root_mean_square(enum mat_format format);

#endif
