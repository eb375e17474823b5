/* server/respond/llama.h - objects of llama.cpp's that others show too. I/O thread. Includes: server/dialect.h. */
#ifndef MOEBIUS_SERVER_RESPOND_LLAMA_H
#define MOEBIUS_SERVER_RESPOND_LLAMA_H

#include "server/dialect.h"

/* generation_settings. */
json_t *respond_llama_settings(const struct api_request *request);
/* Tokens and times, as OpenAI's objects have them too when asked. */
json_t *respond_timings(const struct choice *choice);

#endif
