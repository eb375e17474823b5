/* hub/fetch.h - one file of a pull: lock, go on where it ended, hash, try again, name. Includes: hub/pull.h. */
#ifndef MOEBIUS_HUB_FETCH_H
#define MOEBIUS_HUB_FETCH_H

#include "hub/pull.h"

/* *has_changed: the hub has another content than the one listed. */
int hub_fetch(struct hub_pull *pull, struct hub_http *http, const struct hub_file *file, bool *has_changed,
              struct mo_error *error);

/* Pauses that grow, between tries of one thing; a try that got further begins anew. */
struct hub_retry {
    int n, most;
};
/* Says on a line what happened and waits; false: no more tries, or stopped. */
bool hub_retry_wait(struct hub_pull *pull, struct hub_retry *retry, const struct hub_answer *answer, const char *what,
                    const struct mo_error *error);

#endif
