/* Picking tokens on the shim's card against sched/sample.c: the same token for the same logits and the same draw, always. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "bare_card.h"
#include "sched/sample.h"

enum { ROWS = 4, MAX_VOCAB = 33000 };

static uint64_t state = 11;
static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
static int below(int n) {
    return (int)(draw() % (uint32_t)n);
}
static float uniform(float low, float high) {
    return low + (high - low) * (float)(draw() >> 8) * 0x1p-24f;
}

static struct cuda card;

static void give_back(const void *at) {
    card.driver.memory_free((cuda_address)(uintptr_t)at);
}

enum shape { SPREAD, FEW_VALUES, ALL_EQUAL, STEEP, HOLES, NOTHING, ZEROES, SHAPES };

static void fill(float *logits, int vocab, enum shape shape) {
    for (int i = 0; i < vocab; i++) {
        float x = uniform(-6, 6);
        if (shape == FEW_VALUES) x = (float)below(5);
        if (shape == ALL_EQUAL) x = -1.5f;
        if (shape == STEEP) x *= 30;
        if (shape == HOLES && below(3) == 0) x = below(3) ? -INFINITY : NAN;
        if (shape == NOTHING) x = below(2) ? -INFINITY : NAN;
        if (shape == ZEROES) x = below(2) ? 0.0f : -0.0f;
        logits[i] = x;
    }
}

static struct pick_row random_row(int vocab) {
    static const float temperatures[] = {1e-6f, 0.1f, 0.3f, 0.7f, 1, 1.3f, 3, 100};
    struct pick_row row = {.wanted = below(8) != 0, .top_p = 1, .random = draw()};
    row.temperature = below(4) ? temperatures[below(8)] : 0;
    if (below(2)) row.top_p = below(8) ? uniform(0.01f, 0.999f) : 1e-9f;
    if (below(3) == 0) row.min_p = below(8) ? uniform(0, 0.5f) : 1;
    if (below(2)) row.top_k = below(9) ? 1 + below(below(2) ? 20 : vocab + 5) : -1;
    if (below(9) == 0) row.random = below(2) ? 0 : UINT32_MAX;
    return row;
}

/* The host's token. If it was drawn, the card must have made the host's weights of its logits, bit for bit. */
static int32_t expected(const struct pick_row *row, const float *logits, int vocab, const float *weights) {
    struct sample_scratch scratch;
    struct sampling s;
    if (sample_scratch_init(&scratch, vocab, NULL)) fail_msg("no memory");
    sampling_init(&s);
    s.temperature = row->temperature, s.top_p = row->top_p, s.min_p = row->min_p, s.top_k = row->top_k;
    int32_t token = sample_drawn(&s, logits, NULL, row->random, &scratch);
    bool drawn = row->temperature != 0 && isfinite(logits[sample_argmax(logits, vocab)]);
    if (drawn) assert_memory_equal(weights, scratch.value, (size_t)vocab * sizeof *weights);
    sample_scratch_free(&scratch);
    return token;
}

/* Rows that the host keeps are left alone; the others get the host's token. */
static void check(struct pick_params *p, const struct pick_row *rows, const float *before, const char *what) {
    size_t vocab = (size_t)p->vocab;
    memcpy((void *)(uintptr_t)p->row, rows, ROWS * sizeof *rows);
    memcpy(p->logits, before, ROWS * vocab * sizeof *before);
    for (int i = 0; i < ROWS; i++) p->picked[i] = -7;
    cuda_launch(&card, KERNEL_PICK, ROWS * PICK_BLOCKS, PICK_SHARED, p);
    card.driver.stream_wait(card.stream);
    if (card.failure.code) fail_msg("%s", card.failure.message);
    for (size_t i = 0; i < ROWS; i++) {
        const struct pick_row *row = &rows[i];
        int32_t want = row->wanted ? expected(row, before + i * vocab, p->vocab, p->logits + i * vocab) : -7;
        if (!row->wanted) assert_memory_equal(p->logits + i * vocab, before + i * vocab, vocab * sizeof *before);
        if (p->picked[i] == want) continue;
        fail_msg("%s: vocabulary %d, row %zu, temperature %g, top-k %d, top-p %g, min-p %g: token %d, expected %d",
                 what, p->vocab, i, (double)row->temperature, row->top_k, (double)row->top_p, (double)row->min_p,
                 p->picked[i], want);
    }
    for (int i = 0; i < ROWS; i++) assert_int_equal(p->arrived[i], 0);
}

static struct pick_params open_params(int vocab) {
    struct pick_params p = {.logits = bare_card_memory(&card, ROWS * (size_t)vocab * sizeof(float)),
                            .row = bare_card_memory(&card, ROWS * sizeof(struct pick_row)),
                            .best = bare_card_memory(&card, ROWS * PICK_BLOCKS * sizeof(struct pick_best)),
                            .picked = bare_card_memory(&card, ROWS * sizeof(int32_t)),
                            .arrived = bare_card_memory(&card, ROWS * sizeof(uint32_t)),
                            .vocab = vocab};
    memset(p.arrived, 0, ROWS * sizeof *p.arrived);
    return p;
}

static void close_params(const struct pick_params *p) {
    give_back(p->logits);
    give_back(p->row);
    give_back(p->best);
    give_back(p->picked);
    give_back(p->arrived);
}

static void test_picks(void **unused) {
    (void)unused;
    static const int vocabs[] = {1, 2, 31, 32, 33, 75, 1021, 4099};
    static float logits[ROWS * MAX_VOCAB];
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        int vocab = vocabs[v];
        struct pick_params p = open_params(vocab);
        for (int round = 0; round < 2 * SHAPES; round++) {
            struct pick_row rows[ROWS];
            for (int i = 0; i < ROWS; i++) {
                rows[i] = random_row(vocab);
                fill(logits + i * vocab, vocab, (enum shape)(round % SHAPES));
            }
            check(&p, rows, logits, "random");
        }
        close_params(&p);
    }
}

/* Pieces of more than 32 tokens, the largest at either end, and draws at both ends of the whole. */
static void test_large_vocabulary(void **unused) {
    (void)unused;
    static float logits[ROWS * MAX_VOCAB];
    static const int best[ROWS] = {0, MAX_VOCAB - 1, 17, 32767};
    struct pick_params p = open_params(MAX_VOCAB);
    for (int round = 0; round < 3; round++) {
        struct pick_row rows[ROWS];
        for (int i = 0; i < ROWS; i++) {
            fill(logits + i * MAX_VOCAB, MAX_VOCAB, round == 1 ? FEW_VALUES : SPREAD);
            if (round < 2) logits[i * MAX_VOCAB + best[i]] = 8;
            rows[i] = (struct pick_row){.wanted = 1, .temperature = (float)round * 0.8f, .top_p = 1, .random = draw()};
            if (round == 2) rows[i].random = i % 2 ? 0 : UINT32_MAX;
            if (i == 2) rows[i].top_p = 0.95f;
            if (i == 3) rows[i].top_k = 50;
        }
        check(&p, rows, logits, "large");
        for (int i = 0; i < ROWS && round == 0; i++) assert_int_equal(p.picked[i], best[i]);
    }
    close_params(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_picks), cmocka_unit_test(test_large_vocabulary)};
    bare_card_open(&card, "pick");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cuda_card_close(&card.driver, &card.card);
    cuda_driver_close(&card.driver);
    return failed;
}
