/* engine/disk.h - the prefix cache's folder for an engine: what its pages are known by, and going on without it. */
#ifndef MOEBIUS_ENGINE_DISK_H
#define MOEBIUS_ENGINE_DISK_H

#include "engine/engine.h"

/* Opens options.cache_folder, if one is given. A folder that cannot be used is a line in the log, and no disk; an error is only
 * what the model itself refuses. */
int engine_disk_open(struct engine *engine, struct mo_error *error);
/* When there is a scheduler to wake. */
int engine_disk_start(struct engine *engine, struct mo_error *error);
/* Leaves the disk what it does not have yet, and ends its thread. */
void engine_disk_stop(struct engine *engine);

#endif
