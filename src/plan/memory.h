/* plan/memory.h - where weights, cache and scratch lie, and whether they fit. The engine's own plan at open
 * (engine/plan.c) uses plan_cache_budget: one arithmetic for what is said before and what is done after.
 * Includes: plan. */
#ifndef MOEBIUS_PLAN_MEMORY_H
#define MOEBIUS_PLAN_MEMORY_H

#include "plan/machine.h"
#include "plan/quant.h"

/* Bytes that weights and scratch leave for the cache of `available`, of which the share `utilization` may be taken: a
 * sixteenth at least, since mapped weights can be read from their file again. */
double plan_cache_budget(double available, double utilization, double weights, double scratch);

/* Tokens of a step, where nobody says how many: a card is full, and what is read from a disk is worth its time, only with many; the
 * CPU alone gains nothing from more, and sequences that decode beside a prompt wait less. */
enum { PLAN_STEP_TOKENS = 512, PLAN_LONG_STEP_TOKENS = 2048 };
/* Of the memory, the share that the scratch of long steps may take where a disk is what they are for. */
#define PLAN_LONG_STEP_SHARE (1.0 / 8)

enum plan_place {
    PLAN_IN_GPU,     /* everything in the cards' memory */
    PLAN_IN_GPU_RAM, /* routed experts in RAM, computed by the CPU, of all layers or some; the rest on the card */
    PLAN_IN_GPU_RAM_SSD,
    PLAN_IN_RAM, /* no card, or it is not used */
    PLAN_IN_RAM_SSD,
    PLAN_PLACES
};
/* What the class of a machine is called: "vram", "ram", "nvme", "cpu". */
const char *plan_place_name(enum plan_place place);
/* The same in words. */
const char *plan_place_text(enum plan_place place);

/* One kind of memory, of one card or one machine. */
struct plan_room {
    double need_bytes, have_bytes;
};

struct plan_memory {
    enum plan_place place;
    bool fits;
    int card_layers; /* with a card and experts elsewhere: layers whose routed experts are on the card all the same */
    double weights_bytes, kv_bytes_per_token, kv_bytes, scratch_bytes, graphs_bytes, total_bytes; /* of the whole */
    struct plan_room gpu, ram; /* each card; each machine, or the first where machines share experts alone */
    struct plan_room other;    /* each of the other machines then */
    double headroom_bytes;     /* of the memory that is nearest to its end; below 0 when it does not fit */
    double held;               /* share of the other routed experts in RAM (1 unless some are on disk) */
    double cache_tokens;       /* that would fit beside the weights */
};

/* All that a plan is made from. */
struct plan_input {
    struct plan_arch arch;
    struct plan_weights weights;
    struct plan_quant quant; /* names the recipe; weights are from it unless they are measured */
    struct plan_machine machine;
    struct plan_wish wish;
    double cpu_scratch_bytes; /* what the CPU backend says; 0: estimated */
};

/* Several machines, as this engine uses them. */
static inline bool plan_shares_experts(const struct plan_input *input) {
    return input->machine.parallel == PLAN_PARALLEL_RANKS && input->machine.nodes > 1 && input->arch.experts;
}

/* Share of the layers' routed experts that a card computes: 0 to 1. */
double plan_card_share(const struct plan_input *input, const struct plan_memory *memory);
/* Layers whose routed experts are not on the card that there is: --n-cpu-moe. */
static inline int plan_cpu_layers(const struct plan_input *input, const struct plan_memory *memory) {
    return memory->place == PLAN_IN_GPU ? 0 : plan_arch_moe_layers(&input->arch) - memory->card_layers;
}

/* Rows of a step from which it takes less time to send all routed experts over a card's link than to multiply with them on the
 * processor, whose speed the machine has. */
enum { PLAN_LINK_ROWS_LEAST = 65 }; /* a card's kernels for prompts begin there */
int plan_link_rows(const struct plan_arch *arch, const struct plan_weights *weights,
                   const struct plan_machine *machine);
/* Whether a step of so many rows has its experts sent, if they lie there. */
bool plan_takes_link(const struct plan_input *input, enum plan_place place, int rows);
/* What that takes of the card: experts by turns, and buffers. */
double plan_link_bytes(const struct plan_arch *arch, const struct plan_weights *weights);

/* What a step writes besides the cache: on a card, as the backend places it; else an estimate (cpu_scratch_bytes is better). */
double plan_scratch_bytes(const struct plan_arch *arch, const struct plan_wish *wish, bool on_card);

/* RAM of one machine that is left for us: rated RAM less the system's part, or the share of what is free now. */
double plan_usable_ram(const struct plan_machine *machine, const struct plan_wish *wish);

/* Settles what was left open: how cards share the work (by heads and rows if that fits, else by layers). */
void plan_settle(struct plan_input *input);
/* At one place, fitting or not. Beside one card, of which nothing else was said, as few layers' experts as must. */
void plan_memory_at(const struct plan_input *input, enum plan_place place, struct plan_memory *memory);
/* At the fastest place where it fits; if there is none, at the first that was tried. */
void plan_memory(const struct plan_input *input, struct plan_memory *memory);

/* The nearest settings that fit, for people who asked for what does not. */
enum { PLAN_NEAREST = 3 };
struct plan_nearest {
    char flags[96];
    double headroom_bytes;
    enum plan_place place;
};
int plan_find_nearest(const struct plan_input *input, struct plan_nearest nearest[PLAN_NEAREST]);

#endif
