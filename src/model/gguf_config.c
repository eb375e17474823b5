/* config.json and generation_config.json from a GGUF's values, as config.c wants to read them.
 *
 * llama.cpp's converter leaves some things out, and older ones left out more; what they were is known for DeepSeek's own models, and
 * a warning says what was taken.
 * Source: llama.cpp's converter (DeepseekV2Model) and its loader of "deepseek2". */
#include "model/gguf.h"

#include <stdio.h>
#include <string.h>
#include "base/log.h"

#define ARCH "deepseek2"

enum { MAX_INT = INT32_MAX, GATE_SOFTMAX = 1, GATE_SIGMOID = 2 };

/* The document being made. */
struct maker {
    const struct gguf *gguf;
    json_t *root;
    bool *failed; /* to put something: a key left out would be a default taken in silence */
    struct mo_error *error;
};

static int get_int(const struct maker *m, const char *key, enum json_need need, int64_t max, int *out) {
    return gguf_get_int(m->gguf, key, need, 0, max, out, m->error);
}

static int get_double(const struct maker *m, const char *key, enum json_need need, double *out) {
    return gguf_get_double(m->gguf, key, need, out, m->error);
}

static void put(const struct maker *m, const char *key, json_t *value) {
    if (json_object_set_new(m->root, key, value)) *m->failed = true;
}

static void put_int(const struct maker *m, const char *key, int value) {
    put(m, key, json_integer(value));
}

/* The document, or the error that stands in its way. */
static int finish(const struct maker *m, int code, json_t **root) {
    if (!code && *m->failed) code = mo_error_set(m->error, MO_E_NO_MEMORY, "%s: no memory for its keys", m->gguf->path);
    if (code) {
        json_decref(m->root);
    } else {
        *root = m->root;
    }
    return code;
}

static int refuse(const struct maker *m, const char *key, const char *expected, const char *found) {
    return mo_error_set(m->error, MO_E_UNSUPPORTED, "%s: key \"%s\": expected %s, found %s", m->gguf->path, key,
                        expected, found);
}

static int check_architecture(const struct maker *m) {
    struct gguf_text name = {0};
    char found[100];
    int code = gguf_get_text(m->gguf, "general.architecture", JSON_REQUIRED_KEY, &name, m->error);
    if (code || gguf_text_is(name, ARCH)) return code;
    snprintf(found, sizeof found, "\"%.*s\"", (int)(name.size < 90 ? name.size : 90), name.data);
    return refuse(m, "general.architecture", "\"" ARCH "\" (DeepSeek-V2, V2-Lite, Coder-V2, V3, R1)", found);
}

/* ---- sizes ---- */

static int put_sizes(const struct maker *m) {
    static const struct {
        const char *key, *name;
        enum json_need need; /* what is optional counts as absent when it is 0 */
    } rows[] = {
        {ARCH ".context_length", "max_position_embeddings", JSON_REQUIRED_KEY},
        {ARCH ".embedding_length", "hidden_size", JSON_REQUIRED_KEY},
        {ARCH ".feed_forward_length", "intermediate_size", JSON_REQUIRED_KEY},
        {ARCH ".attention.head_count", "num_attention_heads", JSON_REQUIRED_KEY},
        {ARCH ".attention.kv_lora_rank", "kv_lora_rank", JSON_REQUIRED_KEY},
        {ARCH ".attention.q_lora_rank", "q_lora_rank", JSON_OPTIONAL_KEY},
        {ARCH ".rope.dimension_count", "qk_rope_head_dim", JSON_REQUIRED_KEY},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int value = 0;
        int code = get_int(m, rows[i].key, rows[i].need, MAX_INT, &value);
        if (code) return code;
        if (value || rows[i].need == JSON_REQUIRED_KEY) put_int(m, rows[i].name, value);
    }
    return 0;
}

