#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "model/checkpoint.h"

/* The format's own limit on headers. */
static const uint64_t MAX_HEADER_BYTES = 100u << 20;

static const struct {
    const char *name;
    size_t bytes;
} dtype_table[DTYPES] = {
    [DTYPE_F64] = {"F64", 8},         [DTYPE_F32] = {"F32", 4},         [DTYPE_F16] = {"F16", 2},
    [DTYPE_BF16] = {"BF16", 2},       [DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [DTYPE_F8_E5M2] = {"F8_E5M2", 1},
    [DTYPE_F8_E8M0] = {"F8_E8M0", 1}, [DTYPE_F4] = {"F4", 1},           [DTYPE_I64] = {"I64", 8},
    [DTYPE_I32] = {"I32", 4},         [DTYPE_I16] = {"I16", 2},         [DTYPE_I8] = {"I8", 1},
    [DTYPE_U8] = {"U8", 1},           [DTYPE_BOOL] = {"BOOL", 1},       [DTYPE_Q4_0] = {"Q4_0", 2},
    [DTYPE_Q4_1] = {"Q4_1", 2},       [DTYPE_Q5_0] = {"Q5_0", 2},       [DTYPE_Q5_1] = {"Q5_1", 2},
    [DTYPE_Q8_0] = {"Q8_0", 2},       [DTYPE_Q2_K] = {"Q2_K", 2},       [DTYPE_Q3_K] = {"Q3_K", 2},
    [DTYPE_Q4_K] = {"Q4_K", 2},       [DTYPE_Q5_K] = {"Q5_K", 2},       [DTYPE_Q6_K] = {"Q6_K", 2},
    [DTYPE_IQ4_NL] = {"IQ4_NL", 2},   [DTYPE_IQ4_XS] = {"IQ4_XS", 2},   [DTYPE_IQ1_S] = {"IQ1_S", 2},
    [DTYPE_IQ1_M] = {"IQ1_M", 2},     [DTYPE_IQ2_XXS] = {"IQ2_XXS", 2}, [DTYPE_IQ2_XS] = {"IQ2_XS", 2},
    [DTYPE_IQ2_S] = {"IQ2_S", 2},     [DTYPE_IQ3_XXS] = {"IQ3_XXS", 2}, [DTYPE_IQ3_S] = {"IQ3_S", 2},
    [DTYPE_TQ1_0] = {"TQ1_0", 2},     [DTYPE_TQ2_0] = {"TQ2_0", 2},     [DTYPE_MXFP4] = {"MXFP4", 1},
};

const char *dtype_name(enum dtype dtype) {
    return dtype_table[dtype].name;
}

size_t dtype_bytes(enum dtype dtype) {
    return dtype_table[dtype].bytes;
}

int64_t dtype_bytes_of(enum dtype dtype, int64_t elements) {
    int64_t bytes;
    if (dtype == DTYPE_F4) return elements % 2 ? -1 : elements / 2;
    return __builtin_mul_overflow(elements, (int64_t)dtype_bytes(dtype), &bytes) ? -1 : bytes;
}

/* The file being read, for the functions below. */
struct header {
    const uint8_t *data; /* [data_bytes] the part after the header */
    size_t data_bytes;
    const char *path;
    int shard;
    struct arena *arena;
    struct mo_error *error;
};

static int corrupt(const struct header *h, const char *name, const char *expected, const char *found) {
    return mo_error_set(h->error, MO_E_CORRUPT, "%s: tensor %s: expected %s, found %s", h->path, name, expected, found);
}

static int read_dtype(const struct header *h, const json_t *entry, struct tensor *tensor) {
    const char *text = json_string_value(json_object_get(entry, "dtype"));
    if (!text) return corrupt(h, tensor->name, "a \"dtype\" string", "none");
    for (int i = 0; i < DTYPES_PLAIN; i++) {
        if (strcmp(text, dtype_table[i].name) == 0) {
            tensor->dtype = (enum dtype)i;
            return 0;
        }
    }
    return mo_error_set(h->error, MO_E_UNSUPPORTED, "%s: tensor %s: unknown dtype \"%s\"", h->path, tensor->name, text);
}

static int read_shape(const struct header *h, const json_t *entry, struct tensor *tensor) {
    const json_t *shape = json_object_get(entry, "shape");
    size_t n = json_array_size(shape);
    if (!json_is_array(shape) || n > TENSOR_MAX_DIMS) {
        return corrupt(h, tensor->name, "a \"shape\" of at most 4 dimensions", json_is_array(shape) ? "more" : "none");
    }
    tensor->n_dims = (int)n;
    tensor->elements = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(shape, i);
        tensor->shape[i] = json_is_integer(dim) ? json_integer_value(dim) : -1;
        if (tensor->shape[i] < 0 || __builtin_mul_overflow(tensor->elements, tensor->shape[i], &tensor->elements)) {
            return corrupt(h, tensor->name, "dimensions from 0 up whose product is a size", "others");
        }
    }
    return 0;
}

