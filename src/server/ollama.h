/* server/ollama.h - the paths of Ollama that tell of models and of the server; /api/generate and /api/chat go the way of every
 * generation. I/O thread. Includes: server/http.h. */
#ifndef MOEBIUS_SERVER_OLLAMA_H
#define MOEBIUS_SERVER_OLLAMA_H

#include "server/http.h"

/* Whose API this is, as it was then: clients refuse what they take for too old. */
#define OLLAMA_API_VERSION "0.12.6"

enum { OLLAMA_BODY_BYTES_MAX = 64 << 10 }; /* of /api/show and /api/pull, which are read where everybody waits */

enum MHD_Result ollama_handle_root(struct exchange *exchange);
enum MHD_Result ollama_handle_version(struct exchange *exchange);
enum MHD_Result ollama_handle_tags(struct exchange *exchange);
enum MHD_Result ollama_handle_ps(struct exchange *exchange);
enum MHD_Result ollama_handle_show(struct exchange *exchange);
/* The model that is served is there already, which is all that those want who pull first. */
enum MHD_Result ollama_handle_pull(struct exchange *exchange);
/* What changes models, or makes embeddings: 501. */
enum MHD_Result ollama_handle_missing(struct exchange *exchange);

/* ollama_show.c: the answer of /api/show, the caller's; NULL without memory. */
json_t *ollama_show_json(const struct engine *engine, const char *name, time_t modified);
/* Format, family, size and weights of the model. */
json_t *ollama_details_json(const struct engine *engine);

#endif
