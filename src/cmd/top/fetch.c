#include "cmd/top/fetch.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/text.h"
#include "base/utf8.h"

/* ---- the address ---- */

/* ".../metrics" stays, "http://host/v1" is what clients of the API are given, all else is a folder. */
static void make_path(char *path, size_t size, const char *given) {
    int n = (int)strlen(given);
    if (text_ends_with(given, "/metrics")) {
        snprintf(path, size, "%s", given);
        return;
    }
    while (n > 0 && given[n - 1] == '/') n--;
    if (n >= 3 && memcmp(given + n - 3, "/v1", 3) == 0) n -= 3;
    snprintf(path, size, "%.*s/metrics", n, given);
}

static bool copy_part(CURLU *url, CURLUPart part, char *out, size_t size) {
    char *text = NULL;
    bool fits = curl_url_get(url, part, &text, 0) == CURLUE_OK && strlen(text) < size;
    if (fits) memcpy(out, text, strlen(text) + 1);
    curl_free(text);
    return fits;
}

/* What is asked, and what is shown: without user, password and query. */
static bool make_url(struct top_fetch *f, CURLU *url) {
    char given[512], path[sizeof given + 16];
    if (!copy_part(url, CURLUPART_PATH, given, sizeof given)) return false;
    make_path(path, sizeof path, given);
    if (curl_url_set(url, CURLUPART_PATH, path, 0) || curl_url_set(url, CURLUPART_FRAGMENT, NULL, 0)) return false;
    if (!copy_part(url, CURLUPART_URL, f->url, sizeof f->url)) return false;
    curl_url_set(url, CURLUPART_USER, NULL, 0);
    curl_url_set(url, CURLUPART_PASSWORD, NULL, 0);
    curl_url_set(url, CURLUPART_QUERY, NULL, 0);
    path[strlen(path) - strlen("/metrics")] = 0;
    if (!text_ends_with(given, "/metrics") && curl_url_set(url, CURLUPART_PATH, *path ? path : "/", 0)) return false;
    if (!copy_part(url, CURLUPART_URL, f->shown, sizeof f->shown)) return false;
    utf8_clean(f->shown);
    return true;
}

static bool is_this_machine(CURLU *url) {
    char host[256];
    if (!copy_part(url, CURLUPART_HOST, host, sizeof host)) return false;
    return !strncmp(host, "127.", 4) || !strcmp(host, "localhost") || !strcmp(host, "[::1]");
}

/* What is a file here needs no address. */
static int read_socket(struct top_fetch *f, const char *path, struct mo_error *error) {
    if (!*path || strlen(path) >= sizeof f->socket)
        return mo_error_set(error, MO_E_INVALID, "unix:%.200s: expected a path of 1 to %zu bytes", path,
                            sizeof f->socket - 1);
    strcpy(f->socket, path);
    strcpy(f->url, "http://localhost/metrics");
    snprintf(f->shown, sizeof f->shown, "unix:%s", path);
    utf8_clean(f->shown);
    return 0;
}

