#include "cmd/serve/listen.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/text.h"

int listen_flags(struct listen_flags *given, struct cli_flag flags[LISTEN_FLAGS_MAX]) {
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "--uds", .type = CLI_STRING, .target = &given->socket_path, .value = "PATH",
         .help = "listen on a Unix socket in place of a port: a file that this user\nalone may open (--host PATH.sock is the same)"},
        {.names = "--root-path,--api-prefix", .type = CLI_STRING, .target = &given->prefix, .value = "/PATH",
         .help = "every path answers under this one too: behind a proxy that passes\nit on, or takes it off"},
        {.names = "--ssl-certfile,--ssl-cert-file", .type = CLI_STRING, .target = &given->certificate, .value = "FILE",
         .help = "answer by https alone, with this certificate in PEM (behind it in\nthe file: those that vouch for it)"},
        {.names = "--ssl-keyfile,--ssl-key-file", .type = CLI_STRING, .target = &given->key, .value = "FILE",
         .help = "its key"},
        {.names = "--ssl-keyfile-password", .type = CLI_STRING, .target = &given->key_password, .value = "WORD",
         .help = "the key's, if it is encrypted. Other users of the machine can see\nit: better MOEBIUS_SSL_PASSWORD"},
        {.names = "--ssl-ca-certs", .type = CLI_REFUSED, .value = "FILE",
         .help = "clients show keys here (--api-key), no certificates: a proxy in front\ncan ask for them"},
        {.names = "--ssl-cert-reqs", .type = CLI_CHOICE, .target = &given->certificate_needed, .choices = "0", .help = "no client shows a certificate"},
        {.names = "--ssl-ciphers", .type = CLI_REFUSED, .value = "LIST", .help = "GnuTLS chooses, from TLS 1.2 and 1.3"},
        {.names = "--enable-ssl-refresh", .type = CLI_REFUSED_FLAG,
         .help = "a new certificate is read when the server is started again"},
    };
    /* clang-format on */
    const int n = sizeof table / sizeof *table;
    static_assert(sizeof table / sizeof *table <= LISTEN_FLAGS_MAX, "room for all");
    memcpy(flags, table, sizeof table);
    return n;
}

static int settle_tls(const struct listen_flags *given, struct tls_files *tls, struct mo_error *error) {
    if (!given->certificate != !given->key) {
        return mo_error_set(error, MO_E_INVALID, "%s %s: give %s too", given->key ? "--ssl-keyfile" : "--ssl-certfile",
                            given->key ? given->key : given->certificate,
                            given->key ? "--ssl-certfile" : "--ssl-keyfile");
    }
    if (given->key_password && !given->key) {
        return mo_error_set(error, MO_E_INVALID, "--ssl-keyfile-password: there is no --ssl-keyfile");
    }
    *tls = (struct tls_files){given->certificate, given->key, given->key_password};
    if (!tls->password) tls->password = getenv("MOEBIUS_SSL_PASSWORD");
    return 0;
}

/* llama.cpp's way to say --uds is a host that ends with ".sock". */
static int settle_socket(const struct listen_flags *given, struct server_options *server, struct mo_error *error) {
    bool is_host = text_ends_with(server->host, ".sock");
    const struct {
        bool given;
        const char *flag, *lacks;
    } others[] = {
        {given->has_port, "--port", "port"},
        {given->has_host && given->socket_path, "--host", "address"},
        {server->max_connections_per_address > 0, "--max-connections-per-address", "addresses"},
        {given->certificate != NULL, "--ssl-certfile", "network to cross"},
    };
    server->socket_path = given->socket_path ? given->socket_path : is_host ? server->host : NULL;
    for (size_t i = 0; server->socket_path && i < sizeof others / sizeof *others; i++) {
        if (!others[i].given) continue;
        return mo_error_set(error, MO_E_INVALID, "%s %s and %s exclude each other: a Unix socket has no %s",
                            given->socket_path ? "--uds" : "--host", server->socket_path, others[i].flag,
                            others[i].lacks);
    }
    return 0;
}

static int settle_prefix(const char *given, struct server_options *server, struct mo_error *error) {
    size_t size = given ? strlen(given) : 0;
    while (size > 0 && given[size - 1] == '/') size--;
    if (size == 0) return 0; /* nothing, or "/" */
    if (given[0] != '/' || strpbrk(given, "?#%\" \t\r\n") || strstr(given, "//")) {
        return mo_error_set(error, MO_E_INVALID, "--root-path %s: expected a path like \"/models/one\"", given);
    }
    if (size > SERVER_PREFIX_MAX) {
        return mo_error_set(error, MO_E_INVALID, "--root-path: expected at most %d bytes, found %zu", SERVER_PREFIX_MAX,
                            size);
    }
    memcpy(server->prefix, given, size);
    server->prefix[size] = 0;
    return 0;
}

int listen_flags_settle(const struct listen_flags *given, struct server_options *server, struct mo_error *error) {
    int code = settle_socket(given, server, error);
    if (!code) code = settle_prefix(given->prefix, server, error);
    return code ? code : settle_tls(given, &server->tls, error);
}
