#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model/checkpoint.h"
#include "model/config_priv.h"

static int read_architecture(const struct reader *r, struct model *model) {
    const json_t *list = json_object_get(r->object, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name) {
        return mo_error_set(r->error, MO_E_NOT_FOUND, "%s: key \"architectures\": expected a list with one name",
                            r->where);
    }
    static const char *const known[] = {"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM",
                                        "DeepseekV4ForCausalLM", "DeepseekV41ForCausalLM"};
    bool is_known = false;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) is_known |= !strcmp(name, known[i]);
    if (!is_known) {
        return refuse(r, "architectures",
                      "DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, DeepseekV32ForCausalLM, DeepseekV4ForCausalLM or "
                      "DeepseekV41ForCausalLM",
                      name);
    }
    snprintf(model->architecture, sizeof model->architecture, "%s", name);
    return 0;
}

/* V3.2 is V3 with an indexer. */
static bool is_v3(const struct model *model) {
    return strcmp(model->architecture, "DeepseekV2ForCausalLM") != 0;
}

static int read_sizes(const struct reader *r, struct model *model) {
    int code = 0;
    if (!code) code = need_int(r, "num_hidden_layers", 1, MODEL_MAX_LAYERS, &model->layers);
    if (!code) code = need_int(r, "hidden_size", 1, MAX_DIM, &model->hidden);
    if (!code) code = need_int(r, "num_attention_heads", 1, MAX_HEADS, &model->heads);
    if (!code) code = need_int(r, "vocab_size", 1, MAX_VOCAB, &model->vocab);
    if (!code) code = need_int(r, "max_position_embeddings", 1, MAX_CONTEXT, &model->context);
    if (!code) code = need_int(r, "kv_lora_rank", 1, MAX_DIM, &model->kv_lora);
    if (!code) code = need_int(r, "qk_nope_head_dim", 1, MAX_HEAD_DIM, &model->nope_dim);
    if (!code) code = need_int(r, "qk_rope_head_dim", 2, MAX_HEAD_DIM, &model->rope_dim);
    if (!code) code = need_int(r, "v_head_dim", 1, MAX_HEAD_DIM, &model->v_dim);
    if (!code) code = need_int(r, "intermediate_size", 1, MAX_DIM, &model->dense_width);
    if (!code) code = may_int(r, "q_lora_rank", 1, MAX_DIM, &model->q_lora);
    int kv_heads = model->heads;
    if (!code) code = may_int(r, "num_key_value_heads", 1, MAX_HEADS, &kv_heads);
    if (!code && kv_heads != model->heads)
        code = refuse(r, "num_key_value_heads", "num_attention_heads", "another number");
    if (!code && model->rope_dim % 2) code = refuse(r, "qk_rope_head_dim", "an even number", "an odd one");
    if (!code && model->kv_lora % 2) code = refuse(r, "kv_lora_rank", "an even number", "an odd one");
    model->q_kind = model->q_lora ? Q_LOW_RANK : Q_DIRECT;
    return code;
}

/* V3.2: which of the cached tokens a query attends to. The indexer's queries come from the low-rank ones. */
static int read_indexer(const struct reader *r, struct model *model) {
    if (strcmp(model->architecture, "DeepseekV32ForCausalLM") != 0) return 0;
    int code = need_int(r, "index_topk", 1, MAX_CONTEXT, &model->index_topk);
    if (!code) code = need_int(r, "index_n_heads", 1, MAX_HEADS, &model->index_heads);
    if (!code) code = need_int(r, "index_head_dim", 1, MAX_HEAD_DIM, &model->index_dim);
    if (!code && model->index_dim < model->rope_dim)
        code = refuse(r, "index_head_dim", "qk_rope_head_dim or more", "less");
    if (!code && model->q_kind != Q_LOW_RANK) code = refuse(r, "q_lora_rank", "a number", "none");
    return code;
}

/* A model without n_routed_experts has dense layers only. */
static int read_experts(const struct reader *r, struct model *model) {
    int code = may_int(r, "n_routed_experts", 1, MAX_EXPERTS, &model->experts);
    model->dense_layers = model->experts ? 0 : model->layers;
    model->routed_scale = 1;
    if (code || !model->experts) return code;
    int every = 1;
    if (!code) code = may_int(r, "first_k_dense_replace", 0, model->layers, &model->dense_layers);
    if (!code) code = may_int(r, "moe_layer_freq", 1, MODEL_MAX_LAYERS, &every);
    if (!code && every != 1) code = refuse(r, "moe_layer_freq", "1", "another number");
    if (!code) code = need_int(r, "moe_intermediate_size", 1, MAX_DIM, &model->expert_width);
    if (!code) code = need_int(r, "num_experts_per_tok", 1, model->experts, &model->top_k);
    if (!code) code = may_int(r, "n_shared_experts", 1, 64, &model->shared_experts);
    enum json_need need = is_v3(model) ? JSON_REQUIRED_KEY : JSON_OPTIONAL_KEY;
    if (!code) code = json_get_bool(r->object, "norm_topk_prob", need, r->where, &model->norm_topk, r->error);
    if (!code) {
        code =
            json_get_double(r->object, "routed_scaling_factor", need, 0, 1e6, r->where, &model->routed_scale, r->error);
    }
    return code;
}

