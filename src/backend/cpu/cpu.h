/* backend/cpu/cpu.h - the CPU backend's state, shared by its files: cpu.c (open, close, simple stages), linear.c
 * (matrix products over the thread pool), streams.c, attention.c, rope.c, kv_cache.c, cache_round.c, moe*.c. Engine thread, except inside pool tasks.
 * Includes: backend.h, engram_lookup.h, kern.h, base. */
#ifndef MOEBIUS_BACKEND_CPU_CPU_H
#define MOEBIUS_BACKEND_CPU_CPU_H

#include <stdatomic.h>
#include "backend/backend.h"
#include "backend/cpu/kern.h"
#include "backend/engram_lookup.h"
#include "base/arena.h"
#include "base/pool.h"

enum {
    LINEAR_BLOCK = 64,         /* weight rows a task: small enough to spread, large enough to stream */
    LINEAR_BLOCK_FP8 = 256,    /* rows are half as long in memory, and what a task's end fetches ahead is wasted */
    LINEAR_BLOCK_GGUF = 256,   /* the same, and each row is its own stream (FP4's, too) */
    LINEAR_BLOCK_AWQ = 512,    /* a line of AWQ runs along the rows: 256 bytes of each */
    LINEAR_BLOCK_PANELS = 512, /* sixteen panels of INT4 or INT8: two sets, read eight panels in step */
    LINEAR_BLOCK_TILES = 512,  /* of BF16 and FP8 in tile order: packing the tokens must be worth it */
    LINEAR_BLOCK_MAX = LINEAR_BLOCK_AWQ,
    LINEAR_BLOCK_MIN = 32,      /* a panel; where many threads want something to do */
    ATTENTION_ROWS = 32,        /* query rows that share a pass over a page */
    ATTENTION_ROWS_TILES = 128, /* over an expanded page in tile order: packing the keys must be worth it */
    INDEX_ROWS = 16,            /* that are scored against all of the cache at once */
    PREDICTED_ROWS = 8,         /* with experts on disk: steps of more rows want too many different ones to foresee */
};

/* Memory for one worker thread. */
struct worker_scratch {
    float *page;       /* [KV_PAGE_TOKENS][latent] one page of the cache, widened */
    float *weight;     /* [nope + v][kv_lora] kv_b of one head, widened */
    float *key;        /* [KV_PAGE_TOKENS][nope + rope] expanded */
    float *value;      /* [KV_PAGE_TOKENS][v] expanded */
    float *score;      /* [ATTENTION_ROWS_TILES][KV_PAGE_TOKENS] */
    uint16_t *query16; /* in pairs: [ATTENTION_ROWS] queries rounded to bf16 */
    uint16_t *key16;   /* [KV_PAGE_TOKENS] a page's keys: rows of an fp8 cache, or expanded ones */
    uint16_t *value16; /* [KV_PAGE_TOKENS][v] expanded */
    float *sum;        /* [max_rows][LINEAR_BLOCK_MAX] products on their way into an accumulator */
    float *index_key;  /* [KV_PAGE_TOKENS][index_dim] one page of index keys, widened */
    float *index_dots; /* [index_heads][KV_PAGE_TOKENS] */
};

/* Short-lived arrays of one stage (pointer lists, quantised activations); emptied when the next stage begins. */
struct stage_scratch {
    uint8_t *base;
    size_t used, size;
};

/* The first row that was not finite. */
struct numeric_fault {
    atomic_int seen;
    int layer, row;
    const char *stage;
};

/* Where a layer's part of the cache lies. */
struct cache_layer {
    size_t page_bytes, near_bytes;
    size_t pages_at, near_at;
};

struct cpu {
    struct backend backend; /* first: a struct backend * is a struct cpu * */
    const struct model *model;
    const struct weights *weights;
    struct backend_options options;
    struct kern kern;
    bool in_pairs; /* attention's sums are those of bf16, in pair order (kern.h) */
    struct pool *pool;
    struct arena *arena;  /* NULL while scratch is only counted */
    size_t scratch_bytes; /* what open_memory takes */

