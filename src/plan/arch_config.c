/* plan/arch_config.c - config.json to a plan_arch. */
#include <stdio.h>
#include <string.h>
#include "plan/arch.h"

enum { MAX_LAYERS = 1024, MAX_DIM = 1 << 20, MAX_HEADS = 4096, MAX_VOCAB = 1 << 22, MAX_CONTEXT = 1 << 26 };

static const char *published_recipe(const struct model *model) {
    switch (model->quant) {
    case QUANT_FP8_BLOCK:
        return model_is_hybrid(model) ? "fp4,head=bf16" : "fp8"; /* experts of a base model: fp8, says its header */
    case QUANT_FP8_SCALED:
        return "fp8";
    case QUANT_AWQ:
        return "awq";
    case QUANT_GPTQ:
        return "gptq";
    case QUANT_PACKED:
        return "packed";
    case QUANT_INT8:
        return "int8";
    case QUANT_MOEBIUS: /* its headers say it better */
    case QUANT_NONE:
        break;
    }
    return "bf16";
}

static struct plan_ratio ratio_of(const struct model *m, int ratio) {
    const struct hybrid_model *h = &m->hybrid;
    struct plan_ratio kind = {.ratio = ratio};
    for (int i = 0; i < m->layers; i++) {
        if (h->ratio[i] != ratio) continue;
        const bool indexes = model_layer_indexes(m, i);
        kind.layers++;
        kind.makers += model_makes_rows(m, i) > 0;
        kind.choosers += indexes;
        kind.narrowed += indexes && h->candidate_layer >= 0 && i > h->candidate_layer;
    }
    return kind;
}

static struct plan_hybrid hybrid_of(const struct model *m) {
    const struct hybrid_model *h = &m->hybrid;
    const struct engram_model *e = &h->engram;
    struct plan_hybrid hybrid = {.kind = h->kind,
                                 .window = h->window,
                                 .index_topk = h->index_topk,
                                 .index_heads = h->index_heads,
                                 .index_dim = h->index_dim,
                                 .o_groups = h->o_groups,
                                 .o_lora = h->o_lora,
                                 .streams = h->streams,
                                 .hash_layers = h->hash_layers < m->layers ? h->hash_layers : m->layers,
                                 .tables = e->n_layers};
    if (!model_is_hybrid(m)) return hybrid;
    hybrid.ratios[0] = ratio_of(m, model_is_csa2(m) ? 2 : RATIO_SPARSE);
    hybrid.ratios[1] = ratio_of(m, model_is_csa2(m) ? 1 : RATIO_DENSE);
    hybrid.candidate_blocks = h->candidate_blocks;
    hybrid.candidate_rows = h->candidate_rows;
    if (e->n_layers) hybrid.table_columns = engram_columns(e);
    hybrid.table_dim = e->dim;
    for (int i = 0; i < e->n_layers; i++) hybrid.table_rows += e->rows[i];
    return hybrid;
}

void plan_arch_from_model(struct plan_arch *arch, const struct model *m, const char *name) {
    *arch = (struct plan_arch){
        .runs_here = true,
        .layers = m->layers,
        .dense_layers = m->dense_layers,
        .hidden = m->hidden,
        .heads = m->heads,
        .vocab = m->vocab,
        .context = m->context,
        .q_lora = m->q_lora,
        .kv_lora = m->kv_lora,
        .nope_dim = m->nope_dim,
        .rope_dim = m->rope_dim,
        .v_dim = m->v_dim,
        .index_topk = m->index_topk,
        .index_heads = m->index_heads,
        .index_dim = m->index_dim,
        .hybrid = hybrid_of(m),
        .router_bias = m->experts && (m->gate_kind == GATE_SIGMOID_GROUPED || m->gate_kind == GATE_SQRT_SOFTPLUS),
        .tied_embedding = m->tied_embedding,
        .dense_width = m->dense_layers ? m->dense_width : 0,
        .expert_width = m->expert_width,
        .experts = m->experts,
        .top_k = m->top_k,
        .shared_experts = m->shared_experts,
    };
    plan_arch_set_name(arch, name);
    snprintf(arch->published, sizeof arch->published, "%s", published_recipe(m));
}

/* Where the keys are, and what has gone wrong so far: after the first error the rest is not read. */
struct reader {
    const json_t *object;
    const char *where;
    struct mo_error *error;
    int code;
};

static int read_int(struct reader *r, const char *key, enum json_need need, int min, int max, int fallback) {
    int value = fallback;
    if (!r->code) r->code = json_get_int(r->object, key, need, min, max, r->where, &value, r->error);
    return value;
}

