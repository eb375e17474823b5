/* server/prepare.h - a thread for requests whose text is long: reading megabytes of JSON and encoding them
 * takes long enough to be seen as a pause in everybody's streams, so it does not happen on the I/O thread.
 * Includes: base, server/api.h. */
#ifndef MOEBIUS_SERVER_PREPARE_H
#define MOEBIUS_SERVER_PREPARE_H

#include "server/api.h"

enum { PREPARE_BYTES_MIN = 32 << 10 }; /* shorter bodies are not worth a change of threads */

/* One body to parse: the caller's memory, untouched by it until `done` was called, on the other thread. */
struct prepare_job {
    struct prepare_job *next; /* the queue's */
    enum api_kind kind;
    struct api_model model;
    const char *body; /* [size] */
    size_t size;
    void (*done)(void *context);
    void *context;

    int code; /* of api_request_parse */
    struct api_request request;
    struct api_error error;
};
void prepare_run(struct prepare_job *job); /* here and now; does not call done */

struct prepare;
int prepare_open(struct prepare **prepare, struct mo_error *error);
void prepare_close(struct prepare *prepare); /* the queue is empty by now; accepts NULL */
void prepare_submit(struct prepare *prepare, struct prepare_job *job);

#endif