static int read_groups(const struct reader *r, struct model *model) {
    int code = need_int(r, "n_group", 1, model->experts, &model->groups);
    if (!code) code = need_int(r, "topk_group", 1, model->groups, &model->top_groups);
    if (code) return code;
    if (model->experts % model->groups) {
        return mo_error_set(r->error, MO_E_INVALID, "%s: key \"n_group\": %d groups do not divide %d experts", r->where,
                            model->groups, model->experts);
    }
    int reachable = model->experts / model->groups * model->top_groups;
    if (model->top_k > reachable) {
        return mo_error_set(
            r->error, MO_E_INVALID,
            "%s: key \"num_experts_per_tok\": expected at most %d (topk_group %d of n_group %d), found %d", r->where,
            reachable, model->top_groups, model->groups, model->top_k);
    }
    return 0;
}

static int read_gate(const struct reader *r, struct model *model) {
    if (!model->experts) return 0;
    const char *method = is_v3(model) ? "noaux_tc" : "greedy", *scoring = is_v3(model) ? "sigmoid" : "softmax";
    int code = may_string(r, "topk_method", &method);
    if (!code) code = may_string(r, "scoring_func", &scoring);
    if (code) return code;
    model->groups = model->top_groups = 1;
    if (!strcmp(method, "greedy") && !strcmp(scoring, "softmax")) {
        model->gate_kind = GATE_SOFTMAX_GREEDY;
        return 0;
    }
    if (!strcmp(method, "group_limited_greedy") && !strcmp(scoring, "softmax")) {
        model->gate_kind = GATE_SOFTMAX_GROUPED;
    } else if (!strcmp(method, "noaux_tc") && !strcmp(scoring, "sigmoid")) {
        model->gate_kind = GATE_SIGMOID_GROUPED;
    } else if (strcmp(scoring, "softmax") && strcmp(scoring, "sigmoid")) {
        return refuse(r, "scoring_func", "softmax or sigmoid", scoring);
    } else {
        return refuse(r, "topk_method", "greedy or group_limited_greedy (with softmax), or noaux_tc (with sigmoid)",
                      method);
    }
    code = read_groups(r, model);
    if (!code && model->gate_kind == GATE_SIGMOID_GROUPED && model->experts / model->groups < 2) {
        code = refuse(r, "n_group", "groups of at least two experts", "smaller ones");
    }
    return code;
}

int config_read_yarn(const struct reader *config, const json_t *scaling, struct rope *rope) {
    char where[512];
    snprintf(where, sizeof where, "%s: rope_scaling", config->where);
    struct reader r = {scaling, where, config->error};
    rope->kind = ROPE_YARN;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    rope->mscale = 1;
    rope->mscale_all_dim = 0;
    int code = json_get_double(scaling, "factor", JSON_REQUIRED_KEY, 1, 1e6, where, &rope->factor, r.error);
    if (!code) code = need_int(&r, "original_max_position_embeddings", 1, MAX_CONTEXT, &rope->original_context);
    if (!code) code = may_double(&r, "beta_fast", 1e-3, 1e6, &rope->beta_fast);
    if (!code) code = may_double(&r, "beta_slow", 1e-3, 1e6, &rope->beta_slow);
    if (!code) code = may_double(&r, "mscale", 0, 100, &rope->mscale);
    if (!code) code = may_double(&r, "mscale_all_dim", 0, 100, &rope->mscale_all_dim);
    return code;
}

