/* backend/cuda/stages.c - the stage table as launches: six kernels a layer for up to 8 rows, eight for up to 64, and one more
 * with low-rank queries; for prompts some more. */
#include "backend/cuda/cuda.h"

enum {
    ABSORB_ROWS = 8, /* up to here the last blocks of the projections absorb, rotate and write the cache, */
    JOINED_ROWS = 8, /* and routing has no launch of its own */
};

static struct cuda *begin(struct backend *backend, const char *stage) {
    struct cuda *cuda = (struct cuda *)backend;
    cuda->stage = stage;
    return cuda;
}

void cuda_embed(struct backend *backend, int unused) {
    (void)unused;
    struct cuda *cuda = begin(backend, "embed");
    struct embed_params p = {.table = cuda->weights.embed,
                             .token = cuda->step.token,
                             .picked = cuda->scratch.picked,
                             .x = cuda->scratch.x,
                             .hidden = cuda->model->hidden,
                             .format = cuda->weights.embed_format};
    cuda_launch(cuda, KERNEL_EMBED, cuda->batch->n_rows, 0, &p);
    cuda_streams_spread(cuda);
}

/* Activations in fp32 that a norm comes before. */
static void read_normed(struct linear_job *job, const float *x, const float *gain, int width, int fault) {
    job->x_kind = X_F32;
    job->x = x;
    job->x_stride = (size_t)width;
    job->gain = gain;
    job->fault_key = fault;
}

static void read_bf16(struct linear_job *job, const uint16_t *x, size_t stride) {
    job->x_kind = X_BF16;
    job->x = x;
    job->x_stride = stride;
}

static void write_to(struct linear_job *job, void *y, size_t stride, enum y_kind kind) {
    job->y = y;
    job->y_stride = stride;
    job->y_kind = (int32_t)kind;
}

/* SiLU(gate) * up. */
static void write_gated(struct linear_job *job, const struct model *m, uint16_t *y, int width) {
    write_to(job, y, (size_t)width, Y_SILU);
    job->limit = (float)m->hybrid.swiglu_limit;
}

static size_t q_stride(const struct model *m) {
    return (size_t)m->heads * (size_t)model_q_head_dim(m);
}

static struct rope_params rope_of(const struct cuda *cuda, const struct device_layer *w, int layer) {
    const struct model *m = cuda->model;
    int n = cuda->batch->n_rows;
    return (struct rope_params){.q = cuda->scratch.q,
                                .kv_a = cuda->scratch.kv_a,
                                .kv_norm = w->kv_a_norm,
                                .rotation = cuda->step.rotation,
                                .page = cuda->step.page,
                                .pos = cuda->step.pos,
                                .q_latent = cuda->scratch.q_latent,
                                .cache = cuda_cache_of(cuda, layer).pages,
                                .row_bytes = cuda->row_bytes,
                                .fault = cuda->scratch.fault,
                                .n = n,
                                .heads = m->heads,
                                .nope = m->nope_dim,
                                .rope = m->rope_dim,
                                .kv_lora = m->kv_lora,
                                .fp8 = cuda->options.kv == KV_FP8,
                                .blocks = n,
                                .fault_key = fault_key(layer, FAULT_ATTN_IN),
                                .eps = (float)m->norm_eps};
}

/* Queries of the rows that the absorbed form takes, through the heads' key matrices. */
static struct linear_job absorb_job(const struct cuda *cuda, const struct weight *key) {
    const struct model *m = cuda->model;
    size_t first = (size_t)cuda->step.first_absorbed, width = (size_t)m->heads * (size_t)model_latent_dim(m);
    struct linear_job job = {.w = key->m, .n = cuda->step.n_absorbed, .groups = m->heads};
    job.x_kind = X_F32;
    job.x = cuda->scratch.q + first * q_stride(m);
    job.x_stride = q_stride(m);
    job.x_step = (size_t)model_q_head_dim(m);
    write_to(&job, cuda->scratch.q_latent + first * width, width, Y_BF16);
    job.y_step = (size_t)model_latent_dim(m);
    return job;
}

