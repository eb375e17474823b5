/* server/listen.h - the socket that the server listens on: an address and a port, or a file in this machine. Includes: base,
 * server/server.h. */
#ifndef MOEBIUS_SERVER_LISTEN_H
#define MOEBIUS_SERVER_LISTEN_H

#include <sys/stat.h>
#include "server/server.h"

struct listener {
    int fd;           /* the caller's */
    int port;         /* 0: a Unix socket */
    const char *path; /* of its file, which is this server's to remove; NULL: none, or not any more */
    struct stat file; /* as it was made */
};

/* MO_E_INVALID: an address or path that cannot be one; MO_E_IO: taken, or not allowed. A Unix socket is its user's alone (mode 0600);
 * one that nobody listens on any more is replaced, anything else at its path stays. */
int listener_open(struct listener *listener, const struct server_options *options, struct mo_error *error);
/* Removes the file, if it is still the one that was made. The socket stays open. */
void listener_remove(struct listener *listener);

#endif
