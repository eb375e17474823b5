/* backend/cuda/expanded.c - which sequences of a batch are attended to in expanded form, and in which passes. A pass expands
 * as many cached tokens as the window holds, of one sequence or several, and attends to them. MOEBIUS_CUDA_WINDOW=TOKENS makes
 * the window smaller than it would be: less memory on the card, more passes, the same results. */
#include <assert.h>
#include <stdlib.h>
#include "backend/cuda/cuda.h"

enum { WINDOW_BYTES = 64 << 20, WINDOW_TOKENS = 4096 };

static int smaller(int a, int b) {
    return a < b ? a : b;
}

static int round_up(int n, int to) {
    return (n + to - 1) / to * to;
}

bool cuda_expanded_fits(const struct model *m) {
    return m->nope_dim <= EXPANDED_NOPE && m->rope_dim <= EXPANDED_ROPE && m->v_dim <= EXPANDED_VALUE;
}

/* Neither the window nor its layout changes a result, so it is as large as pays. */
static struct window shape_window(const struct model *m, int pool_tokens) {
    struct window w = {
        .key_cols = round_up(m->nope_dim, 16), .value_cols = round_up(m->v_dim, 16), .rope_cols = m->rope_dim};
    size_t token_bytes = ((size_t)m->heads * (size_t)(w.key_cols + w.value_cols) + (size_t)w.rope_cols) * 2;
    size_t tokens = WINDOW_BYTES / token_bytes;
    const char *text = getenv("MOEBIUS_CUDA_WINDOW");
    long wanted = text ? strtol(text, NULL, 10) : 0;
    w.tokens = smaller(tokens < WINDOW_TOKENS ? (int)tokens : WINDOW_TOKENS, pool_tokens);
    if (wanted > 0 && wanted < w.tokens) w.tokens = (int)wanted;
    w.tokens = w.tokens / EXPANDED_KEYS * EXPANDED_KEYS;
    if (w.tokens == 0) w.tokens = EXPANDED_KEYS;
    return w;
}

int cuda_expanded_plan(struct cuda *cuda, struct mo_error *error) {
    const struct model *m = cuda->model;
    struct expanded *e = &cuda->expanded;
    *e = (struct expanded){.rows_from =
                               cuda_expanded_fits(m) ? attention_expanded_rows(m, cuda->options.attention) : INT32_MAX,
                           .carry_slots = 1};
    if (e->rows_from > cuda->options.max_rows) return 0;
    e->window = shape_window(m, cuda->options.n_pages * KV_PAGE_TOKENS);
    e->carry_slots = (m->v_dim + 2 + m->kv_lora + 1) / (m->kv_lora + 2);
    int each = m->context / KV_PAGE_TOKENS + 1, window_pages = e->window.tokens / KV_PAGE_TOKENS;
    int most = cuda->options.max_rows / (e->rows_from > 0 ? e->rows_from : 1), seqs = cuda->options.max_seqs;
    each = smaller(each, cuda->options.n_pages);
    seqs = smaller(seqs, most);
    e->max_tiles = each * seqs;
    e->max_items = (cuda->options.max_rows / EXPANDED_QUERIES + seqs) * (each / window_pages + 2);
    e->max_passes = e->max_tiles / window_pages + 1;
    e->passes = arena_alloc_array(cuda->arena, (size_t)e->max_passes, sizeof *e->passes);
    return e->passes ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
}

void cuda_expanded_place(struct cuda *cuda, struct device_region *region) {
    struct window *w = &cuda->expanded.window;
    size_t tokens = (size_t)w->tokens, heads = (size_t)cuda->model->heads;
    w->key = device_take(region, tokens * heads * (size_t)w->key_cols * 2);
    w->value = device_take(region, tokens * heads * (size_t)w->value_cols * 2);
    w->rope = device_take(region, tokens * (size_t)w->rope_cols * 2);
}

bool cuda_is_expanded(const struct cuda *cuda, const struct batch_seq *seq) {
    return seq->n_rows >= cuda->expanded.rows_from && !cuda_is_sparse(cuda, seq->first_pos + seq->n_rows - 1);
}

/* The sequence's rows that see something of tokens [key0, key1), last ones first: they take longest. */
static void add_items(struct expanded *e, struct expanded_item *items, const struct batch_seq *seq, int key0, int key1,
                      int at) {
    struct expanded_pass *pass = &e->passes[e->n_passes - 1];
    for (int row = (seq->n_rows - 1) / EXPANDED_QUERIES * EXPANDED_QUERIES; row >= 0; row -= EXPANDED_QUERIES) {
        int n = smaller(seq->n_rows - row, EXPANDED_QUERIES), pos = seq->first_pos + row;
        if (pos + n <= key0) break;
        assert(pass->first_item + pass->n_items < e->max_items);
        items[pass->first_item + pass->n_items++] = (struct expanded_item){
            .first_row = seq->first_row + row, .n_rows = n, .pos = pos, .key0 = key0, .key1 = key1, .at = at};
    }
}

