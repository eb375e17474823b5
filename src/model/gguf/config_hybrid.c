/* What config.json says of a "deepseek4": V4.
 *
 * antirez/ds4's own files have the same names of keys and tensors, and differ in that they may leave out expert_gating_func and
 * rope.scaling.type, and say of a prediction layer that they have not.
 * Source: llama.cpp's converter (DeepseekV4Model) and its loader of "deepseek4", of October 2026. */
#include "model/gguf/config_priv.h"

#include <math.h>

enum { GATE_SQRT_SOFTPLUS = 4 };

static const struct maker_size sizes[] = {
    {".context_length", "max_position_embeddings", JSON_REQUIRED_KEY},
    {".embedding_length", "hidden_size", JSON_REQUIRED_KEY},
    {".attention.head_count", "num_attention_heads", JSON_REQUIRED_KEY},
    {".attention.head_count_kv", "num_key_value_heads", JSON_REQUIRED_KEY},
    {".attention.key_length", "head_dim", JSON_REQUIRED_KEY},
    {".attention.q_lora_rank", "q_lora_rank", JSON_REQUIRED_KEY},
    {".attention.sliding_window", "sliding_window", JSON_REQUIRED_KEY},
    {".attention.indexer.head_count", "index_n_heads", JSON_REQUIRED_KEY},
    {".attention.indexer.key_length", "index_head_dim", JSON_REQUIRED_KEY},
    {".attention.indexer.top_k", "index_topk", JSON_REQUIRED_KEY},
    {".attention.output_group_count", "o_groups", JSON_REQUIRED_KEY},
    {".attention.output_lora_rank", "o_lora_rank", JSON_REQUIRED_KEY},
    {".rope.dimension_count", "qk_rope_head_dim", JSON_REQUIRED_KEY},
    {".hyper_connection.count", "hc_mult", JSON_REQUIRED_KEY},
    {".hyper_connection.sinkhorn_iterations", "hc_sinkhorn_iters", JSON_REQUIRED_KEY},
    {".hash_layer_count", "num_hash_layers", JSON_REQUIRED_KEY},
    {".expert_count", "n_routed_experts", JSON_REQUIRED_KEY},
    {".expert_used_count", "num_experts_per_tok", JSON_REQUIRED_KEY},
    {".expert_shared_count", "n_shared_experts", JSON_OPTIONAL_KEY},
    {".expert_feed_forward_length", "moe_intermediate_size", JSON_REQUIRED_KEY},
};

static const struct {
    const char *key, *name;
} numbers[] = {
    {".attention.layer_norm_rms_epsilon", "rms_norm_eps"},
    {".hyper_connection.epsilon", "hc_eps"},
    {".expert_weights_scale", "routed_scaling_factor"},
    {".rope.freq_base", "rope_theta"},
    {".attention.compress_rope_freq_base", "compress_rope_theta"},
};

static int put_numbers(const struct gguf_maker *m) {
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        double value = 0;
        int code = maker_double(m, numbers[i].key, JSON_REQUIRED_KEY, &value);
        if (code) return code;
        maker_put(m, numbers[i].name, json_real(value));
    }
    return 0;
}

static int layers_of(const struct gguf_maker *m) {
    return (int)json_integer_value(json_object_get(m->root, "num_hidden_layers"));
}

static int check_count(const struct gguf_maker *m, const char *key, const struct gguf_value *array) {
    if (array->count && array->count >= (uint64_t)layers_of(m)) return 0;
    return maker_refuse(m, key, "a number for each layer", "fewer");
}

/* Keys are values, so that both lengths are one. */
static int check_value_length(const struct gguf_maker *m) {
    int key = 0, value = 0;
    int code = maker_int(m, ".attention.key_length", JSON_REQUIRED_KEY, INT32_MAX, &key);
    if (!code) code = maker_int(m, ".attention.value_length", JSON_REQUIRED_KEY, INT32_MAX, &value);
    if (code || key == value) return code;
    return maker_refuse(m, ".attention.value_length", "the same as attention.key_length", "another number");
}

static int put_ratios(const struct gguf_maker *m) {
    static const char key[] = ".attention.compress_ratios";
    char full[GGUF_KEY_BYTES];
    const struct gguf_value *array;
    json_t *list = json_array();
    maker_put(m, "compress_ratios", list);
    int code = gguf_get_array(m->gguf, maker_key(m, key, full), JSON_REQUIRED_KEY, GGUF_I32, &array, m->error);
    if (!code) code = check_count(m, key, array);
    if (code) return code;
    for (int i = 0; i < layers_of(m); i++) {
        if (json_array_append_new(list, json_integer(gguf_i32_at(array, (uint64_t)i)))) *m->failed = true;
    }
    return 0;
}

