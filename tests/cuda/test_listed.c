/* Sparse attention beside plain C: scores of the indexer's keys and the choice among them, and attention to listed rows of V3.2's, V4's
 * and V4.1's caches. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cpu/cpu.h"
#include "bare_card.h"
#include "model/format.h"
#include "survey.h"

enum { PAGES = 24, MOST_KEYS = 1024 };

static struct cuda card;
static void *taken[48];
static int n_taken;

static void *take(size_t bytes) {
    return taken[n_taken++] = bare_card_memory(&card, bytes ? bytes : 16);
}
static void give_all_back(void) {
    while (n_taken > 0) card.driver.memory_free((cuda_address)(uintptr_t)taken[--n_taken]);
}
static void run(enum cuda_kernel kernel, int blocks, size_t shared_bytes, const void *params) {
    cuda_launch(&card, kernel, blocks, shared_bytes, params);
    if (card.failure.code || card.driver.stream_wait(card.stream)) card_is_lost(card.failure.message);
}

static uint64_t seed = 11;
static uint32_t draw(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}
static float uniform(float low, float high) {
    return low + (high - low) * (float)draw() / 2147483648.0f;
}
static float *random_floats(size_t n) {
    float *values = take(n * sizeof *values);
    for (size_t i = 0; i < n; i++) values[i] = uniform(-1, 1);
    return values;
}
static float bf16_at(const uint8_t *at, int i) {
    uint16_t bits;
    memcpy(&bits, at + 2 * (size_t)i, 2);
    return bf16_to_f32(bits);
}
static float float_at(const uint8_t *at, int i) {
    float value;
    memcpy(&value, at + 4 * (size_t)i, 4);
    return value;
}

/* --- the indexer ---------------------------------------------------------------------------------------------------------- */

struct index_case {
    int heads, dim, ratio, fp8, topk;
    int csa2; /* V4.1's keys, which fp8 ones are in their own way */
};

/* Rows of the batch: the first sees just what it attends to. Row r's pages begin at r * PAGES, all in another order. */
enum { ROWS = 4 };

static void place_pages(int32_t *table, int32_t *first_page, int n) {
    for (int row = 0; row < n; row++) {
        first_page[row] = row * PAGES;
        for (int i = 0; i < PAGES; i++) table[row * PAGES + i] = (i * 7 + 5 * row) % PAGES;
    }
}

/* Bytes of a page: keys, fp8 scales; 16 more than that, so that strides are looked at. */
static void fill_keys(const struct index_case *c, struct index_keys *keys) {
    const size_t in_page = (size_t)(64 / c->ratio), dim = (size_t)c->dim;
    *keys = (struct index_keys){.ratio = c->ratio, .dim = c->dim, .fp8 = c->fp8, .csa2 = c->csa2};
    keys->page_shift = c->ratio == 1 ? 6 : c->ratio == 2 ? 5 : 4;
    keys->page_bytes = in_page * (c->fp8 ? dim + 4 : 2 * dim) + 16;
    keys->data = take(PAGES * keys->page_bytes);
    for (size_t page = 0; page < PAGES; page++) {
        uint8_t *at = keys->data + page * keys->page_bytes;
        for (size_t i = 0; i < in_page && c->csa2 && c->fp8; i++) {
            float key[MAX_INDEX_DIM];
            for (size_t k = 0; k < dim; k++) key[k] = uniform(-1, 1);
            csa2_pack_key(at + i * cache_key_bytes(c->dim, KV_CSA2), key, c->dim);
        }
        if (c->csa2 && c->fp8) continue;
        for (size_t i = 0; i < in_page * dim; i++) {
            uint16_t half = f32_to_bf16(uniform(-1, 1));
            if (c->fp8) at[i] = f32_to_e4m3(uniform(-448, 448));
            if (!c->fp8) memcpy(at + 2 * i, &half, 2);
        }
        for (size_t i = 0; i < in_page && c->fp8; i++) {
            float scale = uniform(0.001f, 0.004f);
            memcpy(at + in_page * dim + 4 * i, &scale, 4);
        }
    }
}

static float key_value(const struct index_params *p, int row, int key, int i) {
    const struct index_keys *k = &p->keys;
    const int in_page = 64 / k->ratio, at = key % in_page;
    const int32_t page = p->page_table[p->first_page[row] + key / in_page];
    const uint8_t *base = k->data + (size_t)page * k->page_bytes;
    if (!k->fp8) return bf16_at(base, at * k->dim + i);
    if (k->csa2) {
        float values[MAX_INDEX_DIM];
        csa2_unpack_key(base + (size_t)at * cache_key_bytes(k->dim, KV_CSA2), k->dim, values);
        return values[i];
    }
    return e4m3_to_f32(base[at * k->dim + i]) * float_at(base + in_page * k->dim, at);
}

