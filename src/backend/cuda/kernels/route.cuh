/* backend/cuda/kernels/route.cuh - which experts each row goes to: fp32 logits, scores, top-k of every kind of gate, and the
 * rows sorted by expert. Includes: device.cuh. */
#ifndef MOEBIUS_CUDA_ROUTE_CUH
#define MOEBIUS_CUDA_ROUTE_CUH

#include "device.cuh"

/* A routing block's shared memory. */
struct route_scratch {
    float choice[BLOCK_WARPS][MAX_EXPERTS], rank[BLOCK_WARPS][MAX_GROUPS];
    uint32_t count[MAX_EXPERTS];
    int first[MAX_EXPERTS], items[MAX_EXPERTS], first_item[MAX_EXPERTS];
};

enum {
    ROUTE_ROWS = 8,
    ROUTE_STEPS = 4,
    GATE_GREEDY = 0,
    GATE_GROUPED = 1,
    GATE_SIGMOID = 2,
    GATE_SOFTPLUS = 3
}; /* gate_kind as in model/model.h */

DEVICE struct floats4 router_weights(const struct route_params *p, size_t at, const int is_bf16) {
    struct floats4 out;
    if (!is_bf16) return *(const struct floats4 *)((const float *)p->router + at);
    struct pair bits = *(const struct pair *)((const uint16_t *)p->router + at);
    UNROLL
    for (int i = 0; i < 4; i++) out.v[i] = bf16_value((uint16_t)(bits.v[i / 2] >> (16 * (i % 2))));
    return out;
}

/* sum and squares += columns [k, k + 4) of each of ROUTE_STEPS times 128 columns. All loads of a row are on their way before the first
 * is waited for: nothing else hides how long they take, and the choice waits for this. */
DEVICE void route_columns(const struct route_params *p, int expert, int first, int n, int k, float *sum, float *squares,
                          const int is_bf16) {
    struct floats4 w[ROUTE_STEPS], gain[ROUTE_STEPS], x[ROUTE_STEPS];
    UNROLL
    for (int s = 0; s < ROUTE_STEPS; s++) {
        int at = min_int(k + s * 128, p->hidden - 4); /* past the end: not used */
        w[s] = router_weights(p, (size_t)expert * (size_t)p->hidden + (size_t)at, is_bf16);
        gain[s] = *(const struct floats4 *)(p->gain + at);
    }
    UNROLL
    for (int i = 0; i < ROUTE_ROWS; i++) {
        if (i && i >= n) continue; /* there is a first row */
        UNROLL
        for (int s = 0; s < ROUTE_STEPS; s++) {
            size_t row = (size_t)(first + i) * (size_t)p->hidden;
            x[s] = *(const struct floats4 *)(p->x + row + (size_t)min_int(k + s * 128, p->hidden - 4));
        }
        UNROLL
        for (int s = 0; s < ROUTE_STEPS; s++) {
            if (k + s * 128 >= p->hidden) continue;
            UNROLL
            for (int j = 0; j < 4; j++) {
                squares[i] = fmaf(x[s].v[j], x[s].v[j], squares[i]);
                sum[i] = fmaf(x[s].v[j] * gain[s].v[j], w[s].v[j], sum[i]);
            }
        }
    }
}

/* Logits of one expert for up to 8 rows, a warp. hidden is a multiple of 4. */
DEVICE void route_logits(const struct route_params *p, int expert, int first) {
    float sum[ROUTE_ROWS], squares[ROUTE_ROWS];
    int n = min_int(p->n - first, ROUTE_ROWS);
    UNROLL
    for (int i = 0; i < ROUTE_ROWS; i++) sum[i] = squares[i] = 0;
    for (int k = LANE * 4; k < p->hidden; k += ROUTE_STEPS * 128) {
        if (p->router_is_bf16) {
            route_columns(p, expert, first, n, k, sum, squares, 1);
        } else {
            route_columns(p, expert, first, n, k, sum, squares, 0);
        }
    }
    UNROLL
    for (int i = 0; i < ROUTE_ROWS; i++) {
        if (i >= n) continue;
        float mean = divide(warp_sum(squares[i]), (float)p->hidden);
        float logit = warp_sum(sum[i]) * inverse_root(mean + p->eps);
        if (LANE) continue;
        p->score[(size_t)(first + i) * (size_t)p->experts + (size_t)expert] = logit;
        if (!is_finite(logit)) note_fault(p->fault, p->fault_key, first + i);
    }
}

