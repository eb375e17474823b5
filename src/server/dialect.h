/* server/dialect.h - how answers look: one set of functions for each API that is spoken. All are fed by the same choices; what
 * they write is theirs alone (respond_*.c). I/O thread; errors are any thread's.
 *
 * A stream is frames: server-sent events, or Ollama's lines. Functions that write give -1 without memory, those that make JSON
 * give NULL then; JSON is the caller's.
 *
 * Includes: server/choice.h, server/api/api.h. */
#ifndef MOEBIUS_SERVER_DIALECT_H
#define MOEBIUS_SERVER_DIALECT_H

#include <time.h>
#include "server/choice.h"

/* What all objects of one answer share. */
struct respond_head {
    char id[48]; /* "chatcmpl-..." */
    time_t created;
    double started_s; /* of the clock */
    const char *fingerprint;
    const struct api_request *request;
    const struct dialect *dialect;
};
void respond_head_init(struct respond_head *head, const struct api_request *request, const char *fingerprint);

/* What answers call a model by: our version, and the model's hash (checkpoint_hash). */
enum { RESPOND_FINGERPRINT_SIZE = 48 };
void respond_fingerprint(char text[RESPOND_FINGERPRINT_SIZE], const char *hash);

struct dialect {
    const char *id_prefix;
    const char *stream_type; /* Content-Type */
    json_t *(*error)(const struct api_error *error);
    /* The choices' texts, messages and logprobs are taken. */
    json_t *(*whole)(const struct respond_head *head, struct choice *choices, int n_choices);
    /* The frames that are due after an event was folded into the choice. */
    int (*stream)(struct buffer *out, const struct respond_head *head, struct choice *choice);
    /* After all choices have ended. NULL: nothing more is said. */
    int (*stream_end)(struct buffer *out, const struct respond_head *head, const struct choice *choices, int n_choices);
    int (*stream_error)(struct buffer *out, const struct respond_head *head, struct choice *choices,
                        const struct api_error *error);
    /* A comment, or what the API has for it: keeps proxies from giving up, and shows whether the client still listens. */
    int (*stream_ping)(struct buffer *out, const struct respond_head *head);
};
extern const struct dialect dialect_chat, dialect_completion, dialect_llama, dialect_ollama, dialect_messages,
    dialect_responses;

/* For those without words of their own: OpenAI's error object as a frame, and a comment. */
int dialect_stream_error(struct buffer *out, const struct respond_head *head, struct choice *choices,
                         const struct api_error *error);
int dialect_stream_ping(struct buffer *out, const struct respond_head *head);

/* Of a kind of request, and of a path, for errors that come before there is a request. */
const struct dialect *dialect_of(enum api_kind kind);
const struct dialect *dialect_at(const char *path);

#endif
