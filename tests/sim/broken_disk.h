/* A disk for the simulation: it works only when it is told to, lives for some epochs, may be too small, and its files are cut,
 * changed and removed at random. Everything follows from `below`. */
#ifndef TESTS_SIM_BROKEN_DISK_H
#define TESTS_SIM_BROKEN_DISK_H

#include "cache/disk.h"

struct broken_disk {
    int (*below)(int n); /* a random number */
    struct disk *disk;   /* NULL: none */
    char folder[64];
    int epochs, busy; /* it will live so long; percent of its chances to work that it takes */
    uint64_t n_damaged, n_refused, n_removed;
};

/* For the next epoch, the last one's or a new one. */
struct disk *broken_disk_take(struct broken_disk *broken);
/* Some work, perhaps some damage. Whether what the disk says of itself is right. */
bool broken_disk_step(struct broken_disk *broken);
/* Removes it with its files. False if a file is left that it does not know. */
bool broken_disk_leave(struct broken_disk *broken);

#endif
