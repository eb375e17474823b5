/* server/server.h - the OpenAI-compatible HTTP server, as `moebius serve` sees it.
 *
 * Order of life: server_open (listens at once, answers 503 until there is an engine), server_ready,
 * server_drain (no new work), server_close (all in server.c). Threads: libmicrohttpd's for all HTTP; the watcher for
 * connections that wait (watch.h); one that parses long requests (prepare.h); and the engine's, which only
 * leaves copies of events. A request walks
 *
 *   http.c    bytes -> one request
 *   routes.c  path -> handler
 *   api/api.c     JSON -> prompts, sampling, limits
 *   answer.c  submit; events come back from the engine thread
 *   respond_*.c  events -> one API's objects, whole or as frames of a stream (dialect.h)
 *
 * Includes: base, text, sched, model, engine/engine.h; libmicrohttpd in http.c, routes.c and server.c only. */
#ifndef MOEBIUS_SERVER_SERVER_H
#define MOEBIUS_SERVER_SERVER_H

#include "engine/engine.h"
#include "server/api/policy.h"
#include "server/auth.h"
#include "server/tls.h"

enum { SERVER_NAMES_MAX = 64, SERVER_PREFIX_MAX = 255 };

struct server_options {
    const char *host;
    int port;                              /* 0: any free one */
    const char *socket_path;               /* of a Unix socket, in place of host and port; NULL: none */
    char prefix[SERVER_PREFIX_MAX + 1];    /* every path answers under it too: "/a", or "" */
    const char *names[SERVER_NAMES_MAX];   /* [n_names] of the model; outlive the server */
    bool keeps_thoughts;                   /* thoughts stay in an answer's content */
    struct api_policy policy;              /* what it points to outlives the server */
    int n_names, n_listed;                 /* the first n_listed are shown by /v1/models */
    bool any_name;                         /* others are taken for the first */
    const char *origins[SERVER_NAMES_MAX]; /* [n_origins] of web pages that may read answers; "*": all */
    int n_origins;
    bool no_webui; /* no page at the root (web.h) */
    struct auth auth;
    struct tls_files tls;
    int max_body_bytes, max_connections;
    int max_connections_per_address; /* 0: half of max_connections */
    int max_queue;                   /* choices that may wait for a place before new requests are sent away */
    int request_timeout_s;           /* that a request may take to arrive, and a client to read on */
};

struct server;

int server_open(struct server **server, const struct server_options *options, struct mo_error *error);
int server_port(const struct server *server); /* 0: a Unix socket */
/* The file of a Unix socket goes; server_close does it too, and this is for who ends without. */
void server_unlisten(struct server *server);
/* `engine` is started and outlives the server; `hash` is the model's (checkpoint_hash). */
void server_ready(struct server *server, const struct engine *engine, const char *hash);
/* From now on requests that take work get 503. */
void server_drain(struct server *server);
/* Answers on their way. */
int server_answers(struct server *server);
/* Cancels what is left and ends the threads; accepts NULL. */
void server_close(struct server *server);

#endif
