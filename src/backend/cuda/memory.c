/* backend/cuda/memory.c - what the card has to hold, counted before anything is taken. */
#include <stdio.h>
#include "backend/cuda/cuda.h"
#include "backend/cuda/params_streams.h"

enum { REGION_ALIGN = 256 };

void *device_take(struct device_region *region, size_t bytes) {
    cuda_address at = region->base + region->used;
    region->used += (bytes + REGION_ALIGN - 1) / REGION_ALIGN * REGION_ALIGN;
    return region->base ? (void *)(uintptr_t)at : NULL;
}

static size_t slabs_of(size_t cols) {
    return (cols + SLAB_COLS - 1) / SLAB_COLS;
}

static size_t largest(size_t a, size_t b) {
    return a > b ? a : b;
}

size_t cuda_counters(const struct cuda *cuda) {
    const struct model *m = cuda->model;
    return (size_t)m->hidden / TILE_ROWS + 2 + (size_t)cuda->options.max_logits + (size_t)m->heads + 3;
}

/* Bytes that packing the widest activations takes; bf16 ones are packed only where their rows are no multiple of 16 bytes. */
static size_t packed_bytes(const struct cuda *cuda) {
    const struct model *m = cuda->model;
    size_t rows = (size_t)cuda->options.max_rows, pairs = cuda_may_compute_experts(cuda) ? rows * (size_t)m->top_k : 0;
    const bool is_hybrid = model_is_hybrid(m);
    size_t attended =
        is_hybrid ? (size_t)m->hybrid.o_groups * (size_t)m->hybrid.o_lora : (size_t)m->heads * (size_t)m->v_dim;
    size_t dense = m->dense_layers ? (size_t)m->dense_width : 0;
    size_t expert = (size_t)m->expert_width, shared = (size_t)m->shared_experts * expert;
    size_t engram = m->hybrid.engram.n_layers ? cuda_engram_row_values(cuda) : 0;
    if (rows <= FEW_ROWS) return 0;
    size_t most = largest(rows * slabs_of((size_t)m->hidden), rows * slabs_of((size_t)m->q_lora));
    bool all = cuda->fp8_native; /* that packs everything, in little more than half of the bytes */
    if (model_is_csa2(m)) most = largest(most, rows * slabs_of((size_t)model_latent_dim(m))); /* index keys' */
    if (engram % 8 || all) most = largest(most, rows * slabs_of(engram));
    if (attended % 8 || all) most = largest(most, rows * slabs_of(attended));
    if (dense % 8 || all) most = largest(most, rows * slabs_of(dense));
    if (expert % 8 || all) most = largest(most, pairs * slabs_of(expert) + rows * slabs_of(shared));
    return most * (all ? NATIVE_ROW_BYTES : SLAB_COLS * 2);
}

/* Keys that a row may see. */
static int most_index_keys(const struct cuda *cuda) {
    const int pool = cuda->options.n_pages * KV_PAGE_TOKENS, context = cuda->model->context;
    return (context < pool ? context : pool) / model_index_shape(cuda->model).tokens_a_key;
}

static void place_index(struct cuda *cuda, struct device_region *region) {
    const struct index_shape shape = model_index_shape(cuda->model);
    struct device_scratch *s = &cuda->scratch;
    size_t rows = (size_t)cuda->options.max_rows, heads = (size_t)shape.heads, dim = (size_t)shape.dim;
    const bool has_keys =
        !model_is_hybrid(cuda->model) || model_is_csa2(cuda->model); /* V4 makes them as it makes rows */
    s->index_k = device_take(region, has_keys ? rows * dim * 4 : 0);
    if (most_index_keys(cuda) <= shape.topk) return; /* there is never a choice */
    const struct hybrid_model *h = &cuda->model->hybrid;
    cuda->is_narrowed = model_is_csa2(cuda->model) && h->candidate_layer >= 0 &&
                        (int64_t)h->candidate_blocks * h->candidate_rows < most_index_keys(cuda);
    s->candidate = device_take(region, cuda->is_narrowed ? rows * (size_t)h->candidate_blocks * 4 : 0);
    cuda->index_stride = (most_index_keys(cuda) + INDEX_CHUNK - 1) / INDEX_CHUNK * INDEX_CHUNK;
    s->index_q = device_take(region, rows * heads * dim * 4);
    s->index_weight = device_take(region, rows * heads * 4);
    s->index_score = device_take(region, INDEX_WAVE * (size_t)cuda->index_stride * 4);
    s->chosen = device_take(region, rows * (size_t)shape.topk * 4);
}