/* Whether what follows the projections is left to their last blocks. */
static bool absorbs_early(const struct cuda *cuda) {
    const struct model *m = cuda->model;
    int n = cuda->batch->n_rows;
    return !cuda->no_fold && n <= ABSORB_ROWS && cuda->step.n_absorbed == n && model_q_head_dim(m) % TILE_ROWS == 0 &&
           m->nope_dim <= SKINNY_COLS;
}

static void absorb_early(const struct cuda *cuda, struct linear_params *p, const struct device_layer *w, int layer) {
    const struct model *m = cuda->model;
    p->rope = rope_of(cuda, w, layer);
    p->rope.blocks = 0;
    p->absorb = (struct absorb_params){
        .key = absorb_job(cuda, &w->key),
        .arrived = cuda->scratch.arrived + m->hidden / TILE_ROWS + 2 + cuda->options.max_logits,
        .head_tiles = model_q_head_dim(m) / TILE_ROWS,
        .prefetch = cuda->prefetch,
    };
}

/* Queries and latent. */
static void project_in(struct cuda *cuda, const struct device_layer *w, int layer) {
    const struct model *m = cuda->model;
    const struct device_scratch *s = &cuda->scratch;
    int n = cuda->batch->n_rows;
    bool low_rank = m->q_kind == Q_LOW_RANK, early = absorbs_early(cuda);
    const struct weight *matrices[2] = {&w->q, &w->kv_a};
    struct linear_params p = cuda_linear_begin(cuda);
    for (int i = 0; i < 2; i++) {
        struct linear_job *job = cuda_linear_add(&p, matrices[i], n, 1);
        read_normed(job, s->x, w->attn_norm, m->hidden, fault_key(layer, FAULT_BEFORE));
    }
    write_to(&p.job[0], low_rank ? s->q_a : s->q, low_rank ? (size_t)m->q_lora : q_stride(m), Y_F32);
    write_to(&p.job[1], s->kv_a, (size_t)model_latent_dim(m), Y_F32);
    if (early) {
        absorb_early(cuda, &p, w, layer);
        p.job[0].last_work = low_rank ? LAST_NOTHING : LAST_HEADS;
        p.job[1].last_work = LAST_LATENT;
    }
    cuda_linear_run(cuda, &p, matrices, n);
    if (!low_rank) return;
    const struct weight *q_b = &w->q_b;
    p = cuda_linear_begin(cuda);
    struct linear_job *job = cuda_linear_add(&p, q_b, n, 1);
    read_normed(job, s->q_a, w->q_a_norm, m->q_lora, fault_key(layer, FAULT_ATTN_IN));
    write_to(job, s->q, q_stride(m), Y_F32);
    if (early) {
        absorb_early(cuda, &p, w, layer);
        job->last_work = LAST_HEADS;
    }
    cuda_linear_run(cuda, &p, &q_b, n);
}

/* Projections; then, in one launch or in the last blocks of these, absorbed queries and everything that a row needs for the
 * cache. */
void cuda_attn_in(struct backend *backend, int layer) {
    struct cuda *cuda = begin(backend, "attn_in");
    const struct device_layer *w = &cuda->weights.layers[layer];
    const struct weight *key = &w->key;
    cuda_engram_add(cuda, layer);
    cuda_streams_begin(cuda, &w->attn_mixer);
    if (model_is_hybrid(cuda->model)) {
        cuda_hybrid_attn_in(cuda, layer);
        return;
    }
    project_in(cuda, w, layer);
    if (cuda->model->index_topk) cuda_index_in(cuda, layer);
    if (absorbs_early(cuda)) return;
    struct linear_params p = cuda_linear_begin(cuda);
    if (cuda->step.n_absorbed) p.job[p.n_jobs++] = absorb_job(cuda, key);
    p.rope = rope_of(cuda, w, layer);
    cuda_linear_run(cuda, &p, &key, p.n_jobs ? cuda->step.n_absorbed : 1);
}

