#include "server/watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"

enum {
    TICK_MS = 1000, /* how often deadlines are looked at */
    PING_S = 15,    /* a stream is silent no longer than that */
    EVENTS_MAX = 64,
};

struct watched {
    struct watched *next, *previous;
    uint64_t id; /* what epoll knows it by: a pointer could be stale */
    int socket;
    double deadline_s; /* 0: none */
    struct answer *answer;
};

struct watch {
    int epoll, stop; /* stop: an eventfd */
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    struct watched *first;
    int n; /* of them */
    uint64_t last_id;
};

/* A closed half may be all that the client closed. A few bytes make a client that is gone altogether answer
 * with a reset, which comes here as the second event. */
static void on_hang_up(struct watched *watched, uint32_t events) {
    if (!watched->answer) return;
    if (events & (EPOLLHUP | EPOLLERR)) {
        answer_cancel(watched->answer);
    } else {
        answer_ping(watched->answer);
    }
}

static void handle_event(struct watch *watch, const struct epoll_event *event) {
    pthread_mutex_lock(&watch->lock);
    for (struct watched *w = watch->first; w; w = w->next) {
        if (w->id == event->data.u64) on_hang_up(w, event->events);
    }
    pthread_mutex_unlock(&watch->lock);
}

/* The library sees the end of a socket that is shut down here, and closes the connection as if the client
 * had. */
static void tick(struct watch *watch) {
    double now = clock_now_s();
    pthread_mutex_lock(&watch->lock);
    for (struct watched *w = watch->first; w; w = w->next) {
        bool stalled = w->answer && answer_is_stalled(w->answer);
        if (stalled || (w->deadline_s > 0 && now > w->deadline_s)) shutdown(w->socket, SHUT_RDWR);
        bool silent = w->answer && answer_is_stream(w->answer) && answer_silent_s(w->answer) > PING_S;
        if (silent) answer_ping(w->answer);
    }
    pthread_mutex_unlock(&watch->lock);
}

static void *watch_main(void *argument) {
    struct watch *watch = argument;
    struct epoll_event events[EVENTS_MAX];
    double next_tick_s = clock_now_s();
    for (;;) {
        int n = epoll_wait(watch->epoll, events, EVENTS_MAX, TICK_MS);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == 0) return NULL; /* the stop */
            handle_event(watch, &events[i]);
        }
        if (clock_now_s() < next_tick_s) continue;
        tick(watch);
        next_tick_s = clock_now_s() + 1e-3 * TICK_MS;
    }
}

int watch_open(struct watch **out, struct mo_error *error) {
    struct watch *watch = calloc(1, sizeof *watch);
    if (!watch) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the server");
    pthread_mutex_init(&watch->lock, NULL);
    watch->epoll = epoll_create1(EPOLL_CLOEXEC);
    watch->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    int code = watch->epoll < 0 || watch->stop < 0 ? -1 : epoll_ctl(watch->epoll, EPOLL_CTL_ADD, watch->stop, &event);
    int reason = code ? errno : pthread_create(&watch->thread, NULL, watch_main, watch);
    if (reason) {
        watch_close(watch);
        return mo_error_set(error, MO_E_IO, "cannot watch connections: %s", strerror(reason));
    }
    watch->started = true;
    *out = watch;
    return 0;
}

void watch_close(struct watch *watch) {
    if (!watch) return;
    uint64_t one = 1;
    if (watch->started && write(watch->stop, &one, sizeof one) == sizeof one) pthread_join(watch->thread, NULL);
    if (watch->stop >= 0) close(watch->stop);
    if (watch->epoll >= 0) close(watch->epoll);
    pthread_mutex_destroy(&watch->lock);
    free(watch);
}

struct watched *watch_add(struct watch *watch, int socket) {
    struct watched *watched = calloc(1, sizeof *watched);
    if (!watched) return NULL;
    pthread_mutex_lock(&watch->lock);
    *watched = (struct watched){.next = watch->first, .id = ++watch->last_id, .socket = socket};
    if (watch->first) watch->first->previous = watched;
    watch->first = watched;
    watch->n++;
    pthread_mutex_unlock(&watch->lock);
    return watched;
}

void watch_remove(struct watch *watch, struct watched *watched) {
    pthread_mutex_lock(&watch->lock);
    watch->n--;
    *(watched->previous ? &watched->previous->next : &watch->first) = watched->next;
    if (watched->next) watched->next->previous = watched->previous;
    pthread_mutex_unlock(&watch->lock);
    free(watched);
}

void watch_set_deadline(struct watch *watch, struct watched *watched, double seconds) {
    pthread_mutex_lock(&watch->lock);
    watched->deadline_s = seconds > 0 ? clock_now_s() + seconds : 0;
    pthread_mutex_unlock(&watch->lock);
}

void watch_shed(struct watch *watch, const struct watched *newest, int most) {
    struct watched *oldest = NULL;
    pthread_mutex_lock(&watch->lock);
    for (struct watched *w = watch->n > most ? watch->first : NULL; w; w = w->next) {
        bool is_idle = w->deadline_s > 0 && w != newest;
        if (is_idle && (!oldest || w->deadline_s < oldest->deadline_s)) oldest = w;
    }
    if (oldest) {
        shutdown(oldest->socket, SHUT_RDWR);
        oldest->deadline_s = 0; /* the next one is another */
    }
    pthread_mutex_unlock(&watch->lock);
}

void watch_begin(struct watch *watch, struct watched *watched, struct answer *answer) {
    pthread_mutex_lock(&watch->lock);
    watched->answer = answer;
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET, .data.u64 = watched->id};
    /* a socket that cannot be added is watched by the pings alone */
    (void)epoll_ctl(watch->epoll, EPOLL_CTL_ADD, watched->socket, &event);
    pthread_mutex_unlock(&watch->lock);
}

void watch_end(struct watch *watch, struct watched *watched) {
    pthread_mutex_lock(&watch->lock);
    watched->answer = NULL;
    (void)epoll_ctl(watch->epoll, EPOLL_CTL_DEL, watched->socket, NULL);
    pthread_mutex_unlock(&watch->lock);
}

void watch_cancel_all(struct watch *watch) {
    pthread_mutex_lock(&watch->lock);
    for (struct watched *w = watch->first; w; w = w->next) {
        if (w->answer) answer_cancel(w->answer);
    }
    pthread_mutex_unlock(&watch->lock);
}