static int read_offsets(const struct header *h, const json_t *entry, struct tensor *tensor) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to)) {
        return corrupt(h, tensor->name, "two integers in \"data_offsets\"", "something else");
    }
    int64_t begin = json_integer_value(from), end = json_integer_value(to);
    if (begin < 0 || end < begin || (uint64_t)end > h->data_bytes) {
        return mo_error_set(h->error, MO_E_CORRUPT,
                            "%s: tensor %s: data_offsets [%lld, %lld] are outside of the file's %zu data bytes "
                            "(truncated download?)",
                            h->path, tensor->name, (long long)begin, (long long)end, h->data_bytes);
    }
    if (dtype_bytes_of(tensor->dtype, tensor->elements) != end - begin) {
        char shape[TENSOR_SHAPE_BYTES];
        return mo_error_set(h->error, MO_E_CORRUPT, "%s: tensor %s: %s %s does not take the %lld bytes it has", h->path,
                            tensor->name, dtype_name(tensor->dtype), tensor_shape_text(tensor, shape),
                            (long long)(end - begin));
    }
    tensor->data = h->data + begin;
    tensor->bytes = (size_t)(end - begin);
    return 0;
}

static int read_tensor(const struct header *h, const char *name, const json_t *entry, struct tensor *tensor) {
    *tensor = (struct tensor){.name = arena_strdup(h->arena, name), .shard = h->shard};
    if (!tensor->name) return mo_error_set(h->error, MO_E_NO_MEMORY, "%s: no memory for its tensors", h->path);
    int code = read_dtype(h, entry, tensor);
    if (!code) code = read_shape(h, entry, tensor);
    if (!code) code = read_offsets(h, entry, tensor);
    return code;
}

static int by_position(const void *a, const void *b) {
    const struct tensor *x = a, *y = b;
    if (x->data != y->data) return (const uint8_t *)x->data < (const uint8_t *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* The format wants the data area covered without overlap and without holes. */
static int check_layout(const struct header *h, struct tensor *tensors, int n) {
    qsort(tensors, (size_t)n, sizeof *tensors, by_position);
    const uint8_t *at = h->data;
    for (int i = 0; i < n; i++) {
        const uint8_t *begin = tensors[i].data;
        if (begin != at) {
            return mo_error_set(h->error, MO_E_CORRUPT, "%s: tensor %s: %s the tensor before it", h->path,
                                tensors[i].name, begin < at ? "overlaps" : "leaves a hole after");
        }
        at = begin + tensors[i].bytes;
    }
    if (at != h->data + h->data_bytes) {
        return mo_error_set(h->error, MO_E_CORRUPT, "%s: %zu bytes after the last tensor belong to none", h->path,
                            (size_t)(h->data + h->data_bytes - at));
    }
    return 0;
}

/* The format wants strings for values; other values are none of ours to judge. */
static int read_metadata(const struct header *h, const json_t *entry, struct safetensors *out) {
    const char *key;
    json_t *value;
    out->metadata = arena_alloc_array(h->arena, json_object_size(entry) + 1, sizeof *out->metadata);
    if (!out->metadata) return mo_error_set(h->error, MO_E_NO_MEMORY, "%s: no memory for its metadata", h->path);
    json_object_foreach((json_t *)entry, key, value) {
        if (!json_is_string(value)) continue;
        struct metadata *item = &out->metadata[out->n_metadata++];
        item->key = arena_strdup(h->arena, key);
        item->value = arena_strdup(h->arena, json_string_value(value));
        if (!item->key || !item->value) {
            return mo_error_set(h->error, MO_E_NO_MEMORY, "%s: no memory for its metadata", h->path);
        }
    }
    return 0;
}

static int read_entries(const struct header *h, json_t *root, struct safetensors *out) {
    if (!json_is_object(root)) return mo_error_set(h->error, MO_E_CORRUPT, "%s: header is not a JSON object", h->path);
    out->tensors = arena_alloc_array(h->arena, json_object_size(root) + 1, sizeof *out->tensors);
    if (!out->tensors) return mo_error_set(h->error, MO_E_NO_MEMORY, "%s: no memory for its tensors", h->path);
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry) {
        bool is_metadata = strcmp(name, "__metadata__") == 0;
        int code =
            is_metadata ? read_metadata(h, entry, out) : read_tensor(h, name, entry, &out->tensors[out->n_tensors++]);
        if (code) return code;
    }
    return check_layout(h, out->tensors, out->n_tensors);
}

int safetensors_parse(const uint8_t *data, size_t size, const char *path, int shard, struct arena *arena,
                      struct safetensors *out, struct mo_error *error) {
    uint64_t length = 0;
    *out = (struct safetensors){0};
    if (size < 8) return mo_error_set(error, MO_E_CORRUPT, "%s: %zu bytes are no safetensors file", path, size);
    for (int i = 7; i >= 0; i--) length = length << 8 | data[i];
    if (length > size - 8 || length > MAX_HEADER_BYTES) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: header length %llu does not fit a file of %zu bytes", path,
                            (unsigned long long)length, size);
    }
    json_t *root;
    int code = json_parse((const char *)data + 8, (size_t)length, path, &root, error);
    if (code) {
        mo_error_prefix(error, "safetensors header");
        return json_damage(code, error);
    }
    struct header h = {data + 8 + length, size - 8 - (size_t)length, path, shard, arena, error};
    code = read_entries(&h, root, out);
    json_decref(root);
    out->header_bytes = 8 + (size_t)length;
    return code;
}
