#include "ranks/ranks.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/log.h"

static const double DEFAULT_TIMEOUT_S = 60;
static const double RANKS_SPIN_S = 0.002; /* longer than what lies between two layers of a step */
static const double STOP_S = 1;
static const char PLUGIN[] = "moebius-mpi.so";

/* MPI is a process's, so this is. */
static struct {
    const struct ranks_transport *transport; /* NULL: alone */
    int self, count;
    char name[RANKS_MAX][32 + WIRE_HOST];
    double timeout_s;
    pid_t parent;
    bool ended; /* rank 0 has said so */
    _Atomic uint64_t exchanges, sent_bytes, received_bytes, wait_ns;
} ranks = {.count = 1};

static volatile sig_atomic_t told_to_stop;

/* ---- are there several, and meeting them ---- */

static int number_of(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

bool ranks_are_meant(void) {
    const char *wish = getenv("MOEBIUS_MPI");
    if (wish && *wish) return strcmp(wish, "0") != 0;
    bool is_slurm_step = getenv("PMIX_RANK") || getenv("PMI_RANK");
    return number_of("OMPI_COMM_WORLD_SIZE") > 1 || number_of("PMI_SIZE") > 1 ||
           (is_slurm_step && number_of("SLURM_NTASKS") > 1);
}

static int load_plugin(struct mo_error *error) {
    char path[4096 + sizeof PLUGIN];
    ssize_t n = readlink("/proc/self/exe", path, 4096);
    char *slash = n > 0 && n < 4096 ? memrchr(path, '/', (size_t)n) : NULL;
    if (!slash) return mo_error_set(error, MO_E_IO, "cannot tell where this program lies");
    strcpy(slash + 1, PLUGIN);
    if (access(path, R_OK)) {
        return mo_error_set(
            error, MO_E_NOT_FOUND,
            "started as one of several processes, but there is no %s: build it with an MPI that has mpicc "
            "(Debian: libopenmpi-dev), or set MOEBIUS_MPI=0 for processes that know nothing of each other",
            path);
    }
    /* For all to see: MPIs load parts of their own, which look for the rest of it. */
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
    if (!library) return mo_error_set(error, MO_E_UNSUPPORTED, "%s cannot be used: %s", path, dlerror());
    const struct ranks_transport *(*get)(void) = NULL;
    *(void **)&get = dlsym(library, RANKS_TRANSPORT_SYMBOL);
    const struct ranks_transport *transport = get ? get() : NULL;
    if (!transport || transport->version != RANKS_TRANSPORT_VERSION) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s belongs to another version of this program (%d, expected %d)",
                            path, transport ? transport->version : 0, RANKS_TRANSPORT_VERSION);
    }
    ranks.transport = transport;
    return 0;
}

/* Some MPIs wait for ever for a process that never comes. */
struct watch {
    pthread_mutex_t lock;
    pthread_cond_t met;
    bool is_met;
    double timeout_s;
};

static void *watch_main(void *argument) {
    struct watch *watch = argument;
    double until_s = clock_now_s() + watch->timeout_s;
    pthread_mutex_lock(&watch->lock);
    while (!watch->is_met) {
        if (clock_wait(&watch->met, &watch->lock, until_s) || watch->is_met) continue;
        log_error("not all processes have come within %g s (MOEBIUS_RANK_TIMEOUT)", watch->timeout_s);
        _exit(1);
    }
    pthread_mutex_unlock(&watch->lock);
    return NULL;
}

static int meet(struct mo_error *error) {
    struct watch watch = {.lock = PTHREAD_MUTEX_INITIALIZER, .timeout_s = ranks.timeout_s};
    pthread_t thread;
    char text[RANKS_TEXT] = "";
    clock_cond_init(&watch.met);
    bool is_watched = !pthread_create(&thread, NULL, watch_main, &watch);
    int failed = ranks.transport->start(&ranks.self, &ranks.count, text);
    pthread_mutex_lock(&watch.lock);
    watch.is_met = true;
    pthread_cond_signal(&watch.met);
    pthread_mutex_unlock(&watch.lock);
    if (is_watched) pthread_join(thread, NULL);
    if (!failed) return 0;
    ranks.transport = NULL;
    return mo_error_set(error, MO_E_IO, "%s: %s", PLUGIN, text);
}

static void note_stop(int number) {
    (void)number;
    told_to_stop = 1;
}

static void settle_others(void) {
    struct sigaction action = {.sa_handler = note_stop};
    if (ranks.self == 0) return;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    log_set_level(LOG_ERROR); /* rank 0 has said all else */
}

