/* backend/cuda/kernels/pick.cuh - the token after a row of logits, to the bit as sched/sample.c chooses it: the same operations
 * make the weights, and weights are added up as whole numbers, so that many threads may do it. Includes: device.cuh.
 *
 * Filters keep a head of one order, weight falling and then id rising; so a filter's result is the last token of the head. It
 * is found by its bits, ten at a time, in histograms. */
#ifndef MOEBIUS_CUDA_PICK_CUH
#define MOEBIUS_CUDA_PICK_CUH

#include "device.cuh"

enum { PICK_BINS = 1024, PICK_BIN_BITS = 10, PICK_PIECES = 128 };

/* The block's shared memory. */
struct pick_scratch {
    unsigned long long bins[PICK_BINS], coarse[32], pieces[PICK_PIECES], total, left;
    float most[BLOCK_THREADS], floor;
    int32_t bin, piece, found;
    struct pick_best best[BLOCK_WARPS];
};
typedef char pick_scratch_fits[sizeof(struct pick_scratch) <= PICK_SHARED ? 1 : -1];

/* The last token that is kept. */
struct pick_cut {
    float weight;
    int32_t id;
};

/* What a row is asked for: how many tokens of the head, what those of at least `floor` weigh, or how many weigh exactly
 * `tie`. */
enum { PICK_COUNT, PICK_MASS, PICK_TIES };
struct pick_question {
    struct pick_cut cut;
    float tie;
    int32_t kind;
    unsigned long long floor;
};

/* e^x for x <= 0: weight_of() of sched/sample.c, operation by operation. */
DEVICE float pick_weight(float x) {
    float inside = x > -87.0f ? x : 0;
    float n = plus(plus(times(inside, 1.44269504f), 12582912.0f), -12582912.0f);
    float r = plus(plus(inside, -times(n, 0.693359375f)), -times(n, -2.12194440e-4f));
    float p = 1.98756915e-4f;
    p = plus(times(p, r), 1.39819995e-3f);
    p = plus(times(p, r), 8.33345205e-3f);
    p = plus(times(p, r), 4.16657962e-2f);
    p = plus(times(p, r), 1.66666657e-1f);
    p = plus(times(p, r), 0.5f);
    p = plus(plus(times(p, times(r, r)), r), 1.0f);
    return x > -87.0f ? times(p, bits_float((uint32_t)((int32_t)n + 127) << 23)) : 0;
}

DEVICE unsigned long long pick_mass(float weight) {
    return (unsigned long long)(weight * 1099511627776.0f); /* 2^40 */
}

DEVICE unsigned long long pick_answer(const struct pick_question *q, float weight, int id) {
    int kept = weight > q->cut.weight || (weight == q->cut.weight && id <= q->cut.id);
    if (!kept || weight <= 0) return 0;
    if (q->kind != PICK_MASS) return q->kind == PICK_COUNT || weight == q->tie;
    unsigned long long mass = pick_mass(weight);
    return mass < q->floor ? 0 : mass;
}

DEVICE unsigned long long shuffle_u64(unsigned long long value, int lanes, int up) {
    int low = (int)(uint32_t)value, high = (int)(uint32_t)(value >> 32);
    low = up ? shuffle_up_i32(low, lanes) : shuffle_xor_i32(low, lanes);
    high = up ? shuffle_up_i32(high, lanes) : shuffle_xor_i32(high, lanes);
    return (unsigned long long)(uint32_t)high << 32 | (uint32_t)low;
}

/* Tokens of a piece: a multiple of 32. */
DEVICE int piece_tokens(int vocab) {
    return 32 * ceil_div_int(vocab, 32 * PICK_PIECES);
}

/* Answers piece by piece, into s->pieces; returns their sum. */
DEVICE unsigned long long ask(const struct pick_question *q, const float *weight, int vocab, struct pick_scratch *s) {
    int tokens = piece_tokens(vocab), pieces = ceil_div_int(vocab, tokens);
    for (int piece = WARP; piece < pieces; piece += BLOCK_WARPS) {
        unsigned long long sum = 0;
        int end = min_int((piece + 1) * tokens, vocab);
        for (int i = piece * tokens + LANE; i < end; i += 32) sum += pick_answer(q, weight[i], i);
        for (int step = 16; step > 0; step /= 2) sum += shuffle_u64(sum, step, 0);
        if (LANE == 0) s->pieces[piece] = sum;
    }
    barrier();
    if (THREAD == 0) {
        s->total = 0;
        for (int i = 0; i < pieces; i++) s->total += s->pieces[i];
    }
    barrier();
    return s->total;
}

