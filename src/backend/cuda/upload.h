/* backend/cuda/upload.h - what the files that bring weights to the card share: upload.c, upload_random.c, upload_copy.c.
 * Includes: cuda.h, pool.h, progress.h. */
#ifndef MOEBIUS_BACKEND_CUDA_UPLOAD_H
#define MOEBIUS_BACKEND_CUDA_UPLOAD_H

#include "backend/cuda/cuda.h"
#include "base/pool.h"
#include "base/progress.h"

enum { UPLOAD_BUFFERS = 2, UPLOAD_BUFFERS_MAX = 16 };

/* One pinned buffer and its twin on the card. */
struct buffer {
    uint8_t *host;
    cuda_address card;
    struct cuda_event *arrived, *done; /* on the card; after the kernels that read it there */
    bool in_flight;
};

struct upload {
    struct cuda *cuda;
    const struct weights *weights;
    struct pool *pool; /* NULL: one thread copies */
    struct device_region region;
    bool counting;
    size_t buffer_bytes; /* of each buffer: slices, and whole matrices that cannot be cut */
    struct buffer buffers[UPLOAD_BUFFERS_MAX];
    int n_buffers, next;
    struct cuda_stream *way; /* of the copies: beside the kernels, which wait for what they read */
    cuda_address fault;      /* uint32_t: smallest number of a matrix with a NaN in it */
    uint32_t n;              /* matrices so far */
    uint32_t wanted;         /* the number that `what` names */
    char what[64];           /* "layer 3, expert 7, down" */
    int layer, expert;
    enum mat_format refused; /* of `what`: there are no kernels for it; MAT_FORMATS: none */
    void *words;             /* [words_bytes] a matrix in the order that is sent */
    size_t words_bytes;
    size_t done_bytes, total_bytes;
    struct progress progress;
    struct mo_error *error;
};

/* upload_format.c: what becomes of a format on the card. */
struct upload_layout {
    enum weight_format format;
    enum scale_coding coding;
    int group_shift;
};
/* n matrices of rows x cols (as callers see them), tile_rows of these in a tile: 16, or 8 where two matrices share tiles. */
struct upload_shape {
    int rows, cols, tile_rows, n;
};
/* Whether there are kernels for it. */
bool upload_knows(enum mat_format format);
enum raw_format upload_raw_format(const struct mat *mat);
struct upload_layout upload_layout_of(const struct mat *mat);
bool upload_same_layout(const struct mat *a, const struct mat *b);
/* Takes room for the matrices, one after another. */
void upload_place(struct device_region *region, struct weight *out, struct upload_layout layout,
                  const struct upload_shape *shape);

/* upload.c: n buffers of buffer_bytes, which lie behind one another, with what orders their use. Closing waits for all of it. */
int upload_way_open(struct upload *u, int n, uint8_t *host, cuda_address card);
void upload_way_close(struct upload *u);

/* upload.c: parts of the walk, each of which counts, or brings. */
int upload_matrix(struct upload *u, struct weight *w, const struct mat *mat, const char *what);
/* Two of one shape, one behind the other; of two layouts they become bf16. */
int upload_two(struct upload *u, struct weight *w, const struct mat *first, const struct mat *second, const char *what);
/* A matrix whose rows are looked up or multiplied one by one: fp32 or bf16, or blocks as they lie in the file. */
int upload_rows(struct upload *u, const struct mat *mat, const void **out, enum repack_target target, const char *what);
/* Norms, biases and tables are copied as they are; NULL stays NULL. */
int upload_vector(struct upload *u, const float *values, int n, const float **out);
int upload_bytes(struct upload *u, const void *from, size_t bytes, const void **out);

/* Routed experts, which all have the layouts of the first. Their number in a layer, or the first one that is unlike it. */
int upload_count_alike(const struct layer *layer, int experts);
/* Room for n of them: gate and up in shared tiles, and down. */
void upload_place_experts(struct device_region *region, const struct mlp *first, int n, struct weight *gate_up,
                          struct weight *down);
/* The i-th of them. */
int upload_expert(struct upload *u, const struct mlp *mlp, const struct weight *gate_up, const struct weight *down,
                  int i);
/* Of a buffer through which the matrix comes whole, or in slices if it is large. */
size_t upload_buffer_bytes(const struct mat *mat);

/* upload_hybrid.c: what only V4 has. */
int upload_hybrid_attention(struct upload *u, const struct layer *layer, struct device_layer *out);
int upload_mixer(struct upload *u, const struct mixer *mixer, struct device_mixer *out, const char *what);
int upload_hybrid_table(struct upload *u, const struct layer *layer, struct device_layer *out);

/* upload_copy.c: bytes of a mapped file, which may still be on the disk, into a pinned buffer, on several threads; what follows
 * them is asked for. */
int upload_copy_open(struct upload *u);
void upload_copy_close(struct upload *u);
void upload_copy(struct upload *u, void *to, const void *from, size_t bytes);

/* upload_random.c: matrices that are to be made up on the card. */
bool upload_is_random(const struct upload *u, const struct mat *mat);
/* Matrix `index` of w's; tile_rows 8: gate and up, which share tiles, at once. */
int upload_random_tiles(struct upload *u, const struct mat *mat, const struct weight *w, int index, int tile_rows);
int upload_random_rows(struct upload *u, const struct mat *mat, void *to, enum repack_target target);

/* upload_words.c: a matrix in GPTQ's or PACKED's words as AWQ's, which the card's kernels know, in `room` until the next one. What
 * cannot be so exactly is refused; the message names `what`. INT8_ROWS as INT8. */
int upload_as_awq(struct upload *u, const struct mat **mat, struct mat *room, const char *what);
int upload_as_int8(struct upload *u, const struct mat **mat, struct mat *room);
void upload_words_close(struct upload *u);

#endif
