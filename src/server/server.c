/* server/server.c - the life of the server: from the socket on which it listens to the end of its threads. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "server/http.h"

/* --- the socket ---------------------------------------------------------------------------------- */

static int bound_port(int fd) {
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size)) return 0;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

static int listen_at(const struct addrinfo *place) {
    int on = 1, fd = socket(place->ai_family, place->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, place->ai_protocol);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, place->ai_addr, place->ai_addrlen) == 0 && listen(fd, 1024) == 0) return fd;
    int reason = errno;
    close(fd);
    errno = reason;
    return -1;
}

static int open_socket(const struct server_options *options, int *fd, struct mo_error *error) {
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *places = NULL;
    char port[16];
    snprintf(port, sizeof port, "%d", options->port);
    int reason = getaddrinfo(options->host, port, &hints, &places);
    if (reason) return mo_error_set(error, MO_E_INVALID, "--host %s: %s", options->host, gai_strerror(reason));
    *fd = -1;
    for (const struct addrinfo *place = places; place && *fd < 0; place = place->ai_next) *fd = listen_at(place);
    reason = errno;
    freeaddrinfo(places);
    if (*fd >= 0) return 0;
    return mo_error_set(error, MO_E_IO, "cannot listen on %s port %d: %s", options->host, options->port,
                        strerror(reason));
}

/* --- from open to close -------------------------------------------------------------------------- */

int server_open(struct server **out, const struct server_options *options, struct mo_error *error) {
    struct server *server = calloc(1, sizeof *server);
    if (!server) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the server");
    server->options = *options;
    int *per_address = &server->options.max_connections_per_address;
    if (!*per_address) *per_address = (options->max_connections + 1) / 2;
    server->created = time(NULL);
    int fd = -1, code = open_socket(options, &fd, error);
    if (code) goto fail;
    server->port = bound_port(fd);
    code = watch_open(&server->watch, error);
    if (!code) code = prepare_open(&server->prepare, error);
    if (code) {
        close(fd);
        goto fail;
    }
    code = http_start(server, fd, error);
    if (code) goto fail;
    *out = server;
    return 0;
fail:
    server_close(server);
    return code;
}

int server_port(const struct server *server) {
    return server->port;
}

void server_ready(struct server *server, const struct engine *engine, const char *hash) {
    snprintf(server->hash, sizeof server->hash, "%s", hash);
    respond_fingerprint(server->fingerprint, hash);
    atomic_store(&server->engine, engine);
}

void server_drain(struct server *server) {
    atomic_store(&server->draining, true);
}

int server_answers(struct server *server) {
    return atomic_load(&server->n_answers);
}

/* The library may not be stopped while a connection is suspended: the cancelled answers' ends resume them
 * all. */
void server_close(struct server *server) {
    if (!server) return;
    server_drain(server);
    while (server->daemon && server_answers(server) > 0) {
        watch_cancel_all(server->watch);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    if (server->daemon) MHD_stop_daemon(server->daemon);
    watch_close(server->watch);
    prepare_close(server->prepare);
    free(server);
}
