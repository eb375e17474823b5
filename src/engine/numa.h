/* engine/numa.h - memory nodes: where threads and weights go (base/numa.h). */
#ifndef MOEBIUS_ENGINE_NUMA_H
#define MOEBIUS_ENGINE_NUMA_H

#include "engine/engine.h"

/* --numa, before anything is opened. */
int engine_numa_settle(struct engine_options *options, struct mo_error *error);
enum affinity engine_numa_affinity(const struct engine_options *options);
/* Says what was done, where there are several nodes. Weights that the CPU reads where they are mapped, and that lie in memory on the wrong nodes, go to the right ones. `tick` (may be
 * NULL) is called now and then. */
int engine_numa_place(const struct engine *engine, int (*tick)(void *context, struct mo_error *error), void *context,
                      struct mo_error *error);

#endif
