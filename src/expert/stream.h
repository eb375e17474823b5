/* expert/stream.h - reads parts of files into memory by threads of its own, what is needed now before what is only
 * predicted to be.
 *
 * A read is cut into pieces of STREAM_PIECE bytes, so that several threads bring one record. Files are opened for direct I/O:
 * the bytes go where they are wanted and nowhere else, and the page cache stays with the weights that are mapped. Where that
 * is refused (tmpfs, some network file systems) the page cache is in between, and told to forget each piece at once.
 * Direct I/O knows whole blocks only, and tensors begin anywhere: the blocks around a part are read with it.
 * Threads that block in pread instead of liburing: one code path that works in every container; at 1 MiB a piece their
 * cost is not to be seen. What goes wrong (an error of the disk, a file that was cut short) is found by stream_wait.
 *
 * One thread owns the stream and its reads and calls everything here. Includes: base. */
#ifndef MOEBIUS_EXPERT_STREAM_H
#define MOEBIUS_EXPERT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/error.h"

enum {
    STREAM_ALIGN = 4096, /* of offsets, lengths and memory: no disk wants more for direct I/O */
    STREAM_PIECE = 1 << 20,
    STREAM_THREADS = 8, /* pieces on their way at once: what an NVMe disk wants to be busy */
};

enum stream_need { STREAM_NOW, STREAM_PREDICTED, STREAM_NEEDS };

typedef ssize_t stream_pread(int file, void *to, size_t n, off_t at);

struct stream_options {
    const char *const *paths; /* [n_paths] */
    int n_paths;
    int threads;         /* 0: STREAM_THREADS */
    stream_pread *pread; /* NULL: the system's; for tests that want it to fail */
};

/* Bytes [offset, offset + bytes) of a file, and where in the memory of a read their first block goes. */
struct stream_part {
    int file; /* of the options' paths */
    int64_t offset;
    size_t bytes;
    size_t at; /* a multiple of STREAM_ALIGN; stream_span(offset, bytes) are taken from there on */
};

/* One read: the first block is its owner's, who keeps all of it in place until it is done. */
struct stream_read {
    const struct stream_part *parts; /* [n_parts] */
    int n_parts;
    uint8_t *to;       /* at a multiple of STREAM_ALIGN, with room for all parts */
    int layer, expert; /* for messages */

    /* The stream's, under its lock. */
    struct stream_read *next;
    enum stream_need need;
    bool is_queued;             /* has pieces that nobody has begun */
    int n_pieces, begun, ended; /* dropped or failed: n_pieces is cut down to what was begun */
    bool is_dropped;
    int reason;         /* of the failure: an errno, or -1 when the file ended too early */
    int failed_file;    /* where: the file, */
    int64_t failed_at;  /* the offset in it, */
    size_t wanted, got; /* how many bytes from there, and how many came */
};

struct stream_stats {
    uint64_t bytes; /* that came from the files */
    double busy_s;  /* time with at least one piece on its way */
    bool is_direct; /* all files */
};

struct stream;

int stream_open(struct stream **stream, const struct stream_options *options, struct mo_error *error);
/* Waits for pieces on their way; what is queued is forgotten. Accepts NULL. */
void stream_close(struct stream *stream);

/* Bytes of memory that a part takes: whole blocks. */
size_t stream_span(int64_t offset, size_t bytes);
/* Where a part's bytes begin in the memory of its read: as far from a block's start as in the file. */
uint8_t *stream_part_data(const struct stream_part *part, uint8_t *to);

void stream_begin(struct stream *stream, struct stream_read *read, enum stream_need need);
/* A predicted read is needed now. */
void stream_hurry(struct stream *stream, struct stream_read *read);
/* Nobody wants it any more: pieces that were not begun are left out. It is done when the others have come, and what it brought is
 * good for nothing, unless that is everything. */
void stream_drop(struct stream *stream, struct stream_read *read);
bool stream_is_done(struct stream *stream, const struct stream_read *read);
/* Sleeps until it is done. MO_E_IO says what failed; MO_E_CANCELLED: it was dropped before it was complete. */
int stream_wait(struct stream *stream, const struct stream_read *read, struct mo_error *error);

/* Any thread. */
void stream_stats_get(struct stream *stream, struct stream_stats *stats);

#endif
