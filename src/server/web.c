#include "server/web.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#include "server/ollama.h"

#define HTML "text/html; charset=utf-8"
#define CSS "text/css; charset=utf-8"
#define JS "text/javascript; charset=utf-8"
#define SVG "image/svg+xml"

/* The first one is the page itself. Paths are those from the root of the tree, where make runs. */
#define FILES(X)                                                                                                       \
    X(index, "index.html", HTML)                                                                                       \
    X(style, "style.css", CSS)                                                                                         \
    X(icon, "icon.svg", SVG)                                                                                           \
    X(answer, "answer.js", JS)                                                                                         \
    X(app, "app.js", JS)                                                                                               \
    X(chat, "chat.js", JS)                                                                                             \
    X(client, "client.js", JS)                                                                                         \
    X(complete, "complete.js", JS)                                                                                     \
    X(conversation, "conversation.js", JS)                                                                             \
    X(dom, "dom.js", JS)                                                                                               \
    X(inline, "inline.js", JS)                                                                                         \
    X(markdown, "markdown.js", JS)                                                                                     \
    X(message, "message.js", JS)                                                                                       \
    X(request, "request.js", JS)                                                                                       \
    X(settings, "settings.js", JS)                                                                                     \
    X(sidebar, "sidebar.js", JS)                                                                                       \
    X(sse, "sse.js", JS)                                                                                               \
    X(store, "store.js", JS)

#define EMBED(symbol, name, type)                                                                                      \
    extern const char web_##symbol[], web_##symbol##_end[];                                                            \
    __asm__(".pushsection .rodata\nweb_" #symbol ":\n.incbin \"src/server/web/" name "\"\nweb_" #symbol                \
            "_end:\n.popsection\n");
FILES(EMBED)

static const struct file {
    const char *name, *type, *data, *end;
} files[] = {
#define ROW(symbol, name, type) {name, type, web_##symbol, web_##symbol##_end},
    FILES(ROW)};

/* Nothing but what this server sends, no script in the page itself, and no text that becomes markup: what a model says, or a
 * conversation that somebody imports, stays text even where the page has a mistake. */
static const char POLICY[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

static const char *header(const struct exchange *exchange, const char *name) {
    return MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
}

/* A browser keeps the file, and asks each time whether it is still the one: another version of the program may be here. */
static enum MHD_Result send_file(struct exchange *exchange, const struct file *file) {
    size_t size = (size_t)(file->end - file->data);
    char tag[24];
    snprintf(tag, sizeof tag, "\"%016" PRIx64 "\"", (uint64_t)XXH3_64bits(file->data, size));
    const char *kept = header(exchange, MHD_HTTP_HEADER_IF_NONE_MATCH);
    bool is_known = kept && (strstr(kept, tag) || !strcmp(kept, "*"));
    struct MHD_Response *response =
        MHD_create_response_from_buffer(is_known ? 0 : size, (void *)(uintptr_t)file->data, MHD_RESPMEM_PERSISTENT);
    if (!response) return MHD_NO;
    MHD_add_response_header(response, MHD_HTTP_HEADER_ETAG, tag);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, MHD_HTTP_HEADER_ACCEPT);
    MHD_add_response_header(response, "Content-Security-Policy", POLICY);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Referrer-Policy", "no-referrer");
    return http_queue(exchange, is_known ? MHD_HTTP_NOT_MODIFIED : MHD_HTTP_OK, file->type, response);
}

/* As if the page's paths were not in the table of routes. */
static enum MHD_Result nothing_here(struct exchange *exchange) {
    struct api_error error = {0};
    api_error_set(&error, 404, NULL, "not_found", "there is nothing at %s%.200s", exchange->route->path,
                  exchange->tail ? exchange->tail : "");
    return http_reply_error(exchange, &error);
}

enum MHD_Result web_handle_page(struct exchange *exchange) {
    return exchange->server->options.no_webui ? nothing_here(exchange) : send_file(exchange, &files[0]);
}

static bool wants_page(const struct exchange *exchange) {
    const char *accept = header(exchange, MHD_HTTP_HEADER_ACCEPT);
    return accept && strcasestr(accept, "text/html") && !exchange->server->options.no_webui;
}

enum MHD_Result web_handle_root(struct exchange *exchange) {
    return wants_page(exchange) ? web_handle_page(exchange) : ollama_handle_root(exchange);
}

/* The page's own paths are relative: a browser has to know that there is a "/" before them. So is this one, as a proxy may know the
 * server by another path; "./", lest a ":" makes a scheme of it. */
enum MHD_Result web_handle_prefix(struct exchange *exchange) {
    char place[SERVER_PREFIX_MAX + 8];
    if (!wants_page(exchange)) return ollama_handle_root(exchange);
    snprintf(place, sizeof place, ".%s/", strrchr(exchange->server->options.prefix, '/'));
    struct MHD_Response *response = MHD_create_response_from_buffer(0, "", MHD_RESPMEM_PERSISTENT);
    if (!response) return MHD_NO;
    MHD_add_response_header(response, MHD_HTTP_HEADER_LOCATION, place);
    MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, MHD_HTTP_HEADER_ACCEPT);
    return http_queue(exchange, MHD_HTTP_TEMPORARY_REDIRECT, HTML, response);
}

enum MHD_Result web_handle_file(struct exchange *exchange) {
    for (size_t i = 1; i < sizeof files / sizeof *files && !exchange->server->options.no_webui; i++) {
        if (exchange->tail && !strcmp(exchange->tail, files[i].name)) return send_file(exchange, &files[i]);
    }
    return nothing_here(exchange);
}
