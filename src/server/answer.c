#include "server/answer.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "server/put.h"

/* So much of a whole answer is taken before its end: else that would be a long time for whoever reads other answers. */
enum { PIECE_BYTES = 64 << 10 };

/* What the engine thread knows a choice by. */
struct choice_link {
    struct answer *answer;
    int index;
    uint64_t id;
};

struct answer {
    struct api_request request;
    const struct engine *engine;
    struct answer_waker waker;
    int n_choices;
    struct choice_link *links; /* [n_choices] */

    /* I/O thread */
    struct respond_head head;
    struct choice *choices; /* [n_choices] */
    struct buffer out;
    int n_open;   /* choices whose end has not been read */
    bool written; /* the last frame is in `out` */
    struct api_error failure;

    /* under `lock` */
    pthread_mutex_t lock;
    struct token_event *first, **last; /* the queue */
    size_t queued_bytes;
    int n_references;
    int n_running; /* choices whose end has not come */
    bool asleep, released, cancelled, stalled, lost, wants_ping;
    double asleep_s;       /* since when */
    struct mo_error cause; /* of the first FINISH_ERROR */
};

/* --- references ---------------------------------------------------------------------------------- */

static void queue_free(struct token_event *event) {
    while (event) {
        struct token_event *next = event->next;
        free(event);
        event = next;
    }
}

static struct token_event *dequeue_all_locked(struct answer *answer) {
    struct token_event *events = answer->first;
    answer->first = NULL;
    answer->last = &answer->first;
    answer->queued_bytes = 0;
    return events;
}

static void choices_free(struct answer *answer) {
    for (int i = 0; answer->choices && i < answer->n_choices; i++) choice_free(&answer->choices[i]);
    free(answer->choices);
    answer->choices = NULL;
}

static void answer_free(struct answer *answer) {
    queue_free(answer->first);
    choices_free(answer);
    free(answer->links);
    buffer_free(&answer->out);
    api_request_free(&answer->request);
    pthread_mutex_destroy(&answer->lock);
    free(answer);
}

/* Unlocks, and frees if that was the last reference. */
static void unlock_and_drop(struct answer *answer, int n_references) {
    answer->n_references -= n_references;
    bool last = answer->n_references == 0;
    pthread_mutex_unlock(&answer->lock);
    if (last) answer_free(answer);
}

/* --- engine thread ------------------------------------------------------------------------------- */

static void cancel_locked(struct answer *answer) {
    if (answer->cancelled) return;
    answer->cancelled = true;
    for (int i = 0; i < answer->n_choices; i++) {
        if (answer->links[i].id) sched_cancel(answer->engine->sched, answer->links[i].id);
    }
}

static void wake_locked(struct answer *answer) {
    if (!answer->asleep) return;
    answer->asleep = false;
    answer->waker.wake(answer->waker.context);
}

static void sleep_locked(struct answer *answer) {
    assert(!answer->asleep);
    answer->asleep = true;
    answer->asleep_s = clock_now_s();
    answer->waker.sleep(answer->waker.context);
}

/* Takes a copy for the I/O thread. Without memory the answer is lost as a whole: a gap would be a lie. */
static void enqueue_locked(struct answer *answer, const struct sched_event *event, int index) {
    if (answer->request.stream && answer->queued_bytes > ANSWER_QUEUE_BYTES_MAX) {
        answer->stalled = true;
        cancel_locked(answer);
        return;
    }
    struct token_event *copy = token_event_copy(event, index, answer->request.sched.stop, answer->request.sched.n_stop);
    if (!copy) {
        answer->lost = true;
        cancel_locked(answer);
        return;
    }
    copy->next = NULL;
    answer->queued_bytes += copy->bytes;
    *answer->last = copy;
    answer->last = &copy->next;
}