/* An array of as many as there are layers, or one number; the limit is one for all of them. */
static int get_limit(const struct gguf_maker *m, const char *key, enum json_need need, double *limit) {
    char full[GGUF_KEY_BYTES];
    const struct gguf_value *value = gguf_find(m->gguf, maker_key(m, key, full)), *array;
    if (!value || value->type != GGUF_ARRAY) return maker_double(m, key, need, limit);
    int code = gguf_get_array(m->gguf, full, need, GGUF_F32, &array, m->error);
    if (!code) code = check_count(m, key, array);
    if (code) return code;
    *limit = gguf_f32_at(array, 0);
    for (int i = 1; i < layers_of(m); i++) {
        if (gguf_f32_at(array, (uint64_t)i) != *limit)
            return maker_refuse(m, key, "the same number for all layers", "different ones");
    }
    return isfinite(*limit) ? 0 : maker_refuse(m, key, "finite numbers", "another one");
}

static int put_limit(const struct gguf_maker *m) {
    double routed = 0, shared;
    int code = get_limit(m, ".swiglu_clamp_exp", JSON_REQUIRED_KEY, &routed);
    shared = routed;
    if (!code) code = get_limit(m, ".swiglu_clamp_shexp", JSON_OPTIONAL_KEY, &shared);
    if (!code && routed != shared) code = maker_refuse(m, ".swiglu_clamp_shexp", "swiglu_clamp_exp", "another number");
    maker_put(m, "swiglu_limit", json_real(routed));
    return code;
}

static int put_gate(const struct gguf_maker *m) {
    char full[GGUF_KEY_BYTES];
    int gate = GATE_SQRT_SOFTPLUS, groups = 1;
    bool norm = true;
    int code = maker_int(m, ".expert_gating_func", JSON_OPTIONAL_KEY, INT32_MAX, &gate);
    if (!code) code = maker_int(m, ".expert_group_count", JSON_OPTIONAL_KEY, INT32_MAX, &groups);
    if (!code)
        code = gguf_get_bool(m->gguf, maker_key(m, ".expert_weights_norm", full), JSON_OPTIONAL_KEY, &norm, m->error);
    if (code) return code;
    if (gate != GATE_SQRT_SOFTPLUS) return maker_refuse(m, ".expert_gating_func", "4 (sqrtsoftplus)", "another one");
    if (groups > 1) return maker_refuse(m, ".expert_group_count", "1 or none", "more");
    maker_put(m, "scoring_func", json_string("sqrtsoftplus"));
    maker_put(m, "norm_topk_prob", json_boolean(norm));
    return 0;
}

/* Layers with compressed rows stretch by YaRN; its magnitude is llama.cpp's to cancel. */
static int put_yarn(const struct gguf_maker *m) {
    double factor = 0, fast = 32, slow = 1;
    int original = 0;
    int code = maker_double(m, ".rope.scaling.factor", JSON_REQUIRED_KEY, &factor);
    if (!code) code = maker_int(m, ".rope.scaling.original_context_length", JSON_REQUIRED_KEY, INT32_MAX, &original);
    if (!code) code = maker_double(m, ".rope.scaling.yarn_beta_fast", JSON_OPTIONAL_KEY, &fast);
    if (!code) code = maker_double(m, ".rope.scaling.yarn_beta_slow", JSON_OPTIONAL_KEY, &slow);
    if (code) return code;
    maker_put(m, "rope_scaling",
              json_pack("{ss sf si sf sf}", "type", "yarn", "factor", factor, "original_max_position_embeddings",
                        original, "beta_fast", fast, "beta_slow", slow));
    return 0;
}

static int put_rope(const struct gguf_maker *m) {
    char full[GGUF_KEY_BYTES];
    bool scaled = gguf_find(m->gguf, maker_key(m, ".rope.scaling.factor", full)) != NULL;
    struct gguf_text type = {scaled ? "yarn" : "none", 4};
    int code = maker_refuse_foreign_rope(m);
    if (!code)
        code = gguf_get_text(m->gguf, maker_key(m, ".rope.scaling.type", full), JSON_OPTIONAL_KEY, &type, m->error);
    if (code || gguf_text_is(type, "none")) return code;
    if (gguf_text_is(type, "yarn")) return put_yarn(m);
    return maker_refuse(m, ".rope.scaling.type", "yarn or none", "another one");
}

int gguf_put_hybrid(const struct gguf_maker *m) {
    maker_put(m, "architectures", json_pack("[s]", "DeepseekV4ForCausalLM"));
    int code = maker_sizes(m, sizes, sizeof sizes / sizeof *sizes);
    if (!code) code = check_value_length(m);
    if (!code) code = put_numbers(m);
    if (!code) code = put_ratios(m);
    if (!code) code = put_limit(m);
    if (!code) code = put_gate(m);
    return code ? code : put_rope(m);
}
