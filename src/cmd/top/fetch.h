/* cmd/top/fetch.h - asks a server for its metrics, by libcurl, without ever waiting longer than its caller wants to. HTTP and HTTPS; no
 * redirects (the key is for this server), no proxy for this machine itself, answers up to a limit. One thread.
 *
 *   top_fetch_open, then each time: top_fetch_start, top_fetch_wait until it has ended, the answer in `fetch` */
#ifndef MOEBIUS_CMD_TOP_FETCH_H
#define MOEBIUS_CMD_TOP_FETCH_H

#include <curl/curl.h>
#include "base/error.h"
#include "cmd/top/screen.h"

enum { TOP_ANSWER_BYTES_MAX = 8 << 20, TOP_TIMEOUT_S = 10 };

struct top_fetch {
    CURLM *multi;
    CURL *easy;
    struct curl_slist *headers;
    char url[1024], shown[1024]; /* what is asked; the server as people write it, without a password */
    char socket[128];            /* a Unix socket's path; "": none */
    char curl_message[CURL_ERROR_SIZE];
    bool is_running, is_too_large;
    struct buffer body;
    /* what came of it, once it is no longer running */
    enum top_state state; /* READY: `sample` is good; or LOADING, or one of those with `trouble` */
    char trouble[256];
    struct top_sample sample;
};

/* `url`: a server ("host:8000", "https://host/", "unix:PATH"), or the page itself (".../metrics"). `key` may be NULL, and so may
 * `certificates`, a file of those to be trusted in place of the system's. */
int top_fetch_open(struct top_fetch *fetch, const char *url, const char *key, const char *certificates,
                   struct mo_error *error);
void top_fetch_close(struct top_fetch *fetch); /* accepts a zeroed one */

int top_fetch_start(struct top_fetch *fetch, struct mo_error *error);
/* Waits for `seconds`, for the answer, or for one of fds [n] whatever comes first (their revents are set); without a request on its
 * way for the others. Returns 1 when the request has ended now, else 0. */
int top_fetch_wait(struct top_fetch *fetch, struct curl_waitfd *fds, int n, double seconds, struct mo_error *error);

#endif
