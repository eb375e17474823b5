/* cache/disk_priv.h - what the files of the disk cache share. Private to src/cache. */
#ifndef MOEBIUS_CACHE_DISK_PRIV_H
#define MOEBIUS_CACHE_DISK_PRIV_H

#include <pthread.h>
#include "cache/disk.h"
#include "cache/disk_folder.h"
#include "cache/disk_index.h"

/* A page's bytes on their way. */
struct disk_slot {
    uint8_t *payload; /* [page_bytes] */
    struct page_id id;
};

struct disk_load {
    struct disk *disk;
    struct disk_load *next; /* in the order in which they began */
    struct page_id *ids;    /* [n] */
    int n, n_read, n_taken;
    int slots[DISK_READ_SLOTS]; /* page i, n_taken <= i < n_read, is in slots[i % DISK_READ_SLOTS] */
    bool failed;                /* no more is read */
    bool at_work;               /* the thread looks at it */
    bool left;                  /* nobody wants it any more */
};

struct disk {
    struct disk_options options;
    struct disk_folder folder; /* the cache's thread */
    double next_list_s;
    bool told;       /* that nothing can be written */
    int32_t stamped; /* entries before it have been looked at */
    uint8_t *memory; /* of all slots */

    pthread_mutex_t lock;
    pthread_cond_t work, room; /* something to do; a slot to write to */
    struct disk_index index;
    struct disk_slot writes[DISK_WRITE_SLOTS]; /* [write_first ...] are on their way, in this order */
    int write_first, n_writes;
    struct disk_slot reads[DISK_READ_SLOTS];
    bool read_busy[DISK_READ_SLOTS];
    struct disk_load *loads;
    int n_wanted; /* pages of all loads that are not read yet */
    struct disk_stats stats;
    double page_s;         /* to read one, of late; 0: not known */
    double page_at_s;      /* when that was found out */
    double busy_since_s;   /* the thread has been at one thing since then; 0: it waits for something to do */
    double silent_until_s; /* nothing is written before */

    bool started, stop, ended;
    double patience_s; /* for the thread to end */
    bool hangs;        /* it did not */
    pthread_t thread;
    void (*wake)(void *context);
    void *wake_context;
};

/* disk_load.c. One page of some load, if one is wanted and there is room for it. */
bool disk_read_one(struct disk *disk);
/* disk_write.c */
bool disk_write_one(struct disk *disk);
bool disk_stamp_some(struct disk *disk);
/* Brings the index up to date with the folder. */
int disk_list(struct disk *disk, struct mo_error *error);
/* A page that could not be read, as `code` says. Its entry goes; the file only if what is in it is wrong: a process that may open
 * no more files, or a network that fails, has good files all the same, and the next listing finds them. */
void disk_forget(struct disk *disk, const struct page_id *id, int code, const struct mo_error *why);
int64_t disk_now_ns(void);

#endif
