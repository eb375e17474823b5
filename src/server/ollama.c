#include "server/ollama.h"

#include <string.h>
#include "server/api/fields.h"
#include "server/respond/ollama.h"

enum { FOREVER_S = 100 * 365 * 24 * 3600L }; /* the model is not unloaded; a date is wanted nevertheless */

/* A name as Ollama lists it: with a tag. */
static json_t *tagged(const char *name) {
    const char *folder = strrchr(name, '/');
    return strchr(folder ? folder : name, ':') ? json_string(name) : json_sprintf("%s:latest", name);
}

static json_t *time_json(time_t seconds) {
    char text[OLLAMA_TIME_BYTES];
    return json_string(ollama_time(text, &(struct timespec){.tv_sec = seconds}));
}

/* What /api/tags and /api/ps have in common. */
static json_t *model_json(const struct server *server, const char *name) {
    const struct engine *engine = atomic_load(&server->engine);
    return json_pack("{s:o, s:o, s:I, s:s, s:o}", "name", tagged(name), "model", tagged(name), "size",
                     (json_int_t)engine->checkpoint.total_bytes, "digest", server->hash, "details",
                     ollama_details_json(engine));
}

/* The models' list with one more field each. */
static enum MHD_Result reply_models(struct exchange *exchange, json_t *(*more)(const struct server *server)) {
    const struct server *server = exchange->server;
    json_t *list = json_array();
    for (int i = 0; i < server->options.n_listed; i++) {
        json_t *model = model_json(server, server->options.names[i]), *extra = more(server);
        int code = model && extra ? json_object_update(model, extra) : -1;
        json_decref(extra);
        if (!code && json_array_append(list, model) == 0) {
            json_decref(model);
            continue;
        }
        json_decref(model);
        json_decref(list);
        return http_reply_json(exchange, 200, NULL);
    }
    return http_reply_json(exchange, 200, json_pack("{s:o}", "models", list));
}

static json_t *modified(const struct server *server) {
    return json_pack("{s:o}", "modified_at", time_json(server->created));
}

enum MHD_Result ollama_handle_tags(struct exchange *exchange) {
    return reply_models(exchange, modified);
}

/* Bytes on the card: routed experts may be elsewhere. */
static json_int_t gpu_bytes(const struct engine *engine) {
    struct model_params params;
    double total = (double)weights_file_bytes(&engine->checkpoint, &engine->model);
    int layers = model_moe_layers(&engine->model);
    if (engine->gpu < 0) return 0;
    model_count_params(&engine->model, &params);
    double elsewhere = layers ? (double)params.routed / (double)params.total * engine->cpu_layers / layers : 0;
    return (json_int_t)(total * (1 - elsewhere));
}

static json_t *loaded(const struct server *server) {
    const struct engine *engine = atomic_load(&server->engine);
    return json_pack("{s:o, s:I, s:i}", "expires_at", time_json(time(NULL) + FOREVER_S), "size_vram", gpu_bytes(engine),
                     "context_length", engine->options.max_model_len);
}

enum MHD_Result ollama_handle_ps(struct exchange *exchange) {
    return reply_models(exchange, loaded);
}

enum MHD_Result ollama_handle_root(struct exchange *exchange) {
    struct buffer text = {0};
    buffer_add_text(&text, "Ollama is running"); /* word for word: some clients compare it */
    return http_reply_text(exchange, 200, "text/plain; charset=utf-8", &text);
}

enum MHD_Result ollama_handle_version(struct exchange *exchange) {
    return http_reply_json(exchange, 200,
                           json_pack("{s:s, s:s}", "version", OLLAMA_API_VERSION, "moebius", MOEBIUS_VERSION));
}

/* --- with a body --------------------------------------------------------------------------------- */

/* The body and the served name that it asks for by "model", or by "name" as it was called before. NULL with `error`. */
static json_t *read_body(const struct exchange *exchange, const char **name, struct api_error *error) {
    struct api_model model = http_model(exchange);
    if (exchange->body.size > OLLAMA_BODY_BYTES_MAX) {
        api_error_set(error, 413, NULL, "request_too_large", "the body is larger than %d bytes", OLLAMA_BODY_BYTES_MAX);
        return NULL;
    }
    json_t *body = fields_parse(exchange->body.data, exchange->body.size, error);
    if (!body) return NULL;
    struct fields fields = {body, error};
    const json_t *asked = fields_get(&fields, "model");
    *name = api_model_name(&model, asked ? asked : fields_get(&fields, "name"), error);
    if (*name) return body;
    json_decref(body);
    return NULL;
}

enum MHD_Result ollama_handle_show(struct exchange *exchange) {
    const struct server *server = exchange->server;
    struct api_error error = {0};
    const char *name;
    json_t *body = read_body(exchange, &name, &error);
    if (!body) return http_reply_error(exchange, &error);
    json_decref(body);
    return http_reply_json(exchange, 200, ollama_show_json(atomic_load(&server->engine), name, server->created));
}

enum MHD_Result ollama_handle_pull(struct exchange *exchange) {
    struct api_error error = {0};
    const char *name;
    json_t *body = read_body(exchange, &name, &error);
    struct fields fields = {body, &error};
    bool streams = body && fields_bool(&fields, "stream", true);
    json_decref(body);
    if (error.status) return http_reply_error(exchange, &error);
    if (!streams) return http_reply_json(exchange, 200, json_pack("{s:s}", "status", "success"));
    struct buffer lines = {0};
    buffer_add_text(&lines, "{\"status\":\"success\"}\n");
    return http_reply_text(exchange, 200, "application/x-ndjson", &lines);
}

enum MHD_Result ollama_handle_missing(struct exchange *exchange) {
    struct api_error error = {0};
    const char *path = exchange->route->path;
    if (!strncmp(path, "/api/embed", strlen("/api/embed"))) {
        api_error_set(&error, 501, NULL, "not_supported", "%s: embeddings are not supported", path);
    } else {
        api_error_set(&error, 501, NULL, "not_supported",
                      "%s: this server has the model that it was started with, and keeps it as it is", path);
    }
    return http_reply_error(exchange, &error);
}
