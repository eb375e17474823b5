/* server/respond_llama.h - the JSON objects of llama.cpp's own endpoints. I/O thread. Includes: server/respond.h. */
#ifndef MOEBIUS_SERVER_RESPOND_LLAMA_H
#define MOEBIUS_SERVER_RESPOND_LLAMA_H

#include "server/respond.h"

/* The caller's; NULL without memory. The choices' texts, tokens and logprobs are taken. */
/* A piece of a stream. */
json_t *respond_llama_piece(const struct respond_head *head, struct choice *choice);
/* A finished answer, or the end of its stream. */
json_t *respond_llama_end(const struct respond_head *head, struct choice *choice);
/* All answers of a request: one object, or a list of them. */
json_t *respond_llama_whole(const struct respond_head *head, struct choice *choices, int n_choices);

/* generation_settings. */
json_t *respond_llama_settings(const struct api_request *request);
/* Tokens and times, as OpenAI's objects have them too when asked. */
json_t *respond_timings(const struct choice *choice);

#endif
