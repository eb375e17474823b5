/* model/checkpoint.h - the files of a model folder as one list of named tensors, mapped read-only.
 * A reader only lists (name, dtype, shape, bytes); meaning comes later (names.c, weights.c).
 * Source: the safetensors format (8-byte little-endian header length, JSON header, data). */
#ifndef MOEBIUS_MODEL_CHECKPOINT_H
#define MOEBIUS_MODEL_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/error.h"
#include "base/file.h"

enum dtype {
    DTYPE_F64,
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_I16,
    DTYPE_I8,
    DTYPE_U8,
    DTYPE_BOOL,
    DTYPES
};
const char *dtype_name(enum dtype dtype);
size_t dtype_bytes(enum dtype dtype);

enum { TENSOR_MAX_DIMS = 4 };

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

struct checkpoint {
    struct arena *arena;
    struct shard *shards; /* [n_shards] */
    int n_shards;
    struct tensor *tensors; /* [n_tensors], by name */
    int n_tensors;
    int64_t total_bytes; /* of all tensors */
};

/* Opens DIR/model.safetensors, or the shards that DIR/model.safetensors.index.json names. Only headers are read. */
int checkpoint_open(struct checkpoint *checkpoint, const char *dir, struct mo_error *error);
void checkpoint_close(struct checkpoint *checkpoint); /* accepts a zeroed one */
/* NULL if there is no such tensor. */
const struct tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);

/* One file's header: appends its tensors to `out` [*n_out], allocated in `arena`. `data` [size] is the whole file.
 * Every offset is checked: in range, no overlap, no hole, size equal to shape times dtype. */
int safetensors_parse(const uint8_t *data, size_t size, const char *path, int shard, struct arena *arena,
                      struct tensor **out, int *n_out, size_t *header_bytes, struct mo_error *error);

/* "[2048, 1408]", for messages: text [64]. */
const char *tensor_shape_text(const struct tensor *tensor, char *text);

/* SHA-256 in lower-case hex over config.json, all headers, and 4 KiB at the start, middle and end of 256 evenly spaced
 * tensors a shard; `full` reads every byte. text [65]. */
int checkpoint_hash(const struct checkpoint *checkpoint, const char *dir, int full, char *text, struct mo_error *error);

#endif
