/* What config.json says of a "deepseek2": V2 to V3, with a latent that keys and values come from.
 * Source: llama.cpp's converter (DeepseekV2Model) and its loader of "deepseek2". */
#include "model/gguf/config_priv.h"

#include "base/log.h"

#define ARCH "deepseek2"

enum { GATE_SOFTMAX = 1, GATE_SIGMOID = 2 };

/* ---- sizes ---- */

static const struct maker_size sizes[] = {
    {ARCH ".context_length", "max_position_embeddings", JSON_REQUIRED_KEY},
    {ARCH ".embedding_length", "hidden_size", JSON_REQUIRED_KEY},
    {ARCH ".feed_forward_length", "intermediate_size", JSON_REQUIRED_KEY},
    {ARCH ".attention.head_count", "num_attention_heads", JSON_REQUIRED_KEY},
    {ARCH ".attention.kv_lora_rank", "kv_lora_rank", JSON_REQUIRED_KEY},
    {ARCH ".attention.q_lora_rank", "q_lora_rank", JSON_OPTIONAL_KEY},
    {ARCH ".rope.dimension_count", "qk_rope_head_dim", JSON_REQUIRED_KEY},
};

/* Files since April 2025 give the latent's size as key_length, and a head's under another name. */
static int put_head_sizes(const struct gguf_maker *m) {
    int key = 0, value = 0, rope = 0, heads = 0, kv_heads = 1;
    int code = maker_int(m, ARCH ".attention.key_length_mla", JSON_OPTIONAL_KEY, INT32_MAX, &key);
    if (!code) code = maker_int(m, ARCH ".attention.value_length_mla", JSON_OPTIONAL_KEY, INT32_MAX, &value);
    if (!code && !key) code = maker_int(m, ARCH ".attention.key_length", JSON_REQUIRED_KEY, INT32_MAX, &key);
    if (!code && !value) code = maker_int(m, ARCH ".attention.value_length", JSON_REQUIRED_KEY, INT32_MAX, &value);
    if (!code) code = maker_int(m, ARCH ".rope.dimension_count", JSON_REQUIRED_KEY, INT32_MAX, &rope);
    if (!code) code = maker_int(m, ARCH ".attention.head_count", JSON_REQUIRED_KEY, INT32_MAX, &heads);
    if (!code) code = maker_int(m, ARCH ".attention.head_count_kv", JSON_OPTIONAL_KEY, INT32_MAX, &kv_heads);
    if (code) return code;
    if (kv_heads != 1 && kv_heads != heads)
        return maker_refuse(m, ARCH ".attention.head_count_kv", "1 or head_count", "another number");
    if (key <= rope)
        return maker_refuse(m, ARCH ".attention.key_length", "more than rope.dimension_count", "no more than that");
    maker_put_int(m, "qk_nope_head_dim", key - rope);
    maker_put_int(m, "v_head_dim", value);
    return 0;
}

/* ---- experts ---- */

/* Files from before September 2025 do not say the groups, though the model was made with them. */
static int put_groups(const struct gguf_maker *m, int gate, int experts) {
    int groups = 0, top = 0;
    int code = maker_int(m, ARCH ".expert_group_count", JSON_OPTIONAL_KEY, experts, &groups);
    if (!code) code = maker_int(m, ARCH ".expert_group_used_count", JSON_OPTIONAL_KEY, experts, &top);
    if (code) return code;
    if (!groups) {
        bool v3 = gate == GATE_SIGMOID && experts == 256, v2 = gate == GATE_SOFTMAX && experts == 160;
        groups = v3 || v2 ? 8 : 1;
        top = v3 ? 4 : v2 ? 3 : 1;
        if (gate == GATE_SIGMOID || v2) {
            log_warn("%s: key \"" ARCH ".expert_group_count\" is missing: %d experts are taken as %d groups of which "
                     "%d count%s",
                     m->gguf->path, experts, groups, top,
                     v3   ? ", as in DeepSeek-V3"
                     : v2 ? ", as in DeepSeek-V2"
                          : "");
        }
    }
    const char *method = gate == GATE_SIGMOID ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";
    maker_put_int(m, "n_group", groups);
    maker_put_int(m, "topk_group", top ? top : groups);
    maker_put(m, "topk_method", json_string(method));
    return 0;
}

static int put_gate(const struct gguf_maker *m, int experts, int *gate) {
    bool norm = false;
    double scale = 1;
    *gate = GATE_SOFTMAX; /* files of V2 from before 2025 do not say */
    int code = gguf_get_int(m->gguf, ARCH ".expert_gating_func", JSON_OPTIONAL_KEY, 0, 100, gate, m->error);
    if (!code && *gate == 0) *gate = GATE_SOFTMAX;
    if (!code && *gate != GATE_SOFTMAX && *gate != GATE_SIGMOID)
        code = maker_refuse(m, ARCH ".expert_gating_func", "1 (softmax) or 2 (sigmoid)", "another one");
    if (!code) code = gguf_get_bool(m->gguf, ARCH ".expert_weights_norm", JSON_OPTIONAL_KEY, &norm, m->error);
    if (!code) code = maker_double(m, ARCH ".expert_weights_scale", JSON_OPTIONAL_KEY, &scale);
    if (code) return code;
    maker_put(m, "scoring_func", json_string(*gate == GATE_SIGMOID ? "sigmoid" : "softmax"));
    maker_put(m, "norm_topk_prob", json_boolean(norm));
    maker_put(m, "routed_scaling_factor", json_real(scale == 0 ? 1 : scale)); /* 0: none */
    return put_groups(m, *gate, experts);
}

