/* server/respond_anthropic.h - answers as Anthropic's POST /v1/messages gives them: a message of blocks, whole or told block by
 * block. I/O thread. Includes: server/respond.h. */
#ifndef MOEBIUS_SERVER_RESPOND_ANTHROPIC_H
#define MOEBIUS_SERVER_RESPOND_ANTHROPIC_H

#include "server/respond.h"

/* The caller's; NULL without memory. */
json_t *respond_anthropic_whole(const struct respond_head *head, struct choice *choice);
/* The frames that are due after an event was folded into the choice. -1 without memory. */
int respond_anthropic_stream(struct buffer *out, const struct respond_head *head, struct choice *choice);
int respond_anthropic_ping(struct buffer *out);
int respond_anthropic_error(struct buffer *out, const struct api_error *error);

#endif
