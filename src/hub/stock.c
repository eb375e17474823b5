#include "hub/stock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "base/log.h"
#include "hub/local.h"
#include "hub/select.h"

static const char PREFIX[] = "models--";

/* ---- what there is ---- */

/* "models--org--name" to "org/name"; false: something else. */
static bool name_of_folder(const char *folder, char *name, size_t size) {
    const char *org = folder + sizeof PREFIX - 1, *split;
    if (strncmp(folder, PREFIX, sizeof PREFIX - 1) || !(split = strstr(org, "--"))) return false;
    int n = snprintf(name, size, "%.*s/%s", (int)(split - org), org, split + 2);
    return n > 0 && (size_t)n < size && split > org && split[2];
}

int64_t hub_stock_bytes(const struct hub_cache *cache) {
    char folder[HUB_PATH_BYTES];
    struct hub_listing blobs;
    int64_t bytes = 0;
    snprintf(folder, sizeof folder, "%s/blobs", cache->repository);
    if (!hub_local_list(&blobs, folder, NULL))
        for (int i = 0; i < blobs.n; i++) bytes += blobs.files[i].size;
    hub_list_free(&blobs);
    return bytes;
}

/* The revision that is called main if it is this commit, else another one. */
static void find_revision(struct hub_model *model, const struct hub_cache *cache) {
    char folder[HUB_PATH_BYTES], path[2 * HUB_PATH_BYTES], *commit = NULL;
    struct hub_listing refs;
    size_t size;
    snprintf(folder, sizeof folder, "%s/refs", cache->repository);
    int code = hub_local_list(&refs, folder, NULL);
    for (int i = 0; i < refs.n && !code && strcmp(model->revision, "main") != 0; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, refs.files[i].path);
        if (file_read(path, 200, &commit, &size, NULL)) continue;
        commit[strcspn(commit, "\r\n ")] = 0;
        if (!strcmp(commit, model->commit)) snprintf(model->revision, sizeof model->revision, "%s", refs.files[i].path);
        free(commit);
    }
    hub_list_free(&refs);
}

static int take_gguf(const struct hub_model *of, const struct hub_listing *listing, hub_take *take, void *context,
                     struct mo_error *error) {
    struct hub_choice choice;
    int code = 0;
    for (int at = 0; !code && hub_next_choice(listing, &at, &choice);) {
        struct hub_model model = *of;
        model.format = HUB_GGUF;
        model.bytes = choice.size;
        model.is_whole = choice.is_whole;
        snprintf(model.file, sizeof model.file, "%s", choice.path);
        int n = snprintf(model.path, sizeof model.path, "%s/%s", of->path, choice.path);
        if (n > 0 && (size_t)n < sizeof model.path) code = take(context, &model, error);
    }
    return code;
}

static int take_snapshot(struct hub_model *model, const struct hub_cache *cache, hub_take *take, void *context,
                         struct mo_error *error) {
    struct hub_listing listing;
    struct mo_error why = {0};
    struct stat info;
    int64_t bytes = 0;
    bool has_weights = false;
    find_revision(model, cache);
    int code = hub_local_list(&listing, model->path, &why);
    if (code == MO_E_IO || code == MO_E_LIMIT) { /* one that cannot be read hides no others */
        log_warn("%s", why.message);
        code = 0;
    }
    if (code) *error = why;
    for (int i = 0; i < listing.n; i++) {
        bytes += listing.files[i].size;
        has_weights |= hub_is_weights(listing.files[i].path);
    }
    if (!stat(model->path, &info)) model->modified = info.st_mtime;
    if (!code && hub_has_choices(&listing)) {
        code = take_gguf(model, &listing, take, context, error);
    } else if (!code) {
        model->format = has_weights ? HUB_SAFETENSORS : HUB_NO_WEIGHTS;
        model->is_whole = hub_local_is_whole(&listing, model->path);
        model->bytes = model->is_whole ? bytes : hub_stock_bytes(cache);
        code = take(context, model, error);
    }
    hub_list_free(&listing);
    return code;
}

/* The names in a folder, in order; -1: it cannot be read. */
static int names_in(const char *folder, struct dirent ***entries) {
    *entries = NULL;
    return scandir(folder, entries, NULL, alphasort);
}

static void free_names(struct dirent **entries, int n) {
    for (int i = 0; i < n; i++) free(entries[i]);
    free(entries);
}

static int take_repository(const struct hub_model *of, const struct hub_cache *cache, hub_take *take, void *context,
                           struct mo_error *error) {
    char folder[HUB_PATH_BYTES];
    struct dirent **entries;
    int code = 0, found = 0;
    snprintf(folder, sizeof folder, "%s/snapshots", cache->repository);
    int n = names_in(folder, &entries);
    for (int i = 0; i < n && !code; i++) {
        struct hub_model model = *of;
        snprintf(model.commit, sizeof model.commit, "%s", entries[i]->d_name);
        snprintf(model.path, sizeof model.path, "%.3000s/%s", folder, entries[i]->d_name);
        if (entries[i]->d_name[0] == '.' || !file_is_directory(model.path)) continue;
        found++;
        code = take_snapshot(&model, cache, take, context, error);
    }
    free_names(entries, n);
    struct hub_model part = *of;
    part.bytes = found ? 0 : hub_stock_bytes(cache);
    return !code && part.bytes ? take(context, &part, error) : code;
}

