#include "model/pack.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>
#include "base/file.h"
#include "base/json.h"
#include "model/pack_priv.h"

static const char *const PARTIAL = ".partial";

/* One tensor to come. */
struct entry {
    int64_t offset, bytes; /* within the data */
    bool is_pad;
};

struct pack {
    char target[4200], partial[4200];
    int fd; /* -1 before pack_begin */
    json_t *header, *metadata;
    struct entry *entries; /* [n_entries], with the pads */
    int n_entries, capacity, n_pads;
    char *checksums;    /* [16 * n_entries + 1] hex digits */
    int64_t data_bytes; /* of all entries so far */
    int64_t header_bytes;

    int current;     /* the entry being written */
    int64_t written; /* of it */
    XXH3_state_t *hash;
};

/* The file that a signal must remove; one pack is written at a time. */
static char g_partial[4200];
enum { IDLE, OPENING, WRITING };
static atomic_int g_phase;

static void on_signal(int number) {
    while (atomic_load(&g_phase) == OPENING) poll(NULL, 0, 1); /* by another thread: it takes no signals meanwhile */
    if (atomic_load(&g_phase) == WRITING) unlink(g_partial);
    signal(number, SIG_DFL);
    raise(number);
}

static const int ends[] = {SIGINT, SIGTERM, SIGHUP};

static void watch_signals(const char *partial) {
    assert(atomic_load(&g_phase) == IDLE);
    snprintf(g_partial, sizeof g_partial, "%s", partial);
    atomic_store(&g_phase, OPENING);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (signal(ends[i], on_signal) == SIG_IGN) signal(ends[i], SIG_IGN); /* nohup: who started us wants it so */
    }
}

static int no_memory(const struct pack *pack, struct mo_error *error) {
    return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for its header", pack->target);
}

/* A link's file is replaced, not the link. */
static int settle_path(struct pack *pack, const char *path, struct mo_error *error) {
    struct stat info;
    if (!*path) return mo_error_set(error, MO_E_INVALID, "expected the name of a file to be written, found \"\"");
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) {
        return mo_error_set(error, MO_E_INVALID, "%s: expected a file to be written, found %s", path,
                            S_ISDIR(info.st_mode) ? "a folder" : "something else");
    }
    int code = file_check_unmapped(path, error);
    if (code) return code;
    char *real = realpath(path, NULL); /* NULL if there is none yet */
    int n = snprintf(pack->target, sizeof pack->target - strlen(PARTIAL), "%s", real ? real : path);
    free(real);
    if (n < 0 || (size_t)n >= sizeof pack->target - strlen(PARTIAL)) {
        return mo_error_set(error, MO_E_INVALID, "%.200s...: path too long", path);
    }
    memcpy(pack->partial, pack->target, (size_t)n);
    memcpy(pack->partial + n, PARTIAL, strlen(PARTIAL) + 1);
    return file_check_unmapped(pack->partial, error); /* it is begun anew, whatever it holds */
}

int pack_create(struct pack **out, const char *path, struct mo_error *error) {
    struct pack *pack = calloc(1, sizeof *pack);
    if (!pack) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
    pack->fd = -1;
    int code = settle_path(pack, path, error);
    pack->header = json_object();
    pack->metadata = json_object();
    pack->hash = XXH3_createState();
    if (!code && (!pack->hash || json_object_set(pack->header, "__metadata__", pack->metadata))) {
        code = no_memory(pack, error);
    }
    if (!code) code = pack_set(pack, PACK_KEY_FORMAT, PACK_FORMAT, error);
    if (code) {
        pack_close(pack);
        return code;
    }
    *out = pack;
    return 0;
}

int pack_set(struct pack *pack, const char *key, const char *value, struct mo_error *error) {
    if (json_object_set_new(pack->metadata, key, json_string(value)) == 0) return 0;
    return mo_error_set(error, MO_E_INVALID, "%s: cannot store %s: it is not UTF-8 text", pack->target, key);
}

static int add_entry(struct pack *pack, const char *name, enum dtype dtype, json_t *shape, int64_t bytes, bool is_pad,
                     struct mo_error *error) {
    if (pack->n_entries == pack->capacity) {
        int capacity = pack->capacity ? 2 * pack->capacity : 256;
        struct entry *grown = realloc(pack->entries, (size_t)capacity * sizeof *grown);
        if (!grown) {
            json_decref(shape);
            return no_memory(pack, error);
        }
        pack->entries = grown;
        pack->capacity = capacity;
    }
    json_t *entry = json_pack("{ss so s[II]}", "dtype", dtype_name(dtype), "shape", shape, "data_offsets",
                              (json_int_t)pack->data_bytes, (json_int_t)(pack->data_bytes + bytes));
    if (!entry || json_object_get(pack->header, name) || json_object_set_new(pack->header, name, entry)) {
        return mo_error_set(error, MO_E_INTERNAL, "%s: cannot store tensor %s", pack->target, name);
    }
    pack->entries[pack->n_entries++] = (struct entry){pack->data_bytes, bytes, is_pad};
    pack->data_bytes += bytes;
    return 0;
}

