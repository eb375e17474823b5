#include "base/clock.h"

#include <time.h>

double clock_now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void clock_cond_init(pthread_cond_t *cond) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

bool clock_wait(pthread_cond_t *cond, pthread_mutex_t *lock, double until_s) {
    time_t s = (time_t)until_s;
    const struct timespec until = {.tv_sec = s, .tv_nsec = (long)((until_s - (double)s) * 1e9)};
    return pthread_cond_timedwait(cond, lock, &until) == 0;
}
