/* sched/stop.h - finds stop strings in a text that arrives in pieces. What can no longer be part of a stop
 * string comes out at once; held back is only the longest end of the text that begins some stop string.
 *
 * The match that ends first wins; among those that end together, the longest. So the result does not depend
 * on where the text was cut into pieces. Owner: one sequence. Includes: nothing of the project. */
#ifndef MOEBIUS_SCHED_STOP_H
#define MOEBIUS_SCHED_STOP_H

#include <stdbool.h>
#include <stddef.h>

struct stop_matcher {
    const char *const *strings; /* [n] not empty */
    const size_t *sizes;        /* [n] bytes */
    int n;
    bool include; /* a found string stays in the text */
    char *held;   /* [longest string] */
    size_t n_held;
};

/* Adds `text` and writes what is now certain to `out`, which holds n_held + size bytes; *out_size: how much
 * that is. Returns the index of the stop string that was found, or -1. After a match the text has ended. */
int stop_matcher_push(struct stop_matcher *matcher, const char *text, size_t size, char *out, size_t *out_size);

/* The end of the text: writes what is held to `out` and returns its size. */
size_t stop_matcher_finish(struct stop_matcher *matcher, char *out);

#endif
