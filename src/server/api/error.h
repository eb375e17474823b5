/* server/api/error.h - what a client is told when something is wrong: an HTTP status and OpenAI's error
 * object. Includes: base. */
#ifndef MOEBIUS_SERVER_API_ERROR_H
#define MOEBIUS_SERVER_API_ERROR_H

#include <jansson.h>
#include "base/error.h"

struct api_error {
    int status;       /* HTTP; 0: no error */
    const char *code; /* "model_not_found", ...; NULL: null */
    char param[64];   /* the field; "": null */
    char message[1200];
    int retry_after_s; /* > 0: a Retry-After header */
    const char *allow; /* 405: the Allow header */
};

/* Every setter returns -1, so that a caller can write `return api_error_set(...)`. `param` and `code` may be
 * NULL. */
int api_error_set(struct api_error *error, int status, const char *param, const char *code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* 400 with a field. */
int api_error_field(struct api_error *error, const char *param, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* From an inner module: input is 400, limits are context_length_exceeded, the rest is 500. If the message
 * starts with the name of a field, that is `param`; else `param` is the one given (may be NULL). */
int api_error_from(struct api_error *error, const struct mo_error *cause, const char *param);
int api_error_no_memory(struct api_error *error);

/* {"error": {message, type, param, code}}; the caller's. NULL without memory. */
json_t *api_error_json(const struct api_error *error);
/* Ollama's: {"error": message}. */
json_t *api_error_json_plain(const struct api_error *error);
/* As Anthropic's API says it: {"type": "error", "error": {type, message}}. */
json_t *api_error_anthropic(const struct api_error *error);

#endif