static void on_event(const struct sched_event *event) {
    const struct choice_link *link = event->context;
    struct answer *answer = link->answer;
    bool ends = event->finish != FINISH_NONE;
    pthread_mutex_lock(&answer->lock);
    if (event->finish == FINISH_ERROR && !answer->cause.code) {
        answer->cause = *event->error;
        if (!answer->cause.code) answer->cause.code = MO_E_INTERNAL;
        cancel_locked(answer); /* the other choices are of no use now */
    }
    if (ends) answer->n_running--;
    if (!answer->released && !answer->stalled && !answer->lost) enqueue_locked(answer, event, link->index);
    bool is_much = answer->queued_bytes > PIECE_BYTES && !answer->waker.only_at_end;
    bool ready = answer->request.stream || answer->n_running == 0 || is_much;
    if (ready && !answer->released) wake_locked(answer);
    unlock_and_drop(answer, ends);
}

/* --- start and end ------------------------------------------------------------------------------- */

static struct answer *answer_create(struct api_request *request, const struct engine *engine, const char *fingerprint,
                                    const struct answer_waker *waker) {
    struct answer *answer = calloc(1, sizeof *answer);
    if (!answer) {
        api_request_free(request);
        return NULL;
    }
    answer->request = *request;
    *request = (struct api_request){0};
    answer->engine = engine;
    answer->waker = *waker;
    answer->last = &answer->first;
    answer->n_references = 1;
    pthread_mutex_init(&answer->lock, NULL);
    respond_head_init(&answer->head, &answer->request, fingerprint);
    int n = answer->request.n_prompts * answer->request.n;
    answer->links = calloc((size_t)n + 1, sizeof *answer->links); /* there may be none: api_request.only_loads */
    answer->choices = calloc((size_t)n + 1, sizeof *answer->choices);
    if (!answer->links || !answer->choices) {
        answer_free(answer);
        return NULL;
    }
    answer->n_choices = answer->n_open = n;
    for (int i = 0; i < n; i++) {
        answer->links[i] = (struct choice_link){answer, i, 0};
        choice_init(&answer->choices[i], i, &answer->request, &answer->request.prompts[i / answer->request.n],
                    engine->tokenizer);
    }
    return answer;
}

static int submit_choice(struct answer *answer, int i, struct mo_error *error) {
    const struct api_request *request = &answer->request;
    const struct api_prompt *prompt = &request->prompts[i / request->n];
    struct sched_request sched = request->sched;
    sched.prompt = prompt->ids.ids;
    sched.n_prompt = (int)prompt->ids.n;
    sched.choice = (uint32_t)(i % request->n);
    sched.grammar_after = prompt->grammar_after;
    sched.callback = on_event;
    sched.context = &answer->links[i];
    uint64_t id;

    pthread_mutex_lock(&answer->lock);
    answer->n_references++;
    answer->n_running++;
    pthread_mutex_unlock(&answer->lock);
    int code = sched_submit(answer->engine->sched, &sched, &id, error); /* events may come before this returns */
    pthread_mutex_lock(&answer->lock);
    if (code) {
        answer->n_references--;
        answer->n_running--;
    } else {
        answer->links[i].id = id;
        if (answer->cancelled) sched_cancel(answer->engine->sched, id);
    }
    pthread_mutex_unlock(&answer->lock);
    return code;
}

int answer_start(struct answer **out, struct api_request *request, const struct engine *engine, const char *fingerprint,
                 const struct answer_waker *waker, struct api_error *error) {
    struct mo_error cause = {0};
    struct answer *answer = answer_create(request, engine, fingerprint, waker);
    if (!answer) return api_error_no_memory(error);
    for (int i = 0; i < answer->n_choices; i++) {
        if (submit_choice(answer, i, &cause) == 0) continue;
        api_error_from(error, &cause, NULL);
        answer_release(answer);
        return -1;
    }
    *out = answer;
    return 0;
}