size_t cuda_attn_shared_bytes(const struct cuda *cuda) {
    size_t row = ((size_t)model_latent_dim(cuda->model) + 8) * 2;
    size_t second = cuda_cache_is_fp8(cuda) ? cuda->row_bytes : row;
    size_t scores = 2 * QUERY_TILE * (TOKEN_TILE + 4) + 3 * QUERY_TILE, weights = QUERY_TILE * (TOKEN_TILE + 8);
    return QUERY_TILE * row + TOKEN_TILE * (row + second) + scores * sizeof(float) + weights * sizeof(uint16_t);
}

static void attend_all(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    struct attn_params a = {.items = cuda->step.items,
                            .page_table = cuda->step.page_table,
                            .slot_first = cuda->step.slot_first,
                            .q_latent = cuda->scratch.q_latent,
                            .cache = cuda_cache_of(cuda, layer).pages,
                            .partial = cuda->scratch.partial,
                            .row_bytes = cuda->row_bytes,
                            .heads = m->heads,
                            .kv_lora = m->kv_lora,
                            .rope = m->rope_dim,
                            .scale = cuda->softmax_scale};
    cuda_launch(cuda, cuda->options.kv == KV_FP8 ? KERNEL_ATTN_FP8 : KERNEL_ATTN_BF16, cuda->step.n_items,
                cuda_attn_shared_bytes(cuda), &a);
}

/* Splits of the cache, or of what the indexer has chosen of it; then their merging and the values' way back up, a head a block. */
static void attend_absorbed(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    const struct weight *value = &cuda->weights.layers[layer].value;
    size_t first = (size_t)cuda->step.first_absorbed, width = (size_t)m->heads * (size_t)m->v_dim;
    if (m->index_topk) {
        cuda_index(cuda, layer);
        cuda_listed_attn(cuda, layer);
    } else {
        attend_all(cuda, layer);
    }
    struct linear_params p = cuda_linear_begin(cuda);
    struct linear_job *job = cuda_linear_add(&p, value, cuda->step.n_absorbed, m->heads);
    job->x_kind = X_MERGE;
    write_to(job, cuda->scratch.attended + first * width, width, Y_BF16);
    job->y_step = (size_t)m->v_dim;
    p.merge = (struct merge_source){.partial = cuda->scratch.partial,
                                    .slot_first = cuda->step.slot_first + first,
                                    .slot_count = cuda->step.slot_count + first,
                                    .heads = m->heads,
                                    .kv_lora = m->kv_lora};
    cuda_linear_run(cuda, &p, &value, cuda->step.n_absorbed);
}

/* Expanded rows come last: the others' launches may write to rows that lie between theirs. */
void cuda_attn(struct backend *backend, int layer) {
    struct cuda *cuda = begin(backend, "attn");
    if (model_is_hybrid(cuda->model)) {
        cuda_hybrid_attn(cuda, layer);
        return;
    }
    const struct device_layer *w = &cuda->weights.layers[layer];
    if (cuda->step.n_absorbed) attend_absorbed(cuda, layer);
    cuda_expanded_attn(cuda, w, cuda_cache_of(cuda, layer).pages);
}

void cuda_attn_out(struct backend *backend, int layer) {
    struct cuda *cuda = begin(backend, "attn_out");
    const struct model *m = cuda->model;
    const struct weight *o = &cuda->weights.layers[layer].o;
    const bool is_hybrid = model_is_hybrid(m);
    if (is_hybrid) cuda_hybrid_attn_out(cuda, layer);
    struct linear_params p = cuda_linear_begin(cuda);
    struct linear_job *job = cuda_linear_add(&p, o, cuda->batch->n_rows, 1);
    read_bf16(job, is_hybrid ? cuda->scratch.o_low : cuda->scratch.attended, (size_t)o->m.cols);
    write_to(job, cuda->scratch.x, (size_t)m->hidden, is_hybrid ? Y_F32 : Y_ADD); /* V4's streams want the sum alone */
    cuda_linear_run(cuda, &p, &o, cuda->batch->n_rows);
    cuda_streams_end(cuda);
}

