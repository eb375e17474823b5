#include "plan/arch.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/utf8.h"
#include "plan/arch_hybrid.h"

const char *plan_group_name(enum plan_group group) {
    static const char *const names[PLAN_GROUPS] = {"attention", "kv_b", "dense",     "shared", "routed",
                                                   "router",    "head", "embedding", "norm",   "tables"};
    return names[group];
}

const char *plan_kv_name(enum kv_format kv) {
    static const char *const names[KV_FORMATS] = {"f32", "bf16", "fp8"};
    return names[kv];
}

/* Sources: the published config.json of each model; DeepSeek-V2 (arXiv 2405.04434) appendix B, DeepSeek-V3 (arXiv
 * 2412.19437). */
#define LATENT .kv_lora = 512, .nope_dim = 128, .rope_dim = 64, .v_dim = 128, .context = 163840, .runs_here = true
#define V2_LITE                                                                                                        \
    .published = "bf16", .layers = 27, .dense_layers = 1, .hidden = 2048, .heads = 16, .vocab = 102400, LATENT,        \
    .dense_width = 10944, .expert_width = 1408, .experts = 64, .top_k = 6, .shared_experts = 2
#define V3                                                                                                             \
    .published = "fp8", .layers = 61, .dense_layers = 3, .hidden = 7168, .heads = 128, .vocab = 129280, LATENT,        \
    .q_lora = 1536, .dense_width = 18432, .expert_width = 2048, .experts = 256, .top_k = 8, .shared_experts = 1,       \
    .router_bias = true
#define V4                                                                                                             \
    .published = "fp4,head=bf16", .vocab = 129280, .kv_lora = 448, .nope_dim = 448, .rope_dim = 64, .v_dim = 512,      \
    .context = 1 << 20, .runs_here = true, .router_bias = true, .top_k = 6, .shared_experts = 1
#define HYBRID .window = 128, .index_dim = 128, .o_lora = 1024, .streams = 4
#define V4_HYBRID HYBRID, .index_heads = 64, .hash_layers = 3
static const struct plan_arch builtin[] = {
    {.name = "deepseek-coder-v2-lite", V2_LITE},
    {.name = "deepseek-v2-lite", V2_LITE},
    {.name = "deepseek-v2",
     .published = "bf16",
     .layers = 60,
     .dense_layers = 1,
     .hidden = 5120,
     .heads = 128,
     .vocab = 102400,
     LATENT,
     .q_lora = 1536,
     .dense_width = 12288,
     .expert_width = 1536,
     .experts = 160,
     .top_k = 6,
     .shared_experts = 2},
    {.name = "deepseek-v3", V3},
    {.name = "deepseek-r1", V3},
    {.name = "deepseek-v3.2", V3, .index_topk = 2048, .index_heads = 64, .index_dim = 128},
    {.name = "deepseek-v4-flash",
     V4,
     .layers = 43,
     .hidden = 4096,
     .heads = 64,
     .q_lora = 1024,
     .expert_width = 2048,
     .experts = 256,
     .hybrid = {V4_HYBRID, .ratios = {{RATIO_SPARSE, 21, 21, 21, 0}, {RATIO_DENSE, 20, 20, 0, 0}}, .index_topk = 512,
                .o_groups = 8}},
    {.name = "deepseek-v4-pro",
     V4,
     .layers = 61,
     .hidden = 7168,
     .heads = 128,
     .q_lora = 1536,
     .expert_width = 3072,
     .experts = 384,
     .hybrid = {V4_HYBRID, .ratios = {{RATIO_SPARSE, 30, 30, 30, 0}, {RATIO_DENSE, 31, 31, 0, 0}}, .index_topk = 1024,
                .o_groups = 16}},
    {.name = "deepseek-v4.1-flash",
     V4,
     .layers = 40,
     .hidden = 5120,
     .heads = 64,
     .q_lora = 1280,
     .expert_width = 2304,
     .experts = 384,
     .hybrid = {HYBRID, .kind = HYBRID_CSA2, .ratios = {{2, 18, 3, 3, 0}, {1, 20, 1, 5, 4}}, .candidate_blocks = 2048,
                .candidate_rows = 8, .index_heads = 32, .index_topk = 512, .o_groups = 8, .tables = 2,
                .table_columns = 24, .table_dim = 256, .table_rows = 384006168 + 384016682}},
    {.name = "qwen2.5-coder-14b",
     .published = "bf16",
     .layers = 48,
     .dense_layers = 48,
     .hidden = 5120,
     .heads = 40,
     .kv_heads = 8,
     .head_dim = 128,
     .qkv_bias = true,
     .vocab = 152064,
     .context = 32768,
     .dense_width = 13824},
    {.name = "qwen2.5-coder-32b",
     .published = "bf16",
     .layers = 64,
     .dense_layers = 64,
     .hidden = 5120,
     .heads = 40,
     .kv_heads = 8,
     .head_dim = 128,
     .qkv_bias = true,
     .vocab = 152064,
     .context = 32768,
     .dense_width = 27648},
    {.name = "codestral-22b",
     .published = "bf16",
     .layers = 56,
     .dense_layers = 56,
     .hidden = 6144,
     .heads = 48,
     .kv_heads = 8,
     .head_dim = 128,
     .vocab = 32768,
     .context = 32768,
     .dense_width = 16384},
    {.name = "mixtral-8x7b",
     .published = "bf16",
     .layers = 32,
     .hidden = 4096,
     .heads = 32,
     .kv_heads = 8,
     .head_dim = 128,
     .vocab = 32000,
     .context = 32768,
     .expert_width = 14336,
     .experts = 8,
     .top_k = 2},
};
enum { N_BUILTIN = sizeof builtin / sizeof *builtin };