int ranks_start_with(const struct ranks_transport *transport, struct mo_error *error) {
    const char *timeout = getenv("MOEBIUS_RANK_TIMEOUT");
    ranks.timeout_s = timeout ? strtod(timeout, NULL) : DEFAULT_TIMEOUT_S;
    ranks.parent = getppid();
    if (!(ranks.timeout_s > 0 && ranks.timeout_s < 1e6)) {
        return mo_error_set(error, MO_E_INVALID, "MOEBIUS_RANK_TIMEOUT: expected seconds, found \"%s\"", timeout);
    }
    ranks.transport = transport;
    int code = transport ? 0 : load_plugin(error);
    if (!code) code = meet(error);
    if (code) return code;
    for (int i = 0; i < RANKS_MAX; i++) snprintf(ranks.name[i], sizeof ranks.name[i], "rank %d", i);
    settle_others();
    if (ranks.count <= RANKS_MAX) return 0;
    return mo_error_set(error, MO_E_LIMIT, "expected at most %d processes, found %d", RANKS_MAX, ranks.count);
}

int ranks_start(struct mo_error *error) {
    return ranks_are_meant() ? ranks_start_with(NULL, error) : 0;
}

int ranks_count(void) {
    return ranks.count;
}

int ranks_self(void) {
    return ranks.self;
}

double ranks_timeout_s(void) {
    return ranks.timeout_s;
}

bool ranks_ended(void) {
    return ranks.ended;
}

void ranks_set_host(int rank, const char *host) {
    snprintf(ranks.name[rank], sizeof ranks.name[rank], "rank %d (%.*s)", rank, WIRE_HOST - 1, host);
}

const char *ranks_name(int rank) {
    return ranks.name[rank];
}

void ranks_stats_add(const struct ranks_stats *more) {
    ranks.exchanges += more->exchanges;
    ranks.sent_bytes += more->sent_bytes;
    ranks.received_bytes += more->received_bytes;
    ranks.wait_ns += (uint64_t)(more->wait_s * 1e9);
}

void ranks_stats_get(struct ranks_stats *stats) {
    *stats = (struct ranks_stats){.exchanges = ranks.exchanges,
                                  .sent_bytes = ranks.sent_bytes,
                                  .received_bytes = ranks.received_bytes,
                                  .wait_s = (double)ranks.wait_ns * 1e-9};
}

void ranks_give_up(const struct mo_error *why) {
    log_error("%s%s%s; all processes end", ranks.self ? ranks.name[ranks.self] : "", ranks.self ? ": " : "",
              why->message);
    if (ranks.transport) ranks.transport->abort(1);
    _exit(1);
}

/* ---- waiting ---- */

/* Between two looks. */
static void pause_after(double waited_s) {
    static _Thread_local bool is_precise;
    if (waited_s < RANKS_SPIN_S) {
        sched_yield();
        return;
    }
    if (!is_precise) prctl(PR_SET_TIMERSLACK, 1000); /* ns; else a short sleep takes 50 us longer */
    is_precise = true;
    long pause_us = waited_s < 0.5 ? 20 : waited_s < 10 ? 200 : 5000;
    nanosleep(&(struct timespec){.tv_nsec = pause_us * 1000}, NULL);
}

static int broken(int rank, const char *text, struct mo_error *error) {
    return mo_error_set(error, MO_E_IO, "the connection with %s failed: %s", rank < 0 ? "the others" : ranks.name[rank],
                        text);
}

static int silent(int rank, double patience_s, struct mo_error *error) {
    return mo_error_set(error, MO_E_IO, "%s has said nothing for %g s (MOEBIUS_RANK_TIMEOUT)",
                        rank < 0 ? "one of the others" : ranks.name[rank], patience_s);
}

/* Whether rank 0 has asked for nothing in the last second, after somebody told us to stop. A launcher that ends tells all of us,
 * and rank 0 may be finishing an answer. */
static bool may_stop(double waited_s) {
    static double told_s;
    if (!told_to_stop) return false;
    if (told_s == 0) told_s = clock_now_s();
    return waited_s > STOP_S && clock_now_s() - told_s > STOP_S;
}

/* Whether there is nobody left to wait for. */
static int check_wait(int rank, double waited_s, double patience_s, struct mo_error *error) {
    if (patience_s > 0 && waited_s > patience_s) return silent(rank, patience_s, error);
    if (waited_s < RANKS_SPIN_S || ranks.self == 0) return 0;
    if (may_stop(waited_s)) return mo_error_set(error, MO_E_CANCELLED, "it was told to stop");
    if (getppid() != ranks.parent) return mo_error_set(error, MO_E_IO, "its launcher is gone");
    return 0;
}

static int wait_for_slot(int slot, int rank, size_t *bytes, struct mo_error *error) {
    char text[RANKS_TEXT] = "";
    double start = clock_now_s(), waited_s = 0;
    for (int done = 0;;) {
        if (ranks.transport->test(slot, &done, bytes, text)) return broken(rank, text, error);
        if (done) return 0;
        pause_after(waited_s);
        waited_s = clock_now_s() - start;
        /* Rank 0 takes nothing while it computes, and may take its time. */
        int code = check_wait(rank, waited_s, ranks.self == 0 ? ranks.timeout_s : -1, error);
        if (code) return code;
    }
}

/* ---- messages ---- */

static int slot_to(int rank) {
    return rank;
}

static int slot_from(int rank) {
    return RANKS_MAX + rank;
}

