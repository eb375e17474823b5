/* ranks/mpi/transport_mpi.c - transport.h by MPI: the plug-in moebius-mpi.so. Everything is point to point and never waits, so how to
 * wait is left to ranks.c: MPI's own waiting takes a whole processor. */
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include "ranks/transport.h"

enum { TAG = 0x4d6f }; /* one for all: messages of a pair of ranks keep their order, and say what they are */

static MPI_Comm comm;
static MPI_Request requests[RANKS_SLOTS];

static int check(int code, char *text) {
    char reason[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    if (code == MPI_SUCCESS) return 0;
    MPI_Error_string(code, reason, &length);
    snprintf(text, RANKS_TEXT, "%.*s", length, reason);
    return -1;
}

static int start(int *self, int *count, char *text) {
    int provided;
    if (check(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided), text)) return -1;
    if (provided < MPI_THREAD_SERIALIZED) {
        snprintf(text, RANKS_TEXT, "this MPI was built without threads (MPI_THREAD_SERIALIZED)");
        return -1;
    }
    if (check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), text)) return -1;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    for (int i = 0; i < RANKS_SLOTS; i++) requests[i] = MPI_REQUEST_NULL;
    if (check(MPI_Comm_rank(comm, self), text)) return -1;
    return check(MPI_Comm_size(comm, count), text);
}

static int too_large(size_t bytes, char *text) {
    if (bytes <= INT_MAX) return 0;
    snprintf(text, RANKS_TEXT, "a message of %zu bytes", bytes);
    return -1;
}

static int begin_send(int slot, int rank, const void *data, size_t bytes, char *text) {
    if (too_large(bytes, text)) return -1;
    return check(MPI_Isend(data, (int)bytes, MPI_BYTE, rank, TAG, comm, &requests[slot]), text);
}

static int begin_receive(int slot, int rank, void *data, size_t bytes, char *text) {
    if (too_large(bytes, text)) return -1;
    return check(MPI_Irecv(data, (int)bytes, MPI_BYTE, rank, TAG, comm, &requests[slot]), text);
}

static int test(int slot, int *done, size_t *bytes, char *text) {
    MPI_Status status;
    int n = 0;
    if (check(MPI_Test(&requests[slot], done, &status), text)) return -1;
    if (*done && MPI_Get_count(&status, MPI_BYTE, &n) == MPI_SUCCESS && n >= 0) *bytes = (size_t)n;
    return 0;
}

static int probe(int *rank, size_t *bytes, char *text) {
    MPI_Status status;
    int there, n = 0;
    *rank = -1;
    if (check(MPI_Iprobe(MPI_ANY_SOURCE, TAG, comm, &there, &status), text)) return -1;
    if (!there) return 0;
    if (check(MPI_Get_count(&status, MPI_BYTE, &n), text)) return -1;
    *rank = status.MPI_SOURCE;
    *bytes = (size_t)n;
    return 0;
}

static int finish(char *text) {
    MPI_Comm_free(&comm);
    return check(MPI_Finalize(), text);
}

static void end_all(int status) {
    MPI_Abort(MPI_COMM_WORLD, status);
}

const struct ranks_transport *moebius_ranks_transport(void) {
    static const struct ranks_transport table = {
        .version = RANKS_TRANSPORT_VERSION,
        .start = start,
        .send = begin_send,
        .receive = begin_receive,
        .test = test,
        .probe = probe,
        .finish = finish,
        .abort = end_all,
    };
    return &table;
}
