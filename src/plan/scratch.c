/* plan/scratch.c - what a step writes besides the cache. On a card: as backend/cuda/memory.c places it (tests/unit/test_engine_plan.c
 * holds the two together); lists of work, some KB, are left out. */
#include <math.h>
#include "plan/memory.h"

/* As backend/cuda has them: bytes of a window of keys and values, of a step's partial results beside one a row; tokens of a split;
 * columns of a slab; rows from which activations are packed in slabs; rows that are scored at once; columns of streams that a block has. */
enum { WINDOW_BYTES = 64 << 20, EXTRA_BYTES = 64 << 20, SPLIT_TOKENS = 256, SLAB_COLS = 64, FEW_ROWS = 64 };
enum { WINDOW_TOKENS = 4096, INDEX_WAVE = 64, STREAM_COLS = 512, PAIR_BYTES = 5 * 4 + 16 };

static bool is_csa2(const struct plan_arch *a) {
    return plan_arch_is_hybrid(a) && a->hybrid.kind == HYBRID_CSA2;
}

static double streams_of(const struct plan_arch *a) {
    return plan_arch_is_hybrid(a) ? a->hybrid.streams : 1;
}

/* Of models that have no backend here. Activations of a step's rows, 16-bit but for the residual and the logits. */
static double usual_bytes(const struct plan_arch *a, const struct plan_wish *wish) {
    double rows = wish->batched_tokens, hidden = a->hidden;
    double q = plan_arch_is_latent(a) ? a->nope_dim + a->rope_dim + a->v_dim + 2.0 * a->kv_lora + a->rope_dim
                                      : 2.0 * a->head_dim + 2.0 * a->kv_heads * a->head_dim / a->heads;
    double routed = (double)(a->top_k + a->shared_experts) * a->expert_width;
    double width = routed > a->dense_width ? routed : a->dense_width;
    return rows * (hidden * (2 + 4 * streams_of(a)) + a->heads * q * 2 + width * 4 + a->experts * 4.0) +
           4.0 * wish->seqs * a->vocab;
}

/* ---- on a card ---- */

static double pool_tokens(const struct plan_wish *wish) {
    return (double)wish->context * wish->seqs;
}

/* Attention's partial results: one a row, and for those that decode one for each split of what they see. */
static double partial_bytes(const struct plan_arch *a, const struct plan_wish *wish) {
    const struct plan_hybrid *h = &a->hybrid;
    double value = a->kv_lora + (plan_arch_is_hybrid(a) ? a->rope_dim : 0), slot = a->heads * (value + 2) * 4;
    double splits = pool_tokens(wish) / SPLIT_TOKENS + wish->seqs, seen = a->index_topk;
    if (plan_arch_is_hybrid(a))
        seen = fmax(h->index_topk, is_csa2(a) ? 0 : (double)a->context / RATIO_DENSE) + h->window;
    if (seen > 0) splits = wish->seqs * ceil(seen / SPLIT_TOKENS);
    return (wish->batched_tokens + fmin(splits, floor(EXTRA_BYTES / slot))) * slot;
}

/* Where rows of a chunk are enough to be attended to in expanded form: as attention_expanded_rows counts. */
static double window_bytes(const struct plan_arch *a, const struct plan_wish *wish) {
    double saved = 2.0 * a->kv_lora - a->nope_dim - a->v_dim, once = (double)a->kv_lora * (a->nope_dim + a->v_dim);
    double token = 2.0 * (a->heads * (a->nope_dim + a->v_dim) + a->rope_dim);
    if (plan_arch_is_hybrid(a) || saved <= 0 || wish->batched_tokens <= once / saved) return 0;
    return fmin(fmin(WINDOW_BYTES, WINDOW_TOKENS * token), pool_tokens(wish) * token);
}

