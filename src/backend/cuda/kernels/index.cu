/* The lightning indexer: which `topk` of the keys of the cache a row attends to. A key's score is the sum over heads of weight *
 * max(q k, 0); the largest win, and of equal ones those at the lowest positions: what backend/cpu/attn_index.c computes. A query is the
 * sum of two bf16, so products are as good as those of keys with fp32 to 2^-17, and choices differ where scores are all but equal. V4.1's
 * queries and keys are rounded to few bits: their products are exact. */
#include "index_key.cuh"

/* --- V3.2: keys and queries of a step ------------------------------------------------------------------------------------- */

/* Pair i is i and i + rope / 2. */
DEVICE void rotate_halves(const struct index_rows_params *p, int row, int i, float *values) {
    int half = p->rope / 2;
    const float *r = p->rotation + ((size_t)row * (size_t)half + (size_t)i) * 2;
    float a = values[i], b = values[half + i];
    values[i] = a * r[0] - b * r[1];
    values[half + i] = a * r[1] + b * r[0];
}

/* A LayerNorm of the row's key, by a warp. */
DEVICE void norm_key(const struct index_rows_params *p, int row, float *key) {
    int dim = p->keys.dim;
    const float *from = p->k + (size_t)row * (size_t)dim;
    float sum = 0, squares = 0;
    for (int i = LANE; i < dim; i += 32) sum += from[i];
    float mean = divide(warp_sum(sum), (float)dim);
    for (int i = LANE; i < dim; i += 32) squares = fmaf(from[i] - mean, from[i] - mean, squares);
    float variance = divide(warp_sum(squares), (float)dim);
    if (!is_finite(variance) && LANE == 0) note_fault(p->fault, p->fault_key, row);
    float factor = inverse_root(variance + 1e-6f);
    for (int i = LANE; i < dim; i += 32) key[i] = (from[i] - mean) * factor * p->k_norm[i] + p->k_bias[i];
}

KERNEL(index_rows, index_rows_params) {
    SHARED float key[MAX_INDEX_DIM];
    after_previous();
    int row = BLOCK, pos = p.pos[row], pairs = p.rope / 2;
    if (WARP == 0) {
        norm_key(&p, row, key);
        warp_barrier();
        for (int i = LANE; i < pairs; i += 32) rotate_halves(&p, row, i, key);
        warp_barrier();
        store_index_key(&p.keys, p.page[row], pos % PAGE_TOKENS, key);
    }
    if (pos < p.topk) return;
    for (int i = THREAD; i < p.heads * pairs; i += BLOCK_THREADS) {
        size_t head = (size_t)row * (size_t)p.heads + (size_t)(i / pairs);
        rotate_halves(&p, row, i % pairs, p.q + head * (size_t)p.keys.dim);
    }
}

/* --- which keys are looked at --------------------------------------------------------------------------------------------- */

/* Blocks of keys that a row's choice is narrowed to; NULL: it looks at all that it sees. */
DEVICE const int32_t *candidates_of(const struct index_params *p, int row, int seen) {
    if (!p->is_narrowed || ceil_div_int(seen, p->block_keys) <= p->blocks) return NULL;
    return p->candidate + (size_t)row * (size_t)p->blocks;
}

DEVICE int keys_scored(const struct index_params *p, const int32_t *blocks, int seen) {
    if (!blocks) return seen;
    return (p->blocks - 1) * p->block_keys + seen - (ceil_div_int(seen, p->block_keys) - 1) * p->block_keys;
}

/* Which key score number i is of. */
DEVICE int key_of(const struct index_params *p, const int32_t *blocks, int i) {
    return blocks ? blocks[i / p->block_keys] * p->block_keys + i % p->block_keys : i;
}

/* --- scores --------------------------------------------------------------------------------------------------------------- */

enum { INDEX_STEPS = MAX_INDEX_DIM / 16, WARP_KEYS = INDEX_TILE / BLOCK_WARPS };

struct index_block {
    const struct index_params *p;
    int row, n, stride;    /* n: keys that are scored; stride: values between rows of shared memory */
    const int32_t *blocks; /* which these are; NULL: the first n */
    int tiles;             /* of 16 heads */
    uint16_t *high, *low;  /* [tiles * 16][stride] queries */
    uint16_t *keys;        /* [INDEX_TILE][stride] */
    float *weight;         /* [tiles * 16] */
};

