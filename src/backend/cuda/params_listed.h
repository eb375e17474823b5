/* backend/cuda/params_listed.h - what the host tells the kernels of sparse attention: the indexer (index.cu) and attention to listed rows
 * of the cache (listed.cu); see params.h. Includes: params.h. */
#ifndef MOEBIUS_BACKEND_CUDA_PARAMS_LISTED_H
#define MOEBIUS_BACKEND_CUDA_PARAMS_LISTED_H

#include "params.h"

enum {
    INDEX_WAVE = 64,     /* rows of the batch whose keys are scored at once */
    INDEX_CHUNK = 256,   /* keys that a block scores */
    INDEX_TILE = 128,    /* of them in shared memory at a time */
    MAX_INDEX_DIM = 128, /* CACHE_GROUP: an fp8 key has one scale */
    MAX_INDEX_HEADS = 64,
    INDEX_PAD = 8,       /* values between rows of shared memory: moves them to other banks */
    RANK_BINS = 1 << 11, /* of the digits by which a choice is made */
    LISTED_GROUP = 64,   /* rows of a list that are looked up at once */
    /* Bytes of shared memory of a block that chooses (struct choice of index.cu); of one that attends, beside those of attn.cu. */
    CHOICE_SHARED = 4 * (RANK_BINS + 2 * BLOCK_WARPS + 2),
    LISTED_SHARED = 2 * LISTED_GROUP * 8,
};

/* The indexer's keys in a layer's part of the cache. A key stands for `ratio` tokens: 1 (V3.2), 4 (V4), 1 or 2 (V4.1). A page has
 * 64 / ratio of them, and fp8 ones have their scales behind them: [keys][dim], [keys] fp32. V4.1's (csa2) are rounded as KV_CSA2 has them
 * (model/cache_row.h), which is what fp8 ones are. */
struct index_keys {
    uint8_t *data; /* of the first page */
    size_t page_bytes;
    int32_t ratio, dim, fp8;
    int32_t page_shift; /* log2 of the keys of a page */
    int32_t csa2, unused;
};

/* V3.2: keys that have been projected are normed, rotated and stored; queries of rows that see more than `topk` keys are rotated, in
 * place. A block a row. */
struct index_rows_params {
    struct index_keys keys;
    const float *k;               /* [n][dim] */
    float *q;                     /* [n][heads][dim] */
    const float *k_norm, *k_bias; /* [dim] */
    const float *rotation;        /* [n][rope / 2][2] */
    const int32_t *pos, *page;    /* [n] */
    unsigned long long *fault;
    int32_t heads, rope, topk, fault_key;
};

/* Scores of all keys that rows first_row + [0, n_rows) see, and then the choice, both a wave of rows at a time. V4.1 narrows choices: one
 * layer also says which blocks of keys are best (index_narrow), and those behind it (is_narrowed) look at these alone, where a row sees
 * more than so many: its scores are then of the candidates' keys, one block after another. The newest block is always among them, and may
 * not be full. */
struct index_params {
    struct index_keys keys;
    const float *q;                  /* [n][heads][dim] rotated */
    const float *weight;             /* [n][heads] */
    const int32_t *pos, *first_page; /* [n] */
    const int32_t *page_table;
    float *score;    /* [INDEX_WAVE][stride] */
    int32_t *chosen; /* [n][topk] ascending */
    unsigned long long *fault;
    int32_t first_row, n_rows;
    int32_t heads, topk, stride; /* stride: a multiple of INDEX_CHUNK */
    int32_t fault_key;
    int32_t *candidate; /* [n][blocks] ascending, of rows that see more blocks; NULL: choices are not narrowed */
    int32_t blocks, block_keys;
    int32_t is_narrowed, unused;
};

/* Formats of the cache that attention to lists reads. */
enum cache_format { CACHE_BF16, CACHE_FP8, CACHE_CSA2 };

/* Which rows of the cache a row of the batch attends to, in this order: rows that stand for `ratio` tokens each (1: the tokens; 0: there
 * are none), all that it sees or, where these are more than `topk`, those that are chosen; then the last `window` tokens. */
struct listed_rows {
    const int32_t *pos;                     /* [n] */
    const int32_t *slot_first, *slot_count; /* [n]; count 0: the row takes another form of attention */
    int32_t ratio, topk, window;
    int32_t splits; /* blocks over which a list is cut: 1, and one block does all of it; or the most splits of a row */
};

/* A block is a row, a tile of 16 heads and a part of the splits. */
struct listed_params {
    struct attn_params attn; /* without items. kv_lora: values of a row that are values, rope: the others */
    struct listed_rows rows;
    const int32_t *first_page; /* [n] */
    const int32_t *near;       /* [n][near_pages] places of the parts with the row's own token, and before it */
    const int32_t *chosen;     /* [n][topk] */
    const uint8_t *near_cache;
    size_t page_bytes, near_bytes;
    size_t far_bytes; /* of a row that stands for `ratio` tokens */
    int32_t near_pages;
    int32_t scaled; /* values of an fp8 row that have scales */
};

PARAMS_SIZE(index_keys, 40);
PARAMS_SIZE(index_rows_params, 120);
PARAMS_SIZE(index_params, 152);
PARAMS_SIZE(listed_params, 176);

#endif