static void place_hybrid(struct cuda *cuda, struct device_region *region) {
    const struct model *m = cuda->model;
    const struct hybrid_model *h = &m->hybrid;
    struct device_scratch *s = &cuda->scratch;
    size_t rows = (size_t)cuda->options.max_rows;
    s->streams = device_take(region, rows * (size_t)h->streams * (size_t)m->hidden * 4);
    s->mix = device_take(region, rows * (size_t)model_mix_dim(m) * 4);
    s->mix_piece = device_take(region, rows * cuda_streams_piece_floats(m) * 4);
    if (model_is_csa2(m)) {
        s->before = device_take(region, rows * (size_t)h->streams * 4);
        s->compress = device_take(region, 2 * rows * (size_t)model_latent_dim(m) * 4);
        s->engram_kv =
            device_take(region, h->engram.n_layers ? rows * (size_t)(h->streams + 1) * (size_t)m->hidden * 4 : 0);
    } else {
        s->compress = device_take(region, 2 * rows * (size_t)model_compress_dim(RATIO_SPARSE, model_latent_dim(m)) * 4);
        s->index_compress = device_take(region, 2 * rows * (size_t)model_compress_dim(RATIO_SPARSE, h->index_dim) * 4);
    }
    s->o_low = device_take(region, rows * (size_t)h->o_groups * (size_t)h->o_lora * 2);
}

void cuda_place_scratch(struct cuda *cuda, struct device_region *region) {
    const struct model *m = cuda->model;
    struct device_scratch *s = &cuda->scratch;
    size_t rows = (size_t)cuda->options.max_rows, heads = (size_t)m->heads, hidden = (size_t)m->hidden;
    size_t latent = (size_t)model_latent_dim(m), pairs = rows * (size_t)m->top_k, experts = (size_t)m->experts;
    size_t dense = m->dense_layers ? rows * (size_t)m->dense_width : 0;
    size_t routed = cuda_may_compute_experts(cuda) ? pairs * (size_t)m->expert_width : 0;
    size_t shared = (size_t)m->shared_experts * (size_t)m->expert_width;
    s->x = device_take(region, rows * hidden * 4);
    s->q = device_take(region, rows * heads * (size_t)model_q_head_dim(m) * 4);
    s->q_a = device_take(region, rows * (size_t)m->q_lora * 4);
    s->kv_a = device_take(region, rows * latent * 4);
    s->q_latent = device_take(region, rows * heads * latent * 2);
    s->partial = device_take(region, (size_t)cuda->max_slots * heads * (size_t)(model_value_dim(m) + 2) * 4);
    s->attended = device_take(region, rows * heads * (size_t)m->v_dim * 2);
    s->act = device_take(region, largest(dense, routed) * 2);
    s->shared_act = device_take(region, rows * shared * 2);
    s->routed = device_take(region, (cuda_may_compute_experts(cuda) ? pairs : rows) * hidden * 4);
    s->shared = device_take(region, rows * hidden * 4);
    s->score = device_take(region, rows * experts * 4);
    s->id = device_take(region, pairs * 4);
    s->weight = device_take(region, pairs * 4);
    s->at = device_take(region, pairs * 4);
    s->at_weight = device_take(region, pairs * 4);
    s->pair_row = device_take(region, pairs * 4);
    s->items = device_take(region, (pairs + experts) * sizeof *s->items);
    s->n_items = device_take(region, 4);
    s->arrived = device_take(region, cuda_counters(cuda) * 4);
    /* while bytes are only counted, nothing lies anywhere */
    s->listed = s->arrived ? s->arrived + cuda_counters(cuda) - 2 : NULL;
    s->picked = device_take(region, (size_t)cuda->options.max_logits * 4);
    s->pick_best = device_take(region, (size_t)cuda->options.max_logits * PICK_BLOCKS * sizeof *s->pick_best);
    s->fault = device_take(region, 8);
    s->step = device_take(region, cuda->step_bytes);
    s->logits =
        cuda_has_head(cuda) ? device_take(region, (size_t)cuda->options.max_logits * (size_t)m->vocab * 4) : NULL;
    cuda->packed_bytes = packed_bytes(cuda);
    s->packed = device_take(region, cuda->packed_bytes);
    s->factor = device_take(region, 2 * rows * 4);
    cuda_expanded_place(cuda, region);
    if (model_index_shape(m).topk) place_index(cuda, region);
    if (model_is_hybrid(m)) place_hybrid(cuda, region);
    if (cuda->link.rows) cuda_link_place(cuda, region);
}

/* One demand of the kernels on a model's numbers. */
struct demand {
    const char *what;
    int value, multiple_of, at_most;
};