/* Files since April 2025 give the latent's size as key_length, and a head's under another name. */
static int put_head_sizes(const struct maker *m) {
    int key = 0, value = 0, rope = 0, heads = 0, kv_heads = 1;
    int code = get_int(m, ARCH ".attention.key_length_mla", JSON_OPTIONAL_KEY, MAX_INT, &key);
    if (!code) code = get_int(m, ARCH ".attention.value_length_mla", JSON_OPTIONAL_KEY, MAX_INT, &value);
    if (!code && !key) code = get_int(m, ARCH ".attention.key_length", JSON_REQUIRED_KEY, MAX_INT, &key);
    if (!code && !value) code = get_int(m, ARCH ".attention.value_length", JSON_REQUIRED_KEY, MAX_INT, &value);
    if (!code) code = get_int(m, ARCH ".rope.dimension_count", JSON_REQUIRED_KEY, MAX_INT, &rope);
    if (!code) code = get_int(m, ARCH ".attention.head_count", JSON_REQUIRED_KEY, MAX_INT, &heads);
    if (!code) code = get_int(m, ARCH ".attention.head_count_kv", JSON_OPTIONAL_KEY, MAX_INT, &kv_heads);
    if (code) return code;
    if (kv_heads != 1 && kv_heads != heads)
        return refuse(m, ARCH ".attention.head_count_kv", "1 or head_count", "another number");
    if (key <= rope)
        return refuse(m, ARCH ".attention.key_length", "more than rope.dimension_count", "no more than that");
    put_int(m, "qk_nope_head_dim", key - rope);
    put_int(m, "v_head_dim", value);
    return 0;
}

static bool has_prefix(const struct gguf *gguf, const char *prefix) {
    for (int i = 0; i < gguf->n_tensors; i++) {
        if (!strncmp(gguf->tensors[i].name, prefix, strlen(prefix))) return true;
    }
    return false;
}

/* block_count has the prediction layers in it where the file has them (or its converter has left them out afterwards). */
static int put_layers(const struct maker *m) {
    int layers = 0, predictions = 0;
    char nextn[64], norm[64];
    int code = get_int(m, ARCH ".block_count", JSON_REQUIRED_KEY, 1 << 20, &layers);
    if (!code) code = get_int(m, ARCH ".nextn_predict_layers", JSON_OPTIONAL_KEY, 1 << 20, &predictions);
    if (code) return code;
    snprintf(nextn, sizeof nextn, "blk.%d.nextn.", layers - 1);
    snprintf(norm, sizeof norm, "blk.%d.attn_norm.weight", layers - 1);
    bool counted = has_prefix(m->gguf, nextn) || !gguf_find_tensor(m->gguf, norm);
    if (counted && predictions < layers) layers -= predictions;
    put_int(m, "num_hidden_layers", layers);
    put_int(m, "num_nextn_predict_layers", predictions);
    return 0;
}