static double score_of(const struct index_params *p, int row, int key, double *size) {
    double sum = 0;
    *size = 0;
    for (int h = 0; h < p->heads; h++) {
        const float *q = p->q + ((size_t)row * (size_t)p->heads + (size_t)h) * (size_t)p->keys.dim;
        const double weight = (double)p->weight[row * p->heads + h];
        double dot = 0, sizes = 0;
        for (int i = 0; i < p->keys.dim; i++) {
            const double product = (double)q[i] * (double)key_value(p, row, key, i);
            dot += product;
            sizes += fabs(product);
        }
        sum += weight * (dot < 0 ? 0 : dot);
        *size += fabs(weight) * sizes;
    }
    return sum;
}

/* Larger scores first, of equal ones the first. */
static const float *sorted_scores;
static int by_score(const void *a, const void *b) {
    const int x = *(const int32_t *)a, y = *(const int32_t *)b;
    const float one = sorted_scores[x], other = sorted_scores[y];
    return one > other ? -1 : one < other ? 1 : x < y ? -1 : x > y;
}
static int by_place(const void *a, const void *b) {
    const int x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

/* The topk best of n scores, ascending. */
static void choose_plainly(const float *score, int n, int topk, int32_t *chosen) {
    int32_t *keys = calloc((size_t)n, sizeof *keys);
    for (int key = 0; key < n; key++) keys[key] = key;
    sorted_scores = score;
    qsort(keys, (size_t)n, sizeof *keys, by_score);
    qsort(keys, (size_t)topk, sizeof *keys, by_place);
    memcpy(chosen, keys, (size_t)topk * sizeof *keys);
    free(keys);
}

static void check_choice(const struct index_params *p, int wave_row, const char *what) {
    const int row = p->first_row + wave_row, n = (p->pos[row] + 1) / p->keys.ratio;
    int32_t *want = calloc((size_t)p->topk, sizeof *want);
    const int32_t *found = p->chosen + (size_t)row * (size_t)p->topk;
    choose_plainly(p->score + (size_t)wave_row * (size_t)p->stride, n, p->topk, want);
    for (int i = 0; i < p->topk; i++) {
        if (want[i] == found[i]) continue;
        complain("%s: row %d, %d of %d keys, place %d: expected %d, found %d", what, row, p->topk, n, i, want[i],
                 found[i]);
        break;
    }
    free(want);
}

static struct index_params open_index(const struct index_case *c, const int32_t *pos) {
    struct index_params p = {.heads = c->heads, .topk = c->topk, .stride = MOST_KEYS, .n_rows = ROWS, .fault_key = 9};
    int32_t *table = take(ROWS * PAGES * 4), *first_page = take(ROWS * 4), *at = take(ROWS * 4);
    const size_t rows = ROWS, heads = (size_t)c->heads;
    place_pages(table, first_page, ROWS);
    memcpy(at, pos, ROWS * 4);
    fill_keys(c, &p.keys);
    p.q = random_floats(rows * heads * (size_t)c->dim);
    p.weight = random_floats(rows * heads);
    p.pos = at;
    p.first_page = first_page;
    p.page_table = table;
    p.score = random_floats(rows * MOST_KEYS);
    p.chosen = take(rows * (size_t)c->topk * 4);
    p.fault = take(8);
    *p.fault = ~0ull;
    return p;
}

static size_t score_bytes(const struct index_case *c) {
    const size_t heads = ((size_t)c->heads + 15) / 16 * 16;
    return (2 * heads + INDEX_TILE) * (size_t)(c->dim + INDEX_PAD) * 2 + heads * 4;
}

/* Rows from the second on, as in a second wave: what the first would write to stays as it is. */
static void check_index(const struct index_case *c) {
    const int32_t pos[ROWS] = {700, c->topk * c->ratio + c->ratio - 2, c->topk * c->ratio + c->ratio - 1,
                               c->ratio == 1 ? 777 : 1300};
    struct index_params p = open_index(c, pos);
    const float untouched = p.score[0];
    p.first_row = 1;
    p.n_rows = ROWS - 1;
    run(KERNEL_INDEX_SCORE, p.n_rows * 8, score_bytes(c), &p);
    run(KERNEL_INDEX_CHOOSE, p.n_rows, CHOICE_SHARED, &p);
    struct survey survey = {0};
    for (int row = 2; row < ROWS; row++) {
        for (int key = 0; key < (pos[row] + 1) / c->ratio; key += row == 2 ? 1 : 5) {
            double size, want = score_of(&p, row, key, &size);
            double found = (double)p.score[(size_t)(row - 1) * MOST_KEYS + (size_t)key];
            survey_add(&survey, (size_t)key, (size_t)row, want, found, 2e-5 * size + 1e-30);
        }
        check_choice(&p, row - 1, "index");
    }
    survey_tell(&survey, "scores of %d heads of %d, %s, %d tokens a key (a token is a row, a row a key)", c->heads,
                c->dim, c->fp8 ? "fp8" : "bf16", c->ratio);
    if (p.score[0] != untouched) complain("a row that attends to all it sees was scored");
    if (*p.fault != ~0ull) complain("a fault where all is finite");
    /* A key that is no number: those that see it fail, the others do not. */
    uint16_t nan = 0x7fff;
    uint8_t *at = p.keys.data + (size_t)p.page_table[p.first_page[3]] * p.keys.page_bytes;
    const float scale = NAN;
    if (c->fp8 && c->csa2) at[cache_key_bytes(c->dim, KV_CSA2) + (size_t)c->dim / 2] = 255;
    if (c->fp8 && !c->csa2) memcpy(at + (64 / c->ratio) * c->dim + 4, &scale, 4);
    if (!c->fp8) memcpy(at + 2 * c->dim, &nan, 2);
    p.first_row = 3;
    p.n_rows = 1;
    run(KERNEL_INDEX_SCORE, 8, score_bytes(c), &p);
    run(KERNEL_INDEX_CHOOSE, 1, CHOICE_SHARED, &p);
    if (*p.fault != ((unsigned long long)p.fault_key << 32 | 3)) complain("a score that is no number: no fault");
    give_all_back();
}

static void test_index(void **unused) {
    (void)unused;
    static const struct index_case cases[] = {
        {.heads = 16, .dim = 32, .ratio = 1, .fp8 = 0, .topk = 16},
        {.heads = 5, .dim = 48, .ratio = 1, .fp8 = 1, .topk = 100},
        {.heads = 20, .dim = 16, .ratio = 4, .fp8 = 1, .topk = 32},
        {.heads = 64, .dim = 128, .ratio = 4, .fp8 = 0, .topk = 200},
        {.heads = 5, .dim = 48, .ratio = 2, .fp8 = 1, .topk = 70, .csa2 = 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct index_case c = cases[i];
        check_index(&c);
    }
    no_complaints();
}

/* Ranges of equal scores, zeros of both signs, and numbers of every size; as many keys as are no multiple of anything. */
static void test_ties(void **unused) {
    (void)unused;
    static const int topks[] = {1, 17, 500, 1000};
    for (size_t t = 0; t < sizeof topks / sizeof *topks; t++) {
        const struct index_case c = {.heads = 1, .dim = 16, .ratio = 1, .topk = topks[t]};
        const int32_t pos[ROWS] = {1000, 1013, 1022, 1023};
        struct index_params p = open_index(&c, pos);
        for (int key = 0; key < MOST_KEYS; key++) {
            p.score[key] = draw() % 3 ? 0.0f : draw() % 2 ? -0.0f : uniform(-1, 1);
            p.score[MOST_KEYS + key] = (float)(draw() % 4) - 1.5f;
            p.score[2 * MOST_KEYS + key] = ldexpf(uniform(-1, 1), (int)(draw() % 250) - 125);
            p.score[3 * MOST_KEYS + key] = 1;
        }
        run(KERNEL_INDEX_CHOOSE, ROWS, CHOICE_SHARED, &p);
        for (int row = 0; row < ROWS; row++) check_choice(&p, row, "ties");
        if (*p.fault != ~0ull) complain("a fault where all is finite");
        give_all_back();
    }
    no_complaints();
}

/* As many keys as a row of a published model may see: more than the warps of a block look at in one step, and more equal ones than 16
 * bits count. */
static void test_long_rows(void **unused) {
    (void)unused;
    enum { LONG = 163840 };
    static const int32_t pos[ROWS] = {1024, 4100, 70000, LONG - 1};
    static const int topks[] = {512, 1024};
    for (size_t t = 0; t < sizeof topks / sizeof *topks; t++) {
        const struct index_case c = {.heads = 1, .dim = 16, .ratio = 1, .topk = topks[t]};
        struct index_params p = open_index(&c, pos);
        p.stride = LONG;
        p.score = take((size_t)ROWS * LONG * 4);
        for (int key = 0; key < LONG; key++) {
            p.score[key] = uniform(-1, 1);
            p.score[LONG + key] = (float)(draw() % 9);
            p.score[2 * LONG + key] = key % 1000 == 7 ? 2 : 1; /* 70 of them, and all others are equal */
            p.score[3 * LONG + key] = key < LONG / 2 ? 0 : ldexpf(uniform(-1, 1), (int)(draw() % 60) - 30);
        }
        run(KERNEL_INDEX_CHOOSE, ROWS, CHOICE_SHARED, &p);
        for (int row = 0; row < ROWS; row++) check_choice(&p, row, "long rows");
        if (*p.fault != ~0ull) complain("a fault where all is finite");
        give_all_back();
    }
    no_complaints();
}

/* V4.1: which blocks later choices look at, and these choices. Blocks of 7 keys, of which a row looks at 20; row 1 has just as many,
 * row 2's newest has one key, row 3's is full. */
static void check_narrowed(struct index_params *p, const struct index_case *c) {
    enum { SIZE = 7, CANDIDATES = 20 };
    float *blocks = calloc(MOST_KEYS, sizeof *blocks);
    int32_t want[CANDIDATES];
    for (int row = 0; row < ROWS; row++) {
        const int seen = (p->pos[row] + 1) / c->ratio, n = (seen + SIZE - 1) / SIZE;
        const int32_t *found = p->candidate + row * CANDIDATES;
        if (n <= CANDIDATES) continue;
        for (int b = 0; b < n; b++) {
            blocks[b] = b == n - 1 ? INFINITY : -INFINITY;
            for (int i = b * SIZE; i < (b + 1) * SIZE && i < seen; i++) {
                double size;
                blocks[b] = fmaxf(blocks[b], (float)score_of(p, row, i, &size));
            }
        }
        choose_plainly(blocks, n, CANDIDATES, want);
        if (memcmp(want, found, sizeof want)) complain("row %d: other candidates", row);
    }
    free(blocks);
}

static void check_narrow_choice(const struct index_params *p, const struct index_case *c, int row) {
    const int seen = (p->pos[row] + 1) / c->ratio, n = (seen + p->block_keys - 1) / p->block_keys;
    const int32_t *candidate = p->candidate + row * p->blocks, *found = p->chosen + row * p->topk;
    struct survey survey = {0};
    int32_t keys[MOST_KEYS], *want = calloc((size_t)p->topk, sizeof *want);
    int scored = 0;
    for (int key = 0; key < seen; key++) {
        bool is_in = n <= p->blocks;
        for (int b = 0; b < p->blocks && !is_in; b++) is_in = key / p->block_keys == candidate[b];
        if (is_in) keys[scored++] = key;
    }
    const float *score = p->score + (size_t)row * (size_t)p->stride;
    for (int i = 0; i < scored; i++) {
        double size, sum = score_of(p, row, keys[i], &size);
        survey_add(&survey, (size_t)i, (size_t)row, sum, (double)score[i], 2e-5 * size + 1e-30);
    }
    survey_tell(&survey, "scores of candidates' keys (a token is a row)");
    choose_plainly(score, scored, p->topk, want);
    for (int i = 0; i < p->topk; i++) {
        if (keys[want[i]] != found[i])
            complain("row %d, place %d: expected %d, found %d", row, i, keys[want[i]], found[i]);
    }
    free(want);
}

static void test_narrow(void **unused) {
    (void)unused;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        const struct index_case c = {.heads = 5, .dim = 48, .ratio = 1 + fp8, .fp8 = fp8, .topk = 30, .csa2 = 1};
        const int32_t pos[ROWS] = {300 * c.ratio, 140 * c.ratio - 1, 785 * c.ratio - 1,
                                   (777 - 7 * fp8 * 30) * c.ratio - 1};
        struct index_params p = open_index(&c, pos);
        p.candidate = take(ROWS * 20 * 4);
        p.blocks = 20;
        p.block_keys = 7;
        run(KERNEL_INDEX_SCORE, ROWS * 4, score_bytes(&c), &p);
        run(KERNEL_INDEX_CHOOSE, ROWS, CHOICE_SHARED, &p);
        run(KERNEL_INDEX_NARROW, ROWS, CHOICE_SHARED, &p);
        check_narrowed(&p, &c);
        p.is_narrowed = 1;
        run(KERNEL_INDEX_SCORE, ROWS, score_bytes(&c), &p); /* 140 keys at most: a chunk of each row */
        run(KERNEL_INDEX_CHOOSE, ROWS, CHOICE_SHARED, &p);
        for (int row = 0; row < ROWS; row++) check_narrow_choice(&p, &c, row);
        if (*p.fault != ~0ull) complain("a fault where all is finite");
        give_all_back();
    }
    no_complaints();
}

/* V3.2's keys of a step: normed, rotated, stored; and queries. */
enum { INDEX_HEADS = 3, INDEX_ROPE = 16, INDEX_TOPK = 20 };

static void finish_key(const struct index_rows_params *r, int row, double *key) {
    const int dim = r->keys.dim;
    const float *k = r->k + row * dim, *cs = r->rotation + row * INDEX_ROPE;
    double mean = 0, variance = 0;
    for (int i = 0; i < dim; i++) mean += (double)k[i] / dim;
    for (int i = 0; i < dim; i++) variance += pow((double)k[i] - mean, 2) / dim;
    for (int i = 0; i < dim; i++)
        key[i] = ((double)k[i] - mean) / sqrt(variance + 1e-6) * (double)r->k_norm[i] + (double)r->k_bias[i];
    for (int i = 0; i < INDEX_ROPE / 2; i++) {
        const double a = key[i], b = key[INDEX_ROPE / 2 + i], c = (double)cs[2 * i], d = (double)cs[2 * i + 1];
        key[i] = a * c - b * d;
        key[INDEX_ROPE / 2 + i] = a * d + b * c;
    }
}

/* The second head's queries; what is not rotated stays as it is. */
static void check_index_query(const struct index_rows_params *r, int row, const float *before) {
    const size_t at = (size_t)(row * INDEX_HEADS + 1) * (size_t)r->keys.dim;
    const float *cs = r->rotation + row * INDEX_ROPE;
    for (int i = 0; i < INDEX_ROPE + 1; i++) {
        const int pair = i % (INDEX_ROPE / 2);
        const float a = before[at + (size_t)pair], b = before[at + (size_t)(INDEX_ROPE / 2 + pair)];
        float want = before[at + (size_t)i];
        if (r->pos[row] >= INDEX_TOPK && i < INDEX_ROPE)
            want = i == pair ? a * cs[2 * pair] - b * cs[2 * pair + 1] : a * cs[2 * pair + 1] + b * cs[2 * pair];
        if (!(fabsf(r->q[at + (size_t)i] - want) <= 1e-6f))
            complain("query, row %d, value %d: expected %g, found %g", row, i, (double)want,
                     (double)r->q[at + (size_t)i]);
    }
}

static void check_index_rows(int dim, int fp8) {
    const struct index_case c = {INDEX_HEADS, dim, 1, fp8, INDEX_TOPK, 0};
    const int32_t pos[ROWS] = {19, 20, 63, 200};
    const size_t n = (size_t)dim, queries = ROWS * INDEX_HEADS * n;
    struct index_params p = open_index(&c, pos);
    float *k = random_floats(ROWS * n), *q = random_floats(queries), *before = calloc(queries, sizeof *before);
    int32_t *page = take(ROWS * 4);
    for (int row = 0; row < ROWS; row++) page[row] = p.page_table[p.first_page[row] + pos[row] / 64];
    memcpy(before, q, queries * sizeof *q);
    k[2 * n + 1] = INFINITY;
    const struct index_rows_params r = {.keys = p.keys,
                                        .k = k,
                                        .q = q,
                                        .k_norm = random_floats(n),
                                        .k_bias = random_floats(n),
                                        .rotation = random_floats((size_t)ROWS * INDEX_ROPE),
                                        .pos = p.pos,
                                        .page = page,
                                        .fault = p.fault,
                                        .heads = INDEX_HEADS,
                                        .rope = INDEX_ROPE,
                                        .topk = INDEX_TOPK,
                                        .fault_key = 5};
    run(KERNEL_INDEX_ROWS, ROWS, 0, &r);
    if (*p.fault != (5ull << 32 | 2)) complain("a key that is not finite: no fault");
    for (int row = 0; row < ROWS; row++) {
        double key[MAX_INDEX_DIM];
        check_index_query(&r, row, before);
        if (row == 2) continue;
        finish_key(&r, row, key);
        for (int i = 0; i < dim; i++) {
            const double found = (double)key_value(&p, row, pos[row], i);
            if (!(fabs(found - key[i]) <= (fp8 ? 0.07 : 0.005) * fabs(key[i]) + (fp8 ? 1e-3 : 1e-5)))
                complain("key of %d values, row %d, value %d: expected %g, found %g", dim, row, i, key[i], found);
        }
    }
    free(before);
    give_all_back();
}

static void test_index_rows(void **unused) {
    (void)unused;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_index_rows(48, fp8);
        check_index_rows(128, fp8);
    }
    no_complaints();
}

