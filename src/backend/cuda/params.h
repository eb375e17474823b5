/* backend/cuda/params.h - what the host tells a kernel: one struct by value for each, the same bytes on both sides (sizes are
 * asserted below). Pointers are device addresses; the host only passes them on.
 *
 * A weight matrix on the device is tiles of 16 rows x 64 k, the tiles of 16 rows one after another in k. A lane of a warp
 * owns, in every tile, rows g and g + 8 (g = lane / 4) and for each of four steps of 16 k the four columns from
 * 16 * step + 4 * (lane % 4) on: exactly its share of the four mma operands. Its bytes are contiguous for 4-bit weights (16), and
 * in two or four pieces of 16 for 8 and 16 bits, piece after piece over the 32 lanes: so a warp reads 512 bytes at once.
 * Inside a step, value p of a row pair is: a0 = row g, columns 0 and 1; a1 = row g + 8, the same; a2, a3 = columns 2 and 3.
 * Scales lie as [row tile][group of k][16 rows]. Gate and up matrices share tiles: rows 0..7 are gate, 8..15 up.
 *
 * GGUF's blocks become planes of four, two and one bits of every value, one plane behind the other: a lane has 16, 8 and 4 bytes of
 * them, in the order of 4-bit weights. So a tile has the bits that its blocks have, and every load is a row of lanes side by side.
 * Their scales stay numbers of few bits (enum scale_coding).
 * Includes: nothing but C's own. */
#ifndef MOEBIUS_BACKEND_CUDA_PARAMS_H
#define MOEBIUS_BACKEND_CUDA_PARAMS_H

#include <stddef.h>
#include <stdint.h>

enum {
    TILE_ROWS = 16,
    SLAB_COLS = 64,   /* k of one tile */
    SPLIT_COLS = 256, /* k that are added up by themselves; the sums of splits are then added in ascending order */
    SPLIT_SLABS = SPLIT_COLS / SLAB_COLS,
    BLOCK_WARPS = 8,
    BLOCK_THREADS = 32 * BLOCK_WARPS,
    PIECE_COLS = 128,   /* k whose squares are added up by one warp */
    SKINNY_COLS = 2048, /* k of activations in shared memory: a split for each warp */
    WIDE_COLS = 512,    /* the same where a warp has a row tile of its own */
    X_PAD = 16,         /* values between rows of activations: moves them to other banks */
    MAX_TOP_K = 32,     /* experts of a token */
    MAX_EXPERTS = 512,  /* routed experts of a layer */
    MAX_GROUPS = 64,    /* of experts */
    ROUTE_SHARED = 4 * (BLOCK_WARPS * (MAX_EXPERTS + MAX_GROUPS) + 4 * MAX_EXPERTS), /* bytes of a routing block */
    SPLIT_TOKENS = 256, /* cached tokens that one block attends to by itself */
    TOKEN_TILE = 32,    /* cached tokens in shared memory at a time */
    PAGE_TOKENS = 64,   /* KV_PAGE_TOKENS */
    QUERY_TILE = 16,    /* (row, head) pairs of one block of attention */
    MAX_KV_LORA = 512,
    PICK_BLOCKS = 32,    /* blocks that look for the best logit of a row */
    PICK_SHARED = 11264, /* bytes of a block that picks */
    CACHE_GROUP = 128, /* latent values with one scale in an fp8 cache row */
    MANY_TOKENS = 128, /* rows of x, and of a matrix, that a block of the variant for prompts takes */
    MANY_ROWS = 128,
    MANY_STAGES = 3, /* slabs in shared memory; of weights with six bits or fewer one more */
    MANY_STAGES_SMALL = 4,
    MANY_X_BYTES = MANY_TOKENS * SLAB_COLS * 2,
    MANY_SCALE_BYTES = MANY_ROWS / TILE_ROWS * 128,
    NATIVE_ROW_BYTES = 128 + 16, /* 128 activations in e4m3 and their scale */
    NATIVE_STAGE_BYTES = MANY_TOKENS * NATIVE_ROW_BYTES + MANY_ROWS * 128 + MANY_ROWS * 4,
    EXPANDED_KEYS = 64,     /* cached tokens whose keys and values are in shared memory at a time */
    EXPANDED_QUERIES = 128, /* rows of a head in one block of expanded attention */
    EXPANDED_HEADS = 2,     /* for which one block expands */
    EXPANDED_ROPE = 64,     /* the largest sizes of a head that it takes: those of every published model */
    EXPANDED_NOPE = 128,
    EXPANDED_VALUE = 128,
};

