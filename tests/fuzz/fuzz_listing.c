/* tests/fuzz/fuzz_listing.c - what a server says a repository has: up to the first NUL the listing, behind it a pattern. Whatever is
 * in them, a listing that is taken has names that stay in their folder, hashes that are hashes, and choices that choose. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "hub/select.h"
#include "require.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Said once more, in another way than hub/list.c does. */
static void check_name(const char *path) {
    char wrapped[HUB_MAX_PATH_BYTES + 3];
    require(*path && strlen(path) <= HUB_MAX_PATH_BYTES && !strpbrk(path, "\\\n\r\t\033"));
    strcpy(wrapped, "/");
    strcat(wrapped, path);
    strcat(wrapped, "/");
    require(!strstr(wrapped, "//") && !strstr(wrapped, "/./") && !strstr(wrapped, "/../"));
}

static void check_files(const struct hub_listing *listing) {
    require(hub_is_hash(listing->commit, 40));
    for (int i = 0; i < listing->n; i++) {
        const struct hub_file *file = &listing->files[i];
        check_name(file->path);
        require(file->size >= 0 && hub_is_hash(file->hash, file->is_sha256 ? 64 : 40));
        require(i == 0 || strcmp(listing->files[i - 1].path, file->path) < 0);
    }
}

/* What a name chooses is one of the choices, in any case of letters. */
static void check_name_chooses(const struct hub_listing *listing, const char *name) {
    struct hub_choice choice, other;
    bool is_there = false;
    if (!hub_choose(listing, name, &choice)) {
        require(name || !hub_next_choice(listing, &(int){0}, &other));
        return;
    }
    require(!name || strcasestr(choice.path, name));
    for (int at = 0; hub_next_choice(listing, &at, &other);) is_there |= !strcmp(other.path, choice.path);
    require(is_there);
}

/* Every choice, given as --include, wants its own files. */
static void check_choices(struct hub_listing *listing) {
    struct hub_choice choice;
    for (int at = 0, before = -1; hub_next_choice(listing, &at, &choice); before = at) {
        require(at > before && choice.n_files >= 1 && choice.size >= 0);
        const char *include[1] = {choice.path};
        const struct hub_patterns patterns = {.include = include, .n_include = 1};
        require(hub_select(listing, &patterns, "org/name", NULL) == 0);
        int n = 0;
        for (int i = 0; i < listing->n; i++) n += listing->files[i].is_wanted;
        require(n == choice.n_files);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *cut = size ? memchr(data, 0, size) : NULL;
    size_t n = cut ? (size_t)(cut - data) : size;
    struct hub_listing listing;
    struct mo_error error = {0};
    int code = hub_list_parse(&listing, (const char *)data, n, "listing", &error);
    require(code == 0 || ((code == MO_E_CORRUPT || code == MO_E_LIMIT) && error.message[0]));
    if (!code) {
        char *pattern = cut ? strndup((const char *)cut + 1, size - n - 1) : NULL;
        const char *include[1] = {pattern};
        const struct hub_patterns patterns = {.include = include, .n_include = pattern != NULL};
        check_files(&listing);
        code = hub_select(&listing, &patterns, "org/name", &error);
        require(code == 0 || error.message[0]);
        check_choices(&listing);
        check_name_chooses(&listing, NULL);
        if (pattern) check_name_chooses(&listing, pattern);
        free(pattern);
    }
    hub_list_free(&listing);
    return 0;
}