/* --- attention ------------------------------------------------------------------------------------------------------------ */

struct listed_case {
    int kv_lora, rope, heads;
    int ratio, topk, window; /* window 0: V3.2 */
    int fp8;
    int csa2; /* V4.1's fp8 */
};
enum { LISTED_SPLITS = 4 };

static int smaller(int a, int b) {
    return a < b ? a : b;
}

static void fill_row(const struct listed_case *c, uint8_t *row, bool far) {
    const int scales = (c->kv_lora + 127) / 128, width = c->kv_lora + c->rope;
    float values[MAX_KV_LORA];
    if (c->csa2) {
        for (int i = 0; i < width; i++) values[i] = uniform(-1, 1);
        (far ? csa2_pack_compressed : csa2_pack_row)(row, values, width);
        return;
    }
    for (int i = 0; i < c->kv_lora + c->rope; i++) {
        const uint16_t half = f32_to_bf16(uniform(-1, 1));
        if (c->fp8 && i < c->kv_lora) {
            row[i] = f32_to_e4m3(uniform(-448, 448));
        } else {
            memcpy(c->fp8 ? row + c->kv_lora + 4 * scales + 2 * (i - c->kv_lora) : row + 2 * i, &half, 2);
        }
    }
    for (int i = 0; i < scales && c->fp8; i++) {
        const float scale = uniform(0.001f, 0.004f);
        memcpy(row + c->kv_lora + 4 * i, &scale, 4);
    }
}