DEVICE void split_queries(const struct index_block *b) {
    const struct index_params *p = b->p;
    int dim = p->keys.dim, pieces = dim / 4, heads = b->tiles * 16;
    for (int i = THREAD; i < heads * pieces; i += BLOCK_THREADS) {
        int head = i / pieces, c = i % pieces * 4;
        struct floats4 q = {{0, 0, 0, 0}};
        struct pair high, low;
        if (head < p->heads) {
            size_t at = (size_t)b->row * (size_t)p->heads + (size_t)head;
            q = *(const struct floats4 *)(p->q + at * (size_t)dim + (size_t)c);
        }
        UNROLL
        for (int j = 0; j < 2; j++) {
            high.v[j] = pack_bf16(q.v[2 * j], q.v[2 * j + 1]);
            low.v[j] = pack_bf16(q.v[2 * j] - bf16_value((uint16_t)high.v[j]),
                                 q.v[2 * j + 1] - bf16_value((uint16_t)(high.v[j] >> 16)));
        }
        *(struct pair *)(b->high + head * b->stride + c) = high;
        *(struct pair *)(b->low + head * b->stride + c) = low;
    }
    for (int head = THREAD; head < heads; head += BLOCK_THREADS) {
        b->weight[head] = head < p->heads ? p->weight[(size_t)b->row * (size_t)p->heads + (size_t)head] : 0;
    }
}

DEVICE int page_of_key(const struct index_block *b, int key) {
    const struct index_params *p = b->p;
    return p->page_table[p->first_page[b->row] + (key >> p->keys.page_shift)];
}
/* Its place there. */
DEVICE int place_of_key(const struct index_block *b, int key) {
    return key & ((1 << b->p->keys.page_shift) - 1);
}

/* Four e4m3 as bf16, which is exact. */
DEVICE struct pair widen_fp8(uint32_t word) {
    float v[4];
    UNROLL
    for (int j = 0; j < 4; j++) {
        uint32_t byte = word >> (8 * j);
        v[j] = bits_float((byte & 0x80) << 24 | (byte & 0x7f) << 20) * 0x1p120f;
    }
    struct pair out = {{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])}};
    return out;
}

/* Of scores [k0, k0 + INDEX_TILE), zeros past the last one: V4.1's keys, with their scales. */
DEVICE void load_csa2_keys(const struct index_block *b, int k0) {
    const struct index_keys *k = &b->p->keys;
    int pieces = k->dim / 4;
    for (int i = THREAD; i < INDEX_TILE * pieces; i += BLOCK_THREADS) {
        int t = i / pieces, c = i % pieces * 4;
        struct pair values = {{0, 0}};
        if (k0 + t < b->n) {
            int key = key_of(b->p, b->blocks, k0 + t);
            values = csa2_key_values(index_key_at(k, page_of_key(b, key), place_of_key(b, key)), k->dim, c);
        }
        *(struct pair *)(b->keys + t * b->stride + c) = values;
    }
}

/* The same of all others, 16 bytes at a time; fp8 without their scales. */
DEVICE void load_keys(const struct index_block *b, int k0) {
    const struct index_keys *k = &b->p->keys;
    int each = k->fp8 ? 16 : 8, pieces = k->dim / each;
    for (int i = THREAD; i < INDEX_TILE * pieces; i += BLOCK_THREADS) {
        int t = i / pieces, piece = i % pieces;
        struct quad bits = {{0, 0, 0, 0}};
        if (k0 + t < b->n) {
            int key = key_of(b->p, b->blocks, k0 + t);
            bits = *(const struct quad *)(index_key_at(k, page_of_key(b, key), place_of_key(b, key)) + piece * 16);
        }
        uint16_t *to = b->keys + t * b->stride + piece * each;
        if (!k->fp8) {
            *(struct quad *)to = bits;
            continue;
        }
        UNROLL
        for (int j = 0; j < 4; j++) *(struct pair *)(to + 4 * j) = widen_fp8(bits.v[j]);
    }
}