/* Formats that kernels multiply with. */
enum weight_format {
    WEIGHT_BF16,
    WEIGHT_FP8,
    WEIGHT_INT4, /* also Q4_0 */
    WEIGHT_AWQ,
    WEIGHT_INT8,  /* also Q8_0 */
    WEIGHT_BITS4, /* Q4_1, Q4_K; by a table IQ4_NL, IQ4_XS; e2m1: FP4, MXFP4 */
    WEIGHT_BITS5, /* Q5_0, Q5_1, Q5_K: planes of four bits and one */
    WEIGHT_BITS6, /* Q6_K: four and two */
    WEIGHT_BITS3, /* Q3_K: two and one; Q2_K: two */
    WEIGHT_FORMATS
};

/* Scales of WEIGHT_BITS...: chunks of 64 or 256 k (group_shift), [row tile][chunk][chunk_bytes]. A chunk is rows of codes, [16] words
 * of 32 bits for each 64 k (CODE_BYTE_32, CODE_EXPONENT: 128), and behind them `beside`, [16] words or halves for all of its k. w = scale * q + low.
 *
 *                      codes, lowest first              beside              of
 *   CODE_HALF          two fp16 scales of 32 k          nothing             Q5_0, IQ4_NL
 *   CODE_HALF_LOW      the same                         two fp16 lows       Q4_1, Q5_1
 *   CODE_BYTE          four signed bytes, each of 16 k  fp16 d              Q6_K, Q3_K        scale = d * byte
 *   CODE_BYTE_32       the same, each of 32 k           fp16 d              IQ4_XS            the same
 *   CODE_EXPONENT      four bytes, each of 32 k         nothing             FP4, MXFP4        scale = 2^(byte - 127)
 *   CODE_BYTE_LOW      two bytes, two more: 32 k        fp16 d, fp16 dmin   Q4_K, Q5_K        low = -dmin * (the others)
 *   CODE_NIBBLE_LOW    four bytes, each of 16 k         fp16 d, fp16 dmin   Q2_K              low nibble, high nibble */
enum scale_coding { CODE_NONE, CODE_HALF, CODE_HALF_LOW, CODE_BYTE, CODE_BYTE_32, CODE_EXPONENT, CODE_BYTE_LOW, CODE_NIBBLE_LOW };

struct device_matrix {
    const uint8_t *data;  /* tiles, see above */
    const uint8_t *scale; /* [row tile][scale_groups][16]: FP8 fp32, INT4 and INT8 fp16, AWQ fp16 | zero point << 16; blocks: above */
    size_t data_step;     /* bytes from one expert's (or head's) matrix to the next */
    size_t scale_step;
    int32_t rows, cols; /* of the matrix that callers see; of gate alone where gate and up share tiles */
    int32_t row_tiles, slabs;
    int32_t scale_groups; /* 0: no scales */
    int32_t group_shift;  /* log2 of the k with one scale, of GGUF's blocks of a chunk of them; 31: one for all */
    int32_t coding;       /* enum scale_coding */
    int32_t chunk_bytes;  /* of the scales of a group, of 16 rows */
};

/* Where a linear's activations come from. */
enum x_kind {
    X_F32,   /* fp32 [row][x_stride], times gain[k]; the result is divided by the row's root mean square */
    X_BF16,  /* bf16 [row][x_stride] */
    X_MERGE, /* attention's partial results of (row, head), merged in ascending order of splits */
};
enum y_kind {
    Y_F32,  /* stored */
    Y_ADD,  /* added to what is there */
    Y_BF16, /* stored, rounded */
    Y_SILU, /* SiLU(gate) * up, stored as bf16 */
};
/* What the block does that is the last of a part of the job to end, in the skinny variant: see struct absorb_params. */
enum last_work { LAST_NOTHING, LAST_HEADS, LAST_LATENT };

/* A piece of work of the experts: rows [first, first + n) of the sorted pairs, all of one expert. */
struct expert_item {
    int32_t expert, first, n, unused;
};

/* Attention's partial result: `slots` of them for each row, each [heads] rows of kv_lora sums, then maximum and sum. */
struct merge_source {
    const float *partial;      /* [slot][heads][kv_lora + 2] */
    const int32_t *slot_first; /* [row] */
    const int32_t *slot_count; /* [row] */
    int32_t heads, kv_lora;
};

