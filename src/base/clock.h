/* base/clock.h - seconds that never go back, from an arbitrary zero, and waiting until one of them. Any thread. */
#ifndef MOEBIUS_BASE_CLOCK_H
#define MOEBIUS_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>

double clock_now_s(void);

/* A condition for clock_wait: a system clock that is set makes nobody wait longer. */
void clock_cond_init(pthread_cond_t *cond);
/* As pthread_cond_wait, until `until_s` at most: false if that is over. */
bool clock_wait(pthread_cond_t *cond, pthread_mutex_t *lock, double until_s);

#endif
