/* cmd/run_batch/input.h - the requests of `run-batch`: a file of lines, in OpenAI's words
 *
 *   {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
 *
 * It is read twice, line by line: once before the model is loaded, which counts the requests and refuses a file that names two
 * alike, and once to answer them. What is no file (a pipe, standard input) is copied to a nameless one first.
 * Includes: base, server/api/fields.h. */
#ifndef MOEBIUS_CMD_RUN_BATCH_INPUT_H
#define MOEBIUS_CMD_RUN_BATCH_INPUT_H

#include <jansson.h>
#include <sys/stat.h>
#include "cmd/run_batch/digest.h"
#include "cmd/run_batch/lines.h"

/* What stays in memory of a request. */
struct batch_entry {
    struct batch_digest id; /* of the line and, after batch_input_bind, the model */
    int64_t at, size;       /* of its answer's line in the output; at -1: there is none yet */
};

struct batch_input {
    const char *path;   /* for messages */
    struct stat source; /* of what was opened, which `lines` may be a copy of */
    struct batch_lines lines;
    struct batch_entry *entries; /* [n] in the file's order */
    int n, capacity;
    int n_bad;           /* lines that are no request */
    char first_bad[512]; /* what is wrong with the first of them */
    struct batch_digest model;
    bool is_bound;
    int next, line; /* index of the next request; number of the last line read */
};

/* A line, read. Unless `code` is NULL it is no request, and `message` says why. */
struct batch_request {
    int index, line;
    struct batch_digest id;
    json_t *root; /* strings and `body` are in there; or NULL */
    const char *custom_id, *method, *url;
    json_t *body;
    const char *code;
    char message[400];
};

/* `path` "-": standard input. */
int batch_input_open(struct batch_input *input, const char *path, struct mo_error *error);
void batch_input_close(struct batch_input *input); /* accepts a zeroed one */

/* Fills `entries`. MO_E_INVALID if two requests have one custom_id, or if there is no request in it. */
int batch_input_scan(struct batch_input *input, struct mo_error *error);
/* From here on ids are those of requests to what the text `model` [size] names: a hash, and all else that changes answers. The file
 * begins again. */
int batch_input_bind(struct batch_input *input, const char *model, size_t size, struct mo_error *error);
/* 1 with the next line that is not blank, 0 at the end, or a negative code. */
int batch_input_next(struct batch_input *input, struct batch_request *request, struct mo_error *error);
void batch_request_free(struct batch_request *request);

#endif