void answer_release(struct answer *answer) {
    pthread_mutex_lock(&answer->lock);
    assert(!answer->asleep); /* a sleeper is woken before its reader goes away */
    answer->released = true;
    if (answer->n_running > 0) cancel_locked(answer);
    struct token_event *events = dequeue_all_locked(answer);
    pthread_mutex_unlock(&answer->lock);
    queue_free(events); /* they may be much, and the last reference the engine's */
    choices_free(answer);
    pthread_mutex_lock(&answer->lock);
    unlock_and_drop(answer, 1);
}

bool answer_is_stream(const struct answer *answer) {
    return answer->request.stream;
}

/* --- I/O thread ---------------------------------------------------------------------------------- */

/* What ended a sequence: a grammar that cannot be followed is the client's, a card or a disk that is gone may come back. */
static void tell_cause(struct api_error *failure, const struct mo_error *cause) {
    bool is_theirs = cause->code == MO_E_LIMIT;
    int status = is_theirs ? 400 : cause->code == MO_E_IO ? 503 : 500;
    api_error_set(failure, status, NULL, is_theirs ? NULL : "internal_error", "%s", cause->message);
}

/* Why there will be no good end, or false. */
static bool find_failure(struct answer *answer, enum finish_reason finish) {
    if (answer->failure.status) return true;
    pthread_mutex_lock(&answer->lock);
    struct mo_error cause = answer->cause;
    bool lost = answer->lost;
    pthread_mutex_unlock(&answer->lock);
    if (lost) {
        api_error_no_memory(&answer->failure);
    } else if (cause.code) {
        tell_cause(&answer->failure, &cause);
    } else if (finish == FINISH_CANCELLED) {
        api_error_set(&answer->failure, 503, NULL, "cancelled", "the request was cancelled");
    }
    return answer->failure.status != 0;
}

/* Takes one event into its choice, and into frames for a stream. */
static int take_event(struct answer *answer, const struct token_event *event) {
    struct choice *choice = &answer->choices[event->choice];
    if (event->finish != FINISH_NONE) answer->n_open--;
    if (event->finish == FINISH_ERROR || event->finish == FINISH_CANCELLED) {
        find_failure(answer, event->finish);
        return 0;
    }
    int code = choice_take(choice, event);
    if (code || !answer->request.stream || event->is_prompt) return code; /* an echo goes out with the first token */
    return answer->head.dialect->stream(&answer->out, &answer->head, choice);
}

static void take_events(struct answer *answer, struct token_event *events) {
    int code = 0;
    for (struct token_event *event = events; event && !code && !answer->failure.status; event = event->next) {
        code = take_event(answer, event);
    }
    queue_free(events);
    if (code) api_error_no_memory(&answer->failure);
}

static void take_what_came(struct answer *answer) {
    pthread_mutex_lock(&answer->lock);
    struct token_event *events = dequeue_all_locked(answer);
    pthread_mutex_unlock(&answer->lock);
    take_events(answer, events);
}

json_t *answer_take(struct answer *answer, struct api_error *error) {
    take_what_came(answer);
    json_t *json = NULL;
    if (!find_failure(answer, FINISH_NONE)) {
        json = answer->head.dialect->whole(&answer->head, answer->choices, answer->n_choices);
        if (!json) api_error_no_memory(&answer->failure);
    }
    if (!json) *error = answer->failure;
    return json;
}

void answer_usage_get(const struct answer *answer, struct answer_usage *usage) {
    *usage = (struct answer_usage){.n_choices = answer->n_choices};
    for (int i = 0; i < answer->n_choices; i++) {
        const struct choice *choice = &answer->choices[i];
        usage->n_generated += choice->n_generated;
        if (i % answer->request.n) continue;
        usage->n_prompt += choice->n_prompt;
        usage->n_cached += choice->n_cached;
    }
}

/* The end of an answer, good or bad, that was begun by a probe: the status line is gone, so it is only in the
 * JSON. */
