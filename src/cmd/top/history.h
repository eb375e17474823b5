/* cmd/top/history.h - the samples of the last minute, and what lies between two of them: rates, shares, percentiles. A server that was
 * started anew is seen by a counter that went back; what was before it is forgotten then. Pure: no clock, no I/O.
 *
 * A figure that is not known (too few samples, a server that does not tell it, nothing to divide by) is NaN. */
#ifndef MOEBIUS_CMD_TOP_HISTORY_H
#define MOEBIUS_CMD_TOP_HISTORY_H

#include "base/error.h"
#include "cmd/top/sample.h"

#define TOP_MINUTE_S 60.0

struct top_history {
    struct top_sample *samples; /* [capacity] a ring */
    int capacity, first, n;
    int n_restarts;
};

/* Room for a minute of samples `interval_s` apart. */
int top_history_open(struct top_history *history, double interval_s, struct mo_error *error);
void top_history_close(struct top_history *history);

void top_history_add(struct top_history *history, const struct top_sample *sample);
void top_history_clear(struct top_history *history);

/* 0: the newest one, 1: the one before; NULL: there is none. */
const struct top_sample *top_history_get(const struct top_history *history, int age);
/* The oldest of the last minute, but not the newest one; NULL: there is none. */
const struct top_sample *top_history_minute(const struct top_history *history);

/* A counter at a time between two samples; NaN outside of them. */
double top_history_at(const struct top_history *history, enum top_value value, double time_s);

/* What follows compares two samples, of which each may be NULL. */

double top_rate(const struct top_sample *from, const struct top_sample *to, enum top_value value); /* a second */
/* part / whole, of what was added. */
double top_share(const struct top_sample *from, const struct top_sample *to, enum top_value part, enum top_value whole);
/* part / (part + rest). */
double top_part(const struct top_sample *from, const struct top_sample *to, enum top_value part, enum top_value rest);

struct top_percentile {
    double seconds;
    bool is_more; /* it lies beyond the last bound, which is what `seconds` says */
};
/* Of the values added to a histogram, `q` of 0 to 1; inside a bucket values are taken to lie evenly, as Prometheus takes them. */
struct top_percentile top_quantile(const struct top_sample *from, const struct top_sample *to, enum top_time time,
                                   double q);
/* How many values were added. */
double top_times_added(const struct top_sample *from, const struct top_sample *to, enum top_time time);

#endif
