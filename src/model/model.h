/* model/model.h - one description for V2-Lite, V2, V3, V3.2, V4 and V4.1: numbers, and enums where the family differs.
 * Filled from config.json by config.c; everything later reads this and never the JSON.
 * Includes: base. Sources: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437), config.json of the
 * published checkpoints; V3.2: DeepSeek-V3.2-Exp's technical report and inference/model.py; V4: its config.json, and
 * transformers 5.23, models/deepseek_v4; V4.1: its config.json, transformers' models/deepseek_v41 as of October 2026, and NVIDIA's NeMo
 * AutoModel 0.7, models/deepseek_v41. */
#ifndef MOEBIUS_MODEL_MODEL_H
#define MOEBIUS_MODEL_MODEL_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"
#include "model/cache_row.h"
#include "model/names.h"

enum q_kind { Q_DIRECT, Q_LOW_RANK };
enum gate_kind {
    GATE_SOFTMAX_GREEDY,  /* V2-Lite: softmax, top-k */
    GATE_SOFTMAX_GROUPED, /* V2: softmax, best groups by their best expert, top-k */
    GATE_SIGMOID_GROUPED, /* V3: sigmoid + bias for choosing, groups by their best two, weights without bias */
    GATE_SQRT_SOFTPLUS,   /* V4: sqrt(softplus) + bias for choosing, top-k, weights without bias */
};
enum rope_kind { ROPE_PLAIN, ROPE_YARN };

/* How weights are stored, from quantization_config. */
enum quant_kind {
    QUANT_NONE,
    QUANT_FP8_BLOCK,
    QUANT_FP8_SCALED,
    QUANT_AWQ,
    QUANT_GPTQ,
    QUANT_PACKED,  /* compressed-tensors' "pack-quantized" */
    QUANT_INT8,    /* compressed-tensors' "int-quantized", SGLang's w8a8_int8 and blockwise_int8 */
    QUANT_MOEBIUS, /* our own files: each tensor says by its type what it is */
};

struct rope {
    enum rope_kind kind;
    double theta;
    double factor, beta_fast, beta_slow, mscale, mscale_all_dim; /* YaRN */
    int original_context;                                        /* YaRN */
};

enum { MODEL_MAX_EOS = 16, MODEL_MAX_LAYERS = 1024, MODEL_MAX_STREAMS = 16 };

/* V4.1: conditional memory. In some layers rows of a table, found by hashes of the last tokens, are added to the streams. A hash is of
 * the ids that tokens have once spellings are folded (text/fold.h). */
enum { ENGRAM_MAX_LAYERS = 8, ENGRAM_MAX_TOKENS = 8, ENGRAM_MAX_COLUMNS = 256, ENGRAM_MAX_DIM = 1024 };
struct engram_model {
    int n_layers;                 /* 0: there is none */
    int layer[ENGRAM_MAX_LAYERS]; /* engram_layer_ids, ascending */
    int rows[ENGRAM_MAX_LAYERS];  /* engram_num_embeddings */
    int max_tokens;               /* engram_max_ngram_size: n-grams of 2 to so many tokens are hashed */
    int heads;                    /* engram_n_heads: hashes of each */
    int dim;                      /* engram_head_dim: values of a row */
    int bucket;       /* engram_vocab_size: each hash has a prime number of rows, the next ones from here on */
    int folded_vocab; /* engram_compressed_vocab_size */
    int32_t pad;      /* engram_pad_token_id: what is before the first token */
};

/* Which layers make what a query sees. */
enum hybrid_kind {
    HYBRID_CSA,  /* V4: every layer for itself */
    HYBRID_CSA2, /* V4.1: sources, for the layers behind them as well */
};

/* What V4 and V4.1 have beyond the others. A row of its cache, [kv_lora | rope], is key and value at once of all heads: nope_dim = kv_lora and
 * v_dim = kv_lora + rope_dim. A query sees the last `window` rows and, where the layer has a ratio, rows into which the model
 * has compressed as many tokens each. */