void plan_arch_set_name(struct plan_arch *arch, const char *name) {
    snprintf(arch->name, sizeof arch->name, "%s", name);
    utf8_clean(arch->name);
}

const char *plan_arch_builtin_name(int i) {
    return i < N_BUILTIN ? builtin[i].name : NULL;
}

bool plan_arch_builtin(struct plan_arch *arch, const char *name) {
    for (int i = 0; i < N_BUILTIN; i++) {
        if (strcmp(builtin[i].name, name) != 0) continue;
        *arch = builtin[i];
        return true;
    }
    return false;
}

const char *plan_arch_match(int hidden, int vocab, int experts) {
    for (int i = 0; i < N_BUILTIN; i++) {
        const struct plan_arch *a = &builtin[i];
        if (a->hidden == hidden && (!vocab || a->vocab == vocab) && (!experts || a->experts == experts)) return a->name;
    }
    return NULL;
}

/* ---- parameters ---- */

static int64_t count_attention(const struct plan_arch *a) {
    int64_t hidden = a->hidden, heads = a->heads;
    if (!plan_arch_is_latent(a)) {
        int64_t q = heads * a->head_dim, kv = 2LL * a->kv_heads * a->head_dim;
        return hidden * (q + kv) + q * hidden;
    }
    int64_t q_out = heads * (a->nope_dim + a->rope_dim);
    int64_t q = a->q_lora ? (int64_t)a->q_lora * (hidden + q_out) : hidden * q_out;
    return q + hidden * (a->kv_lora + a->rope_dim) + heads * a->v_dim * hidden;
}

static int64_t count_norms(const struct plan_arch *a) {
    int64_t layer = 2LL * a->hidden + a->kv_lora + a->q_lora + 2LL * a->index_dim;
    if (a->qkv_bias) layer += (int64_t)a->head_dim * (a->heads + 2 * a->kv_heads);
    return a->layers * layer + a->hidden;
}

int64_t plan_arch_expert_params(const struct plan_arch *arch) {
    return 3LL * arch->hidden * arch->expert_width;
}

void plan_arch_params(const struct plan_arch *a, int64_t params[PLAN_GROUPS]) {
    int64_t hidden = a->hidden, moe = plan_arch_moe_layers(a), expert = plan_arch_expert_params(a);
    params[PLAN_ATTENTION] = a->layers * count_attention(a);
    params[PLAN_KV_B] = (int64_t)a->layers * a->kv_lora * a->heads * (a->nope_dim + a->v_dim);
    params[PLAN_KV_B] += a->layers * ((int64_t)a->index_heads * a->q_lora + hidden) * a->index_dim;
    params[PLAN_DENSE] = a->dense_layers * 3 * hidden * a->dense_width;
    params[PLAN_SHARED] = moe * a->shared_experts * expert;
    params[PLAN_ROUTED] = moe * a->experts * expert;
    params[PLAN_ROUTER] = moe * a->experts * (hidden + a->router_bias) + a->layers * a->index_heads * hidden;
    params[PLAN_HEAD] = a->tied_embedding ? 0 : a->vocab * hidden;
    params[PLAN_EMBEDDING] = a->vocab * hidden;
    params[PLAN_NORM] = count_norms(a);
    params[PLAN_TABLES] = a->hybrid.table_rows * a->hybrid.table_dim;
    if (plan_arch_is_hybrid(a)) plan_hybrid_params(a, params);
}