/* Keys that other ports write and that would change the rotation. */
static int refuse_foreign_rope(const struct reader *r) {
    const json_t *scaling = json_object_get(r->object, "rope_scaling");
    const char *type = json_string_value(json_object_get(scaling, "type"));
    const char *rope_type = json_string_value(json_object_get(scaling, "rope_type"));
    bool interleaved = true;
    int code = may_bool(r, "rope_interleave", &interleaved);
    if (!code && !interleaved) code = refuse(r, "rope_interleave", "true", "false");
    if (!code && is_given(r, "rope_parameters")) {
        code = refuse(r, "rope_parameters", "rope_theta and rope_scaling, as DeepSeek writes them", "rope_parameters");
    }
    if (!code && is_given(r, "partial_rotary_factor")) code = refuse(r, "partial_rotary_factor", "none", "one");
    const struct reader of_scaling = {scaling, r->where, r->error};
    if (!code && is_given(&of_scaling, "attention_factor"))
        code = refuse(r, "rope_scaling.attention_factor", "none", "one");
    if (!code && type && rope_type && strcmp(type, rope_type))
        code = refuse(r, "rope_scaling.rope_type", type, rope_type);
    return code;
}

static int read_rope(const struct reader *r, struct model *model) {
    model->rope = (struct rope){.kind = ROPE_PLAIN, .theta = 10000, .factor = 1};
    int code = refuse_foreign_rope(r);
    if (!code) code = may_double(r, "rope_theta", 1.001, 1e12, &model->rope.theta);
    const json_t *scaling = json_object_get(r->object, "rope_scaling");
    if (code || !scaling || json_is_null(scaling)) return code;
    if (!json_is_object(scaling)) return refuse(r, "rope_scaling", "an object", "something else");
    const char *type = json_string_value(json_object_get(scaling, "type"));
    if (!type) type = json_string_value(json_object_get(scaling, "rope_type"));
    if (!type) return refuse(r, "rope_scaling.type", "yarn", "none");
    if (!strcmp(type, "default")) return 0;
    if (strcmp(type, "yarn")) return refuse(r, "rope_scaling.type", "yarn", type);
    return config_read_yarn(r, scaling, &model->rope);
}

/* Keys that would change the arithmetic in ways that no published DeepSeek model uses. */
static int refuse_unknown_arithmetic(const struct reader *r, struct model *model) {
    const char *activation = "silu";
    bool bias = false;
    int code = may_string(r, "hidden_act", &activation);
    if (!code && strcmp(activation, "silu")) code = refuse(r, "hidden_act", "silu", activation);
    if (!code) code = may_bool(r, "attention_bias", &bias);
    if (!code && bias) code = refuse(r, "attention_bias", "false", "true");
    if (!code) code = may_double(r, "rms_norm_eps", 0, 1, &model->norm_eps);
    if (!code) code = may_bool(r, "tie_word_embeddings", &model->tied_embedding);
    if (!code) code = may_int(r, "num_nextn_predict_layers", 0, MODEL_MAX_LAYERS, &model->mtp_layers);
    return code;
}

/* Token ids that end or begin a text: null, a number, or (for the end) a list of numbers. */
static int check_id(const struct reader *r, const struct model *model, const char *key, const json_t *id) {
    json_int_t value = json_integer_value(id);
    if (json_is_integer(id) && value >= 0 && value < model->vocab) return 0;
    return mo_error_set(r->error, MO_E_INVALID, "%s: key \"%s\": expected token ids from 0 to %d (vocab_size - 1)",
                        r->where, key, model->vocab - 1);
}

static int add_eos(const struct reader *r, struct model *model, const json_t *id) {
    int code = check_id(r, model, "eos_token_id", id);
    if (code) return code;
    for (int i = 0; i < model->n_eos; i++) {
        if (model->eos[i] == json_integer_value(id)) return 0;
    }
    if (model->n_eos == MODEL_MAX_EOS) return refuse(r, "eos_token_id", "at most 16 ids", "more");
    model->eos[model->n_eos++] = (int32_t)json_integer_value(id);
    return 0;
}

static int read_ends(const struct reader *r, struct model *model) {
    const json_t *eos = json_object_get(r->object, "eos_token_id"), *bos = json_object_get(r->object, "bos_token_id");
    int code = 0;
    if (json_is_array(eos)) {
        for (size_t i = 0; i < json_array_size(eos) && !code; i++) code = add_eos(r, model, json_array_get(eos, i));
    } else if (eos && !json_is_null(eos)) {
        code = add_eos(r, model, eos);
    }
    if (code || !bos || json_is_null(bos)) return code;
    code = check_id(r, model, "bos_token_id", bos);
    if (!code) model->bos = (int32_t)json_integer_value(bos);
    return code;
}

/* Each size is within bounds, but not always what they multiply to. */
static int check_count(const struct reader *r, const struct model *model) {
    double routed = 3.0 * model->layers * model->experts * model->hidden * model->expert_width;
    if (routed < 1e15) return 0;
    return mo_error_set(r->error, MO_E_INVALID, "%s: expected a model of at most 1e15 parameters, found %.3g", r->where,
                        routed);
}

