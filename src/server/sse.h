/* server/sse.h - events to the frames of a stream: server-sent events, or Ollama's lines of JSON. I/O thread.
 * Includes: server/respond.h. */
#ifndef MOEBIUS_SERVER_SSE_H
#define MOEBIUS_SERVER_SSE_H

#include "server/respond.h"

/* Folds the event into its choice and appends the frames that are due. -1 without memory. */
int sse_add_event(struct buffer *out, const struct respond_head *head, struct choice *choice,
                  const struct token_event *event);
/* The usage, if asked for, and [DONE]; Ollama's last object has said all. */
int sse_add_end(struct buffer *out, const struct respond_head *head, const struct choice *choices, int n_choices);
int sse_add_error(struct buffer *out, const struct respond_head *head, struct choice *choices,
                  const struct api_error *error);
/* A comment, or what the API has for it: keeps proxies from giving up, and shows whether the client still listens. */
int sse_add_ping(struct buffer *out, const struct respond_head *head);

#endif
