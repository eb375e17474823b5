/* Finds the files of a GGUF model and joins them; the small files as text. */
#include "model/gguf/gguf.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/text.h"

enum { MAX_FILES = 4096, PATH_BYTES = 4096 };

/* "NAME-00002-of-00003.gguf": how long NAME is, and the two numbers. */
static bool split_name(const char *path, int *stem, int *number, int *count) {
    static const char shape[] = "-00000-of-00000.gguf";
    int n = (int)strlen(path) - (int)strlen(shape);
    for (int i = 0; n > 0 && shape[i]; i++) {
        bool digit = path[n + i] >= '0' && path[n + i] <= '9';
        if (shape[i] == '0' ? !digit : path[n + i] != shape[i]) return false;
    }
    if (n <= 0) return false;
    *stem = n;
    *number = atoi(path + n + 1);
    *count = atoi(path + n + 10);
    return true;
}

/* ---- which file ---- */

/* One model's first file; projectors of pictures, prediction layers and importance matrices lie beside models and are none. */
static bool is_first_file(const char *name) {
    int stem, number = 1, count;
    bool is_part = !strncmp(name, "mmproj", 6) || !strncmp(name, "mtp-", 4);
    if (!text_ends_with(name, ".gguf") || text_ends_with(name, "imatrix.gguf") || is_part) return false;
    return !split_name(name, &stem, &number, &count) || number == 1;
}

static int locate_in_folder(const char *folder, char *path, size_t path_size, struct mo_error *error) {
    DIR *dir = opendir(folder);
    int n = 0, has_safetensors = 0;
    if (!dir) return mo_error_set(error, MO_E_IO, "%s: %s", folder, strerror(errno));
    for (const struct dirent *file; (file = readdir(dir));) {
        has_safetensors |= text_ends_with(file->d_name, ".safetensors");
        if (!is_first_file(file->d_name)) continue;
        if (n++) continue;
        if (snprintf(path, path_size, "%s/%s", folder, file->d_name) >= (int)path_size) {
            closedir(dir);
            return mo_error_set(error, MO_E_INVALID, "path of the model is too long");
        }
    }
    closedir(dir);
    if (has_safetensors || n == 0) return 0;
    if (n == 1) return 1;
    return mo_error_set(error, MO_E_INVALID, "%s: %d GGUF models are here: name the file of one, such as %s", folder, n,
                        path);
}