/* A warp's 16 keys as operands of the matrix unit. */
DEVICE void load_operands(const struct index_block *b, uint32_t (*key)[2][2]) {
    const uint16_t *from = b->keys + (WARP * WARP_KEYS + LANE / 4) * b->stride + LANE % 4 * 2;
    UNROLL
    for (int i = 0; i < INDEX_STEPS; i++) {
        if (i * 16 >= b->p->keys.dim) continue;
        UNROLL
        for (int j = 0; j < 2; j++) {
            key[i][j][0] = *(const uint32_t *)(from + j * 8 * b->stride + i * 16);
            key[i][j][1] = *(const uint32_t *)(from + j * 8 * b->stride + i * 16 + 8);
        }
    }
}

/* sum[j][c]: of key 8 j + 2 (lane % 4) + c over heads lane / 4 and lane / 4 + 8 of all tiles. */
DEVICE void score_keys(const struct index_block *b, uint32_t (*key)[2][2], float (*sum)[2]) {
    for (int tile = 0; tile < b->tiles; tile++) {
        int at = (tile * 16 + LANE % 16) * b->stride + LANE / 16 * 8;
        float dots[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        UNROLL
        for (int i = 0; i < INDEX_STEPS; i++) {
            uint32_t high[4], low[4];
            if (i * 16 >= b->p->keys.dim) continue;
            load_tiles(high, b->high + at + i * 16);
            load_tiles(low, b->low + at + i * 16);
            UNROLL
            for (int j = 0; j < 2; j++) {
                mma_bf16(dots[j], low, key[i][j][0], key[i][j][1]);
                mma_bf16(dots[j], high, key[i][j][0], key[i][j][1]);
            }
        }
        UNROLL
        for (int i = 0; i < 8; i++) { /* a NaN stays one */
            float dot = dots[i / 4][i % 4], weight = b->weight[tile * 16 + LANE / 4 + i % 4 / 2 * 8];
            sum[i / 4][i % 2] = fmaf(weight, dot < 0 ? 0 : dot, sum[i / 4][i % 2]);
        }
    }
}

/* Scores of a warp's 16 keys from k0 on, to out[key]. */
DEVICE void score_warp(const struct index_block *b, int k0, float *out) {
    const struct index_keys *k = &b->p->keys;
    uint32_t key[INDEX_STEPS][2][2];
    float sum[2][2] = {{0, 0}, {0, 0}};
    load_operands(b, key);
    score_keys(b, key, sum);
    UNROLL
    for (int i = 0; i < 4; i++) {
        float total = sum[i / 2][i % 2];
        UNROLL
        for (int step = 4; step < 32; step *= 2) total += shuffle_xor_f32(total, step);
        int at = k0 + i / 2 * 8 + LANE % 4 * 2 + i % 2;
        if (LANE >= 4 || at >= b->n) continue;
        /* the scale is positive: it may as well come last */
        if (k->fp8 && !k->csa2) total *= *index_scale_at(k, page_of_key(b, at), place_of_key(b, at));
        out[at] = total;
    }
}

KERNEL(index_score, index_params) {
    DYNAMIC_SHARED(uint16_t, shared);
    struct index_block b;
    after_previous();
    int wave_row = BLOCK % p.n_rows, first = BLOCK / p.n_rows * INDEX_CHUNK;
    b.p = &p;
    b.row = p.first_row + wave_row;
    int seen = (p.pos[b.row] + 1) / p.keys.ratio;
    b.blocks = candidates_of(&p, b.row, seen);
    b.n = keys_scored(&p, b.blocks, seen);
    if (seen <= p.topk || first >= b.n) return;
    b.stride = p.keys.dim + INDEX_PAD;
    b.tiles = ceil_div_int(p.heads, 16);
    b.high = shared;
    b.low = b.high + b.tiles * 16 * b.stride;
    b.keys = b.low + b.tiles * 16 * b.stride;
    b.weight = (float *)(b.keys + INDEX_TILE * b.stride);
    float *score = p.score + (size_t)wave_row * (size_t)p.stride;
    split_queries(&b);
    int end = min_int(first + INDEX_CHUNK, b.n);
    for (int k0 = first; k0 < end; k0 += INDEX_TILE) {
        if (index_is_csa2(&p.keys)) {
            load_csa2_keys(&b, k0);
        } else {
            load_keys(&b, k0);
        }
        barrier();
        if (k0 + WARP * WARP_KEYS < end) score_warp(&b, k0 + WARP * WARP_KEYS, score);
        barrier();
    }
}

/* --- the choice ----------------------------------------------------------------------------------------------------------- */

enum { THREAD_BINS = RANK_BINS / BLOCK_THREADS };

struct choice {
    uint32_t count[RANK_BINS];
    int warp[BLOCK_WARPS], equal[BLOCK_WARPS];
    uint32_t digit;
    int left; /* keys that are still to be chosen among those with this digit */
};
PARAMS_SIZE(choice, CHOICE_SHARED);

/* Numbers that order as the scores do. */
DEVICE uint32_t rank_of(float score) {
    uint32_t bits = float_bits(score + 0.0f); /* -0 becomes 0 */
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

DEVICE int warp_sum_int(int value) {
    UNROLL
    for (int step = 16; step > 0; step /= 2) value += shuffle_xor_i32(value, step);
    return value;
}
/* Of this lane and those before it. */
DEVICE int warp_scan_int(int value) {
    UNROLL
    for (int step = 1; step < 32; step *= 2) {
        int before = shuffle_up_i32(value, step);
        if (LANE >= step) value += before;
    }
    return value;
}

/* How many ranks that begin as `found` have which next digit. Returns whether all scores of this thread are finite. */
DEVICE int count_digits(struct choice *s, const float *score, int n, uint32_t found, uint32_t known, int shift,
                        uint32_t mask) {
    int finite = 1;
    for (int i = THREAD; i < RANK_BINS; i += BLOCK_THREADS) s->count[i] = 0;
    barrier();
    for (int at = THREAD * 4; at < n; at += BLOCK_THREADS * 4) {
        struct floats4 four = *(const struct floats4 *)(score + at);
        UNROLL
        for (int j = 0; j < 4; j++) {
            if (at + j >= n) continue;
            uint32_t rank = rank_of(four.v[j]);
            finite &= is_finite(four.v[j]);
            if ((rank & known) == found) atomic_add_u32(&s->count[rank >> shift & mask], 1);
        }
    }
    barrier();
    return finite;
}

/* The digit of the k-th largest: a thread looks at 8 of them, from the largest down. */
DEVICE void find_digit(struct choice *s, int k) {
    int top = RANK_BINS - 1 - THREAD * THREAD_BINS, sum = 0;
    UNROLL
    for (int i = 0; i < THREAD_BINS; i++) sum += (int)s->count[top - i];
    int before = warp_scan_int(sum);
    if (LANE == 31) s->warp[WARP] = before;
    barrier();
    before -= sum;
    for (int w = 0; w < WARP; w++) before += s->warp[w];
    if (before < k && before + sum >= k) {
        int digit = top;
        for (; before + (int)s->count[digit] < k; digit--) before += (int)s->count[digit];
        s->digit = (uint32_t)digit;
        s->left = k - before;
    }
    barrier();
}

/* A rank of the four that a lane has: larger ones count 1 << 16, equal ones 1. */
DEVICE int weigh(const float *score, int at, int end, uint32_t least, uint32_t *rank) {
    struct floats4 four = {{0, 0, 0, 0}};
    int sum = 0;
    if (at < end) four = *(const struct floats4 *)(score + at);
    UNROLL
    for (int j = 0; j < 4; j++) {
        rank[j] = rank_of(four.v[j]);
        if (at + j < end) sum += rank[j] > least ? 1 << 16 : rank[j] == least;
    }
    return sum;
}

/* Keys with larger ranks and the first `equal` with just `least`, in ascending order. A warp has a range of the keys: it counts, and
 * when all have, it writes behind those before it. */
DEVICE void write_chosen(struct choice *s, const float *score, int n, uint32_t least, int equal, int32_t *chosen) {
    enum { STEP = 32 * 4 };
    int range = ceil_div_int(n, BLOCK_WARPS * STEP) * STEP, first = WARP * range, end = min_int(n, first + range);
    int more = 0, same = 0;
    uint32_t rank[4];
    for (int at = first + LANE * 4; at < end; at += STEP) {
        int sum = weigh(score, at, end, least, rank);
        more += sum >> 16;
        same += sum & 0xffff;
    }
    more = warp_sum_int(more);
    same = warp_sum_int(same);
    if (LANE == 0) {
        s->warp[WARP] = more;
        s->equal[WARP] = same;
    }
    barrier();
    more = same = 0;
    for (int w = 0; w < WARP; w++) {
        more += s->warp[w];
        same += s->equal[w];
    }
    for (int base = first; base < end; base += STEP) {
        int at = base + LANE * 4, sum = weigh(score, at, end, least, rank), before = warp_scan_int(sum) - sum;
        int m = more + (before >> 16), e = same + (before & 0xffff);
        UNROLL
        for (int j = 0; j < 4; j++) {
            if (at + j >= end || rank[j] < least) continue;
            if (rank[j] > least || e < equal) chosen[m + min_int(e, equal)] = at + j;
            m += rank[j] > least;
            e += rank[j] == least;
        }
        sum = warp_sum_int(sum);
        more += sum >> 16;
        same += sum & 0xffff;
    }
}

/* The places of the k largest of n scores. The k-th largest rank is found digit by digit. Returns whether all that this thread saw are
 * finite. */
DEVICE int choose_largest(struct choice *s, const float *score, int n, int k, int32_t *chosen) {
    int left = k, finite = 1;
    uint32_t found = 0, known = 0;
    for (int shift = 21; shift >= 0; shift -= shift > 10 ? 11 : 10) { /* 21, 10, 0 */
        uint32_t mask = shift ? RANK_BINS - 1 : (1 << 10) - 1;
        finite &= count_digits(s, score, n, found, known, shift, mask);
        find_digit(s, left);
        found |= s->digit << shift;
        known |= mask << shift;
        left = s->left;
    }
    write_chosen(s, score, n, found, left, chosen);
    return finite;
}

/* A block a row. */
KERNEL(index_choose, index_params) {
    DYNAMIC_SHARED(struct choice, s);
    after_previous();
    int row = p.first_row + BLOCK, seen = (p.pos[row] + 1) / p.keys.ratio;
    if (seen <= p.topk) return;
    const float *score = p.score + (size_t)BLOCK * (size_t)p.stride;
    const int32_t *blocks = candidates_of(&p, row, seen);
    int32_t *chosen = p.chosen + (size_t)row * (size_t)p.topk;
    if (!choose_largest(s, score, keys_scored(&p, blocks, seen), p.topk, chosen)) note_fault(p.fault, p.fault_key, row);
    if (!blocks) return;
    barrier(); /* places of scores become keys */
    for (int i = THREAD; i < p.topk; i += BLOCK_THREADS) chosen[i] = key_of(&p, blocks, chosen[i]);
}

/* Scores of keys become those of their blocks, in place: the best of each, and the newest above all. What is written lies before
 * all that is still to be read. */
DEVICE void score_blocks(const struct index_params *p, float *score, int seen) {
    int blocks = ceil_div_int(seen, p->block_keys);
    for (int first = 0; first < blocks; first += BLOCK_THREADS) {
        int block = first + THREAD, begin = block * p->block_keys, end = min_int(begin + p->block_keys, seen);
        float best = block == blocks - 1 ? INFINITY : -INFINITY;
        if (block < blocks - 1) {
            for (int i = begin; i < end; i++) best = fmaxf(best, score[i]);
        }
        barrier();
        if (block < blocks) score[block] = best;
        barrier();
    }
}

/* Which blocks later choices look at, of rows that see more of them; after index_choose. A block a row. */
KERNEL(index_narrow, index_params) {
    DYNAMIC_SHARED(struct choice, s);
    after_previous();
    int row = p.first_row + BLOCK, seen = (p.pos[row] + 1) / p.keys.ratio;
    if (seen <= p.topk || ceil_div_int(seen, p.block_keys) <= p.blocks) return;
    float *score = p.score + (size_t)BLOCK * (size_t)p.stride;
    score_blocks(&p, score, seen);
    choose_largest(s, score, ceil_div_int(seen, p.block_keys), p.blocks, p.candidate + (size_t)row * (size_t)p.blocks);
}