int ranks_begin_send(int rank, const void *message, size_t bytes, struct mo_error *error) {
    char text[RANKS_TEXT] = "";
    if (ranks.transport->send(slot_to(rank), rank, message, bytes, text)) return broken(rank, text, error);
    return 0;
}

int ranks_begin_receive(int rank, void *to, size_t room, struct mo_error *error) {
    char text[RANKS_TEXT] = "";
    if (ranks.transport->receive(slot_from(rank), rank, to, room, text)) return broken(rank, text, error);
    return 0;
}

int ranks_wait_sent(int rank, struct mo_error *error) {
    size_t bytes;
    return wait_for_slot(slot_to(rank), rank, &bytes, error);
}

int ranks_wait_received(int rank, size_t *bytes, struct mo_error *error) {
    return wait_for_slot(slot_from(rank), rank, bytes, error);
}

int ranks_send(int rank, const void *message, size_t bytes, struct mo_error *error) {
    int code = ranks_begin_send(rank, message, bytes, error);
    return code ? code : ranks_wait_sent(rank, error);
}

int ranks_send_kind(int rank, enum wire_kind kind, struct mo_error *error) {
    const struct wire_head head = {WIRE_MAGIC, kind};
    return ranks_send(rank, &head, sizeof head, error);
}

static int probe(int *rank, size_t *bytes, struct mo_error *error) {
    char text[RANKS_TEXT] = "";
    return ranks.transport->probe(rank, bytes, text) ? broken(-1, text, error) : 0;
}

bool ranks_has_message(void) {
    int rank;
    size_t bytes;
    return !probe(&rank, &bytes, NULL) && rank >= 0;
}

static int check_message(int rank, const struct wire_head *head, size_t bytes, struct mo_error *error) {
    if (bytes < sizeof *head || head->magic != WIRE_MAGIC) {
        return mo_error_set(error, MO_E_CORRUPT, "%s has sent %zu bytes that are no message", ranks.name[rank], bytes);
    }
    if (head->kind != WIRE_END) return 0;
    ranks.ended = true;
    return mo_error_set(error, MO_E_CANCELLED, "rank 0 has ended the program");
}

/* Of one that probe has seen. */
static int take(int rank, void *to, size_t room, size_t bytes, struct mo_error *error) {
    if (bytes > room) {
        return mo_error_set(error, MO_E_CORRUPT, "%s has sent %zu bytes where at most %zu were expected",
                            ranks.name[rank], bytes, room);
    }
    int code = ranks_begin_receive(rank, to, room, error);
    if (!code) code = ranks_wait_received(rank, &bytes, error);
    return code ? code : check_message(rank, to, bytes, error);
}

/* Everything but the exchange of a layer comes this way, so a message is of whom it is waited for; with two ranks at least. */
int ranks_receive(int *rank, void *to, size_t room, size_t *bytes, double patience_s, struct mo_error *error) {
    double start = clock_now_s(), waited_s = 0, patience = patience_s == 0 ? ranks.timeout_s : patience_s;
    if (ranks.ended) return mo_error_set(error, MO_E_CANCELLED, "rank 0 has ended the program");
    for (;;) {
        int from;
        int code = probe(&from, bytes, error);
        if (code) return code;
        if (from >= 0) {
            *rank = from;
            return take(from, to, room, *bytes, error);
        }
        pause_after(waited_s);
        waited_s = clock_now_s() - start;
        code = check_wait(*rank, waited_s, patience, error);
        if (code) return code;
    }
}

/* ---- the end ---- */

/* Whatever has come from the others, until each has said goodbye: MPI does not like to be left with messages unread. */
static int dismiss_all(struct mo_error *error) {
    static _Alignas(64) uint8_t message[sizeof(struct wire_hello) + sizeof(struct wire_plan)];
    int left = ranks.count - 1, code = 0;
    for (int r = 1; r < ranks.count && !code; r++) code = ranks_send_kind(r, WIRE_END, error);
    while (left > 0 && !code) {
        int rank = -1;
        size_t bytes;
        code = ranks_receive(&rank, message, sizeof message, &bytes, 0, error);
        if (!code && ((struct wire_head *)message)->kind == WIRE_BYE) left--;
    }
    return code;
}

static int leave(struct mo_error *error) {
    static _Alignas(64) uint8_t message[sizeof(struct wire_hello) + sizeof(struct wire_plan)];
    int rank = 0, code = 0;
    size_t bytes;
    while (!ranks.ended && !code) {
        code = ranks_receive(&rank, message, sizeof message, &bytes, -1, error);
        if (ranks.ended) code = 0;
    }
    return code ? code : ranks_send_kind(0, WIRE_BYE, error);
}

void ranks_end(void) {
    struct mo_error error = {0};
    char text[RANKS_TEXT] = "";
    if (!ranks.transport) return;
    if (ranks.count > RANKS_MAX) ranks.transport->abort(1); /* and each has said why */
    int code = ranks.self == 0 ? dismiss_all(&error) : leave(&error);
    if (code) ranks_give_up(&error);
    ranks.transport->finish(text);
    ranks.transport = NULL;
    ranks.ended = false;
    ranks.self = 0;
    ranks.count = 1;
}