/* After ask(): the first token with which the answers of all ids up to it reach `target`, which all together do. */
DEVICE int find_token(const struct pick_question *q, const float *weight, int vocab, unsigned long long target,
                      struct pick_scratch *s) {
    int tokens = piece_tokens(vocab), pieces = ceil_div_int(vocab, tokens), own = tokens / 32;
    if (THREAD == 0) {
        s->piece = 0;
        s->left = target;
        while (s->piece < pieces - 1 && s->left > s->pieces[s->piece]) s->left -= s->pieces[s->piece++];
        s->found = 0;
    }
    barrier();
    if (WARP == 0) {
        int first = s->piece * tokens + LANE * own, end = min_int(first + own, vocab);
        unsigned long long sum = 0, all, left = s->left;
        for (int i = first; i < end; i++) sum += pick_answer(q, weight[i], i);
        all = sum; /* of this lane and those before it */
        for (int step = 1; step < 32; step *= 2) {
            unsigned long long before = shuffle_u64(all, step, 1);
            if (LANE >= step) all += before;
        }
        if (all - sum < left && left <= all) {
            left -= all - sum;
            for (int i = first; i < end; i++) {
                unsigned long long here = pick_answer(q, weight[i], i);
                if (left <= here) {
                    s->found = i;
                    break;
                }
                left -= here;
            }
        }
    }
    barrier();
    return s->found;
}

/* The bin in which the answers, from the highest bin down, reach s->left; s->left is then what it has to give. */
DEVICE void choose_bin(struct pick_scratch *s) {
    if (THREAD < 32) {
        unsigned long long sum = 0;
        for (int i = 0; i < PICK_BINS / 32; i++) sum += s->bins[THREAD * (PICK_BINS / 32) + i];
        s->coarse[THREAD] = sum;
    }
    barrier();
    if (THREAD == 0) {
        int coarse = 31, last;
        while (coarse > 0 && s->left > s->coarse[coarse]) s->left -= s->coarse[coarse--];
        last = coarse * (PICK_BINS / 32);
        s->bin = last + PICK_BINS / 32 - 1;
        while (s->bin > last && s->left > s->bins[s->bin]) s->left -= s->bins[s->bin--];
    }
    barrier();
}

/* The cut that keeps the fewest best tokens of which the answers reach `target`, which all together do. */
DEVICE struct pick_cut cut_at(struct pick_question q, const float *weight, int vocab, unsigned long long target,
                              struct pick_scratch *s) {
    uint32_t bits = 0;
    if (THREAD == 0) s->left = target;
    for (int shift = 2 * PICK_BIN_BITS; shift >= 0; shift -= PICK_BIN_BITS) { /* no weight has a bit above these 30 */
        for (int i = THREAD; i < PICK_BINS; i += BLOCK_THREADS) s->bins[i] = 0;
        barrier();
        for (int i = THREAD; i < vocab; i += BLOCK_THREADS) {
            unsigned long long answer = pick_answer(&q, weight[i], i);
            uint32_t own = float_bits(weight[i]);
            if (answer && own >> (shift + PICK_BIN_BITS) == bits) {
                atomic_add_u64(&s->bins[own >> shift & (PICK_BINS - 1)], answer);
            }
        }
        barrier();
        choose_bin(s);
        bits = bits << PICK_BIN_BITS | (uint32_t)s->bin;
    }
    struct pick_cut cut = {bits_float(bits), 0};
    unsigned long long each = q.kind == PICK_MASS ? pick_mass(cut.weight) : 1, nth = (s->left + each - 1) / each;
    q.kind = PICK_TIES; /* of those that weigh the same, the lowest ids */
    q.tie = cut.weight;
    ask(&q, weight, vocab, s);
    cut.id = find_token(&q, weight, vocab, nth, s);
    return cut;
}

