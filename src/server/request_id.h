/* server/request_id.h - the name of one request, in the header x-request-id of its answer: what its client calls it, or a new one.
 * Includes: nothing. */
#ifndef MOEBIUS_SERVER_REQUEST_ID_H
#define MOEBIUS_SERVER_REQUEST_ID_H

#define REQUEST_ID_HEADER "x-request-id"
enum { REQUEST_ID_MAX = 128 };

/* `given` (or NULL), if it is 1 to REQUEST_ID_MAX printable ASCII characters without blanks: nothing else is sent back. */
void request_id_set(char id[REQUEST_ID_MAX + 1], const char *given);

#endif