int gguf_locate(const char *model, char *path, size_t path_size, struct mo_error *error) {
    if (file_is_directory(model)) return locate_in_folder(model, path, path_size, error);
    char magic[4] = "";
    int fd = open(model, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a named pipe would wait for a writer */
    bool found = fd >= 0 && read(fd, magic, sizeof magic) == sizeof magic && !memcmp(magic, "GGUF", sizeof magic);
    if (fd >= 0) close(fd);
    if (!found && !(fd >= 0 && text_ends_with(model, ".gguf"))) return 0;
    if (snprintf(path, path_size, "%s", model) < (int)path_size) return 1;
    return mo_error_set(error, MO_E_INVALID, "path of the model is too long");
}

/* ---- the files ---- */

struct part {
    struct gguf_header header;
    int number, count; /* of the split, from 0; a file that says nothing of one is 0 of 1 */
    int tensors;       /* of all parts; -1 where it does not say */
};

/* Opens one more file. */
static int open_part(struct checkpoint *checkpoint, const char *path, struct part *part, struct mo_error *error) {
    struct shard *shard = &checkpoint->shards[checkpoint->n_shards];
    shard->path = arena_strdup(checkpoint->arena, path);
    if (!shard->path) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
    int code = file_map_open(&shard->map, path, error);
    if (code) return code;
    int index = checkpoint->n_shards++;
    code = gguf_parse(shard->map.data, shard->map.size, shard->path, index, checkpoint->arena, &part->header, error);
    if (code) return code;
    shard->header_bytes = part->header.header_bytes;
    const struct gguf of = {.path = shard->path, .values = part->header.values, .n_values = part->header.n_values};
    part->number = 0;
    part->count = 1;
    part->tensors = -1;
    code = gguf_get_int(&of, "split.no", JSON_OPTIONAL_KEY, 0, MAX_FILES, &part->number, error);
    if (!code) code = gguf_get_int(&of, "split.count", JSON_OPTIONAL_KEY, 0, MAX_FILES, &part->count, error);
    if (!code) code = gguf_get_int(&of, "split.tensors.count", JSON_OPTIONAL_KEY, 0, INT32_MAX, &part->tensors, error);
    if (!code && part->count == 0) part->count = 1;
    return code;
}

static int add_tensors(struct gguf *gguf, const struct part *part, struct mo_error *error) {
    size_t n = (size_t)gguf->n_tensors + (size_t)part->header.n_tensors;
    if (n > INT32_MAX / 2) return mo_error_set(error, MO_E_LIMIT, "%s: too many tensors", gguf->path);
    struct gguf_tensor *larger = realloc(gguf->tensors, (n + 1) * sizeof *larger);
    if (!larger) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for its tensors", gguf->path);
    gguf->tensors = larger;
    if (part->header.n_tensors) {
        memcpy(larger + gguf->n_tensors, part->header.tensors, (size_t)part->header.n_tensors * sizeof *larger);
    }
    gguf->n_tensors = (int)n;
    return 0;
}

static int open_others(struct checkpoint *checkpoint, struct gguf *gguf, const struct part *first,
                       struct mo_error *error) {
    int stem = 0, number = 0, count = 0, code = 0;
    bool split = split_name(gguf->path, &stem, &number, &count);
    if (!split || count != first->count || number != first->number + 1) {
        return mo_error_set(error, MO_E_INVALID,
                            "%s: part %d of %d says so by its split.no and split.count: expected a name that ends in "
                            "-%05d-of-%05d.gguf",
                            gguf->path, first->number + 1, first->count, first->number + 1, first->count);
    }
    for (int i = 1; i < count && !code; i++) {
        char path[PATH_BYTES + 64];
        struct part part = {0};
        snprintf(path, sizeof path, "%.*s-%05d-of-%05d.gguf", stem, gguf->path, i + 1, count);
        code = open_part(checkpoint, path, &part, error);
        if (!code && (part.number != i || part.count != count)) {
            code = mo_error_set(error, MO_E_CORRUPT, "%s: expected part %d of %d, found part %d of %d", path, i + 1,
                                count, part.number + 1, part.count);
        }
        if (!code) code = add_tensors(gguf, &part, error);
    }
    if (code || first->tensors < 0 || first->tensors == gguf->n_tensors) return code;
    return mo_error_set(error, MO_E_CORRUPT, "%s: expected %d tensors in %d files (split.tensors.count), found %d",
                        gguf->path, first->tensors, count, gguf->n_tensors);
}

static int open_files(struct checkpoint *checkpoint, struct gguf *gguf, struct mo_error *error) {
    struct part first = {0};
    checkpoint->shards = arena_alloc_array(checkpoint->arena, MAX_FILES, sizeof *checkpoint->shards);
    if (!checkpoint->shards) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    int code = open_part(checkpoint, gguf->path, &first, error);
    if (code) return code;
    gguf->values = first.header.values;
    gguf->n_values = first.header.n_values;
    code = add_tensors(gguf, &first, error);
    if (code || first.count <= 1) return code;
    if (first.number == 0) return open_others(checkpoint, gguf, &first, error);
    return mo_error_set(error, MO_E_INVALID, "%s: part %d of %d: name the first one (-00001-of-%05d.gguf)", gguf->path,
                        first.number + 1, first.count, first.count);
}

/* ---- all of it ---- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *gguf, const char *name) {
    const struct gguf_tensor key = {.name = name};
    if (!gguf->n_tensors) return NULL;
    return bsearch(&key, gguf->tensors, (size_t)gguf->n_tensors, sizeof key, by_name);
}

static int sort_tensors(const struct checkpoint *checkpoint, struct gguf *gguf, struct mo_error *error) {
    struct gguf_tensor *sorted =
        arena_alloc_array(checkpoint->arena, (size_t)gguf->n_tensors + 1, sizeof *gguf->tensors);
    if (sorted) memcpy(sorted, gguf->tensors, (size_t)gguf->n_tensors * sizeof *sorted);
    free(gguf->tensors);
    gguf->tensors = sorted;
    if (!sorted) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for its tensors", gguf->path);
    qsort(sorted, (size_t)gguf->n_tensors, sizeof *sorted, by_name);
    for (int i = 1; i < gguf->n_tensors; i++) {
        if (strcmp(sorted[i - 1].name, sorted[i].name)) continue;
        return mo_error_set(error, MO_E_CORRUPT, "%s: tensor %s is there twice (%s and %s)", gguf->path, sorted[i].name,
                            checkpoint->shards[sorted[i - 1].shard].path, checkpoint->shards[sorted[i].shard].path);
    }
    return 0;
}

/* What a file says of itself in words: general.name, general.license, ... */
static int read_metadata(struct checkpoint *checkpoint, const struct gguf *gguf, struct mo_error *error) {
    struct metadata *list = arena_alloc_array(checkpoint->arena, (size_t)gguf->n_values + 1, sizeof *list);
    if (!list) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    checkpoint->metadata = list;
    for (int i = 0; i < gguf->n_values; i++) {
        const struct gguf_value *value = &gguf->values[i];
        struct gguf_text text;
        if (strncmp(value->key, "general.", 8) || value->type != GGUF_STRING) continue;
        gguf_get_text(gguf, value->key, JSON_REQUIRED_KEY, &text, NULL);
        char *copy = arena_strndup(checkpoint->arena, text.data, text.size);
        if (!copy) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
        list[checkpoint->n_metadata++] = (struct metadata){value->key, copy};
    }
    return 0;
}

static int dump(const struct gguf *gguf, json_t *root, char **text, size_t *size, struct mo_error *error) {
    *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(root);
    if (!*text) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    *size = strlen(*text);
    return 0;
}

/* Made once: its warnings are to be seen once. */
static int make_config(const struct checkpoint *checkpoint, struct gguf *gguf, struct mo_error *error) {
    json_t *root;
    char *text;
    size_t size;
    int code = gguf_config(gguf, &root, error);
    if (!code) code = dump(gguf, root, &text, &size, error);
    if (code) return code;
    gguf->config = arena_strdup(checkpoint->arena, text);
    free(text);
    return gguf->config ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
}

int gguf_open(struct checkpoint *checkpoint, const char *path, struct mo_error *error) {
    struct gguf *gguf = arena_alloc(checkpoint->arena, sizeof *gguf);
    if (!gguf) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
    gguf->path = arena_strdup(checkpoint->arena, path);
    if (!gguf->path) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
    int code = open_files(checkpoint, gguf, error);
    if (code) {
        free(gguf->tensors);
        gguf->tensors = NULL;
        return code;
    }
    code = sort_tensors(checkpoint, gguf, error);
    if (!code) code = read_metadata(checkpoint, gguf, error);
    if (!code) code = make_config(checkpoint, gguf, error);
    if (!code) checkpoint->gguf = gguf;
    return code;
}

/* ---- the small files ---- */

static const struct {
    const char *name;
    int (*make)(const struct gguf *gguf, json_t **root, struct mo_error *error);
} files[] = {
    {"config.json", NULL},
    {"tokenizer.json", gguf_tokenizer},
    {"tokenizer_config.json", gguf_tokenizer_config},
    {"generation_config.json", gguf_generation_config},
};
enum { N_FILES = sizeof files / sizeof *files };

/* The head of a model card, where `info` looks for a licence and `quantize` takes it from. */
static const char CARD[] = "README.md";

static int make_card(const struct gguf *gguf, char **text, size_t *size, struct mo_error *error) {
    static const char *const lines[][2] = {{"general.license", "license"}, {"general.license.name", "license_name"}};
    FILE *out = open_memstream(text, size);
    if (!out) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    fprintf(out, "---\n");
    for (int i = 0; i < 2; i++) {
        struct gguf_text value = {0};
        if (gguf_get_text(gguf, lines[i][0], JSON_REQUIRED_KEY, &value, NULL)) continue;
        size_t n = 0;
        while (n < value.size && n < 200 && (unsigned char)value.data[n] >= ' ') n++;
        fprintf(out, "%s: %.*s\n", lines[i][1], (int)n, value.data);
    }
    fprintf(out, "---\n");
    return fclose(out) ? mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path) : 0;
}

/* A file without a tokenizer serves token ids. */
bool gguf_has_file(const struct gguf *gguf, const char *name) {
    if (!strcmp(name, CARD)) return gguf_find(gguf, "general.license") || gguf_find(gguf, "general.license.name");
    if (!strncmp(name, "tokenizer", 9) && !gguf_find(gguf, "tokenizer.ggml.tokens")) return false;
    for (int i = 0; i < N_FILES; i++) {
        if (!strcmp(files[i].name, name)) return true;
    }
    return false;
}

int gguf_read_file(const struct gguf *gguf, const char *name, char **text, size_t *size, struct mo_error *error) {
    json_t *root;
    if (!strcmp(name, CARD)) return make_card(gguf, text, size, error);
    for (int i = 0; i < N_FILES; i++) {
        if (strcmp(files[i].name, name)) continue;
        if (!files[i].make) {
            *text = strdup(gguf->config);
            *size = strlen(gguf->config);
            return *text ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
        }
        int code = files[i].make(gguf, &root, error);
        return code ? code : dump(gguf, root, text, size, error);
    }
    return mo_error_set(error, MO_E_NOT_FOUND, "%s: %s: the file holds none", gguf->path, name);
}