    const struct batch *batch;              /* between begin and end */
    const struct linear_observer *observer; /* or NULL */
    int32_t *pos;                           /* [max_rows] position of each row */
    int32_t *seq;                           /* [max_rows] its index in batch->seqs */
    bool *expanded;                         /* [max_seqs] which form of attention this step uses */

    double *frequency; /* [rope / 2] */
    float magnitude;   /* of cos and sin */
    float softmax_scale;
    int expanded_from;     /* ATTENTION_AUTO: rows of one sequence from which expanding pays */
    float *rotation;       /* [max_rows][rope / 2][2] cos, sin */
    double *far_frequency; /* V4: the same for layers with a ratio */
    float *far_rotation;

    uint8_t *cache; /* [layers]: n_pages pages; then (V4) near parts. As cache_row.h says */
    size_t cache_bytes, row_bytes, compressed_bytes; /* V4: the last of a compressed row */
    struct cache_layer *cache_layers;                /* [layers] */
    struct kv_taker *taker;                          /* with options.take_cache */

    float *x;         /* [max_rows][streams][hidden] the residual stream, or V4's streams */
    float *target;    /* [max_rows][hidden] what a block's output is added to (streams.h): x, but for V4 */
    float *mix;       /* V4 [max_rows][model_mix_dim] what the block at work mixes by */
    float *before;    /* V4.1 [max_rows][streams] what the next block reads its input by */
    float *normed;    /* [max_rows][hidden] */
    float *q_a;       /* [max_rows][q_lora] */
    float *q;         /* [max_rows][heads][nope + rope] */
    float *kv_a;      /* [max_rows][latent] */
    float *q_latent;  /* [max_rows][heads][latent] absorbed */
    float *acc;       /* [max_rows][heads][kv_lora] absorbed */
    float *max, *sum; /* [max_rows][heads] running softmax */
    float *attended;  /* [max_rows][heads][v] */
    float *ones;      /* V4 [latent] */
    float *o_low;     /* V4 [max_rows][o_groups * o_lora] */
    struct compress_rows {
        float *kv, *gate; /* V4 [max_rows][model_compress_dim]; then, where a window ends, its row in kv */
    } compress, index_compress;

    bool has_sparse; /* some row of the batch attends to index_topk tokens; what follows is NULL where none ever does */
    float *index_q;  /* [max_rows][index_heads][index_dim] */
    float *index_k;  /* [max_rows][index_dim]; wherever there is an indexer, but for V4 */
    float *index_weight; /* [max_rows][index_heads] */
    float *index_score;  /* [INDEX_ROWS][index_stride] of every cached token, or compressed row */
    int index_stride;    /* as many as there can be, rounded up to pages */
    int32_t *chosen;     /* [max_rows][index_topk] of them, ascending */
    int32_t *candidate;  /* V4.1 [max_rows][candidate_blocks] blocks to choose from, ascending, the newest last */

    float *gate, *up;               /* [max_rows * top_k][expert_width], or [max_rows][dense_width] */
    float *shared_gate, *shared_up; /* [max_rows][shared_experts * expert_width] */
    float *score;                   /* [max_rows][experts] router logits, then scores */
    int32_t *expert_id;             /* [max_rows][top_k] */
    float *expert_weight;           /* [max_rows][top_k] */

    struct {                         /* V4.1 (engram.c), where there is n-gram memory */
        struct engram_lookup lookup; /* rows [tables][max_rows][columns] */
        float *values;               /* [max_rows][columns * dim] a layer's */
        float *kv;                   /* [max_rows][streams + 1][hidden] keys and the value */
    } engram;

    float *logits; /* [max_logits][vocab] */

    uint8_t *exchange; /* [exchange_bytes] with options.ranks */
    uint32_t serial;   /* of exchanges */

