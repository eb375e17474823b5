/* cmd/bench/bytes.h - the bytes that a pass has to read from memory, counted once each: every matrix outside the experts, the
 * experts that at least one row was sent to, and the rows of the cache. Vectors (norms, biases) and the embedding's
 * few rows are left out. */
#ifndef MOEBIUS_CMD_BENCH_BYTES_H
#define MOEBIUS_CMD_BENCH_BYTES_H

#include "forward.h"

struct bench_bytes {
    const struct model *model;
    const struct weights *weights;
    size_t fixed;     /* attention, dense, shared, router, head: read by every pass */
    size_t cache_row; /* one token's latents, all layers */
    size_t cache_key; /* and its index keys */
    enum kv_format kv;
    size_t experts; /* visited since bench_bytes_begin */
    int *seen;      /* [experts] the last visit, as its layer's stamp */
    int stamp;
};

int bench_bytes_open(struct bench_bytes *bytes, const struct model *model, const struct weights *weights,
                     enum kv_format kv, struct mo_error *error);
void bench_bytes_close(struct bench_bytes *bytes); /* accepts a zeroed one */

/* Operations (a product and a sum are two) that the matrices take for one token of a prompt, without the head, which only
 * the last token needs, and without attention itself. */
double bench_prompt_operations(const struct model *model, const struct weights *weights);

/* Of the cache, for a step of `batch` sequences that see `rows` different tokens together: all rows, or the index keys of all and
 * index_topk rows a sequence, once it sees more than that (`depth`). V4: the window's rows, the compressed ones or their index keys
 * and those that are chosen, and what is summed up for the next. */
double bench_cache_bytes(const struct bench_bytes *bytes, double rows, int batch, int depth);

/* Forgets the experts of the pass before. */
void bench_bytes_begin(struct bench_bytes *bytes);
/* A forward_tap's routing function; the context is a struct bench_bytes. */
void bench_bytes_add_experts(void *context, int layer, const int32_t *ids, const float *weights, int n_rows);

#endif