int hub_stock_each(const char *cache_folder, hub_take *take, void *context, struct mo_error *error) {
    struct dirent **entries;
    int code = 0, n = names_in(cache_folder, &entries);
    if (n < 0 && errno != ENOENT) return mo_error_set(error, MO_E_IO, "%s: %s", cache_folder, strerror(errno));
    for (int i = 0; i < n && !code; i++) {
        struct hub_model model = {0};
        struct hub_cache cache;
        struct stat info;
        if (!name_of_folder(entries[i]->d_name, model.name, sizeof model.name)) continue;
        code = hub_cache_open(&cache, model.name, error);
        snprintf(model.path, sizeof model.path, "%s", cache.repository);
        if (!stat(cache.repository, &info)) model.modified = info.st_mtime;
        if (!code) code = take_repository(&model, &cache, take, context, error);
    }
    free_names(entries, n);
    return code;
}

/* ---- out of it ---- */

/* Whoever downloads a file holds its lock. */
static int check_locks(const struct hub_cache *cache, struct mo_error *error) {
    struct dirent **entries;
    char path[HUB_PATH_BYTES];
    bool is_held = false;
    int n = names_in(cache->locks, &entries);
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%.3000s/%s", cache->locks, entries[i]->d_name);
        int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0) fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW); /* another user's */
        if (fd < 0) continue;
        is_held |= flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
        close(fd);
    }
    free_names(entries, n);
    if (!is_held) return 0;
    return mo_error_set(error, MO_E_UNSUPPORTED, "%s: a process downloads it now; nothing was taken away",
                        cache->repository);
}

/* A folder and what lies below, from the ends; a link is a file. What is not there is gone. */
static int remove_tree(const char *folder, struct mo_error *error) {
    char root[HUB_PATH_BYTES];
    snprintf(root, sizeof root, "%s", folder);
    FTS *walk = fts_open((char *const[]){root, NULL}, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL);
    int code = walk ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory to walk %s", folder);
    for (const FTSENT *entry; !code && (entry = fts_read(walk));) {
        if (entry->fts_info == FTS_D || entry->fts_info == FTS_NS) continue;
        bool is_folder = entry->fts_info == FTS_DP || entry->fts_info == FTS_DNR;
        if ((is_folder ? rmdir(entry->fts_path) : unlink(entry->fts_path)) && errno != ENOENT)
            code = mo_error_set(error, MO_E_IO, "cannot remove %s: %s", entry->fts_path, strerror(errno));
    }
    if (walk) fts_close(walk);
    return code;
}

int hub_stock_remove(const struct hub_cache *cache, struct mo_error *error) {
    int code = check_locks(cache, error);
    if (!code) code = remove_tree(cache->repository, error);
    return code ? code : remove_tree(cache->locks, error);
}

/* Whether a link of any snapshot leads to the blob. */
static bool is_linked(const struct hub_cache *cache, const char *hash) {
    char folder[HUB_PATH_BYTES], target[HUB_PATH_BYTES];
    bool found = false;
    snprintf(folder, sizeof folder, "%s/snapshots", cache->repository);
    FTS *walk = fts_open((char *const[]){folder, NULL}, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    if (!walk) return true;
    for (const FTSENT *entry; !found && (entry = fts_read(walk));) {
        ssize_t n = entry->fts_info == FTS_SL || entry->fts_info == FTS_SLNONE
                        ? readlink(entry->fts_path, target, sizeof target - 1)
                        : -1;
        if (n <= 0) continue;
        target[n] = 0;
        const char *name = strrchr(target, '/');
        found = !strcmp(name ? name + 1 : target, hash);
    }
    fts_close(walk);
    return found;
}

/* A link into blobs/, and its blob; a file that is no link is itself all there is. */
static int remove_file(const struct hub_cache *cache, const char *snapshot, const char *inside,
                       struct mo_error *error) {
    char path[HUB_PATH_BYTES], target[HUB_PATH_BYTES], blob[2 * HUB_PATH_BYTES];
    int size = snprintf(path, sizeof path, "%s/%s", snapshot, inside);
    if (size < 0 || (size_t)size >= sizeof path) return mo_error_set(error, MO_E_INVALID, "%s: too long", inside);
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (unlink(path)) return mo_error_set(error, MO_E_IO, "cannot remove %s: %s", path, strerror(errno));
    if (n <= 0) return 0;
    target[n] = 0;
    const char *name = strrchr(target, '/');
    if (!name || !(hub_is_hash(name + 1, 40) || hub_is_hash(name + 1, 64)) || is_linked(cache, name + 1)) return 0;
    snprintf(blob, sizeof blob, "%s/blobs/%s", cache->repository, name + 1);
    if (!unlink(blob) || errno == ENOENT) return 0;
    return mo_error_set(error, MO_E_IO, "cannot remove %s: %s", blob, strerror(errno));
}

int hub_stock_remove_files(const struct hub_cache *cache, const char *snapshot, const struct hub_listing *listing,
                           struct mo_error *error) {
    struct stat info;
    int code = check_locks(cache, error);
    if (!code && !lstat(snapshot, &info) && S_ISLNK(info.st_mode))
        code = mo_error_set(error, MO_E_UNSUPPORTED, "%s is a link: what it leads to is not taken away", snapshot);
    for (int i = 0; i < listing->n && !code; i++)
        if (listing->files[i].is_wanted) code = remove_file(cache, snapshot, listing->files[i].path, error);
    return code;
}
