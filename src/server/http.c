#include "server/http.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include "server/cors.h"
#include "server/place.h"
#include "server/put.h"

enum {
    CONNECTION_MEMORY_BYTES = 64 << 10, /* headers, and a block of body or answer */
    STREAM_BLOCK_BYTES = 16 << 10,
    BODIES_AT_ONCE = 16, /* of the largest size; more bodies than that in memory at once are sent away */
    DRAIN_BODIES = 4,    /* of the largest size: as much of a refused body is read before the connection is closed */
};

/* GnuTLS's words: nothing older than TLS 1.2. */
static const char TLS_PRIORITIES[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";

/* --- replies ------------------------------------------------------------------------------------- */

/* What every answer says, whole or as a stream. */
static void add_headers(const struct exchange *exchange, struct MHD_Response *response, const char *content_type) {
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    MHD_add_response_header(response, REQUEST_ID_HEADER, exchange->id);
    cors_add(exchange, response);
}

enum MHD_Result http_queue(struct exchange *exchange, int status, const char *content_type,
                           struct MHD_Response *response) {
    if (!response) return MHD_NO;
    add_headers(exchange, response, content_type);
    if (atomic_load(&exchange->server->draining) || exchange->is_ambiguous) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    }
    enum MHD_Result result = MHD_queue_response(exchange->connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

/* Queues a reply; `data` is malloc'd and taken over. */
static enum MHD_Result reply(struct exchange *exchange, int status, const char *content_type, char *data, size_t size,
                             int retry_after_s) {
    struct MHD_Response *response = MHD_create_response_from_buffer(size, data, MHD_RESPMEM_MUST_FREE);
    if (!response) {
        free(data);
        return MHD_NO;
    }
    if (status == 401) MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (exchange->error.allow) MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, exchange->error.allow);
    if (retry_after_s > 0) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", retry_after_s);
        MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, seconds);
    }
    return http_queue(exchange, status, content_type, response);
}

static enum MHD_Result reply_json(struct exchange *exchange, int status, json_t *json, int retry_after_s) {
    struct buffer text = {0};
    if (put_dump(&text, json)) { /* no memory even to say so: the connection ends */
        buffer_free(&text);
        return MHD_NO;
    }
    return reply(exchange, status, "application/json", text.data, text.size, retry_after_s);
}

enum MHD_Result http_reply_error(struct exchange *exchange, const struct api_error *error) {
    return reply_json(exchange, error->status, exchange->dialect->error(error), error->retry_after_s);
}

enum MHD_Result http_reply_json(struct exchange *exchange, int status, json_t *json) {
    if (json) return reply_json(exchange, status, json, 0);
    struct api_error error;
    api_error_no_memory(&error);
    return http_reply_error(exchange, &error);
}

enum MHD_Result http_reply_text(struct exchange *exchange, int status, const char *content_type, struct buffer *body) {
    if (body->failed) {
        buffer_free(body);
        return http_reply_json(exchange, status, NULL);
    }
    char *data = body->data;
    size_t size = body->size;
    *body = (struct buffer){0};
    return reply(exchange, status, content_type, data, size, 0);
}

/* --- answers that take their time ---------------------------------------------------------------- */

static void suspend(void *context) {
    MHD_suspend_connection(((struct exchange *)context)->connection);
}

static void resume(void *context) {
    MHD_resume_connection(((struct exchange *)context)->connection);
}

/* Called whenever the client's socket has room. */
static ssize_t read_stream(void *context, uint64_t position, char *out, size_t size) {
    (void)position;
    struct exchange *exchange = context;
    ssize_t n = answer_read(exchange->answer, out, size);
    if (n == ANSWER_END) return MHD_CONTENT_READER_END_OF_STREAM;
    return n == ANSWER_BROKEN ? MHD_CONTENT_READER_END_WITH_ERROR : n;
}

