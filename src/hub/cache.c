#include "hub/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "base/file.h"
#include "model/locate.h"

static int too_long(int n, size_t size, struct mo_error *error) {
    if (n >= 0 && (size_t)n < size) return 0;
    return mo_error_set(error, MO_E_INVALID, "a path in the Hugging Face cache is too long");
}

int hub_cache_open(struct hub_cache *cache, const char *model, struct mo_error *error) {
    const char *slash = strchr(model, '/');
    int code = model_hub_cache(cache->folder, sizeof cache->folder, error);
    if (code) return code;
    int n = snprintf(cache->repository, sizeof cache->repository, "%s/models--%.*s--%s", cache->folder,
                     (int)(slash - model), model, slash + 1);
    int m = snprintf(cache->locks, sizeof cache->locks, "%s/.locks/models--%.*s--%s", cache->folder,
                     (int)(slash - model), model, slash + 1);
    code = too_long(n, sizeof cache->repository, error);
    return code ? code : too_long(m, sizeof cache->locks, error);
}

static bool blob_names(const struct hub_cache *cache, const struct hub_file *file, char *path, char *incomplete) {
    int n = snprintf(path, HUB_PATH_BYTES, "%s/blobs/%s", cache->repository, file->hash);
    int m = snprintf(incomplete, HUB_PATH_BYTES, "%s/blobs/%s.incomplete", cache->repository, file->hash);
    return n > 0 && m > 0 && m < HUB_PATH_BYTES;
}

int64_t hub_cache_bytes(const struct hub_cache *cache, const struct hub_file *file) {
    char path[HUB_PATH_BYTES], incomplete[HUB_PATH_BYTES];
    struct stat info;
    if (!blob_names(cache, file, path, incomplete)) return 0;
    if (stat(path, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == file->size) return file->size;
    if (stat(incomplete, &info) == 0 && S_ISREG(info.st_mode) && info.st_size <= file->size) return info.st_size;
    return 0;
}

bool hub_cache_has(const struct hub_cache *cache, const struct hub_file *file) {
    char path[HUB_PATH_BYTES], incomplete[HUB_PATH_BYTES];
    struct stat info;
    return blob_names(cache, file, path, incomplete) && stat(path, &info) == 0 && S_ISREG(info.st_mode) &&
           info.st_size == file->size;
}

int64_t hub_cache_free_bytes(const struct hub_cache *cache) {
    char path[sizeof cache->folder];
    struct statvfs info;
    strcpy(path, cache->folder);
    while (statvfs(path, &info)) { /* what does not exist yet will lie where its nearest parent does */
        char *slash = strrchr(path, '/');
        if (errno != ENOENT || !slash) return -1;
        if (slash == path && path[1] == 0) return -1;
        slash[slash == path] = 0;
    }
    return (int64_t)info.f_bavail * (int64_t)info.f_frsize;
}

/* All folders of `path` up to its last '/'. */
static int make_parents(const char *path, struct mo_error *error) {
    char folder[HUB_PATH_BYTES];
    int code = too_long(snprintf(folder, sizeof folder, "%s", path), sizeof folder, error);
    if (code) return code;
    for (char *slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(folder, 0777) && errno != EEXIST && !file_is_directory(folder)) {
            return mo_error_set(error, MO_E_IO,
                                "cannot create %s: %s (HF_HUB_CACHE=FOLDER puts the cache somewhere else)", folder,
                                strerror(errno));
        }
        *slash = '/';
    }
    return 0;
}

int hub_cache_blob(const struct hub_cache *cache, const struct hub_file *file, char *path, char *incomplete,
                   struct mo_error *error) {
    if (!blob_names(cache, file, path, incomplete)) return too_long(-1, 0, error);
    return make_parents(path, error);
}

int hub_cache_try_lock(const struct hub_cache *cache, const struct hub_file *file, int *fd, struct mo_error *error) {
    char path[HUB_PATH_BYTES];
    int code = too_long(snprintf(path, sizeof path, "%s/%s.lock", cache->locks, file->hash), sizeof path, error);
    if (!code) code = make_parents(path, error);
    if (code) return code;
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*fd < 0) return mo_error_set(error, MO_E_IO, "cannot open %s: %s", path, strerror(errno));
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0) return 0;
    /* A file system without locks (some network drives): then there is none, as in Python. */
    if (errno == ENOSYS || errno == EOPNOTSUPP || errno == ENOLCK) return 0;
    close(*fd);
    *fd = -1;
    return 0;
}

/* Appears as a whole: a link that is right stays; anything else is replaced. */
static int link_file(const struct hub_cache *cache, const char *commit, const struct hub_file *file,
                     struct mo_error *error) {
    char path[HUB_PATH_BYTES], beside[HUB_PATH_BYTES], target[2 * HUB_MAX_PATH_BYTES + 128], found[sizeof target];
    size_t used = 0;
    for (const char *c = file->path; *c; c++)
        if (*c == '/') used += (size_t)snprintf(target + used, sizeof target - used, "../");
    snprintf(target + used, sizeof target - used, "../../blobs/%s", file->hash);
    int n = snprintf(path, sizeof path, "%s/snapshots/%s/%s", cache->repository, commit, file->path);
    int m = snprintf(beside, sizeof beside, "%s/snapshots/%s/%s.%d", cache->repository, commit, file->path, getpid());
    int code = too_long(n > m ? n : m, sizeof path, error);
    if (code) return code;
    ssize_t size = readlink(path, found, sizeof found - 1);
    if (size > 0 && (size_t)size == strlen(target) && !memcmp(found, target, (size_t)size)) return 0;
    code = make_parents(path, error);
    if (code) return code;
    unlink(beside);
    if (symlink(target, beside) == 0 && rename(beside, path) == 0) return 0;
    code = mo_error_set(error, MO_E_IO, "cannot link %s to its blob: %s", path, strerror(errno));
    unlink(beside);
    return code;
}

static int set_ref(const struct hub_cache *cache, const char *revision, const char *commit, struct mo_error *error) {
    char path[HUB_PATH_BYTES], *there = NULL;
    size_t size;
    if (!strcmp(revision, commit)) return 0;
    int code = too_long(snprintf(path, sizeof path, "%s/refs/%s", cache->repository, revision), sizeof path, error);
    if (code) return code;
    bool is_same = file_exists(path) && file_read(path, 200, &there, &size, NULL) == 0 && !strcmp(there, commit);
    free(there);
    if (is_same) return 0;
    code = make_parents(path, error);
    return code ? code : file_write(path, commit, strlen(commit), error);
}

int hub_cache_link(const struct hub_cache *cache, const struct hub_listing *listing, const char *revision,
                   struct mo_error *error) {
    for (int i = 0; i < listing->n; i++) {
        if (!listing->files[i].is_wanted) continue;
        int code = link_file(cache, listing->commit, &listing->files[i], error);
        if (code) return code;
    }
    return set_ref(cache, revision, listing->commit, error);
}
