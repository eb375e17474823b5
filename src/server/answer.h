/* server/answer.h - a request between its submission and its last byte. The engine thread leaves copies of
 * events; the I/O thread turns them into a stream or one object. No HTTP in here.
 *
 * Threads: all functions are the I/O thread's but answer_cancel, answer_ping, answer_is_stalled and
 * answer_silent_s, which the watcher calls too. Lifetime: the owner's reference ends with answer_release;
 * each submitted choice holds another until its last event, so the memory outlives a client that goes away.
 * Includes: base, sched, server/dialect.h. */
#ifndef MOEBIUS_SERVER_ANSWER_H
#define MOEBIUS_SERVER_ANSWER_H

#include <sys/types.h>
#include "server/dialect.h"

/* How the reader of an answer sleeps and is woken: both are called under the answer's lock, in turns, sleep
 * first. Wake may come from any thread. */
struct answer_waker {
    void (*sleep)(void *context);
    void (*wake)(void *context);
    void *context;
    bool only_at_end; /* a whole answer's reader is not to be woken before, to take what has come */
};

enum { ANSWER_QUEUE_BYTES_MAX = 8 << 20 }; /* a stream whose client falls behind further is given up */

struct answer;

/* Takes `request` over (also on failure) and submits all its choices, or none. */
int answer_start(struct answer **answer, struct api_request *request, const struct engine *engine,
                 const char *fingerprint, const struct answer_waker *waker, struct api_error *error);
void answer_release(struct answer *answer); /* cancels what still runs */

bool answer_is_stream(const struct answer *answer);

/* The next bytes of a stream, or of a whole answer that is read after a probe. 0: none yet, and the waker's
 * sleep was called. */
enum { ANSWER_END = -1, ANSWER_BROKEN = -2 };
ssize_t answer_read(struct answer *answer, char *out, size_t size);

/* Takes what has come of a whole answer: it is done; or it is not, and the waker's sleep was called; or its client is to be
 * probed: answer_read gives a blank line first, then the JSON when it is there. */
enum answer_state { ANSWER_DONE, ANSWER_WAITS, ANSWER_PROBES };
enum answer_state answer_wait(struct answer *answer);
/* The finished answer: the caller's. NULL with `error` if it failed. */
json_t *answer_take(struct answer *answer, struct api_error *error);

/* What answer_take has counted, and from the start how many choices there are: the choices of a prompt share its tokens. */
struct answer_usage {
    int n_choices;
    int64_t n_prompt, n_cached, n_generated;
};
void answer_usage_get(const struct answer *answer, struct answer_usage *usage);

void answer_cancel(struct answer *answer);
/* Sends a comment into a stream that has nothing else to say, or a blank line before a whole answer. */
void answer_ping(struct answer *answer);
/* A stream's client fell too far behind: the answer is cancelled already. */
bool answer_is_stalled(struct answer *answer);
/* Seconds that the reader has been asleep; 0 if it is not. */
double answer_silent_s(struct answer *answer);

#endif