static int add_pad(struct pack *pack, struct mo_error *error) {
    int64_t bytes = (PACK_ALIGN - pack->data_bytes % PACK_ALIGN) % PACK_ALIGN;
    char name[40];
    if (!bytes) return 0;
    snprintf(name, sizeof name, PACK_PAD_PREFIX "%d", pack->n_pads++);
    return add_entry(pack, name, DTYPE_U8, json_pack("[I]", (json_int_t)bytes), bytes, true, error);
}

int pack_add(struct pack *pack, const char *name, enum dtype dtype, const int64_t *shape, int n_dims,
             struct mo_error *error) {
    assert(pack->fd < 0);
    int64_t bytes = (int64_t)dtype_bytes(dtype);
    json_t *dims = json_array();
    for (int i = 0; i < n_dims; i++) {
        bytes *= shape[i];
        json_array_append_new(dims, json_integer(shape[i]));
    }
    assert(bytes > 0);
    int code = add_pad(pack, error);
    if (code) {
        json_decref(dims);
        return code;
    }
    return add_entry(pack, name, dtype, dims, bytes, false, error);
}

/* ---- the header ---- */

/* The header's bytes, 8 of length and the JSON padded with blanks: *text is malloc'd. The checksum is still 0. */
static int dump_header(struct pack *pack, char **text, int64_t *size, struct mo_error *error) {
    int code = pack_set(pack, PACK_KEY_CHECKSUMS, pack->checksums, error);
    if (!code) code = pack_set(pack, PACK_KEY_CHECKSUM, PACK_NO_CHECKSUM, error);
    if (code) return code;
    char *json = json_dumps(pack->header, JSON_COMPACT);
    if (!json) return no_memory(pack, error);
    size_t n = strlen(json), whole = (n + 8 + PACK_ALIGN - 1) / PACK_ALIGN * PACK_ALIGN;
    *text = malloc(whole);
    if (*text) {
        for (int i = 0; i < 8; i++) (*text)[i] = (char)((whole - 8) >> 8 * i & 255);
        memcpy(*text + 8, json, n);
        memset(*text + 8 + n, ' ', whole - 8 - n);
        *size = (int64_t)whole;
    }
    free(json);
    return *text ? 0 : no_memory(pack, error);
}

/* ---- the file ---- */

int64_t pack_file_bytes(const struct pack *pack) {
    return pack->header_bytes + pack->data_bytes;
}

static int write_failed(const struct pack *pack, int reason, struct mo_error *error) {
    const char *hint = reason == ENOSPC  ? " (the disk is full)"
                       : reason == EFBIG ? " (a limit on the size of files)"
                                         : "";
    return mo_error_set(error, MO_E_IO, "%s: cannot write %.3f GB: %s%s", pack->target,
                        (double)pack_file_bytes(pack) * 1e-9, strerror(reason), hint);
}

static int write_at(struct pack *pack, const void *data, size_t size, int64_t at, struct mo_error *error) {
    const char *bytes = data;
    while (size) {
        ssize_t put = pwrite(pack->fd, bytes, size < 1 << 30 ? size : 1 << 30, at);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return write_failed(pack, put ? errno : EIO, error);
        bytes += put;
        at += put;
        size -= (size_t)put;
    }
    return 0;
}

/* Another process may have removed or renamed the file between our open and our lock. */
static bool is_still_there(const struct pack *pack, int fd) {
    struct stat here, there;
    return fstat(fd, &here) == 0 && stat(pack->partial, &there) == 0 && here.st_ino == there.st_ino;
}

