/* server/prepare.h - a thread for requests whose text is long: reading megabytes of JSON and encoding them
 * takes long enough to be seen as a pause in everybody's streams, so it does not happen on the I/O thread.
 * Includes: base, server/api/api.h, server/text_api.h. */
#ifndef MOEBIUS_SERVER_PREPARE_H
#define MOEBIUS_SERVER_PREPARE_H

#include "server/text_api.h"

enum { PREPARE_BYTES_MIN = 32 << 10 }; /* shorter bodies are not worth a change of threads */

/* One body to work on: the caller's memory, untouched by it until `done` was called, on the other thread. */
struct prepare_job {
    struct prepare_job *next; /* the queue's */
    text_api_function *text;  /* gives the whole reply; NULL: the body is parsed as a request of `kind` */
    enum api_kind kind;
    struct api_model model;
    const char *body; /* [size] */
    size_t size;
    void (*done)(void *context);
    void *context;

    int code; /* 0; or -1 with `error` */
    struct api_error error;
    struct api_request request; /* zeroed if there is none */
    char *reply;                /* JSON, or NULL */
};
void prepare_run(struct prepare_job *job);      /* here and now; does not call done */
void prepare_job_free(struct prepare_job *job); /* the results that nobody took; accepts a zeroed one */

struct prepare;
int prepare_open(struct prepare **prepare, struct mo_error *error);
void prepare_close(struct prepare *prepare); /* the queue is empty by now; accepts NULL */
void prepare_submit(struct prepare *prepare, struct prepare_job *job);

#endif
