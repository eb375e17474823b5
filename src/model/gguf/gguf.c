#include "model/gguf/gguf.h"

#include <stdlib.h>
#include <string.h>

/* Far above any model's; the file's size bounds them too. */
enum { MAX_VALUES = 1 << 16, MAX_TENSORS = 1 << 20, MAX_KEY_BYTES = 65535, MAX_NAME_BYTES = 127, MAX_ALIGN = 1 << 20 };
enum { DEFAULT_ALIGN = 32 };

/* By ggml's number. What is not read has its size here too: a file may hold some in layers that are left out. */
static const struct gguf_tensor_type types[] = {
    [0] = {"F32", 1, 4, DTYPE_F32},
    [1] = {"F16", 1, 2, DTYPE_F16},
    [2] = {"Q4_0", 32, 18, DTYPE_Q4_0},
    [3] = {"Q4_1", 32, 20, DTYPE_Q4_1},
    [6] = {"Q5_0", 32, 22, DTYPE_Q5_0},
    [7] = {"Q5_1", 32, 24, DTYPE_Q5_1},
    [8] = {"Q8_0", 32, 34, DTYPE_Q8_0},
    [9] = {"Q8_1", 32, 36, DTYPES},
    [10] = {"Q2_K", 256, 84, DTYPE_Q2_K},
    [11] = {"Q3_K", 256, 110, DTYPE_Q3_K},
    [12] = {"Q4_K", 256, 144, DTYPE_Q4_K},
    [13] = {"Q5_K", 256, 176, DTYPE_Q5_K},
    [14] = {"Q6_K", 256, 210, DTYPE_Q6_K},
    [15] = {"Q8_K", 256, 292, DTYPES},
    [16] = {"IQ2_XXS", 256, 66, DTYPE_IQ2_XXS},
    [17] = {"IQ2_XS", 256, 74, DTYPE_IQ2_XS},
    [18] = {"IQ3_XXS", 256, 98, DTYPE_IQ3_XXS},
    [19] = {"IQ1_S", 256, 50, DTYPE_IQ1_S},
    [20] = {"IQ4_NL", 32, 18, DTYPE_IQ4_NL},
    [21] = {"IQ3_S", 256, 110, DTYPE_IQ3_S},
    [22] = {"IQ2_S", 256, 82, DTYPE_IQ2_S},
    [23] = {"IQ4_XS", 256, 136, DTYPE_IQ4_XS},
    [24] = {"I8", 1, 1, DTYPE_I8},
    [25] = {"I16", 1, 2, DTYPE_I16},
    [26] = {"I32", 1, 4, DTYPE_I32},
    [27] = {"I64", 1, 8, DTYPE_I64},
    [28] = {"F64", 1, 8, DTYPE_F64},
    [29] = {"IQ1_M", 256, 56, DTYPE_IQ1_M},
    [30] = {"BF16", 1, 2, DTYPE_BF16},
    [34] = {"TQ1_0", 256, 54, DTYPE_TQ1_0},
    [35] = {"TQ2_0", 256, 66, DTYPE_TQ2_0},
    [39] = {"MXFP4", 32, 17, DTYPE_MXFP4},
    [40] = {"NVFP4", 64, 36, DTYPES},
};

const struct gguf_tensor_type *gguf_type_of(uint32_t type) {
    return type < sizeof types / sizeof *types && types[type].name ? &types[type] : NULL;
}

/* The file being read; `at` is where. */
struct reader {
    const uint8_t *data;
    size_t size, at;
    const char *path;
    int shard;
    struct arena *arena;
    struct mo_error *error;
};

static int truncated(const struct reader *r, const char *what) {
    return mo_error_set(r->error, MO_E_CORRUPT, "%s: the file ends at byte %zu, in %s (truncated download?)", r->path,
                        r->size, what);
}

static int no_memory(const struct reader *r) {
    return mo_error_set(r->error, MO_E_NO_MEMORY, "%s: no memory for its header", r->path);
}

