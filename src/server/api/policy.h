/* server/api/policy.h - what a server's flags say about every request. Includes: jansson. */
#ifndef MOEBIUS_SERVER_API_POLICY_H
#define MOEBIUS_SERVER_API_POLICY_H

#include <jansson.h>
#include <stdbool.h>

struct api_policy {
    int max_logprobs;                 /* that a request may ask for: 0 .. SCHED_MAX_LOGPROBS */
    bool includes_usage;              /* streams end with their usage, asked for or not */
    bool tokens_as_ids;               /* logprobs name tokens by number, unless a request says otherwise */
    const json_t *template_variables; /* of the chat template, where a request says nothing of them; NULL: none */
};

#endif