static int put_vocabulary(const struct maker *m) {
    static const char *const ids[][2] = {{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                         {"tokenizer.ggml.eos_token_id", "eos_token_id"}};
    const struct gguf_value *tokens;
    int vocab = 0;
    int code = get_int(m, ARCH ".vocab_size", JSON_OPTIONAL_KEY, MAX_INT, &vocab);
    if (!code && !vocab) {
        code = gguf_get_array(m->gguf, "tokenizer.ggml.tokens", JSON_REQUIRED_KEY, GGUF_STRING, &tokens, m->error);
        if (!code) vocab = tokens->count < MAX_INT ? (int)tokens->count : MAX_INT;
    }
    put_int(m, "vocab_size", vocab);
    for (int i = 0; i < 2 && !code; i++) {
        int id = -1;
        code = get_int(m, ids[i][0], JSON_OPTIONAL_KEY, MAX_INT, &id);
        if (!code && id >= 0) put_int(m, ids[i][1], id);
    }
    return code;
}

/* ---- experts ---- */

/* Files from before September 2025 do not say the groups, though the model was made with them. */
static int put_groups(const struct maker *m, int gate, int experts) {
    int groups = 0, top = 0;
    int code = get_int(m, ARCH ".expert_group_count", JSON_OPTIONAL_KEY, experts, &groups);
    if (!code) code = get_int(m, ARCH ".expert_group_used_count", JSON_OPTIONAL_KEY, experts, &top);
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
    put_int(m, "n_group", groups);
    put_int(m, "topk_group", top ? top : groups);
    put(m, "topk_method", json_string(method));
    return 0;
}

static int put_gate(const struct maker *m, int experts, int *gate) {
    bool norm = false;
    double scale = 1;
    *gate = GATE_SOFTMAX; /* files of V2 from before 2025 do not say */
    int code = gguf_get_int(m->gguf, ARCH ".expert_gating_func", JSON_OPTIONAL_KEY, 0, 100, gate, m->error);
    if (!code && *gate == 0) *gate = GATE_SOFTMAX;
    if (!code && *gate != GATE_SOFTMAX && *gate != GATE_SIGMOID)
        code = refuse(m, ARCH ".expert_gating_func", "1 (softmax) or 2 (sigmoid)", "another one");
    if (!code) code = gguf_get_bool(m->gguf, ARCH ".expert_weights_norm", JSON_OPTIONAL_KEY, &norm, m->error);
    if (!code) code = get_double(m, ARCH ".expert_weights_scale", JSON_OPTIONAL_KEY, &scale);
    if (code) return code;
    put(m, "scoring_func", json_string(*gate == GATE_SIGMOID ? "sigmoid" : "softmax"));
    put(m, "norm_topk_prob", json_boolean(norm));
    put(m, "routed_scaling_factor", json_real(scale == 0 ? 1 : scale)); /* 0: none */
    return put_groups(m, *gate, experts);
}

static int put_experts(const struct maker *m) {
    int experts = 0, used = 0, shared = 0, width = 0, dense = 0, gate = GATE_SOFTMAX;
    int code = get_int(m, ARCH ".expert_count", JSON_OPTIONAL_KEY, MAX_INT, &experts);
    if (!code && experts) {
        code = get_int(m, ARCH ".expert_used_count", JSON_REQUIRED_KEY, MAX_INT, &used);
        if (!code) code = get_int(m, ARCH ".expert_shared_count", JSON_OPTIONAL_KEY, MAX_INT, &shared);
        if (!code) code = get_int(m, ARCH ".expert_feed_forward_length", JSON_REQUIRED_KEY, MAX_INT, &width);
        if (!code) code = get_int(m, ARCH ".leading_dense_block_count", JSON_OPTIONAL_KEY, MAX_INT, &dense);
        if (!code) code = put_gate(m, experts, &gate);
        if (code) return code;
        put_int(m, "n_routed_experts", experts);
        put_int(m, "num_experts_per_tok", used);
        if (shared) put_int(m, "n_shared_experts", shared);
        put_int(m, "moe_intermediate_size", width);
        put_int(m, "first_k_dense_replace", dense);
    }
    const char *name = gate == GATE_SIGMOID ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM";
    put(m, "architectures", json_pack("[s]", name));
    return code;
}

/* ---- rotation ---- */

/* Keys that change the arithmetic and are 1 in every file of a DeepSeek model. */
static int refuse_foreign_rope(const struct maker *m) {
    static const char *const ones[] = {ARCH ".rope.scaling.attn_factor", ARCH ".rope.scaling.yarn_attn_factor",
                                       ARCH ".rope.scaling.yarn_ext_factor"};
    double value, temperature = 0;
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) {
        value = 1;
        int code = get_double(m, ones[i], JSON_OPTIONAL_KEY, &value);
        if (code) return code;
        if (value != 1) return refuse(m, ones[i], "1", "another number");
    }
    int code = get_double(m, ARCH ".attention.temperature_scale", JSON_OPTIONAL_KEY, &temperature);
    if (!code && temperature != 0) code = refuse(m, ARCH ".attention.temperature_scale", "none", "one");
    return code;
}

/* The file has 0.1 * mscale_all_dim; mscale is the same in every published model, and llama.cpp takes it so. Without the key
 * the model's config.json had no mscale_all_dim, and DeepSeek's own code takes 1 and 0. */
static int put_yarn(const struct maker *m) {
    double factor = 0, log_mul = 0, fast = 32, slow = 1;
    int original = 0;
    bool given = gguf_find(m->gguf, ARCH ".rope.scaling.yarn_log_multiplier") != NULL;
    int code = get_double(m, ARCH ".rope.scaling.factor", JSON_REQUIRED_KEY, &factor);
    if (!code) code = get_int(m, ARCH ".rope.scaling.original_context_length", JSON_REQUIRED_KEY, MAX_INT, &original);
    if (!code) code = get_double(m, ARCH ".rope.scaling.yarn_log_multiplier", JSON_OPTIONAL_KEY, &log_mul);
    if (!code) code = get_double(m, ARCH ".rope.scaling.yarn_beta_fast", JSON_OPTIONAL_KEY, &fast);
    if (!code) code = get_double(m, ARCH ".rope.scaling.yarn_beta_slow", JSON_OPTIONAL_KEY, &slow);
    if (code) return code;
    if (!given) {
        log_warn("%s: key \"" ARCH ".rope.scaling.yarn_log_multiplier\" is missing: mscale is taken as 1 and "
                 "mscale_all_dim as 0 (published models have 0.707 or 1 for both)",
                 m->gguf->path);
    }
    if (log_mul < 0 || log_mul > 10)
        return refuse(m, ARCH ".rope.scaling.yarn_log_multiplier", "0 to 10", "another number");
    double mscale = gguf_ten_times(log_mul);
    put(m, "rope_scaling",
        json_pack("{ss sf si sf sf sf sf}", "type", "yarn", "factor", factor, "original_max_position_embeddings",
                  original, "beta_fast", fast, "beta_slow", slow, "mscale", given && log_mul != 0 ? mscale : 1.0,
                  "mscale_all_dim", mscale));
    return 0;
}

