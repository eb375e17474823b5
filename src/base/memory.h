/* base/memory.h - how much memory there is, by the system's word. Any thread. */
#ifndef MOEBIUS_BASE_MEMORY_H
#define MOEBIUS_BASE_MEMORY_H

#include <stdbool.h>

/* Bytes that this process could still have: the system's own estimate (which counts mapped files as free), or what its control
 * group leaves if that is less, or what MOEBIUS_MEMORY says in GiB (for tests, and where more is promised than there is). */
double memory_available_bytes(void);
/* A part of it: what the group in ROOT/PATH and those around it leave below their limits; `fallback` if none has a limit. The
 * files are called otherwise in the first version of groups. */
double memory_group_left_bytes(const char *root, const char *path, bool is_v1, double fallback);
/* Bytes of this process that are in memory, mapped files included. */
double memory_resident_bytes(void);

#endif