/* Sets *is_local where no proxy is to be asked. */
static int read_url(struct top_fetch *f, const char *text, bool *is_local, struct mo_error *error) {
    char scheme[16], whole[1024];
    int code = MO_E_INVALID;
    CURLU *url = curl_url();
    if (!url) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    snprintf(whole, sizeof whole, "%s%s", strstr(text, "://") ? "" : "http://", text);
    if (strlen(text) + 8 < sizeof whole &&
        curl_url_set(url, CURLUPART_URL, whole, CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK &&
        copy_part(url, CURLUPART_SCHEME, scheme, sizeof scheme) &&
        (!strcmp(scheme, "http") || !strcmp(scheme, "https"))) {
        *is_local = is_this_machine(url);
        if (make_url(f, url)) code = 0;
    }
    curl_url_cleanup(url);
    if (code) mo_error_set(error, code, "%.200s: expected a server's address, as in http://127.0.0.1:8000", text);
    return code;
}

/* ---- the connection ---- */

static size_t receive(char *data, size_t size, size_t n, void *context) {
    struct top_fetch *f = context;
    f->is_too_large = f->body.size + size * n > TOP_ANSWER_BYTES_MAX;
    if (f->is_too_large) return 0;
    buffer_add(&f->body, data, size * n);
    return f->body.failed ? 0 : size * n;
}

/* As the program curl has it: where certificates are that this machine does not trust by itself. */
static bool set_certificates(CURL *c, const char *file) {
    if (!file) file = getenv("CURL_CA_BUNDLE");
    if (!file || !*file) file = getenv("SSL_CERT_FILE");
    return !file || !*file || !curl_easy_setopt(c, CURLOPT_CAINFO, file);
}

static bool set_options(struct top_fetch *f, const char *certificates, bool is_local) {
    CURL *c = f->easy;
    return !curl_easy_setopt(c, CURLOPT_URL, f->url) && !curl_easy_setopt(c, CURLOPT_HTTPHEADER, f->headers) &&
           !curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, receive) && !curl_easy_setopt(c, CURLOPT_WRITEDATA, f) &&
           !curl_easy_setopt(c, CURLOPT_TIMEOUT, (long)TOP_TIMEOUT_S) && !curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L) &&
           !curl_easy_setopt(c, CURLOPT_ERRORBUFFER, f->curl_message) &&
           !curl_easy_setopt(c, CURLOPT_USERAGENT, "moebius-top/" MOEBIUS_VERSION) &&
           set_certificates(c, certificates) &&
           (!*f->socket || !curl_easy_setopt(c, CURLOPT_UNIX_SOCKET_PATH, f->socket)) &&
           (!is_local || !curl_easy_setopt(c, CURLOPT_PROXY, ""));
}

static bool make_headers(struct top_fetch *f, const char *key) {
    char line[4096];
    if (!key) return true;
    snprintf(line, sizeof line, "Authorization: Bearer %s", key);
    f->headers = curl_slist_append(NULL, line);
    return f->headers != NULL;
}

/* A name that nobody resolves does not keep the program from ending. */
static void set_quick_exit(CURL *c) {
#if LIBCURL_VERSION_NUM >= 0x075700
    curl_easy_setopt(c, CURLOPT_QUICK_EXIT, 1L);
#else
    (void)c;
#endif
}

int top_fetch_open(struct top_fetch *fetch, const char *url, const char *key, const char *certificates,
                   struct mo_error *error) {
    bool is_local = false;
    *fetch = (struct top_fetch){.state = TOP_CONNECTING};
    if (key && (!*key || strlen(key) > 4000 || strpbrk(key, "\r\n")))
        return mo_error_set(error, MO_E_INVALID, "the API key is empty, longer than 4000 bytes, or has a line end");
    bool is_socket = !strncmp(url, "unix:", 5);
    int code = is_socket ? read_socket(fetch, url + 5, error) : read_url(fetch, url, &is_local, error);
    if (code) return code;
    if (curl_global_init(CURL_GLOBAL_DEFAULT)) return mo_error_set(error, MO_E_INTERNAL, "libcurl does not start");
    fetch->multi = curl_multi_init();
    fetch->easy = curl_easy_init();
    if (!fetch->multi || !fetch->easy || !make_headers(fetch, key) || !set_options(fetch, certificates, is_local)) {
        top_fetch_close(fetch);
        return mo_error_set(error, MO_E_NO_MEMORY, "libcurl has no memory, or is too old");
    }
    set_quick_exit(fetch->easy);
    return 0;
}

void top_fetch_close(struct top_fetch *fetch) {
    if (fetch->is_running) curl_multi_remove_handle(fetch->multi, fetch->easy);
    if (fetch->easy) curl_easy_cleanup(fetch->easy);
    if (fetch->multi) curl_multi_cleanup(fetch->multi);
    curl_slist_free_all(fetch->headers);
    buffer_free(&fetch->body);
    *fetch = (struct top_fetch){0};
}

/* ---- one request ---- */

int top_fetch_start(struct top_fetch *fetch, struct mo_error *error) {
    assert(!fetch->is_running);
    fetch->body.size = 0;
    fetch->body.failed = fetch->is_too_large = false;
    fetch->curl_message[0] = 0;
    fetch->sample.server = TOP_UNKNOWN;
    if (curl_multi_add_handle(fetch->multi, fetch->easy))
        return mo_error_set(error, MO_E_INTERNAL, "libcurl takes no request");
    fetch->is_running = true;
    return 0;
}

