/* backend/cuda/step.c - a batch as the kernels want it: one block of memory, filled on the host and sent in one copy. */
#include <assert.h>
#include <math.h>
#include <string.h>
#include "backend/cuda/cuda.h"

enum { PIECE_ALIGN = 16, EXTRA_PARTIAL_BYTES = 64 << 20 };

static int ceil_div_int(int a, int b) {
    return (a + b - 1) / b;
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* Every row needs a slot (in expanded form more, where values are wider than the latent); decoding over long contexts wants one for each split. */
int cuda_max_slots(const struct cuda *cuda) {
    const struct model *model = cuda->model;
    const struct backend_options *options = &cuda->options;
    size_t slot_bytes = (size_t)model->heads * (size_t)(model_value_dim(model) + 2) * sizeof(float);
    size_t most = EXTRA_PARTIAL_BYTES / slot_bytes;
    size_t wanted = (size_t)options->n_pages / (SPLIT_TOKENS / PAGE_TOKENS) + (size_t)options->max_seqs;
    if (cuda_is_listed(cuda)) wanted = (size_t)options->max_seqs * (size_t)cuda_listed_splits(cuda, model->context - 1);
    return options->max_rows * cuda->expanded.carry_slots + (int)(wanted < most ? wanted : most);
}

/* Page numbers that the sequences of a batch can have together. */
static size_t most_pages(const struct cuda *cuda) {
    size_t each = (size_t)cuda->model->context / KV_PAGE_TOKENS + 1, pool = (size_t)cuda->options.n_pages;
    return (each < pool ? each : pool) * (size_t)cuda->options.max_seqs;
}

static size_t most_attn_items(const struct cuda *cuda) {
    if (cuda_is_listed(cuda)) return 0;
    /* A row ends at most that many tiles of queries, and one more when it is a sequence's last. */
    return (size_t)cuda->max_slots * (size_t)(ceil_div_int(cuda->model->heads, QUERY_TILE) + 1);
}

size_t cuda_step_bytes(const struct cuda *cuda) {
    size_t rows = (size_t)cuda->options.max_rows, pieces = 19, rotations = model_is_hybrid(cuda->model) ? 4 : 1;
    size_t engram =
        (size_t)cuda->model->hybrid.engram.n_layers * rows * cuda_engram_row_values(cuda) * sizeof(uint16_t);
    size_t ints = (6 + (size_t)cuda->near_pages) * rows + (size_t)cuda->options.max_logits + most_pages(cuda);
    return ints * 4 + engram + (size_t)cuda->options.max_logits * sizeof(struct pick_row) +
           (size_t)cuda->options.max_seqs * sizeof(struct seq_rows) +
           rotations * rows * (size_t)cuda->model->rope_dim * 4 + most_attn_items(cuda) * sizeof(struct attn_item) +
           (size_t)cuda->expanded.max_tiles * sizeof(struct expand_item) +
           (size_t)cuda->expanded.max_items * sizeof(struct expanded_item) + pieces * PIECE_ALIGN;
}

/* Hands out pieces of the staging memory; `at` gets the same piece's address on the card. */
struct sender {
    struct cuda *cuda;
    size_t used;
};

static void *piece(struct sender *sender, size_t bytes, const void **at) {
    struct cuda *cuda = sender->cuda;
    void *here = cuda->flights[cuda->n_begun % 2].staging + sender->used;
    *at = cuda->scratch.step + sender->used;
    sender->used += (bytes + PIECE_ALIGN - 1) / PIECE_ALIGN * PIECE_ALIGN;
    assert(sender->used <= cuda->step_bytes);
    return here;
}

static void send_picks(struct sender *sender) {
    struct cuda *cuda = sender->cuda;
    const struct batch *b = cuda->batch;
    struct pick_row *row = piece(sender, (size_t)b->n_logits * sizeof *row, (const void **)&cuda->step.pick);
    for (int i = 0; b->pick && i < b->n_logits; i++) {
        const struct pick *pick = &b->pick[i];
        row[i] = (struct pick_row){.wanted = pick->wanted,
                                   .top_k = pick->top_k,
                                   .temperature = pick->temperature,
                                   .min_p = pick->min_p,
                                   .top_p = pick->top_p,
                                   .random = pick->random};
    }
}

/* Angles in double: at position 163,839 fp32 is already off by 1e-3. */
static void rotation_at(const double *frequency, int pairs, int pos, float magnitude, float *out) {
    for (int i = 0; i < pairs; i++) {
        double angle = pos * frequency[i];
        out[2 * i] = (float)cos(angle) * magnitude;
        out[2 * i + 1] = (float)sin(angle) * magnitude;
    }
}

static int pages_of(const struct batch_seq *seq) {
    return (seq->first_pos + seq->n_rows + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

/* For rows that attend by list, and for what walks along a sequence. There are as many sequences as there can be, so that lengths depend
 * on the step's shape alone. */
static void send_seqs(struct sender *sender) {
    struct cuda *cuda = sender->cuda;
    const struct batch *b = cuda->batch;
    const int n = b->n_rows < cuda->options.max_seqs ? b->n_rows : cuda->options.max_seqs;
    int32_t *first_page = piece(sender, (size_t)b->n_rows * 4, (const void **)&cuda->step.first_page);
    struct seq_rows *seqs = piece(sender, (size_t)n * sizeof *seqs, (const void **)&cuda->step.seqs);
    int pages = 0;
    memset(seqs, 0, (size_t)n * sizeof *seqs);
    for (int s = 0; s < b->n_seqs; s++) {
        const struct batch_seq *seq = &b->seqs[s];
        seqs[s] = (struct seq_rows){seq->first_row, seq->n_rows, seq->first_pos, pages};
        for (int i = 0; i < seq->n_rows; i++) first_page[seq->first_row + i] = pages;
        pages += pages_of(seq);
    }
}

/* V4: places of the near parts that a row looks at, its own first. */
static void near_of_row(const struct cuda *cuda, const struct batch_seq *seq, int pos, int32_t *near) {
    const int page = pos / KV_PAGE_TOKENS;
    for (int k = 0; k < cuda->near_pages; k++) near[k] = k <= page ? cuda_near_of(cuda, seq->pages[page - k]) : -1;
}

/* V4: rotations of layers with a ratio, at a row's own position and where the windows that end with it began. */
static void far_rotations_of_row(const struct cuda *cuda, int row, int pos, float *far, float *window) {
    const int *ratios = cuda_window_ratios(cuda->model);
    const size_t rope = (size_t)cuda->model->rope_dim, n = (size_t)cuda->batch->n_rows;
    rotation_at(cuda->far_frequency, (int)rope / 2, pos, 1, far + (size_t)row * rope);
    for (size_t i = 0; i < 2; i++) {
        float *out = window + (i * n + (size_t)row) * rope;
        if ((pos + 1) % ratios[i]) continue;
        rotation_at(cuda->far_frequency, (int)rope / 2, pos + 1 - ratios[i], 1, out);
    }
}

static void send_hybrid(struct sender *sender) {
    struct cuda *cuda = sender->cuda;
    const struct batch *b = cuda->batch;
    const size_t rows = (size_t)b->n_rows, rope = (size_t)cuda->model->rope_dim, near_pages = (size_t)cuda->near_pages;
    int32_t *near = piece(sender, rows * near_pages * 4, (const void **)&cuda->step.near);
    float *far = piece(sender, rows * rope * 4, (const void **)&cuda->step.far_rotation);
    float *window = piece(sender, 2 * rows * rope * 4, (const void **)&cuda->step.window_rotation);
    for (int s = 0; s < b->n_seqs; s++) {
        for (int i = 0; i < b->seqs[s].n_rows; i++) {
            int row = b->seqs[s].first_row + i, pos = b->seqs[s].first_pos + i;
            near_of_row(cuda, &b->seqs[s], pos, near + (size_t)row * near_pages);
            far_rotations_of_row(cuda, row, pos, far, window);
        }
    }
    if (!cuda->engram.pool) return;
    const size_t values = (size_t)cuda->model->hybrid.engram.n_layers * rows * cuda_engram_row_values(cuda);
    cuda_engram_begin(cuda, piece(sender, values * sizeof(uint16_t), (const void **)&cuda->step.engram));
}

static void send_rows(struct sender *sender) {
    struct cuda *cuda = sender->cuda;
    const struct batch *b = cuda->batch;
    size_t rows = (size_t)b->n_rows, pairs = (size_t)cuda->model->rope_dim / 2;
    memcpy(piece(sender, rows * 4, (const void **)&cuda->step.token), b->token, rows * 4);
    int32_t *pos = piece(sender, rows * 4, (const void **)&cuda->step.pos);
    int32_t *page = piece(sender, rows * 4, (const void **)&cuda->step.page);
    float *rotation = piece(sender, rows * pairs * 8, (const void **)&cuda->step.rotation);
    for (int s = 0; s < b->n_seqs; s++) {
        for (int i = 0; i < b->seqs[s].n_rows; i++) {
            int row = b->seqs[s].first_row + i;
            pos[row] = b->seqs[s].first_pos + i;
            page[row] = b->seqs[s].pages[pos[row] / KV_PAGE_TOKENS];
        }
    }
    for (size_t row = 0; row < rows; row++)
        rotation_at(cuda->frequency, (int)pairs, pos[row], cuda->magnitude, rotation + row * pairs * 2);
    if (cuda_is_listed(cuda)) send_seqs(sender);
    if (model_is_hybrid(cuda->model)) send_hybrid(sender);
    send_picks(sender);
    size_t n_logits = (size_t)b->n_logits;
    int32_t *wanted = piece(sender, n_logits * 4, (const void **)&cuda->step.logits_row);
    if (n_logits) memcpy(wanted, b->logits_row, n_logits * 4);
}

/* Splits that a position sees. */
static int splits_of(int pos) {
    return pos / SPLIT_TOKENS + 1;
}

/* Whether every split gets a block of its own: as long as there is room for their results, it is quicker. The bits are the
 * same either way. */
static bool can_split(const struct cuda *cuda, const struct batch_seq *seq, int slots_used) {
    int rows_left = cuda->batch->n_rows - seq->first_row - seq->n_rows;
    int wanted = 0;
    for (int i = 0; i < seq->n_rows; i++) wanted += splits_of(seq->first_pos + i);
    return slots_used + wanted + rows_left <= cuda->max_slots;
}

/* One tile of 16 queries of a sequence: a block for all splits, or one for each. */
static int add_items(struct attn_item *items, const struct batch_seq *seq, int query, int last_pos, int pages,
                     bool split) {
    int n = splits_of(last_pos);
    struct attn_item item = {.first_row = seq->first_row,
                             .n_rows = seq->n_rows,
                             .first_pos = seq->first_pos,
                             .query = query,
                             .pages = pages,
                             .split1 = n};
    if (!split) {
        items[0] = item;
        return 1;
    }
    for (int i = 0; i < n; i++) {
        items[i] = item;
        items[i].split0 = items[i].slot = i;
        items[i].split1 = i + 1;
    }
    return n;
}

/* Comes last, since its length is not the same in every step of a shape. */
static void send_pages(struct sender *sender, int n) {
    const struct batch *b = sender->cuda->batch;
    int32_t *table = piece(sender, (size_t)n * 4, (const void **)&sender->cuda->step.page_table);
    for (int s = 0; s < b->n_seqs; s++) {
        memcpy(table, b->seqs[s].pages, (size_t)pages_of(&b->seqs[s]) * 4);
        table += pages_of(&b->seqs[s]);
    }
}

static int round_up_to_power(int n) {
    int power = 1;
    while (power < n) power *= 2;
    return power;
}

/* The next power of two, so that few shapes cover a growing context; blocks without work end at once. */
static int round_up_items(const struct cuda *cuda, int n) {
    int rounded = round_up_to_power(n);
    return (size_t)rounded <= most_attn_items(cuda) ? rounded : n;
}

/* The sequence's slots, and (absorbed) its blocks of attention; returns how many. */
static int send_seq(struct cuda *cuda, const struct batch_seq *seq, struct attn_item *items, int32_t *first,
                    int32_t *count, int *slots, int pages) {
    bool expanded = cuda_is_expanded(cuda, seq), split = !expanded && can_split(cuda, seq, *slots);
    int heads = cuda->model->heads, n = 0;
    for (int i = 0; i < seq->n_rows; i++) {
        int row = seq->first_row + i;
        first[row] = *slots;
        count[row] = split ? splits_of(seq->first_pos + i) : 1;
        *slots += expanded ? cuda->expanded.carry_slots : count[row];
    }
    if (expanded) return 0;
    for (int query = 0; query < seq->n_rows * heads; query += QUERY_TILE) {
        int row = (query + QUERY_TILE - 1) / heads;
        if (row > seq->n_rows - 1) row = seq->n_rows - 1;
        n += add_items(items + n, seq, query, seq->first_pos + row, pages, split);
    }
    return n;
}

/* Over how many blocks a row's list is cut: all its splits, while there is room for all results; else 1. The bits are the same. Every
 * row has as many blocks as the one with most: beside many short rows a long one is not cut, or most blocks would have no work. */
static int listed_splits(const struct cuda *cuda) {
    const struct batch *b = cuda->batch;
    int wanted = 0, most = 1;
    for (int s = 0; s < b->n_seqs; s++) {
        const struct batch_seq *seq = &b->seqs[s];
        const bool expanded = cuda_is_expanded(cuda, seq);
        for (int i = 0; i < seq->n_rows; i++) {
            int splits = expanded ? cuda->expanded.carry_slots : cuda_listed_splits(cuda, seq->first_pos + i);
            wanted += splits;
            if (!expanded && splits > most) most = splits;
        }
    }
    return wanted <= cuda->max_slots && b->n_rows <= cuda->max_slots / most ? round_up_to_power(most) : 1;
}

/* Slots of a sequence whose rows attend by list, or in expanded form: a count of 0 keeps those out of the list's blocks. */
static void send_listed_seq(const struct cuda *cuda, const struct batch_seq *seq, int32_t *first, int32_t *count,
                            int *slots) {
    const bool expanded = cuda_is_expanded(cuda, seq), split = cuda->step.listed_splits > 1;
    for (int i = 0; i < seq->n_rows; i++) {
        int row = seq->first_row + i, n = split ? cuda_listed_splits(cuda, seq->first_pos + i) : 1;
        first[row] = *slots;
        count[row] = expanded ? 0 : n;
        *slots += expanded ? cuda->expanded.carry_slots : n;
    }
}

int cuda_index_chunks(const struct cuda *cuda, int first, int n) {
    const struct batch *b = cuda->batch;
    int most = 0;
    for (int s = 0; s < b->n_seqs; s++) {
        const struct batch_seq *seq = &b->seqs[s];
        const int end = smaller(seq->first_row + seq->n_rows, first + n),
                  pos = seq->first_pos + end - 1 - seq->first_row;
        if (end <= seq->first_row || end <= first || !cuda_is_sparse(cuda, pos)) continue;
        const int keys = (pos + 1) / model_index_shape(cuda->model).tokens_a_key;
        if (keys > most) most = keys;
    }
    return most ? round_up_to_power(ceil_div_int(most, INDEX_CHUNK)) : 0;
}

/* Rows from the first to the last that is absorbed; some between them may not be. */
static void find_absorbed(struct cuda *cuda) {
    int first = -1, end = 0;
    for (int s = 0; s < cuda->batch->n_seqs; s++) {
        const struct batch_seq *seq = &cuda->batch->seqs[s];
        if (cuda_is_expanded(cuda, seq)) continue;
        if (first < 0) first = seq->first_row;
        end = seq->first_row + seq->n_rows;
    }
    cuda->step.first_absorbed = first < 0 ? 0 : first;
    cuda->step.n_absorbed = end - cuda->step.first_absorbed;
}

static void send_attention(struct sender *sender) {
    struct cuda *cuda = sender->cuda;
    const struct batch *b = cuda->batch;
    int slots = 0, pages = 0, n = 0;
    int32_t *first = piece(sender, (size_t)b->n_rows * 4, (const void **)&cuda->step.slot_first);
    int32_t *count = piece(sender, (size_t)b->n_rows * 4, (const void **)&cuda->step.slot_count);
    const bool listed = cuda_is_listed(cuda);
    cuda->step.listed_splits = listed ? listed_splits(cuda) : 0;
    cuda->step.index_chunks = listed ? cuda_index_chunks(cuda, 0, b->n_rows) : 0;
    size_t items_at = sender->used;
    struct attn_item *items = piece(sender, most_attn_items(cuda) * sizeof *items, (const void **)&cuda->step.items);
    for (int s = 0; s < b->n_seqs; s++) {
        if (listed) {
            send_listed_seq(cuda, &b->seqs[s], first, count, &slots);
        } else {
            n += send_seq(cuda, &b->seqs[s], items + n, first, count, &slots, pages);
        }
        pages += pages_of(&b->seqs[s]);
    }
    assert((size_t)n <= most_attn_items(cuda) && (size_t)pages <= most_pages(cuda) && slots <= cuda->max_slots);
    cuda->step.n_items = n ? round_up_items(cuda, n) : 0;
    memset(items + n, 0, (size_t)(cuda->step.n_items - n) * sizeof *items);
    sender->used = items_at + (size_t)cuda->step.n_items * sizeof *items;
    find_absorbed(cuda);
    send_pages(sender, pages);
}

static void send_expanded(struct sender *sender) {
    struct cuda *cuda = sender->cuda;
    struct expanded *e = &cuda->expanded;
    size_t tiles_bytes = (size_t)e->max_tiles * sizeof(struct expand_item);
    size_t items_bytes = (size_t)e->max_items * sizeof(struct expanded_item), before = sender->used;
    struct expand_item *tiles = piece(sender, tiles_bytes, (const void **)&cuda->step.expand_items);
    size_t items_at = sender->used;
    struct expanded_item *items = piece(sender, items_bytes, (const void **)&cuda->step.expanded_items);
    cuda_expanded_begin(cuda, tiles, items);
    sender->used = before;
    if (e->n_passes == 0) return;
    const struct expanded_pass *last = &e->passes[e->n_passes - 1];
    sender->used = items_at + (size_t)(last->first_item + last->n_items) * sizeof *items; /* no more than is there */
}

void cuda_begin(struct backend *backend, const struct batch *batch) {
    struct cuda *cuda = (struct cuda *)backend;
    struct flight *flight = &cuda->flights[cuda->n_begun % 2];
    assert(batch->n_rows >= 1 && batch->n_rows <= cuda->options.max_rows);
    assert(batch->n_seqs <= cuda->options.max_seqs && batch->n_logits <= cuda->options.max_logits);
    cuda_submit(cuda);
    assert(cuda->n_begun - cuda->n_ended <= (unsigned)backend->runs_ahead);
    struct sender sender = {.cuda = cuda};
    cuda->batch = flight->batch = batch;
    cuda->stage = "begin";
    cuda->fault_row = -1;
    cuda_keep(cuda, cuda->driver.context_use(cuda->card.context), "cuCtxSetCurrent");
    send_rows(&sender);
    send_attention(&sender);
    send_expanded(&sender);
    int result =
        cuda->driver.copy_in((cuda_address)(uintptr_t)cuda->scratch.step, flight->staging, sender.used, cuda->stream);
    cuda_keep(cuda, result, "sending the batch");
    result = cuda->driver.fill((cuda_address)(uintptr_t)cuda->scratch.fault, 0xff, sizeof *flight->fault, cuda->stream);
    cuda_keep(cuda, result, "clearing the fault word");
    cuda->link.failure.code = 0;
    cuda->link.is_used = cuda->link.rows && batch->n_rows >= cuda->link.rows;
    if (cuda->offload.cpu && !cuda->offload.is_shared) cuda_offload_begin(&cuda->offload, batch);
    cuda_graph_begin(cuda);
    cuda->n_begun++;
}

/* Copies what lies on the card to the host, some time after the kernels before it. */
static void bring(struct cuda *cuda, void *to, const void *from, size_t bytes, const char *what) {
    if (cuda->failure.code || bytes == 0) return;
    cuda_keep(cuda, cuda->driver.copy_out(to, (cuda_address)(uintptr_t)from, bytes, cuda->stream), what);
}

/* The logits of rows without a pick: as many at once as lie side by side. */
static void bring_logits(struct cuda *cuda) {
    const struct batch *b = cuda->batch;
    size_t vocab = (size_t)cuda->model->vocab;
    for (int i = 0, n; i < b->n_logits; i += n) {
        bool picked = b->pick && b->pick[i].wanted;
        for (n = 1; i + n < b->n_logits && (b->pick && b->pick[i + n].wanted) == picked;) n++;
        if (picked) continue;
        bring(cuda, cuda->logits + (size_t)i * vocab, cuda->scratch.logits + (size_t)i * vocab,
              (size_t)n * vocab * sizeof(float), "reading the logits");
    }
}

void cuda_submit(struct cuda *cuda) {
    if (cuda->n_submitted == cuda->n_begun) return;
    struct flight *flight = &cuda->flights[cuda->n_submitted++ % 2];
    const struct batch *b = flight->batch;
    cuda->stage = "recorded step";
    cuda_graph_end(cuda);
    cuda->stage = "end";
    bring_logits(cuda);
    if (b->pick) {
        bring(cuda, flight->picked, cuda->scratch.picked, (size_t)b->n_logits * sizeof(int32_t), "reading the tokens");
    }
    bring(cuda, flight->fault, cuda->scratch.fault, sizeof *flight->fault, "reading the fault word");
    if (!cuda->failure.code) cuda_keep(cuda, cuda->driver.event_record(flight->done, cuda->stream), "ending a step");
}