/* Mixtral's experts have the width that the others' feed-forward has. */
static void read_feed_forward(struct reader *r, struct plan_arch *arch) {
    int width = read_int(r, "intermediate_size", JSON_REQUIRED_KEY, 1, MAX_DIM, 0);
    arch->experts = read_int(r, "num_local_experts", JSON_OPTIONAL_KEY, 1, 4096, 0);
    if (!arch->experts) {
        arch->dense_layers = arch->layers;
        arch->dense_width = width;
        return;
    }
    arch->expert_width = width;
    arch->top_k = read_int(r, "num_experts_per_tok", JSON_REQUIRED_KEY, 1, arch->experts, 0);
}

static int read_grouped(const json_t *root, const char *where, const char *architecture, struct plan_arch *arch,
                        struct mo_error *error) {
    struct reader r = {root, where, error, 0};
    *arch = (struct plan_arch){.published = "bf16", .qkv_bias = !strcmp(architecture, "Qwen2ForCausalLM")};
    arch->layers = read_int(&r, "num_hidden_layers", JSON_REQUIRED_KEY, 1, MAX_LAYERS, 0);
    arch->hidden = read_int(&r, "hidden_size", JSON_REQUIRED_KEY, 1, MAX_DIM, 0);
    arch->heads = read_int(&r, "num_attention_heads", JSON_REQUIRED_KEY, 1, MAX_HEADS, 0);
    arch->vocab = read_int(&r, "vocab_size", JSON_REQUIRED_KEY, 1, MAX_VOCAB, 0);
    arch->context = read_int(&r, "max_position_embeddings", JSON_REQUIRED_KEY, 1, MAX_CONTEXT, 0);
    arch->kv_heads = read_int(&r, "num_key_value_heads", JSON_OPTIONAL_KEY, 1, MAX_HEADS, arch->heads);
    arch->head_dim = read_int(&r, "head_dim", JSON_OPTIONAL_KEY, 1, MAX_DIM, r.code ? 1 : arch->hidden / arch->heads);
    read_feed_forward(&r, arch);
    if (!r.code)
        r.code = json_get_bool(root, "tie_word_embeddings", JSON_OPTIONAL_KEY, where, &arch->tied_embedding, error);
    return r.code;
}

static int refuse_family(const char *where, const char *found, struct mo_error *error) {
    return mo_error_set(error, MO_E_UNSUPPORTED,
                        "%s: key \"architectures\": expected DeepseekV2, DeepseekV3, DeepseekV32, DeepseekV4, "
                        "DeepseekV41, Qwen2, Llama, "
                        "Mistral or MixtralForCausalLM, found \"%s\"",
                        where, found ? found : "none");
}

static int parse_root(const json_t *root, const char *where, struct plan_arch *arch, bool *is_ours,
                      struct mo_error *error) {
    static const char *const grouped[] = {"Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM",
                                          "MixtralForCausalLM"};
    const char *found = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));
    *is_ours = found && !strncmp(found, "Deepseek", strlen("Deepseek"));
    if (*is_ours) return 0;
    for (size_t i = 0; found && i < sizeof grouped / sizeof *grouped; i++) {
        if (!strcmp(found, grouped[i])) return read_grouped(root, where, found, arch, error);
    }
    return refuse_family(where, found, error);
}

/* Every single size is within bounds; only experts multiply beyond what a count can hold. */
static int check_size(const struct plan_arch *arch, const char *where, struct mo_error *error) {
    double routed = 3.0 * arch->layers * arch->experts * arch->hidden * arch->expert_width;
    if (routed < 1e15) return 0;
    return mo_error_set(error, MO_E_INVALID, "%s: expected a model of at most 1e15 parameters, found %.3g", where,
                        routed);
}

int plan_arch_parse(struct plan_arch *arch, const char *json, size_t size, const char *where, struct mo_error *error) {
    json_t *root;
    struct model model;
    bool is_ours = false;
    int code = json_parse(json, size, where, &root, error);
    if (code) return json_damage(code, error);
    code = parse_root(root, where, arch, &is_ours, error);
    json_decref(root);
    if (!code && is_ours) {
        code = model_parse(&model, json, size, where, error);
        if (!code) plan_arch_from_model(arch, &model, where);
    }
    if (!code) code = check_size(arch, where, error);
    if (!code) plan_arch_set_name(arch, where);
    return json_damage(code, error);
}
