/* backend/backend.h - one forward pass as a table of stages. A backend (CPU, CUDA) owns the weights in its own order,
 * the pool of the latent cache and all scratch; forward.c calls the stages in order and knows nothing else.
 *
 * Contract: stages are called by one thread (the engine's); they never allocate, never fail for reasons of shape after
 * backend_open succeeded, are deterministic, and give a row the same result whatever else is in its batch (for one
 * form of attention). They may be asynchronous until end(). Errors (a NaN, a lost device, a failed read) are kept and reported by end().
 *
 * A backend that `runs_ahead` takes one more begin() before the end() of the step at work, so that it need not wait for the
 * host between two steps: see struct batch. end() is then always that of the older step.
 * Includes: base, model, expert, ranks. */
#ifndef MOEBIUS_BACKEND_BACKEND_H
#define MOEBIUS_BACKEND_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include "base/affinity.h"
#include "base/error.h"
#include "expert/store.h"
#include "model/cache_row.h"
#include "model/model.h"
#include "model/weights.h"
#include "ranks/ranks.h"

enum compute { COMPUTE_FAST, COMPUTE_F32 };
enum attention { ATTENTION_AUTO, ATTENTION_ABSORBED, ATTENTION_EXPANDED };

/* Rows of one sequence: contiguous in the batch, consecutive positions. */
struct batch_seq {
    int first_row, n_rows;
    int first_pos;        /* position of first_row; positions before it are in the cache already */
    const int32_t *pages; /* page numbers covering positions 0 .. first_pos + n_rows - 1 */
    /* before[-k] is the id of position first_pos - k, for 1 <= k < ENGRAM_MAX_TOKENS as far as there are such positions; only models
     * with n-gram memory (V4.1) look at it. */
    const int32_t *before;
};

/* The token after a row of logits, chosen by the backend: exactly as sched/sample.h does without bias and penalties. */
struct pick {
    bool wanted;       /* else the host wants the row's logits */
    float temperature; /* 0: the largest logit, ties to the lowest id */
    float min_p;       /* 0: off */
    float top_p;       /* 1: off */
    int top_k;         /* 0 or -1: off */
    uint32_t random;   /* the draw: sample_random(seed, choice, position) */
};

/* What one step computes. Owned by the caller, unchanged until end(). In a step that begins while another is at work, token
 * -1 - k is the one that the other picks after its k-th row of logits; the other then has a wanted pick for all of them. */
struct batch {
    int n_rows;           /* 1 .. max_rows */
    const int32_t *token; /* [n_rows] ids, checked by the caller against the vocabulary, or picks to come */
    int n_seqs;
    const struct batch_seq *seqs; /* [n_seqs] in order of first_row, together covering every row */
    int n_logits;
    const int32_t *logits_row; /* [n_logits] the rows whose logits are wanted, ascending */
    const struct pick *pick;   /* [n_logits]; NULL: nothing is picked. Only where the backend `picks` */
};

struct backend_options {
    int threads;
    enum affinity affinity; /* where threads stay */
    int max_rows;           /* largest n_rows */
    int max_logits;         /* largest n_logits */
    int max_seqs;           /* largest n_seqs */
    int n_pages;            /* pages in the pool, each for KV_PAGE_TOKENS tokens of all layers */
    int n_near;             /* V4: near parts of pages (cache_row.h), in places 0 .. n_near - 1; 0: n_pages */
    enum kv_format kv;
    enum compute compute;
    enum attention attention;
    bool batch_invariant; /* no arithmetic that depends on how many rows a step has */
    int cpu_layers; /* CUDA: of so many layers, the first that have routed experts, the CPU computes these, from `weights` where
                       they lie; no more than there are */
    int link_rows; /* CUDA: in steps of so many rows or more the card computes these too: they come to it over its link, by turns;
                       0: never. Their formats are those that cuda_link_refuses lets through. */
    struct store *store;  /* CPU: routed experts are read into it when they are needed; NULL: they lie in `weights` */
    bool predict_experts; /* with a store: reads ahead what the next layer will probably need */
    const struct ranks_split
        *ranks;        /* CPU: routed experts are shared with other processes; NULL: all of them are our own */
    bool take_cache;   /* take all of the cache's memory from the system, beside the first steps */
    bool copies_pages; /* page_out and page_in will be called */
};

/* Sees the rows x [n][w->cols] that are about to be multiplied by w, a matrix of `weights`, in the thread that calls the
 * stages. */
struct linear_observer {
    void *context;
    void (*input)(void *context, const struct mat *w, const float *const *x, int n);
};

struct backend;
struct backend_ops {
    const char *name;
    void (*close)(struct backend *backend);

    void (*begin)(struct backend *backend, const struct batch *batch);
    void (*embed)(struct backend *backend);                /* token rows -> residual [n][hidden] fp32 */
    void (*attn_in)(struct backend *backend, int layer);   /* norm; q, kv_a; RoPE; latent to the cache; absorb q */
    void (*attn)(struct backend *backend, int layer);      /* attention over pages; value up-projection */
    void (*attn_out)(struct backend *backend, int layer);  /* o projection, added to the residual */
    void (*ffn_dense)(struct backend *backend, int layer); /* norm; gate, up, down; added to the residual */
    void (*route)(struct backend *backend, int layer);     /* norm; gate logits; top-k */
    void (*experts)(struct backend *backend, int layer);   /* routed and shared experts, added to the residual */
    void (*head)(struct backend *backend);                 /* final norm and lm_head for the flagged rows */
    void (*pick)(struct backend *backend);                 /* rows of logits -> tokens */
    /* Waits for everything of the oldest step; MO_E_NUMERIC names layer, stage and row of the first NaN or infinity. */
    int (*end)(struct backend *backend, struct mo_error *error);