int cuda_check_model(const struct model *m, const struct backend_options *options, struct mo_error *error) {
    const struct demand demands[] = {
        {"kv_lora_rank", model_is_hybrid(m) ? 0 : m->kv_lora, 16, MAX_KV_LORA},
        {"head_dim", model_is_hybrid(m) ? m->v_dim : 0, 16, MAX_KV_LORA},
        {"o_lora_rank", model_is_hybrid(m) ? m->hybrid.o_lora : 0, TILE_ROWS, 1 << 16},
        {"qk_rope_head_dim", m->rope_dim, 16, 64},
        {"qk_nope_head_dim", m->nope_dim, 4, 1 << 16},
        {"v_head_dim", m->v_dim, 4, 1 << 16},
        {"hidden_size", m->hidden, 4, 1 << 20},
        {"hc_mult", model_streams(m), 1, MAX_STREAMS},
        {"q_lora_rank", m->q_lora, 4, 1 << 20},
        {"intermediate_size", m->dense_layers ? m->dense_width : 0, 4, 1 << 20},
        {"moe_intermediate_size", m->expert_width, 4, 1 << 20},
        {"n_routed_experts", m->experts, 1, MAX_EXPERTS},
        {"num_experts_per_tok", m->top_k, 1, MAX_TOP_K},
        {"n_group", m->groups, 1, MAX_GROUPS},
        {"index_n_heads", model_index_shape(m).heads, 1, MAX_INDEX_HEADS},
        {"index_head_dim", model_index_shape(m).dim, 16, MAX_INDEX_DIM},
        {"engram_head_dim", m->hybrid.engram.n_layers ? m->hybrid.engram.dim : 0, 4, ENGRAM_MAX_DIM},
    };
    for (size_t i = 0; i < sizeof demands / sizeof *demands; i++) {
        const struct demand *d = &demands[i];
        if (d->value % d->multiple_of == 0 && d->value <= d->at_most) continue;
        char divisible[32] = "";
        if (d->multiple_of > 1) snprintf(divisible, sizeof divisible, " and divisible by %d", d->multiple_of);
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "the GPU kernels want a %s of at most %d%s, found %d (--device cpu takes it)", d->what,
                            d->at_most, divisible, d->value);
    }
    if (options->compute == COMPUTE_F32) {
        return mo_error_set(
            error, MO_E_UNSUPPORTED,
            "--compute f32 is computed on the CPU only: GPU kernels round activations to bf16 (--device cpu)");
    }
    if (options->kv == KV_F32) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "--kv-cache-dtype f32 is there on the CPU only: use bf16 or fp8");
    }
    if (options->attention != ATTENTION_EXPANDED || cuda_expanded_fits(m)) return 0;
    return mo_error_set(
        error, MO_E_UNSUPPORTED,
        "--attention expanded on a GPU wants heads of at most %d + %d values for keys and %d for values, found %d + %d "
        "and %d (--attention absorbed or --device cpu takes them)",
        EXPANDED_NOPE, EXPANDED_ROPE, EXPANDED_VALUE, m->nope_dim, m->rope_dim, m->v_dim);
}

static int too_little(const struct cuda *cuda, struct mo_error *error) {
    const double gib = 1 << 30;
    size_t need = cuda->weights_bytes + cuda->scratch_bytes + cuda->cache_bytes;
    return mo_error_set(
        error, MO_E_NO_MEMORY,
        "GPU %d (%s) has %.2f of %.2f GiB free, %.2f are needed: weights %.2f, cache %.2f, scratch %.2f; a "
        "smaller --max-model-len or --kv-cache-dtype fp8 makes the cache smaller, --max-num-batched-tokens "
        "the scratch, and --n-cpu-moe N leaves the routed experts of N layers in the machine's memory",
        cuda->card.index, cuda->card.name, (double)cuda->card.free_bytes / gib, (double)cuda->card.total_bytes / gib,
        (double)need / gib, (double)cuda->weights_bytes / gib, (double)cuda->cache_bytes / gib,
        (double)cuda->scratch_bytes / gib);
}

static int take(struct cuda *cuda, size_t bytes, const char *what, cuda_address *at, struct mo_error *error) {
    int result = cuda->driver.memory_take(at, bytes);
    if (result == CUDA_NO_MEMORY) return too_little(cuda, error);
    return cuda_check(&cuda->driver, result, error, "GPU %d: memory for the %s", cuda->card.index, what);
}

int cuda_take_memory(struct cuda *cuda, struct mo_error *error) {
    if (cuda->weights_bytes + cuda->scratch_bytes + cuda->cache_bytes > cuda->card.free_bytes) {
        return too_little(cuda, error);
    }
    int code = take(cuda, cuda->weights_bytes, "weights", &cuda->weights_at, error);
    if (!code) code = take(cuda, cuda->scratch_bytes, "scratch", &cuda->scratch_at, error);
    if (!code) code = take(cuda, cuda->cache_bytes, "cache", &cuda->cache_at, error);
    if (code) return code;
    struct device_region region = {.base = cuda->scratch_at};
    cuda_place_scratch(cuda, &region);
    return 0;
}
