/* server/respond_responses.h - answers as OpenAI's POST /v1/responses gives them: a response with a list of items, whole or in
 * numbered events. I/O thread. Includes: server/respond.h. */
#ifndef MOEBIUS_SERVER_RESPOND_RESPONSES_H
#define MOEBIUS_SERVER_RESPOND_RESPONSES_H

#include "server/respond.h"

/* The caller's; NULL without memory. */
json_t *respond_responses_whole(const struct respond_head *head, struct choice *choice);
/* The frames that are due after an event was folded into the choice. -1 without memory. */
int respond_responses_stream(struct buffer *out, const struct respond_head *head, struct choice *choice);
/* The response fails: the last event. */
int respond_responses_error(struct buffer *out, const struct respond_head *head, struct choice *choice,
                            const struct api_error *error);

#endif
