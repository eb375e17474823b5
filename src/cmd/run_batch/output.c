#include "cmd/run_batch/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/file.h"

enum { ANSWER_BYTES_MAX = 1 << 30, COPY_BYTES = 1 << 16, SYNC_S = 5 };

/* --- open and close ------------------------------------------------------------------------------ */

static int open_stream(struct batch_output *o, const char *path, struct mo_error *error) {
    bool is_stdout = !strcmp(path, "-");
    o->is_stream = true;
    snprintf(o->partial, sizeof o->partial, "%s", is_stdout ? "standard output" : path);
    o->fd = is_stdout ? STDOUT_FILENO : open(path, O_WRONLY | O_CLOEXEC);
    if (o->fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot open: %s", path, strerror(errno));
    o->is_open = true;
    return 0;
}

/* Whether nobody else appends to it, as far as its file system can tell; and it is still what has this name: its owner may
 * have given it the last one just now. */
static bool is_alone(const struct batch_output *o, struct stat *info) {
    struct stat named;
    if (flock(o->fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) return false;
    return fstat(o->fd, info) == 0 && stat(o->partial, &named) == 0 && named.st_ino == info->st_ino;
}

static int open_partial(struct batch_output *o, struct mo_error *error) {
    o->fd = open(o->partial, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    if (o->fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot create: %s", o->partial, strerror(errno));
    o->is_open = true;
    struct stat info;
    if (fstat(o->fd, &info) || !S_ISREG(info.st_mode)) {
        return mo_error_set(error, MO_E_IO, "%s: not a regular file", o->partial);
    }
    o->is_ours = is_alone(o, &info);
    o->size = info.st_size;
    return o->is_ours ? 0 : mo_error_set(error, MO_E_IO, "%s: another process works at it", o->partial);
}

int batch_output_open(struct batch_output *o, const char *path, bool overwrites, struct mo_error *error) {
    struct stat info;
    *o = (struct batch_output){.overwrites = overwrites, .synced_s = clock_now_s()};
    bool is_there = stat(path, &info) == 0;
    if (!strcmp(path, "-") || (is_there && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode))) {
        return open_stream(o, path, error);
    }
    if (is_there && S_ISDIR(info.st_mode)) return mo_error_set(error, MO_E_IO, "%s: a folder, no file", path);
    if (is_there && !overwrites) {
        return mo_error_set(error, MO_E_INVALID, "%s is there already: --overwrite replaces it", path);
    }
    if (!is_there && lstat(path, &info) == 0) {
        return mo_error_set(error, MO_E_INVALID, "%s: a link to what cannot be found", path);
    }
    char *target = realpath(path, NULL); /* NULL: there is none yet */
    size_t size = (size_t)snprintf(o->path, sizeof o->path, "%s", target ? target : path);
    free(target);
    if (size >= sizeof o->path) return mo_error_set(error, MO_E_INVALID, "%s: path too long", path);
    snprintf(o->partial, sizeof o->partial, "%s.partial", o->path);
    return open_partial(o, error);
}

void batch_output_close(struct batch_output *o) {
    if (!o->is_open) return;
    o->is_open = false;
    if (o->is_ours && o->size == 0) unlink(o->partial);
    if (o->is_ours && o->is_dirty) fsync(o->fd);
    if (o->fd != STDOUT_FILENO) close(o->fd);
}

/* --- writing ------------------------------------------------------------------------------------- */

static int sync_sometimes(struct batch_output *o, struct mo_error *error) {
    double now_s = clock_now_s();
    o->is_dirty = true;
    if (o->is_stream || now_s - o->synced_s < SYNC_S) return 0;
    if (fsync(o->fd)) return mo_error_set(error, MO_E_IO, "%s: cannot write: %s", o->partial, strerror(errno));
    o->synced_s = clock_now_s();
    o->is_dirty = false;
    return 0;
}

int batch_output_add(struct batch_output *o, struct batch_entry *entry, const char *text, size_t size,
                     struct mo_error *error) {
    if (file_write_all(o->fd, text, size)) {
        int reason = errno;
        if (!o->is_stream && ftruncate(o->fd, o->size)) reason = errno; /* a torn line is cut off later, too */
        return mo_error_set(error, MO_E_IO, "%s: cannot write %zu bytes: %s", o->partial, size, strerror(reason));
    }
    *entry = (struct batch_entry){entry->id, o->size, (int64_t)size};
    o->size += (int64_t)size;
    return sync_sometimes(o, error);
}

/* --- going on ------------------------------------------------------------------------------------ */

/* The entry that an answer's line belongs to, or NULL; whether it is an error. */
static struct batch_entry *find_entry(const struct batch_table *ids, struct batch_input *input, const json_t *root,
                                      bool *is_error) {
    static const char PREFIX[] = "batch_req_";
    const char *id = json_string_value(json_object_get(root, "id"));
    const json_t *response = json_object_get(root, "response");
    json_int_t status = json_integer_value(json_object_get(response, "status_code"));
    struct batch_digest digest;
    *is_error = status != 200;
    if (!id || strncmp(id, PREFIX, strlen(PREFIX)) != 0 || status >= 500) return NULL;
    if (batch_digest_parse(&digest, id + strlen(PREFIX))) return NULL;
    int32_t index = batch_table_find(ids, &digest);
    return index < 0 ? NULL : &input->entries[index];
}

static void keep(const struct batch_table *ids, struct batch_input *input, const struct batch_line *line,
                 struct batch_kept *kept) {
    json_t *root = line->size ? json_loadb(line->text, line->size, JSON_ALLOW_NUL, NULL) : NULL;
    bool is_error = false;
    struct batch_entry *entry = root ? find_entry(ids, input, root, &is_error) : NULL;
    json_decref(root);
    if (!entry || entry->at >= 0) {
        kept->n_strange++;
        return;
    }
    *entry = (struct batch_entry){entry->id, line->at, line->next - line->at};
    kept->n++;
    kept->n_errors += is_error;
}

static int read_partial(struct batch_output *o, const struct batch_table *ids, struct batch_input *input,
                        struct batch_kept *kept, struct mo_error *error) {
    struct batch_lines lines = {.fd = o->fd, .path = o->partial, .max_bytes = ANSWER_BYTES_MAX};
    struct batch_line line;
    int code = batch_lines_rewind(&lines, error), got = 1;
    int64_t size = 0;
    while (!code && (got = batch_lines_next(&lines, &line, error)) == 1) {
        if (!line.has_end) break; /* torn */
        keep(ids, input, &line, kept);
        size = line.next;
    }
    batch_lines_free(&lines);
    if (code || got < 0) return code ? code : got;
    if (size < o->size && ftruncate(o->fd, size)) {
        return mo_error_set(error, MO_E_IO, "%s: cannot cut off its last line: %s", o->partial, strerror(errno));
    }
    o->size = size;
    return 0;
}

int batch_output_resume(struct batch_output *o, struct batch_input *input, struct batch_kept *kept,
                        struct mo_error *error) {
    struct batch_table ids = {0};
    int code = 0;
    *kept = (struct batch_kept){0};
    if (o->is_stream || o->size == 0) return 0;
    for (int i = 0; i < input->n && !code; i++) code = batch_table_add(&ids, &input->entries[i].id, i, error);
    if (!code) code = read_partial(o, &ids, input, kept, error);
    batch_table_free(&ids);
    return code;
}

/* --- the end ------------------------------------------------------------------------------------- */

static bool is_in_order(const struct batch_output *o, const struct batch_input *input) {
    int64_t at = 0;
    for (int i = 0; i < input->n; i++) {
        if (input->entries[i].at != at) return false;
        at += input->entries[i].size;
    }
    return at == o->size;
}

static int copy_line(const struct batch_output *o, const struct batch_entry *entry, FILE *to) {
    static char block[COPY_BYTES];
    for (int64_t done = 0; done < entry->size;) {
        int64_t rest = entry->size - done;
        ssize_t got = pread(o->fd, block, rest < COPY_BYTES ? (size_t)rest : COPY_BYTES, entry->at + done);
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = EIO; /* somebody made it shorter */
        if (got <= 0 || fwrite(block, 1, (size_t)got, to) != (size_t)got) return -1;
        done += got;
    }
    return 0;
}

/* The answers in the order of the requests, in a file beside. */
static int write_ordered(const struct batch_output *o, const struct batch_input *input, const char *path) {
    FILE *to = fopen(path, "we");
    bool failed = !to;
    for (int i = 0; i < input->n && !failed; i++) failed = copy_line(o, &input->entries[i], to) != 0;
    failed = failed || fflush(to) || fsync(fileno(to));
    int reason = errno;
    if (to && fclose(to) && !failed) {
        failed = true;
        reason = errno;
    }
    errno = reason;
    return failed ? -1 : 0;
}

/* What has come by this name meanwhile is not ours to replace; some file systems cannot say. */
static int give_name(const struct batch_output *o, const char *path) {
    if (!o->overwrites) {
        if (renameat2(AT_FDCWD, path, AT_FDCWD, o->path, RENAME_NOREPLACE) == 0) return 0;
        if (errno != EINVAL && errno != ENOSYS) return -1;
    }
    return rename(path, o->path);
}

int batch_output_finish(struct batch_output *o, const struct batch_input *input, struct mo_error *error) {
    char ordered[BATCH_PARTIAL_MAX + 16];
    if (o->is_stream) return 0;
    snprintf(ordered, sizeof ordered, "%s.ordered", o->partial);
    bool is_copied = !is_in_order(o, input);
    int failed = is_copied ? write_ordered(o, input, ordered) : fsync(o->fd);
    if (!failed) failed = give_name(o, is_copied ? ordered : o->partial);
    if (failed) {
        int reason = errno;
        if (is_copied) unlink(ordered);
        return mo_error_set(
            error, MO_E_IO,
            "%s: cannot write: %s; every answer is in %s: the same command again only brings them into order", o->path,
            strerror(reason), o->partial);
    }
    if (is_copied) unlink(o->partial);
    file_sync_folder(o->path);
    batch_output_close(o);
    return 0;
}
