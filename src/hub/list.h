/* hub/list.h - which files a repository of the Hugging Face hub has at one commit, from the hub's answer to
 * api/models/ORG/NAME/revision/REV?blobs=true. What a server says is not trusted: a name that could leave the folder it is put in,
 * or a hash that is none, refuses the whole listing. Includes: base. */
#ifndef MOEBIUS_HUB_LIST_H
#define MOEBIUS_HUB_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

enum { HUB_LISTING_MAX_BYTES = 32 << 20, HUB_MAX_FILES = 20000, HUB_MAX_PATH_BYTES = 1000 };

struct hub_file {
    const char *path; /* "model-00001-of-000004.safetensors"; in the listing's JSON */
    char hash
        [65]; /* SHA-256 of what is kept by LFS or Xet, git's SHA-1 of all else; also the blob's name in the cache */
    bool is_sha256;
    int64_t size; /* bytes */
    bool is_wanted;
    bool is_copy; /* of another wanted file: one blob for both */
    bool is_done; /* hub_pull_files has brought it */
};

struct hub_listing {
    char commit[41];
    struct hub_file *files; /* [n] */
    int n;
    void *json; /* the paths point into it */
};

/* `where` names the answer in messages. The listing is to be freed in any case. */
int hub_list_parse(struct hub_listing *listing, const char *text, size_t size, const char *where,
                   struct mo_error *error);
void hub_list_free(struct hub_listing *listing); /* accepts a zeroed one */

/* A path inside a repository that stays inside of whatever folder it is put in, and that a terminal can show. */
bool hub_path_is_safe(const char *path, size_t size);
/* `digits` lower-case hexadecimal digits and nothing else. */
bool hub_is_hash(const char *text, size_t digits);

#endif
