#include "plan/source.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/text.h"
#include "model/gguf/gguf.h"
#include "plan/headers.h"

enum { PATH_BYTES = 4400, MAX_CONFIG_BYTES = 4 << 20 };

/* What config.json says, or is told otherwise. Takes over `text`. */
static int parse_config(struct plan_source *source, char *text, size_t size, const char *path, struct mo_error *error) {
    int code = source->overrides ? overrides_apply(source->overrides, &text, &size, path, NULL, error) : 0;
    if (!code) code = plan_arch_parse(&source->arch, text, size, path, error);
    free(text);
    return code;
}

static int read_config(struct plan_source *source, const char *path, struct mo_error *error) {
    char *text;
    size_t size;
    int code = file_read(path, MAX_CONFIG_BYTES, &text, &size, error);
    return code ? code : parse_config(source, text, size, path, error);
}

/* Every header of a folder; a folder without weights is as good as its config.json. */
static int read_folder_headers(struct plan_source *source, const char *dir, struct mo_error *error) {
    struct plan_seen seen = {0};
    DIR *folder = opendir(dir);
    if (!folder) return mo_error_set(error, MO_E_IO, "%s: %s", dir, strerror(errno));
    int code = 0;
    for (const struct dirent *file; !code && (file = readdir(folder));) {
        char path[PATH_BYTES];
        json_t *header = NULL;
        if (!text_ends_with(file->d_name, ".safetensors")) continue;
        snprintf(path, sizeof path, "%.4000s/%s", dir, file->d_name);
        code = plan_header_read(&header, path, error);
        if (!code) code = plan_header_add(&seen, header, &source->arch, path, error);
        json_decref(header);
    }
    closedir(folder);
    source->has_weights = !code && seen.tensors > 0;
    if (source->has_weights) plan_seen_finish(&seen, &source->arch, &source->weights);
    return code;
}

/* Is it a part of kv_b? Then what the engine joins both parts to. */
static bool is_joined(const struct checkpoint *checkpoint, const struct tensor *tensor, enum dtype *joined) {
    static const enum dtype dtypes[] = {[MAT_F32] = DTYPE_F32, [MAT_F16] = DTYPE_F16, [MAT_BF16] = DTYPE_BF16};
    static const char *const ends[] = {SPLIT_K_B, SPLIT_V_B};
    enum mat_format formats[2];
    char name[PATH_BYTES];
    const char *end = strstr(tensor->name, ends[0]);
    if (!end) end = strstr(tensor->name, ends[1]);
    for (int i = 0; i < 2 && end; i++) {
        snprintf(name, sizeof name, "%.*s%s", (int)(end - tensor->name), tensor->name, ends[i]);
        const struct tensor *part = checkpoint_find(checkpoint, name);
        if (!part || !gguf_mat_format(part->dtype, &formats[i])) return false;
    }
    if (end) *joined = dtypes[gguf_joined_format(formats[0], formats[1])];
    return end;
}

/* As a header of safetensors would say it. */
static json_t *tensor_json(const struct checkpoint *checkpoint, const struct tensor *tensor) {
    enum dtype dtype = tensor->dtype;
    json_int_t bytes = (json_int_t)tensor->bytes;
    if (is_joined(checkpoint, tensor, &dtype)) bytes = (json_int_t)tensor->elements * (json_int_t)dtype_bytes(dtype);
    json_t *shape = json_array();
    for (int i = 0; i < tensor->n_dims; i++) json_array_append_new(shape, json_integer(tensor->shape[i]));
    return json_pack("{ss so s[iI]}", "dtype", dtype_name(dtype), "shape", shape, "data_offsets", 0, bytes);
}

static int read_gguf(struct plan_source *source, const struct checkpoint *checkpoint, struct mo_error *error) {
    struct plan_seen seen = {0};
    char *config;
    size_t size;
    int code = checkpoint_read_file(checkpoint, "config.json", MAX_CONFIG_BYTES, &config, &size, error);
    if (code) return code;
    code = parse_config(source, config, size, checkpoint->path, error);
    json_t *header = json_object();
    for (int i = 0; i < checkpoint->n_tensors && !code; i++) {
        json_object_set_new(header, checkpoint->tensors[i].name, tensor_json(checkpoint, &checkpoint->tensors[i]));
    }
    if (!code) code = plan_header_add(&seen, header, &source->arch, checkpoint->path, error);
    json_decref(header);
    if (code) return code;
    source->has_weights = true;
    plan_seen_finish(&seen, &source->arch, &source->weights);
    return 0;
}

