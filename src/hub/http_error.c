#include "hub/http_error.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

/* scheme://host of a URL, for messages: the rest is long and may hold a signature. */
static int site_length(const char *url) {
    const char *host = strstr(url, "://");
    return host ? (int)(host + 3 - url) + (int)strcspn(host + 3, "/?#") : (int)strcspn(url, "?#");
}

static bool is_tls(int result) {
    /* Not CURLE_SSL_CONNECT_ERROR: that is also a connection which was cut while hands were shaken. */
    return result == CURLE_PEER_FAILED_VERIFICATION || result == CURLE_SSL_CACERT_BADFILE ||
           result == CURLE_SSL_CERTPROBLEM || result == CURLE_SSL_ISSUER_ERROR || result == CURLE_SSL_CIPHER ||
           result == CURLE_SSL_ENGINE_NOTFOUND;
}

int hub_error_of_transfer(const struct hub_failure *f, int result, struct hub_answer *answer, struct mo_error *error) {
    const char *what = f->curl_error[0] ? f->curl_error : curl_easy_strerror((CURLcode)result);
    int n = site_length(f->url);
    switch (result) {
    case CURLE_OUT_OF_MEMORY:
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory to talk to %.*s", n, f->url);
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
        return mo_error_set(error, MO_E_INVALID, "%.*s: %s", n, f->url, what);
    default:
        break;
    }
    if (is_tls(result)) {
        return mo_error_set(
            error, MO_E_IO,
            "%.*s: no trust in the connection: %s (behind a proxy that looks into connections: its "
            "certificate's file in SSL_CERT_FILE; otherwise look at this machine's clock and ca-certificates)",
            n, f->url, what);
    }
    answer->is_transient = true;
    if (result == CURLE_OPERATION_TIMEDOUT && answer->status)
        return mo_error_set(error, MO_E_IO, "%.*s: not a byte for %d s", n, f->url, f->site->stall_s);
    return mo_error_set(error, MO_E_IO, "%.*s: %s", n, f->url, what);
}

static int not_allowed(const struct hub_failure *f, const struct hub_answer *answer, struct mo_error *error) {
    const struct hub_site *site = f->site;
    char token[400];
    if (site->token)
        snprintf(token, sizeof token, "the token of %s is not one of an account that has", site->token_place);
    else
        snprintf(token, sizeof token,
                 "then put a token of %s/settings/tokens into HF_TOKEN or into the file token of HF_HOME",
                 site->endpoint);
    if (!strcmp(answer->code, "GatedRepo") || (answer->status == 403 && !answer->code[0])) {
        return mo_error_set(error, MO_E_NOT_FOUND,
                            "%s asks for consent (%ld): accept its conditions at %s/%s while logged in, %s%s%s%s",
                            f->model, answer->status, site->endpoint, f->model, token,
                            answer->message[0] ? " (the hub says: " : "", answer->message,
                            answer->message[0] ? ")" : "");
    }
    if (site->token) {
        return mo_error_set(error, MO_E_NOT_FOUND,
                            "%s does not exist, or the token of %s may not see it or is no longer good (%ld%s%s)",
                            f->model, site->token_place, answer->status, answer->message[0] ? ": " : "",
                            answer->message);
    }
    return mo_error_set(
        error, MO_E_NOT_FOUND,
        "%s does not exist, or is private (%ld): look at the spelling; for a private one put a token of "
        "%s/settings/tokens into HF_TOKEN or into the file token of HF_HOME",
        f->model, answer->status, site->endpoint);
}

int hub_error_of_status(const struct hub_failure *f, struct hub_answer *answer, struct mo_error *error) {
    long status = answer->status;
    int n = site_length(f->url);
    const char *open = answer->message[0] ? ": " : "";
    if ((status == 401 || status == 403) && f->is_at_hub) return not_allowed(f, answer, error);
    if (status == 404 && !strcmp(answer->code, "RevisionNotFound"))
        return mo_error_set(error, MO_E_NOT_FOUND, "%s has no such revision (404%s%s)", f->model, open,
                            answer->message);
    if (status == 404)
        return mo_error_set(error, MO_E_NOT_FOUND, "%s: not found at %.*s (404%s%s)", f->model, n, f->url, open,
                            answer->message);
    /* An address that the hub has signed for a while, and that is now too old, says 401, 403 or 410 as well. */
    answer->is_transient = status >= 500 || status == 429 || status == 408 || status == 401 || status == 403 ||
                           status == 410 || status == 416;
    char wait[60] = "";
    if (answer->wait_s) snprintf(wait, sizeof wait, ", asks for a pause of %ld s", answer->wait_s);
    return mo_error_set(error, MO_E_IO, "%.*s answers %ld%s%s%s%s", n, f->url, status,
                        status == 429 ? " (too many requests)" : "", wait, open, answer->message);
}
