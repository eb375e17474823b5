#include "model/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/text.h"

/* %1$d stands for the layer, %2$d for the expert. */
static const char *const latent_names[ROLES] = {
    [ROLE_EMBED] = "model.embed_tokens",
    [ROLE_HEAD] = "lm_head",
    [ROLE_FINAL_NORM] = "model.norm",
    [ROLE_ATTN_NORM] = "model.layers.%1$d.input_layernorm",
    [ROLE_FFN_NORM] = "model.layers.%1$d.post_attention_layernorm",
    [ROLE_Q] = "model.layers.%1$d.self_attn.q_proj",
    [ROLE_Q_A] = "model.layers.%1$d.self_attn.q_a_proj",
    [ROLE_Q_A_NORM] = "model.layers.%1$d.self_attn.q_a_layernorm",
    [ROLE_Q_B] = "model.layers.%1$d.self_attn.q_b_proj",
    [ROLE_KV_A] = "model.layers.%1$d.self_attn.kv_a_proj_with_mqa",
    [ROLE_KV_A_NORM] = "model.layers.%1$d.self_attn.kv_a_layernorm",
    [ROLE_KV_B] = "model.layers.%1$d.self_attn.kv_b_proj",
    [ROLE_O] = "model.layers.%1$d.self_attn.o_proj",
    [ROLE_INDEX_Q] = "model.layers.%1$d.self_attn.indexer.wq_b",
    [ROLE_INDEX_K] = "model.layers.%1$d.self_attn.indexer.wk",
    [ROLE_INDEX_WEIGHTS] = "model.layers.%1$d.self_attn.indexer.weights_proj",
    [ROLE_INDEX_K_NORM] = "model.layers.%1$d.self_attn.indexer.k_norm",
    [ROLE_INDEX_K_BIAS] = "model.layers.%1$d.self_attn.indexer.k_norm.bias",
    [ROLE_DENSE_GATE] = "model.layers.%1$d.mlp.gate_proj",
    [ROLE_DENSE_UP] = "model.layers.%1$d.mlp.up_proj",
    [ROLE_DENSE_DOWN] = "model.layers.%1$d.mlp.down_proj",
    [ROLE_ROUTER] = "model.layers.%1$d.mlp.gate",
    [ROLE_ROUTER_BIAS] = "model.layers.%1$d.mlp.gate.e_score_correction_bias",
    [ROLE_SHARED_GATE] = "model.layers.%1$d.mlp.shared_experts.gate_proj",
    [ROLE_SHARED_UP] = "model.layers.%1$d.mlp.shared_experts.up_proj",
    [ROLE_SHARED_DOWN] = "model.layers.%1$d.mlp.shared_experts.down_proj",
    [ROLE_EXPERT_GATE] = "model.layers.%1$d.mlp.experts.%2$d.gate_proj",
    [ROLE_EXPERT_UP] = "model.layers.%1$d.mlp.experts.%2$d.up_proj",
    [ROLE_EXPERT_DOWN] = "model.layers.%1$d.mlp.experts.%2$d.down_proj",
};

/* Source: DeepSeek-V4-Flash's checkpoint, by transformers 5.23, conversion_mapping.py; V4.1-Flash's, by NeMo AutoModel 0.7,
 * models/deepseek_v41/state_dict_adapter.py. */
