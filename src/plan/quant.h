/* plan/quant.h - bits a weight, by group of tensors: the one table of formats. A recipe has a format for each group; `--quant
 * int4,head=bf16,routed=2.4` is a recipe with two groups changed. plan_weights says what follows from a recipe, or what the
 * headers of real files say.
 * Includes: base, model/format.h, plan/arch.h. */
#ifndef MOEBIUS_PLAN_QUANT_H
#define MOEBIUS_PLAN_QUANT_H

#include "model/format.h"
#include "plan/arch.h"

/* What the kernels do to a weight: decides how near to the memory's speed they come. */
enum plan_kernel {
    PLAN_K_F32,
    PLAN_K_16BIT,
    PLAN_K_8BIT,
    PLAN_K_4BIT,
    PLAN_K_BLOCKS, /* GGUF's */
    PLAN_K_GRIDS,  /* its IQ1 to IQ3 */
};
enum plan_kernel plan_kernel_of(enum mat_format format);

struct plan_format {
    char name[24];
    double bits; /* scales and zero points included */
    enum plan_kernel kernel;
};

struct plan_quant {
    char name[96]; /* as the user wrote it */
    struct plan_format group[PLAN_GROUPS];
};

/* "RECIPE[,GROUP=FORMAT...]": recipes f32, bf16, f16, fp8, int8, int4, awq; formats the same, awq-g64, awq-g32, or a number of
 * bits. */
int plan_quant_parse(struct plan_quant *quant, const char *text, struct mo_error *error);
/* Recipes from the most bits to the fewest, for "what would fit"; NULL after the last. */
const char *plan_quant_smaller(const char *recipe);
/* False if a group has a number of bits only: no kernel reads that. */
bool plan_quant_is_real(const struct plan_quant *quant);

struct plan_weights {
    double params[PLAN_GROUPS], bytes[PLAN_GROUPS];
    double card_more
        [PLAN_GROUPS]; /* bytes that a card takes beside these: GGUF's blocks are laid out anew there, and V4.1's FP8 */
    struct plan_format format[PLAN_GROUPS];
    double left_out_bytes; /* prediction layers: in the files, not in memory */
    bool measured;         /* from headers, not from a recipe */
    char note[256];        /* what was assumed, or "" */
};
void plan_weights_from_quant(struct plan_weights *weights, const struct plan_arch *arch,
                             const struct plan_quant *quant);
/* What is in memory: without n-gram tables. */
double plan_weights_total(const struct plan_weights *weights);
/* Bytes that a card takes beside those of FP8 matrices: scales are fp32, one for each row, which is much of V4.1's 32x32 blocks alone. */
double plan_fp8_card_more(const struct plan_arch *arch, enum plan_group group, const struct plan_format *format,
                          double weights);
/* Bytes more on a card, outside of the routed experts. */
double plan_weights_fixed_card_more(const struct plan_weights *weights);

/* What every pass reads outside of the routed experts: all but the embedding (unless it is the head) and the norms. */
double plan_weights_fixed_bytes(const struct plan_arch *arch, const struct plan_weights *weights);
/* One expert of one layer. */
double plan_weights_expert_bytes(const struct plan_arch *arch, const struct plan_weights *weights);
/* The routed experts that `batch` independent tokens meet, all layers. */
double plan_weights_routed_bytes(const struct plan_arch *arch, const struct plan_weights *weights, int batch);

#endif