struct hybrid_model {
    enum hybrid_kind kind;
    int window;                      /* sliding_window; 0: not this family */
    uint8_t ratio[MODEL_MAX_LAYERS]; /* compress_ratios: 0 (window alone); V4 RATIO_SPARSE, RATIO_DENSE; V4.1 1, 2 */
    /* With a ratio: the layer whose compressed rows and index keys this one sees, and that whose indexer chose them; V4: itself. */
    uint16_t rows_from[MODEL_MAX_LAYERS], choice_from[MODEL_MAX_LAYERS];
    /* V4.1: indexers behind candidate_layer's (-1: none) look only at its candidate_blocks best blocks (candidate_topk_blocks) of
     * candidate_rows compressed rows each (candidate_block_size). */
    int candidate_layer, candidate_blocks, candidate_rows;
    struct engram_model engram;
    int index_topk; /* V4: RATIO_SPARSE, V4.1: any ratio: compressed rows that a query sees, chosen by an indexer */
    int index_heads, index_dim; /* a head of the indexer's q, and its one key, are [rest | rope] */
    struct rope rope;           /* in layers with a ratio; model.rope is that of the others */
    int o_groups, o_lora;       /* heads are projected to o_lora in so many groups, then together to hidden */
    int streams;                /* hc_mult: residual streams, mixed by hyper-connections */
    int sinkhorn_iterations;    /* hc_sinkhorn_iters */
    double mix_eps;             /* hc_eps */
    int hash_layers;            /* the first so many layers choose experts by token id, from a table */
    double swiglu_limit;        /* gate is at most that, up at most that either way; 0: no limit */
};
enum { MODEL_MAX_ROPE = 1024 };

struct model {
    char architecture[64];    /* "DeepseekV2ForCausalLM" */
    int layers, dense_layers; /* the first dense_layers have a plain feed-forward */
    int hidden, heads, vocab;
    int context; /* max_position_embeddings */

    enum q_kind q_kind;
    int q_lora;                             /* Q_LOW_RANK */
    int kv_lora, nope_dim, rope_dim, v_dim; /* a head of q is [nope | rope]; the cache row is [kv_lora | rope] */
    int index_topk; /* V3.2: cached tokens that a query attends to, chosen by the indexer; 0: all of them, and no indexer */
    int index_heads, index_dim; /* of the indexer: a head of its q, and its one key, are [rope | rest] */

    int dense_width;  /* intermediate_size */
    int expert_width; /* moe_intermediate_size */
    int experts, top_k, shared_experts;
    enum gate_kind gate_kind;
    int groups, top_groups;
    bool norm_topk;
    double routed_scale;

    struct rope rope;
    struct hybrid_model hybrid; /* V4 */
    double norm_eps;
    bool tied_embedding;

    enum quant_kind quant;
    int quant_group;      /* QUANT_AWQ, QUANT_GPTQ, QUANT_PACKED: 32, 64, 128; not AWQ: 0, the whole row */
    int quant_zero_bias;  /* QUANT_GPTQ: struct mat's zero_bias */
    bool quant_symmetric; /* QUANT_PACKED: there are no zero points */
    int quant_block[2];   /* QUANT_FP8_BLOCK, QUANT_MOEBIUS: rows, cols; QUANT_INT8: the same, or 0, a row or more */
    int mtp_layers;       /* num_nextn_predict_layers: recognised and left out */

    bool synthetic; /* random weights of `moebius synth`: for measuring, not for reading */

    int32_t eos[MODEL_MAX_EOS]; /* union of config.json and generation_config.json */
    int n_eos;
    int32_t bos; /* -1 if none */
};

struct checkpoint;
/* Reads config.json. What is not supported is refused, by key, with what was expected and what was found. */
int model_load(struct model *model, const struct checkpoint *checkpoint, struct mo_error *error);
/* The same, of a MODEL that is not open: a folder or a packed file. */
int model_load_path(struct model *model, const char *path, struct mo_error *error);
/* The same from memory; `where` names the document. */
int model_parse(struct model *model, const char *json, size_t size, const char *where, struct mo_error *error);

/* What a request gets where it says nothing. Absent: NAN; top_k -1; max_tokens 0. */
struct generation_defaults {
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int top_k;
    int max_tokens; /* of an answer, at most, whatever is asked for */
};
static inline struct generation_defaults generation_defaults_none(void) {
    return (struct generation_defaults){NAN, NAN, NAN, NAN, NAN, NAN, -1, 0};
}
/* Of generation_config.json, as far as it has them. Its eos ids are added to the model's. */
int model_load_generation(struct model *model, const struct checkpoint *checkpoint,
                          struct generation_defaults *defaults, struct mo_error *error);