static double row_value(const struct listed_case *c, const uint8_t *row, int i, bool far) {
    const int scales = (c->kv_lora + 127) / 128, width = c->kv_lora + c->rope;
    static float values[MAX_KV_LORA];
    if (c->csa2) {
        if (i == 0)
            (far ? csa2_unpack_compressed : csa2_unpack_row)(row, width, values); /* all that follow are this row's */
        return (double)values[i];
    }
    if (!c->fp8) return (double)bf16_at(row, i);
    if (i >= c->kv_lora) return (double)bf16_at(row + c->kv_lora + 4 * scales, i - c->kv_lora);
    return (double)bf16_to_f32(f32_to_bf16(e4m3_to_f32(row[i]) * float_at(row + c->kv_lora, i / 128)));
}

/* A row's list, built one by one as the CPU has it. */
static int list_rows(const struct listed_case *c, const struct listed_params *p, int row, const uint8_t **list) {
    const int pos = p->rows.pos[row], seen = c->ratio ? (pos + 1) / c->ratio : 0, far = smaller(seen, p->rows.topk);
    int n = 0;
    for (int i = 0; i < far; i++) {
        const int key = seen > far ? p->chosen[row * p->rows.topk + i] : i, last = key * c->ratio + c->ratio - 1;
        const int in_page = c->ratio < 64 ? 64 / c->ratio : 1;
        const int32_t page = p->attn.page_table[p->first_page[row] + last / 64];
        list[n++] = p->attn.cache + (size_t)page * p->page_bytes + (size_t)(last % 64 * in_page / 64) * p->far_bytes;
    }
    for (int t = pos + 1 - smaller(pos + 1, c->window); t <= pos; t++) {
        const int32_t place = p->near[row * p->near_pages + pos / 64 - t / 64];
        list[n++] = p->near_cache + (size_t)place * p->near_bytes + (size_t)(t % 64) * p->attn.row_bytes;
    }
    return n;
}

