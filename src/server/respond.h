/* server/respond.h - the JSON objects of answers, whole and in chunks. I/O thread.
 * Includes: base, server/choice.h, server/api.h. */
#ifndef MOEBIUS_SERVER_RESPOND_H
#define MOEBIUS_SERVER_RESPOND_H

#include <time.h>
#include "server/choice.h"

/* What all objects of one answer share. */
struct respond_head {
    char id[48]; /* "chatcmpl-..." */
    time_t created;
    double started_s; /* of the clock */
    const char *fingerprint;
    const struct api_request *request;
};
void respond_head_init(struct respond_head *head, const struct api_request *request, const char *fingerprint);

/* The caller's; NULL without memory. The choices' texts, messages and logprobs are taken. */
json_t *respond_whole(const struct respond_head *head, struct choice *choices, int n_choices);
/* A completion's chunk: text, logprobs and the end all in one. */
json_t *respond_chunk(const struct respond_head *head, struct choice *choice);
/* A chat's chunks: the role, a piece of the message that is shown, logprobs without text, the end. */
json_t *respond_chat_role(const struct respond_head *head, const struct choice *choice);
json_t *respond_chat_piece(const struct respond_head *head, struct choice *choice, const struct message_piece *piece);
json_t *respond_chat_logprobs(const struct respond_head *head, struct choice *choice);
json_t *respond_chat_end(const struct respond_head *head, struct choice *choice);
/* Why there is no answer. */
json_t *respond_error(const struct respond_head *head, const struct api_error *error);
/* The extra last chunk of stream_options.include_usage. */
json_t *respond_usage_chunk(const struct respond_head *head, const struct choice *choices, int n_choices);

#endif
