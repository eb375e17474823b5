/* backend/cuda/cuda.h - one card behind the stage table. cuda.c opens, closes and ends a step; step.c begins it, graph.c
 * records it; memory.c says how much the card must hold and where things are; upload.c brings the weights in; stages.c,
 * expanded.c, attn_hybrid.c, listed.c, streams.c, engram.c and launch.c start kernels. Kernels run in one stream, so each sees what the
 * one before it wrote; the host waits once a step, in end(). A second step may begin before the first ends: what the host writes for a
 * step, and what comes back, is there twice (struct flight), everything on the card once.
 *
 * Of several cards each is such a one, with some of the layers; split.c calls their stages in turn.
 *
 * Engine thread. A failed call is kept and reported by end(), and every step after it fails the same way: a card that lost its
 * memory does not come back. Includes: backend.h, engram_lookup.h, driver.h, params.h, params_listed.h, probe.h. */
#ifndef MOEBIUS_BACKEND_CUDA_CUDA_H
#define MOEBIUS_BACKEND_CUDA_CUDA_H

#include "backend/backend.h"
#include "backend/cuda/driver.h"
#include "backend/cuda/params.h"
#include "backend/cuda/params_listed.h"
#include "backend/cuda/probe.h"
#include "backend/engram_lookup.h"
#include "base/arena.h"
#include "base/pool.h"