/* Scores of every key that a row may see, where some of them are chosen, V4.1's first among candidates. */
static double index_bytes(const struct plan_arch *a, const struct plan_wish *wish) {
    const bool is_hybrid = plan_arch_is_hybrid(a);
    const double heads = is_hybrid ? a->hybrid.index_heads : a->index_heads;
    const double dim = is_hybrid ? a->hybrid.index_dim : a->index_dim;
    const double topk = is_hybrid ? a->hybrid.index_topk : a->index_topk;
    const bool is_csa = is_hybrid && !is_csa2(a);
    const double keys = fmin(a->context, pool_tokens(wish)) / (is_csa ? RATIO_SPARSE : 1);
    const double made = is_csa ? 0 : wish->batched_tokens * dim * 4, blocks = a->hybrid.candidate_blocks;
    const double candidates = blocks * a->hybrid.candidate_rows < keys ? blocks : 0;
    if (!(topk > 0) || keys <= topk) return made;
    return made + wish->batched_tokens * 4 * (heads * dim + heads + topk + candidates) + INDEX_WAVE * keys * 4;
}

/* Of a row: compressors' values and gates, V4's of two windows; what V4.1's n-grams look up, keys and values of that, and what is read by. */
static double making_bytes(const struct plan_arch *a) {
    const struct plan_hybrid *h = &a->hybrid;
    const double row = a->kv_lora + a->rope_dim, looked_up = (double)h->tables * h->table_columns * h->table_dim;
    if (!is_csa2(a)) return 2 * 4 * 2 * (row + h->index_dim);
    return 2 * 4 * row + 2 * looked_up + (h->tables ? 4.0 * (h->streams + 1) * a->hidden : 0) + 4.0 * h->streams;
}

/* Of a row: streams, what mixes them, compressors, groups of the output. */
static double hybrid_row_bytes(const struct plan_arch *a) {
    const struct plan_hybrid *h = &a->hybrid;
    if (!plan_arch_is_hybrid(a)) return 0;
    const double width = (double)h->streams * a->hidden, mix = (2.0 + h->streams) * h->streams;
    return 4 * (width + mix + ceil(width / STREAM_COLS) * (mix + 1)) + making_bytes(a) + 2.0 * h->o_groups * h->o_lora;
}

static double card_bytes(const struct plan_arch *a, const struct plan_wish *wish) {
    const double hidden = a->hidden, heads = a->heads, latent = a->kv_lora + a->rope_dim;
    const double dense = a->dense_layers ? a->dense_width : 0, routed = (double)a->top_k * a->expert_width;
    const double shared = (double)a->shared_experts * a->expert_width, copies = a->experts ? a->top_k : 1;
    double row = 4 * (hidden + hidden + copies * hidden); /* the residual, shared experts, routed ones */
    row += heads * (4.0 * (a->nope_dim + a->rope_dim) + 2 * latent + 2.0 * a->v_dim) + 4 * (a->q_lora + latent);
    row += 2 * fmax(dense, routed) + 2 * shared + 4.0 * a->experts + PAIR_BYTES * a->top_k;
    if (wish->batched_tokens > FEW_ROWS) row += 2 * SLAB_COLS * ceil(fmax(hidden, a->q_lora) / SLAB_COLS);
    return wish->batched_tokens * (row + hybrid_row_bytes(a)) + partial_bytes(a, wish) + window_bytes(a, wish) +
           index_bytes(a, wish) + 4.0 * wish->seqs * a->vocab;
}

double plan_link_bytes(const struct plan_arch *a, const struct plan_weights *weights) {
    enum {
        TURN_BYTES = 384 << 20,
        SLICE_BYTES = 32 << 20,
        AHEAD_BYTES = 96 << 20
    }; /* as backend/cuda/link.c has them */
    enum { BUFFERS = 2, BUFFERS_MAX = 16, MATRICES = 3 };
    const double layer = weights->bytes[PLAN_ROUTED] / plan_arch_moe_layers(a), expert = layer / a->experts;
    const double turn = fmin(layer, fmax(expert, floor(TURN_BYTES / expert) * expert));
    const double buffer = fmin(SLICE_BYTES, expert / MATRICES);
    return turn + buffer * fmin(BUFFERS_MAX, fmax(BUFFERS, floor(AHEAD_BYTES / buffer)));
}

double plan_scratch_bytes(const struct plan_arch *arch, const struct plan_wish *wish, bool on_card) {
    return on_card && plan_arch_is_latent(arch) ? card_bytes(arch, wish) : usual_bytes(arch, wish);
}
