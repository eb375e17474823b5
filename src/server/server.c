/* server/server.c - the life of the server: from the socket on which it listens to the end of its threads. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "base/log.h"
#include "server/http.h"

/* --- TLS ------------------------------------------------------------------------------------------ */

static int open_tls(struct server *server, struct mo_error *error) {
    const struct tls_files *files = &server->options.tls;
    if (!tls_is_wanted(files)) return 0;
    if (MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "--ssl-certfile: this machine's libmicrohttpd %s has no TLS",
                            MHD_get_version());
    }
    int code = tls_read(&server->tls, files, error);
    if (server->tls.is_over) {
        log_warn("--ssl-certfile %s: its time is over, and clients will refuse it", files->certificate);
    }
    return code;
}

/* --- from open to close -------------------------------------------------------------------------- */

int server_open(struct server **out, const struct server_options *options, struct mo_error *error) {
    struct server *server = calloc(1, sizeof *server);
    if (!server) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the server");
    server->options = *options;
    int *per_address = &server->options.max_connections_per_address;
    if (!*per_address) *per_address = (options->max_connections + 1) / 2;
    if (options->socket_path) *per_address = options->max_connections; /* its clients have no addresses */
    server->created = time(NULL);
    int code = open_tls(server, error);
    if (!code) code = listener_open(&server->listener, options, error);
    if (code) goto fail;
    code = watch_open(&server->watch, error);
    if (!code) code = prepare_open(&server->prepare, error);
    if (code) {
        close(server->listener.fd);
        goto fail;
    }
    code = http_start(server, server->listener.fd, error);
    if (code) goto fail;
    *out = server;
    return 0;
fail:
    server_close(server);
    return code;
}

void server_unlisten(struct server *server) {
    listener_remove(&server->listener);
}

int server_port(const struct server *server) {
    return server->listener.port;
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
    server_unlisten(server);
    if (server->daemon) MHD_stop_daemon(server->daemon);
    watch_close(server->watch);
    prepare_close(server->prepare);
    tls_free(&server->tls);
    free(server);
}
