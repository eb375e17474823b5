#include "model/checkpoint.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "model/gguf/gguf.h"
#include "model/overrides.h"
#include "model/pack.h"

enum { MAX_SHARDS = 4096, MAX_INDEX_BYTES = 256 << 20, MAX_CONFIG_BYTES = 4 << 20 };

static const char CONFIG[] = "config.json";

const char *tensor_shape_text(const struct tensor *tensor, char text[TENSOR_SHAPE_BYTES]) {
    char *at = text;
    *at++ = '[';
    for (int i = 0; i < tensor->n_dims; i++) at += sprintf(at, "%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
    strcpy(at, "]");
    return text;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

int checkpoint_find_shard(const struct checkpoint *checkpoint, const uint8_t *data, size_t size) {
    for (int i = 0; i < checkpoint->n_shards; i++) {
        const struct file_map *map = &checkpoint->shards[i].map;
        if (data >= map->data && data + size <= map->data + map->size) return i;
    }
    return -1;
}

const struct tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name) {
    struct tensor key = {.name = name};
    if (!checkpoint->n_tensors) return NULL;
    return bsearch(&key, checkpoint->tensors, (size_t)checkpoint->n_tensors, sizeof key, by_name);
}

static int compare_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A file named by the index must lie in the folder itself. */
static bool is_plain_file_name(const char *name) {
    return *name && *name != '.' && !strchr(name, '/');
}

/* The distinct file names in the index's weight_map, sorted: names [*n], in the arena. */
static int list_shards(struct arena *arena, const json_t *index, const char *path, const char ***names, int *n,
                       struct mo_error *error) {
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: key \"weight_map\": expected an object with tensors", path);
    }
    const char **list = arena_alloc_array(arena, json_object_size(map), sizeof *list);
    if (!list) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
    int count = 0, unique = 0;
    const char *tensor;
    json_t *file;
    json_object_foreach(map, tensor, file) {
        const char *name = json_string_value(file);
        if (!name || !is_plain_file_name(name)) {
            return mo_error_set(error, MO_E_CORRUPT, "%s: tensor %s: expected a file name, found %s", path, tensor,
                                name ? name : "no string");
        }
        list[count++] = name;
    }
    qsort(list, (size_t)count, sizeof *list, compare_text);
    for (int i = 0; i < count; i++) {
        if (unique && !strcmp(list[unique - 1], list[i])) continue;
        list[unique] = arena_strdup(arena, list[i]);
        if (!list[unique++]) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
    }
    if (unique > MAX_SHARDS) return mo_error_set(error, MO_E_LIMIT, "%s: more than %d shards", path, MAX_SHARDS);
    *names = list;
    *n = unique;
    return 0;
}

/* Adds one shard's tensors to the checkpoint's list, which is grown with realloc until all shards are read. */
static int add_shard(struct checkpoint *checkpoint, const char *path, struct tensor **list, int *capacity,
                     struct mo_error *error) {
    int index = checkpoint->n_shards;
    struct shard *shard = &checkpoint->shards[index];
    shard->path = arena_strdup(checkpoint->arena, path);
    if (!shard->path) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for its tensors", path);
    int code = file_map_open(&shard->map, path, error);
    if (code) return code;
    checkpoint->n_shards++;
    struct safetensors header;
    code = safetensors_parse(shard->map.data, shard->map.size, path, index, checkpoint->arena, &header, error);
    if (code) return code;
    shard->header_bytes = header.header_bytes;
    checkpoint->metadata = header.metadata;
    checkpoint->n_metadata = header.n_metadata;
    int n = header.n_tensors;
    if (checkpoint->n_tensors + n > *capacity) {
        int grown = (checkpoint->n_tensors + n) * 2;
        struct tensor *larger = realloc(*list, (size_t)grown * sizeof *larger);
        if (!larger) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for its tensors", path);
        *list = larger;
        *capacity = grown;
    }
    if (n) memcpy(*list + checkpoint->n_tensors, header.tensors, (size_t)n * sizeof *header.tensors);
    checkpoint->n_tensors += n;
    return 0;
}

/* Two of a GGUF's names can stand for one of ours, so one file can do it. */
static int refuse_twice(const struct checkpoint *checkpoint, const struct tensor *a, const struct tensor *b,
                        struct mo_error *error) {
    const char *path = checkpoint->shards[b->shard].path;
    if (a->shard == b->shard) return mo_error_set(error, MO_E_CORRUPT, "%s: tensor %s is there twice", path, b->name);
    return mo_error_set(error, MO_E_CORRUPT, "tensor %s is in two files: %s and %s", b->name,
                        checkpoint->shards[a->shard].path, path);
}

