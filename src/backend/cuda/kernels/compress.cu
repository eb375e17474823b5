/* V4's and V4.1's compressed rows: src/backend/cpu/compress.c says what they are. A thread has a channel and goes through its sequence's
 * rows in order, some of which it loads ahead; so all bits are those of any other chunks. */
#include "device.cuh"
#include "../params_hybrid.h"

enum { ROWS_AHEAD = 8 };

/* One value of a row being made: softmax of the gates so far, as a running one. */
struct running {
    float max, sum, acc;
};

/* What a token adds to its own window's row, and to that of the next. */
struct token {
    float gate[2], value[2];
};

/* A channel of a sequence. */
struct walk {
    const struct compress_params *p;
    const struct compress_part *part;
    struct seq_rows seq;
    int channel, width;
    struct running own, next;
};

DEVICE void clear(struct running *r) {
    r->max = -INFINITY;
    r->sum = r->acc = 0;
}

/* A gate that is NaN makes a row that is. */
DEVICE void add(struct running *r, float gate, float value) {
    int larger = gate > r->max;
    float factor = expf(larger ? r->max - gate : gate - r->max), keep = larger ? factor : 1, share = larger ? 1 : factor;
    r->max = larger ? gate : r->max;
    r->sum = r->sum * keep + share;
    r->acc = r->acc * keep + value * share;
}

/* A token's place in its window: ratios are powers of two. */
DEVICE int place_of(const struct walk *w, int pos) {
    return pos & (w->p->ratio - 1);
}

/* The channel's sums in the near part `back` pages before a row's own. */
DEVICE float *sums_of(const struct walk *w, int row, int back) {
    size_t place = (size_t)w->p->near[(size_t)row * (size_t)w->p->near_pages + (size_t)back];
    float *sums = (float *)(w->p->near_cache + place * w->p->near_bytes + w->p->sums_at);
    return sums + w->part->state_at + w->channel;
}

DEVICE void load_running(struct running *r, const float *sums, int dim) {
    r->max = sums[0];
    r->sum = sums[dim];
    r->acc = sums[2 * dim];
}
DEVICE void store_running(const struct running *r, float *sums, int dim) {
    sums[0] = r->max;
    sums[dim] = r->sum;
    sums[2 * dim] = r->acc;
}

/* From where the sequence's last step left it. */
DEVICE void begin_walk(struct walk *w, const int overlaps) {
    clear(&w->own);
    clear(&w->next);
    if (w->seq.first_pos == 0) return;
    const float *sums = sums_of(w, w->seq.first_row, w->seq.first_pos % PAGE_TOKENS == 0);
    load_running(&w->own, sums, w->part->dim);
    if (overlaps) load_running(&w->next, sums + 3 * w->part->dim, w->part->dim);
}

DEVICE void load_token(const struct walk *w, int i, struct token *t, const int overlaps) {
    size_t at = (size_t)(w->seq.first_row + i) * (size_t)w->width + (size_t)w->channel;
    int own = overlaps ? w->part->dim : 0;
    const float *bias = w->part->bias;
    if (bias) bias += place_of(w, w->seq.first_pos + i) * w->width + w->channel;
    t->gate[0] = w->part->gates[at + own] + (bias ? bias[own] : 0);
    t->value[0] = w->part->values[at + own];
    if (!overlaps) return;
    t->gate[1] = w->part->gates[at] + bias[0];
    t->value[1] = w->part->values[at];
}

/* One token; where its window ends, the row takes the place of the token's own values. */
DEVICE void step_walk(struct walk *w, int i, const struct token *t, const int overlaps) {
    int row = w->seq.first_row + i, pos = w->seq.first_pos + i, place = place_of(w, pos);
    if (place == 0) {
        w->own = w->next;
        clear(&w->next);
    }
    add(&w->own, t->gate[0], t->value[0]);
    if (overlaps) add(&w->next, t->gate[1], t->value[1]);
    if (place == w->p->ratio - 1) {
        w->part->values[(size_t)row * (size_t)w->width + (size_t)w->channel] = divide(w->own.acc, w->own.sum);
    }
    if ((pos + 1) % PAGE_TOKENS && i + 1 < w->seq.n_rows) return;
    float *sums = sums_of(w, row, 0);
    store_running(&w->own, sums, w->part->dim);
    if (overlaps) store_running(&w->next, sums + 3 * w->part->dim, w->part->dim);
}

DEVICE void walk_rows(struct walk *w, const int overlaps) {
    begin_walk(w, overlaps);
    for (int first = 0; first < w->seq.n_rows; first += ROWS_AHEAD) {
        struct token tokens[ROWS_AHEAD];
        UNROLL
        for (int i = 0; i < ROWS_AHEAD; i++) {
            if (first + i < w->seq.n_rows) load_token(w, first + i, &tokens[i], overlaps);
        }
        UNROLL
        for (int i = 0; i < ROWS_AHEAD; i++) {
            if (first + i < w->seq.n_rows) step_walk(w, first + i, &tokens[i], overlaps);
        }
    }
}

KERNEL(compress_sums, compress_params) {
    struct walk w;
    int blocks = p.part[0].blocks + p.part[1].blocks, block = BLOCK % blocks, second = block >= p.part[0].blocks;
    w.p = &p;
    w.part = &p.part[second];
    w.channel = (second ? block - p.part[0].blocks : block) * BLOCK_THREADS + THREAD;
    w.width = p.overlaps ? 2 * w.part->dim : w.part->dim;
    after_previous();
    w.seq = p.seqs[BLOCK / blocks];
    if (w.channel >= w.part->dim) return;
    if (p.overlaps) {
        walk_rows(&w, 1);
    } else {
        walk_rows(&w, 0);
    }
}
