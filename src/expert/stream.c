#include "expert/stream.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"

/* Reads with pieces that nobody has begun, oldest first. */
struct queue {
    struct stream_read *first, *last;
};

struct file {
    char *path;
    int fd;
    atomic_bool is_direct;
};

struct stream {
    struct file *files; /* [n_files] */
    int n_files;
    stream_pread *pread;

    pthread_t *threads; /* [n_threads] */
    int n_threads;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    struct queue queues[STREAM_NEEDS];
    bool stop;
    int n_active; /* pieces on their way */
    double active_since_s, busy_s;
    uint64_t bytes;
};

/* One piece: [begin, end) of a file, of which the bytes up to `needed` must come (the rest is past the part's end). */
struct piece {
    struct stream_read *read;
    int file;
    int64_t begin, end, needed;
    uint8_t *to;
};

static int64_t block_down(int64_t n) {
    return n / STREAM_ALIGN * STREAM_ALIGN;
}

static int64_t block_up(int64_t n) {
    return block_down(n + STREAM_ALIGN - 1);
}

size_t stream_span(int64_t offset, size_t bytes) {
    return (size_t)(block_up(offset + (int64_t)bytes) - block_down(offset));
}

uint8_t *stream_part_data(const struct stream_part *part, uint8_t *to) {
    return to + part->at + part->offset % STREAM_ALIGN;
}

static int count_pieces(const struct stream_part *part) {
    return (int)((stream_span(part->offset, part->bytes) + STREAM_PIECE - 1) / STREAM_PIECE);
}

/* ---- queues, under the lock ---- */

static void enqueue(struct stream *stream, struct stream_read *read) {
    struct queue *queue = &stream->queues[read->need];
    read->next = NULL;
    read->is_queued = true;
    if (queue->last) {
        queue->last->next = read;
    } else {
        queue->first = read;
    }
    queue->last = read;
}

static void dequeue(struct stream *stream, struct stream_read *read) {
    struct queue *queue = &stream->queues[read->need];
    struct stream_read *before = NULL, *at = queue->first;
    if (!read->is_queued) return;
    for (; at != read; at = at->next) before = at;
    if (before) {
        before->next = read->next;
    } else {
        queue->first = read->next;
    }
    if (queue->last == read) queue->last = before;
    read->is_queued = false;
}

static struct stream_read *next_read(const struct stream *stream) {
    for (int need = 0; need < STREAM_NEEDS; need++) {
        if (stream->queues[need].first) return stream->queues[need].first;
    }
    return NULL;
}

static struct piece take_piece(struct stream *stream, struct stream_read *read) {
    const struct stream_part *part = read->parts;
    int index = read->begun;
    while (index >= count_pieces(part)) index -= count_pieces(part++);
    int64_t first = block_down(part->offset), end = part->offset + (int64_t)part->bytes;
    struct piece piece = {.read = read, .file = part->file, .begin = first + (int64_t)index * STREAM_PIECE};
    piece.end = piece.begin + STREAM_PIECE < block_up(end) ? piece.begin + STREAM_PIECE : block_up(end);
    piece.needed = piece.end < end ? piece.end : end;
    piece.to = read->to + part->at + (piece.begin - first);
    if (++read->begun == read->n_pieces) dequeue(stream, read);
    return piece;
}

static bool is_done(const struct stream_read *read) {
    return read->ended == read->n_pieces;
}

/* What was not begun will not be. */
static void cut_down(struct stream *stream, struct stream_read *read) {
    dequeue(stream, read);
    read->n_pieces = read->begun;
}

/* ---- reading ---- */

/* Bytes that came, up to the end of the file; or -1 with errno. Direct reads go on at blocks only, and a part of one is the
 * end of the file. */