    struct worker_scratch *workers; /* [threads] */
    struct stage_scratch stage;
    struct numeric_fault fault;
    struct mo_error failure; /* code: experts of this step could not be read, and what is left of it is skipped */
    bool predicts;           /* experts are read ahead */
};

/* cpu.c */
void *stage_alloc(struct cpu *cpu, size_t n);
void stage_begin(struct cpu *cpu);
/* Remembers the first non-finite row; any thread. */
void cpu_note_fault(struct cpu *cpu, int layer, const char *stage, int row);
/* out = RMS norm of n rows; a non-finite row is blamed on `stage` of `layer`, which produced it. */
void cpu_norm_rows(struct cpu *cpu, const float *in, int width, size_t stride, const float *weight, float *out, int n,
                   int layer, const char *stage);
/* [n] pointers to rows of `base`, in stage memory. */
float **cpu_row_pointers(struct cpu *cpu, float *base, size_t stride, int n);

/* linear.c - y = x W^T for lists of rows. */
struct linear {
    const struct mat *w;
    const float *const *x; /* [n] */
    float *const *y;       /* [n] */
    const float *scale;    /* [n] factor of each row, for cpu_linear_sum; NULL: 1 */
    int n;
    const struct q8_row *q; /* [n] or NULL; made by cpu_quantize for this w */
    bool is_unrounded;      /* x is not rounded to bf16 at any level */
    int from, to;           /* rows of w, for cpu_linear_each: multiples of LINEAR_BLOCK_MIN; to 0: all of them */
};
/* Bytes of stage memory that quantising n rows of `cols` takes. */
size_t cpu_quantized_bytes(int n, int cols);
/* x in 8 bits where the format and the compute mode want it, else NULL. */
const struct q8_row *cpu_quantize(struct cpu *cpu, const struct mat *w, const float *const *x, int n);
/* The same for a second matrix over the same x: what `other` has, if it serves. */
const struct q8_row *cpu_quantize_like(struct cpu *cpu, const struct linear *other, const struct mat *w,
                                       const float *const *x, int n);
/* Every job's y is overwritten. */
void cpu_linear_each(struct cpu *cpu, const struct linear *jobs, int n_jobs);
/* y[i] += scale[i] * (x[i] W^T), jobs in order: all have the same number of weight rows and may share y rows. */
void cpu_linear_sum(struct cpu *cpu, const struct linear *jobs, int n_jobs);
/* One matrix on contiguous rows. */
void cpu_linear(struct cpu *cpu, const struct mat *w, float *x, size_t x_stride, float *y, size_t y_stride, int n);
/* The same with x as it is at every level: for routers, so that near ties are decided alike. */
void cpu_linear_unrounded(struct cpu *cpu, const struct mat *w, float *x, size_t x_stride, float *y, size_t y_stride,
                          int n);
/* Shows the observer rows that are multiplied by `w` elsewhere, or in another order. */
void cpu_linear_show(struct cpu *cpu, const struct mat *w, float *x, size_t x_stride, int n);

/* rope.c */
void cpu_rope_prepare(struct cpu *cpu); /* rotation for the batch's positions */
void cpu_rope_apply(const struct cpu *cpu, int row, float *pairs /* [rope] */);
void cpu_rope_apply_halves(const struct cpu *cpu, int row, float *values /* [rope] */);
/* V4: a row's rotation in a layer, and that of any position in layers with a ratio [rope / 2][2]; turned by, and turned back. */
const float *cpu_rope_of(const struct cpu *cpu, int layer, int row);
void cpu_rope_far(const struct cpu *cpu, int pos, float *rotation);
void cpu_rope_turn(const float *rotation, int rope_dim, float *pairs);
void cpu_rope_turn_back(const float *rotation, int rope_dim, float *pairs);

