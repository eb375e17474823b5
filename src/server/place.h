/* server/place.h - who may come in: the count of exchanges at work, which a server that shuts down waits for,
 * and the limit of what may wait for the engine. I/O thread. Includes: server/http.h. */
#ifndef MOEBIUS_SERVER_PLACE_H
#define MOEBIUS_SERVER_PLACE_H

#include "server/http.h"

/* One more at work; -1 with 503 if the server shuts down. Only an exchange with a place may be suspended. */
int place_take(struct exchange *exchange, struct api_error *error);
void place_leave(struct exchange *exchange); /* nothing if it has none */

/* Whether anything may wait at all: known before a body is parsed. -1 with 429. */
int place_check_queue(const struct server *server, struct api_error *error);
/* Whether all choices of a request may run or wait: -1 with 429, or 400 if they never could. */
int place_check_choices(const struct server *server, const struct api_request *request, struct api_error *error);

#endif