static enum MHD_Result start_stream(struct exchange *exchange, const char *content_type) {
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, exchange, NULL);
    if (!response) return MHD_NO;
    add_headers(exchange, response, content_type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    MHD_add_response_header(response, "X-Accel-Buffering", "no"); /* nginx would collect the frames */
    enum MHD_Result result = MHD_queue_response(exchange->connection, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    return result;
}

/* A whole answer: sends it, or suspends the connection until it is there. A client that may be gone is
 * probed: the reply begins now, with a blank line before the JSON. */
static enum MHD_Result finish_answer(struct exchange *exchange) {
    struct api_error error = {0};
    enum answer_state state = answer_wait(exchange->answer);
    if (state == ANSWER_WAITS) return MHD_YES;
    if (state == ANSWER_PROBES) return start_stream(exchange, "application/json");
    json_t *json = answer_take(exchange->answer, &error);
    return json ? http_reply_json(exchange, MHD_HTTP_OK, json) : http_reply_error(exchange, &error);
}

static void body_drop(struct exchange *exchange) {
    exchange->server->body_bytes -= exchange->body.size;
    buffer_free(&exchange->body);
}

/* The request is parsed: submits it. 0, or -1 with the job's error. */
static int submit(struct exchange *exchange) {
    struct server *server = exchange->server;
    struct prepare_job *job = &exchange->job;
    const struct answer_waker waker = {suspend, resume, exchange, false};
    if (job->code || place_check_choices(server, &job->request, &job->error)) return -1;
    return answer_start(&exchange->answer, &job->request, job->model.engine, server->fingerprint, &waker, &job->error);
}

static enum MHD_Result start_answer(struct exchange *exchange) {
    int code = submit(exchange);
    prepare_job_free(&exchange->job);
    if (code) return http_reply_error(exchange, &exchange->job.error);
    watch_begin(exchange->server->watch, exchange->watched, exchange->answer);
    return answer_is_stream(exchange->answer) ? start_stream(exchange, exchange->dialect->stream_type)
                                              : finish_answer(exchange);
}

static enum MHD_Result reply_text(struct exchange *exchange) {
    char *text = exchange->job.reply;
    if (!text) return http_reply_error(exchange, &exchange->job.error);
    exchange->job.reply = NULL;
    return reply(exchange, MHD_HTTP_OK, "application/json", text, strlen(text), 0);
}

static enum MHD_Result finish_job(struct exchange *exchange) {
    exchange->is_preparing = false;
    body_drop(exchange); /* it may be large, and the answer long */
    return exchange->job.text ? reply_text(exchange) : start_answer(exchange);
}

/* Works on the body: here if that is quick. */
static enum MHD_Result start_job(struct exchange *exchange, const struct prepare_job *job) {
    assert(exchange->has_place); /* else the library might be stopped while the connection is suspended */
    exchange->job = *job;
    exchange->job.body = exchange->body.data;
    exchange->job.size = exchange->body.size;
    exchange->job.done = resume;
    exchange->job.context = exchange;
    if (exchange->body.size < PREPARE_BYTES_MIN) {
        prepare_run(&exchange->job);
        return finish_job(exchange);
    }
    exchange->is_preparing = true;
    suspend(exchange);
    prepare_submit(exchange->server->prepare, &exchange->job);
    return MHD_YES;
}

struct api_model http_model(const struct exchange *exchange) {
    const struct server *server = exchange->server;
    const struct server_options *o = &server->options;
    return (struct api_model){
        atomic_load(&server->engine), o->names, o->n_names, o->any_name, o->keeps_thoughts, &o->policy};
}

enum MHD_Result http_generate(struct exchange *exchange, enum api_kind kind, const struct api_model *model) {
    return start_job(exchange, &(struct prepare_job){.kind = kind, .model = *model});
}

enum MHD_Result http_text(struct exchange *exchange, text_api_function *function, const struct api_model *model) {
    return start_job(exchange, &(struct prepare_job){.text = function, .model = *model});
}

/* --- requests ------------------------------------------------------------------------------------ */

static const char *header(struct MHD_Connection *connection, const char *name) {
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
}

static size_t drain_limit(const struct exchange *exchange) {
    return DRAIN_BODIES * (size_t)exchange->server->options.max_body_bytes;
}

static void body_too_large(struct exchange *exchange) {
    api_error_set(&exchange->error, 413, NULL, "request_too_large",
                  "the body is larger than %d bytes (--max-body-bytes)", exchange->server->options.max_body_bytes);
}

struct framing {
    int n_lengths;  /* headers that say where the body ends */
    bool has_blank; /* in a name: the library takes "Content-Length : 2" for some other header */
    bool is_coded;  /* otherwise than in chunks: the library waits until the client closes */
};

static enum MHD_Result look_at(void *context, enum MHD_ValueKind kind, const char *name, const char *value) {
    struct framing *framing = context;
    (void)kind;
    bool is_coding = !strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING);
    framing->n_lengths += is_coding || !strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH);
    framing->has_blank |= name[strcspn(name, " \t")] != 0;
    framing->is_coded |= is_coding && (!value || strcasecmp(value, "chunked") != 0);
    return MHD_YES;
}

