/* model/checkpoint.h - the files of a model as one list of named tensors, mapped read-only, and the small files beside them.
 * A model is a folder, or one packed file (pack.h) that holds config.json, the tokenizer and the weights, or GGUF files (gguf/gguf.h),
 * whose values are turned into these small files.
 * A reader only lists (name, dtype, shape, bytes); meaning comes later (names.c, weights.c).
 * Source: the safetensors format (8-byte little-endian header length, JSON header, data). */
#ifndef MOEBIUS_MODEL_CHECKPOINT_H
#define MOEBIUS_MODEL_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

enum dtype {
    DTYPE_F64,
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_F8_E8M0,
    DTYPE_F4,
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_I16,
    DTYPE_I8,
    DTYPE_U8,
    DTYPE_BOOL,
    DTYPES_PLAIN, /* those of safetensors are before this; blocks of GGUF follow, in the order of enum mat_format */
    DTYPE_Q4_0 = DTYPES_PLAIN,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_Q8_0,
    DTYPE_Q2_K,
    DTYPE_Q3_K,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_IQ4_NL,
    DTYPE_IQ4_XS,
    DTYPE_IQ1_S,
    DTYPE_IQ1_M,
    DTYPE_IQ2_XXS,
    DTYPE_IQ2_XS,
    DTYPE_IQ2_S,
    DTYPE_IQ3_XXS,
    DTYPE_IQ3_S,
    DTYPE_TQ1_0,
    DTYPE_TQ2_0,
    DTYPE_MXFP4,
    DTYPES
};
const char *dtype_name(enum dtype dtype);
size_t dtype_bytes(enum dtype dtype); /* of a value (F4: of two); of blocks what they are aligned to */
/* What so many values take; -1: no whole number of bytes, or more than a size. Not of blocks. */
int64_t dtype_bytes_of(enum dtype dtype, int64_t elements);

enum { TENSOR_MAX_DIMS = 4, TENSOR_SHAPE_BYTES = TENSOR_MAX_DIMS * 22 + 3 }; /* of 19 digits, a sign and ", " each */

struct tensor {
    const char *name;
    enum dtype dtype;
    int n_dims; /* 0: a scalar */
    int64_t shape[TENSOR_MAX_DIMS];
    int64_t elements;
    const void *data; /* [bytes] in the map */
    size_t bytes;
    int shard;
};

struct shard {
    const char *path;
    struct file_map map;
    size_t header_bytes; /* 8 + the JSON header */
};

/* One entry of a header's __metadata__. */
struct metadata {
    const char *key, *value;
};

struct gguf;
struct overrides;

struct checkpoint {
    struct arena *arena;
    const char *path;                  /* of the folder or the packed file */
    bool is_packed;                    /* one file that holds everything */
    const struct gguf *gguf;           /* or NULL */
    const struct overrides *overrides; /* of config.json, set once the files are open; borrowed; or NULL */
    const struct metadata *metadata;   /* [n_metadata] of a packed file; of a GGUF its general.* strings */
    int n_metadata;
    struct shard *shards; /* [n_shards] */
    int n_shards;
    struct tensor *tensors; /* [n_tensors], by name */
    int n_tensors;
    int64_t total_bytes; /* of all tensors */
};

/* What GGUF files that lack kv_b have instead of it, behind its name: [heads][kv_lora][nope] and [heads][v][kv_lora]. */
#define SPLIT_K_B ".k_b"
#define SPLIT_V_B ".v_b"

/* Opens a packed file, a GGUF file, or of a folder DIR/model.safetensors or the shards that DIR/model.safetensors.index.json names. Only
 * headers are read. A folder that holds one GGUF model and no safetensors is as good as that. */
int checkpoint_open(struct checkpoint *checkpoint, const char *path, struct mo_error *error);
/* The same in two steps: after the first the small files can be read, in a folder whether it has weights or not. */
int checkpoint_open_files(struct checkpoint *checkpoint, const char *path, struct mo_error *error);
int checkpoint_open_tensors(struct checkpoint *checkpoint, struct mo_error *error);
void checkpoint_close(struct checkpoint *checkpoint); /* accepts a zeroed one */
/* Which shard's map holds these bytes; -1: none. */
int checkpoint_find_shard(const struct checkpoint *checkpoint, const uint8_t *data, size_t size);
/* NULL if there is no such tensor. */
const struct tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);

/* The small files: "config.json", "tokenizer.json", ... `data` is malloc'd, NUL-terminated, the caller's. */
bool checkpoint_has_file(const struct checkpoint *checkpoint, const char *name);
int checkpoint_read_file(const struct checkpoint *checkpoint, const char *name, size_t max_bytes, char **data,
                         size_t *size, struct mo_error *error);
/* What `overrides` change: a list as overrides_apply makes it, the caller's; empty without any. */
int checkpoint_changes(const struct checkpoint *checkpoint, json_t **changes, struct mo_error *error);
/* How messages name one: where [where_size]. */
void checkpoint_file_where(const struct checkpoint *checkpoint, const char *name, char *where, size_t where_size);
/* The value of a packed file's metadata, or NULL. */
const char *checkpoint_metadata(const struct checkpoint *checkpoint, const char *key);

/* One file's header. */
struct safetensors {
    struct tensor *tensors; /* [n_tensors] in the order of their data */
    int n_tensors;
    struct metadata *metadata; /* [n_metadata] */
    int n_metadata;
    size_t header_bytes; /* 8 + the JSON header */
};
/* Reads the header of `data` [size], the whole file, into `out`, allocated in `arena`. Every offset is checked: in range, no
 * overlap, no hole, size equal to shape times dtype. */
int safetensors_parse(const uint8_t *data, size_t size, const char *path, int shard, struct arena *arena,
                      struct safetensors *out, struct mo_error *error);

/* "[2048, 1408]", for messages. */
const char *tensor_shape_text(const struct tensor *tensor, char text[TENSOR_SHAPE_BYTES]);

/* SHA-256 in lower-case hex over config.json, all headers, and 4 KiB at the start, middle and end of 256 evenly spaced
 * tensors a shard; `full` reads every byte. text [65]. */
int checkpoint_hash(const struct checkpoint *checkpoint, int full, char *text, struct mo_error *error);

#endif
