#include "cache/disk_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>
#include "base/log.h"

enum { BLOCK_BYTES = 4096, NS = 1000000000, NAMES_TRIED = 100 };

static const char NEW_PREFIX[] = "new-", NEW_SUFFIX[] = ".tmp";
/* Left free: a twentieth of the file system, but never more than this. */
static const double KEEP_FREE_SHARE = 0.05, KEEP_FREE_BYTES = 8.0 * (1 << 30);

uint64_t disk_file_bytes(uint64_t bytes) {
    return (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
}

static int fail(struct mo_error *error, const struct disk_folder *folder, const char *name, const char *what) {
    int reason = errno;
    return mo_error_set(error, reason == ENOENT ? MO_E_NOT_FOUND : MO_E_IO, "%s%s%s: %s: %s", folder->path,
                        *name ? "/" : "", name, what, strerror(reason));
}

/* As mkdir -p does. */
static int make_folders(char *path) {
    for (char *at = path + 1; *at; at++) {
        if (*at != '/') continue;
        *at = 0;
        int result = mkdir(path, 0700);
        *at = '/';
        if (result && errno != EEXIST) return -1;
    }
    return mkdir(path, 0700) && errno != EEXIST ? -1 : 0;
}

/* A name that nobody else writes to, and a lock that says that its writer lives. */
static int create_new(struct disk_folder *folder, char name[PAGE_NAME_MAX]) {
    int fd = -1;
    for (int i = 0; i < NAMES_TRIED && (i == 0 || (fd < 0 && errno == EEXIST)); i++) {
        snprintf(name, PAGE_NAME_MAX, "%s%ld-%u%s", NEW_PREFIX, (long)getpid(), folder->n_written++, NEW_SUFFIX);
        fd = openat(folder->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    }
    if (fd >= 0) flock(fd, LOCK_EX | LOCK_NB);
    return fd;
}

static int try_writing(struct disk_folder *folder, struct mo_error *error) {
    char name[PAGE_NAME_MAX];
    int fd = create_new(folder, name);
    if (fd < 0) return fail(error, folder, "", "no file can be made in it");
    close(fd);
    unlinkat(folder->fd, name, 0);
    return 0;
}

int disk_folder_open(struct disk_folder *folder, const char *path, struct mo_error *error) {
    *folder = (struct disk_folder){.fd = -1};
    if (!*path || strlen(path) >= sizeof folder->path - PAGE_NAME_MAX) {
        return mo_error_set(error, MO_E_INVALID, "\"%.64s\" is no path of a folder", path);
    }
    strcpy(folder->path, path);
    if (make_folders(folder->path)) return fail(error, folder, "", "the folder cannot be made");
    folder->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->fd < 0) return fail(error, folder, "", "the folder cannot be opened");
    struct stat status;
    if (fstat(folder->fd, &status) == 0 && (status.st_mode & (S_IWGRP | S_IWOTH))) {
        log_warn("%s: others may write to this folder, and so into the answers of this server", path);
    }
    int code = try_writing(folder, error);
    if (code) disk_folder_close(folder);
    return code;
}

void disk_folder_close(struct disk_folder *folder) {
    if (folder->fd >= 0) close(folder->fd);
    folder->fd = -1;
}

static DIR *open_listing(const struct disk_folder *folder) {
    int fd = openat(folder->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = fd >= 0 ? fdopendir(fd) : NULL;
    if (!listing && fd >= 0) close(fd);
    return listing;
}

static bool is_new(const char *name) {
    size_t size = strlen(name), suffix = strlen(NEW_SUFFIX);
    return size > suffix && strncmp(name, NEW_PREFIX, strlen(NEW_PREFIX)) == 0 &&
           strcmp(name + size - suffix, NEW_SUFFIX) == 0;
}

/* Its writer has died if the lock can be had. A writer that has made the file and has no lock yet loses a page, no more. */
static bool remove_new(const struct disk_folder *folder, const char *name) {
    int fd =
        openat(folder->fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); /* NFS locks only what may be written */
    bool dead = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (dead) unlinkat(folder->fd, name, 0);
    if (fd >= 0) close(fd);
    return dead;
}

int disk_folder_clean(const struct disk_folder *folder) {
    DIR *listing = open_listing(folder);
    int n = 0;
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        if (is_new(entry->d_name)) n += remove_new(folder, entry->d_name);
    }
    if (listing) closedir(listing);
    return n;
}

/* Anybody may set a file's time to any year. */
static int64_t ns_of(const struct timespec *time) {
    if (time->tv_sec < 0) return 0;
    return time->tv_sec < INT64_MAX / NS ? (int64_t)time->tv_sec * NS + time->tv_nsec : INT64_MAX;
}

int disk_folder_list(const struct disk_folder *folder, disk_file_found *found, void *context, struct mo_error *error) {
    DIR *listing = open_listing(folder);
    if (!listing) return fail(error, folder, "", "the folder cannot be read");
    errno = 0;
    for (struct dirent *entry; (entry = readdir(listing)); errno = 0) {
        struct disk_file file;
        struct stat status;
        if (!page_name_read(entry->d_name, &file.address, &file.depth)) continue;
        if (fstatat(folder->fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) || !S_ISREG(status.st_mode)) continue;
        file.bytes = disk_file_bytes((uint64_t)status.st_size);
        file.used_ns = ns_of(&status.st_mtim);
        found(context, &file);
    }
    int code = errno ? fail(error, folder, "", "the folder cannot be read") : 0;
    closedir(listing);
    return code;
}

/* All of it, or -1 with errno. */
static int write_all(int fd, const uint8_t *header, const void *payload, size_t bytes) {
    for (size_t done = 0; done < PAGE_HEADER_BYTES + bytes;) {
        struct iovec parts[2] = {{(void *)(uintptr_t)header, PAGE_HEADER_BYTES}, {(void *)(uintptr_t)payload, bytes}};
        bool in_payload = done >= PAGE_HEADER_BYTES;
        struct iovec *first = &parts[in_payload];
        size_t skipped = in_payload ? done - PAGE_HEADER_BYTES : done;
        first->iov_base = (char *)first->iov_base + skipped;
        first->iov_len -= skipped;
        ssize_t n = writev(fd, first, in_payload ? 1 : 2);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO; /* else this would be for ever */
        if (n <= 0) return -1;
        done += (size_t)n;
    }
    return 0;
}

/* Synced before it gets its name, so that a power failure leaves no name without bytes; what one leaves in spite of that, the
 * checksum finds. */
int disk_folder_write(struct disk_folder *folder, const char *name, const uint8_t header[PAGE_HEADER_BYTES],
                      const void *payload, size_t bytes, struct mo_error *error) {
    char beside[PAGE_NAME_MAX];
    int fd = create_new(folder, beside);
    if (fd < 0) {
        fail(error, folder, beside, "cannot be made");
        return MO_E_IO; /* also when the folder is gone */
    }
    int failed = write_all(fd, header, payload, bytes);
    if (!failed && !folder->no_sync) failed = fdatasync(fd);
    if (!failed) failed = renameat(folder->fd, beside, folder->fd, name);
    int code = failed ? fail(error, folder, name, "cannot be written") : 0;
    if (failed) unlinkat(folder->fd, beside, 0);
    close(fd);
    return code;
}

/* Bytes that came, up to the end of the file; or -1 with errno. */
static ssize_t read_all(int fd, uint8_t *header, void *payload, size_t bytes) {
    size_t done = 0;
    while (done < PAGE_HEADER_BYTES + bytes) {
        struct iovec parts[2] = {{header, PAGE_HEADER_BYTES}, {payload, bytes}};
        bool in_payload = done >= PAGE_HEADER_BYTES;
        struct iovec *first = &parts[in_payload];
        size_t skipped = in_payload ? done - PAGE_HEADER_BYTES : done;
        first->iov_base = (char *)first->iov_base + skipped;
        first->iov_len -= skipped;
        ssize_t n = readv(fd, first, in_payload ? 1 : 2);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int disk_folder_read(const struct disk_folder *folder, const char *name, uint8_t header[PAGE_HEADER_BYTES],
                     void *payload, size_t bytes, struct mo_error *error) {
    struct stat status;
    int fd = openat(folder->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return fail(error, folder, name, "cannot be opened");
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    ssize_t got = fstat(fd, &status) ? -1 : read_all(fd, header, payload, bytes);
    int code = 0;
    if (got < 0) {
        code = fail(error, folder, name, "cannot be read");
    } else if ((size_t)got != PAGE_HEADER_BYTES + bytes || status.st_size != got) {
        code = mo_error_set(error, MO_E_CORRUPT, "%s/%s: it has %lld bytes, expected %zu", folder->path, name,
                            (long long)status.st_size, PAGE_HEADER_BYTES + bytes);
    }
    close(fd);
    return code;
}

void disk_folder_remove(const struct disk_folder *folder, const char *name) {
    unlinkat(folder->fd, name, 0);
}

void disk_folder_stamp(const struct disk_folder *folder, const char *name, int64_t used_ns) {
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = used_ns / NS, .tv_nsec = used_ns % NS}};
    utimensat(folder->fd, name, times, AT_SYMLINK_NOFOLLOW);
}

double disk_folder_room(const struct disk_folder *folder) {
    struct statvfs status;
    if (fstatvfs(folder->fd, &status) || status.f_blocks == 0) return HUGE_VAL; /* writing will tell */
    double block = (double)status.f_frsize, keep = KEEP_FREE_SHARE * block * (double)status.f_blocks;
    return block * (double)status.f_bavail - (keep < KEEP_FREE_BYTES ? keep : KEEP_FREE_BYTES);
}
