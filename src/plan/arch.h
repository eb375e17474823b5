/* plan/arch.h - what a model is, as far as a plan needs to know: counts, from which bytes and operations follow. One
 * description covers latent attention (the DeepSeek family) and grouped queries (the dense models and Mixtral, which are here for
 * comparison and which this engine does not run).
 * Includes: base, model. */
#ifndef MOEBIUS_PLAN_ARCH_H
#define MOEBIUS_PLAN_ARCH_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"
#include "base/json.h"
#include "model/model.h"
#include "model/cache_row.h"

/* Weights that are stored, placed and read alike. */
enum plan_group {
    PLAN_ATTENTION, /* q, kv_a, o_a, o, what multiplies rows of tables; or q, k, v, o */
    PLAN_KV_B,      /* from the latent to keys and values; an indexer's queries and key; compressors */
    PLAN_DENSE,
    PLAN_SHARED,
    PLAN_ROUTED,
    PLAN_ROUTER, /* and an indexer's weights of its heads, and mixers */
    PLAN_HEAD,
    PLAN_EMBEDDING, /* a row a token: takes memory, costs no time */
    PLAN_NORM,      /* and biases, sinks */
    PLAN_TABLES,    /* n-grams': rows of it are read from the file, and it takes no memory */
    PLAN_GROUPS
};
const char *plan_group_name(enum plan_group group);

const char *plan_kv_name(enum kv_format kv);

/* Layers that see compressed rows of one ratio beside the window. */
struct plan_ratio {
    int ratio, layers;
    int makers;   /* make such rows, and keys of them where they are chosen from */
    int choosers; /* have an indexer; 0: all rows are seen */
    int narrowed; /* of these, whose indexers look at candidates alone */
};

/* DeepSeek-V4 and V4.1, as in model.h; window 0: another family. */
enum { PLAN_RATIOS = 2 };
struct plan_hybrid {
    enum hybrid_kind kind;
    int window;
    struct plan_ratio ratios[PLAN_RATIOS]; /* layers of none of these see the window alone */
    int candidate_blocks, candidate_rows;  /* as in model.h; 0: all rows are candidates */
    int index_topk, index_heads, index_dim;
    int o_groups, o_lora;
    int streams, hash_layers;
    int tables, table_columns, table_dim; /* a token looks up table_columns rows of table_dim in each */
    int64_t table_rows;                   /* of all tables */
};

struct plan_arch { /* without holes: equal ones have equal bytes */
    char name[128];
    char published[80]; /* the recipe (quant.h) of the published weights */
    struct plan_hybrid hybrid;
    bool runs_here; /* this engine computes it */
    bool qkv_bias, router_bias, tied_embedding;
    int layers, dense_layers, hidden, heads, vocab, context;
    int q_lora, kv_lora, nope_dim, rope_dim, v_dim; /* latent attention: kv_lora > 0 */
    int index_topk, index_heads, index_dim;         /* V3.2: as in model.h */
    int kv_heads, head_dim;                         /* grouped queries: kv_lora == 0 */
    int dense_width, expert_width, experts, top_k, shared_experts;
};

/* As much of it as there is room for, fit to be shown. */
void plan_arch_set_name(struct plan_arch *arch, const char *name);
/* The names that plan_arch_builtin knows; NULL after the last. */
const char *plan_arch_builtin_name(int i);
/* False if there is no such name. */
bool plan_arch_builtin(struct plan_arch *arch, const char *name);
/* The built-in model with the same shapes, or NULL: a header alone does not say how many experts a token takes. */
const char *plan_arch_match(int hidden, int vocab, int experts);

void plan_arch_from_model(struct plan_arch *arch, const struct model *model, const char *name);
/* Any config.json: the engine's own families by model_parse, with its checks; Qwen2, Llama, Mistral and Mixtral for
 * comparison. `where` names the document in messages. */
int plan_arch_parse(struct plan_arch *arch, const char *json, size_t size, const char *where, struct mo_error *error);

void plan_arch_params(const struct plan_arch *arch, int64_t params[PLAN_GROUPS]);
int64_t plan_arch_total(const struct plan_arch *arch);
/* What one token uses: everything but the embedding, n-gram tables and the experts that were not chosen. */
int64_t plan_arch_active(const struct plan_arch *arch);
int64_t plan_arch_expert_params(const struct plan_arch *arch); /* one expert of one layer */
static inline int plan_arch_moe_layers(const struct plan_arch *arch) {
    return arch->experts ? arch->layers - arch->dense_layers : 0;
}
static inline bool plan_arch_is_hybrid(const struct plan_arch *arch) {
    return arch->hybrid.window > 0;
}
/* Rows of n-gram tables that a token looks up, and bytes of a file that are read for one: a page for its values and one for its scales. */
enum { PLAN_TABLE_READ_BYTES = 2 * 4096 };
static inline int plan_arch_table_reads(const struct plan_arch *arch) {
    return arch->hybrid.tables * arch->hybrid.table_columns;
}
static inline bool plan_arch_is_latent(const struct plan_arch *arch) {
    return arch->kv_lora > 0;
}

/* Bytes of one token in the cache, all layers. */
double plan_arch_kv_bytes(const struct plan_arch *arch, enum kv_format kv);
/* What a cache of so many pages takes besides, for those that run (V4). */
double plan_arch_running_bytes(const struct plan_arch *arch, enum kv_format kv, int64_t pages, int seqs,
                               int step_tokens);
/* What a query that sees `depth` tokens reads of it: all, or every index key and the rows that it attends to. */
double plan_arch_read_bytes(const struct plan_arch *arch, enum kv_format kv, double depth);
/* What a chunk of a prompt reads, `depth` tokens on the mean into it. */
double plan_arch_chunk_bytes(const struct plan_arch *arch, enum kv_format kv, double depth);

/* Experts of a layer that a batch of independent tokens meets: E (1 - (1 - k/E)^B). Real text is more alike than that, so
 * it is the upper end. */
double plan_arch_distinct_experts(const struct plan_arch *arch, int batch);

/* Operations of attention for one pair of a query and a key, all layers; `expanded`: as long prompts are computed (latent
 * attention only). */
double plan_arch_pair_ops(const struct plan_arch *arch, bool expanded);
/* Attention of one query that sees `depth` tokens, absorbed; and of all tokens of a prompt. */
double plan_arch_query_ops(const struct plan_arch *arch, double depth);
double plan_arch_prompt_ops(const struct plan_arch *arch, double tokens);

#endif
