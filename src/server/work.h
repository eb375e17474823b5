/* server/work.h - a request that came by no connection: `moebius run-batch` reads it from a file. What is answered is what the
 * server answers, status and body, because the same functions make it: the table of paths (routes.c), a request's parser
 * (api/api.h), an answer and its dialect (answer.h). Only nothing is streamed: there is nobody who reads along.
 *
 * Threads: the caller's own, but for `wake`. Includes: base, server/answer.h, server/text_api.h. */
#ifndef MOEBIUS_SERVER_WORK_H
#define MOEBIUS_SERVER_WORK_H

#include "server/answer.h"
#include "server/text_api.h"

/* What is done with a body at a path. */
struct work_route {
    enum api_kind kind;      /* of what is generated there */
    text_api_function *text; /* or what answers there without a model run */
};
/* routes.c: -1 with what the server would say: 404, 405; or with 404 for a path where nothing is made of a body. */
int work_find_route(struct work_route *route, const char *method, const char *path, struct api_error *error);

struct work_request {
    const char *method, *path;
    json_t *body; /* an object, within fields_parse's limits; from now on the work's to change */
};

struct work_reply {
    int status;   /* HTTP's */
    json_t *body; /* NULL: there was no memory to say it */
    struct answer_usage usage;
    struct api_error error; /* unless the status is 200 */
};

struct work;

/* Begins. `wake` is called once, when the reply is there: by any thread, perhaps before this returns; it must not block. NULL:
 * no memory. `model`, `fingerprint` and what they point to outlive the work, the request does not have to. */
struct work *work_start(const struct api_model *model, const char *fingerprint, const struct work_request *request,
                        void (*wake)(void *context), void *context);
/* Sequences that it takes up in the engine. */
int work_choices(const struct work *work);
/* Ends it soon, if it has not ended: with 503. */
void work_cancel(struct work *work);
/* After it woke: its reply, whose body is the caller's. The work is gone then. */
void work_take(struct work *work, struct work_reply *reply);

#endif