void cuda_ffn_dense(struct backend *backend, int layer) {
    struct cuda *cuda = begin(backend, "ffn_dense");
    const struct model *m = cuda->model;
    const struct device_layer *w = &cuda->weights.layers[layer];
    const struct weight *gate_up = &w->gate_up, *down = &w->down;
    int n = cuda->batch->n_rows;
    cuda_streams_begin(cuda, &w->ffn_mixer);
    struct linear_params p = cuda_linear_begin(cuda);
    struct linear_job *job = cuda_linear_add(&p, gate_up, n, 1);
    read_normed(job, cuda->scratch.x, w->ffn_norm, m->hidden, fault_key(layer, FAULT_ATTENTION));
    write_gated(job, m, cuda->scratch.act, m->dense_width);
    cuda_linear_run(cuda, &p, &gate_up, n);
    cuda_streams_target(cuda);
    p = cuda_linear_begin(cuda);
    job = cuda_linear_add(&p, down, n, 1);
    read_bf16(job, cuda->scratch.act, (size_t)m->dense_width);
    write_to(job, cuda->scratch.x, (size_t)m->hidden, Y_ADD);
    cuda_linear_run(cuda, &p, &down, n);
    cuda_streams_end(cuda);
}

/* Rows of one expert that a block takes: about twice the average, so that few experts need a second block; for prompts, where
 * the average alone is more than a block of the other variants takes, as many as there are. */
static int item_rows(const struct cuda *cuda) {
    const struct model *m = cuda->model;
    int average = cuda->batch->n_rows * m->top_k / m->experts, twice = 2 * average;
    if (average > FEW_ROWS) return MANY_TOKENS;
    return cuda_linear_columns(twice < FEW_ROWS ? twice : FEW_ROWS);
}

static struct route_params route_of(const struct cuda *cuda, const struct device_layer *w, int layer) {
    const struct model *m = cuda->model;
    const struct device_scratch *s = &cuda->scratch;
    int n = cuda->batch->n_rows;
    return (struct route_params){.x = s->x,
                                 .gain = w->ffn_norm,
                                 .router = w->router,
                                 .bias = w->router_bias,
                                 .score = s->score,
                                 .table = w->router_table,
                                 .token = cuda->step.token,
                                 .picked = s->picked,
                                 .id = s->id,
                                 .weight = s->weight,
                                 .at = s->at,
                                 .at_weight = s->at_weight,
                                 .pair_row = s->pair_row,
                                 .items = s->items,
                                 .n_items = s->n_items,
                                 .arrived = s->arrived + m->hidden / TILE_ROWS + 1,
                                 .fault = s->fault,
                                 .n = n,
                                 .hidden = m->hidden,
                                 .experts = m->experts,
                                 .top_k = m->top_k,
                                 .groups = m->groups,
                                 .top_groups = m->top_groups,
                                 .gate_kind = (int)m->gate_kind,
                                 .norm_topk = m->norm_topk,
                                 .router_is_bf16 = w->router_is_bf16,
                                 .item_rows = item_rows(cuda),
                                 .blocks = (m->experts + BLOCK_WARPS - 1) / BLOCK_WARPS * ((n + 7) / 8),
                                 .choose = n <= FEW_ROWS,
                                 .fault_key = fault_key(layer, FAULT_ROUTE),
                                 .routed_scale = (float)m->routed_scale,
                                 .eps = (float)m->norm_eps};
}

static void read_shared(const struct cuda *cuda, struct linear_job *job, const struct device_layer *w, int layer) {
    const struct model *m = cuda->model;
    read_normed(job, cuda->scratch.x, w->ffn_norm, m->hidden, fault_key(layer, FAULT_ATTENTION));
    write_gated(job, m, cuda->scratch.shared_act, m->shared_experts * m->expert_width);
}

