/* server/cors.h - which web pages may read the server's answers: a browser asks by itself, other clients need not. Off unless
 * origins were given. Includes: server/http.h. */
#ifndef MOEBIUS_SERVER_CORS_H
#define MOEBIUS_SERVER_CORS_H

#include "server/http.h"

/* What a browser wants to see on every reply, errors too. */
void cors_add(const struct exchange *exchange, struct MHD_Response *response);
/* The route of a browser's question beforehand, which brings no key; NULL if it is none, or its origin may not ask. */
const struct route *cors_preflight(const struct exchange *exchange, const char *method);

#endif
