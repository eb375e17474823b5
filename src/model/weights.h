/* model/weights.h - the checkpoint's tensors by role. Matrices point into the mapped files; only norms, router
 * biases and FP8 scales are copied (widened to fp32, and checked to be finite), and a GGUF's kv_b is put together of two parts. */
#ifndef MOEBIUS_MODEL_WEIGHTS_H
#define MOEBIUS_MODEL_WEIGHTS_H

#include "model/checkpoint.h"
#include "model/format.h"
#include "model/model.h"
#include "model/names.h"

struct mlp {
    struct mat gate, up; /* [width][hidden] */
    struct mat down;     /* [hidden][width] */
};

/* V3.2: score of a cached token = sum over heads of weight * max(q k, 0). V4.1: of a compressed row, whose key is made of the row as
 * it is before its rotation, where rows are made. */
struct indexer {
    struct mat q;                 /* [index_heads * index_dim][q_lora] */
    struct mat k;                 /* [index_dim][hidden], V4.1 [index_dim][kv_lora + rope] */
    struct mat weights;           /* [index_heads][hidden] */
    const float *k_norm, *k_bias; /* [index_dim] of a LayerNorm; V4.1: of an RMS norm, without a bias */
};

/* V4: makes one row of the tokens of a window: channel c of it is the sum of their values, weighted by the softmax of their gates. With
 * RATIO_SPARSE a token has two values and gates, [for the next window | for its own]. `dim` is a cache row, or an index key. */
struct compressor {
    struct mat kv, gate; /* [model_compress_dim(ratio, dim)][hidden] */
    const float *
        bias; /* [ratio][model_compress_dim(ratio, dim)] added to the gates, by the token's place in its window; V4.1: NULL */
    const float *norm; /* [dim] */
};

/* V4.1: rows of a table, one after another, are multiplied into a key for each stream and one value; a stream takes the more of the value
 * the better it goes with its key. */
struct engram {
    struct mat table;                 /* [rows][dim]: only looked up. FP8 has scales8 */
    struct mat kv;                    /* [(streams + 1) * hidden][columns * dim] */
    const float *q_weight, *k_weight; /* [streams * hidden] what a stream and its key are multiplied by */
};

/* V4: a hyper-connection. The streams of a token, normed as one row, give what they are mixed by. */
struct mixer {
    struct mat mix;     /* [model_mix_dim][streams * hidden]; the head's [streams][...] */
    const float *base;  /* [rows of mix] */
    const float *scale; /* [3] before (V4.1: before the next mixer's block), after, among; the head's [1] */
};

struct layer {
    const float *attn_norm; /* [hidden] */
    const float *ffn_norm;  /* [hidden] */
    struct mat q;           /* Q_DIRECT [heads * (nope + rope)][hidden] */
    struct mat q_a, q_b;    /* Q_LOW_RANK [q_lora][hidden], [heads * (nope + rope)][q_lora] */
    const float *q_a_norm;  /* Q_LOW_RANK [q_lora] */
    struct mat kv_a;        /* [kv_lora + rope][hidden] */
    const float *kv_a_norm; /* [kv_lora] */
    struct mat kv_b;        /* [heads * (nope + v)][kv_lora]: a head is [k_nope | v] */
    struct mat o;           /* [hidden][heads * v] */
    struct indexer indexer; /* where index_topk is set; in V4 its q and weights where the layer indexes */

    struct mat o_a;               /* V4 [o_groups * o_lora][heads * v / o_groups]; then o [hidden][o_groups * o_lora] */
    const float *sinks;           /* V4 [heads]: a score that goes to no key */
    struct compressor compressor; /* V4, where model_makes_rows */
    struct compressor index_compressor; /* V4, RATIO_SPARSE: of index keys */
    struct mixer attn_mixer, ffn_mixer; /* V4 */
    const int32_t *router_table;        /* V4, the first hash_layers [vocab][top_k], or NULL */
    struct engram engram;               /* V4.1, where model_engram_of the layer is not -1 */

    struct mlp dense;         /* the first layers; else: */
    struct mat router;        /* [experts][hidden] */
    const float *router_bias; /* [experts] or NULL */
    struct mlp shared;        /* width shared_experts * expert_width; rows 0 if there are none */
    struct mlp *experts;      /* [experts] */
};

/* How to come by matrices whose bytes are nowhere yet (data NULL), for a backend that wants each of them once. */
struct weights_later {
    /* The bytes of `mat`, one of the weights' own, in *made until the next call. NULL: they are random, and made by whoever wants
     * them, another lot for each seed. */
    int (*make)(struct weights_later *later, const struct mat *mat, struct mat *made, struct mo_error *error);
    void (*close)(struct weights_later *later);
    uint64_t seed;
};

struct weights {
    struct mat embed, head;  /* [vocab][hidden] */
    const float *final_norm; /* [hidden] */
    struct mixer head_mixer; /* V4 alone: V4.1's head reads what the last mixer says */
    const int32_t *folded;   /* V4.1 [vocab] what n-grams take a token for, below engram.folded_vocab (engine/fold.h) */
    struct layer *layers;    /* [layers] */
    struct arena *arena;     /* owns everything above */
    void *made;              /* [made_bytes] matrices that were made in memory instead (make.h), or NULL */
    size_t made_bytes;
    struct weights_later *later; /* owned; NULL: every matrix is there */
};

/* Binds every tensor of the checkpoint, or names the first that is missing, unknown, or of another shape or type than
 * config.json says. The checkpoint must outlive the weights. `threads` work while kv_b is joined from two parts (gguf/gguf.h); nothing
 * else takes time. */
int weights_bind(struct weights *weights, const struct model *model, const struct checkpoint *checkpoint, int threads,
                 struct mo_error *error);
void weights_free(struct weights *weights); /* accepts a zeroed one */
/* Of a checkpoint's tensors, the bytes that computing goes through: without prediction layers, eyes and n-gram tables. */
int64_t weights_file_bytes(const struct checkpoint *checkpoint, const struct model *model);
/* keep.c: makes now, in memory of the weights, what weights->later would make of the routers and experts of the first n_layers layers
 * that have some. Not where they are random. */
int weights_keep(struct weights *weights, const struct model *model, int n_layers, struct mo_error *error);
/* Nobody will ask for matrices any more that are made later. */
void weights_end_later(struct weights *weights);

/* The place of one matrix or vector by its role; `layer` and `expert` where the role has them. */
struct mat *weights_matrix(const struct weights *weights, enum role role, int layer, int expert);
const float **weights_vector(struct weights *weights, enum role role, int layer);

#endif