static ssize_t read_all(const struct stream *stream, const struct piece *piece, bool is_direct) {
    size_t size = (size_t)(piece->end - piece->begin), n = 0;
    while (n < size) {
        ssize_t got = stream->pread(stream->files[piece->file].fd, piece->to + n, size - n, piece->begin + (int64_t)n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        n += (size_t)got;
        if (got == 0 || (is_direct && n % STREAM_ALIGN)) break;
    }
    return (ssize_t)n;
}

/* From now on through the page cache. Several threads may find out at once; who sees is_direct false reads without it. */
static void end_direct(struct file *file) {
    int flags = fcntl(file->fd, F_GETFL);
    if (flags >= 0) fcntl(file->fd, F_SETFL, flags & ~O_DIRECT);
    atomic_store(&file->is_direct, false);
}

/* A file system may take O_DIRECT at open and refuse it at the first read. */
static ssize_t read_piece(struct stream *stream, const struct piece *piece) {
    struct file *file = &stream->files[piece->file];
    if (atomic_load(&file->is_direct)) {
        ssize_t got = read_all(stream, piece, true);
        if (got >= 0 || errno != EINVAL) return got;
        end_direct(file);
    }
    ssize_t got = read_all(stream, piece, false);
    int reason = errno;
    posix_fadvise(file->fd, piece->begin, piece->end - piece->begin, POSIX_FADV_DONTNEED);
    errno = reason;
    return got;
}

static void note_begin(struct stream *stream) {
    if (stream->n_active++ == 0) stream->active_since_s = clock_now_s();
}

static void note_end(struct stream *stream, const struct piece *piece, ssize_t got, int reason) {
    struct stream_read *read = piece->read;
    if (--stream->n_active == 0) stream->busy_s += clock_now_s() - stream->active_since_s;
    if (got > 0) stream->bytes += (uint64_t)got;
    read->ended++;
    if ((got < 0 || piece->begin + got < piece->needed) && !read->reason) {
        read->reason = got < 0 ? reason : -1;
        read->failed_file = piece->file;
        read->failed_at = piece->begin;
        read->wanted = (size_t)(piece->needed - piece->begin);
        read->got = got < 0 ? 0 : (size_t)got;
        cut_down(stream, read);
    }
    if (is_done(read)) pthread_cond_broadcast(&stream->done);
}

static void *reader_main(void *argument) {
    struct stream *stream = argument;
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        struct stream_read *read;
        while (!(read = next_read(stream)) && !stream->stop) pthread_cond_wait(&stream->work, &stream->lock);
        if (stream->stop) break;
        struct piece piece = take_piece(stream, read);
        note_begin(stream);
        pthread_mutex_unlock(&stream->lock);
        ssize_t got = read_piece(stream, &piece);
        int reason = errno;
        pthread_mutex_lock(&stream->lock);
        note_end(stream, &piece, got, reason);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

/* ---- for the owner ---- */

void stream_begin(struct stream *stream, struct stream_read *read, enum stream_need need) {
    assert(read->n_parts > 0 && (uintptr_t)read->to % STREAM_ALIGN == 0);
    read->n_pieces = 0;
    for (int i = 0; i < read->n_parts; i++) {
        const struct stream_part *part = &read->parts[i];
        assert(part->file < stream->n_files && part->bytes > 0 && part->at % STREAM_ALIGN == 0);
        read->n_pieces += count_pieces(part);
    }
    read->begun = read->ended = read->reason = 0;
    read->is_dropped = false;
    read->need = need;
    pthread_mutex_lock(&stream->lock);
    enqueue(stream, read);
    pthread_cond_broadcast(&stream->work);
    pthread_mutex_unlock(&stream->lock);
}

void stream_hurry(struct stream *stream, struct stream_read *read) {
    pthread_mutex_lock(&stream->lock);
    if (read->is_queued && read->need != STREAM_NOW) {
        dequeue(stream, read);
        read->need = STREAM_NOW;
        enqueue(stream, read);
    }
    pthread_mutex_unlock(&stream->lock);
}

void stream_drop(struct stream *stream, struct stream_read *read) {
    pthread_mutex_lock(&stream->lock);
    if (read->is_queued) {
        read->is_dropped = true;
        cut_down(stream, read);
    }
    pthread_mutex_unlock(&stream->lock);
}

bool stream_is_done(struct stream *stream, const struct stream_read *read) {
    pthread_mutex_lock(&stream->lock);
    bool done = is_done(read);
    pthread_mutex_unlock(&stream->lock);
    return done;
}

static int explain(const struct stream *stream, const struct stream_read *read, struct mo_error *error) {
    if (!read->reason && read->is_dropped) return mo_error_set(error, MO_E_CANCELLED, "the read was given up");
    if (!read->reason) return 0;
    const char *path = stream->files[read->failed_file].path;
    if (read->reason > 0) {
        return mo_error_set(error, MO_E_IO, "%s: layer %d, expert %d: cannot read %zu bytes at offset %lld: %s", path,
                            read->layer, read->expert, read->wanted, (long long)read->failed_at,
                            strerror(read->reason));
    }
    return mo_error_set(error, MO_E_IO,
                        "%s: layer %d, expert %d: expected %zu bytes at offset %lld, found %zu (the file was cut short "
                        "while it was in use)",
                        path, read->layer, read->expert, read->wanted, (long long)read->failed_at, read->got);
}

int stream_wait(struct stream *stream, const struct stream_read *read, struct mo_error *error) {
    pthread_mutex_lock(&stream->lock);
    while (!is_done(read)) pthread_cond_wait(&stream->done, &stream->lock);
    int code = explain(stream, read, error);
    pthread_mutex_unlock(&stream->lock);
    return code;
}

void stream_stats_get(struct stream *stream, struct stream_stats *stats) {
    pthread_mutex_lock(&stream->lock);
    double now = stream->n_active ? clock_now_s() - stream->active_since_s : 0;
    *stats = (struct stream_stats){stream->bytes, stream->busy_s + now, true};
    pthread_mutex_unlock(&stream->lock);
    for (int i = 0; i < stream->n_files; i++) {
        stats->is_direct = stats->is_direct && atomic_load(&stream->files[i].is_direct);
    }
}

static int open_file(struct file *file, const char *path, struct mo_error *error) {
    file->path = strdup(path);
    if (!file->path) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for reading %s", path);
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    atomic_store(&file->is_direct, file->fd >= 0);
    if (file->fd < 0) file->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (file->fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot open: %s", path, strerror(errno));
    return 0;
}

static int open_files(struct stream *stream, const struct stream_options *options, struct mo_error *error) {
    stream->files = calloc((size_t)options->n_paths, sizeof *stream->files);
    if (!stream->files) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d files", options->n_paths);
    stream->n_files = options->n_paths;
    for (int i = 0; i < stream->n_files; i++) stream->files[i].fd = -1;
    for (int i = 0; i < stream->n_files; i++) {
        int code = open_file(&stream->files[i], options->paths[i], error);
        if (code) return code;
    }
    return 0;
}

static void close_files(struct stream *stream) {
    for (int i = 0; i < stream->n_files; i++) {
        if (stream->files[i].fd >= 0) close(stream->files[i].fd);
        free(stream->files[i].path);
    }
    free(stream->files);
}

static int start_threads(struct stream *stream, int n, struct mo_error *error) {
    stream->threads = calloc((size_t)n, sizeof *stream->threads);
    if (!stream->threads) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d reading threads", n);
    for (int i = 0; i < n; i++) {
        int reason = pthread_create(&stream->threads[i], NULL, reader_main, stream);
        if (reason) {
            return mo_error_set(error, MO_E_NO_MEMORY, "cannot start reading thread %d of %d: %s", i + 1, n,
                                strerror(reason));
        }
        stream->n_threads++;
    }
    return 0;
}

int stream_open(struct stream **out, const struct stream_options *options, struct mo_error *error) {
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for reading %s", options->paths[0]);
    stream->pread = options->pread ? options->pread : pread;
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->work, NULL);
    pthread_cond_init(&stream->done, NULL);
    int code = open_files(stream, options, error);
    if (!code) code = start_threads(stream, options->threads ? options->threads : STREAM_THREADS, error);
    if (code) {
        stream_close(stream);
        return code;
    }
    *out = stream;
    return 0;
}

void stream_close(struct stream *stream) {
    if (!stream) return;
    pthread_mutex_lock(&stream->lock);
    stream->stop = true;
    pthread_cond_broadcast(&stream->work);
    pthread_mutex_unlock(&stream->lock);
    for (int i = 0; i < stream->n_threads; i++) pthread_join(stream->threads[i], NULL);
    pthread_cond_destroy(&stream->work);
    pthread_cond_destroy(&stream->done);
    pthread_mutex_destroy(&stream->lock);
    close_files(stream);
    free(stream->threads);
    free(stream);
}