/* kv_cache.c */
int kv_cache_open(struct cpu *cpu, struct mo_error *error);
void kv_cache_close(struct cpu *cpu);
uint8_t *kv_cache_page(const struct cpu *cpu, int layer, int page);
/* kv_take.c: begins to take the cache's memory from the system, and ends it, done or not. */
int kv_take_begin(struct cpu *cpu, struct mo_error *error);
void kv_take_end(struct cpu *cpu); /* accepts one that never began */
int cpu_page_out(struct backend *backend, int32_t page, void *to, struct mo_error *error);
int cpu_page_in(struct backend *backend, int32_t page, const void *from, struct mo_error *error);
void kv_cache_store(const struct cpu *cpu, uint8_t *row, const float *latent /* [latent] */);
void kv_cache_store_compressed(const struct cpu *cpu, uint8_t *row, const float *latent); /* V4's */
void kv_cache_load_compressed(const struct cpu *cpu, const uint8_t *row, float *out);     /* one of them */
/* The first n_tokens of a page, widened: out [n_tokens][latent]. */
void kv_cache_load(const struct cpu *cpu, const uint8_t *page, int n_tokens, float *out);
/* The same for index keys: key `at` of a page of a layer that makes them; n of them from `first` on, out [n][index_dim]. */
void kv_cache_store_key(const struct cpu *cpu, int layer, uint8_t *page, int at, const float *key);
void kv_cache_load_keys(const struct cpu *cpu, int layer, const uint8_t *page, int first, int n, float *out);
/* Keys that a page has room for. */
int kv_cache_page_keys(const struct model *model, int layer);
/* cache_round.c: what V4.1 keeps of a row, a compressed row, and an index key (or query) of n values: the nearest of narrower formats. */
void csa2_round_row(float *values, int n);
void csa2_round_compressed(float *values, int n);
void csa2_round_key(float *values, int n);
/* The same as it lies in a cache of KV_CSA2. */
void csa2_pack_row(uint8_t *row, const float *values, int n);
void csa2_unpack_row(const uint8_t *row, int n, float *values);
void csa2_pack_compressed(uint8_t *row, const float *values, int n);
void csa2_unpack_compressed(const uint8_t *row, int n, float *values);
void csa2_pack_key(uint8_t *key, const float *values, int n);
void csa2_unpack_key(const uint8_t *key, int n, float *values);
/* V4: the near part of a page, whose far part is kv_cache_page; and in it the sums, cache_state_floats. */
uint8_t *kv_cache_near(const struct cpu *cpu, int layer, int page);
float *kv_cache_state(const struct cpu *cpu, int layer, int page);

/* attention.c; the rest of it is in attention.h */
void cpu_attn_in(struct backend *backend, int layer);
void cpu_attn(struct backend *backend, int layer);
void cpu_attn_out(struct backend *backend, int layer);

/* moe.c */
void cpu_ffn_dense(struct backend *backend, int layer);
void cpu_route(struct backend *backend, int layer);
void cpu_experts(struct backend *backend, int layer);
/* moe_store.c: a step begins, with options.store; reads ahead what layer 0 will need where a table says so. */
void moe_predict_first(struct cpu *cpu);
/* moe_ranks.c: what it takes for messages, and of stage memory. */
size_t exchange_bytes(const struct model *model, const struct backend_options *options);
size_t exchange_stage_bytes(const struct model *model, const struct backend_options *options);
/* One token's choice: scores [experts] (logits in, scores out), ids and weights [top_k]. */
void cpu_choose_experts(const struct model *model, const float *bias, float *scores, int32_t *ids, float *weights);
/* The same where a table has chosen: `listed` [top_k]. */
void cpu_listed_experts(const struct model *model, const int32_t *listed, float *scores, int32_t *ids, float *weights);
/* [top_k] of a row in a layer that has a table, else NULL. */
const int32_t *cpu_experts_of_token(const struct cpu *cpu, int layer, int row);

#endif