/* One matrix product y = x W^T. `groups` matrices side by side (heads), or those that `items` lists (experts). */
struct linear_job {
    struct device_matrix w;
    const void *x;
    const float *gain;       /* X_F32: [cols] */
    const int32_t *x_row;    /* row of x for row i, or NULL: i */
    void *y;                 /* [i][y_stride] */
    size_t x_stride, x_step; /* values from row to row, and from group to group */
    size_t y_stride, y_step;
    const float *factor;             /* many rows: what results are multiplied with, by row of x; or NULL */
    const struct expert_item *items; /* NULL: all n rows for every group */
    const int32_t *n_items;
    int32_t x_kind, y_kind;
    int32_t n;            /* rows of y; with items: rows of x */
    int32_t groups;       /* matrices; with items: the most items that there can be */
    int32_t row_blocks;   /* blocks for one group and token tile */
    int32_t blocks;       /* of this job */
    int32_t fault_key;    /* X_F32: what to blame for a row that is not finite */
    int32_t fault_logits; /* Y_F32: blame for results that are not finite; 0: do not look */
    int32_t last_work;
    int32_t x_in_order;   /* many rows: x was packed in the order of y, x_row only says whose it is */
    float limit;          /* Y_SILU: gate is that at most, up at most that either way; 0: no limit */
    int32_t waits;        /* for `items`, which the same launch makes: route_params.listed */
};

/* Adds up each row's experts in ascending order, and the shared one; done by the last block to finish a row tile. */
struct expert_sum {
    float *x;            /* [n][hidden] */
    const float *routed; /* [pair][hidden] in sorted order */
    const float *shared; /* [n][hidden] or NULL */
    const int32_t *at;   /* [n][top_k] sorted pairs of a row, ascending by expert */
    const float *weight; /* [n][top_k] the same order */
    const int32_t *n_items;
    uint32_t *arrived; /* [row blocks], zero before and after; NULL: not here */
    uint32_t *listed;  /* route_params.listed, which has been waited for and becomes zero again; NULL: it was not used */
    int32_t n, hidden, top_k, shared_tiles;
};

/* Routing of the rows: logits, scores, the choice, and the experts' work lists. */
struct route_params {
    const float *x;     /* [n][hidden] */
    const float *gain;  /* [hidden] */
    const void *router; /* [experts][hidden] fp32 or bf16 */
    const float *bias;  /* [experts] or NULL */
    float *score;       /* [n][experts] */
    const int32_t *table;  /* [vocab][top_k] a token's experts, one maybe twice; NULL: the best are chosen */
    const int32_t *token;  /* [n] for the table, */
    const int32_t *picked; /* as embed_params has them */
    int32_t *id;           /* [n][top_k] falling score, or the table's order */
    float *weight;      /* [n][top_k] */
    int32_t *at;        /* [n][top_k] sorted pairs, ascending by expert */
    float *at_weight;   /* [n][top_k] */
    int32_t *pair_row;  /* [n * top_k] row of each sorted pair */
    struct expert_item *items;
    int32_t *n_items;
    uint32_t *arrived; /* zero before and after */
    uint32_t *listed;  /* 1 once the lists are there, for blocks of the same launch that wait for them; zero before; NULL: none does */
    unsigned long long *fault;
    int32_t n, hidden, experts, top_k, groups, top_groups;
    int32_t gate_kind, norm_topk, router_is_bf16, item_rows;
    int32_t blocks; /* router blocks of this launch; 0: none */
    int32_t choose; /* the last of them also chooses and lists */
    int32_t fault_key;
    float routed_scale, eps;
};

/* Rotates queries and the key, norms the latent, writes the cache row. One block a row. */
struct rope_params {
    const float *q;        /* [n][heads][nope + rope] */
    const float *kv_a;     /* [n][kv_lora + rope] */
    const float *kv_norm;  /* [kv_lora] */
    const float *rotation; /* [n][rope / 2][2] cos, sin */
    const int32_t *page;   /* [n] page of the row's own position */
    const int32_t *pos;    /* [n] */
    uint16_t *q_latent;    /* [n][heads][kv_lora + rope] bf16: the rope part is written here */
    uint8_t *cache;        /* this layer's pages */
    size_t row_bytes;
    unsigned long long *fault;
    int32_t n, heads, nope, rope, kv_lora, fp8;
    int32_t blocks; /* n or 0 */
    int32_t fault_key;
    float eps;
};