int64_t plan_arch_total(const struct plan_arch *arch) {
    int64_t params[PLAN_GROUPS], total = 0;
    plan_arch_params(arch, params);
    for (int i = 0; i < PLAN_GROUPS; i++) total += params[i];
    return total;
}

int64_t plan_arch_active(const struct plan_arch *arch) {
    int64_t params[PLAN_GROUPS];
    plan_arch_params(arch, params);
    int64_t active = plan_arch_total(arch) - params[PLAN_EMBEDDING] - params[PLAN_TABLES] - params[PLAN_ROUTED];
    active += plan_arch_moe_layers(arch) * arch->top_k * plan_arch_expert_params(arch);
    return arch->tied_embedding ? active + params[PLAN_EMBEDDING] : active; /* it is read as the head */
}

/* ---- cache ---- */

double plan_arch_kv_bytes(const struct plan_arch *arch, enum kv_format kv) {
    static const int value_bytes[KV_FORMATS] = {4, 2, 1};
    if (plan_arch_is_hybrid(arch)) return plan_hybrid_kv_bytes(arch, kv);
    double row = plan_arch_is_latent(arch) ? (double)cache_row_bytes(arch->kv_lora, arch->rope_dim, kv)
                                           : 2.0 * arch->kv_heads * arch->head_dim * value_bytes[kv];
    return (row + (double)cache_key_bytes(arch->index_dim, kv)) * arch->layers;
}

double plan_arch_running_bytes(const struct plan_arch *arch, enum kv_format kv, int64_t pages, int seqs,
                               int step_tokens) {
    return plan_arch_is_hybrid(arch) ? plan_hybrid_running_bytes(arch, kv, pages, seqs, step_tokens) : 0;
}

static bool is_sparse(const struct plan_arch *arch, double depth) {
    return arch->index_topk && depth > arch->index_topk;
}

double plan_arch_chunk_bytes(const struct plan_arch *arch, enum kv_format kv, double depth) {
    return plan_arch_is_hybrid(arch) ? plan_hybrid_read_bytes(arch, kv, depth) : depth * plan_arch_kv_bytes(arch, kv);
}

double plan_arch_read_bytes(const struct plan_arch *arch, enum kv_format kv, double depth) {
    if (plan_arch_is_hybrid(arch)) return plan_hybrid_read_bytes(arch, kv, depth);
    double token = plan_arch_kv_bytes(arch, kv), key = (double)cache_key_bytes(arch->index_dim, kv) * arch->layers;
    if (is_sparse(arch, depth)) return depth * key + arch->index_topk * (token - key);
    return depth * (token - key); /* nobody asks for the keys */
}

/* ---- work ---- */

double plan_arch_distinct_experts(const struct plan_arch *arch, int batch) {
    if (!arch->experts) return 0;
    return arch->experts * (1 - pow(1 - (double)arch->top_k / arch->experts, batch));
}

double plan_arch_pair_ops(const struct plan_arch *a, bool expanded) {
    double dims = a->nope_dim + a->rope_dim + a->v_dim;
    if (!plan_arch_is_latent(a)) {
        dims = 2.0 * a->head_dim;
    } else if (!expanded) {
        dims = 2.0 * a->kv_lora + a->rope_dim;
    }
    return 2 * dims * a->heads * a->layers;
}

double plan_arch_query_ops(const struct plan_arch *arch, double depth) {
    if (plan_arch_is_hybrid(arch)) return plan_hybrid_query_ops(arch, depth);
    double pair = plan_arch_pair_ops(arch, false), index = 2.0 * arch->index_heads * arch->index_dim * arch->layers;
    return is_sparse(arch, depth) ? arch->index_topk * pair + depth * index : depth * pair;
}

/* Of all tokens, by some of them. */
static double sampled_prompt_ops(const struct plan_arch *arch, double tokens) {
    enum { SAMPLES = 256 };
    double sum = 0;
    for (int i = 0; i < SAMPLES; i++) sum += plan_arch_query_ops(arch, tokens * (i + 0.5) / SAMPLES);
    return sum * tokens / SAMPLES;
}

/* The first index_topk tokens, then on the mean of those behind them. */
double plan_arch_prompt_ops(const struct plan_arch *arch, double tokens) {
    if (plan_arch_is_hybrid(arch)) return sampled_prompt_ops(arch, tokens);
    double dense = is_sparse(arch, tokens) ? arch->index_topk : tokens, rest = tokens - dense;
    return dense * dense / 2 * plan_arch_pair_ops(arch, true) +
           (rest > 0 ? rest * plan_arch_query_ops(arch, (dense + tokens) / 2 + 1) : 0);
}