static const char *const hybrid_names[ROLES] = {
    [ROLE_EMBED] = "embed",
    [ROLE_HEAD] = "head",
    [ROLE_FINAL_NORM] = "norm",
    [ROLE_HEAD_MIX] = "hc_head_fn",
    [ROLE_HEAD_MIX_BASE] = "hc_head_base",
    [ROLE_HEAD_MIX_SCALE] = "hc_head_scale",
    [ROLE_ATTN_NORM] = "layers.%1$d.attn_norm",
    [ROLE_FFN_NORM] = "layers.%1$d.ffn_norm",
    [ROLE_ATTN_MIX] = "layers.%1$d.hc_attn_fn",
    [ROLE_ATTN_MIX_BASE] = "layers.%1$d.hc_attn_base",
    [ROLE_ATTN_MIX_SCALE] = "layers.%1$d.hc_attn_scale",
    [ROLE_FFN_MIX] = "layers.%1$d.hc_ffn_fn",
    [ROLE_FFN_MIX_BASE] = "layers.%1$d.hc_ffn_base",
    [ROLE_FFN_MIX_SCALE] = "layers.%1$d.hc_ffn_scale",
    [ROLE_Q_A] = "layers.%1$d.attn.wq_a",
    [ROLE_Q_A_NORM] = "layers.%1$d.attn.q_norm",
    [ROLE_Q_B] = "layers.%1$d.attn.wq_b",
    [ROLE_KV_A] = "layers.%1$d.attn.wkv",
    [ROLE_KV_A_NORM] = "layers.%1$d.attn.kv_norm",
    [ROLE_O_A] = "layers.%1$d.attn.wo_a",
    [ROLE_O] = "layers.%1$d.attn.wo_b",
    [ROLE_SINKS] = "layers.%1$d.attn.attn_sink",
    [ROLE_COMPRESS_KV] = "layers.%1$d.attn.compressor.wkv",
    [ROLE_COMPRESS_GATE] = "layers.%1$d.attn.compressor.wgate",
    [ROLE_COMPRESS_BIAS] = "layers.%1$d.attn.compressor.ape",
    [ROLE_COMPRESS_NORM] = "layers.%1$d.attn.compressor.norm",
    [ROLE_INDEX_Q] = "layers.%1$d.attn.indexer.wq_b",
    [ROLE_INDEX_WEIGHTS] = "layers.%1$d.attn.indexer.weights_proj",
    [ROLE_INDEX_K] = "layers.%1$d.attn.indexer.wk",
    [ROLE_INDEX_K_NORM] = "layers.%1$d.attn.indexer.k_norm",
    [ROLE_INDEX_COMPRESS_KV] = "layers.%1$d.attn.indexer.compressor.wkv",
    [ROLE_INDEX_COMPRESS_GATE] = "layers.%1$d.attn.indexer.compressor.wgate",
    [ROLE_INDEX_COMPRESS_BIAS] = "layers.%1$d.attn.indexer.compressor.ape",
    [ROLE_INDEX_COMPRESS_NORM] = "layers.%1$d.attn.indexer.compressor.norm",
    [ROLE_ENGRAM_TABLE] = "layers.%1$d.engram.embed",
    [ROLE_ENGRAM_KV] = "layers.%1$d.engram.wkv",
    [ROLE_ENGRAM_Q_WEIGHT] = "layers.%1$d.engram.q_weight",
    [ROLE_ENGRAM_K_WEIGHT] = "layers.%1$d.engram.k_weight",
    [ROLE_ROUTER] = "layers.%1$d.ffn.gate",
    [ROLE_ROUTER_BIAS] = "layers.%1$d.ffn.gate.bias",
    [ROLE_ROUTER_TABLE] = "layers.%1$d.ffn.gate.tid2eid",
    [ROLE_SHARED_GATE] = "layers.%1$d.ffn.shared_experts.w1",
    [ROLE_SHARED_UP] = "layers.%1$d.ffn.shared_experts.w3",
    [ROLE_SHARED_DOWN] = "layers.%1$d.ffn.shared_experts.w2",
    [ROLE_EXPERT_GATE] = "layers.%1$d.ffn.experts.%2$d.w1",
    [ROLE_EXPERT_UP] = "layers.%1$d.ffn.experts.%2$d.w3",
    [ROLE_EXPERT_DOWN] = "layers.%1$d.ffn.experts.%2$d.w2",
};

bool names_has(enum naming naming, enum role role) {
    return (naming == NAMES_HYBRID ? hybrid_names : latent_names)[role] != NULL;
}

bool names_is_in_layer(enum role role) {
    return role >= ROLE_ATTN_NORM && (role < ROLE_HEAD_MIX || role > ROLE_HEAD_MIX_SCALE);
}

const char *names_tensor(char *name, enum naming naming, enum role role, int layer, int expert, const char *suffix) {
    const char *format = naming == NAMES_HYBRID ? hybrid_names[role] : latent_names[role];
    int n = 0;
    for (const char *at = format; *at && n < NAME_MAX_BYTES - 16; at++) {
        if (*at != '%') {
            name[n++] = *at;
            continue;
        }
        n += snprintf(name + n, 16, "%d", at[1] == '1' ? layer : expert);
        at += 3;
    }
    snprintf(name + n, (size_t)(NAME_MAX_BYTES - n), "%s", suffix);
    return name;
}

const char *names_suffix(enum role role) {
    switch (role) {
    case ROLE_ROUTER_BIAS:
    case ROLE_ROUTER_TABLE:
    case ROLE_INDEX_K_BIAS:
    case ROLE_SINKS:
    case ROLE_COMPRESS_BIAS:
    case ROLE_INDEX_COMPRESS_BIAS:
    case ROLE_ENGRAM_Q_WEIGHT:
    case ROLE_ENGRAM_K_WEIGHT:
        return "";
    default:
        return role >= ROLE_ATTN_MIX && role <= ROLE_HEAD_MIX_SCALE ? "" : ".weight";
    }
}

int names_layer(const char *name) {
    static const char prefix[] = "layers.";
    if (!strncmp(name, "model.", 6)) name += 6;
    if (strncmp(name, prefix, sizeof prefix - 1)) return -1;
    char *end;
    long layer = strtol(name + sizeof prefix - 1, &end, 10);
    return *end == '.' && layer >= 0 && layer < 1 << 20 ? (int)layer : -1;
}

static bool is_of_prediction(const char *name, int layers) {
    return names_layer(name) >= layers || !strncmp(name, "mtp.", 4);
}

static bool is_of_pictures(const char *name) {
    static const char *const eyes[] = {"vision.", "aligner.", "image_"};
    for (size_t i = 0; i < sizeof eyes / sizeof *eyes; i++) {
        if (!strncmp(name, eyes[i], strlen(eyes[i]))) return true;
    }
    return text_ends_with(name, ".exp_probs_b_vl.bias") || text_ends_with(name, ".gate.bias_vl");
}

int names_is_left_out(const char *name, int layers) {
    return is_of_prediction(name, layers) || is_of_pictures(name);
}

int names_is_table(const char *name) {
    return names_layer(name) >= 0 && strstr(name, ".engram.embed.") != NULL;
}

int names_is_ignored(const char *name) {
    return !strncmp(name, "mtp.", 4) || text_ends_with(name, ".rotary_emb.inv_freq") ||
           text_ends_with(name, ".input_scale") || is_of_pictures(name);
}
