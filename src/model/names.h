/* model/names.h - tensor names by role: the one place that knows how a checkpoint calls things. */
#ifndef MOEBIUS_MODEL_NAMES_H
#define MOEBIUS_MODEL_NAMES_H

#include <stdbool.h>
#include <stddef.h>

/* Who named the tensors. */
enum naming {
    NAMES_LATENT, /* V2 to V3.2: "model.layers.3.self_attn.q_a_proj" */
    NAMES_HYBRID, /* V4, V4.1: "layers.3.attn.wq_a" */
};

enum role {
    ROLE_EMBED,
    ROLE_HEAD,
    ROLE_FINAL_NORM,
    ROLE_ATTN_NORM,
    ROLE_FFN_NORM, /* per layer from here on */
    ROLE_Q,
    ROLE_Q_A,
    ROLE_Q_A_NORM,
    ROLE_Q_B,
    ROLE_KV_A,
    ROLE_KV_A_NORM,
    ROLE_KV_B,
    ROLE_O,
    ROLE_INDEX_Q, /* of V3.2's indexer */
    ROLE_INDEX_K,
    ROLE_INDEX_WEIGHTS,
    ROLE_INDEX_K_NORM,
    ROLE_INDEX_K_BIAS,
    ROLE_O_A, /* of V4 from here on: the groups' own projection, before ROLE_O */
    ROLE_SINKS,
    ROLE_COMPRESS_KV,
    ROLE_COMPRESS_GATE,
    ROLE_COMPRESS_BIAS,
    ROLE_COMPRESS_NORM,
    ROLE_INDEX_COMPRESS_KV, /* the four of the indexer's keys */
    ROLE_INDEX_COMPRESS_GATE,
    ROLE_INDEX_COMPRESS_BIAS,
    ROLE_INDEX_COMPRESS_NORM,
    ROLE_ATTN_MIX, /* hyper-connections: three each, before attention, before the feed-forward, and (no layer) before the head */
    ROLE_ATTN_MIX_BASE,
    ROLE_ATTN_MIX_SCALE,
    ROLE_FFN_MIX,
    ROLE_FFN_MIX_BASE,
    ROLE_FFN_MIX_SCALE,
    ROLE_HEAD_MIX,
    ROLE_HEAD_MIX_BASE,
    ROLE_HEAD_MIX_SCALE,
    ROLE_ENGRAM_TABLE, /* V4.1's n-gram memory: its rows, keys and value of them, and two weights of the gate */
    ROLE_ENGRAM_KV,
    ROLE_ENGRAM_Q_WEIGHT,
    ROLE_ENGRAM_K_WEIGHT,
    ROLE_DENSE_GATE,
    ROLE_DENSE_UP,
    ROLE_DENSE_DOWN,
    ROLE_ROUTER,
    ROLE_ROUTER_BIAS,
    ROLE_ROUTER_TABLE, /* V4: experts of each token id */
    ROLE_SHARED_GATE,
    ROLE_SHARED_UP,
    ROLE_SHARED_DOWN,
    ROLE_EXPERT_GATE,
    ROLE_EXPERT_UP,
    ROLE_EXPERT_DOWN, /* per layer and expert */
    ROLES
};

enum { NAME_MAX_BYTES = 128 };

/* "model.layers.3.mlp.experts.7.up_proj" + `suffix` (".weight", ".qweight", ...) into name [NAME_MAX_BYTES]. */
const char *names_tensor(char *name, enum naming naming, enum role role, int layer, int expert, const char *suffix);

bool names_has(enum naming naming, enum role role);
bool names_is_in_layer(enum role role);

/* What a tensor of this role is called behind the role's own name: ".weight", or nothing where the name says all. */
const char *names_suffix(enum role role);

/* The layer of "model.layers.N. ..." and "layers.N. ...", or -1 for a tensor outside of the layers. */
int names_layer(const char *name);

/* Of a prediction layer (behind the model's last, or named so), or of what a model sees pictures with: in the files, and nothing here
 * reads it. */
int names_is_left_out(const char *name, int layers);
/* Of an n-gram table (V4.1), or its scales: some rows of it are read where they lie, and it is never in memory as a whole. */
int names_is_table(const char *name);

/* Tensors that some checkpoints carry and that take no part in the arithmetic of text (bias_vl, exp_probs_b_vl: where a model that sees
 * sends pictures; its eyes). */
int names_is_ignored(const char *name);

#endif
