#include "hub/local.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/json.h"
#include "hub/cache.h"
#include "hub/select.h"

enum { MAX_INDEX_BYTES = 256 << 20 };

/* `path` inside of the snapshot. The strings live in listing->json, a list of them. */
static int add_file(struct hub_listing *listing, const char *path, int64_t size, struct mo_error *error) {
    json_t *text = json_string(path);
    if (!text) return 0; /* not UTF-8: no file of the hub's */
    if (listing->n == HUB_MAX_FILES) {
        json_decref(text);
        return mo_error_set(error, MO_E_LIMIT, "more than %d files in a snapshot", HUB_MAX_FILES);
    }
    json_array_append_new(listing->json, text);
    listing->files[listing->n++] = (struct hub_file){.path = json_string_value(text), .size = size};
    return 0;
}

/* A link to a folder: nobody makes these in a snapshot, and it could lead anywhere. */
static bool is_link(const char *path) {
    struct stat info;
    return !lstat(path, &info) && S_ISLNK(info.st_mode);
}

static int add_folder(struct hub_listing *listing, const char *snapshot, const char *inside, int depth,
                      struct mo_error *error) {
    enum { DEEPEST = 16 };
    char folder[HUB_PATH_BYTES], path[HUB_PATH_BYTES], below[HUB_MAX_PATH_BYTES];
    struct stat info;
    int code = 0, n = snprintf(folder, sizeof folder, "%s/%s", snapshot, inside);
    DIR *dir = n < 0 || n >= (int)sizeof folder ? NULL : opendir(folder);
    if (!dir) return mo_error_set(error, MO_E_IO, "%s: %s", folder, strerror(errno));
    for (const struct dirent *entry; !code && (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        n = snprintf(below, sizeof below, "%s%s%s", inside, *inside ? "/" : "", entry->d_name);
        int m = snprintf(path, sizeof path, "%s/%s", snapshot, below);
        if (n >= (int)sizeof below || m >= (int)sizeof path || stat(path, &info)) continue;
        if (S_ISREG(info.st_mode)) code = add_file(listing, below, (int64_t)info.st_size, error);
        if (S_ISDIR(info.st_mode) && depth < DEEPEST && !is_link(path))
            code = add_folder(listing, snapshot, below, depth + 1, error);
    }
    closedir(dir);
    return code;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const struct hub_file *)a)->path, ((const struct hub_file *)b)->path);
}

int hub_local_list(struct hub_listing *listing, const char *snapshot, struct mo_error *error) {
    *listing = (struct hub_listing){.files = calloc(HUB_MAX_FILES, sizeof *listing->files), .json = json_array()};
    if (!listing->files || !listing->json) return mo_error_set(error, MO_E_NO_MEMORY, "no memory to list %s", snapshot);
    int code = add_folder(listing, snapshot, "", 0, error);
    qsort(listing->files, (size_t)listing->n, sizeof *listing->files, by_path);
    return code;
}

bool hub_local_has(const struct hub_listing *listing, const char *path) {
    const struct hub_file key = {.path = path};
    return listing->n && bsearch(&key, listing->files, (size_t)listing->n, sizeof key, by_path);
}

/* Whatever the index is worth: opening the model will say. */
static bool has_all_of_index(const struct hub_listing *listing, const char *path) {
    json_t *index = NULL, *file;
    const char *tensor;
    bool has = json_parse_file(path, MAX_INDEX_BYTES, &index, NULL) == 0;
    json_object_foreach(json_object_get(index, "weight_map"), tensor, file) {
        has = has && json_is_string(file) && hub_local_has(listing, json_string_value(file));
    }
    json_decref(index);
    return has;
}

bool hub_local_is_whole(const struct hub_listing *listing, const char *snapshot) {
    static const char index[] = "model.safetensors.index.json";
    char path[HUB_PATH_BYTES];
    struct hub_choice choice;
    if (hub_local_has(listing, "config.json")) {
        int n = snprintf(path, sizeof path, "%s/%s", snapshot, index);
        if (!hub_local_has(listing, index) && hub_local_has(listing, "model.safetensors")) return true;
        if (hub_local_has(listing, index) && n < (int)sizeof path && has_all_of_index(listing, path)) return true;
    }
    for (int at = 0; hub_next_choice(listing, &at, &choice);)
        if (choice.is_whole) return true;
    return false;
}