static int put_experts(const struct gguf_maker *m) {
    int experts = 0, used = 0, shared = 0, width = 0, dense = 0, gate = GATE_SOFTMAX;
    int code = maker_int(m, ARCH ".expert_count", JSON_OPTIONAL_KEY, INT32_MAX, &experts);
    if (!code && experts) {
        code = maker_int(m, ARCH ".expert_used_count", JSON_REQUIRED_KEY, INT32_MAX, &used);
        if (!code) code = maker_int(m, ARCH ".expert_shared_count", JSON_OPTIONAL_KEY, INT32_MAX, &shared);
        if (!code) code = maker_int(m, ARCH ".expert_feed_forward_length", JSON_REQUIRED_KEY, INT32_MAX, &width);
        if (!code) code = maker_int(m, ARCH ".leading_dense_block_count", JSON_OPTIONAL_KEY, INT32_MAX, &dense);
        if (!code) code = put_gate(m, experts, &gate);
        if (code) return code;
        maker_put_int(m, "n_routed_experts", experts);
        maker_put_int(m, "num_experts_per_tok", used);
        if (shared) maker_put_int(m, "n_shared_experts", shared);
        maker_put_int(m, "moe_intermediate_size", width);
        maker_put_int(m, "first_k_dense_replace", dense);
    }
    const char *name = gate == GATE_SIGMOID ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM";
    maker_put(m, "architectures", json_pack("[s]", name));
    return code;
}

/* ---- rotation ---- */

/* The file has 0.1 * mscale_all_dim; mscale is the same in every published model, and llama.cpp takes it so. Without the key
 * the model's config.json had no mscale_all_dim, and DeepSeek's own code takes 1 and 0. */
static int put_yarn(const struct gguf_maker *m) {
    double factor = 0, log_mul = 0, fast = 32, slow = 1;
    int original = 0;
    bool given = gguf_find(m->gguf, ARCH ".rope.scaling.yarn_log_multiplier") != NULL;
    int code = maker_double(m, ARCH ".rope.scaling.factor", JSON_REQUIRED_KEY, &factor);
    if (!code)
        code = maker_int(m, ARCH ".rope.scaling.original_context_length", JSON_REQUIRED_KEY, INT32_MAX, &original);
    if (!code) code = maker_double(m, ARCH ".rope.scaling.yarn_log_multiplier", JSON_OPTIONAL_KEY, &log_mul);
    if (!code) code = maker_double(m, ARCH ".rope.scaling.yarn_beta_fast", JSON_OPTIONAL_KEY, &fast);
    if (!code) code = maker_double(m, ARCH ".rope.scaling.yarn_beta_slow", JSON_OPTIONAL_KEY, &slow);
    if (code) return code;
    if (!given) {
        log_warn("%s: key \"" ARCH ".rope.scaling.yarn_log_multiplier\" is missing: mscale is taken as 1 and "
                 "mscale_all_dim as 0 (published models have 0.707 or 1 for both)",
                 m->gguf->path);
    }
    if (log_mul < 0 || log_mul > 10)
        return maker_refuse(m, ARCH ".rope.scaling.yarn_log_multiplier", "0 to 10", "another number");
    double mscale = gguf_ten_times(log_mul);
    maker_put(m, "rope_scaling",
              json_pack("{ss sf si sf sf sf sf}", "type", "yarn", "factor", factor, "original_max_position_embeddings",
                        original, "beta_fast", fast, "beta_slow", slow, "mscale", given && log_mul != 0 ? mscale : 1.0,
                        "mscale_all_dim", mscale));
    return 0;
}

static int put_rope(const struct gguf_maker *m) {
    struct gguf_text type = {"none", 4};
    double theta = 10000, eps = 0;
    int code = maker_refuse_foreign_rope(m);
    if (!code) code = maker_double(m, ARCH ".rope.freq_base", JSON_OPTIONAL_KEY, &theta);
    if (!code) code = maker_double(m, ARCH ".attention.layer_norm_rms_epsilon", JSON_REQUIRED_KEY, &eps);
    if (!code) code = gguf_get_text(m->gguf, ARCH ".rope.scaling.type", JSON_OPTIONAL_KEY, &type, m->error);
    if (code) return code;
    maker_put(m, "rope_theta", json_real(theta));
    maker_put(m, "rms_norm_eps", json_real(eps));
    bool is_scaled = gguf_find(m->gguf, ARCH ".rope.scaling.factor") && !gguf_find(m->gguf, ARCH ".rope.scaling.type");
    if (is_scaled)
        return maker_refuse(m, ARCH ".rope.scaling.type", "yarn or none beside rope.scaling.factor", "no such key");
    if (gguf_text_is(type, "none")) return 0;
    if (gguf_text_is(type, "yarn")) return put_yarn(m);
    return maker_refuse(m, ARCH ".rope.scaling.type", "yarn or none", "another one");
}

int gguf_put_latent(const struct gguf_maker *m) {
    int code = maker_sizes(m, sizes, sizeof sizes / sizeof *sizes);
    if (!code) code = put_head_sizes(m);
    if (!code) code = put_experts(m);
    return code ? code : put_rope(m);
}
