/* hub/http_error.h - what went wrong on the way to the hub, in words for people, and whether another try may help.
 * Includes: hub/http.h. */
#ifndef MOEBIUS_HUB_HTTP_ERROR_H
#define MOEBIUS_HUB_HTTP_ERROR_H

#include "hub/http.h"

struct hub_failure {
    const struct hub_site *site;
    const char *model, *url;
    const char *curl_error; /* libcurl's sentence, or "" */
    bool is_at_hub;         /* and not at where the hub sent us */
};

/* Both set answer->is_transient and return a code. `result` is a CURLcode. */
int hub_error_of_transfer(const struct hub_failure *failure, int result, struct hub_answer *answer,
                          struct mo_error *error);
int hub_error_of_status(const struct hub_failure *failure, struct hub_answer *answer, struct mo_error *error);

#endif