/* X(enum, image, entry point) */
#define CUDA_LINEAR_KERNELS(X, F, f)                                                                                   \
    X(F##_SKINNY, linear_##f, linear_##f##_skinny)                                                                     \
    X(F##_WIDE2, linear_##f, linear_##f##_wide2)                                                                       \
    X(F##_WIDE4, linear_##f, linear_##f##_wide4)                                                                       \
    X(F##_WIDE8, linear_##f, linear_##f##_wide8)                                                                       \
    X(F##_MANY, linear_##f, linear_##f##_many)
#define CUDA_KERNELS(X)                                                                                                \
    CUDA_LINEAR_KERNELS(X, BF16, bf16)                                                                                 \
    CUDA_LINEAR_KERNELS(X, FP8, fp8)                                                                                   \
    CUDA_LINEAR_KERNELS(X, INT4, int4)                                                                                 \
    CUDA_LINEAR_KERNELS(X, AWQ, awq)                                                                                   \
    CUDA_LINEAR_KERNELS(X, INT8, int8)                                                                                 \
    CUDA_LINEAR_KERNELS(X, BITS4, bits4)                                                                               \
    CUDA_LINEAR_KERNELS(X, BITS5, bits5)                                                                               \
    CUDA_LINEAR_KERNELS(X, BITS6, bits6)                                                                               \
    CUDA_LINEAR_KERNELS(X, BITS3, bits3)                                                                               \
    X(BF16_WIDE1, linear_bf16, linear_bf16_wide1)                                                                      \
    X(ATTN_BF16, attn, attn_bf16)                                                                                      \
    X(ATTN_FP8, attn, attn_fp8)                                                                                        \
    X(ATTN_EXPAND_BF16, expanded, attn_expand_bf16)                                                                    \
    X(ATTN_EXPAND_FP8, expanded, attn_expand_fp8)                                                                      \
    X(ATTN_EXPANDED, expanded, attn_expanded)                                                                          \
    X(ATTN_EXPANDED_ANY, expanded, attn_expanded_any)                                                                  \
    X(INDEX_ROWS, index, index_rows)                                                                                   \
    X(INDEX_SCORE, index, index_score)                                                                                 \
    X(INDEX_CHOOSE, index, index_choose)                                                                               \
    X(INDEX_NARROW, index, index_narrow)                                                                               \
    X(LISTED_BF16, listed, listed_bf16)                                                                                \
    X(LISTED_FP8, listed, listed_fp8)                                                                                  \
    X(LISTED_CSA2, listed, listed_csa2)                                                                                \
    X(COMPRESS_SUMS, compress, compress_sums)                                                                          \
    X(HYBRID_ROWS, hybrid, hybrid_rows)                                                                                \
    X(HYBRID_MERGE, hybrid, hybrid_merge)                                                                              \
    X(FP8_NATIVE, linear_fp8, linear_fp8_native)                                                                       \
    X(EMBED, simple, embed)                                                                                            \
    X(PACK_ROWS, simple, pack_rows)                                                                                    \
    X(PACK_ROWS_NATIVE, simple, pack_rows_native)                                                                      \
    X(ROUTE_CHOOSE, simple, route_choose)                                                                              \
    X(ROUTE_LIST, simple, route_list)                                                                                  \
    X(TURN_LIST, simple, turn_list)                                                                                    \
    X(ADD_ROWS, simple, add_rows)                                                                                      \
    X(EXPERTS_SUM, simple, experts_sum)                                                                                \
    X(PICK, pick, pick)                                                                                                \
    X(STREAMS_SPREAD, streams, streams_spread)                                                                         \
    X(STREAMS_MULTIPLY, streams, streams_multiply)                                                                     \
    X(STREAMS_COLLAPSE, streams, streams_collapse)                                                                     \
    X(STREAMS_READ, streams, streams_read)                                                                             \
    X(STREAMS_CLEAR, streams, streams_clear)                                                                           \
    X(STREAMS_MIX, streams, streams_mix)                                                                               \
    X(ENGRAM_ADD, engram, engram_add)                                                                                  \
    X(REPACK_TILES, repack, repack_tiles)                                                                              \
    X(REPACK_SCALES, repack, repack_scales)                                                                            \
    X(REPACK_ROWS, repack, repack_rows)                                                                                \
    X(GENERATE_TILES, generate, generate_tiles)                                                                        \
    X(GENERATE_SCALES, generate, generate_scales)                                                                      \
    X(GENERATE_ROWS, generate, generate_rows)

#define CUDA_KERNEL_ENUM(name, image, entry) KERNEL_##name,
enum cuda_kernel { CUDA_KERNELS(CUDA_KERNEL_ENUM) CUDA_KERNEL_COUNT };
#undef CUDA_KERNEL_ENUM
enum { LINEAR_VARIANTS = 5, MAX_IMAGES = 24 };

/* A matrix on the card and what multiplies with it. */
struct weight {
    struct device_matrix m;
    enum weight_format format;
};

/* V4's hyper-connection: struct mixer of model/weights.h. */
struct device_mixer {
    const float *mix, *base, *scale;
};

struct device_layer {
    const float *attn_norm, *ffn_norm, *q_a_norm, *kv_a_norm;
    struct weight q; /* Q_LOW_RANK: q_a */
    struct weight q_b, kv_a, o;
    struct weight key, value; /* kv_b turned for absorption, [heads] matrices: [kv_lora][nope] and [v][kv_lora], bf16 */
    struct weight gate_up, down;               /* dense */
    struct weight shared_gate_up, shared_down; /* rows 0: none */
    struct weight expert_gate_up, expert_down; /* [experts] matrices */
    const void *router;
    bool router_is_bf16;
    const float *router_bias;

    struct weight index_q, index_weights; /* where there is an indexer */
    struct weight index_k;                /* V3.2; V4.1, where rows are made */
    const float *index_k_norm, *index_k_bias;

    struct weight o_a;                      /* V4, from here on: [o_groups] matrices */
    const float *sinks;                     /* [heads] */
    struct weight compress, index_compress; /* two matrices, values and gates (of one token: values); rows 0: none */
    const float *compress_bias, *index_compress_bias; /* [ratio][rows of a matrix]; V4.1: NULL */
    const float *compress_norm, *index_compress_norm; /* of a row, of an index key */
    struct device_mixer attn_mixer, ffn_mixer;
    const int32_t *router_table; /* [vocab][top_k], or NULL */

    struct weight engram_kv;                        /* V4.1, where the layer has n-gram memory */
    const float *engram_q_weight, *engram_k_weight; /* [streams][hidden] */
};

struct device_weights {
    const void *embed;
    int embed_format; /* enum raw_format */
    struct weight head;
    const float *final_norm;
    struct device_mixer head_mixer; /* V4 (V4.1 has none), on every card: taps read by it */
    struct device_layer *layers;
};

/* Everything on the card that a step writes. */
struct device_scratch {
    float *x, *q, *q_a, *kv_a, *partial, *routed, *shared, *score, *weight, *at_weight, *logits;
    uint16_t *q_latent, *attended, *act, *shared_act;
    uint8_t *packed; /* activations for the variants for prompts */
    float *factor;   /* [2][max_rows] of their norms */
    int32_t *id, *at, *pair_row, *n_items, *picked;
    struct expert_item *items;
    struct pick_best *pick_best;
    uint32_t *
        arrived; /* [row tiles of hidden], the router's, [max_logits] for picks, [heads + 1] for projections, `listed` */
    uint32_t *listed; /* [layers] see route_params */
    unsigned long long *fault;
    uint8_t *step; /* what begin() sends: tokens, positions, work lists */

    /* Where there is an indexer. */
    float *index_q;      /* [max_rows][heads * dim] */
    float *index_k;      /* V3.2, V4.1 [max_rows][dim] */
    float *index_weight; /* [max_rows][heads] */
    float *index_score;  /* [INDEX_WAVE][index_stride] of every key */
    int32_t *chosen;     /* [max_rows][topk], in V4.1 for the layers behind, too */
    int32_t *candidate;  /* V4.1 [max_rows][candidate_blocks]; NULL: there are never more blocks */
    /* V4. x is what a block reads, and then what it adds to the streams. */
    float *streams;                   /* [max_rows][streams][hidden] */
    float *mix;                       /* [max_rows][model_mix_dim] */
    float *mix_piece;                 /* [max_rows][cuda_streams_piece_floats] */
    float *before;                    /* V4.1 [max_rows][streams] what the next block reads the streams by; V4: NULL */
    float *compress, *index_compress; /* values [max_rows][model_compress_dim], then gates */
    uint16_t *o_low;                  /* [max_rows][o_groups * o_lora] */
    float *engram_kv;                 /* V4.1 [max_rows][streams + 1][hidden] keys and the value */
};

/* A layer's part of the cache: where it begins, in bytes from the cache's own beginning; and as kernels want it, addresses on the
 * card. `keys` are the first page's index keys (V4: inside its pages). */
struct cache_place {
    size_t page_bytes, key_page_bytes, near_bytes, pages_at, keys_at, near_at;
};
struct cache_view {
    uint8_t *pages, *keys, *near;
    size_t page_bytes, key_page_bytes, near_bytes;
};

/* What begin() sends, in one copy. On the host and on the card the same offsets. */
struct step_data {
    const int32_t *token, *pos, *page, *logits_row, *page_table, *slot_first, *slot_count;
    const struct pick_row *pick;
    const float *rotation;
    const struct attn_item *items;
    int n_items;
    int first_absorbed, n_absorbed; /* rows from the first to the last that is attended to in absorbed form */
    const struct expand_item *expand_items;
    const struct expanded_item *expanded_items;

    /* Where rows attend to listed rows (V3.2, V4). */
    const int32_t *first_page; /* [n] where the page numbers of a row's sequence begin in page_table */
    const struct seq_rows *seqs;
    int listed_splits; /* blocks over which a row's list is cut, at most */
    int index_chunks;  /* of INDEX_CHUNK keys, of the row with most; 0: the indexer has nothing to choose */
    /* V4. Rotations [n][rope / 2][2]. */
    const int32_t *near; /* [n][near_pages] places of the near parts of page pos / 64, of the one before it, ... */
    const float *far_rotation;    /* in layers with a ratio */
    const float *window_rotation; /* [2][n]... of where the window that ends with a row began: by cuda_window_ratios */
    const uint16_t *engram;       /* V4.1 [tables][n][columns * dim] bf16: what the rows look up */
};

/* What one filling of the window is for: ranges of the step's lists. */
struct expanded_pass {
    int first_tile, n_tiles; /* expand_items */
    int first_item, n_items; /* expanded_items */
};

/* Attention in expanded form. */
struct expanded {
    int rows_from;        /* rows of a sequence from which it is taken; more than max_rows: never */
    struct window window; /* tokens 0: never */
    int carry_slots;      /* of `partial` that an unfinished row needs */
    int max_tiles, max_items, max_passes, n_passes;
    struct expanded_pass *passes; /* [max_passes] of this step */
};

/* A piece of the card's memory, handed out from its start; without memory it only counts. */
struct device_region {
    cuda_address base;
    size_t used;
};

typedef void cuda_stage_call(struct backend *backend, int layer);
struct stage_call {
    cuda_stage_call *call;
    int layer;
};

/* Steps of one shape; `ready` once they are recorded. */
struct step_graph {
    int rows, logits, items, splits, chunks, seen;
    bool picks;
    struct cuda_ready_graph *ready;
};

/* Up to here the router's last block chooses, and the last block of a row tile adds up; products with more rows take the variant
 * for prompts. A guess: it has not been measured on any card. */
enum { FEW_ROWS = 64 };

enum { GRAPHS_MAX = 256 };
enum step_mode { STEP_EAGER, STEP_RECORD, STEP_REPLAY };
struct step_recorder {
    bool off;  /* MOEBIUS_CUDA_GRAPHS=0: every step is eager */
    bool full; /* no memory on the card for one more recording */
    enum step_mode mode;
    struct stage_call *calls; /* of this step */
    int n_calls;
    struct step_graph *graph, graphs[GRAPHS_MAX];
    int n_graphs;
};

/* A step between begin() and end(), as the host has it. */
struct flight {
    const struct batch *batch;
    uint8_t *staging;          /* pinned [step_bytes] what begin() sends */
    int32_t *picked;           /* pinned [max_logits] */
    unsigned long long *fault; /* pinned */
    struct cuda_event *done;
};

/* What profile.c looks at: launches of a stage, counted, and which of them happens. */
struct launch_watch {
    bool on;
    int wanted; /* -1: all */
    int n;
    const char *kernel; /* the last one that happened */
    int blocks;
    double bytes; /* of weights, of all that happened */
};

/* What routed experts on the CPU need. */
struct offload {
    struct backend *cpu; /* NULL: all experts are on the card */
    bool is_shared;      /* it is that of several cards, whose split begins, ends and closes it */
    bool has_routed;     /* the last route() was the CPU's */
    struct model model;  /* without shared experts */
    struct batch batch;  /* without logits */
    float *x, *sum;      /* pinned [max_rows][hidden] */
    struct cuda_event *copied;
};

/* V4.1's n-gram memory: its tables stay with the host, which looks up what a step's rows want of them. */
struct cuda_engram {
    struct engram_lookup lookup;
    struct pool *pool; /* NULL: the model has none */
    uint16_t *to;      /* of the step that begins: step.engram, on the host */
};

/* Routed experts that come over the link, some of a layer's at a time (link.c). */
struct upload;
struct expert_link {
    int rows;     /* steps of so many rows or more take it; 0: none does */
    bool is_used; /* in the step that began last */
    size_t turn_bytes, buffer_bytes;
    uint8_t *turn;             /* on the card: experts as kernels want them */
    uint8_t *buffers;          /* on the card, some of buffer_bytes: matrices as they come */
    struct expert_item *items; /* of the experts whose turn it is */
    int32_t *n_items;
    uint32_t *fault; /* nobody asks: a weight that is no number is found by what comes of it */
    struct mlp *
        experts; /* [layers that are here and the CPU's][experts] as they lie in the file, whatever the CPU makes of them */
    struct upload *upload;
    uint8_t *pinned;
    struct mo_error failure; /* of the step that began last: an expert that the disk did not give */
};

/* What multiplies in a layer's routed experts, and which items of the list. */
struct expert_turn {
    const struct weight *gate_up, *down;
    const struct expert_item *items;
    const int32_t *n_items;
};

/* Where a layer's routing is done: by launches of its own, or by the one that begins its experts, which may be yet to come. */
enum routing { ROUTED_APART, ROUTING_DUE, ROUTED_WITH_EXPERTS };

struct cuda {
    struct backend backend; /* first: a struct backend * is a struct cuda * */
    const struct model *model;
    struct cuda_part part; /* of the model: all of it, but for one of several cards */
    struct backend_options options;
    struct arena *arena;
    struct cuda_driver driver;
    struct cuda_card card;
    bool card_open;
    struct cuda_stream *stream;
    struct cuda_module *modules[MAX_IMAGES];
    struct cuda_function *kernels[CUDA_KERNEL_COUNT];

    cuda_address weights_at, scratch_at, cache_at;
    struct device_weights weights;
    struct device_scratch scratch;
    size_t weights_bytes, scratch_bytes, cache_bytes;
    size_t row_bytes, far_bytes;      /* of a token's row in the cache; V4: of a compressed one */
    struct cache_place *cache_places; /* [part.n_layers] */
    int near_pages;                   /* V4: that a row may look at */
    int index_stride;                 /* keys that a row may see, rounded up to INDEX_CHUNK */
    bool is_narrowed;                 /* V4.1: a row may see more blocks of keys than there are candidates */
    size_t step_bytes;                /* room for step_data */
    size_t packed_bytes;
    bool fp8_native; /* FP8 weights times e4m3 activations in prompts: MOEBIUS_CUDA_FP8_NATIVE=1 */
    int max_slots;   /* of attention's partial results */
    struct expanded expanded;

    double *frequency, *far_frequency; /* [rope / 2]; far: V4's in layers with a ratio */
    float magnitude, softmax_scale;

    const struct batch *batch; /* of the step that began last */
    struct step_data step;     /* its addresses on the card */
    struct flight flights[2];  /* step n is flights[n % 2] */
    unsigned n_begun, n_submitted, n_ended;
    uint8_t *pinned;                 /* what the flights point to */
    uint8_t *page;                   /* pinned, one page on its way; NULL: no pages are copied */
    struct cuda_stream *page_stream; /* beside the step at work */
    float *logits;                   /* pinned [max_logits][vocab], with the head */
    float *residual;                 /* [max_rows][streams][hidden], for the tap */
    int32_t *id;                     /* [max_rows][top_k], for the tap */
    float *weight;

    bool no_fold, prefetch; /* MOEBIUS_CUDA_FOLD=0, MOEBIUS_CUDA_PREFETCH=1: see struct absorb_params */
    bool no_join;           /* MOEBIUS_CUDA_JOIN=0: routing has a launch of its own in decode steps, too */
    enum routing routing;   /* of the layer that cuda_route was called for last, */
    int routed_layer;       /* this one */
    bool early;             /* a step's kernels begin before the one before has ended: MOEBIUS_CUDA_EARLY=1 */
    bool waits;             /* after every kernel, so that one that faults is named: MOEBIUS_CUDA_WAIT=1 */
    struct step_recorder recorder;
    struct launch_watch watch;
    struct cuda_load load;
    struct offload offload;
    struct cuda_engram engram;
    struct expert_link link;
    const char *stage; /* whose launches are under way */
    int fault_row;
    struct mo_error failure; /* of a call; code 0: none */
};

/* Keys of faults: 1 + FAULT_STAGES * layer + which, so the smallest is the first. N-grams come before what they are added to is seen to be
 * no number. */
enum fault_stage { FAULT_ENGRAM, FAULT_BEFORE, FAULT_ATTN_IN, FAULT_ATTENTION, FAULT_ROUTE, FAULT_STAGES };
static inline int fault_key(int layer, enum fault_stage stage) {
    return 1 + FAULT_STAGES * layer + (int)stage;
}

/* memory.c: sizes and places. With region->base 0 they only count. */
void *device_take(struct device_region *region, size_t bytes);
void cuda_place_scratch(struct cuda *cuda, struct device_region *region);
/* What the model must be like for these kernels; else MO_E_UNSUPPORTED. */
int cuda_check_model(const struct model *model, const struct backend_options *options, struct mo_error *error);
/* Of last blocks; they start at zero, and are zero between launches. The last of them is nobody's: always zero. */
size_t cuda_counters(const struct cuda *cuda);
int cuda_take_memory(struct cuda *cuda, struct mo_error *error);

/* upload.c: counts the bytes that the weights take on the card, or (cuda->weights_at set) brings them there. */
int cuda_upload(struct cuda *cuda, const struct weights *weights, struct mo_error *error);
/* upload_format.c: of 16 rows x 64 k of a matrix, without scales. */
size_t cuda_tile_bytes(enum weight_format format, enum scale_coding coding);

/* launch.c */
int cuda_load_kernels(struct cuda *cuda, struct mo_error *error);
/* `params` is the kernel's one argument. Failures are kept for end(). */
void cuda_launch(struct cuda *cuda, enum cuda_kernel kernel, int blocks, size_t shared_bytes, const void *params);
/* Keeps the first failure of a step. */
void cuda_keep(struct cuda *cuda, int result, const char *what);

/* A linear product in the making. `rows`: the most rows of x that a matrix meets. */
struct linear_params cuda_linear_begin(const struct cuda *cuda);
struct linear_job *cuda_linear_add(struct linear_params *p, const struct weight *w, int n, int groups);
/* y = norm(x) W^T, rows of x and y side by side. */
void cuda_linear_add_normed(struct linear_params *p, const struct weight *w, const float *x, const float *gain,
                            float *y, int n, int fault);
/* Launches the jobs (those of another format by themselves), with p's routing and rotation blocks. */
void cuda_linear_run(struct cuda *cuda, struct linear_params *p, const struct weight *const *w, int rows);
/* Columns of the variant that takes so many rows: 8, 16, 32, 64, or 128 for prompts. */
int cuda_linear_columns(int rows);

/* graph.c: recorded steps. */
int cuda_graph_open(struct cuda *cuda, struct mo_error *error);
void cuda_graph_close(struct cuda *cuda);
void cuda_graph_begin(struct cuda *cuda); /* after the step's data is on its way */
void cuda_graph_flush(struct cuda *cuda); /* makes the step an eager one */
void cuda_graph_end(struct cuda *cuda);
/* cache.c: sizes, and where things are. */
int cuda_cache_plan(struct cuda *cuda, struct mo_error *error);
struct cache_view cuda_cache_of(const struct cuda *cuda, int layer);
int cuda_near_of(const struct cuda *cuda, int32_t page); /* the place of a page's near part */
size_t cuda_page_bytes(const struct cuda *cuda);         /* of a page, all layers that are here */
/* pages.c: pages between the card and the host. */
int cuda_pages_open(struct cuda *cuda, struct mo_error *error);
void cuda_pages_close(struct cuda *cuda);
int cuda_page_out(struct backend *backend, int32_t page, void *to, struct mo_error *error);
int cuda_page_in(struct backend *backend, int32_t page, const void *from, struct mo_error *error);
/* What every entry of the stage table does: runs `call`, or leaves it to the recording. */
void cuda_stage(struct cuda *cuda, cuda_stage_call *call, int layer);

/* profile.c: a launch while a step is watched; false: it is left out. */
bool cuda_watch_launch(struct cuda *cuda, const char *image, const char *entry, int blocks, const void *params);

/* stages.c */
void cuda_embed(struct backend *backend, int unused);
void cuda_attn_in(struct backend *backend, int layer);
void cuda_attn(struct backend *backend, int layer);
void cuda_attn_out(struct backend *backend, int layer);
void cuda_ffn_dense(struct backend *backend, int layer);
void cuda_route(struct backend *backend, int layer);
void cuda_route_now(struct cuda *cuda); /* for who wants to see the choice before the experts are launched */
void cuda_experts(struct backend *backend, int layer);
void cuda_head(struct backend *backend, int unused);
void cuda_pick(struct backend *backend, int unused);
size_t cuda_attn_shared_bytes(const struct cuda *cuda); /* of a block of absorbed attention */
/* All of a layer's shared experts, added to x. */
void cuda_shared_experts(struct cuda *cuda, int layer);
/* Routed experts by turns: their results for each pair of row and expert; when all had theirs, the sums, with the shared experts',
 * to x. */
void cuda_experts_turn(struct cuda *cuda, int layer, const struct expert_turn *turn);
void cuda_experts_end(struct cuda *cuda, int layer);

/* engram.c: V4.1's n-gram memory. Nothing in all other models. */
int cuda_engram_open(struct cuda *cuda, const struct weights *weights, struct mo_error *error);
void cuda_engram_close(struct cuda *cuda);
size_t cuda_engram_row_values(const struct cuda *cuda); /* that a row looks up in a table */
/* Looks up what the batch's rows want, [tables][n][row_values] bf16. */
void cuda_engram_begin(struct cuda *cuda, uint16_t *to);
/* Before a layer: adds to the streams. */
void cuda_engram_add(struct cuda *cuda, int layer);

/* attn_hybrid.c: V4's attention; attn_out up to o_low. */
void cuda_hybrid_attn_in(struct cuda *cuda, int layer);
void cuda_hybrid_attn(struct cuda *cuda, int layer);
void cuda_hybrid_attn_out(struct cuda *cuda, int layer);

/* streams.c: V4's residual streams around a block. In all other models nothing: x is the residual stream. */
size_t cuda_streams_piece_floats(const struct model *model); /* of a row's products */
void cuda_streams_spread(struct cuda *cuda);                 /* x into every stream of the batch's rows */
/* A block begins: x = what it reads, not normed. */
void cuda_streams_begin(struct cuda *cuda, const struct device_mixer *mixer);
/* The block has read x: x = 0, to which it adds. */
void cuda_streams_target(struct cuda *cuda);
/* The block has added all to x: the streams are mixed with it. */
void cuda_streams_end(struct cuda *cuda);
/* What a block with this mixer would read of n rows, into these rows of x; `rows` on the card, or NULL: the first n. */
void cuda_streams_read(struct cuda *cuda, const struct device_mixer *mixer, const int32_t *rows, int n);

/* expanded.c */
bool cuda_expanded_fits(const struct model *model);
int cuda_expanded_plan(struct cuda *cuda, struct mo_error *error);
void cuda_expanded_place(struct cuda *cuda, struct device_region *region);
bool cuda_is_expanded(const struct cuda *cuda, const struct batch_seq *seq);
/* Fills the step's lists. */
void cuda_expanded_begin(struct cuda *cuda, struct expand_item *tiles, struct expanded_item *items);
void cuda_expanded_attn(struct cuda *cuda, const struct device_layer *w, uint8_t *cache);

/* The residual, V4's in streams. */
static inline float *cuda_residual_at(const struct cuda *cuda) {
    return model_is_hybrid(cuda->model) ? cuda->scratch.streams : cuda->scratch.x;
}

/* Which layers are here, and what comes with the first and the last. */
static inline int cuda_end_layer(const struct cuda *cuda) {
    return cuda->part.first_layer + cuda->part.n_layers;
}
/* Ratios of the compressed rows that the family has, of each of which a step has rotations. */
static inline const int *cuda_window_ratios(const struct model *model) {
    static const int csa[2] = {RATIO_SPARSE, RATIO_DENSE}, csa2[2] = {1, 2};
    return model_is_csa2(model) ? csa2 : csa;
}
/* The layer whose compressed rows and index keys a layer sees; V4, and all without a ratio: itself. */
static inline int cuda_rows_layer(const struct cuda *cuda, int layer) {
    const struct hybrid_model *h = &cuda->model->hybrid;
    return model_is_hybrid(cuda->model) && h->ratio[layer] ? h->rows_from[layer] : layer;
}
/* Whether the cache is in fp8, as the family has it. */
static inline bool cuda_cache_is_fp8(const struct cuda *cuda) {
    return cuda->options.kv >= KV_FP8;
}
/* Whether rows attend to listed rows of the cache: those that an indexer chose, or a window. */
static inline bool cuda_is_listed(const struct cuda *cuda) {
    return model_is_hybrid(cuda->model) || cuda->model->index_topk > 0;
}
/* Whether a row at this position sees more keys than the indexer lets through. */
static inline bool cuda_is_sparse(const struct cuda *cuda, int pos) {
    const struct index_shape shape = model_index_shape(cuda->model);
    return shape.topk > 0 && (pos + 1) / shape.tokens_a_key > shape.topk;
}
static inline bool cuda_has_embedding(const struct cuda *cuda) {
    return cuda->part.first_layer == 0;
}
static inline bool cuda_has_head(const struct cuda *cuda) {
    return cuda_end_layer(cuda) == cuda->model->layers;
}
/* Whether the CPU computes a layer's routed experts: of the first cpu_layers that have some. */
static inline bool cuda_is_on_cpu(const struct cuda *cuda, int layer) {
    return layer >= cuda->model->dense_layers && layer < cuda->model->dense_layers + cuda->options.cpu_layers;
}
/* Of some layer that is here: on the card; on the CPU. */
static inline bool cuda_has_experts(const struct cuda *cuda) {
    return cuda_end_layer(cuda) > cuda->model->dense_layers + cuda->options.cpu_layers;
}
static inline bool cuda_has_cpu_experts(const struct cuda *cuda) {
    int first = cuda->part.first_layer, first_experts = cuda->model->dense_layers;
    return cuda->options.cpu_layers && cuda_end_layer(cuda) > first_experts &&
           first < first_experts + cuda->options.cpu_layers;
}

/* Whether a step may want scratch for routed experts here. */
static inline bool cuda_may_compute_experts(const struct cuda *cuda) {
    return cuda_has_experts(cuda) || cuda->link.rows > 0;
}
/* Whether the CPU computes a layer's routed experts in the step that began last. */
static inline bool cuda_is_cpus_turn(const struct cuda *cuda, int layer) {
    return cuda_is_on_cpu(cuda, layer) && !cuda->link.is_used;
}

/* link.c: long steps bring the routed experts of the CPU's layers over the link, and compute them on the card: see
 * backend_options.link_rows. Sizes first; then their places in the scratch; then what the host needs. */
int cuda_link_plan(struct cuda *cuda, const struct weights *weights, struct mo_error *error);
void cuda_link_place(struct cuda *cuda, struct device_region *region);
int cuda_link_open(struct cuda *cuda, const struct weights *weights, struct mo_error *error);
void cuda_link_close(struct cuda *cuda);
void cuda_link_experts(struct cuda *cuda, int layer);
int cuda_link_end(struct cuda *cuda, struct mo_error *error); /* of a step: what was wrong with it */

/* offload.c: routed experts on the CPU. */
int cuda_offload_open(struct offload *offload, const struct model *model, const struct weights *weights,
                      const struct backend_options *options, struct mo_error *error);
void cuda_offload_begin(struct offload *offload, const struct batch *batch);
void cuda_offload_route(struct cuda *cuda, int layer);
void cuda_offload_experts(struct cuda *cuda, int layer);

/* cuda.c: one card. `cpu` computes experts for several; NULL: it opens one if it needs one. */
int cuda_open(struct cuda **cuda, const struct model *model, const struct weights *weights,
              const struct backend_options *options, const struct cuda_part *part, struct backend *cpu,
              struct mo_error *error);
int cuda_take_pinned(const struct cuda *cuda, size_t bytes, const char *what, void *at, struct mo_error *error);
/* The end of the oldest step, in two parts: waits for it, for a failure of the card; blames a row for its first NaN, if it has one. */
int cuda_wait_step(struct cuda *cuda, struct mo_error *error);
int cuda_blame(struct cuda *cuda, struct mo_error *error);

/* split.c: several cards behind one stage table. */
int cuda_split_open(struct backend **backend, const struct model *model, const struct weights *weights,
                    const struct backend_options *options, const struct cuda_part *parts, int n_parts,
                    struct mo_error *error);
/* The card, or NULL where there are several. */
struct cuda *cuda_alone(struct backend *backend);

/* listed.c: which rows of the cache are attended to, and attention to them. */
int cuda_listed_splits(const struct cuda *cuda, int pos); /* of a row's list, in the layer where it is longest */
struct listed_rows cuda_listed_rows(const struct cuda *cuda, int layer);
struct index_keys cuda_index_keys(const struct cuda *cuda, int layer);
/* V3.2: everything of the indexer that comes before attention: keys to the cache, and queries. After attn_in's projections. */
void cuda_index_in(struct cuda *cuda, int layer);
/* chosen of the rows that see more keys than they attend to: a few launches where there are some. */
void cuda_index(struct cuda *cuda, int layer);
/* `partial` of all rows. */
void cuda_listed_attn(struct cuda *cuda, int layer);

/* step.c: the batch as the kernels want it. */
void cuda_begin(struct backend *backend, const struct batch *batch);
/* Sends the step on its way that began last, with what is to come back of it. Nothing, if it is on its way. */
void cuda_submit(struct cuda *cuda);
size_t cuda_step_bytes(const struct cuda *cuda);
/* Chunks of keys that the indexer scores for the one of rows [first, first + n) that sees most, rounded up to a power of two; 0: it lets
 * everything through. */
int cuda_index_chunks(const struct cuda *cuda, int first, int n);
int cuda_max_slots(const struct cuda *cuda);

#endif
