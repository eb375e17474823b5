/* server/respond/ollama.h - what Ollama's other objects share with its answers. Includes: server/dialect.h. */
#ifndef MOEBIUS_SERVER_RESPOND_OLLAMA_H
#define MOEBIUS_SERVER_RESPOND_OLLAMA_H

#include "server/dialect.h"

enum { OLLAMA_TIME_BYTES = 40 };
/* RFC 3339 in UTC, with microseconds: text [OLLAMA_TIME_BYTES]. */
const char *ollama_time(char *text, const struct timespec *time);

#endif