/* For few rows, what follows the projections is done by their last blocks: LAST_HEADS, a head's queries are absorbed and
 * rotated once all their tiles are there; LAST_LATENT, the rows' cache rows are written. */
struct absorb_params {
    struct linear_job key; /* a group a head; bf16, at most SKINNY_COLS columns */
    uint32_t *arrived;     /* [heads + 1], zero before and after; the last one is the latent's */
    int32_t head_tiles;    /* row tiles of one head's queries */
    int32_t prefetch;      /* blocks that are not the last bring the key matrix nearer (not measured yet) */
};

struct linear_params {
    struct linear_job job[2];
    struct absorb_params absorb;
    struct merge_source merge;
    struct expert_sum sum;
    struct route_params route;
    struct rope_params rope;
    unsigned long long *fault; /* the smallest key << 32 | row that was not finite */
    float eps;
    int32_t n_jobs;
};

/* A sequence's rows of the batch, and where its page numbers begin. */
struct seq_rows {
    int32_t first_row, n_rows, first_pos, first_page;
};

/* One block of attention: 16 (row, head) pairs of a sequence against splits [split0, split1). */
struct attn_item {
    int32_t first_row, n_rows; /* the sequence's rows of the batch */
    int32_t first_pos;
    int32_t query; /* first (row, head) pair, counted from the sequence's first */
    int32_t pages; /* where its page numbers start */
    int32_t split0, split1;
    int32_t slot; /* results go to slot_first[row] + slot */
};

struct attn_params {
    const struct attn_item *items;
    const int32_t *page_table;
    const int32_t *slot_first; /* [row] */
    const uint16_t *q_latent;  /* [n][heads][kv_lora + rope] bf16 */
    const uint8_t *cache;      /* this layer's pages */
    float *partial;            /* [slot][heads][kv_lora + 2] */
    size_t row_bytes;
    int32_t heads, kv_lora, rope;
    float scale;
};

/* Up to 64 cached tokens whose keys and values are to be expanded: a page, and where they go in the window. */
struct expand_item {
    int32_t page, n, at, unused;
};

/* The window: keys and values of some cached tokens for all heads, in bf16. Columns are padded with zeros to multiples of 16. */
struct window {
    uint16_t *key;   /* [heads][tokens][key_cols], without the rotated part */
    uint16_t *value; /* [heads][tokens][value_cols] */
    uint16_t *rope;  /* [tokens][rope], the same for every head */
    int32_t tokens, key_cols, value_cols, rope_cols;
};

struct expand_params {
    struct device_matrix key, value; /* kv_b as absorption has it: [heads] of [kv_lora][nope] and [v][kv_lora], bf16 */
    struct window window;
    const struct expand_item *items;
    const uint8_t *cache; /* this layer's pages */
    size_t row_bytes;
    int32_t n_items, heads, kv_lora, unused;
};

/* Up to 128 consecutive rows of a sequence against those of its cached tokens that are in the window. */
struct expanded_item {
    int32_t first_row, n_rows; /* of the batch */
    int32_t pos;               /* of the first row */
    int32_t key0, key1;        /* the cached tokens in the window */
    int32_t at;                /* where the first of them is */
    int32_t unused[2];
};

struct expanded_params {
    struct window window;
    const struct expanded_item *items;
    const float *q;            /* [n][heads][nope + rope]: the part that is not rotated */
    const uint16_t *q_latent;  /* [n][heads][kv_lora + rope] bf16: the part that is */
    const int32_t *slot_first; /* [row] place of a row's unfinished result in `carry` */
    float *carry;       /* [slot][heads][kv_lora + 2]; in a row's place [heads][v + 2]: sums, then maximum and sum */
    uint16_t *attended; /* [n][heads][v] */
    int32_t n_items, heads, nope, rope, v_dim, kv_lora;
    float scale; /* of the softmax, times log2 e */
    int32_t unused;
};

struct embed_params {
    const void *table; /* [vocab][hidden] */
    const int32_t *token;
    const int32_t *picked;  /* of the step before: token -1 - k is picked[k] */
    float *x;               /* [n][hidden] */
    int32_t hidden, format; /* enum raw_format: F32, F16, BF16, or GGUF's blocks */
};