/* In every second column of a head. */
static void check_head(const struct listed_case *c, const struct listed_params *p, int row, int head,
                       const double *found) {
    static const uint8_t *list[2048];
    const int width = c->kv_lora + c->rope, n = list_rows(c, p, row, list), values = p->attn.kv_lora;
    const int far = n - smaller(p->rows.pos[row] + 1, c->window);
    const uint16_t *q = p->attn.q_latent + (size_t)(row * c->heads + head) * (size_t)width;
    double sum[576] = {0}, size[576] = {0}, total = 0;
    for (int i = 0; i < n; i++) {
        double score = 0;
        for (int j = 0; j < width; j++) score += (double)bf16_to_f32(q[j]) * row_value(c, list[i], j, i < far);
        const double weight = exp(score * (double)p->attn.scale);
        total += weight;
        for (int j = 0; j < values; j += 2) {
            sum[j] += weight * row_value(c, list[i], j, i < far);
            size[j] += weight * fabs(row_value(c, list[i], j, i < far));
        }
    }
    struct survey survey = {0};
    for (int j = 0; j < values; j += 2)
        survey_add(&survey, (size_t)j, (size_t)head, sum[j] / total, found[j], 0.004 * size[j] / total + 1e-5);
    survey_tell(&survey, "row %d, %d keys of %d values, ratio %d, window %d, %s, %d splits (a token is a head)", row, n,
                width, c->ratio, c->window, c->fp8 ? "fp8" : "bf16", p->rows.splits);
}