static int finish_tensors(struct checkpoint *checkpoint, const struct tensor *list, const char *dir,
                          struct mo_error *error) {
    size_t n = (size_t)checkpoint->n_tensors;
    if (n == 0) return mo_error_set(error, MO_E_CORRUPT, "%s: the checkpoint holds no tensors", dir);
    struct tensor *tensors = arena_alloc_array(checkpoint->arena, n, sizeof *tensors);
    if (!tensors) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for its tensors", dir);
    memcpy(tensors, list, n * sizeof *tensors);
    qsort(tensors, n, sizeof *tensors, by_name);
    for (size_t i = 0; i < n; i++) {
        checkpoint->total_bytes += (int64_t)tensors[i].bytes;
        if (i && !strcmp(tensors[i - 1].name, tensors[i].name)) {
            return refuse_twice(checkpoint, &tensors[i - 1], &tensors[i], error);
        }
    }
    checkpoint->tensors = tensors;
    return 0;
}

/* Of a folder, or with `dir` NULL of the packed file names[0]. */
static int open_shards(struct checkpoint *checkpoint, const char *dir, const char *const *names, int n,
                       struct mo_error *error) {
    struct tensor *list = NULL;
    int capacity = 0, code = 0;
    checkpoint->shards = arena_alloc_array(checkpoint->arena, (size_t)n, sizeof *checkpoint->shards);
    if (!checkpoint->shards)
        return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for %d shards", checkpoint->path, n);
    for (int i = 0; i < n && !code; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s%s%s", dir ? dir : "", dir ? "/" : "", names[i]);
        code = add_shard(checkpoint, path, &list, &capacity, error);
    }
    if (!code) code = finish_tensors(checkpoint, list, checkpoint->path, error);
    free(list);
    return code;
}

/* Every tensor that the index promises must be there, in the file that it names. */
static int check_index(const struct checkpoint *checkpoint, const json_t *index, const char *path,
                       struct mo_error *error) {
    const char *name;
    json_t *file;
    json_object_foreach(json_object_get(index, "weight_map"), name, file) {
        const struct tensor *tensor = checkpoint_find(checkpoint, name);
        if (!tensor) {
            return mo_error_set(error, MO_E_CORRUPT, "%s: tensor %s is not in %s", path, name, json_string_value(file));
        }
        const char *found = strrchr(checkpoint->shards[tensor->shard].path, '/') + 1;
        if (strcmp(found, json_string_value(file))) {
            return mo_error_set(error, MO_E_CORRUPT, "%s: tensor %s: expected in %s, found in %s", path, name,
                                json_string_value(file), found);
        }
    }
    return 0;
}

static int open_index(struct checkpoint *checkpoint, const char *dir, const char *path, struct mo_error *error) {
    json_t *index;
    const char **names = NULL;
    int n = 0;
    int code = json_parse_file(path, MAX_INDEX_BYTES, &index, error);
    if (code) return json_damage(code, error);
    code = list_shards(checkpoint->arena, index, path, &names, &n, error);
    if (!code) code = open_shards(checkpoint, dir, names, n, error);
    if (!code) code = check_index(checkpoint, index, path, error);
    json_decref(index);
    return code;
}

/* Everything is in one file, and the file says so. */
static int open_packed(struct checkpoint *checkpoint, struct mo_error *error) {
    int code = open_shards(checkpoint, NULL, &checkpoint->path, 1, error);
    if (code) return code;
    const char *format = checkpoint_metadata(checkpoint, PACK_KEY_FORMAT);
    if (!format) {
        return mo_error_set(
            error, MO_E_INVALID,
            "%s: expected a model folder or a file of `moebius quantize`, found another safetensors file",
            checkpoint->path);
    }
    if (strcmp(format, PACK_FORMAT)) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: expected %s " PACK_FORMAT ", found %.20s", checkpoint->path,
                            PACK_KEY_FORMAT, format);
    }
    checkpoint->is_packed = true;
    return pack_check_header(checkpoint->shards[0].map.data, checkpoint->shards[0].header_bytes, checkpoint->path,
                             error);
}

int checkpoint_open_files(struct checkpoint *checkpoint, const char *path, struct mo_error *error) {
    *checkpoint = (struct checkpoint){.arena = arena_create()};
    if (!checkpoint->arena) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
    checkpoint->path = arena_strdup(checkpoint->arena, path);
    char gguf[4096];
    int code = gguf_locate(path, gguf, sizeof gguf, error);
    if (!checkpoint->path) {
        code = mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
    } else if (code > 0) {
        code = gguf_open(checkpoint, gguf, error);
    } else if (!code && !file_is_directory(path)) {
        code = open_packed(checkpoint, error);
    }
    if (code) checkpoint_close(checkpoint);
    return code;
}

static int open_gguf_tensors(struct checkpoint *checkpoint, struct mo_error *error) {
    struct tensor *list = NULL;
    int code = gguf_list_tensors(checkpoint, &list, &checkpoint->n_tensors, error);
    if (!code) code = finish_tensors(checkpoint, list, checkpoint->path, error);
    free(list);
    return code;
}

