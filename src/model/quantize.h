/* model/quantize.h - a model in the formats of a recipe, from any checkpoint that can be read: into one packed file, or into
 * memory in place of the weights that were bound. Memory needed beside the result: one tensor and some buffers; what was read
 * is given back to the system at once. Includes: base, model. */
#ifndef MOEBIUS_MODEL_QUANTIZE_H
#define MOEBIUS_MODEL_QUANTIZE_H

#include "model/make.h"

struct gptq;
struct quantize {
    const struct model *model;
    const struct checkpoint *checkpoint;
    const struct weights *weights; /* of the checkpoint */
    const struct recipe *recipe;
    struct pool *pool;
    /* Mean square of each input of a matrix, [cols], or NULL where it is not known; may be NULL. */
    const float *(*importance)(void *context, const struct slot *slot);
    /* INT4 and INT8 with error feedback where `feedback` is not NULL and does not give NULL (gptq.h); prepare is make.h's, and
     * whatever the two above give must be there after it. Not for quantize_later. */
    int (*prepare)(void *context, const struct made *made, int n, double *apart_s, struct mo_error *error);
    const struct gptq *(*feedback)(void *context, const struct slot *slot);
    void *context;
};

/* MO_E_INVALID if writing `path` would replace a file of the checkpoint, whatever it is called there. Nothing is read. */
int quantize_check_target(const struct checkpoint *checkpoint, const char *path, struct mo_error *error);
/* Writes PATH. `quant` is the recipe in words, for the record. */
int quantize_file(const struct quantize *quantize, const char *path, const char *quant, struct make_report *report,
                  struct mo_error *error);
/* Replaces the matrices of `weights` (which is quantize->weights). */
int quantize_memory(const struct quantize *quantize, struct weights *weights, struct make_report *report,
                    struct mo_error *error);
/* The same without the memory: the matrices of `weights` become descriptions, and each is made when it is asked for. On success
 * weights->later owns quantize->pool; model and checkpoint must outlive it. */
int quantize_later(const struct quantize *quantize, struct weights *weights, struct mo_error *error);

#endif
