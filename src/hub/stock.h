/* hub/stock.h - which models the Hugging Face cache has, whoever has brought them, and taking one out. Includes: base, hub. */
#ifndef MOEBIUS_HUB_STOCK_H
#define MOEBIUS_HUB_STOCK_H

#include <time.h>
#include "hub/cache.h"

enum hub_format { HUB_NO_WEIGHTS, HUB_SAFETENSORS, HUB_GGUF };

/* A snapshot, or one of its GGUF models. */
struct hub_model {
    char name[400];                /* "org/name" */
    char revision[256];            /* that the commit has: "main", or else any; "": none */
    char commit[256];              /* "": nothing but parts of files */
    char file[HUB_MAX_PATH_BYTES]; /* of a GGUF model the first; "" */
    char path[HUB_PATH_BYTES];     /* of the snapshot, or of that file */
    enum hub_format format;
    bool is_whole;
    int64_t bytes; /* of its files; where it is not whole, of all that the repository has here */
    time_t modified;
};

/* Calls `take` for each, by name; a nonzero answer ends it and is returned. A cache that is not there has none. */
typedef int hub_take(void *context, const struct hub_model *model, struct mo_error *error);
int hub_stock_each(const char *cache, hub_take *take, void *context, struct mo_error *error);

/* Bytes of all blobs of a repository, parts included; 0: it is not there. */
int64_t hub_stock_bytes(const struct hub_cache *cache);
/* Takes all of a repository out of the cache: links are taken away and never followed, so nothing outside of it goes. Refused while a
 * process downloads it. */
int hub_stock_remove(const struct hub_cache *cache, struct mo_error *error);
/* Of `snapshot` the wanted files of its `listing` (local.h) alone: their links, and the blobs that no snapshot links to any more. */
int hub_stock_remove_files(const struct hub_cache *cache, const char *snapshot, const struct hub_listing *listing,
                           struct mo_error *error);

#endif
