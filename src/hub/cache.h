/* hub/cache.h - the Hugging Face cache on disk, as Python's huggingface_hub writes it:
 *
 *   CACHE/models--ORG--NAME/blobs/HASH             the content; HASH.incomplete while it comes
 *   CACHE/models--ORG--NAME/snapshots/COMMIT/PATH  a relative link to it
 *   CACHE/models--ORG--NAME/refs/REVISION          the commit
 *   CACHE/.locks/models--ORG--NAME/HASH.lock       flock() of whoever downloads it
 *
 * Both find what the other has left, also half of a file. Ours makes the links only when all files that are wanted
 * are there. Any thread. Includes: base, model/locate.h, hub/list.h. */
#ifndef MOEBIUS_HUB_CACHE_H
#define MOEBIUS_HUB_CACHE_H

#include "hub/list.h"

enum { HUB_PATH_BYTES = 4096 };

struct hub_cache {
    char folder[1500];     /* CACHE */
    char repository[2000]; /* CACHE/models--ORG--NAME */
    char locks[2000];
};

/* Only finds out the names; creates nothing. */
int hub_cache_open(struct hub_cache *cache, const char *model, struct mo_error *error);

bool hub_cache_has(const struct hub_cache *cache, const struct hub_file *file);
/* Bytes of it that are there: all, those of HASH.incomplete, or 0. */
int64_t hub_cache_bytes(const struct hub_cache *cache, const struct hub_file *file);
/* Bytes that the disk has left; the cache's folder may not exist yet. -1: not known. */
int64_t hub_cache_free_bytes(const struct hub_cache *cache);

/* `path` [HUB_PATH_BYTES] of the blob, and of its unfinished part. The folder is made. */
int hub_cache_blob(const struct hub_cache *cache, const struct hub_file *file, char *path, char *incomplete,
                   struct mo_error *error);
/* One process at a time downloads a blob. -1 in *fd: another one does it now. close(*fd) ends it. */
int hub_cache_try_lock(const struct hub_cache *cache, const struct hub_file *file, int *fd, struct mo_error *error);

/* The links of all wanted files, then the revision's name. What is right already is not written. */
int hub_cache_link(const struct hub_cache *cache, const struct hub_listing *listing, const char *revision,
                   struct mo_error *error);

#endif
