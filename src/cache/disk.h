/* cache/disk.h - pages of the latent cache on disk, below those in memory: what a server has computed outlives it, and the
 * memory's limit. 31 KB a token (V2-Lite, bf16) come back from a disk in a fraction of the time that computing them takes.
 *
 * Two threads. The engine's asks the index, leaves copies of pages in slots to be written, and takes pages out of the slots
 * that they were read into; no call of it waits for the disk. The cache's own thread (disk_start) reads and writes, reads first.
 * Both hold the lock for a moment only. Without that thread, disk_work does its work, a file a call: for simulations.
 *
 * What is on disk is what DIR holds (disk_folder.h): the index (disk_index.h) is rebuilt from names and times when it is opened,
 * and looked over again every minute, so servers that share a folder find each other's pages. The limit counts all
 * files of pages in the folder. A file that is not what its name says is removed with a line in the log. Nothing here ends
 * anybody's request: a page that cannot be written is forgotten, one that cannot be read is computed.
 *
 * The folder holds what users wrote, as tokens: it and its files are for their owner alone.
 * Includes: base, page_file.h. */
#ifndef MOEBIUS_CACHE_DISK_H
#define MOEBIUS_CACHE_DISK_H

#include "cache/page_file.h"

enum {
    DISK_WRITE_SLOTS = 8, /* pages in memory on their way to the disk */
    DISK_READ_SLOTS = 8,  /* and from there */
};

struct disk_options {
    const char *folder;
    double limit_bytes; /* all pages in the folder together */
    size_t page_bytes;
    struct page_address key; /* a digest of all that decides a page's bits, apart from tokens */
    bool no_sync;            /* tests: do not wait until the disk has it */
};

struct disk_stats {
    uint64_t files, bytes, limit_bytes;
    uint64_t read_pages, read_bytes, written_pages, written_bytes;
    uint64_t removed;   /* files: to stay below the limit */
    uint64_t refused;   /* files: damaged, or of something else */
    uint64_t forgotten; /* pages: could not be written */
    double read_s;
};

struct disk;

/* What disk_open takes for pages on their way. */
size_t disk_memory_bytes(size_t page_bytes);
/* Opens the folder, or says in one sentence why it cannot be used. */
int disk_open(struct disk **disk, const struct disk_options *options, struct mo_error *error);
/* Starts the thread. `wake(context)` is called by it when there is something new for the engine. */
int disk_start(struct disk *disk, void (*wake)(void *context), void *context, struct mo_error *error);
/* Writes what is waiting to be written, and ends the thread; a disk that does not answer is waited for some seconds. */
void disk_stop(struct disk *disk);
/* Accepts NULL; the thread has been stopped, or is now. Where it hangs on the disk, its memory stays until the process ends. */
void disk_close(struct disk *disk);
/* One file read or written, or some times: false if there was nothing to do. */
bool disk_work(struct disk *disk);

void disk_stats_get(struct disk *disk, struct disk_stats *stats); /* any thread */
const struct page_address *disk_key(const struct disk *disk);

/* ---- the engine's thread ---- */

bool disk_has(struct disk *disk, const struct page_address *address);
/* How many of pages [n], from the first, are there. */
int disk_find(struct disk *disk, const struct page_address *pages, int n);
/* They are used now: what has not been used for longer goes first. */
void disk_use(struct disk *disk, const struct page_address *pages, int n);

/* Whether a page should be put: it is not there, and the one before it is, or was put. */
bool disk_wants(struct disk *disk, const struct page_address *address, const struct page_address *parent,
                uint32_t depth);
/* Room for a page [page_bytes], to be filled and put; NULL while all slots are on their way. */
void *disk_put_begin(struct disk *disk);
void disk_put_end(struct disk *disk, const struct page_id *id); /* NULL: never mind */
/* Waits up to `limit_s` for a slot: whether there is one, and the disk takes pages. */
bool disk_put_wait(struct disk *disk, double limit_s);

/* Pages of one sequence on their way into memory, one after the other. */
struct disk_load;
/* Pages `first` .. first + n - 1 of `tokens` [(first + n) * PAGE_TOKENS_MAX]; pages[0] is page 0's address, and its parent
 * stands before it. NULL: out of memory. */
struct disk_load *disk_load_begin(struct disk *disk, const struct page_address *pages, const int32_t *tokens,
                                  uint64_t root, int first, int n);
/* The next page's bytes, until it is taken; NULL: not there yet. */
const void *disk_load_page(struct disk_load *load);
void disk_load_take(struct disk_load *load);
/* Nothing more will come, be it all or not. */
bool disk_load_ended(struct disk_load *load);
void disk_load_end(struct disk_load *load);
/* How long reading n pages will take, those included that others wait for, if the disk answers now; 0: nobody knows yet. */
double disk_load_s(struct disk *disk, int n);

#endif
