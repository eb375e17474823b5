#include "hub/list.h"

#include <stdlib.h>
#include <string.h>
#include "base/json.h"

bool hub_is_hash(const char *text, size_t digits) {
    return text && strlen(text) == digits && strspn(text, "0123456789abcdef") == digits;
}

bool hub_path_is_safe(const char *path, size_t size) {
    if (size == 0 || size > HUB_MAX_PATH_BYTES) return false;
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)path[i];
        if (c < ' ' || c == 0x7f || c == '\\') return false;
        /* U+0080 to U+009f: what steers a terminal, in UTF-8 */
        if (c == 0xc2 && i + 1 < size && (unsigned char)path[i + 1] < 0xa0) return false;
    }
    for (const char *at = path, *end = path + size; at <= end;) {
        const char *slash = memchr(at, '/', (size_t)(end - at));
        size_t n = (size_t)((slash ? slash : end) - at);
        if (n == 0 || n > 255 || (n == 1 && at[0] == '.') || (n == 2 && at[0] == '.' && at[1] == '.')) return false;
        at += n + 1;
    }
    return true;
}

/* The hash of the content: what LFS has if the file is there, git's own otherwise. */
static int read_hash(struct hub_file *file, const json_t *entry, const char *where, struct mo_error *error) {
    const json_t *lfs = json_object_get(entry, "lfs");
    file->is_sha256 = json_is_object(lfs);
    const char *hash =
        json_string_value(file->is_sha256 ? json_object_get(lfs, "sha256") : json_object_get(entry, "blobId"));
    if (!hub_is_hash(hash, file->is_sha256 ? 64 : 40)) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: %s: expected %s", where, file->path,
                            file->is_sha256 ? "\"lfs\" with a \"sha256\" of 64 digits" : "a \"blobId\" of 40 digits");
    }
    strcpy(file->hash, hash);
    return 0;
}

static int read_file(struct hub_file *file, const json_t *entry, const char *where, struct mo_error *error) {
    const json_t *name = json_object_get(entry, "rfilename");
    const json_t *size = json_object_get(entry, "size"), *lfs_size;
    if (!json_is_string(name))
        return mo_error_set(error, MO_E_CORRUPT, "%s: a file without \"rfilename\", its name", where);
    file->path = json_string_value(name);
    if (!hub_path_is_safe(file->path, json_string_length(name))) {
        return mo_error_set(error, MO_E_CORRUPT,
                            "%s: a file's name could leave its folder or steer a terminal; nothing was downloaded",
                            where);
    }
    lfs_size = json_object_get(json_object_get(entry, "lfs"), "size");
    if (json_is_integer(lfs_size)) size = lfs_size;
    if (!json_is_integer(size) || json_integer_value(size) < 0 || json_integer_value(size) > INT64_C(1) << 53)
        return mo_error_set(error, MO_E_CORRUPT, "%s: %s: expected a \"size\" in bytes", where, file->path);
    file->size = json_integer_value(size);
    return read_hash(file, entry, where, error);
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const struct hub_file *)a)->path, ((const struct hub_file *)b)->path);
}

static int read_files(struct hub_listing *listing, const json_t *siblings, const char *where, struct mo_error *error) {
    size_t n = json_array_size(siblings);
    if (n > HUB_MAX_FILES) return mo_error_set(error, MO_E_LIMIT, "%s: %zu files, at most %d", where, n, HUB_MAX_FILES);
    listing->files = calloc(n ? n : 1, sizeof *listing->files);
    if (!listing->files) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for %zu files", where, n);
    for (size_t i = 0; i < n; i++) {
        int code = read_file(&listing->files[i], json_array_get(siblings, i), where, error);
        if (code) return code;
        listing->n++;
    }
    qsort(listing->files, n, sizeof *listing->files, by_path);
    for (size_t i = 1; i < n; i++) {
        if (!by_path(&listing->files[i - 1], &listing->files[i]))
            return mo_error_set(error, MO_E_CORRUPT, "%s: %s is there twice", where, listing->files[i].path);
    }
    return 0;
}

int hub_list_parse(struct hub_listing *listing, const char *text, size_t size, const char *where,
                   struct mo_error *error) {
    json_t *root = NULL;
    *listing = (struct hub_listing){0};
    int code = json_damage(json_parse(text, size, where, &root, error), error);
    if (code) return code;
    listing->json = root;
    const char *commit = json_string_value(json_object_get(root, "sha"));
    const json_t *siblings = json_object_get(root, "siblings");
    if (!hub_is_hash(commit, 40))
        return mo_error_set(error, MO_E_CORRUPT, "%s: expected \"sha\", a commit of 40 digits", where);
    strcpy(listing->commit, commit);
    if (!json_is_array(siblings))
        return mo_error_set(error, MO_E_CORRUPT, "%s: expected \"siblings\", an array of files", where);
    return read_files(listing, siblings, where, error);
}

void hub_list_free(struct hub_listing *listing) {
    free(listing->files);
    json_decref(listing->json);
    *listing = (struct hub_listing){0};
}
