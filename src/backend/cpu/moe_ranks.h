/* backend/cpu/moe_ranks.h - where the messages of an expert layer lie in cpu->exchange: for moe_ranks.c (rank 0) and moe_work.c (the
 * others). All of it is taken when the backend opens; its size follows from piece_pairs, not from the rows of a step.
 * Includes: moe.h, ranks. */
#ifndef MOEBIUS_BACKEND_CPU_MOE_RANKS_H
#define MOEBIUS_BACKEND_CPU_MOE_RANKS_H

#include "backend/cpu/moe.h"
#include "ranks/ranks.h"

/* All messages of a piece share one area, since its pairs are shared out among them. */
struct exchange {
    uint8_t *request; /* to each rank, one behind the other; on the others: the one that came */
    uint8_t *reply
        [2]; /* outputs of each rank, rank 0's own among them; two: while one piece is added, the next is on its way */
    float *shared; /* [max_rows][hidden] of the shared experts */
    size_t request_bytes, reply_bytes;
};
struct exchange exchange_of(const struct cpu *cpu);

/* The parts of a request. */
struct request_parts {
    int32_t *row, *expert; /* [n_pairs] */
    float *x;              /* [n_rows][hidden] */
    size_t bytes;          /* of all */
};
struct request_parts request_parts_of(struct wire_request *request, int n_pairs, int n_rows, int hidden);
size_t reply_message_bytes(int n_pairs, int hidden);

#endif