/* Headers that leave two ways to see where the body ends: a proxy in front may have taken the other one, and
 * what it passed on as a body would be read as a request here (RFC 9112, 5.1 and 6.3). */
static void check_framing(struct exchange *exchange) {
    struct framing framing = {0};
    MHD_get_connection_values(exchange->connection, MHD_HEADER_KIND, look_at, &framing);
    const char *why = framing.n_lengths > 1 ? "more than one Content-Length or Transfer-Encoding"
                      : framing.has_blank   ? "a blank in a header's name"
                      : framing.is_coded    ? "a Transfer-Encoding other than \"chunked\""
                                            : NULL;
    exchange->is_ambiguous = why != NULL;
    if (!why) return;
    api_error_set(&exchange->error, 400, NULL, "bad_request", "%s: where the body ends is not clear", why);
}

/* What can be said from the headers alone. */
static void check_headers(struct exchange *exchange, const char *path, const char *method) {
    struct server *server = exchange->server;
    const char *tail = NULL;
    check_framing(exchange);
    if (exchange->error.status) return;
    exchange->route = cors_preflight(exchange, method);
    if (!exchange->route) exchange->route = route_find(path, method, &tail, &exchange->error);
    if (!exchange->route) return;
    if (tail) exchange->tail = strdup(tail);
    if (!exchange->route->is_open &&
        !auth_allows(&server->options.auth, header(exchange->connection, MHD_HTTP_HEADER_AUTHORIZATION)) &&
        !auth_allows_key(&server->options.auth, header(exchange->connection, "x-api-key"))) {
        api_error_set(&exchange->error, 401, NULL, "invalid_api_key",
                      "a valid API key is needed in the header \"Authorization: Bearer KEY\", or \"x-api-key: KEY\"");
    } else if (exchange->length > (unsigned long long)server->options.max_body_bytes) {
        body_too_large(exchange);
    }
}

/* "http://host/path", as to a proxy, is the same as "/path" (RFC 9112, 3.2.2). */
static const char *without_host(const char *target) {
    static const char SCHEME[] = "http", MARK[] = "://";
    if (strncasecmp(target, SCHEME, sizeof SCHEME - 1) != 0) return target;
    const char *rest = target + sizeof SCHEME - 1;
    rest += *rest == 's' || *rest == 'S';
    if (strncmp(rest, MARK, sizeof MARK - 1) != 0) return target;
    const char *path = strchr(rest + sizeof MARK - 1, '/');
    return path ? path : "/";
}

/* A proxy may pass the prefix on, or take it off. A prefix may also begin as a path of ours does: "/api", "/v1". */
static const char *without_prefix(const char *path, const char *prefix) {
    size_t n = strlen(prefix);
    bool is_under = n > 0 && strncmp(path, prefix, n) == 0 && (path[n] == '/' || path[n] == 0);
    return is_under && (route_exists(path + n) || !route_exists(path)) ? path + n : path;
}

static struct exchange *exchange_create(struct server *server, struct MHD_Connection *connection, const char *target,
                                        const char *method) {
    struct exchange *exchange = calloc(1, sizeof *exchange);
    if (!exchange) return NULL;
    const char *path = without_prefix(without_host(target), server->options.prefix);
    exchange->server = server;
    exchange->connection = connection;
    exchange->dialect = dialect_at(path);
    request_id_set(exchange->id, header(connection, REQUEST_ID_HEADER));
    const char *length = header(connection, MHD_HTTP_HEADER_CONTENT_LENGTH);
    exchange->length = length ? strtoull(length, NULL, 10) : 0;
    exchange->watched = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    if (!exchange->watched) { /* there was no memory to watch it */
        free(exchange);
        return NULL;
    }
    watch_set_deadline(server->watch, exchange->watched, server->options.request_timeout_s);
    check_headers(exchange, path, method);
    return exchange;
}

/* The rest of a refused body is read and thrown away, within reason: a client that still writes would not see
 * the reply otherwise. False: it is beyond reason. */
static bool take_body(struct exchange *exchange, const char *data, size_t size) {
    struct server *server = exchange->server;
    size_t most = (size_t)server->options.max_body_bytes;
    exchange->received += size;
    if (exchange->error.status) return exchange->received <= drain_limit(exchange);
    if (exchange->body.size + size > most) {
        body_too_large(exchange);
    } else if (server->body_bytes + size > BODIES_AT_ONCE * most) {
        api_error_no_memory(&exchange->error);
    } else {
        size_t before = exchange->body.size;
        buffer_add(&exchange->body, data, size);
        server->body_bytes += exchange->body.size - before;
        if (exchange->body.failed) api_error_no_memory(&exchange->error);
    }
    if (exchange->error.status) body_drop(exchange);
    return true;
}