/* The next n bytes, or NULL. */
static const uint8_t *take(struct reader *r, uint64_t n) {
    if (n > r->size - r->at) return NULL;
    const uint8_t *found = r->data + r->at;
    r->at += (size_t)n;
    return found;
}

static int read_u32(struct reader *r, const char *what, uint32_t *out) {
    const uint8_t *bytes = take(r, 4);
    if (!bytes) return truncated(r, what);
    *out = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return 0;
}

static int read_u64(struct reader *r, const char *what, uint64_t *out) {
    uint32_t low = 0, high = 0;
    int code = read_u32(r, what, &low);
    if (!code) code = read_u32(r, what, &high);
    if (!code) *out = (uint64_t)high << 32 | low;
    return code;
}

/* A name: it must be text of 1 to max bytes, and becomes NUL-terminated. */
static int read_name(struct reader *r, const char *what, size_t max, const char **out) {
    uint64_t size;
    int code = read_u64(r, what, &size);
    if (code) return code;
    if (size == 0 || size > max) {
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: %s at byte %zu: expected 1 to %zu bytes, found %llu", r->path,
                            what, r->at, max, (unsigned long long)size);
    }
    const uint8_t *bytes = take(r, size);
    if (!bytes) return truncated(r, what);
    if (memchr(bytes, 0, (size_t)size)) {
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: %s before byte %zu holds a NUL", r->path, what, r->at);
    }
    *out = arena_strndup(r->arena, (const char *)bytes, (size_t)size);
    return *out ? 0 : no_memory(r);
}

/* ---- keys and values ---- */

static const uint8_t scalar_bytes[GGUF_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

static int pass_text(struct reader *r, const char *key) {
    uint64_t size;
    int code = read_u64(r, key, &size);
    return code || take(r, size) ? code : truncated(r, key);
}

static int read_array(struct reader *r, struct gguf_value *value) {
    uint32_t element;
    int code = read_u32(r, value->key, &element);
    if (!code) code = read_u64(r, value->key, &value->count);
    if (code) return code;
    if (element >= GGUF_TYPES || element == GGUF_ARRAY) {
        return mo_error_set(r->error, element == GGUF_ARRAY ? MO_E_UNSUPPORTED : MO_E_CORRUPT,
                            "%s: key \"%.100s\": expected an array of numbers or strings, found type %u", r->path,
                            value->key, element);
    }
    value->element = (enum gguf_type)element;
    value->data = r->data + r->at;
    uint64_t width = element == GGUF_STRING ? 8 : scalar_bytes[element];
    if (value->count > (r->size - r->at) / width) return truncated(r, value->key);
    if (element != GGUF_STRING) take(r, value->count * width);
    for (uint64_t i = 0; element == GGUF_STRING && i < value->count && !code; i++) code = pass_text(r, value->key);
    value->bytes = (size_t)(r->data + r->at - value->data);
    return code;
}

static int read_value(struct reader *r, struct gguf_value *value) {
    uint32_t type = 0;
    *value = (struct gguf_value){.count = 1};
    int code = read_name(r, "a key", MAX_KEY_BYTES, &value->key);
    if (!code) code = read_u32(r, value->key, &type);
    if (code) return code;
    if (type >= GGUF_TYPES) {
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: key \"%.100s\": unknown type %u", r->path, value->key, type);
    }
    value->type = value->element = (enum gguf_type)type;
    if (type == GGUF_ARRAY) return read_array(r, value);
    value->data = r->data + r->at;
    if (type == GGUF_STRING) {
        code = pass_text(r, value->key);
    } else if (!take(r, scalar_bytes[type])) {
        code = truncated(r, value->key);
    }
    value->bytes = (size_t)(r->data + r->at - value->data);
    return code;
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const struct gguf_value *)a)->key, ((const struct gguf_value *)b)->key);
}

static int read_values(struct reader *r, struct gguf_header *out) {
    out->values = arena_alloc_array(r->arena, (size_t)out->n_values + 1, sizeof *out->values);
    if (!out->values) return no_memory(r);
    for (int i = 0; i < out->n_values; i++) {
        int code = read_value(r, &out->values[i]);
        if (code) return code;
    }
    qsort(out->values, (size_t)out->n_values, sizeof *out->values, by_key);
    for (int i = 1; i < out->n_values; i++) {
        if (strcmp(out->values[i - 1].key, out->values[i].key)) continue;
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: key \"%.100s\" is there twice", r->path, out->values[i].key);
    }
    return 0;
}

