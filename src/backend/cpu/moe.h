/* backend/cpu/moe.h - the parts of an expert layer, for moe.c (all experts in memory), moe_store.c (some of them at a time) and
 * moe_ranks.c (some of them in other processes). All add up a row's experts in ascending order, so they give the same bits. Includes: cpu.h. */
#ifndef MOEBIUS_BACKEND_CPU_MOE_H
#define MOEBIUS_BACKEND_CPU_MOE_H

#include "backend/cpu/cpu.h"

/* The batch's (row, expert) pairs sorted by expert: pair i of the sorted list is row row[i] with weight[i]. An expert that a table lists
 * twice for a token is one pair, with the sum of both weights. */
struct assignment {
    int *first;    /* [experts + 1] */
    int *row;      /* [first[experts]], n_rows * top_k at most */
    float *weight; /* the same */
};

/* One layer of one step, in stage memory. */
struct moe {
    struct cpu *cpu;
    const struct layer *w;
    struct assignment assignment;
    const float *const *x;  /* [n_rows] normed */
    const struct q8_row *q; /* [n_rows] or NULL */
    const float **pair_x;   /* [pairs] the row of each pair */
    struct q8_row *pair_q;  /* [pairs] or NULL */
    float **gate, **up;     /* [pairs] */
};

/* Pairs [from, to) on their way into the block's target. */
struct moe_down {
    int from;
    const float *const *x;  /* [to - from] */
    const struct q8_row *q; /* [to - from] or NULL */
    float **target;         /* [n_rows] */
    float **y;              /* [to - from] */
};

struct moe moe_begin(struct cpu *cpu, int layer);
/* The same for some pairs alone, their rows being those of x [n_rows], q its 8 bits. */
struct moe moe_begin_pairs(struct cpu *cpu, int layer, struct assignment assignment, const float *const *x,
                           const struct q8_row *q);
/* The output of each pair as it is, not yet weighed and added: y [pairs][hidden]. */
void moe_compute_pairs(const struct moe *moe, float *y);
int moe_rows(const struct moe *moe, int expert); /* that were sent to it */
void moe_list_gate_up(const struct moe *moe, int e, const struct mlp *expert, struct linear jobs[2]);
int moe_list_shared_gate_up(const struct moe *moe, struct linear jobs[2]); /* how many: 0 or 2 */
void moe_silu(const struct moe *moe, int from, int to);                    /* of pairs */
void moe_shared_silu(const struct moe *moe);
struct moe_down moe_begin_down(const struct moe *moe, int from, int to);
void moe_list_down(const struct moe *moe, const struct moe_down *down, int e, const struct mlp *expert,
                   struct linear *job);
int moe_list_shared_down(const struct moe *moe, float *const *target, struct linear *job); /* how many: 0 or 1 */

/* moe_store.c: cpu_experts with options.store. */
void moe_compute_from_store(struct cpu *cpu, int layer);
/* moe_ranks.c: with options.ranks. */
void moe_compute_with_ranks(struct cpu *cpu, int layer);

#endif