static void fill_whole(struct answer *answer) {
    struct api_error error = {0};
    json_t *json = answer_take(answer, &error);
    if (!json) json = answer->head.dialect->error(&error);
    if (put_dump(&answer->out, json)) answer->out.failed = true;
    answer->written = true;
}

static int stream_end(struct answer *answer, bool failed) {
    const struct dialect *dialect = answer->head.dialect;
    answer->written = true;
    if (failed) return dialect->stream_error(&answer->out, &answer->head, answer->choices, &answer->failure);
    if (!dialect->stream_end) return 0;
    return dialect->stream_end(&answer->out, &answer->head, answer->choices, answer->n_choices);
}

/* Appends what the queue holds to `out`, or goes to sleep if that is nothing. False: asleep, and perhaps
 * woken already. */
static bool fill_out(struct answer *answer) {
    bool streams = answer->request.stream;
    pthread_mutex_lock(&answer->lock);
    bool ping = answer->wants_ping, done = answer->n_running == 0;
    answer->wants_ping = false;
    struct token_event *events = dequeue_all_locked(answer);
    bool sleeps = !ping && !events && (streams ? !answer->lost && !answer->stalled : !done);
    if (sleeps) sleep_locked(answer);
    pthread_mutex_unlock(&answer->lock);
    if (sleeps) return false;

    if (ping && !events && streams && answer->head.dialect->stream_ping(&answer->out, &answer->head)) {
        answer->out.failed = true;
    }
    take_events(answer, events);
    if (!streams) {
        if (ping) buffer_add_text(&answer->out, "\n");
        if (done) fill_whole(answer);
        return true;
    }
    bool failed = find_failure(answer, FINISH_NONE);
    if (!failed && answer->n_open > 0) return true;
    if (stream_end(answer, failed)) answer->out.failed = true;
    return true;
}

ssize_t answer_read(struct answer *answer, char *out, size_t size) {
    /* an event may bring no frame (half a character): look again, the queue's end is what puts to sleep */
    while (answer->out.size == 0 && !answer->written && !answer->out.failed) {
        if (!fill_out(answer)) return 0;
        if (answer_is_stalled(answer)) return ANSWER_BROKEN;
    }
    if (answer->out.failed) return ANSWER_BROKEN;
    if (answer->out.size == 0) return ANSWER_END;
    if (size > answer->out.size) size = answer->out.size;
    memcpy(out, answer->out.data, size);
    buffer_consume(&answer->out, size);
    return (ssize_t)size;
}

enum answer_state answer_wait(struct answer *answer) {
    take_what_came(answer);
    pthread_mutex_lock(&answer->lock);
    enum answer_state state = answer->n_running == 0 ? ANSWER_DONE : answer->wants_ping ? ANSWER_PROBES : ANSWER_WAITS;
    if (state == ANSWER_WAITS) sleep_locked(answer);
    pthread_mutex_unlock(&answer->lock);
    return state;
}

/* --- any thread ---------------------------------------------------------------------------------- */

void answer_cancel(struct answer *answer) {
    pthread_mutex_lock(&answer->lock);
    cancel_locked(answer);
    pthread_mutex_unlock(&answer->lock);
}

void answer_ping(struct answer *answer) {
    pthread_mutex_lock(&answer->lock);
    answer->wants_ping = true; /* a reader that is awake looks at this before it sleeps */
    wake_locked(answer);
    pthread_mutex_unlock(&answer->lock);
}

bool answer_is_stalled(struct answer *answer) {
    pthread_mutex_lock(&answer->lock);
    bool stalled = answer->stalled;
    pthread_mutex_unlock(&answer->lock);
    return stalled;
}

double answer_silent_s(struct answer *answer) {
    pthread_mutex_lock(&answer->lock);
    double silent_s = answer->asleep ? clock_now_s() - answer->asleep_s : 0;
    pthread_mutex_unlock(&answer->lock);
    return silent_s;
}
