/* model/locate.h - `org/name` to its folder in the Hugging Face cache
 * (HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub). Nothing is ever downloaded
 * here: find/find.h does that (hub/). */
#ifndef MOEBIUS_MODEL_LOCATE_H
#define MOEBIUS_MODEL_LOCATE_H

#include <stdbool.h>
#include <stddef.h>
#include "base/error.h"

/* The snapshot's folder, of a branch, tag or commit (NULL: "main"), into path [path_size]. When it is absent, the message says in one
 * line how to get it. */
int model_locate(const char *model, const char *revision, char *path, size_t path_size, struct mo_error *error);

/* "org/name" and nothing that could climb out of the cache. */
bool model_is_repository(const char *model);
/* Where Hugging Face's programs keep their things (the token), and the models among them. */
int model_hub_home(char *path, size_t path_size, struct mo_error *error);
int model_hub_cache(char *path, size_t path_size, struct mo_error *error);

#endif