static struct expanded_pass *begin_pass(struct expanded *e) {
    struct expanded_pass *pass = &e->passes[e->n_passes];
    assert(e->n_passes < e->max_passes);
    *pass = (struct expanded_pass){0};
    if (e->n_passes++ > 0) {
        pass->first_tile = pass[-1].first_tile + pass[-1].n_tiles;
        pass->first_item = pass[-1].first_item + pass[-1].n_items;
    }
    return pass;
}

/* A sequence may begin in one pass and go on in the next. */
static void add_seq(struct expanded *e, struct expand_item *tiles, struct expanded_item *items,
                    const struct batch_seq *seq) {
    int end = seq->first_pos + seq->n_rows, window = e->window.tokens;
    struct expanded_pass *pass = e->n_passes ? &e->passes[e->n_passes - 1] : NULL;
    for (int key = 0; key < end;) {
        if (!pass || pass->n_tiles * EXPANDED_KEYS == window) pass = begin_pass(e);
        int at = pass->n_tiles * EXPANDED_KEYS, key1 = smaller(end, key + window - at);
        for (int k = key; k < key1; k += EXPANDED_KEYS) {
            assert(pass->first_tile + pass->n_tiles < e->max_tiles);
            tiles[pass->first_tile + pass->n_tiles] = (struct expand_item){
                .page = seq->pages[k / KV_PAGE_TOKENS], .n = smaller(end - k, EXPANDED_KEYS), .at = at + k - key};
            pass->n_tiles++;
        }
        add_items(e, items, seq, key, key1, at);
        key = key1;
    }
}

void cuda_expanded_begin(struct cuda *cuda, struct expand_item *tiles, struct expanded_item *items) {
    struct expanded *e = &cuda->expanded;
    const struct batch *b = cuda->batch;
    e->n_passes = 0;
    for (int s = 0; s < b->n_seqs; s++) {
        if (cuda_is_expanded(cuda, &b->seqs[s])) add_seq(e, tiles, items, &b->seqs[s]);
    }
}

static size_t expand_shared_bytes(const struct model *m) {
    return (size_t)EXPANDED_KEYS * (size_t)round_up(m->kv_lora, SLAB_COLS) * sizeof(uint16_t);
}

static size_t expanded_shared_bytes(const struct window *w) {
    size_t row = (size_t)(w->key_cols + w->rope_cols + 8 + w->value_cols + 8);
    return 2 * EXPANDED_KEYS * row * sizeof(uint16_t);
}

void cuda_expanded_attn(struct cuda *cuda, const struct device_layer *w, uint8_t *cache) {
    const struct model *m = cuda->model;
    const struct expanded *e = &cuda->expanded;
    bool published = m->nope_dim == EXPANDED_NOPE && m->rope_dim == EXPANDED_ROPE && m->v_dim == EXPANDED_VALUE;
    struct expand_params expand = {.key = w->key.m,
                                   .value = w->value.m,
                                   .window = e->window,
                                   .cache = cache,
                                   .row_bytes = cuda->row_bytes,
                                   .heads = m->heads,
                                   .kv_lora = m->kv_lora};
    struct expanded_params p = {.window = e->window,
                                .q = cuda->scratch.q,
                                .q_latent = cuda->scratch.q_latent,
                                .slot_first = cuda->step.slot_first,
                                .carry = cuda->scratch.partial,
                                .attended = cuda->scratch.attended,
                                .heads = m->heads,
                                .nope = m->nope_dim,
                                .rope = m->rope_dim,
                                .v_dim = m->v_dim,
                                .kv_lora = m->kv_lora,
                                .scale = cuda->softmax_scale * 1.44269504f};
    int groups = (m->heads + EXPANDED_HEADS - 1) / EXPANDED_HEADS;
    for (int i = 0; i < e->n_passes; i++) {
        const struct expanded_pass *pass = &e->passes[i];
        expand.items = cuda->step.expand_items + pass->first_tile;
        expand.n_items = pass->n_tiles;
        cuda_launch(cuda, cuda->options.kv == KV_FP8 ? KERNEL_ATTN_EXPAND_FP8 : KERNEL_ATTN_EXPAND_BF16,
                    pass->n_tiles * groups, expand_shared_bytes(m), &expand);
        p.items = cuda->step.expanded_items + pass->first_item;
        p.n_items = pass->n_items;
        cuda_launch(cuda, published ? KERNEL_ATTN_EXPANDED : KERNEL_ATTN_EXPANDED_ANY, pass->n_items * m->heads,
                    expanded_shared_bytes(&e->window), &p);
    }
}