static struct listed_params open_listed(const struct listed_case *c, const int32_t *pos) {
    const int width = c->kv_lora + c->rope, values = c->window ? width : c->kv_lora;
    const size_t fp8_bytes = (size_t)(c->kv_lora + (c->kv_lora + 127) / 128 * 4 + 2 * c->rope + 15) / 16 * 16;
    const size_t row_bytes = c->csa2 ? cache_row_bytes(width, 0, KV_CSA2) : c->fp8 ? fp8_bytes : (size_t)width * 2;
    const size_t far_bytes = c->csa2 ? cache_compressed_bytes(width, 0, KV_CSA2) : row_bytes;
    const size_t near_pages = (size_t)(c->window + 63) / 64 + 1;
    const size_t in_page = c->ratio == 0   ? 0
                           : c->ratio < 64 ? 64 / (size_t)c->ratio
                                           : 1,
                 queries = ROWS * (size_t)c->heads;
    const size_t page_bytes = in_page * far_bytes + 32, near_bytes = 64 * row_bytes + 48;
    int32_t *table = take(ROWS * PAGES * 4), *first_page = take(ROWS * 4), *at = take(ROWS * 4);
    int32_t *slot_first = take(ROWS * 4), *slot_count = take(ROWS * 4), *near = take(ROWS * near_pages * 4);
    int32_t *chosen = take(ROWS * (size_t)smaller(c->topk, MOST_KEYS) * 4);
    uint16_t *q = take(queries * (size_t)width * 2);
    uint8_t *pages = take(PAGES * page_bytes), *near_cache = take(PAGES * near_bytes);
    place_pages(table, first_page, ROWS);
    memcpy(at, pos, ROWS * 4);
    for (size_t i = 0; i < queries * (size_t)width; i++) q[i] = f32_to_bf16(uniform(-1, 1));
    for (size_t i = 0; i < PAGES * in_page; i++)
        fill_row(c, pages + i / in_page * page_bytes + i % in_page * far_bytes, true);
    for (size_t i = 0; i < PAGES * 64; i++) fill_row(c, near_cache + i / 64 * near_bytes + i % 64 * row_bytes, false);
    for (int row = 0; row < ROWS; row++) {
        const int seen = c->ratio ? (pos[row] + 1) / c->ratio : 0;
        slot_first[row] = (ROWS - 1 - row) * LISTED_SPLITS;
        slot_count[row] = LISTED_SPLITS;
        for (size_t i = 0; i < near_pages; i++)
            near[(size_t)row * near_pages + i] = (int)(i * 5 + (size_t)row * 3) % PAGES;
        for (int i = 0, key = 0; seen > c->topk && i < c->topk; i++, key++) { /* skips seen - topk of them */
            if (key - i < seen - c->topk && draw() % 2) key++;
            chosen[row * c->topk + i] = key;
        }
    }
    return (struct listed_params){
        .attn = {.page_table = table,
                 .slot_first = slot_first,
                 .q_latent = q,
                 .cache = pages,
                 .partial = take(ROWS * LISTED_SPLITS * (size_t)c->heads * (size_t)(values + 2) * 4),
                 .row_bytes = row_bytes,
                 .heads = c->heads,
                 .kv_lora = values,
                 .rope = width - values,
                 .scale = 0.2f},
        .rows = {at, slot_first, slot_count, c->ratio, c->topk, c->window, 1},
        .first_page = first_page,
        .near = near,
        .chosen = chosen,
        .near_cache = near_cache,
        .page_bytes = page_bytes,
        .near_bytes = near_bytes,
        .far_bytes = far_bytes,
        .near_pages = (int32_t)near_pages,
        .scaled = c->kv_lora};
}