/* ---- tensors ---- */

static int read_shape(struct reader *r, struct gguf_tensor *tensor) {
    uint32_t n;
    int code = read_u32(r, tensor->name, &n);
    if (code) return code;
    if (n == 0 || n > TENSOR_MAX_DIMS) {
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: tensor %s: expected 1 to %d dimensions, found %u", r->path,
                            tensor->name, TENSOR_MAX_DIMS, n);
    }
    tensor->n_dims = (int)n;
    tensor->elements = 1;
    for (int i = (int)n - 1; i >= 0; i--) {
        uint64_t dim = 0;
        code = read_u64(r, tensor->name, &dim);
        if (code) return code;
        tensor->shape[i] = (int64_t)dim;
        if (dim == 0 || dim > INT64_MAX || __builtin_mul_overflow(tensor->elements, (int64_t)dim, &tensor->elements)) {
            return mo_error_set(r->error, MO_E_CORRUPT,
                                "%s: tensor %s: expected dimensions from 1 up whose product is a size, found %llu",
                                r->path, tensor->name, (unsigned long long)dim);
        }
    }
    return 0;
}

static int measure(const struct reader *r, struct gguf_tensor *tensor) {
    const struct gguf_tensor_type *type = gguf_type_of(tensor->type);
    if (!type) {
        return mo_error_set(r->error, MO_E_UNSUPPORTED,
                            "%s: tensor %s: unknown ggml type %u: a newer kind of file, or a damaged one", r->path,
                            tensor->name, tensor->type);
    }
    int64_t cols = tensor->shape[tensor->n_dims - 1], bytes;
    if (cols % type->values) {
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: tensor %s: expected rows of whole %s blocks of %d, found %lld",
                            r->path, tensor->name, type->name, type->values, (long long)cols);
    }
    if (__builtin_mul_overflow(tensor->elements / type->values, (int64_t)type->bytes, &bytes)) {
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: tensor %s: too large", r->path, tensor->name);
    }
    tensor->bytes = (size_t)bytes;
    return 0;
}

/* Its data are placed later: where they begin is known only behind the last header. */
static int read_tensor(struct reader *r, struct gguf_tensor *tensor, uint64_t *offset) {
    *tensor = (struct gguf_tensor){.shard = r->shard};
    int code = read_name(r, "a tensor's name", MAX_NAME_BYTES, &tensor->name);
    if (!code) code = read_shape(r, tensor);
    if (!code) code = read_u32(r, tensor->name, &tensor->type);
    if (!code) code = read_u64(r, tensor->name, offset);
    return code ? code : measure(r, tensor);
}

static int by_position(const void *a, const void *b) {
    const struct gguf_tensor *x = a, *y = b;
    return x->data < y->data ? -1 : x->data > y->data;
}

/* Padding between tensors is what the format wants; two tensors in one place are not. */
static int check_overlap(const struct reader *r, struct gguf_header *out) {
    qsort(out->tensors, (size_t)out->n_tensors, sizeof *out->tensors, by_position);
    for (int i = 1; i < out->n_tensors; i++) {
        const struct gguf_tensor *before = &out->tensors[i - 1];
        if (out->tensors[i].data >= before->data + before->bytes) continue;
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: tensor %s overlaps tensor %s", r->path, out->tensors[i].name,
                            before->name);
    }
    return 0;
}

static int place(const struct reader *r, struct gguf_tensor *tensor, uint64_t offset, size_t align, size_t begin) {
    size_t room = begin < r->size ? r->size - begin : 0;
    if (offset % align) {
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: tensor %s: expected an offset in steps of %zu, found %llu",
                            r->path, tensor->name, align, (unsigned long long)offset);
    }
    if (offset > room || tensor->bytes > room - offset) {
        return mo_error_set(r->error, MO_E_CORRUPT,
                            "%s: tensor %s: its %zu bytes at %llu are outside of the file's %zu data bytes (truncated "
                            "download?)",
                            r->path, tensor->name, tensor->bytes, (unsigned long long)offset, room);
    }
    tensor->data = r->data + begin + offset;
    return 0;
}