static inline bool model_layer_is_dense(const struct model *model, int layer) {
    return layer < model->dense_layers;
}
static inline bool model_is_hybrid(const struct model *model) {
    return model->hybrid.window > 0;
}
static inline bool model_is_csa2(const struct model *model) {
    return model_is_hybrid(model) && model->hybrid.kind == HYBRID_CSA2;
}
static inline enum naming model_naming(const struct model *model) {
    return model_is_hybrid(model) ? NAMES_HYBRID : NAMES_LATENT;
}
/* Residual streams of a token. */
static inline int model_streams(const struct model *model) {
    return model_is_hybrid(model) ? model->hybrid.streams : 1;
}
/* Values of a token's residual. */
static inline size_t model_residual_dim(const struct model *model) {
    return (size_t)model_streams(model) * (size_t)model->hidden;
}
/* Numbers that a hyper-connection mixes by: before, after, and among the streams. */
static inline int model_mix_dim(const struct model *model) {
    return (2 + model->hybrid.streams) * model->hybrid.streams;
}
/* Values that a token adds to a compressed row of `dim`: overlapping windows have a part for this one and one for the next. */
static inline int model_compress_dim(int ratio, int dim) {
    return ratio == RATIO_SPARSE ? 2 * dim : dim;
}
static inline bool model_layer_is_hashed(const struct model *model, int layer) {
    return layer < model->hybrid.hash_layers;
}
/* Layers that have routed experts: all from dense_layers on. */
static inline int model_moe_layers(const struct model *model) {
    return model->experts ? model->layers - model->dense_layers : 0;
}
static inline int model_q_head_dim(const struct model *model) {
    return model->nope_dim + model->rope_dim;
}
/* What of a cache row are values: kv_lora of them, or (V4) all. */
static inline int model_value_dim(const struct model *model) {
    return model_is_hybrid(model) ? model->kv_lora + model->rope_dim : model->kv_lora;
}
/* Ratio of the compressed rows that a layer makes; 0: it makes none. */
static inline int model_makes_rows(const struct model *model, int layer) {
    return model->hybrid.rows_from[layer] == layer ? model->hybrid.ratio[layer] : 0;
}
/* Do queries of a layer with a ratio see index_topk of the compressed rows at most? */
static inline bool model_layer_chooses(const struct model *model, int layer) {
    const int ratio = model->hybrid.ratio[layer];
    return model_is_csa2(model) ? ratio > 0 : ratio == RATIO_SPARSE;
}
/* Tokens that an index key stands for where the layer chooses; else 0. */
static inline int model_tokens_a_key(const struct model *model, int layer) {
    if (!model_is_hybrid(model)) return model->index_topk ? 1 : 0;
    return model_layer_chooses(model, layer) ? model->hybrid.ratio[layer] : 0;
}
/* Does it have the indexer that chooses? */
static inline bool model_layer_indexes(const struct model *model, int layer) {
    return model_layer_chooses(model, layer) && model->hybrid.choice_from[layer] == layer;
}
/* Rows and columns with one scale in FP8 matrices: as stored, or as the family is published. */
static inline int model_fp8_block(const struct model *model) {
    if (model->quant_block[0]) return model->quant_block[0];
    return model_is_csa2(model) ? 32 : 128;
}
/* Which of the model's n-gram tables a layer has, or -1. */
static inline int model_engram_of(const struct model *model, int layer) {
    const struct engram_model *e = &model->hybrid.engram;
    for (int i = 0; i < e->n_layers; i++) {
        if (e->layer[i] == layer) return i;
    }
    return -1;
}
/* Rows of a table that a token looks up. */
static inline int engram_columns(const struct engram_model *engram) {
    return (engram->max_tokens - 1) * engram->heads;
}
/* The indexer's numbers, of V3.2, V4 or V4.1; topk 0: there is none. A key stands for so many tokens, or (V4.1) for more in some layers. */
struct index_shape {
    int heads, dim, topk, tokens_a_key;
};
static inline struct index_shape model_index_shape(const struct model *model) {
    const struct hybrid_model *h = &model->hybrid;
    if (!model_is_hybrid(model))
        return (struct index_shape){model->index_heads, model->index_dim, model->index_topk, 1};
    return (struct index_shape){h->index_heads, h->index_dim, h->index_topk, model_is_csa2(model) ? 1 : RATIO_SPARSE};
}
static inline int model_index_q_dim(const struct model *model) {
    return model->index_heads * model->index_dim;
}
static inline int model_latent_dim(const struct model *model) {
    return model->kv_lora + model->rope_dim;
}

/* (nope + rope)^-1/2, times YaRN's magnitude m(mscale_all_dim)^2 where it applies. */
double model_softmax_scale(const struct model *model);
/* What cos and sin are multiplied by: m(mscale) / m(mscale_all_dim). */
double model_rope_magnitude(const struct model *model);
/* Frequencies of the rotary pairs, by &model->rope or &model->hybrid.rope: out [rope_dim / 2]. */
void model_rope_frequencies(const struct model *model, const struct rope *rope, double *out);

/* Parameters, from the description alone. V4: mixers count as routers do; tables that choose experts have none. V4.1: what multiplies
 * rows of n-gram tables counts as attention does. */
struct model_params {
    int64_t attention, dense, shared, routed, router, embedding, norm, head, tables, total, active;
};
void model_count_params(const struct model *model, struct model_params *params);

#endif
