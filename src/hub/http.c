#include "hub/http.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/utf8.h"
#include "hub/http_error.h"

enum { MAX_HOPS = 8, CONNECT_S = 20 };

/* What makes two URLs one site: scheme, host and port. */
struct origin {
    char *scheme, *host, *port;
};

struct hub_http {
    const struct hub_site *site;
    struct origin home; /* the endpoint's */
    bool has_home;      /* or it is no URL */
    bool shows_token;   /* to the endpoint */
    CURL *curl;
    struct curl_slist *authorization; /* NULL: no token */
    char curl_error[CURL_ERROR_SIZE];
    /* of the transfer that runs */
    struct hub_answer *answer;
    hub_sink *sink;
    void *context;
    bool is_at_hub; /* this hop goes to the endpoint */
};

/* A header's value as text, if it is this one's line: without the line's end and blanks around. */
static bool take_header(const char *line, size_t size, const char *name, char *value, size_t value_size) {
    size_t n = strlen(name);
    if (size <= n || strncasecmp(line, name, n) || line[n] != ':') return false;
    line += n + 1;
    size -= n + 1;
    while (size && (*line == ' ' || *line == '\t')) line++, size--;
    while (size && strchr("\r\n \t", line[size - 1])) size--;
    if (size >= value_size) size = value_size - 1;
    memcpy(value, line, size);
    value[size] = 0;
    utf8_clean(value);
    return true;
}

/* "W/\"abc\"" -> "abc" */
static void unquote_etag(char *etag) {
    char *begin = strchr(etag, '"'), *end = begin ? strchr(begin + 1, '"') : NULL;
    if (!end) return;
    *end = 0;
    memmove(etag, begin + 1, strlen(begin + 1) + 1);
}

static size_t on_header(char *line, size_t one, size_t size, void *user) {
    struct hub_http *http = user;
    struct hub_answer *answer = http->answer;
    char value[160];
    size *= one;
    if (size > 5 && !strncmp(line, "HTTP/", 5)) answer->range_begin = -1;
    if (take_header(line, size, "Content-Range", value, sizeof value)) {
        long long begin;
        if (sscanf(value, "bytes %lld-", &begin) == 1 && begin >= 0) answer->range_begin = begin;
    }
    /* Where the bytes are kept the tag is another one: only the hub says which content it is. */
    if (!http->is_at_hub) return size;
    if (take_header(line, size, "X-Linked-Etag", answer->etag, sizeof answer->etag)) unquote_etag(answer->etag);
    if (!answer->etag[0] && take_header(line, size, "ETag", answer->etag, sizeof answer->etag))
        unquote_etag(answer->etag);
    take_header(line, size, "X-Error-Code", answer->code, sizeof answer->code);
    take_header(line, size, "X-Error-Message", answer->message, sizeof answer->message);
    return size;
}

static size_t on_body(char *data, size_t one, size_t size, void *user) {
    struct hub_http *http = user;
    size *= one;
    curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &http->answer->status);
    if (http->answer->status / 100 != 2) return size; /* of a redirect or a failure: headers say it all */
    return http->sink(http->context, http->answer, data, size) ? 0 : size;
}

static int on_progress(void *user, curl_off_t total, curl_off_t now, curl_off_t up_total, curl_off_t up) {
    const struct hub_http *http = user;
    (void)total, (void)now, (void)up_total, (void)up;
    return atomic_load(http->site->stop);
}

static void allow_protocols(CURL *curl) {
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
}

static void set_options(struct hub_http *http) {
    CURL *curl = http->curl;
    static const char *const bundles[] = {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"};
    allow_protocols(curl);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "moebius/" MOEBIUS_VERSION);
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, (long)http->site->stall_s);
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 256L << 10);
    curl_easy_setopt(curl, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, http->curl_error);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, http);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, http);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, http);
    /* The names that Python's programs and curl know for a company's own authority; proxies libcurl finds itself. */
    for (size_t i = 0; i < sizeof bundles / sizeof *bundles; i++) {
        const char *bundle = getenv(bundles[i]);
        if (bundle && *bundle) curl_easy_setopt(curl, CURLOPT_CAINFO, bundle);
    }
}