static size_t attn_bytes(const struct listed_params *p, int fp8) {
    const size_t row = (size_t)(p->attn.kv_lora + p->attn.rope + 8) * 2;
    const size_t scores = 2 * QUERY_TILE * (TOKEN_TILE + 4) + 3 * QUERY_TILE, weights = QUERY_TILE * (TOKEN_TILE + 8);
    return QUERY_TILE * row + TOKEN_TILE * (row + (fp8 ? p->attn.row_bytes : row)) + scores * 4 + weights * 2;
}

/* Slots of a head as one result: finished values. */
static void merge_slots(const struct listed_params *p, int row, int head, int slots, double *out) {
    const int values = p->attn.kv_lora;
    const size_t step = (size_t)p->attn.heads * (size_t)(values + 2);
    const float *part = p->attn.partial + (size_t)p->attn.slot_first[row] * step + (size_t)head * (size_t)(values + 2);
    double max = -INFINITY, sum = 0;
    for (int s = 0; s < slots; s++) max = fmax(max, (double)part[(size_t)s * step + (size_t)values]);
    for (int s = 0; s < slots; s++)
        sum += exp((double)part[(size_t)s * step + (size_t)values] - max) *
               (double)part[(size_t)s * step + (size_t)values + 1];
    for (int c = 0; c < values; c++) {
        out[c] = 0;
        for (int s = 0; s < slots; s++)
            out[c] += exp((double)part[(size_t)s * step + (size_t)values] - max) *
                      (double)part[(size_t)s * step + (size_t)c] / sum;
    }
}

static void launch_listed(const struct listed_case *c, const struct listed_params *p) {
    const int tiles = (c->heads + QUERY_TILE - 1) / QUERY_TILE;
    memset(p->attn.partial, 0xff, (size_t)(ROWS * LISTED_SPLITS * c->heads * (p->attn.kv_lora + 2)) * 4);
    run(c->csa2  ? KERNEL_LISTED_CSA2
        : c->fp8 ? KERNEL_LISTED_FP8
                 : KERNEL_LISTED_BF16,
        ROWS * tiles * p->rows.splits, attn_bytes(p, c->fp8) + LISTED_SHARED, p);
}