void cuda_shared_experts(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    const struct device_layer *w = &cuda->weights.layers[layer];
    const struct weight *up = &w->shared_gate_up, *down = &w->shared_down;
    int n = cuda->batch->n_rows;
    struct linear_params p = cuda_linear_begin(cuda);
    read_shared(cuda, cuda_linear_add(&p, up, n, 1), w, layer);
    cuda_linear_run(cuda, &p, &up, n);
    cuda_streams_target(cuda);
    p = cuda_linear_begin(cuda);
    struct linear_job *job = cuda_linear_add(&p, down, n, 1);
    read_bf16(job, cuda->scratch.shared_act, (size_t)m->shared_experts * (size_t)m->expert_width);
    write_to(job, cuda->scratch.x, (size_t)m->hidden, Y_ADD);
    cuda_linear_run(cuda, &p, &down, n);
}

/* Router logits and the choice hide behind the shared experts' gate and up, which are many more bytes. */
static void route(struct cuda *cuda, int layer) {
    const struct model *m = cuda->model;
    const struct device_layer *w = &cuda->weights.layers[layer];
    const struct weight *shared = &w->shared_gate_up;
    int n = cuda->batch->n_rows;
    struct linear_params p = cuda_linear_begin(cuda);
    if (m->shared_experts) read_shared(cuda, cuda_linear_add(&p, shared, n, 1), w, layer);
    p.route = route_of(cuda, w, layer);
    cuda_linear_run(cuda, &p, &shared, n);
    if (p.route.choose) return;
    cuda_launch(cuda, KERNEL_ROUTE_CHOOSE, (n + BLOCK_WARPS - 1) / BLOCK_WARPS, ROUTE_SHARED, &p.route);
    cuda_launch(cuda, KERNEL_ROUTE_LIST, m->experts, ROUTE_SHARED, &p.route);
}

/* For few rows the routed experts' gate and up go into the same launch: their blocks wait until the choice has been made, while
 * the shared experts' are read. */
static bool joins_routing(const struct cuda *cuda, int layer) {
    const struct device_layer *w = &cuda->weights.layers[layer];
    const bool one_kind = !cuda->model->shared_experts || w->shared_gate_up.format == w->expert_gate_up.format;
    return !cuda->no_join && one_kind && cuda->batch->n_rows <= JOINED_ROWS && item_rows(cuda) <= JOINED_ROWS &&
           !cuda_is_on_cpu(cuda, layer);
}

void cuda_route(struct backend *backend, int layer) {
    struct cuda *cuda = begin(backend, "route");
    cuda_streams_begin(cuda, &cuda->weights.layers[layer].ffn_mixer);
    cuda->routing = joins_routing(cuda, layer) ? ROUTING_DUE : ROUTED_APART;
    cuda->routed_layer = layer;
    cuda->offload.has_routed = cuda_is_cpus_turn(cuda, layer);
    if (cuda->offload.has_routed) {
        cuda_offload_route(cuda, layer);
    } else if (cuda->routing == ROUTED_APART) {
        route(cuda, layer);
    }
}

void cuda_route_now(struct cuda *cuda) {
    if (cuda->routing != ROUTING_DUE) return;
    route(cuda, cuda->routed_layer);
    cuda->routing = ROUTED_APART;
}

/* The most items that the rows can make. */
static int most_items(const struct cuda *cuda) {
    int pairs = cuda->batch->n_rows * cuda->model->top_k, bound = cuda->model->experts + pairs / item_rows(cuda);
    return pairs < bound ? pairs : bound;
}

static void list_items(const struct expert_turn *turn, struct linear_job *job) {
    job->items = turn->items;
    job->n_items = turn->n_items;
}

