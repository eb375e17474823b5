/* plan/efficiency.h - the constants that turn a limit into an expectation, each with where it comes from. This table is the one
 * place to change when something has been measured anew.
 * Includes: nothing of the project but the kinds of kernel. */
#ifndef MOEBIUS_PLAN_EFFICIENCY_H
#define MOEBIUS_PLAN_EFFICIENCY_H

#include <stdbool.h>
#include "plan/quant.h"

enum plan_constant {
    PLAN_CPU_F32, /* share of the memory's read speed at batch 1, by kernel: in the order of enum plan_kernel */
    PLAN_CPU_16BIT,
    PLAN_CPU_8BIT,
    PLAN_CPU_4BIT,
    PLAN_CPU_BLOCKS,
    PLAN_CPU_GRIDS,
    PLAN_CPU_CACHE,      /* the same for rows of the latent cache */
    PLAN_CPU_OPS,        /* share of the peak of multiply-adds of bf16, at levels without them of fp32 */
    PLAN_CPU_OPS8,       /* the same of bytes: 4- and 8-bit integer weights */
    PLAN_CPU_OPS_BLOCKS, /* the same of GGUF's blocks */
    PLAN_RAM_EXPERTS,    /* share of the RAM's rated speed, experts computed where they lie beside a GPU */
    PLAN_SSD,            /* share of a disk's rated speed */
    PLAN_SYSTEM_RAM,     /* bytes left to the system when experts fill the RAM */
    PLAN_GPU_MEMORY,     /* share of the card's rated speed */
    PLAN_GPU_OPS,        /* share of the tensor cores' 16-bit peak, prompts */
    PLAN_GPU_LAUNCHES,   /* kernels a layer, for up to 8 rows and direct queries */
    PLAN_GPU_LAUNCH_S,   /* seconds from one kernel to the next inside a graph */
    PLAN_GPU_CONTEXT,    /* bytes that the driver, its graphs and the kernels take */
    PLAN_HOST_LINK,      /* of the link's speed, when experts are sent to a card */
    PLAN_LINK_S,         /* seconds for a card to be heard by its neighbour */
    PLAN_CONSTANTS
};

struct plan_efficiency {
    const char *name; /* in JSON and in --explain */
    double value;
    bool measured; /* by this project */
    const char *origin;
};
const struct plan_efficiency *plan_efficiency_get(enum plan_constant constant);
double plan_share(enum plan_constant constant);
static inline enum plan_constant plan_cpu_share_of(enum plan_kernel kernel) {
    return (enum plan_constant)(PLAN_CPU_F32 + (int)kernel);
}

#endif