/* The best value not yet taken: larger, else earlier. Every lane gets it; -1 if there is none. */
struct best {
    float value;
    int index;
};
DEVICE struct best better(struct best a, struct best b) {
    if (b.index < 0) return a;
    if (a.index < 0 || b.value > a.value || (!(a.value > b.value) && b.index < a.index)) return b;
    return a;
}
DEVICE int take_best(float *values, int n) {
    struct best mine = {0, -1};
    for (int i = LANE; i < n; i += 32) {
        struct best here = {values[i], i};
        if (here.value != -INFINITY) mine = better(mine, here);
    }
    UNROLL
    for (int step = 16; step > 0; step /= 2) {
        struct best other;
        other.value = shuffle_xor_f32(mine.value, step);
        other.index = shuffle_xor_i32(mine.index, step);
        mine = better(mine, other);
    }
    warp_barrier();
    if (LANE == 0 && mine.index >= 0) values[mine.index] = -INFINITY; /* taken */
    warp_barrier();
    return mine.index;
}

/* The square root of log(1 + exp(x)), where exp does not overflow. */
DEVICE float root_softplus(float x) {
    return sqrtf(fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))));
}

/* Logits to scores, in place. */
DEVICE void route_scores(const struct route_params *p, float *score) {
    int n = p->experts;
    if (p->gate_kind == GATE_SIGMOID) {
        for (int i = LANE; i < n; i += 32) score[i] = divide_roughly(1.0f, 1.0f + expf(-score[i]));
        return;
    }
    if (p->gate_kind == GATE_SOFTPLUS) {
        for (int i = LANE; i < n; i += 32) score[i] = root_softplus(score[i]);
        return;
    }
    float max = -INFINITY, sum = 0;
    for (int i = LANE; i < n; i += 32) max = fmaxf(max, score[i]);
    max = warp_max(max);
    for (int i = LANE; i < n; i += 32) sum += score[i] = expf(score[i] - max);
    sum = warp_sum(sum);
    for (int i = LANE; i < n; i += 32) score[i] = divide(score[i], sum);
}

