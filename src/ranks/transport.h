/* ranks/transport.h - the narrow table between the program and what carries messages from one of its processes to another. Behind
 * it is a plug-in of its own (mpi/transport_mpi.c, moebius-mpi.so beside the program), compiled by mpicc, because every MPI has an
 * ABI of its own: the program itself needs none, and starts where there is none.
 *
 * All calls come from one thread at a time. Where something can fail the answer is 0, or -1 with the reason in text [RANKS_TEXT].
 * Includes: nothing of the project. */
#ifndef MOEBIUS_RANKS_TRANSPORT_H
#define MOEBIUS_RANKS_TRANSPORT_H

#include <stddef.h>

enum {
    RANKS_TRANSPORT_VERSION = 1,
    RANKS_MAX = 64,
    RANKS_SLOTS = 2 * RANKS_MAX, /* what can be on its way at once: one to each, and one from each */
    RANKS_TEXT = 512,
};

struct ranks_transport {
    int version; /* RANKS_TRANSPORT_VERSION */
    /* Meets the other processes; returns when all are there. */
    int (*start)(int *self, int *count, char *text);
    /* Begins to send or to receive (at most) so many bytes; they are not touched until `test` says that `slot` is done. */
    int (*send)(int slot, int rank, const void *data, size_t bytes, char *text);
    int (*receive)(int slot, int rank, void *data, size_t bytes, char *text);
    /* *bytes: how many were received. Also brings forward everything else that is on its way. */
    int (*test)(int slot, int *done, size_t *bytes, char *text);
    /* Whether a message waits that no `receive` is there for; *rank: whose, or -1. */
    int (*probe)(int *rank, size_t *bytes, char *text);
    /* Leaves, together with all others. */
    int (*finish)(char *text);
    /* Ends all processes. */
    void (*abort)(int status);
};

/* The plug-in's one symbol. */
#define RANKS_TRANSPORT_SYMBOL "moebius_ranks_transport"
const struct ranks_transport *moebius_ranks_transport(void);

#endif
