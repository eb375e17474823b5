#include "hub/pull.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/buffer.h"
#include "hub/fetch.h"
#include "hub/select.h"

/* ---- the listing ---- */

struct text {
    struct buffer bytes;
    bool is_too_long;
};

static int add_text(void *context, const struct hub_answer *answer, const void *data, size_t size) {
    struct text *text = context;
    (void)answer;
    text->is_too_long = size > HUB_LISTING_MAX_BYTES - text->bytes.size;
    if (!text->is_too_long) buffer_add(&text->bytes, data, size);
    return text->is_too_long || text->bytes.failed;
}

static int get_text(struct hub_pull *pull, struct hub_http *http, const char *url, struct text *text,
                    struct mo_error *error) {
    struct hub_retry retry = {.most = pull->retries < 3 ? pull->retries : 3};
    for (;;) {
        struct hub_answer answer;
        text->bytes.size = 0;
        int code = hub_http_get(http, url, 0, pull->model, add_text, text, &answer, error);
        if (text->is_too_long)
            return mo_error_set(error, MO_E_LIMIT, "%s lists more than %d MiB for %s", pull->site.endpoint,
                                HUB_LISTING_MAX_BYTES >> 20, pull->model);
        if (text->bytes.failed)
            return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the listing of %s", pull->model);
        if (!code || !answer.is_transient || !hub_retry_wait(pull, &retry, &answer, pull->model, error)) return code;
    }
}

int hub_pull_list(struct hub_pull *pull, struct mo_error *error) {
    struct hub_http *http = NULL;
    struct text text = {0};
    char *url = NULL, *revision = hub_url_quote(pull->revision, false), where[400];
    hub_list_free(&pull->listing);
    snprintf(where, sizeof where, "%s's listing of %s", pull->site.endpoint, pull->model);
    int code = hub_http_create(&http, &pull->site, error);
    if (!code && (!revision || asprintf(&url, "%s/api/models/%s/revision/%s?blobs=true", pull->site.endpoint,
                                        pull->model, revision) < 0))
        code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for a URL");
    if (!code) code = get_text(pull, http, url, &text, error);
    if (!code)
        code = hub_list_parse(&pull->listing, text.bytes.data ? text.bytes.data : "", text.bytes.size, where, error);
    hub_http_destroy(http);
    free(revision);
    free(url);
    buffer_free(&text.bytes);
    return code;
}

/* ---- the files ---- */

struct crew {
    struct hub_pull *pull;
    enum hub_part part;
    atomic_int n_running;
    pthread_mutex_t mutex; /* of all below */
    int next;
    int code; /* of the first failure */
    struct mo_error *error;
};

/* The next file's index; -1: none. */
static int next_file(struct crew *crew) {
    const struct hub_listing *listing = &crew->pull->listing;
    int i = -1;
    pthread_mutex_lock(&crew->mutex);
    while (crew->next < listing->n && i < 0 && !crew->code) {
        const struct hub_file *file = &listing->files[crew->next];
        bool is_part = crew->part == HUB_ALL || !hub_is_weights(file->path);
        if (file->is_wanted && !file->is_copy && !file->is_done && is_part) i = crew->next;
        crew->next++;
    }
    pthread_mutex_unlock(&crew->mutex);
    return i;
}

/* The first failure ends the others; what they have so far stays. */
static void report(struct crew *crew, int code, bool has_changed, const struct mo_error *error) {
    pthread_mutex_lock(&crew->mutex);
    if (!crew->code) {
        crew->code = code;
        *crew->error = *error;
        crew->pull->has_changed = has_changed;
        atomic_store(&crew->pull->stop, true);
    }
    pthread_mutex_unlock(&crew->mutex);
}

static void *work(void *context) {
    struct crew *crew = context;
    struct hub_http *http;
    struct mo_error error = {0};
    bool has_changed = false;
    int code = hub_http_create(&http, &crew->pull->site, &error);
    for (int i; !code && (i = next_file(crew)) >= 0;) {
        struct hub_file *file = &crew->pull->listing.files[i];
        code = hub_fetch(crew->pull, http, file, &has_changed, &error);
        file->is_done = !code;
    }
    if (code) report(crew, code, has_changed, &error);
    hub_http_destroy(http);
    atomic_fetch_sub(&crew->n_running, 1);
    return NULL;
}

int hub_pull_files(struct hub_pull *pull, enum hub_part part, struct mo_error *error) {
    enum { MOST = 32 };
    struct crew crew = {.pull = pull, .part = part, .mutex = PTHREAD_MUTEX_INITIALIZER, .error = error};
    pthread_t threads[MOST];
    const struct timespec slice = {.tv_nsec = 50000000};
    int n = 0, wanted = pull->connections < MOST ? pull->connections : MOST;
    pull->has_changed = false;
    for (; n < wanted; n++) {
        atomic_fetch_add(&crew.n_running, 1);
        if (pthread_create(&threads[n], NULL, work, &crew) == 0) continue;
        atomic_fetch_sub(&crew.n_running, 1);
        break;
    }
    if (n == 0) return mo_error_set(error, MO_E_NO_MEMORY, "cannot start a thread");
    while (atomic_load(&crew.n_running) > 0) {
        nanosleep(&slice, NULL);
        pull->tick(pull->context, pull);
    }
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    return crew.code;
}
