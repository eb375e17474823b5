/* base/group.h - limits of the control groups that this process is in: a container's. Any thread. */
#ifndef MOEBIUS_BASE_GROUP_H
#define MOEBIUS_BASE_GROUP_H

#include <stdbool.h>

/* What one group, whose folder this is, leaves; `none` if it has no limit. The files are called otherwise in the first version
 * of groups. */
typedef double group_measure(const char *folder, bool is_v1, double none);

/* The least that the group in ROOT/PATH (a line's end may follow) and those around it leave. A container does not see the path
 * that its group has outside: then the root counts. */
double group_least_at(const char *root, const char *path, bool is_v1, group_measure *measure, double none);
/* The same for this process; both versions may be there. `controller` is "memory" or "cpu". */
double group_least(const char *controller, group_measure *measure, double none);

/* Those that there are: bytes that may be used, those of them that are not in use, and processors' worth of time. */
group_measure group_memory_limit, group_memory_left, group_processors;

/* The number after `label` in a small file of the system's; `fallback` if there is none. */
double group_read_number(const char *path, const char *label, double fallback);

#endif
