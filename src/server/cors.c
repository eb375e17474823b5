#include "server/cors.h"

#include <string.h>

static const char *header(const struct exchange *exchange, const char *name) {
    return MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
}

/* What Access-Control-Allow-Origin is to say, or NULL. */
static const char *allowed(const struct exchange *exchange) {
    const struct server_options *options = &exchange->server->options;
    const char *origin = header(exchange, MHD_HTTP_HEADER_ORIGIN);
    for (int i = 0; origin && i < options->n_origins; i++) {
        if (strcmp(options->origins[i], "*") == 0) return "*";
        if (strcmp(options->origins[i], origin) == 0) return origin;
    }
    return NULL;
}

static enum MHD_Result handle_preflight(struct exchange *exchange) {
    struct buffer nothing = {0};
    return http_reply_text(exchange, MHD_HTTP_NO_CONTENT, "text/plain", &nothing);
}

static const struct route PREFLIGHT = {.path = "*", .is_open = true, .handle = handle_preflight};

const struct route *cors_preflight(const struct exchange *exchange, const char *method) {
    bool asks = !strcmp(method, MHD_HTTP_METHOD_OPTIONS) && header(exchange, "Access-Control-Request-Method");
    return asks && allowed(exchange) ? &PREFLIGHT : NULL;
}

void cors_add(const struct exchange *exchange, struct MHD_Response *response) {
    const char *origin = allowed(exchange), *wanted = header(exchange, "Access-Control-Request-Headers");
    if (!origin) return;
    MHD_add_response_header(response, "Access-Control-Allow-Origin", origin);
    MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, MHD_HTTP_HEADER_ORIGIN);
    MHD_add_response_header(response, "Access-Control-Expose-Headers", REQUEST_ID_HEADER ", Retry-After");
    if (exchange->route != &PREFLIGHT) return;
    MHD_add_response_header(response, "Access-Control-Allow-Methods", "GET, HEAD, POST, DELETE");
    MHD_add_response_header(response, "Access-Control-Max-Age", "86400");
    if (wanted) MHD_add_response_header(response, "Access-Control-Allow-Headers", wanted);
}