static int open_partial(struct pack *pack, struct mo_error *error) {
    for (int attempt = 0; attempt < 100; attempt++) {
        int fd = open(pack->partial, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot create: %s", pack->partial, strerror(errno));
        if (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
            close(fd);
            return mo_error_set(error, MO_E_IO, "%s is being written by another process", pack->target);
        }
        if (is_still_there(pack, fd)) {
            pack->fd = fd;
            return 0;
        }
        close(fd);
    }
    return mo_error_set(error, MO_E_IO, "%s: cannot lock it", pack->partial);
}

/* A signal waits, whichever thread takes it, until there is a file to be removed. */
static int open_watched(struct pack *pack, struct mo_error *error) {
    sigset_t later, before;
    sigemptyset(&later);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) sigaddset(&later, ends[i]);
    pthread_sigmask(SIG_BLOCK, &later, &before);
    watch_signals(pack->partial);
    int code = open_partial(pack, error);
    atomic_store(&g_phase, code ? IDLE : WRITING);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

/* Says at once what would fail after minutes; file systems that cannot reserve find out while writing. */
static int reserve(struct pack *pack, struct mo_error *error) {
    struct statvfs disk;
    int64_t bytes = pack_file_bytes(pack);
    if (ftruncate(pack->fd, 0)) return write_failed(pack, errno, error); /* what an interrupted run may have left */
    if (fstatvfs(pack->fd, &disk) == 0 && (double)disk.f_bavail * (double)disk.f_frsize < (double)bytes) {
        return mo_error_set(error, MO_E_IO, "%s: the disk is full: %.3f GB are needed, %.3f GB are free", pack->target,
                            (double)bytes * 1e-9, (double)disk.f_bavail * (double)disk.f_frsize * 1e-9);
    }
    if (fallocate(pack->fd, 0, 0, bytes) && (errno == ENOSPC || errno == EFBIG || errno == EDQUOT)) {
        return write_failed(pack, errno, error);
    }
    return 0;
}

static void start_entry(struct pack *pack) {
    pack->written = 0;
    XXH3_64bits_reset(pack->hash);
}

int pack_begin(struct pack *pack, struct mo_error *error) {
    char *text;
    int code = add_pad(pack, error); /* the end too, so that whole pages can be read */
    if (code) return code;
    pack->checksums = malloc((size_t)pack->n_entries * PACK_CHECKSUM_DIGITS + 1);
    if (!pack->checksums) return no_memory(pack, error);
    memset(pack->checksums, '0', (size_t)pack->n_entries * PACK_CHECKSUM_DIGITS);
    pack->checksums[pack->n_entries * PACK_CHECKSUM_DIGITS] = 0;
    code = dump_header(pack, &text, &pack->header_bytes, error);
    if (code) return code;
    free(text);
    code = open_watched(pack, error);
    if (code) return code;
    start_entry(pack);
    return reserve(pack, error);
}

static void finish_entry(struct pack *pack) {
    char *digits = pack->checksums + pack->current * PACK_CHECKSUM_DIGITS, text[PACK_CHECKSUM_DIGITS + 1];
    pack_checksum_text(XXH3_64bits_digest(pack->hash), text);
    memcpy(digits, text, PACK_CHECKSUM_DIGITS);
    pack->current++;
    start_entry(pack);
}

static int put(struct pack *pack, const void *data, size_t size, struct mo_error *error) {
    const struct entry *entry = &pack->entries[pack->current];
    assert(pack->current < pack->n_entries && (int64_t)size <= entry->bytes - pack->written);
    int code = write_at(pack, data, size, pack->header_bytes + entry->offset + pack->written, error);
    if (code) return code;
    XXH3_64bits_update(pack->hash, data, size);
    pack->written += (int64_t)size;
    if (pack->written == entry->bytes) finish_entry(pack);
    return 0;
}

int pack_write(struct pack *pack, const void *data, size_t size, struct mo_error *error) {
    static const char zeros[PACK_ALIGN];
    int code = put(pack, data, size, error);
    while (!code && pack->current < pack->n_entries && pack->entries[pack->current].is_pad) {
        code = put(pack, zeros, (size_t)pack->entries[pack->current].bytes, error);
    }
    return code;
}

int pack_finish(struct pack *pack, struct mo_error *error) {
    char *text;
    int64_t size;
    assert(pack->current == pack->n_entries && "every tensor was written");
    int code = dump_header(pack, &text, &size, error);
    if (code) return code;
    assert(size == pack->header_bytes);
    pack_sign_header(text, (size_t)size);
    if (fsync(pack->fd)) code = write_failed(pack, errno, error); /* first the data: a header means that all is there */
    if (!code) code = write_at(pack, text, (size_t)size, 0, error);
    free(text);
    if (!code && fsync(pack->fd)) code = write_failed(pack, errno, error);
    if (!code && rename(pack->partial, pack->target)) code = write_failed(pack, errno, error);
    if (code) return code;
    atomic_store(&g_phase, IDLE);
    file_sync_folder(pack->target); /* the new name must survive a power cut too */
    close(pack->fd);
    pack->fd = -1;
    return 0;
}

void pack_close(struct pack *pack) {
    if (!pack) return;
    if (pack->fd >= 0) {
        unlink(pack->partial);
        atomic_store(&g_phase, IDLE);
        close(pack->fd);
    }
    json_decref(pack->header);
    json_decref(pack->metadata);
    XXH3_freeState(pack->hash);
    free(pack->entries);
    free(pack->checksums);
    free(pack);
}