static int read_alignment(const struct reader *r, const struct gguf_header *out, size_t *align) {
    const struct gguf of = {.path = r->path, .values = out->values, .n_values = out->n_values};
    int value = DEFAULT_ALIGN;
    int code = gguf_get_int(&of, "general.alignment", JSON_OPTIONAL_KEY, 1, MAX_ALIGN, &value, r->error);
    if (!code && value & (value - 1)) {
        code = mo_error_set(r->error, MO_E_CORRUPT, "%s: key \"general.alignment\": expected a power of two, found %d",
                            r->path, value);
    }
    *align = (size_t)value;
    return code;
}

static int read_tensors(struct reader *r, struct gguf_header *out) {
    size_t n = (size_t)out->n_tensors, align = 1;
    uint64_t *offsets = malloc((n + 1) * sizeof *offsets);
    out->tensors = arena_alloc_array(r->arena, n + 1, sizeof *out->tensors);
    int code = offsets && out->tensors ? 0 : no_memory(r);
    for (size_t i = 0; i < n && !code; i++) code = read_tensor(r, &out->tensors[i], &offsets[i]);
    if (!code) code = read_alignment(r, out, &align);
    size_t begin = (r->at + align - 1) / align * align;
    for (size_t i = 0; i < n && !code; i++) code = place(r, &out->tensors[i], offsets[i], align, begin);
    free(offsets);
    out->header_bytes = begin < r->size ? begin : r->size;
    return code ? code : check_overlap(r, out);
}

/* ---- the file ---- */

static int check_count(const struct reader *r, const char *what, uint64_t count, int most, int least_bytes) {
    if (count <= (uint64_t)most && count <= r->size / (uint64_t)least_bytes) return 0;
    return mo_error_set(r->error, MO_E_CORRUPT, "%s: a count of %llu %s does not fit a file of %zu bytes", r->path,
                        (unsigned long long)count, what, r->size);
}

static int read_version(struct reader *r) {
    uint32_t version = 0;
    const uint8_t *magic = take(r, 4);
    if (!magic || memcmp(magic, "GGUF", 4)) {
        return mo_error_set(r->error, MO_E_CORRUPT, "%s: no GGUF file: it does not begin with \"GGUF\"", r->path);
    }
    int code = read_u32(r, "its version", &version);
    if (code) return code;
    if (version == 2 || version == 3) return 0;
    const char *hint = version == 1           ? " (from 2023: convert it again)"
                       : !(version & 0xffffu) ? " (it is big-endian)"
                                              : "";
    return mo_error_set(r->error, MO_E_UNSUPPORTED, "%s: expected GGUF version 2 or 3, found %u%s", r->path, version,
                        hint);
}

int gguf_parse(const uint8_t *data, size_t size, const char *path, int shard, struct arena *arena,
               struct gguf_header *out, struct mo_error *error) {
    struct reader r = {.data = data, .size = size, .path = path, .shard = shard, .arena = arena, .error = error};
    uint64_t n_tensors = 0, n_values = 0;
    *out = (struct gguf_header){0};
    int code = read_version(&r);
    if (!code) code = read_u64(&r, "the number of tensors", &n_tensors);
    if (!code) code = read_u64(&r, "the number of keys", &n_values);
    if (!code) code = check_count(&r, "tensors", n_tensors, MAX_TENSORS, 8 + 1 + 4 + 8 + 4 + 8);
    if (!code) code = check_count(&r, "keys", n_values, MAX_VALUES, 8 + 1 + 4 + 1);
    if (code) return code;
    out->n_tensors = (int)n_tensors;
    out->n_values = (int)n_values;
    code = read_values(&r, out);
    return code ? code : read_tensors(&r, out);
}
