/* server/http.h - HTTP by libmicrohttpd: a connection's bytes become one `struct exchange`, and a route's
 * handler gives it its reply. Everything here runs on the library's thread. Includes: server. */
#ifndef MOEBIUS_SERVER_HTTP_H
#define MOEBIUS_SERVER_HTTP_H

#include <microhttpd.h>
#include "server/answer.h"
#include "server/listen.h"
#include "server/prepare.h"
#include "server/request_id.h"
#include "server/server.h"
#include "server/watch.h"

struct server {
    struct server_options options;
    struct tls tls;
    struct listener listener;
    struct MHD_Daemon *daemon;
    struct watch *watch;
    struct prepare *prepare;
    time_t created;
    _Atomic(const struct engine *) engine;                /* NULL while it loads */
    char hash[65], fingerprint[RESPOND_FINGERPRINT_SIZE]; /* written before `engine` */
    atomic_bool draining;
    atomic_int n_answers; /* place.h: being made or sent */
    size_t body_bytes;    /* of all bodies being read */
};

/* One request and its reply. */
struct exchange {
    struct server *server;
    struct MHD_Connection *connection;
    struct watched *watched;
    char id[REQUEST_ID_MAX + 1];   /* of every answer's x-request-id */
    const struct dialect *dialect; /* of errors that come before an answer */
    const struct route *route;     /* NULL: `error` says why */
    char *tail;                    /* what follows a route's prefix, or NULL */
    unsigned long long length;     /* of the body, by its header; 0 if it does not say */
    size_t received;               /* of it, so far */
    struct buffer body;
    struct api_error error; /* found before the body was read */
    bool is_ambiguous;      /* where its body ends, so the connection is closed */
    bool has_place;         /* is one of server.n_answers */
    struct prepare_job job; /* what is done with the body */
    bool is_preparing;      /* on the other thread */
    struct answer *answer;  /* NULL until one is submitted */
};

enum http_method { HTTP_GET, HTTP_POST, HTTP_DELETE, HTTP_ANY };

struct route {
    const char *path; /* ends with "/": everything below it */
    enum http_method method;
    bool is_open;      /* needs no key */
    bool needs_engine; /* 503 before it is there */
    enum MHD_Result (*handle)(struct exchange *exchange);
    enum api_kind kind;      /* of what is generated there */
    text_api_function *text; /* what answers there without a model run */
};

/* Takes connections from the socket `fd`, and requests from them: server->daemon. */
int http_start(struct server *server, int fd, struct mo_error *error);

/* routes.c: the route of a request, or NULL with 404 or 405 in `error`. */
const struct route *route_find(const char *path, const char *method, const char **tail, struct api_error *error);

bool route_exists(const char *path); /* itself, by whatever method */

/* Sends `response`, which is taken over, with the headers of every reply. NULL, for want of memory, ends the connection. */
enum MHD_Result http_queue(struct exchange *exchange, int status, const char *content_type,
                           struct MHD_Response *response);
/* Replies take `json`, `body` over. NULL becomes an error of memory. */
enum MHD_Result http_reply_json(struct exchange *exchange, int status, json_t *json);
enum MHD_Result http_reply_text(struct exchange *exchange, int status, const char *content_type, struct buffer *body);
enum MHD_Result http_reply_error(struct exchange *exchange, const struct api_error *error);
/* The model as this server has it; its engine may be NULL while it loads. */
struct api_model http_model(const struct exchange *exchange);
/* Parses the body, submits it, and streams or sends its answer when it is there. The exchange has a place. */
enum MHD_Result http_generate(struct exchange *exchange, enum api_kind kind, const struct api_model *model);
/* Sends what `function` makes of the body. The exchange has a place. */
enum MHD_Result http_text(struct exchange *exchange, text_api_function *function, const struct api_model *model);

#endif
