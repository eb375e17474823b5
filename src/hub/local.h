/* hub/local.h - a snapshot in the cache as a listing: what is really there, whoever has brought it. Includes: base, hub/list.h. */
#ifndef MOEBIUS_HUB_LOCAL_H
#define MOEBIUS_HUB_LOCAL_H

#include "hub/list.h"

/* Paths and sizes of all files below `snapshot`, a folder; links that lead nowhere, or to a folder, are none. No commit, no hashes. The listing is to be
 * freed in any case. */
int hub_local_list(struct hub_listing *listing, const char *snapshot, struct mo_error *error);

/* Whether all weights are there: every file that model.safetensors.index.json names, or model.safetensors, with config.json; or every
 * shard of a GGUF model. Half a file is never seen: a blob gets its name when it is complete. */
bool hub_local_is_whole(const struct hub_listing *listing, const char *snapshot);

bool hub_local_has(const struct hub_listing *listing, const char *path);

#endif