static void judge_status(struct top_fetch *f, long status) {
    f->state = TOP_FAILED;
    snprintf(f->trouble, sizeof f->trouble, "the server answers with HTTP status %ld", status);
    if (status == 401 || status == 403) {
        f->state = TOP_REFUSED;
        snprintf(f->trouble, sizeof f->trouble,
                 "HTTP %ld: the server wants an API key (--api-key or MOEBIUS_API_KEY), or another one", status);
    } else if (status == 404 || status == 501) {
        f->state = TOP_FOREIGN;
        snprintf(f->trouble, sizeof f->trouble,
                 "HTTP %ld: this server has no /metrics (llama.cpp's has with --metrics)", status);
    } else if (status == 503) {
        f->state = TOP_LOADING;
        snprintf(f->trouble, sizeof f->trouble, "HTTP 503: the server is not ready yet");
    }
}

static void judge_body(struct top_fetch *f) {
    top_sample_read(&f->sample, f->body.data, f->body.size);
    f->sample.time_s = clock_now_s();
    f->state = top_sample_is_loading(&f->sample) ? TOP_LOADING : TOP_READY;
    if (f->sample.server != TOP_UNKNOWN) return;
    f->state = TOP_FOREIGN;
    snprintf(f->trouble, sizeof f->trouble, "an answer, but neither of Moebius nor of vLLM or llama.cpp");
}

/* Nobody is there, or nobody any more; all else that libcurl reports is a server that does not do as it should. */
static bool is_gone(CURLcode code) {
    return code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_GOT_NOTHING ||
           code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR || code == CURLE_PARTIAL_FILE;
}

static void judge_failure(struct top_fetch *f, CURLcode code) {
    const char *message = f->curl_message[0] ? f->curl_message : curl_easy_strerror(code);
    f->state = is_gone(code) ? TOP_GONE : TOP_FAILED;
    snprintf(f->trouble, sizeof f->trouble, "%.200s", message);
    long number = 0;
    curl_easy_getinfo(f->easy, CURLINFO_OS_ERRNO, &number);
    if (code == CURLE_COULDNT_CONNECT && number) {
        snprintf(f->trouble, sizeof f->trouble, "cannot connect: %s", strerror((int)number));
    } else if (code == CURLE_OPERATION_TIMEDOUT) {
        f->state = TOP_SLOW;
        snprintf(f->trouble, sizeof f->trouble, "no answer within %d s", TOP_TIMEOUT_S);
    } else if (f->is_too_large) {
        snprintf(f->trouble, sizeof f->trouble, "the answer is larger than %d MiB", TOP_ANSWER_BYTES_MAX >> 20);
    } else if (f->body.failed) {
        snprintf(f->trouble, sizeof f->trouble, "no memory for the answer");
    }
    utf8_clean(f->trouble);
}

static void judge(struct top_fetch *f, CURLcode code) {
    long status = 0;
    f->trouble[0] = 0;
    curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
    if (code) {
        judge_failure(f, code);
    } else if (status != 200) {
        judge_status(f, status);
    } else {
        judge_body(f);
    }
}

/* Whether the request has ended. */
static bool take_end(struct top_fetch *f) {
    int n_left;
    for (CURLMsg *message; (message = curl_multi_info_read(f->multi, &n_left));) {
        if (message->msg != CURLMSG_DONE) continue;
        CURLcode code = message->data.result;
        curl_multi_remove_handle(f->multi, f->easy);
        f->is_running = false;
        judge(f, code);
        return true;
    }
    return false;
}

int top_fetch_wait(struct top_fetch *fetch, struct curl_waitfd *fds, int n, double seconds, struct mo_error *error) {
    int n_running, wait_ms = (int)ceil(fmin(fmax(seconds, 0), 3600) * 1e3);
    if (curl_multi_perform(fetch->multi, &n_running)) return mo_error_set(error, MO_E_INTERNAL, "libcurl failed");
    if (take_end(fetch)) return 1;
    if (curl_multi_poll(fetch->multi, fds, (unsigned)n, wait_ms, NULL))
        return mo_error_set(error, MO_E_IO, "libcurl cannot wait");
    if (curl_multi_perform(fetch->multi, &n_running)) return mo_error_set(error, MO_E_INTERNAL, "libcurl failed");
    return take_end(fetch);
}