static void check_readiness(struct exchange *exchange) {
    struct server *server = exchange->server;
    if (exchange->error.status || !exchange->route->needs_engine) return;
    if (!atomic_load(&server->engine)) {
        api_error_set(&exchange->error, 503, NULL, "loading", "the model is still loading; try again in a moment");
        exchange->error.retry_after_s = 2;
    }
}

static enum MHD_Result dispatch(struct exchange *exchange) {
    watch_set_deadline(exchange->server->watch, exchange->watched, 0);
    check_readiness(exchange);
    if (exchange->error.status) return http_reply_error(exchange, &exchange->error);
    return exchange->route->handle(exchange);
}

/* The library's callback: once with the headers, then for each part of the body, once at its end, and again
 * when a suspended connection was resumed. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data, size_t *size,
                                  void **slot) {
    (void)version;
    struct exchange *exchange = *slot;
    if (!exchange) {
        *slot = exchange = exchange_create(context, connection, path, method);
        if (!exchange) return MHD_NO;
        /* refused before the body, if the client asked first, the body is huge or its end unknown */
        bool at_once = header(connection, MHD_HTTP_HEADER_EXPECT) || exchange->length > drain_limit(exchange) ||
                       exchange->is_ambiguous;
        return exchange->error.status && at_once ? http_reply_error(exchange, &exchange->error) : MHD_YES;
    }
    if (*size > 0) {
        bool goes_on = take_body(exchange, data, *size);
        *size = 0;
        return goes_on ? MHD_YES : MHD_NO;
    }
    if (exchange->is_preparing) return finish_job(exchange);
    return exchange->answer ? finish_answer(exchange) : dispatch(exchange);
}

static void on_completed(void *context, struct MHD_Connection *connection, void **slot,
                         enum MHD_RequestTerminationCode how) {
    (void)connection, (void)how;
    struct server *server = context;
    struct exchange *exchange = *slot;
    *slot = NULL;
    if (!exchange) return;
    if (exchange->answer) {
        watch_end(server->watch, exchange->watched);
        answer_release(exchange->answer);
    }
    prepare_job_free(&exchange->job); /* of a client that went meanwhile: the job is done, or it would be suspended */
    place_leave(exchange);
    watch_set_deadline(server->watch, exchange->watched, server->options.request_timeout_s);
    body_drop(exchange);
    free(exchange->tail);
    free(exchange);
}

static void on_connection(void *context, struct MHD_Connection *connection, void **slot,
                          enum MHD_ConnectionNotificationCode what) {
    struct server *server = context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        int fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        *slot = watch_add(server->watch, fd);
        if (*slot) watch_set_deadline(server->watch, *slot, server->options.request_timeout_s);
        watch_shed(server->watch, *slot, (3 * server->options.max_connections_per_address + 3) / 4);
    } else if (*slot) {
        watch_remove(server->watch, *slot);
        *slot = NULL;
    }
}

/* What the library is told to speak TLS with; the end of its options without. */
static void add_tls(struct MHD_OptionItem items[4], const struct tls *tls) {
    items[0].option = MHD_OPTION_END;
    if (!tls->key) return;
    items[0] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, tls->certificate};
    items[1] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, tls->key};
    items[2] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)TLS_PRIORITIES};
    items[3].option = MHD_OPTION_END;
}

int http_start(struct server *server, int fd, struct mo_error *error) {
    const struct server_options *o = &server->options;
    unsigned flags = MHD_USE_EPOLL | MHD_USE_INTERNAL_POLLING_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC;
    struct MHD_OptionItem tls[4] = {{.option = MHD_OPTION_END}};
    add_tls(tls, &server->tls);
    if (server->tls.key) flags |= MHD_USE_TLS;
    server->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, server, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_CONNECTION_LIMIT, (unsigned)o->max_connections,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)o->max_connections_per_address, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)o->request_timeout_s, MHD_OPTION_NOTIFY_COMPLETED, on_completed, server, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, server, MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
    if (server->daemon) return 0;
    int reason = errno;
    close(fd);
    if (server->tls.key) {
        return mo_error_set(error, MO_E_IO, "cannot start the HTTPS server: GnuTLS does not take %s with %s",
                            o->tls.certificate, o->tls.key);
    }
    return mo_error_set(error, MO_E_IO, "cannot start the HTTP server: %s", strerror(reason));
}