    /* After end() failed: the row that it blamed, or -1 when the whole batch is lost. NULL: always the whole batch. */
    int (*fault_row)(struct backend *backend);

    /* Read back, of the step that ended last; valid until the next begin(). */
    const float *(*logits)(struct backend *backend);   /* [n_logits][vocab]; rows with a pick hold nothing */
    const int32_t *(*picked)(struct backend *backend); /* [n_logits] ids; rows without a pick hold nothing */
    /* [n_rows][hidden], as of the last stage; of V4's streams what the head would read of them. */
    const float *(*residual)(struct backend *backend);
    /* The residual as layers pass it on, [n_rows][model_streams][hidden]: but in V4 what residual() is. Between two blocks; the CPU's
     * is its own, and whoever changes it changes what the next block reads. */
    const float *(*streams)(struct backend *backend);
    /* The last route(): ids and weights [n_rows][top_k], in falling order of the score they were chosen by, or as a token's table
     * lists them, an expert perhaps twice. */
    void (*routing)(struct backend *backend, const int32_t **ids, const float **weights);

    /* Copies a page of the cache, layer by layer as it lies (V4: far part, near part), also while a step is at work: out one that no step at
     * work writes, in one that none knows. NULL where it cannot. */
    int (*page_out)(struct backend *backend, int32_t page, void *to, struct mo_error *error);
    int (*page_in)(struct backend *backend, int32_t page, const void *from, struct mo_error *error);

    /* From now on shows every linear stage's input, and kv_b's; NULL: no longer. The observer outlives that. NULL where it cannot. */
    void (*observe)(struct backend *backend, const struct linear_observer *observer);
};

/* Every backend's state begins with this. */
struct backend {
    const struct backend_ops *ops;
    const int32_t *
        near; /* [n_pages] V4: the place of each page's near part; NULL: it is the page's number. The caller's, who keeps
                            those in place that a step, page_out or page_in looks at */
    bool picks, runs_ahead; /* see struct batch; without them choosing tokens is left to the host */
};

/* Rows of one sequence from which a step attends to it in expanded form: one rule for all backends. */
int attention_expanded_rows(const struct model *model, enum attention attention);

/* Bytes of one token's cache row, and its index key, in one layer of any family but V4's. */
size_t kv_row_bytes(const struct model *model, enum kv_format kv);
/* Bytes of a page of a layer (V4: of its far part), and of its near part (V4; else 0). */
size_t kv_page_bytes(const struct model *model, int layer, enum kv_format kv);
size_t kv_near_bytes(const struct model *model, int layer, enum kv_format kv);
/* Bytes that a pool of n_pages takes, all layers; of V4 also n_near near parts (0: n_pages). */
size_t kv_pool_bytes(const struct model *model, enum kv_format kv, int n_pages, int n_near);

/* Bytes that cpu_backend_open takes besides the cache (n_pages is not looked at). */
size_t cpu_backend_scratch_bytes(const struct model *model, const struct backend_options *options);

/* `model` and `weights` must outlive the backend. */
int cpu_backend_open(struct backend **backend, const struct model *model, const struct weights *weights,
                     const struct backend_options *options, struct mo_error *error);

/* On a rank that is not the first (options.ranks): computes experts for rank 0 until that closes its engine. MO_E_CANCELLED: until
 * it has ended the program. */
int cpu_backend_work(struct backend *backend, struct mo_error *error);

/* A GPU, as its driver describes it. */
struct cuda_card_info {
    char name[128];
    int capability; /* 89 is 8.9 */
    size_t free_bytes, total_bytes;
};
/* Looks for card `device` without taking anything of it. No driver or card: MO_E_NOT_FOUND. */
int cuda_backend_probe(int device, struct cuda_card_info *info, struct mo_error *error);

/* The layers of a card, one or more. That with the first also has the embedding, that with the last the head. */
struct cuda_part {
    int device, first_layer, n_layers;
};
enum { CUDA_PARTS_MAX = 16 };
/* All of a model on one card. */
static inline struct cuda_part cuda_whole(const struct model *model, int device) {
    return (struct cuda_part){device, 0, model->layers};
}
/* Bytes that cuda_backend_open takes on a part's card besides the cache; also refuses what its kernels cannot compute. */
struct cuda_bytes {
    size_t weights, scratch;
};
int cuda_backend_bytes(const struct model *model, const struct weights *weights, const struct backend_options *options,
                       const struct cuda_part *part, struct cuda_bytes *bytes, struct mo_error *error);
/* Whether a card could compute the routed experts of the first cpu_layers layers that have some, as backend_options.link_rows wants it;
 * else MO_E_UNSUPPORTED and why not. */
int cuda_link_refuses(const struct model *model, const struct weights *weights, int cpu_layers, struct mo_error *error);
/* One backend over n_parts cards, which together have the layers in order, each once (V4.1: one card). `weights` must outlive the backend
 * if the CPU computes experts, or where the model has n-gram memory. */
int cuda_backend_open(struct backend **backend, const struct model *model, const struct weights *weights,
                      const struct backend_options *options, const struct cuda_part *parts, int n_parts,
                      struct mo_error *error);

#endif
