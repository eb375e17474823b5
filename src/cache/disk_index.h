/* cache/disk_index.h - which pages lie on disk, and in which order they may go: found by address, in a list from the one used
 * last to the one used longest ago. A use is of a whole beginning, and its end counts as used a little earlier than its
 * start: so ends go first, and no page stays whose beginning has gone. The owner has the lock. Includes: page_file.h. */
#ifndef MOEBIUS_CACHE_DISK_INDEX_H
#define MOEBIUS_CACHE_DISK_INDEX_H

#include "cache/page_file.h"

/* One file. */
struct disk_entry {
    struct page_address address;
    int64_t used_ns; /* since 1970: the file's time of change */
    uint64_t bytes;
    uint32_t depth;
    int32_t newer, older; /* in the list; -1 */
    int32_t next;         /* in its bucket, or of the unused; -1 */
    bool is_used;         /* the entry itself */
    bool to_stamp;        /* the file does not know its time yet */
    bool seen;            /* by the folder's listing at hand */
};

struct disk_index {
    struct disk_entry *entries; /* [capacity] */
    int32_t *buckets;           /* [n_buckets] first entry, -1; a power of two */
    uint32_t n_buckets;
    int capacity, n;
    int32_t unused; /* first of them; -1 */
    int32_t newest, oldest;
    uint64_t bytes;
    int n_to_stamp;
};

void disk_index_init(struct disk_index *index);
void disk_index_free(struct disk_index *index);
/* -1: not there. */
int32_t disk_index_find(const struct disk_index *index, const struct page_address *address);
/* A new entry; it stands right behind `parent`, or (-1) as the newest. -1: out of memory. */
int32_t disk_index_add(struct disk_index *index, const struct disk_entry *entry, int32_t parent);
void disk_index_remove(struct disk_index *index, int32_t at);
/* Becomes the newest. */
void disk_index_use(struct disk_index *index, int32_t at, int64_t used_ns);

#endif