static void begin_curl(void) {
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static bool read_origin(struct origin *origin, const char *url) {
    CURLU *parts = curl_url();
    *origin = (struct origin){0};
    bool is_read = parts && !curl_url_set(parts, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) &&
                   !curl_url_get(parts, CURLUPART_SCHEME, &origin->scheme, 0) &&
                   !curl_url_get(parts, CURLUPART_HOST, &origin->host, 0) &&
                   !curl_url_get(parts, CURLUPART_PORT, &origin->port, CURLU_DEFAULT_PORT);
    curl_url_cleanup(parts);
    return is_read;
}

static void free_origin(struct origin *origin) {
    curl_free(origin->scheme);
    curl_free(origin->host);
    curl_free(origin->port);
}

static bool is_loopback(const char *host) {
    return !strcasecmp(host, "localhost") || !strncmp(host, "127.", 4) || !strcmp(host, "[::1]");
}

bool hub_shows_token(const struct hub_site *site) {
    struct origin home;
    bool shows = site->token && read_origin(&home, site->endpoint) &&
                 (!strcasecmp(home.scheme, "https") || is_loopback(home.host));
    if (site->token) free_origin(&home);
    return shows;
}

int hub_http_create(struct hub_http **out, const struct hub_site *site, struct mo_error *error) {
    struct hub_http *http = calloc(1, sizeof *http);
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char line[1100];
    *out = NULL;
    pthread_once(&once, begin_curl);
    if (!http || !(http->curl = curl_easy_init())) goto no_memory;
    http->site = site;
    http->has_home = read_origin(&http->home, site->endpoint);
    http->shows_token = hub_shows_token(site);
    if (site->token) {
        snprintf(line, sizeof line, "Authorization: Bearer %s", site->token);
        if (!(http->authorization = curl_slist_append(NULL, line))) goto no_memory;
    }
    set_options(http);
    *out = http;
    return 0;
no_memory:
    hub_http_destroy(http);
    return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a connection");
}

void hub_http_destroy(struct hub_http *http) {
    if (!http) return;
    curl_slist_free_all(http->authorization);
    curl_easy_cleanup(http->curl);
    free_origin(&http->home);
    free(http);
}

/* Whether this hop is allowed, is the endpoint's, and may see the token. */
static int check_hop(struct hub_http *http, const char *url, bool *may_see_token, struct mo_error *error) {
    const struct origin *home = &http->home;
    struct origin origin;
    bool is_read = read_origin(&origin, url);
    int code = 0;
    if (!http->has_home || !is_read ||
        (strcasecmp(origin.scheme, "https") && strcasecmp(origin.scheme, home->scheme))) {
        char shown[200]; /* without what follows '?': it may be a signature */
        snprintf(shown, sizeof shown, "%.*s", (int)strcspn(url, "?#"), url);
        utf8_clean(shown);
        code =
            mo_error_set(error, MO_E_CORRUPT, "%s sends us to %s: refused, only %s is followed", http->site->endpoint,
                         shown, home->scheme && !strcasecmp(home->scheme, "http") ? "http or https" : "https");
    } else {
        http->is_at_hub = !strcasecmp(origin.scheme, home->scheme) && !strcasecmp(origin.host, home->host) &&
                          !strcmp(origin.port, home->port);
        *may_see_token = http->is_at_hub && http->shows_token;
    }
    free_origin(&origin);
    return code;
}

static CURLcode perform(struct hub_http *http, const char *url, int64_t from, bool shows_token) {
    http->curl_error[0] = 0;
    http->answer->status = 0;
    curl_easy_setopt(http->curl, CURLOPT_URL, url);
    curl_easy_setopt(http->curl, CURLOPT_HTTPHEADER, shows_token ? http->authorization : NULL);
    char range[40];
    snprintf(range, sizeof range, "%lld-", (long long)from);
    curl_easy_setopt(http->curl, CURLOPT_RANGE, from ? range : NULL);
    CURLcode result = curl_easy_perform(http->curl);
    curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &http->answer->status);
    return result;
}

/* After the last hop: what it means. */
static int judge(struct hub_http *http, CURLcode result, const char *url, const char *model, struct mo_error *error) {
    struct hub_answer *answer = http->answer;
    const struct hub_failure failure = {
        .site = http->site, .model = model, .url = url, .curl_error = http->curl_error, .is_at_hub = http->is_at_hub};
    if (atomic_load(http->site->stop)) return mo_error_set(error, MO_E_CANCELLED, "stopped");
    if (result == CURLE_WRITE_ERROR && answer->status / 100 == 2) return MO_E_IO; /* the sink knows why */
    if (result != CURLE_OK) return hub_error_of_transfer(&failure, (int)result, answer, error);
    if (answer->status / 100 == 2) return 0;
    curl_off_t wait_s = 0;
    curl_easy_getinfo(http->curl, CURLINFO_RETRY_AFTER, &wait_s);
    answer->wait_s = wait_s > 0 && wait_s < 1 << 30 ? (long)wait_s : 0;
    return hub_error_of_status(&failure, answer, error);
}

int hub_http_get(struct hub_http *http, const char *url, int64_t from, const char *model, hub_sink *sink, void *context,
                 struct hub_answer *answer, struct mo_error *error) {
    char *at = strdup(url);
    int code = at ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory for a URL");
    *answer = (struct hub_answer){.range_begin = -1};
    http->answer = answer;
    http->sink = sink;
    http->context = context;
    for (int hop = 0; !code; hop++) {
        bool may_see_token = false;
        char *next = NULL;
        code = check_hop(http, at, &may_see_token, error);
        if (code) break;
        CURLcode result = perform(http, at, from, may_see_token);
        if (result == CURLE_OK && answer->status / 100 == 3)
            curl_easy_getinfo(http->curl, CURLINFO_REDIRECT_URL, &next);
        if (!next) {
            code = judge(http, result, at, model, error);
            break;
        }
        free(at);
        at = strdup(next);
        if (!at)
            code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for a URL");
        else if (hop == MAX_HOPS)
            code = mo_error_set(error, MO_E_CORRUPT, "%s sends us around in circles", http->site->endpoint);
    }
    free(at);
    return code;
}

char *hub_url_quote(const char *text, bool keep_slashes) {
    size_t n = strlen(text), used = 0;
    char *out = malloc(3 * n + 1);
    if (!out) return NULL;
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        bool is_plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
                        strchr("-._~", *c) || (keep_slashes && *c == '/');
        if (is_plain)
            out[used++] = (char)*c;
        else
            used += (size_t)snprintf(out + used, 4, "%%%02X", *c);
    }
    out[used] = 0;
    return out;
}