/* The last row takes another form of attention. */
static void check_listed(const struct listed_case *c, const int32_t *pos, bool is_long) {
    struct listed_params p = open_listed(c, pos);
    ((int32_t *)(uintptr_t)p.rows.slot_count)[ROWS - 1] = 0;
    for (p.rows.splits = 1; p.rows.splits <= LISTED_SPLITS; p.rows.splits += LISTED_SPLITS - 1) {
        launch_listed(c, &p);
        for (int row = 0; row < ROWS - 1; row++) {
            static const uint8_t *list[2048];
            double found[576];
            const int n = list_rows(c, &p, row, list), splits = p.rows.splits == 1 ? 1 : (n + 255) / 256;
            for (int head = row % 2; head < c->heads; head += is_long ? 9 : 3) {
                merge_slots(&p, row, head, splits, found);
                check_head(c, &p, row, head, found);
            }
        }
        if (!isnan(p.attn.partial[(size_t)p.attn.slot_first[ROWS - 1] * (size_t)(c->heads * (p.attn.kv_lora + 2))]))
            complain("a row that is attended to elsewhere was written");
    }
    give_all_back();
}

static void test_listed(void **unused) {
    (void)unused;
    static const int32_t near_start[ROWS] = {0, 62, 130, 5}, further[ROWS] = {127, 900, 1300, 1023};
    static const struct listed_case cases[] = {
        {48, 16, 20, 1, 40, 0, 0, 0},           {48, 16, 5, 1, 530, 0, 1, 0},  /* V3.2: chosen tokens */
        {48, 16, 20, 4, 290, 70, 1, 0},         {48, 16, 5, 4, 60, 128, 0, 0}, /* V4: chosen rows and a window */
        {48, 16, 5, 128, INT32_MAX, 128, 0, 0}, {112, 16, 3, 0, 0, 100, 1, 0}, {64, 16, 5, 1, 270, 70, 1, 1}, /* V4.1 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct listed_case c = cases[i];
        check_listed(&c, near_start, false);
        check_listed(&c, further, true);
    }
    no_complaints();
}

/* The widest rows. */
static void test_wide_rows(void **unused) {
    (void)unused;
    static const int32_t pos[ROWS] = {40, 300, 90, 1};
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_listed(&(struct listed_case){512, 64, 2, 1, 280, 0, fp8, 0}, pos, true);
        check_listed(&(struct listed_case){448, 64, 2, 4, 16, 64, fp8, 0}, pos, true);
    }
    check_listed(&(struct listed_case){448, 64, 2, 2, 16, 64, 1, 1}, pos, true);
    no_complaints();
}

/* A list of all tokens has the bits of attention without a list. */
static void test_all_tokens(void **unused) {
    (void)unused;
    static const int32_t pos[ROWS] = {3, 255, 300, 700};
    for (int fp8 = 0; fp8 < 2; fp8++) {
        const struct listed_case c = {48, 16, 20, 1, 1024, 0, fp8, 0};
        struct listed_params p = open_listed(&c, pos);
        const size_t values = (size_t)(ROWS * LISTED_SPLITS * c.heads * (p.attn.kv_lora + 2));
        float *listed = calloc(values, sizeof *listed);
        struct attn_item *items = take(ROWS * 2 * sizeof *items);
        p.page_bytes = 64 * p.attn.row_bytes; /* as attn.cu has it */
        launch_listed(&c, &p);
        memcpy(listed, p.attn.partial, values * sizeof *listed);
        memset(p.attn.partial, 0xff, values * sizeof *listed);
        for (int i = 0; i < ROWS * 2; i++) {
            items[i] =
                (struct attn_item){.first_row = i / 2, .n_rows = 1, .first_pos = pos[i / 2], .query = i % 2 * 16};
            items[i].pages = p.first_page[i / 2];
            items[i].split1 = pos[i / 2] / SPLIT_TOKENS + 1;
        }
        p.attn.items = items;
        run(fp8 ? KERNEL_ATTN_FP8 : KERNEL_ATTN_BF16, ROWS * 2, attn_bytes(&p, fp8), &p.attn);
        if (memcmp(listed, p.attn.partial, values * sizeof *listed))
            complain("other bits than without a list (fp8 %d)", fp8);
        free(listed);
        give_all_back();
    }
    no_complaints();
}

static int close_card(void **unused) {
    (void)unused;
    cuda_card_close(&card.driver, &card.card);
    cuda_driver_close(&card.driver);
    return 0;
}
static int open_card(void **unused) {
    (void)unused;
    bare_card_open(&card, "listed");
    return 0;
}

int main(int n, char **arguments) {
    struct CMUnitTest tests[] = {
        cmocka_unit_test(test_index),      cmocka_unit_test(test_ties),   cmocka_unit_test(test_long_rows),
        cmocka_unit_test(test_index_rows), cmocka_unit_test(test_listed), cmocka_unit_test(test_wide_rows),
        cmocka_unit_test(test_all_tokens), cmocka_unit_test(test_narrow),
    };
    return survey_run(n, arguments, tests, sizeof tests / sizeof *tests, open_card, close_card);
}