static int open_gguf(struct plan_source *source, const char *path, struct mo_error *error) {
    struct checkpoint checkpoint;
    int code = checkpoint_open(&checkpoint, path, error);
    if (code) return code;
    code = read_gguf(source, &checkpoint, error);
    checkpoint_close(&checkpoint);
    return code;
}

static int open_folder(struct plan_source *source, const char *dir, struct mo_error *error) {
    char path[PATH_BYTES];
    int gguf = gguf_locate(dir, path, sizeof path, error);
    if (gguf) return gguf < 0 ? gguf : open_gguf(source, path, error);
    snprintf(path, sizeof path, "%.4000s/config.json", dir);
    int code = read_config(source, path, error);
    if (!code) code = read_folder_headers(source, dir, error);
    plan_arch_set_name(&source->arch, dir);
    return code;
}

static void path_beside(const char *path, const char *name, char *out, size_t size) {
    const char *slash = strrchr(path, '/');
    snprintf(out, size, "%.*s%s", slash ? (int)(slash - path) + 1 : 0, path, name);
}

/* What the header belongs to: what it says itself, what lies beside it, or what it looks like. */
static int find_arch(struct plan_source *source, const json_t *header, const char *path, struct mo_error *error) {
    char beside[PATH_BYTES];
    const char *config = plan_header_config(header), *match = plan_header_match(header);
    path_beside(path, "config.json", beside, sizeof beside);
    if (config) {
        char *text = strdup(config);
        if (!text) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", path);
        return parse_config(source, text, strlen(text), path, error);
    }
    if (file_exists(beside)) return read_config(source, beside, error);
    if (match && !source->overrides && plan_arch_builtin(&source->arch, match)) return 0;
    return mo_error_set(error, MO_E_NOT_FOUND,
                        "%s: a header does not say how many experts a token takes, and its shapes are of no built-in "
                        "model: put the model's config.json beside it",
                        path);
}

static int open_header(struct plan_source *source, const char *path, struct mo_error *error) {
    struct plan_seen seen = {0};
    json_t *header = NULL;
    int code = plan_header_read(&header, path, error);
    if (!code) code = find_arch(source, header, path, error);
    if (!code) code = plan_header_add(&seen, header, &source->arch, path, error);
    if (!code && !seen.tensors) code = mo_error_set(error, MO_E_CORRUPT, "%s: a header without tensors", path);
    json_decref(header);
    if (code) return code;
    source->has_weights = true;
    plan_seen_finish(&seen, &source->arch, &source->weights);
    if (!plan_arch_builtin(&(struct plan_arch){0}, source->arch.name)) plan_arch_set_name(&source->arch, path);
    return 0;
}

/* JSON begins with a brace; a safetensors file with a length, whose eighth byte is always 0. */
static int open_file(struct plan_source *source, const char *path, struct mo_error *error) {
    char gguf[PATH_BYTES];
    int found = gguf_locate(path, gguf, sizeof gguf, error);
    if (found) return found < 0 ? found : open_gguf(source, gguf, error);
    FILE *file = fopen(path, "rb");
    if (!file) return mo_error_set(error, MO_E_IO, "%s: %s", path, strerror(errno));
    uint8_t start[8] = {0};
    size_t n = fread(start, 1, sizeof start, file);
    fclose(file);
    bool json = n < sizeof start || start[7] != 0;
    return json ? read_config(source, path, error) : open_header(source, path, error);
}

int plan_source_open(struct plan_source *source, const char *path, const struct overrides *overrides,
                     struct mo_error *error) {
    *source = (struct plan_source){.overrides = overrides};
    return file_is_directory(path) ? open_folder(source, path, error) : open_file(source, path, error);
}
