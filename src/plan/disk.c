/* plan/disk.c - how fast a folder's disk gives large blocks, read as a model's weights would be: directly, several at once. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"
#include "plan/detect.h"

enum { READERS = 8, BLOCK = 4 << 20, ALIGN = 4096 };
static const double MOST_SECONDS = 1.0, MOST_WRITING_S = 0.7;
static const int64_t LEAST_BYTES = 64 << 20, OWN_BYTES = 256 << 20, MOST_BYTES = 4ll << 30;

struct reading {
    int file;
    int64_t blocks;
    atomic_llong next, bytes;
    atomic_int failed; /* errno of a read that failed */
    double until_s;
};

static void *read_blocks(void *context) {
    struct reading *r = context;
    void *buffer = NULL;
    if (posix_memalign(&buffer, ALIGN, BLOCK)) return NULL;
    while (clock_now_s() < r->until_s) {
        int64_t block = atomic_fetch_add(&r->next, 1);
        if (block >= r->blocks) break;
        ssize_t n = pread(r->file, buffer, BLOCK, block * BLOCK);
        if (n < 0) atomic_store(&r->failed, errno);
        if (n <= 0) break;
        atomic_fetch_add(&r->bytes, n);
    }
    free(buffer);
    return NULL;
}

static int time_reading(int file, int64_t size, struct plan_disk *disk) {
    struct reading r = {.file = file, .blocks = (size < MOST_BYTES ? size : MOST_BYTES) / BLOCK};
    pthread_t threads[READERS];
    int n = 0;
    double start = clock_now_s();
    r.until_s = start + MOST_SECONDS;
    while (n < READERS && !pthread_create(&threads[n], NULL, read_blocks, &r)) n++;
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    disk->seconds = clock_now_s() - start;
    disk->bytes = (double)atomic_load(&r.bytes);
    disk->gb_s = disk->bytes / disk->seconds * 1e-9;
    return atomic_load(&r.failed);
}

/* The largest file of the folder; its size, or 0. */
static int64_t find_largest(const char *folder, char *path, size_t path_size) {
    DIR *dir = opendir(folder);
    int64_t largest = 0;
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        char name[4400];
        struct stat info;
        snprintf(name, sizeof name, "%.4000s/%s", folder, entry->d_name);
        if (stat(name, &info) || !S_ISREG(info.st_mode) || info.st_size <= largest) continue;
        largest = info.st_size;
        snprintf(path, path_size, "%s", name);
    }
    if (dir) closedir(dir);
    return largest;
}

/* Direct reads where the file system allows them; else what is in the page cache is asked to leave it. */
static bool make_direct(int file) {
    int flags = fcntl(file, F_GETFL);
    if (flags >= 0 && !fcntl(file, F_SETFL, flags | O_DIRECT)) return true;
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    return false;
}

/* Fills a file of our own, as far as the time goes; past the page cache where that is allowed, so that there is nothing to
 * flush later. */
static int64_t fill_own(int file) {
    void *block = NULL;
    int64_t size = 0;
    if (posix_memalign(&block, ALIGN, BLOCK)) return 0;
    memset(block, 0x5a, BLOCK);
    make_direct(file);
    double until = clock_now_s() + MOST_WRITING_S;
    while (size < OWN_BYTES && clock_now_s() < until && write(file, block, BLOCK) == BLOCK) size += BLOCK;
    fdatasync(file);
    free(block);
    return size;
}

static int make_own(const char *folder, int *file, int64_t *size, struct mo_error *error) {
    char path[4400];
    snprintf(path, sizeof path, "%.4000s/moebius-disk-XXXXXX", folder);
    *file = mkstemp(path);
    if (*file < 0) {
        return mo_error_set(error, MO_E_IO, "%s: has no file of 64 MiB to read, and none can be made: %s", folder,
                            strerror(errno));
    }
    unlink(path); /* nothing is left behind, whatever happens */
    *size = fill_own(*file);
    if (*size >= BLOCK) return 0;
    close(*file);
    return mo_error_set(error, MO_E_IO, "%s: cannot write a file to read from it", folder);
}

static int measure(int file, int64_t size, const char *folder, struct plan_disk *disk, struct mo_error *error) {
    disk->direct = make_direct(file);
    int failed = time_reading(file, size, disk);
    if (failed == EINVAL && disk->direct) { /* some file systems take the flag and refuse the read */
        fcntl(file, F_SETFL, fcntl(file, F_GETFL) & ~O_DIRECT);
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        disk->direct = false;
        failed = time_reading(file, size, disk);
    }
    if (failed || disk->bytes <= 0) {
        return mo_error_set(error, MO_E_IO, "%s: cannot be read: %s", folder, strerror(failed ? failed : EIO));
    }
    return 0;
}

int plan_measure_disk(const char *folder, struct plan_disk *disk, struct mo_error *error) {
    char path[4400] = "";
    int file = -1, code = 0;
    *disk = (struct plan_disk){0};
    int64_t size = find_largest(folder, path, sizeof path);
    if (size >= LEAST_BYTES) file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        disk->is_own = true;
        code = make_own(folder, &file, &size, error);
        snprintf(path, sizeof path, "a file made for it");
    }
    if (code) return code;
    snprintf(disk->file, sizeof disk->file, "%.255s", path);
    code = measure(file, size, folder, disk, error);
    close(file);
    return code;
}
