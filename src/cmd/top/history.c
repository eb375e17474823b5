#include "cmd/top/history.h"

#include <math.h>
#include <stdlib.h>

int top_history_open(struct top_history *history, double interval_s, struct mo_error *error) {
    int capacity = (int)ceil(TOP_MINUTE_S / interval_s) + 2;
    *history = (struct top_history){.capacity = capacity};
    history->samples = calloc((size_t)capacity, sizeof *history->samples);
    if (!history->samples) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d samples", capacity);
    return 0;
}

void top_history_close(struct top_history *history) {
    free(history->samples);
    *history = (struct top_history){0};
}

void top_history_clear(struct top_history *history) {
    history->first = history->n = 0;
}

const struct top_sample *top_history_get(const struct top_history *history, int age) {
    if (age >= history->n) return NULL;
    return &history->samples[(history->first + history->n - 1 - age) % history->capacity];
}

const struct top_sample *top_history_minute(const struct top_history *history) {
    const struct top_sample *newest = top_history_get(history, 0), *found = NULL, *sample;
    for (int age = 1; (sample = top_history_get(history, age)); age++) {
        if (newest->time_s - sample->time_s > TOP_MINUTE_S + 0.5) break; /* samples are a little late, never early */
        found = sample;
    }
    return found ? found : top_history_get(history, 1);
}

static double total_of(const struct top_histogram *h) {
    return h->n ? h->count[h->n - 1] : 0;
}

static bool went_back(const struct top_sample *from, const struct top_sample *to) {
    for (int i = TOP_COUNTERS; i < TOP_VALUES; i++) {
        if (to->value[i] < from->value[i]) return true; /* NaN is neither less nor more */
    }
    for (int i = 0; i < TOP_TIMES; i++) {
        if (total_of(&to->time[i]) < total_of(&from->time[i])) return true;
    }
    return to->server != from->server || to->value[TOP_START_UNIX_S] > from->value[TOP_START_UNIX_S] + 1;
}

void top_history_add(struct top_history *history, const struct top_sample *sample) {
    const struct top_sample *newest = top_history_get(history, 0);
    if (newest && went_back(newest, sample)) {
        top_history_clear(history);
        history->n_restarts++;
    }
    if (history->n == history->capacity) {
        history->first = (history->first + 1) % history->capacity;
        history->n--;
    }
    history->samples[(history->first + history->n++) % history->capacity] = *sample;
}

double top_history_at(const struct top_history *history, enum top_value value, double time_s) {
    const struct top_sample *to = top_history_get(history, 0), *from;
    if (!to || time_s > to->time_s) return NAN;
    for (int age = 1; (from = top_history_get(history, age)); age++, to = from) {
        if (from->time_s > time_s || to->time_s <= from->time_s) continue;
        double share = (time_s - from->time_s) / (to->time_s - from->time_s);
        return from->value[value] + share * (to->value[value] - from->value[value]);
    }
    return NAN;
}

static double delta_of(const struct top_sample *from, const struct top_sample *to, enum top_value value) {
    return from && to ? to->value[value] - from->value[value] : NAN;
}

double top_rate(const struct top_sample *from, const struct top_sample *to, enum top_value value) {
    double delta = delta_of(from, to, value);
    if (isnan(delta) || to->time_s <= from->time_s) return NAN;
    return delta / (to->time_s - from->time_s);
}

static double share_of(double part, double whole) {
    return whole > 0 ? part / whole : NAN;
}

double top_share(const struct top_sample *from, const struct top_sample *to, enum top_value part,
                 enum top_value whole) {
    return share_of(delta_of(from, to, part), delta_of(from, to, whole));
}

double top_part(const struct top_sample *from, const struct top_sample *to, enum top_value part, enum top_value rest) {
    double delta = delta_of(from, to, part);
    return share_of(delta, delta + delta_of(from, to, rest));
}

static bool are_comparable(const struct top_histogram *from, const struct top_histogram *to) {
    if (from->n != to->n || from->rank != to->rank) return false;
    for (int i = 0; i < to->n; i++) {
        if (from->bound[i] != to->bound[i]) return false;
    }
    return true;
}

double top_times_added(const struct top_sample *from, const struct top_sample *to, enum top_time time) {
    if (!from || !to || !to->time[time].n || !are_comparable(&from->time[time], &to->time[time])) return NAN;
    return total_of(&to->time[time]) - total_of(&from->time[time]);
}

struct top_percentile top_quantile(const struct top_sample *from, const struct top_sample *to, enum top_time time,
                                   double q) {
    const struct top_percentile unknown = {.seconds = NAN};
    double total = top_times_added(from, to, time), below = 0, low = 0;
    if (!(total > 0)) return unknown;
    const struct top_histogram *a = &from->time[time], *b = &to->time[time];
    low = fmin(low, b->bound[0]);
    for (int i = 0; i < b->n; i++) {
        double here =
            fmax(b->count[i] - a->count[i], below); /* counts of buckets never fall, in a text that is right */
        if (isinf(b->bound[i])) break;
        if (here >= q * total && here > below) {
            double share = fmax(q * total - below, 0) / (here - below);
            return (struct top_percentile){.seconds = low + share * (b->bound[i] - low)};
        }
        low = b->bound[i];
        below = here;
    }
    return b->n > 1 ? (struct top_percentile){.seconds = low, .is_more = true} : unknown;
}
