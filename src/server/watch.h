/* server/watch.h - the watcher: a thread that looks after connections while the HTTP library does not.
 *
 * A suspended connection leaves the library's poll set, so a client that hangs up would go unnoticed until
 * the next byte is written; and the library's time-out starts again with every byte, so a client that sends
 * one at a time holds its connection for ever. The watcher polls the sockets of waiting answers, cancels
 * those whose client is gone, closes connections past their deadline, and sends comments into silent streams. It reads no bytes, and a
 * connection is its own from the first moment: with TLS all of this is the same, the handshake included.
 *
 * Locks: the watcher's, then an answer's; never the other way. Includes: base, server/answer.h. */
#ifndef MOEBIUS_SERVER_WATCH_H
#define MOEBIUS_SERVER_WATCH_H

#include "server/answer.h"

struct watch;
struct watched; /* one connection */

int watch_open(struct watch **watch, struct mo_error *error);
void watch_close(struct watch *watch); /* accepts NULL; every connection is gone by now */

/* The socket stays the caller's; it is open until watch_remove. NULL without memory. */
struct watched *watch_add(struct watch *watch, int socket);
void watch_remove(struct watch *watch, struct watched *watched);

/* Closes the connection after so many seconds, unless it is told otherwise before. 0: never. */
void watch_set_deadline(struct watch *watch, struct watched *watched, double seconds);

/* A new connection: if more than `most` are open, another is closed for it, the one that has waited longest for its client.
 * Those that wait for an answer stay. */
void watch_shed(struct watch *watch, const struct watched *newest, int most);

/* Between these two, the connection waits for `answer`, which lives. */
void watch_begin(struct watch *watch, struct watched *watched, struct answer *answer);
void watch_end(struct watch *watch, struct watched *watched);

/* Cancels every answer. */
void watch_cancel_all(struct watch *watch);

#endif
