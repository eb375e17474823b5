#include "server/work.h"

#include <stdlib.h>

struct work {
    const struct dialect *dialect; /* of errors */
    struct answer *answer;         /* NULL: `reply` is there */
    struct work_reply reply;
    void (*wake)(void *context);
    void *context;
};

/* --- replies ------------------------------------------------------------------------------------- */

static void reply_error(struct work *work, const struct api_error *error) {
    work->reply.status = error->status;
    work->reply.body = work->dialect->error(error);
    work->reply.error = *error;
}

static void reply_json(struct work *work, json_t *json, struct api_error *error) {
    if (!json) {
        if (!error->status) api_error_no_memory(error);
        reply_error(work, error);
        return;
    }
    work->reply.status = 200;
    work->reply.body = json;
}

/* --- the work ------------------------------------------------------------------------------------ */

/* Ollama's requests stream unless they say no: here silence is a no. */
static int refuse_stream(struct api_request *request, struct api_error *error) {
    bool is_default = api_is_ollama(request->kind) && !json_object_get(request->root, "stream");
    bool streams = request->stream && !is_default;
    request->stream = false;
    if (!streams) return 0;
    return api_error_field(error, "stream",
                           "\"stream\": true has no place in a batch: answers are written when they are whole");
}

/* The waker of an answer that is taken whole: it never reads before it was woken. */
static void sleep_on(void *context) {
    (void)context;
}

static void wake_up(void *context) {
    struct work *work = context;
    work->wake(work->context);
}

/* Whether an answer runs, which wakes when it has ended; else there is an error. */
static bool generate(struct work *work, enum api_kind kind, const struct api_model *model, const char *fingerprint,
                     const struct work_request *r, struct api_error *error) {
    struct api_request request = {0};
    const struct answer_waker waker = {sleep_on, wake_up, work, true};
    int code = api_request_read(&request, kind, model, json_incref(r->body), error);
    if (!code) code = refuse_stream(&request, error);
    if (code) {
        api_request_free(&request);
        return false;
    }
    return answer_start(&work->answer, &request, model->engine, fingerprint, &waker, error) == 0;
}

struct work *work_start(const struct api_model *model, const char *fingerprint, const struct work_request *request,
                        void (*wake)(void *context), void *context) {
    struct work *work = calloc(1, sizeof *work);
    if (!work) return NULL;
    work->dialect = dialect_at(request->path);
    work->wake = wake;
    work->context = context;
    struct api_error error = {0};
    struct work_route route;
    if (work_find_route(&route, request->method, request->path, &error)) {
        reply_error(work, &error);
    } else if (route.text) {
        reply_json(work, route.text(model, request->body, &error), &error);
    } else if (!generate(work, route.kind, model, fingerprint, request, &error)) {
        reply_error(work, &error);
    }
    bool sleeps = work->answer && answer_wait(work->answer) == ANSWER_WAITS;
    if (!sleeps) wake(context);
    return work;
}

int work_choices(const struct work *work) {
    struct answer_usage usage = {0};
    if (work->answer) answer_usage_get(work->answer, &usage);
    return usage.n_choices;
}

void work_cancel(struct work *work) {
    if (work->answer) answer_cancel(work->answer);
}

void work_take(struct work *work, struct work_reply *reply) {
    if (work->answer) {
        struct api_error error = {0};
        json_t *json = answer_take(work->answer, &error);
        reply_json(work, json, &error);
        answer_usage_get(work->answer, &work->reply.usage);
        answer_release(work->answer);
    }
    *reply = work->reply;
    free(work);
}
