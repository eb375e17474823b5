/* server/routes.c - the table of paths, and their handlers. */
#include <string.h>
#include "server/http.h"
#include "server/metrics.h"
#include "server/ollama.h"
#include "server/place.h"
#include "server/props.h"
#include "server/web.h"
#include "server/work.h"
#include "text/fim.h"

static const char *model_name(const struct exchange *exchange) {
    return exchange->server->options.names[0];
}

/* --- answers ------------------------------------------------------------------------------------- */

static enum MHD_Result handle_generation(struct exchange *exchange) {
    struct api_error error = {0};
    struct api_model model = http_model(exchange);
    if (place_take(exchange, &error) || place_check_queue(exchange->server, &error)) {
        return http_reply_error(exchange, &error);
    }
    return http_generate(exchange, exchange->route->kind, &model);
}

/* One that was given before, which is not kept. */
static enum MHD_Result handle_response(struct exchange *exchange) {
    struct api_error error = {0};
    api_error_set(&error, 404, NULL, "not_found", "there is no response \"%.100s\": answers are not kept here",
                  exchange->tail);
    return http_reply_error(exchange, &error);
}

/* 404 and not 501: clients try again what failed on the server's side. */
static enum MHD_Result handle_embeddings(struct exchange *exchange) {
    struct api_error error = {0};
    api_error_set(&error, 404, NULL, "not_found", "there are no embeddings here: \"%.100s\" generates text",
                  model_name(exchange));
    return http_reply_error(exchange, &error);
}

/* --- models -------------------------------------------------------------------------------------- */

static json_t *model_json(const struct exchange *exchange, const char *name) {
    const struct server *server = exchange->server;
    const struct engine *engine = atomic_load(&server->engine);
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:n, s:i, s:b, s:b, s:s, s:[]}", "id", name, "object", "model",
                     "created", (json_int_t)server->created, "owned_by", "moebius", "root", model_name(exchange),
                     "parent", "max_model_len", engine->options.max_model_len, "fim",
                     engine->tokenizer && fim_supported(engine->tokenizer), "chat", engine->chat != NULL, "hash",
                     server->hash, "permission");
}

static enum MHD_Result handle_models(struct exchange *exchange) {
    json_t *list = json_array();
    for (int i = 0; i < exchange->server->options.n_listed; i++) {
        json_array_append_new(list, model_json(exchange, exchange->server->options.names[i]));
    }
    return http_reply_json(exchange, 200, json_pack("{s:s, s:o}", "object", "list", "data", list));
}

static enum MHD_Result handle_model(struct exchange *exchange) {
    struct api_error error = {0};
    struct api_model model = http_model(exchange);
    json_t *wanted = json_string(exchange->tail);
    const char *name = wanted ? api_model_name(&model, wanted, &error) : NULL;
    json_decref(wanted);
    if (name) return http_reply_json(exchange, 200, model_json(exchange, name));
    if (!error.status) api_error_set(&error, 404, "model", "model_not_found", "the model's name is not valid UTF-8");
    return http_reply_error(exchange, &error);
}

/* --- how the server is --------------------------------------------------------------------------- */

static enum MHD_Result handle_health(struct exchange *exchange) {
    bool draining = atomic_load(&exchange->server->draining), loading = !atomic_load(&exchange->server->engine);
    const char *status = draining ? "draining" : loading ? "loading" : "ok";
    return http_reply_json(exchange, draining || loading ? 503 : 200, json_pack("{s:s}", "status", status));
}

static enum MHD_Result handle_version(struct exchange *exchange) {
    return http_reply_json(exchange, 200, json_pack("{s:s}", "version", MOEBIUS_VERSION));
}

static enum MHD_Result handle_props(struct exchange *exchange) {
    return http_reply_json(exchange, 200, props_json(exchange->server));
}

static enum MHD_Result handle_tokenizer(struct exchange *exchange) {
    return http_reply_json(exchange, 200, props_tokenizer_json(exchange->server));
}