/* All families but V4's and V4.1's. */
static int read_latent(const struct reader *r, struct model *model) {
    int code = read_sizes(r, model);
    if (!code) code = read_indexer(r, model);
    if (!code) code = read_experts(r, model);
    if (!code) code = read_gate(r, model);
    if (!code) code = read_rope(r, model);
    return code;
}

/* V4.1 sees and reads: what it reads with is a part of its config.json. */
static int read_text_part(const struct reader *r, struct model *model) {
    const json_t *text = json_object_get(r->object, "text_config");
    if (!text) return config_read_hybrid(r, model);
    char where[512];
    snprintf(where, sizeof where, "%s: text_config", r->where);
    const struct reader part = {text, where, r->error};
    if (!json_is_object(text)) return mo_error_set(r->error, MO_E_INVALID, "%s: expected a JSON object", where);
    int code = config_read_hybrid(&part, model);
    if (!code) code = refuse_unknown_arithmetic(&part, model);
    return code ? code : read_ends(&part, model);
}

static int read_all(const struct reader *r, struct model *model) {
    if (!json_is_object(r->object)) {
        return mo_error_set(r->error, MO_E_INVALID, "%s: expected a JSON object", r->where);
    }
    int code = read_architecture(r, model);
    if (code) return code;
    const bool is_csa2 = config_is_csa2(model), is_hybrid = !strcmp(model->architecture, "DeepseekV4ForCausalLM");
    model->norm_eps = 1e-6;
    code = is_csa2 ? read_text_part(r, model) : is_hybrid ? config_read_hybrid(r, model) : read_latent(r, model);
    if (!code) code = check_count(r, model);
    if (!code) code = refuse_unknown_arithmetic(r, model);
    if (!code) code = config_read_quantization(r, model);
    if (!code) code = read_ends(r, model);
    return code;
}

int model_parse(struct model *model, const char *json, size_t size, const char *where, struct mo_error *error) {
    *model = (struct model){.bos = -1};
    json_t *root;
    int code = json_parse(json, size, where, &root, error);
    if (code) return json_damage(code, error);
    struct reader reader = {root, where, error};
    code = read_all(&reader, model);
    json_decref(root);
    return json_damage(code, error);
}

int model_load(struct model *model, const struct checkpoint *checkpoint, struct mo_error *error) {
    char where[4400], *text;
    size_t size;
    checkpoint_file_where(checkpoint, "config.json", where, sizeof where);
    int code = checkpoint_read_file(checkpoint, "config.json", MAX_CONFIG_BYTES, &text, &size, error);
    if (code) return code;
    if (checkpoint->overrides) strncat(where, ", overridden", sizeof where - strlen(where) - 1);
    code = model_parse(model, text, size, where, error);
    free(text);
    return code;
}

int model_load_path(struct model *model, const char *path, struct mo_error *error) {
    struct checkpoint checkpoint;
    int code = checkpoint_open_files(&checkpoint, path, error);
    if (!code) code = model_load(model, &checkpoint, error);
    checkpoint_close(&checkpoint);
    return code;
}

int model_load_generation(struct model *model, const struct checkpoint *checkpoint,
                          struct generation_defaults *defaults, struct mo_error *error) {
    *defaults = generation_defaults_none();
    static const char name[] = "generation_config.json";
    char path[4400], *text;
    size_t size;
    if (!checkpoint_has_file(checkpoint, name)) return 0;
    checkpoint_file_where(checkpoint, name, path, sizeof path);
    json_t *root;
    int code = checkpoint_read_file(checkpoint, name, MAX_CONFIG_BYTES, &text, &size, error);
    if (code) return code;
    code = json_parse(text, size, path, &root, error);
    free(text);
    if (code) return json_damage(code, error);
    struct reader r = {root, path, error};
    bool sample = true; /* do_sample false: greedy, whatever the temperature says */
    code = may_bool(&r, "do_sample", &sample);
    if (!code) code = may_double(&r, "temperature", 0, 100, &defaults->temperature);
    if (!code) code = may_double(&r, "top_p", 0, 1, &defaults->top_p);
    if (!code) code = may_double(&r, "min_p", 0, 1, &defaults->min_p);
    if (!code) code = may_double(&r, "repetition_penalty", 1e-3, 100, &defaults->repetition_penalty);
    if (!code) code = may_int(&r, "top_k", -1, MAX_VOCAB, &defaults->top_k);
    if (!code && !sample) defaults->temperature = 0;
    if (!code) code = read_ends(&r, model);
    json_decref(root);
    return json_damage(code, error);
}
