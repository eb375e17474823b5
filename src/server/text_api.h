/* server/text_api.h - POST /tokenize, /detokenize, /apply-template, and Anthropic's count_tokens. The fields used choose the shape of the answer: vLLM's
 * (`prompt` or `messages`) or llama.cpp's (`content`). Includes: server/api/api.h. */
#ifndef MOEBIUS_SERVER_TEXT_API_H
#define MOEBIUS_SERVER_TEXT_API_H

#include "server/api/api.h"

/* The answer to a body that fields_parse has read, the caller's like that; NULL with `error`. */
typedef json_t *text_api_function(const struct api_model *model, json_t *body, struct api_error *error);
text_api_function text_api_tokenize, text_api_detokenize, text_api_apply_template, text_api_count,
    text_api_count_responses;

#endif
