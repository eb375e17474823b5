#include "cmd/eval/documents.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "base/utf8.h"

enum { MAX_DOCUMENT_BYTES = 64 << 20, MAX_PATH_BYTES = 4096, MAX_DEPTH = 32 };

static int add_document(struct eval_documents *list, const struct eval_document *document, struct mo_error *error) {
    if (list->n == list->capacity) {
        int capacity = list->capacity * 2 + 64;
        struct eval_document *grown = realloc(list->items, (size_t)capacity * sizeof *grown);
        if (!grown) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d documents", capacity);
        list->items = grown;
        list->capacity = capacity;
    }
    list->items[list->n++] = *document;
    return 0;
}

static int read_document(struct eval_documents *list, const char *path, struct mo_error *error) {
    struct eval_document document = {0};
    int code = file_read(path, MAX_DOCUMENT_BYTES, &document.text, &document.size, error);
    if (code) return code;
    size_t valid = utf8_valid_prefix((const uint8_t *)document.text, document.size);
    if (valid < document.size) {
        code = mo_error_set(error, MO_E_INVALID, "%s: not valid UTF-8 at byte %zu", path, valid);
    } else if (document.size > 0) {
        document.name = strdup(path);
        code = document.name ? add_document(list, &document, error) : mo_error_set(error, MO_E_NO_MEMORY, "no memory");
        if (!code) return 0;
    }
    free(document.name);
    free(document.text);
    return code;
}

static bool is_python(const char *name) {
    size_t n = strlen(name);
    return n > 3 && !strcmp(name + n - 3, ".py");
}

static int read_folder(struct eval_documents *list, const char *folder, int depth, struct mo_error *error);

static int read_entry(struct eval_documents *list, const char *folder, const char *name, int depth,
                      struct mo_error *error) {
    char path[MAX_PATH_BYTES];
    struct stat info;
    if (name[0] == '.') return 0;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
        return mo_error_set(error, MO_E_LIMIT, "%s: a path in it is longer than %d bytes", folder, MAX_PATH_BYTES);
    }
    if (lstat(path, &info)) return mo_error_set(error, MO_E_IO, "%s: cannot stat: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode)) return read_folder(list, path, depth + 1, error);
    bool is_file = is_python(name) && stat(path, &info) == 0 && S_ISREG(info.st_mode);
    return is_file ? read_document(list, path, error) : 0;
}

static int read_folder(struct eval_documents *list, const char *folder, int depth, struct mo_error *error) {
    if (depth > MAX_DEPTH) return mo_error_set(error, MO_E_LIMIT, "%s: more than %d folders deep", folder, MAX_DEPTH);
    DIR *entries = opendir(folder);
    if (!entries) return mo_error_set(error, MO_E_IO, "%s: cannot open the folder: %s", folder, strerror(errno));
    int code = 0;
    const struct dirent *entry;
    while (!code && (entry = readdir(entries))) code = read_entry(list, folder, entry->d_name, depth, error);
    closedir(entries);
    return code;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const struct eval_document *)a)->name, ((const struct eval_document *)b)->name);
}

int eval_documents_read(struct eval_documents *documents, const char *folder, struct mo_error *error) {
    int code = read_folder(documents, folder, 0, error);
    if (!code && documents->n == 0) {
        code = mo_error_set(error, MO_E_NOT_FOUND, "%s: no *.py file with text in it", folder);
    }
    if (!code) qsort(documents->items, (size_t)documents->n, sizeof *documents->items, compare_names);
    return code;
}

void eval_documents_free(struct eval_documents *documents) {
    for (int i = 0; i < documents->n; i++) {
        free(documents->items[i].name);
        free(documents->items[i].text);
    }
    free(documents->items);
    *documents = (struct eval_documents){0};
}