static struct linear_job *add_routed_up(struct cuda *cuda, const struct expert_turn *turn, struct linear_params *p,
                                        int layer) {
    const struct model *m = cuda->model;
    struct linear_job *job = cuda_linear_add(p, turn->gate_up, cuda->batch->n_rows, most_items(cuda));
    list_items(turn, job);
    read_normed(job, cuda->scratch.x, cuda->weights.layers[layer].ffn_norm, m->hidden,
                fault_key(layer, FAULT_ATTENTION));
    job->x_row = cuda->scratch.pair_row;
    write_gated(job, m, cuda->scratch.act, m->expert_width);
    return job;
}

static void experts_up(struct cuda *cuda, const struct expert_turn *turn, int layer) {
    struct linear_params p = cuda_linear_begin(cuda);
    add_routed_up(cuda, turn, &p, layer);
    cuda_linear_run(cuda, &p, &turn->gate_up, item_rows(cuda));
}

/* Routing first, then the shared experts' blocks, then those that wait. */
static void route_and_experts_up(struct cuda *cuda, const struct expert_turn *turn, int layer) {
    const struct device_layer *w = &cuda->weights.layers[layer];
    const struct weight *up[2];
    struct linear_params p = cuda_linear_begin(cuda);
    if (cuda->model->shared_experts) {
        up[p.n_jobs] = &w->shared_gate_up;
        read_shared(cuda, cuda_linear_add(&p, &w->shared_gate_up, cuda->batch->n_rows, 1), w, layer);
    }
    up[p.n_jobs] = turn->gate_up;
    add_routed_up(cuda, turn, &p, layer)->waits = 1;
    p.route = route_of(cuda, w, layer);
    p.route.listed = cuda->scratch.listed + layer;
    cuda_linear_run(cuda, &p, up, cuda->batch->n_rows);
}

static void add_routed_down(struct cuda *cuda, const struct expert_turn *turn, struct linear_params *p) {
    const struct model *m = cuda->model;
    struct linear_job *job = cuda_linear_add(p, turn->down, cuda->batch->n_rows * m->top_k, most_items(cuda));
    list_items(turn, job);
    read_bf16(job, cuda->scratch.act, (size_t)m->expert_width);
    write_to(job, cuda->scratch.routed, (size_t)m->hidden, Y_F32);
}

static void add_shared_down(struct cuda *cuda, const struct weight *down, struct linear_params *p) {
    const struct model *m = cuda->model;
    struct linear_job *job = cuda_linear_add(p, down, cuda->batch->n_rows, 1);
    read_bf16(job, cuda->scratch.shared_act, (size_t)m->shared_experts * (size_t)m->expert_width);
    write_to(job, cuda->scratch.shared, (size_t)m->hidden, Y_F32);
}

/* `arrived`: the last block of a row tile adds up; NULL: a launch of its own does. `listed`: what the launch before has waited for. */
static struct expert_sum sum_of(const struct cuda *cuda, uint32_t *arrived, uint32_t *listed) {
    const struct model *m = cuda->model;
    const struct device_scratch *s = &cuda->scratch;
    int n = cuda->batch->n_rows, columns = item_rows(cuda);
    return (struct expert_sum){.x = s->x,
                               .routed = s->routed,
                               .shared = m->shared_experts ? s->shared : NULL,
                               .at = s->at,
                               .weight = s->at_weight,
                               .n_items = s->n_items,
                               .arrived = arrived,
                               .listed = listed,
                               .n = n,
                               .hidden = m->hidden,
                               .top_k = m->top_k,
                               .shared_tiles = m->shared_experts ? (n + columns - 1) / columns : 0};
}

static void experts_sum(struct cuda *cuda) {
    struct sum_params sum = {sum_of(cuda, NULL, NULL)};
    cuda_launch(cuda, KERNEL_EXPERTS_SUM, cuda->batch->n_rows, 0, &sum);
}

