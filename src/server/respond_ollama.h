/* server/respond_ollama.h - the objects of Ollama's POST /api/generate and /api/chat. I/O thread.
 * Includes: server/respond.h. */
#ifndef MOEBIUS_SERVER_RESPOND_OLLAMA_H
#define MOEBIUS_SERVER_RESPOND_OLLAMA_H

#include "server/respond.h"

enum { OLLAMA_TIME_BYTES = 40 };
/* RFC 3339 in UTC, with microseconds: text [OLLAMA_TIME_BYTES]. */
const char *ollama_time(char *text, const struct timespec *time);

/* Whether anything has come that a stream can show. */
bool respond_ollama_has_piece(const struct choice *choice);

/* All are the caller's; NULL without memory. The pieces of the choice's message are taken. */
/* What has come of an answer that goes on. */
json_t *respond_ollama_piece(const struct respond_head *head, struct choice *choice);
/* The same without any, so that a silent stream has something to say that every client understands. */
json_t *respond_ollama_ping(const struct respond_head *head);
/* The end: counts and times, and what has not been taken. */
json_t *respond_ollama_end(const struct respond_head *head, struct choice *choice);
/* An answer that is not streamed; without choices, to a question whether the model is loaded. */
json_t *respond_ollama_whole(const struct respond_head *head, struct choice *choices);

#endif
