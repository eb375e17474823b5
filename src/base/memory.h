/* base/memory.h - how much memory there is, by the system's word. Any thread. */
#ifndef MOEBIUS_BASE_MEMORY_H
#define MOEBIUS_BASE_MEMORY_H

/* Bytes that this process could still have: the system's own estimate (which counts mapped files as free), or what its control
 * group leaves if that is less, or what MOEBIUS_MEMORY says in GiB (for tests, and where more is promised than there is). */
double memory_available_bytes(void);
/* Bytes of this process that are in memory, mapped files included. */
double memory_resident_bytes(void);

#endif