static enum MHD_Result handle_slots(struct exchange *exchange) {
    const char *must = MHD_lookup_connection_value(exchange->connection, MHD_GET_ARGUMENT_KIND, "fail_on_no_slot");
    struct api_error error = {0};
    if (!must || strcmp(must, "1") != 0 || slots_idle(exchange->server) > 0) {
        return http_reply_json(exchange, 200, slots_json(exchange->server));
    }
    api_error_set(&error, 503, NULL, "no_slot", "as many answers run as may");
    return http_reply_error(exchange, &error);
}

static enum MHD_Result handle_metrics(struct exchange *exchange) {
    const struct engine *engine = atomic_load(&exchange->server->engine);
    struct sched_stats stats = {0};
    struct buffer text = {0};
    struct store_stats experts = {0};
    struct ranks_stats ranks;
    bool has_store = engine && engine->store;
    if (engine) sched_stats_get(engine->sched, &stats);
    if (has_store) store_stats_get(engine->store, &experts);
    ranks_stats_get(&ranks);
    metrics_write(&text, &stats, has_store ? &experts : NULL, ranks_count() > 1 ? &ranks : NULL, model_name(exchange));
    metrics_write_start(&text, exchange->server->created);
    return http_reply_text(exchange, 200, METRICS_CONTENT_TYPE, &text);
}

/* --- text without a model run -------------------------------------------------------------------- */

static enum MHD_Result handle_text(struct exchange *exchange) {
    struct api_error error = {0};
    struct api_model model = http_model(exchange);
    if (place_take(exchange, &error)) return http_reply_error(exchange, &error);
    return http_text(exchange, exchange->route->text, &model);
}

/* --- the table ----------------------------------------------------------------------------------- */

static const struct route ROUTES[] = {
    {"/v1/chat/completions", HTTP_POST, false, true, .handle = handle_generation, .kind = API_CHAT},
    {"/chat/completions", HTTP_POST, false, true, .handle = handle_generation, .kind = API_CHAT},
    {"/beta/chat/completions", HTTP_POST, false, true, .handle = handle_generation, .kind = API_CHAT},
    {"/v1/completions", HTTP_POST, false, true, .handle = handle_generation, .kind = API_COMPLETION},
    {"/completions", HTTP_POST, false, true, .handle = handle_generation, .kind = API_COMPLETION},
    {"/beta/completions", HTTP_POST, false, true, .handle = handle_generation, .kind = API_COMPLETION},
    {"/completion", HTTP_POST, false, true, .handle = handle_generation, .kind = API_LLAMA},
    {"/infill", HTTP_POST, false, true, .handle = handle_generation, .kind = API_INFILL},
    {"/v1/messages", HTTP_POST, false, true, .handle = handle_generation, .kind = API_MESSAGES},
    {"/v1/messages/count_tokens", HTTP_POST, false, true, .handle = handle_text, .text = text_api_count},
    {"/v1/responses", HTTP_POST, false, true, .handle = handle_generation, .kind = API_RESPONSES},
    {"/responses", HTTP_POST, false, true, .handle = handle_generation, .kind = API_RESPONSES},
    {"/v1/responses/input_tokens", HTTP_POST, false, true, .handle = handle_text, .text = text_api_count_responses},
    {"/responses/input_tokens", HTTP_POST, false, true, .handle = handle_text, .text = text_api_count_responses},
    {"/v1/responses/", HTTP_ANY, false, false, .handle = handle_response},
    {"/v1/embeddings", HTTP_POST, false, false, .handle = handle_embeddings},
    {"/embeddings", HTTP_POST, false, false, .handle = handle_embeddings},
    {"/v1/models", HTTP_GET, false, true, .handle = handle_models},
    {"/v1/models/", HTTP_GET, false, true, .handle = handle_model},
    {"/models", HTTP_GET, false, true, .handle = handle_models},
    {"/models/", HTTP_GET, false, true, .handle = handle_model},
    {"/tokenize", HTTP_POST, false, true, .handle = handle_text, .text = text_api_tokenize},
    {"/detokenize", HTTP_POST, false, true, .handle = handle_text, .text = text_api_detokenize},
    {"/apply-template", HTTP_POST, false, true, .handle = handle_text, .text = text_api_apply_template},
    {"/tokenizer_info", HTTP_GET, false, true, .handle = handle_tokenizer},
    {"/props", HTTP_GET, false, true, .handle = handle_props},
    {"/slots", HTTP_GET, false, true, .handle = handle_slots},
    {"/health", HTTP_GET, true, false, .handle = handle_health},
    {"/v1/health", HTTP_GET, true, false, .handle = handle_health},
    {"/ping", HTTP_GET, true, false, .handle = handle_health},
    {"/version", HTTP_GET, true, false, .handle = handle_version},
    {"/metrics", HTTP_GET, false, false, .handle = handle_metrics},
    {"", HTTP_GET, true, false, .handle = web_handle_prefix},
    {"/", HTTP_GET, true, false, .handle = web_handle_root},
    {"/index.html", HTTP_GET, true, false, .handle = web_handle_page},
    {"/web/", HTTP_GET, true, false, .handle = web_handle_file},
    {"/api/generate", HTTP_POST, false, true, .handle = handle_generation, .kind = API_OLLAMA_GENERATE},
    {"/api/chat", HTTP_POST, false, true, .handle = handle_generation, .kind = API_OLLAMA_CHAT},
    {"/api/tags", HTTP_GET, false, true, .handle = ollama_handle_tags},
    {"/api/ps", HTTP_GET, false, true, .handle = ollama_handle_ps},
    {"/api/show", HTTP_POST, false, true, .handle = ollama_handle_show},
    {"/api/pull", HTTP_POST, false, true, .handle = ollama_handle_pull},
    {"/api/version", HTTP_GET, true, false, .handle = ollama_handle_version},
    {"/api/embed", HTTP_POST, false, false, .handle = ollama_handle_missing},
    {"/api/embeddings", HTTP_POST, false, false, .handle = ollama_handle_missing},
    {"/api/create", HTTP_POST, false, false, .handle = ollama_handle_missing},
    {"/api/copy", HTTP_POST, false, false, .handle = ollama_handle_missing},
    {"/api/push", HTTP_POST, false, false, .handle = ollama_handle_missing},
    {"/api/delete", HTTP_DELETE, false, false, .handle = ollama_handle_missing},
};