static void experts_down(struct cuda *cuda, const struct expert_turn *turn, const struct weight *shared,
                         uint32_t *listed) {
    const struct weight *down[2] = {turn->down, shared};
    const bool few = cuda->batch->n_rows <= FEW_ROWS;
    struct linear_params p = cuda_linear_begin(cuda);
    add_routed_down(cuda, turn, &p);
    if (cuda->model->shared_experts) add_shared_down(cuda, shared, &p);
    p.sum = sum_of(cuda, few ? cuda->scratch.arrived : NULL, listed);
    cuda_linear_run(cuda, &p, down, item_rows(cuda));
    if (!few) experts_sum(cuda);
}

void cuda_experts_turn(struct cuda *cuda, int layer, const struct expert_turn *turn) {
    struct linear_params p;
    experts_up(cuda, turn, layer);
    p = cuda_linear_begin(cuda);
    add_routed_down(cuda, turn, &p);
    cuda_linear_run(cuda, &p, &turn->down, item_rows(cuda));
}

void cuda_experts_end(struct cuda *cuda, int layer) {
    const struct weight *shared = &cuda->weights.layers[layer].shared_down;
    struct linear_params p = cuda_linear_begin(cuda);
    cuda_streams_target(cuda);
    if (cuda->model->shared_experts) {
        add_shared_down(cuda, shared, &p);
        cuda_linear_run(cuda, &p, &shared, item_rows(cuda));
    }
    experts_sum(cuda);
    cuda_streams_end(cuda);
}

void cuda_experts(struct backend *backend, int layer) {
    struct cuda *cuda = begin(backend, "experts");
    const struct device_layer *w = &cuda->weights.layers[layer];
    if (cuda_is_on_cpu(cuda, layer)) {
        (cuda->link.is_used ? cuda_link_experts : cuda_offload_experts)(cuda, layer);
        return;
    }
    const struct expert_turn all = {&w->expert_gate_up, &w->expert_down, cuda->scratch.items, cuda->scratch.n_items};
    uint32_t *listed = NULL;
    if (cuda->routing != ROUTED_APART && joins_routing(cuda, layer)) {
        cuda->routing = ROUTED_WITH_EXPERTS;
        listed = cuda->scratch.listed + layer;
        route_and_experts_up(cuda, &all, layer);
    } else {
        experts_up(cuda, &all, layer);
    }
    cuda_streams_target(cuda);
    experts_down(cuda, &all, &w->shared_down, listed);
    cuda_streams_end(cuda);
}

void cuda_head(struct backend *backend, int unused) {
    (void)unused;
    struct cuda *cuda = begin(backend, "head");
    const struct model *m = cuda->model;
    const struct weight *head = &cuda->weights.head;
    int n = cuda->batch->n_logits;
    cuda_streams_read(cuda, &cuda->weights.head_mixer, cuda->step.logits_row, n);
    struct linear_params p = cuda_linear_begin(cuda);
    struct linear_job *job = cuda_linear_add(&p, head, n, 1);
    read_normed(job, cuda->scratch.x, cuda->weights.final_norm, m->hidden, fault_key(m->layers, FAULT_BEFORE));
    job->x_row = cuda->step.logits_row;
    job->fault_logits = fault_key(m->layers, FAULT_ATTN_IN); /* the head itself */
    write_to(job, cuda->scratch.logits, (size_t)m->vocab, Y_F32);
    cuda_linear_run(cuda, &p, &head, n);
}

void cuda_pick(struct backend *backend, int unused) {
    (void)unused;
    struct cuda *cuda = begin(backend, "pick");
    struct pick_params p = {.logits = cuda->scratch.logits,
                            .row = cuda->step.pick,
                            .best = cuda->scratch.pick_best,
                            .picked = cuda->scratch.picked,
                            .arrived = cuda->scratch.arrived + cuda->model->hidden / TILE_ROWS + 2,
                            .vocab = cuda->model->vocab};
    cuda_launch(cuda, KERNEL_PICK, cuda->batch->n_logits * PICK_BLOCKS, PICK_SHARED, &p);
}