/* Uploads: the file's bytes, and where they go. */
enum raw_format {
    RAW_F32,
    RAW_F16,
    RAW_BF16,
    RAW_FP8,
    RAW_FP4,
    RAW_AWQ,
    RAW_INT4,
    RAW_INT8,
    RAW_Q4_0, /* from here on GGUF's blocks: model/format.h */
    RAW_Q4_1,
    RAW_Q5_0,
    RAW_Q5_1,
    RAW_Q8_0,
    RAW_MXFP4,
    RAW_IQ4_NL, /* up to here 32 values each, behind it 256 */
    RAW_Q2_K,
    RAW_Q3_K,
    RAW_Q4_K,
    RAW_Q5_K,
    RAW_Q6_K,
    RAW_IQ4_XS,
};
struct raw_matrix {
    const uint8_t *data;   /* rows [row0, row0 + rows) */
    const uint8_t *scale;  /* FP8 fp32 (the whole matrix's), FP4 e8m0 [rows][cols / 32], AWQ fp16 [groups][all_rows] */
    const uint32_t *zeros; /* AWQ [groups][all_rows / 8] */
    int32_t format, rows, cols, row0, all_rows;
    int32_t scale_rows, scale_cols, scale_stride; /* FP8 */
    int32_t group;                                /* AWQ, INT4, INT8 */
};
enum repack_target { REPACK_TILES, REPACK_ROWS_BF16, REPACK_ROWS_F32, REPACK_ROWS_BLOCKS };
struct repack_params {
    struct raw_matrix from;
    struct device_matrix to; /* data and scale are written */
    int32_t target, format;  /* REPACK_TILES: enum weight_format */
    int32_t halves;          /* 3: both halves of a tile's rows; 1: gate, 2: up */
    int32_t first_tile, n_tiles;
    /* Which value goes to (group, row, col): source row group * group_rows + row_offset + row, and col; or turned round. */
    int32_t groups, group_rows, row_offset, transposed;
    uint32_t *fault; /* smallest matrix number with a NaN in it */
    uint32_t number;
};

/* x += y, a block a row. */
struct add_params {
    float *x;
    const float *y;
    int32_t hidden, unused;
};

/* x with its gain, padded with zeros to whole slabs, as bf16; or to whole groups of 128, as e4m3 (native.cuh). And the factor of
 * each row's norm. A block a row. */
struct pack_params {
    struct linear_job job; /* x_kind X_F32 or X_BF16 */
    unsigned long long *fault;
    uint8_t *to;   /* [n][slabs * SLAB_COLS] bf16, or [n][groups] of NATIVE_ROW_BYTES */
    float *factor; /* [n] */
    float eps;
    int32_t unused;
};

struct sum_params {
    struct expert_sum sum;
};

/* The items of experts [first, first + n), which are counted from `first` on: of those that are on the card by turns. */
struct turn_params {
    const struct expert_item *items; /* ascending by expert */
    const int32_t *n_items;
    struct expert_item *turn_items;
    int32_t *n_turn_items;
    int32_t first, n;
};

/* How a row's token is chosen: struct pick of backend.h. */
struct pick_row {
    int32_t wanted, top_k;
    float temperature, min_p, top_p;
    uint32_t random;
};
struct pick_best {
    float value;
    int32_t id;
};
struct pick_params {
    float *logits;              /* [n][vocab]; draws make weights of them */
    const struct pick_row *row; /* [n] */
    struct pick_best *best;     /* [n][PICK_BLOCKS] of each block's part */
    int32_t *picked;            /* [n] */
    uint32_t *arrived;          /* [n], zero before and after */
    int32_t vocab, unused;
};

#define PARAMS_SIZE(type, n) _Static_assert(sizeof(struct type) == (n), "host and kernels disagree about struct " #type)
#ifdef __cplusplus
#undef PARAMS_SIZE
#define PARAMS_SIZE(type, n) static_assert(sizeof(struct type) == (n), "host and kernels disagree about struct " #type)
#endif
PARAMS_SIZE(device_matrix, 64);
PARAMS_SIZE(linear_job, 200);
PARAMS_SIZE(linear_params, 1072);
PARAMS_SIZE(pack_params, 232);
PARAMS_SIZE(attn_params, 72);
PARAMS_SIZE(expand_params, 208);
PARAMS_SIZE(expanded_params, 120);
PARAMS_SIZE(repack_params, 184);
PARAMS_SIZE(turn_params, 40);
PARAMS_SIZE(pick_row, 24);
PARAMS_SIZE(pick_params, 48);

#endif
