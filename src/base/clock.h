/* base/clock.h - seconds that never go back, from an arbitrary zero. Any thread. */
#ifndef MOEBIUS_BASE_CLOCK_H
#define MOEBIUS_BASE_CLOCK_H

double clock_now_s(void);

#endif