/* A weight that the k-th best token has or exceeds: the k-th best of what each thread has best. 0 where that says nothing. It
 * spares the histograms nearly the whole vocabulary. */
DEVICE float floor_of_count(const float *weight, int vocab, int k, struct pick_scratch *s) {
    float mine = 0;
    int rank = 0;
    if (k > BLOCK_THREADS) return 0;
    for (int i = THREAD; i < vocab; i += BLOCK_THREADS) mine = fmaxf(mine, weight[i]);
    s->most[THREAD] = mine;
    barrier();
    for (int i = 0; i < BLOCK_THREADS; i++) rank += s->most[i] > mine || (s->most[i] == mine && i < THREAD);
    if (rank == k - 1) s->floor = mine;
    barrier();
    return s->floor;
}

/* A draw from the row; its logits become weights. The whole block. */
DEVICE int draw_token(const struct pick_row *row, float *logits, int vocab, float largest, struct pick_scratch *s) {
    struct pick_question q = {{row->min_p, 0x7fffffff}, 0, PICK_COUNT, 0}; /* the best weighs 1, so min-p is a weight */
    unsigned long long total, target;
    for (int i = THREAD; i < vocab; i += BLOCK_THREADS) {
        logits[i] = pick_weight(divide_exactly(logits[i] - largest, row->temperature));
    }
    barrier();
    if (row->top_k > 0 && row->top_k < vocab) {
        target = (unsigned long long)row->top_k;
        q.cut.weight = fmaxf(q.cut.weight, floor_of_count(logits, vocab, row->top_k, s));
        if (ask(&q, logits, vocab, s) > target) q.cut = cut_at(q, logits, vocab, target, s);
    }
    q.kind = PICK_MASS;
    if (row->top_p < 1) {
        total = ask(&q, logits, vocab, s);
        target = (unsigned long long)ceil((double)row->top_p * (double)total);
        q.floor = (total - target) / (unsigned)vocab; /* all that are lighter weigh less together than may go away */
        q.cut = cut_at(q, logits, vocab, target, s);
        q.floor = 0;
    }
    total = ask(&q, logits, vocab, s);
    target = (total >> 32) * row->random + ((total & 0xffffffffu) * row->random >> 32) + 1;
    return find_token(&q, logits, vocab, target, s);
}

/* The larger; of equal ones the lower id. NaN is never better. */
DEVICE struct pick_best better_pick(struct pick_best a, struct pick_best b) {
    return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

/* The best of what each thread has, in all of them. */
DEVICE struct pick_best block_best(struct pick_best mine, struct pick_scratch *s) {
    for (int step = 16; step > 0; step /= 2) {
        struct pick_best other;
        other.value = shuffle_xor_f32(mine.value, step);
        other.id = shuffle_xor_i32(mine.id, step);
        mine = better_pick(mine, other);
    }
    if (LANE == 0) s->best[WARP] = mine;
    barrier();
    for (int i = 0; i < BLOCK_WARPS; i++) mine = better_pick(mine, s->best[i]);
    barrier();
    return mine;
}

/* Block `part` of a row finds the best of its part, the last one of all, and that one draws if there is to be a draw. */
DEVICE void pick_token(const struct pick_params *p, int row, int part, struct pick_scratch *s) {
    const struct pick_row *how = &p->row[row];
    float *logits = p->logits + (size_t)row * (size_t)p->vocab;
    struct pick_best *parts = p->best + row * PICK_BLOCKS, best = {-INFINITY, 0}, none = best;
    int tokens = ceil_div_int(p->vocab, PICK_BLOCKS), end = min_int((part + 1) * tokens, p->vocab);
    for (int i = part * tokens + THREAD; i < end; i += BLOCK_THREADS) {
        struct pick_best here = {logits[i], i};
        best = better_pick(best, here);
    }
    best = block_best(best, s);
    if (THREAD == 0) parts[part] = best;
    if (!arrive_last(&p->arrived[row], PICK_BLOCKS)) return;
    best = block_best(THREAD < PICK_BLOCKS ? parts[THREAD] : none, s);
    int id = best.id;
    if (how->temperature != 0 && is_finite(best.value)) id = draw_token(how, logits, p->vocab, best.value, s);
    if (THREAD == 0) p->picked[row] = id;
}

#endif