/* What a group is ranked by: its best expert, or (sigmoid) the sum of its best two. */
DEVICE float rank_group(const struct route_params *p, const float *choice, int group) {
    int size = p->experts / p->groups;
    float first = -INFINITY, second = -INFINITY;
    for (int i = group * size; i < (group + 1) * size; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return p->gate_kind == GATE_SIGMOID ? first + second : first;
}

/* Takes the experts of every group but the best out of the choice. */
DEVICE void limit_groups(const struct route_params *p, float *choice, float *rank) {
    int size = p->experts / p->groups;
    for (int g = LANE; g < p->groups; g += 32) rank[g] = rank_group(p, choice, g);
    warp_barrier();
    for (int i = 0; i < p->top_groups; i++) take_best(rank, p->groups);
    for (int i = LANE; i < p->experts; i += 32) {
        if (rank[i / size] != -INFINITY) choice[i] = -INFINITY;
    }
    warp_barrier();
}

/* What the table lists for the row's token; NULL: there is no table. */
DEVICE const int32_t *listed_experts(const struct route_params *p, int row) {
    if (!p->table) return 0;
    int token = p->token[row];
    if (token < 0) token = p->picked[-1 - token];
    return p->table + (size_t)token * (size_t)p->top_k;
}

/* One row's experts, a warp. `choice` [experts] and `rank` [groups] are the warp's own shared memory. */
DEVICE void choose_row(const struct route_params *p, int row, float *choice, float *rank) {
    float *score = p->score + (size_t)row * (size_t)p->experts;
    int32_t *id = p->id + (size_t)row * (size_t)p->top_k;
    float *weight = p->weight + (size_t)row * (size_t)p->top_k, sum = 0;
    const int32_t *listed = listed_experts(p, row);
    route_scores(p, score);
    for (int i = LANE; i < p->experts; i += 32) choice[i] = score[i] + (p->bias ? p->bias[i] : 0);
    warp_barrier();
    if (p->groups > 1) limit_groups(p, choice, rank);
    float mine = 0;
    for (int i = 0; i < p->top_k; i++) {
        int best = listed ? listed[i] : max_int(take_best(choice, p->experts), 0); /* all NaN: noted as a fault */
        float value = score[best];                            /* the bias takes part in choosing only */
        sum += value;
        if (LANE != i) continue;
        mine = value;
        id[i] = best;
    }
    if (LANE < p->top_k) weight[LANE] = mine * divide_roughly(p->routed_scale, p->norm_topk ? sum + 1e-20f : 1.0f);
    warp_barrier();
}

/* Each row's place for its slots, ascending by expert. `place` is where its pair went in the sorted list. */
DEVICE void order_slots(const struct route_params *p, int row, int slot, int place) {
    const int32_t *id = p->id + (size_t)row * (size_t)p->top_k;
    int rank = 0;
    for (int j = 0; j < p->top_k; j++) rank += id[j] < id[slot] || (id[j] == id[slot] && j < slot);
    size_t at = (size_t)row * (size_t)p->top_k + (size_t)rank;
    p->at[at] = place;
    p->at_weight[at] = p->weight[(size_t)row * (size_t)p->top_k + (size_t)slot];
}

/* first[e] = sum of n[0 .. e); one warp. Returns the sum of all. */
DEVICE int scan_counts(const int *n, int *first, int experts) {
    int carry = 0;
    for (int base = 0; base < experts; base += 32) {
        int e = base + LANE, own = e < experts ? n[e] : 0, sum = own;
        for (int step = 1; step < 32; step *= 2) {
            int below = shuffle_up_i32(sum, step);
            if (LANE >= step) sum += below;
        }
        if (e < experts) first[e] = carry + sum - own;
        int total = sum; /* lane 31's, to all */
        for (int step = 1; step < 32; step *= 2) total = max_int(total, shuffle_xor_i32(total, step));
        carry += total;
    }
    return carry;
}

/* How many pairs and work items each expert has, and where they start: one block, from count[]. */
DEVICE void place_experts(const struct route_params *p, struct route_scratch *s, int tell) {
    for (int e = THREAD; e < p->experts; e += BLOCK_THREADS) s->items[e] = ceil_div_int((int)s->count[e], p->item_rows);
    barrier();
    if (WARP == 0) {
        scan_counts((const int *)s->count, s->first, p->experts);
        int total = scan_counts(s->items, s->first_item, p->experts);
        if (LANE == 0 && tell) *p->n_items = total;
    }
    barrier();
}

DEVICE void list_items(const struct route_params *p, const struct route_scratch *s, int e) {
    for (int i = 0; i < s->items[e]; i++) {
        struct expert_item item = {e, s->first[e] + i * p->item_rows, 0, 0};
        item.n = min_int(p->item_rows, s->first[e] + (int)s->count[e] - item.first);
        p->items[s->first_item[e] + i] = item;
    }
}

/* Puts the pairs [begin, end) that are of expert e into the sorted list from `at` on. */
DEVICE void place_pairs(const struct route_params *p, int e, int begin, int end, int at) {
    for (int i = begin; i < end; i++) {
        if (p->id[i] != e) continue;
        p->pair_row[at] = i / p->top_k;
        order_slots(p, i / p->top_k, i % p->top_k, at++);
    }
}

/* Sorts few (row, slot) pairs by expert, then row: one block, a thread an expert. */
DEVICE void list_experts(const struct route_params *p, struct route_scratch *s) {
    int pairs = p->n * p->top_k;
    for (int e = THREAD; e < p->experts; e += BLOCK_THREADS) {
        uint32_t n = 0;
        for (int i = 0; i < pairs; i++) n += p->id[i] == e;
        s->count[e] = n;
    }
    barrier();
    place_experts(p, s, 1);
    for (int e = THREAD; e < p->experts; e += BLOCK_THREADS) {
        place_pairs(p, e, 0, pairs, s->first[e]);
        list_items(p, s, e);
    }
}

/* The same for many pairs: a block an expert. Each counts everything, and places its own. */
DEVICE void list_one_expert(const struct route_params *p, struct route_scratch *s, int e) {
    int pairs = p->n * p->top_k, step = ceil_div_int(pairs, BLOCK_THREADS), own = 0;
    int begin = min_int(THREAD * step, pairs), end = min_int(begin + step, pairs);
    int *before = (int *)s->choice[0], *mine = (int *)s->choice[1];
    for (int i = THREAD; i < p->experts; i += BLOCK_THREADS) s->count[i] = 0;
    barrier();
    for (int i = begin; i < end; i++) {
        atomic_add_u32(&s->count[p->id[i]], 1);
        own += p->id[i] == e;
    }
    mine[THREAD] = own;
    barrier();
    place_experts(p, s, e == 0);
    if (WARP == 0) scan_counts(mine, before, BLOCK_THREADS);
    barrier();
    place_pairs(p, e, begin, end, s->first[e] + before[THREAD]);
    if (THREAD == 0) list_items(p, s, e);
}

/* Rows first, first + step and so on, a warp each. */
DEVICE void choose_rows(const struct route_params *p, struct route_scratch *s, int first, int step) {
    for (int row = first + WARP; row < p->n; row += step) choose_row(p, row, s->choice[WARP], s->rank[WARP]);
}

/* Router block b of a launch: 8 experts x 8 rows; the last one to finish chooses for all rows. */
DEVICE void route_block(const struct route_params *p, struct route_scratch *scratch, int b) {
    int expert_blocks = ceil_div_int(p->experts, BLOCK_WARPS);
    int expert = b % expert_blocks * BLOCK_WARPS + WARP;
    if (expert < p->experts) route_logits(p, expert, b / expert_blocks * ROUTE_ROWS);
    if (!p->choose || !arrive_last(p->arrived, (uint32_t)p->blocks)) return;
    choose_rows(p, scratch, 0, BLOCK_WARPS);
    thread_fence();
    barrier();
    list_experts(p, scratch);
    if (p->listed) tell(p->listed);
}

#endif
