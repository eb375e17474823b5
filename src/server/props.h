/* server/props.h - what the server is, in llama.cpp's words: GET /props and /slots; the tokenizer in vLLM's. Includes: server/http.h. */
#ifndef MOEBIUS_SERVER_PROPS_H
#define MOEBIUS_SERVER_PROPS_H

#include "server/http.h"

/* The engine is there. The caller's; NULL without memory. */
json_t *props_json(const struct server *server);
/* vLLM's GET /tokenizer_info: what of tokenizer_config.json its clients ask for. The caller's; NULL without memory. */
json_t *props_tokenizer_json(const struct server *server);
/* As many as sequences may run; there are no places here, so the first ones stand for those that run. */
json_t *slots_json(const struct server *server);
/* Sequences that could start now. */
int slots_idle(const struct server *server);

#endif