static int put_rope(const struct maker *m) {
    struct gguf_text type = {"none", 4};
    double theta = 10000, eps = 0;
    int code = refuse_foreign_rope(m);
    if (!code) code = get_double(m, ARCH ".rope.freq_base", JSON_OPTIONAL_KEY, &theta);
    if (!code) code = get_double(m, ARCH ".attention.layer_norm_rms_epsilon", JSON_REQUIRED_KEY, &eps);
    if (!code) code = gguf_get_text(m->gguf, ARCH ".rope.scaling.type", JSON_OPTIONAL_KEY, &type, m->error);
    if (code) return code;
    put(m, "rope_theta", json_real(theta));
    put(m, "rms_norm_eps", json_real(eps));
    bool is_scaled = gguf_find(m->gguf, ARCH ".rope.scaling.factor") && !gguf_find(m->gguf, ARCH ".rope.scaling.type");
    if (is_scaled)
        return refuse(m, ARCH ".rope.scaling.type", "yarn or none beside rope.scaling.factor", "no such key");
    if (gguf_text_is(type, "none")) return 0;
    if (gguf_text_is(type, "yarn")) return put_yarn(m);
    return refuse(m, ARCH ".rope.scaling.type", "yarn or none", "another one");
}

int gguf_config(const struct gguf *gguf, json_t **root, struct mo_error *error) {
    bool failed = false;
    const struct maker maker = {gguf, json_object(), &failed, error}, *m = &maker;
    if (!maker.root) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    int code = check_architecture(m);
    if (!code) code = put_layers(m);
    if (!code) code = put_sizes(m);
    if (!code) code = put_head_sizes(m);
    if (!code) code = put_experts(m);
    if (!code) code = put_rope(m);
    if (!code) code = put_vocabulary(m);
    bool tied = !gguf_find_tensor(gguf, "output.weight");
    put(&maker, "tie_word_embeddings", json_boolean(tied));
    return finish(&maker, code, root);
}

/* What some files suggest for sampling; the end of a turn ends an answer as the end of the text does. */
int gguf_generation_config(const struct gguf *gguf, json_t **root, struct mo_error *error) {
    static const char *const numbers[][2] = {{"general.sampling.temp", "temperature"},
                                             {"general.sampling.top_p", "top_p"},
                                             {"general.sampling.min_p", "min_p"},
                                             {"general.sampling.penalty_repeat", "repetition_penalty"}};
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"};
    bool failed = false;
    const struct maker maker = {gguf, json_object(), &failed, error};
    json_t *eos = json_array();
    int code = 0;
    failed = !maker.root || !eos;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !code; i++) {
        double value;
        if (!gguf_find(gguf, numbers[i][0])) continue;
        code = get_double(&maker, numbers[i][0], JSON_REQUIRED_KEY, &value);
        if (!code) put(&maker, numbers[i][1], json_real(value));
    }
    for (int i = 0; i < 2 && !code; i++) {
        int id = -1;
        code = get_int(&maker, ends[i], JSON_OPTIONAL_KEY, MAX_INT, &id);
        if (!code && id >= 0 && json_array_append_new(eos, json_integer(id))) failed = true;
    }
    int top_k = -1;
    if (!code) code = get_int(&maker, "general.sampling.top_k", JSON_OPTIONAL_KEY, MAX_INT, &top_k);
    if (!code && top_k >= 0) put_int(&maker, "top_k", top_k);
    put(&maker, "eos_token_id", eos);
    return finish(&maker, code, root);
}
