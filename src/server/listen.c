#include "server/listen.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 1024 };

/* Closes `fd`; errno stays. */
static int fail(int fd) {
    int reason = errno;
    if (fd >= 0) close(fd);
    errno = reason;
    return -1;
}

/* --- an address ---------------------------------------------------------------------------------- */

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
    if (bind(fd, place->ai_addr, place->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    return fail(fd);
}

static int open_address(struct listener *listener, const struct server_options *options, struct mo_error *error) {
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *places = NULL;
    char port[16];
    snprintf(port, sizeof port, "%d", options->port);
    int reason = getaddrinfo(options->host, port, &hints, &places), fd = -1;
    if (reason) return mo_error_set(error, MO_E_INVALID, "--host %s: %s", options->host, gai_strerror(reason));
    for (const struct addrinfo *place = places; place && fd < 0; place = place->ai_next) fd = listen_at(place);
    reason = errno;
    freeaddrinfo(places);
    if (fd < 0) {
        return mo_error_set(error, MO_E_IO, "cannot listen on %s port %d: %s", options->host, options->port,
                            strerror(reason));
    }
    *listener = (struct listener){.fd = fd, .port = bound_port(fd)};
    return 0;
}

/* --- a file -------------------------------------------------------------------------------------- */

/* Whether somebody listens there: 1, 0, or -1 with errno. */
static int is_alive(const struct sockaddr_un *address) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    int code = connect(fd, (const struct sockaddr *)address, sizeof *address);
    fail(fd);
    if (code == 0 || errno == EAGAIN) return 1; /* so many wait for it that no more may */
    return errno == ECONNREFUSED ? 0 : -1;
}

/* What a server that was killed has left goes; nothing else does. */
static int make_room(const struct sockaddr_un *address, struct mo_error *error) {
    const char *path = address->sun_path;
    struct stat file;
    if (lstat(path, &file)) {
        return errno == ENOENT ? 0 : mo_error_set(error, MO_E_IO, "--uds %s: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(file.st_mode)) {
        return mo_error_set(error, MO_E_IO, "--uds %s: expected a socket or nothing there, found a file", path);
    }
    int alive = is_alive(address);
    if (alive > 0) return mo_error_set(error, MO_E_IO, "--uds %s: another server listens there", path);
    if (alive < 0 || unlink(path)) {
        return mo_error_set(error, MO_E_IO, "--uds %s: the socket that is there cannot be replaced: %s", path,
                            strerror(errno));
    }
    return 0;
}

/* The file is made with the socket's mode from the first moment. */
static int bind_privately(const struct sockaddr_un *address) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    mode_t mask = umask(S_IRWXG | S_IRWXO | S_IXUSR);
    int code = bind(fd, (const struct sockaddr *)address, sizeof *address);
    umask(mask);
    return code ? fail(fd) : fd;
}

static int open_file(struct listener *listener, const char *path, struct mo_error *error) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t size = strlen(path);
    if (size == 0 || size >= sizeof address.sun_path) {
        return mo_error_set(error, MO_E_INVALID, "--uds %s: expected a path of 1 to %zu bytes, found %zu", path,
                            sizeof address.sun_path - 1, size);
    }
    memcpy(address.sun_path, path, size);
    int code = make_room(&address, error);
    if (code) return code;
    int fd = bind_privately(&address);
    *listener = (struct listener){.fd = fd, .path = path};
    if (fd < 0) return mo_error_set(error, MO_E_IO, "--uds %s: cannot listen: %s", path, strerror(errno));
    if (lstat(path, &listener->file) || listen(fd, BACKLOG)) {
        fail(fd);
        return mo_error_set(error, MO_E_IO, "--uds %s: cannot listen: %s", path, strerror(errno));
    }
    return 0;
}

/* --- either -------------------------------------------------------------------------------------- */

int listener_open(struct listener *listener, const struct server_options *options, struct mo_error *error) {
    return options->socket_path ? open_file(listener, options->socket_path, error)
                                : open_address(listener, options, error);
}

void listener_remove(struct listener *listener) {
    struct stat file;
    const char *path = listener->path;
    listener->path = NULL;
    if (!path || lstat(path, &file)) return;
    bool is_ours = file.st_dev == listener->file.st_dev && file.st_ino == listener->file.st_ino;
    if (is_ours) unlink(path);
}