static const char *const ALLOW[] = {[HTTP_GET] = "GET, HEAD", [HTTP_POST] = "POST", [HTTP_DELETE] = "DELETE"};

static bool is_at(const struct route *route, const char *path, const char **tail) {
    size_t n = strlen(route->path);
    bool is_prefix = n > 1 && route->path[n - 1] == '/';
    if (!is_prefix) return strcmp(path, route->path) == 0;
    if (strncmp(path, route->path, n) != 0 || path[n] == 0) return false;
    *tail = path + n;
    return true;
}

bool route_exists(const char *path) {
    for (size_t i = 0; i < sizeof ROUTES / sizeof *ROUTES; i++) {
        if (!strcmp(ROUTES[i].path, path)) return true;
    }
    return false;
}

const struct route *route_find(const char *path, const char *method, const char **tail, struct api_error *error) {
    if (!strcmp(method, "HEAD")) method = "GET";
    for (size_t i = 0; i < sizeof ROUTES / sizeof *ROUTES; i++) {
        const struct route *route = &ROUTES[i];
        if (!is_at(route, path, tail)) continue;
        if (route->method == HTTP_ANY) return route;
        const char *allow = ALLOW[route->method];
        size_t n = strcspn(allow, ",");
        if (strlen(method) == n && strncmp(allow, method, n) == 0) return route;
        api_error_set(error, 405, NULL, "method_not_allowed", "%s takes %.*s, not %.20s",
                      *route->path ? route->path : "/", (int)n, allow, method);
        error->allow = allow;
        return NULL;
    }
    api_error_set(error, 404, NULL, "not_found", "there is nothing at %.200s", path);
    return NULL;
}

int work_find_route(struct work_route *out, const char *method, const char *path, struct api_error *error) {
    const char *tail = NULL;
    const struct route *route = route_find(path, method, &tail, error);
    if (!route) return -1;
    if (route->handle != handle_generation && route->handle != handle_text) {
        return api_error_set(error, 404, NULL, "not_found",
                             "%.200s makes nothing of a request's body: a server has it, a batch does not", path);
    }
    *out = (struct work_route){route->kind, route->text};
    return 0;
}