int checkpoint_open_tensors(struct checkpoint *checkpoint, struct mo_error *error) {
    char index[4200], single[4200];
    const char *dir = checkpoint->path;
    if (checkpoint->is_packed) return 0;
    if (checkpoint->gguf) return open_gguf_tensors(checkpoint, error);
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", dir);
    snprintf(single, sizeof single, "%s/model.safetensors", dir);
    if (file_exists(index)) return open_index(checkpoint, dir, index, error);
    if (file_exists(single)) return open_shards(checkpoint, dir, &(const char *){"model.safetensors"}, 1, error);
    return mo_error_set(error, MO_E_NOT_FOUND, "%s: neither model.safetensors nor model.safetensors.index.json is here",
                        dir);
}

int checkpoint_open(struct checkpoint *checkpoint, const char *path, struct mo_error *error) {
    int code = checkpoint_open_files(checkpoint, path, error);
    if (!code) code = checkpoint_open_tensors(checkpoint, error);
    if (code) checkpoint_close(checkpoint);
    return code;
}

void checkpoint_close(struct checkpoint *checkpoint) {
    for (int i = 0; i < checkpoint->n_shards; i++) file_map_close(&checkpoint->shards[i].map);
    arena_destroy(checkpoint->arena);
    *checkpoint = (struct checkpoint){0};
}

const char *checkpoint_metadata(const struct checkpoint *checkpoint, const char *key) {
    for (int i = 0; i < checkpoint->n_metadata; i++) {
        if (!strcmp(checkpoint->metadata[i].key, key)) return checkpoint->metadata[i].value;
    }
    return NULL;
}

/* The bytes of a small file in a packed one: config.json is in the header, all others are tensors of bytes. */
static const char *find_packed_file(const struct checkpoint *checkpoint, const char *name, size_t *size) {
    char tensor_name[256];
    if (!strcmp(name, CONFIG)) {
        const char *text = checkpoint_metadata(checkpoint, PACK_KEY_CONFIG);
        *size = text ? strlen(text) : 0;
        return text;
    }
    snprintf(tensor_name, sizeof tensor_name, PACK_FILE_PREFIX "%s", name);
    const struct tensor *tensor = checkpoint_find(checkpoint, tensor_name);
    if (!tensor || tensor->dtype != DTYPE_U8) return NULL;
    *size = tensor->bytes;
    return tensor->data;
}

void checkpoint_file_where(const struct checkpoint *checkpoint, const char *name, char *where, size_t where_size) {
    snprintf(where, where_size, checkpoint->is_packed || checkpoint->gguf ? "%s: %s" : "%s/%s", checkpoint->path, name);
}

bool checkpoint_has_file(const struct checkpoint *checkpoint, const char *name) {
    char path[4400];
    size_t size;
    if (checkpoint->is_packed) return find_packed_file(checkpoint, name, &size) != NULL;
    if (checkpoint->gguf) return gguf_has_file(checkpoint->gguf, name);
    checkpoint_file_where(checkpoint, name, path, sizeof path);
    return file_exists(path);
}

/* As it is stored. */
static int read_stored(const struct checkpoint *checkpoint, const char *name, size_t max_bytes, char **data,
                       size_t *size, struct mo_error *error) {
    char where[4400];
    checkpoint_file_where(checkpoint, name, where, sizeof where);
    if (checkpoint->gguf) {
        int code = gguf_read_file(checkpoint->gguf, name, data, size, error);
        if (code || *size <= max_bytes) return code;
        free(*data);
        return mo_error_set(error, MO_E_LIMIT, "%s: larger than the limit of %zu bytes", where, max_bytes);
    }
    if (!checkpoint->is_packed) return file_read(where, max_bytes, data, size, error);
    const char *found = find_packed_file(checkpoint, name, size);
    if (!found) return mo_error_set(error, MO_E_NOT_FOUND, "%s: the file holds none", where);
    if (*size > max_bytes)
        return mo_error_set(error, MO_E_LIMIT, "%s: larger than the limit of %zu bytes", where, max_bytes);
    *data = malloc(*size + 1);
    if (!*data) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for %zu bytes", where, *size);
    memcpy(*data, found, *size);
    (*data)[*size] = 0;
    return 0;
}

int checkpoint_read_file(const struct checkpoint *checkpoint, const char *name, size_t max_bytes, char **data,
                         size_t *size, struct mo_error *error) {
    char where[4400];
    int code = read_stored(checkpoint, name, max_bytes, data, size, error);
    if (code || !checkpoint->overrides || strcmp(name, CONFIG) != 0) return code;
    checkpoint_file_where(checkpoint, name, where, sizeof where);
    code = overrides_apply(checkpoint->overrides, data, size, where, NULL, error);
    if (code) free(*data);
    return code;
}

int checkpoint_changes(const struct checkpoint *checkpoint, json_t **changes, struct mo_error *error) {
    char where[4400], *text;
    size_t size;
    *changes = NULL;
    if (!checkpoint->overrides) {
        *changes = json_array();
        return 0;
    }
    checkpoint_file_where(checkpoint, CONFIG, where, sizeof where);
    int code = read_stored(checkpoint, CONFIG, MAX_CONFIG_BYTES, &text, &size, error);
    if (code) return code;
    code = overrides_apply(checkpoint->overrides, &text, &size, where, changes, error);
    free(text);
    return code;
}
