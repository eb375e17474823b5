/* hub/http.h - one GET at a time from the hub, by libcurl. Redirects are followed by hand, because what a server may ask for is
 * narrow: only to https (to http only where the endpoint is http itself), and the token goes to the endpoint alone.
 * A struct hub_http is one thread's. Includes: base. */
#ifndef MOEBIUS_HUB_HTTP_H
#define MOEBIUS_HUB_HTTP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

struct hub_site {
    const char *endpoint;    /* "https://huggingface.co", no '/' at its end */
    const char *token;       /* NULL: none */
    const char *token_place; /* "HF_TOKEN", or the file, for messages */
    int stall_s;             /* a connection without a byte for this long is given up */
    atomic_bool *stop;       /* ends every transfer */
};

/* What came, for who decides whether to try again. */
struct hub_answer {
    long status;         /* of the last response, 0: none */
    bool is_transient;   /* may go well another time */
    long wait_s;         /* what the server asks for; 0: nothing */
    int64_t range_begin; /* of a 206; -1: not said */
    char etag[160];      /* the hub's own word for the content, without quotes; "": none */
    char code[64];       /* X-Error-Code */
    char message[300];   /* X-Error-Message */
};

/* Takes a part of a successful response's body. Nonzero ends the transfer; the sink then has its own reason. */
typedef int hub_sink(void *context, const struct hub_answer *answer, const void *data, size_t size);

struct hub_http;
int hub_http_create(struct hub_http **http, const struct hub_site *site, struct mo_error *error);
void hub_http_destroy(struct hub_http *http); /* accepts NULL */

/* Gets `url` from byte `from` on. MO_E_CANCELLED: site->stop. The error says what happened in words for people, and
 * what to do about it; `model` is what they asked for. */
int hub_http_get(struct hub_http *http, const char *url, int64_t from, const char *model, hub_sink *sink, void *context,
                 struct hub_answer *answer, struct mo_error *error);

/* Not over plain http, unless the endpoint is this machine. */
bool hub_shows_token(const struct hub_site *site);

/* A part of a URL, quoted; '/' too unless `keep_slashes`. The caller frees it; NULL: no memory. */
char *hub_url_quote(const char *text, bool keep_slashes);

#endif
