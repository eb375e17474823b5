#include "server/api/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/utf8.h"

/* vsnprintf may cut a message inside a character, which JSON could not hold. */
static void trim_utf8(char *text) {
    text[utf8_valid_prefix((const uint8_t *)text, strlen(text))] = 0;
}

static void fill(struct api_error *error, int status, const char *param, const char *code, const char *format,
                 va_list arguments) {
    *error = (struct api_error){.status = status, .code = code};
    snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    vsnprintf(error->message, sizeof error->message, format, arguments);
    trim_utf8(error->param);
    trim_utf8(error->message);
}

int api_error_set(struct api_error *error, int status, const char *param, const char *code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill(error, status, param, code, format, arguments);
    va_end(arguments);
    return -1;
}

int api_error_field(struct api_error *error, const char *param, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill(error, 400, param, NULL, format, arguments);
    va_end(arguments);
    return -1;
}

int api_error_from(struct api_error *error, const struct mo_error *cause, const char *param) {
    static const char *const FIELDS[] = {
        "prompt",
        "max_tokens",
        "min_tokens",
        "logprobs",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_p",
        "min_p",
        "top_k",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
    };
    char field[64] = "";
    sscanf(cause->message, "%63[a-z_]", field);
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++) {
        if (strcmp(field, FIELDS[i]) == 0) param = FIELDS[i];
    }
    switch (cause->code) {
    case MO_E_INVALID:
    case MO_E_UNSUPPORTED:
        return api_error_set(error, 400, param, NULL, "%s", cause->message);
    case MO_E_LIMIT:
        return api_error_set(error, 400, param, "context_length_exceeded", "%s", cause->message);
    case MO_E_NO_MEMORY:
        return api_error_no_memory(error);
    default:
        return api_error_set(error, 500, NULL, "internal_error", "%s", cause->message);
    }
}

int api_error_no_memory(struct api_error *error) {
    api_error_set(error, 503, NULL, "overloaded", "the server is out of memory for this request; try again later");
    error->retry_after_s = 5;
    return -1;
}

static const char *type_of(int status) {
    switch (status) {
    case 401:
        return "authentication_error";
    case 404:
        return "not_found_error";
    case 429:
        return "rate_limit_error";
    default:
        return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

json_t *api_error_json(const struct api_error *error) {
    return json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error", "message", error->message, "type", type_of(error->status),
                     "param", error->param[0] ? error->param : NULL, "code", error->code);
}

json_t *api_error_json_plain(const struct api_error *error) {
    return json_pack("{s:s}", "error", error->message);
}

static const char *anthropic_type_of(int status) {
    switch (status) {
    case 413:
        return "request_too_large";
    case 503:
        return "overloaded_error";
    default:
        return status >= 500 ? "api_error" : type_of(status);
    }
}

json_t *api_error_anthropic(const struct api_error *error) {
    return json_pack("{s:s, s:{s:s, s:s}}", "type", "error", "error", "type", anthropic_type_of(error->status),
                     "message", error->message);
}
