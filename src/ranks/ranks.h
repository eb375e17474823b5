/* ranks/ranks.h - the processes of one `mpirun -n N moebius ...`. Rank 0 is the program that one knows; the others compute routed
 * experts for it (backend/cpu/moe_ranks.c, engine/ranks.c). Alone, nothing of this costs anything: no plug-in is looked for.
 *
 * Several are meant where the launcher's environment says so: OMPI_COMM_WORLD_SIZE (Open MPI), PMI_SIZE (MPICH, Intel), or
 * SLURM_NTASKS beside PMIX_RANK or PMI_RANK (srun). MOEBIUS_MPI=0: they know nothing of each other; MOEBIUS_MPI=1: ask MPI in
 * any case.
 *
 * Waiting does not burn a processor: it looks without a pause for RANKS_SPIN_S, then sleeps between looks, longer the longer
 * nothing comes. One that is waited for and silent for MOEBIUS_RANK_TIMEOUT seconds (60) is lost, and with it everything: lost
 * processes end all others, since nothing could be computed any more. So a wrong answer is impossible, and so is waiting for ever.
 *
 * One thread at a time. Includes: base, transport.h. */
#ifndef MOEBIUS_RANKS_RANKS_H
#define MOEBIUS_RANKS_RANKS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"
#include "ranks/transport.h"
#include "ranks/wire.h"

/* Whether a launcher has started this as one of several. */
bool ranks_are_meant(void);
/* At the beginning of a command that can be several processes. */
int ranks_start(struct mo_error *error);
/* The same over another transport, for tests; NULL: the plug-in. */
int ranks_start_with(const struct ranks_transport *transport, struct mo_error *error);
/* At its end, whatever happened: rank 0 sends the others home. */
void ranks_end(void);

int ranks_count(void); /* 1: alone */
int ranks_self(void);
double ranks_timeout_s(void);
bool ranks_ended(void); /* rank 0 has ended the program: nothing will come any more */

/* How messages call a rank: "rank 1 (host)". ranks_set_host is told its host [WIRE_HOST]. */
void ranks_set_host(int rank, const char *host);
const char *ranks_name(int rank);

/* Whole messages, a `struct wire_head` in front. Sending waits until it is taken. */
int ranks_send(int rank, const void *message, size_t bytes, struct mo_error *error);
int ranks_send_kind(int rank, enum wire_kind kind, struct mo_error *error);

/* The next message, of any rank if *rank is -1, into `to` (at most `room` bytes). `patience_s`: how long it may take (0: MOEBIUS_RANK_TIMEOUT;
 * negative: for ever, as long as nobody says to stop). MO_E_CANCELLED: rank 0 has ended the program. */
int ranks_receive(int *rank, void *to, size_t room, size_t *bytes, double patience_s, struct mo_error *error);
/* Whether there is one, without waiting. */
bool ranks_has_message(void);

/* For the exchange of a layer: many at once. */
int ranks_begin_send(int rank, const void *message, size_t bytes, struct mo_error *error);
int ranks_begin_receive(int rank, void *to, size_t room, struct mo_error *error);
int ranks_wait_sent(int rank, struct mo_error *error);
int ranks_wait_received(int rank, size_t *bytes, struct mo_error *error);

/* Says why, and ends all processes. */
_Noreturn void ranks_give_up(const struct mo_error *why);

struct ranks_stats {
    uint64_t exchanges; /* of rank 0 with the others, each at most one message to and from each of them */
    uint64_t sent_bytes, received_bytes;
    double wait_s; /* for answers, when rank 0 had done its own part */
};
void ranks_stats_add(const struct ranks_stats *more);
/* Any thread. */
void ranks_stats_get(struct ranks_stats *stats);

/* Who computes which routed experts, of every layer alike. */
struct ranks_split {
    int count, self;
    int piece_pairs; /* (row, expert) pairs of one exchange, at most */
    uint8_t owner[WIRE_MAX_EXPERTS];
    uint8_t on_host[RANKS_MAX]; /* processes on the machine of each: they share its memory */
};

#endif
