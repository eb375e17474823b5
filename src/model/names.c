#include "model/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/text.h"

/* %1$d stands for the layer, %2$d for the expert. */
static const char *const role_names[ROLES] = {
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

const char *names_tensor(char *name, enum role role, int layer, int expert, const char *suffix) {
    const char *format = role_names[role];
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
    return role == ROLE_ROUTER_BIAS || role == ROLE_INDEX_K_BIAS ? "" : ".weight";
}

int names_layer(const char *name) {
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1)) return -1;
    char *end;
    long layer = strtol(name + sizeof prefix - 1, &end, 10);
    return *end == '.' && layer >= 0 && layer < 1 << 20 ? (int)layer : -1;
}

int names_is_ignored(const char *name) {
    return text_ends_with(name, ".rotary_emb.inv_freq") || text_ends_with(name, ".input_scale");
}
