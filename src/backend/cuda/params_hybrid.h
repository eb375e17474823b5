/* backend/cuda/params_hybrid.h - what the host tells the kernels of V4's and V4.1's attention, but for those of the indexer and of attention
 * to listed rows (params_listed.h): running sums of compressors (compress.cu), rows before and after attention (hybrid.cu); see params.h.
 * Includes: params.h, params_listed.h. */
#ifndef MOEBIUS_BACKEND_CUDA_PARAMS_HYBRID_H
#define MOEBIUS_BACKEND_CUDA_PARAMS_HYBRID_H

#include "params.h"
#include "params_listed.h"

/* A compressor: the layer's, or that of its index keys. A token has a value and a gate for each channel of a row; where windows overlap two,
 * [for the next window | for its own]. */
struct compress_part {
    float *values; /* [n][dim or 2 * dim]; where a window ends, the first dim of a row become the row that it makes */
    const float *gates; /* the same shape */
    const float *bias;  /* [ratio][dim or 2 * dim]; V4.1: NULL */
    size_t state_at;    /* floats, in the sums of a near part */
    int32_t dim;
    int32_t blocks; /* of channels; 0: there is no such compressor */
};

/* A block is a sequence and BLOCK_THREADS channels. The sums after a page's last token, and after a sequence's last, go to the near part
 * of their page, where a step goes on from them. */
struct compress_params {
    struct compress_part part[2];
    const struct seq_rows *seqs; /* without rows: nothing */
    const int32_t *near;         /* [n][near_pages] places of the near parts of a row's own page, and before it */
    uint8_t *near_cache;
    size_t near_bytes;
    size_t sums_at; /* bytes, in a near part */
    int32_t near_pages, ratio, overlaps, unused;
};

/* Rows that are normed, rotated and cached. */
struct cached_rows {
    const float *values;   /* [n][stride]: the first dim */
    const float *gain;     /* [dim] */
    const float *rotation; /* [n][rope / 2][2], of the last rope values */
    size_t stride;
    int32_t dim, unused;
};

/* What follows the projections of a row and its sums: tokens' own rows, compressed rows and index keys, queries. A row has a block for its
 * own row; where the layer makes rows, one for a compressed row; with an indexer one for its key; a block for each BLOCK_WARPS heads;
 * and, where queries are indexed, one for the indexer's. V4.1 (csa2) rounds all that it keeps, and the indexer's queries. */
struct hybrid_rows_params {
    struct cached_rows own, compressed, key; /* dim 0: there are none */
    struct index_keys keys;                  /* where index keys go */
    const float *q;                          /* [n][heads][kv_lora + rope] */
    uint16_t *q_latent;                      /* the same shape, bf16: normed (V4.1: not) and rotated */
    float *index_q;            /* [n][index_heads][keys.dim], rotated where a row sees more than topk; or NULL */
    const int32_t *pos, *page; /* [n] */
    const int32_t *near;       /* [n][near_pages] */
    uint8_t *pages, *near_cache;
    size_t row_bytes, far_bytes; /* of a token's row, of a compressed one */
    size_t page_bytes, near_bytes;
    unsigned long long *fault;
    int32_t heads, kv_lora, rope, fp8;
    int32_t ratio, near_pages, index_heads, topk;
    int32_t csa2;
    int32_t fault_key;
    float eps;
    int32_t unused;
};

/* What follows attention: a row's splits are merged, the sink takes its share, and what is left is turned back. A warp a head. */
struct hybrid_merge_params {
    struct listed_rows rows;
    const float *partial;  /* [slot][heads][dim + 2] */
    const float *sinks;    /* [heads] */
    const float *rotation; /* [n][rope / 2][2] */
    uint16_t *attended;    /* [n][heads][dim] bf16 */
    int32_t heads, dim, rope, unused;
};

PARAMS_SIZE(compress_part, 40);
PARAMS_SIZE(compress_params, 136);
PARAMS_SIZE(cached_rows, 40);
PARAMS_SIZE(hybrid_rows_params, 312);
PARAMS_SIZE(hybrid_merge_params, 88);

#endif
