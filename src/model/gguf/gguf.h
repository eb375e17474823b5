/* model/gguf/gguf.h - llama.cpp's GGUF files as one more container of a struct checkpoint.
 *
 * A file is: "GGUF", version (2 or 3), number of tensors, number of key/value pairs; the pairs; name, shape, type and offset of
 * each tensor; padding; data. All numbers are little-endian. Everything that a file says of itself is checked against its size
 * before it is used.
 *
 * gguf/gguf.c          reads one file's header
 * gguf/values.c   looks up values by key
 * gguf/open.c     finds the files of a model, and joins them
 * gguf/tensors.c  gives the tensors the names and shapes that weights.c knows; stacked experts become one tensor each
 * gguf/kv_b.c     joins the two parts of kv_b
 * gguf_config*.c, gguf/tokenizer.c  write config.json, tokenizer.json and so on from the values, for the readers of these
 *
 * Source: the GGUF specification (ggml's docs/gguf.md), llama.cpp's converter and loader of "deepseek2" and "deepseek4". Includes:
 * base, model. */
#ifndef MOEBIUS_MODEL_GGUF_GGUF_H
#define MOEBIUS_MODEL_GGUF_GGUF_H

#include "base/arena.h"
#include "base/json.h"
#include "base/pool.h"
#include "model/checkpoint.h"
#include "model/format.h"

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
};

/* Bytes of the map, not NUL-terminated. */
struct gguf_text {
    const char *data;
    size_t size;
};

struct gguf_value {
    const char *key;
    enum gguf_type type, element; /* element: of an array, never GGUF_ARRAY */
    uint64_t count;               /* of an array's elements, else 1 */
    const uint8_t *data;          /* [bytes] in the map, of any alignment; a string begins with its length */
    size_t bytes;
};

struct gguf_tensor {
    const char *name;
    uint32_t type; /* ggml's number, one that gguf_type_of knows */
    int n_dims;
    int64_t shape[TENSOR_MAX_DIMS]; /* rows first: the other way round than in the file */
    int64_t elements;
    const uint8_t *data; /* [bytes] in the map */
    size_t bytes;
    int shard;
};

/* One file's header. */
struct gguf_header {
    struct gguf_value *values; /* [n_values] by key */
    int n_values;
    struct gguf_tensor *tensors; /* [n_tensors] by position in the file */
    int n_tensors;
    size_t header_bytes; /* up to the data */
};
int gguf_parse(const uint8_t *data, size_t size, const char *path, int shard, struct arena *arena,
               struct gguf_header *out, struct mo_error *error);

/* A model: the values of its first file, the tensors of all. */
struct gguf {
    const char *path; /* of the first file */
    struct gguf_value *values;
    int n_values;
    struct gguf_tensor *tensors; /* [n_tensors] by name */
    int n_tensors;
    const char *config; /* config.json */
};
const struct gguf_tensor *gguf_find_tensor(const struct gguf *gguf, const char *name); /* or NULL */
/* What keys begin with: "deepseek2" (V2 to V3), "deepseek4" (V4); the first also for what gguf_config refuses. */
const char *gguf_architecture(const struct gguf *gguf);

/* A ggml type. `dtype` is DTYPES for those that are not read. */
struct gguf_tensor_type {
    const char *name;
    int values, bytes; /* of a block */
    enum dtype dtype;
};
const struct gguf_tensor_type *gguf_type_of(uint32_t type); /* NULL: unknown */
/* The format of a matrix of this type; false if a matrix cannot be of it. */
bool gguf_mat_format(enum dtype dtype, enum mat_format *format);

/* ---- values ---- */

const struct gguf_value *gguf_find(const struct gguf *gguf, const char *key); /* or NULL */
int gguf_get_int(const struct gguf *gguf, const char *key, enum json_need need, int64_t min, int64_t max, int *out,
                 struct mo_error *error);
/* An F32 becomes the double with the same shortest decimal, so that 0.1f is 0.1 as in the config.json that it came from. */
int gguf_get_double(const struct gguf *gguf, const char *key, enum json_need need, double *out, struct mo_error *error);
int gguf_get_bool(const struct gguf *gguf, const char *key, enum json_need need, bool *out, struct mo_error *error);
int gguf_get_text(const struct gguf *gguf, const char *key, enum json_need need, struct gguf_text *out,
                  struct mo_error *error);
/* An array; `element` GGUF_I32 takes U32 too. */
int gguf_get_array(const struct gguf *gguf, const char *key, enum json_need need, enum gguf_type element,
                   const struct gguf_value **out, struct mo_error *error);
/* Walks an array of strings: begin with *at = 0. */
struct gguf_text gguf_next_text(const struct gguf_value *array, size_t *at);
int32_t gguf_i32_at(const struct gguf_value *array, uint64_t index);
double gguf_f32_at(const struct gguf_value *array, uint64_t index); /* by its shortest decimal, too */
bool gguf_text_is(struct gguf_text text, const char *what);
/* 10 * an F32, by its shortest decimal. */
double gguf_ten_times(double shortest);

/* ---- a checkpoint ---- */

/* Is it a GGUF file, or a folder that holds one model of them and no safetensors? Then path [path_size] is the first file.
 * Returns 1, 0, or an error. */
int gguf_locate(const char *model, char *path, size_t path_size, struct mo_error *error);
/* Maps the files and reads their headers: checkpoint->gguf. */
int gguf_open(struct checkpoint *checkpoint, const char *path, struct mo_error *error);
/* The tensors under the names that names.c knows: list [n], malloc'd. */
int gguf_list_tensors(const struct checkpoint *checkpoint, struct tensor **list, int *n, struct mo_error *error);

/* kv_b [heads * (nope + v)][kv_lora] from its parts, in memory of the arena. `path` names the file in messages. */
struct model;
enum mat_format gguf_joined_format(enum mat_format k, enum mat_format v); /* what parts of these formats become */
int gguf_join_kv_b(const struct model *model, const struct tensor *k, const struct tensor *v, const char *path,
                   struct pool *pool, struct arena *arena, struct mat *mat, struct mo_error *error);

/* The small files. Text is malloc'd, NUL-terminated, the caller's. */
bool gguf_has_file(const struct gguf *gguf, const char *name);
int gguf_read_file(const struct gguf *gguf, const char *name, char **text, size_t *size, struct mo_error *error);
int gguf_config(const struct gguf *gguf, json_t **root, struct mo_error *error);
int gguf_generation_config(const struct gguf *gguf, json_t **root, struct mo_error *error);
int gguf_tokenizer(const struct gguf *gguf, json_t **root, struct mo_error *error);
int gguf_tokenizer_config(const struct gguf *gguf, json_t **root, struct mo_error *error);

/* Reads every tensor and looks for values that are not finite, on all threads: `info --verify`. */
int gguf_verify(const struct checkpoint *checkpoint, struct pool *pool, struct mo_error *error);

#endif
