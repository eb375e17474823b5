/* cmd/serve/listen.h - the flags of `serve` that say where it listens besides host and port (a Unix socket, a prefix of paths), and how (TLS). */
#ifndef MOEBIUS_CMD_SERVE_LISTEN_H
#define MOEBIUS_CMD_SERVE_LISTEN_H

#include "cli/cli.h"
#include "server/server.h"

enum { LISTEN_FLAGS_MAX = 16 };

struct listen_flags {
    bool has_host, has_port;
    int certificate_needed; /* by clients: 0 is all there is */
    const char *socket_path, *prefix;
    const char *certificate, *key, *key_password; /* TLS */
};

/* Returns how many there are. */
int listen_flags(struct listen_flags *given, struct cli_flag flags[LISTEN_FLAGS_MAX]);
/* After parsing: what they say, into `server`. Files are not read here. */
int listen_flags_settle(const struct listen_flags *given, struct server_options *server, struct mo_error *error);

#endif
