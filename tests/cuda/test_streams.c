/* V4's and V4.1's residual streams on the shim's card, against plain C in double: what a block reads, what it is mixed by, the streams
 * behind it. And sameness: a row has the same bits alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cuda/params_streams.h"
#include "bare_card.h"

enum { MOST_ROWS = 35, MOST_HIDDEN = 1140, MOST_WIDTH = 2280 };

static const struct shape {
    int streams, hidden, rows, iterations;
} shapes[] = {
    {4, 140, MOST_ROWS, 20},  /* a piece that is not whole, blocks that are not full of rows */
    {2, MOST_HIDDEN, 17, 20}, /* more columns than a block mixes */
    {4, 384, 1, 3},           /* whole pieces */
    {3, 20, 5, 1},
    {MAX_STREAMS, 36, 16, 4}, /* more numbers than a block multiplies by at once */
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static struct cuda card;
static struct model model;
static struct batch batch;
static struct device_mixer mixer;

static uint64_t state = 5;
static float uniform(float low, float high) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (float)(state >> 40) * 0x1p-24f;
}

static void *taken[16];
static int n_taken;
static float *take(size_t floats) {
    return memset(taken[n_taken++] = bare_card_memory(&card, floats * 4), 0, floats * 4);
}
static float *take_random(size_t floats, float low, float high) {
    float *values = take(floats);
    for (size_t i = 0; i < floats; i++) values[i] = uniform(low, high);
    return values;
}

static void open_shape(const struct shape *s) {
    const size_t width = (size_t)s->streams * (size_t)s->hidden, rows = (size_t)s->rows;
    model = (struct model){
        .hidden = s->hidden,
        .norm_eps = 1e-6,
        .hybrid = {.window = 16, .streams = s->streams, .sinkhorn_iterations = s->iterations, .mix_eps = 1e-6}};
    const size_t numbers = (size_t)model_mix_dim(&model);
    batch = (struct batch){.n_rows = s->rows};
    card.model = &model;
    card.batch = &batch;
    card.scratch.x = take_random(rows * (size_t)s->hidden, -3, 3);
    card.scratch.streams = take_random(rows * width, -5, 5);
    card.scratch.mix = take(rows * numbers);
    card.scratch.mix_piece = take(rows * cuda_streams_piece_floats(&model));
    mixer.mix = take_random(numbers * width, -0.3f, 0.3f);
    mixer.base = take_random(numbers, -1, 1);
    mixer.scale = take_random(3, 0.2f, 1);
}

static void close_shape(void) {
    while (n_taken > 0) card.driver.memory_free((cuda_address)(uintptr_t)taken[--n_taken]);
}

static void wait(void) {
    if (card.failure.code || card.driver.stream_wait(card.stream)) fail_msg("%s", card.failure.message);
}

/* ---- plain C ---- */

struct numbers {
    double before[MAX_STREAMS], after[MAX_STREAMS], among[MAX_STREAMS][MAX_STREAMS]; /* [to][from] */
};

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

/* among [from][to]: softmax of rows, then columns and rows by turns are divided by their sums. */
static void balance(double among[MAX_STREAMS][MAX_STREAMS], int s, int iterations, double eps) {
    for (int i = 0; i < s; i++) {
        double sum = 0;
        for (int j = 0; j < s; j++) sum += among[i][j] = exp(among[i][j]);
        for (int j = 0; j < s; j++) among[i][j] = among[i][j] / sum + eps;
    }
    for (int turn = 1; turn < 2 * iterations; turn++) {
        for (int i = 0; i < s; i++) {
            double sum = eps;
            for (int j = 0; j < s; j++) sum += turn % 2 ? among[j][i] : among[i][j];
            for (int j = 0; j < s; j++) *(turn % 2 ? &among[j][i] : &among[i][j]) /= sum;
        }
    }
}

static struct numbers numbers_of(const float *row) {
    const int s = model.hybrid.streams, width = s * model.hidden;
    const double eps = model.hybrid.mix_eps;
    double among[MAX_STREAMS][MAX_STREAMS], squares = 0;
    struct numbers out;
    for (int k = 0; k < width; k++) squares += (double)row[k] * (double)row[k];
    for (int i = 0; i < model_mix_dim(&model); i++) {
        double sum = 0;
        for (int k = 0; k < width; k++)
            sum += (double)mixer.mix[(size_t)i * (size_t)width + (size_t)k] * (double)row[k];
        double scale = (double)mixer.scale[i < s ? 0 : i < 2 * s ? 1 : 2];
        double value = sum / sqrt(squares / width + model.norm_eps) * scale + (double)mixer.base[i];
        if (i < s) {
            out.before[i] = sigmoid(value) + eps;
        } else if (i < 2 * s) {
            out.after[i - s] = 2 * sigmoid(value);
        } else {
            among[i / s - 2][i % s] = value;
        }
    }
    balance(among, s, model.hybrid.sinkhorn_iterations, eps);
    for (int i = 0; i < s * s; i++) out.among[i % s][i / s] = among[i / s][i % s];
    return out;
}

static void is_near(double want, float found, double size, const char *what, int row, int at) {
    if (fabs(want - (double)found) <= 2e-5 * size) return; /* not of a NaN */
    fail_msg("%d streams of %d, row %d: %s %d: expected %g, found %g", model.hybrid.streams, model.hidden, row, what,
             at, want, (double)found);
}

static void check_numbers(const struct numbers *n, int row) {
    const int s = model.hybrid.streams;
    const float *mix = card.scratch.mix + (size_t)row * (size_t)model_mix_dim(&model);
    for (int i = 0; i < s; i++) is_near(n->after[i], mix[s + i], 1, "after", row, i);
    for (int i = 0; i < s * s; i++) is_near(n->among[i / s][i % s], mix[2 * s + i], 1, "among", row, i);
}

static void check_collapsed(const struct numbers *n, const float *streams, const float *x, int row) {
    for (int k = 0; k < model.hidden; k++) {
        double sum = 0;
        for (int i = 0; i < model.hybrid.streams; i++)
            sum += n->before[i] * (double)streams[(size_t)i * (size_t)model.hidden + (size_t)k];
        is_near(sum, x[k], 20, "what is read", row, k);
    }
}

static void check_mixed(const struct numbers *n, const float *old, const float *added, const float *found, int row) {
    const int s = model.hybrid.streams, hidden = model.hidden;
    for (int at = 0; at < s * hidden; at++) {
        double sum = n->after[at / hidden] * (double)added[at % hidden];
        for (int i = 0; i < s; i++) sum += n->among[at / hidden][i] * (double)old[i * hidden + at % hidden];
        is_near(sum, found[at], 20, "stream", row, at);
    }
}

/* ---- a block ---- */

static float old[MOST_ROWS * MOST_WIDTH], added[MOST_ROWS * MOST_HIDDEN];

static void check_block(const struct shape *s) {
    const size_t hidden = (size_t)s->hidden, width = (size_t)s->streams * hidden, rows = (size_t)s->rows;
    struct numbers numbers[MOST_ROWS];
    memcpy(old, card.scratch.streams, rows * width * 4);
    cuda_streams_begin(&card, &mixer);
    wait();
    assert_memory_equal(card.scratch.streams, old, rows * width * 4);
    for (int row = 0; row < s->rows; row++) {
        numbers[row] = numbers_of(old + (size_t)row * width);
        check_numbers(&numbers[row], row);
        check_collapsed(&numbers[row], old + (size_t)row * width, card.scratch.x + (size_t)row * hidden, row);
    }
    cuda_streams_target(&card);
    wait();
    for (size_t i = 0; i < rows * hidden; i++) {
        assert_true(fabsf(card.scratch.x[i]) <= 0);
        card.scratch.x[i] = added[i] = uniform(-4, 4);
    }
    cuda_streams_end(&card);
    wait();
    for (int row = 0; row < s->rows; row++) {
        check_mixed(&numbers[row], old + (size_t)row * width, added + (size_t)row * hidden,
                    card.scratch.streams + (size_t)row * width, row);
    }
}

static void test_blocks(void **unused) {
    (void)unused;
    for (int i = 0; i < SHAPES; i++) {
        open_shape(&shapes[i]);
        check_block(&shapes[i]);
        close_shape();
    }
}

/* The last row of many by itself: the same bits. */
static void test_sameness(void **unused) {
    (void)unused;
    const struct shape *s = &shapes[0];
    open_shape(s);
    const size_t hidden = (size_t)s->hidden, width = (size_t)s->streams * hidden, last = (size_t)s->rows - 1;
    memcpy(old, card.scratch.streams + last * width, width * 4);
    cuda_streams_begin(&card, &mixer);
    cuda_streams_end(&card); /* what was read is what is added */
    wait();
    memcpy(added, card.scratch.x + last * hidden, hidden * 4);
    float *mixed = card.scratch.streams + last * width;
    memcpy(card.scratch.streams, old, width * 4);
    batch.n_rows = 1;
    cuda_streams_begin(&card, &mixer);
    cuda_streams_end(&card);
    wait();
    assert_memory_equal(card.scratch.x, added, hidden * 4);
    assert_memory_equal(card.scratch.streams, mixed, width * 4);
    close_shape();
}

/* The head's mixer has numbers for `before` alone; listed rows stay where they are. */
static void test_reading(void **unused) {
    (void)unused;
    static const int32_t rows[3] = {33, 4, 17};
    const struct shape *s = &shapes[0];
    open_shape(s);
    const size_t hidden = (size_t)s->hidden, width = (size_t)s->streams * hidden;
    int32_t *listed = (int32_t *)take(3);
    memcpy(listed, rows, sizeof rows);
    memcpy(added, card.scratch.x, MOST_ROWS * hidden * 4);
    cuda_streams_read(&card, &mixer, listed, 3);
    wait();
    for (int row = 0, i; row < s->rows; row++) {
        const float *streams = card.scratch.streams + (size_t)row * width, *x = card.scratch.x + (size_t)row * hidden;
        struct numbers numbers = numbers_of(streams);
        for (i = 0; i < 3 && rows[i] != row; i++) continue;
        if (i < 3) check_collapsed(&numbers, streams, x, row);
        if (i == 3) assert_memory_equal(x, added + (size_t)row * hidden, hidden * 4);
    }
    cuda_streams_read(&card, &mixer, NULL, 2);
    wait();
    struct numbers second = numbers_of(card.scratch.streams + width);
    check_collapsed(&second, card.scratch.streams + width, card.scratch.x + hidden, 1);
    close_shape();
}

static void test_spread(void **unused) {
    (void)unused;
    const struct shape *s = &shapes[1];
    open_shape(s);
    cuda_streams_spread(&card);
    wait();
    for (int i = 0; i < s->rows * s->streams; i++) {
        assert_memory_equal(card.scratch.streams + (size_t)i * MOST_HIDDEN,
                            card.scratch.x + (size_t)(i / s->streams) * MOST_HIDDEN, MOST_HIDDEN * 4);
    }
    close_shape();
}

/* A number that is none is seen in what the block reads, whose norm tells of it; in no other row. */
static void test_faults(void **unused) {
    (void)unused;
    const struct shape *s = &shapes[3];
    open_shape(s);
    card.scratch.streams[(size_t)s->hidden * 3 * 2 + 7] = NAN;
    cuda_streams_begin(&card, &mixer);
    wait();
    for (int i = 0; i < s->rows * s->hidden; i++) assert_int_equal(isnan(card.scratch.x[i]) != 0, i / s->hidden == 2);
    close_shape();
}

/* V4.1: a block reads by what the mixer before it said, the first one the first stream; the head by what the last one said. */
static void test_a_block_ahead(void **unused) {
    (void)unused;
    const struct shape *s = &shapes[3];
    const size_t hidden = (size_t)s->hidden, width = (size_t)s->streams * hidden, rows = (size_t)s->rows;
    open_shape(s);
    model.hybrid.kind = HYBRID_CSA2;
    card.scratch.before = take_random(rows * (size_t)s->streams, -1, 1);
    memcpy(added, card.scratch.x, rows * hidden * 4);
    cuda_streams_spread(&card);
    cuda_streams_begin(&card, &mixer);
    wait();
    assert_memory_equal(card.scratch.x, added, rows * hidden * 4);
    for (int turn = 0; turn < 2; turn++) { /* the block reads other streams than those that its weights are of */
        struct numbers numbers[MOST_ROWS];
        for (int row = 0; row < s->rows; row++) {
            numbers[row] = numbers_of(card.scratch.streams + (size_t)row * width);
            check_numbers(&numbers[row], row);
        }
        for (size_t i = 0; i < rows * width; i++) card.scratch.streams[i] = uniform(-5, 5);
        if (turn) cuda_streams_read(&card, NULL, NULL, s->rows);
        if (!turn) cuda_streams_begin(&card, &mixer);
        wait();
        for (int row = 0; row < s->rows; row++)
            check_collapsed(&numbers[row], card.scratch.streams + (size_t)row * width,
                            card.scratch.x + (size_t)row * hidden, row);
    }
    card.scratch.before = NULL;
    close_shape();
}

/* V4.1: row `row` of n-grams' keys and values. */
static void check_taken(const struct engram_params *p, int row, const float *before) {
    const int n = p->hidden, s = p->streams;
    const float *kv = p->kv + row * (s + 1) * n, *value = kv + s * n;
    for (int stream = 0; stream < s; stream++) {
        const int at = (row * s + stream) * n;
        double x = 0, key = 0, fit = 0;
        for (int k = 0; k < n; k++) {
            const double a = (double)before[at + k], b = (double)kv[stream * n + k];
            x += a * a;
            key += b * b;
            fit += a * b * (double)p->q_weight[stream * n + k] * (double)p->k_weight[stream * n + k];
        }
        fit /= sqrt(x / n + (double)p->eps) * sqrt(key / n + (double)p->eps) * sqrt(n);
        const double gate = sigmoid(copysign(sqrt(fmax(fabs(fit), 1e-6)), fit));
        for (int k = 0; k < n; k++)
            is_near((double)before[at + k] + gate * (double)value[k], p->residual[at + k], 20, "with its n-grams", row,
                    k);
    }
}

/* What a stream takes; and who is blamed for what is no number. */
static void test_engram(void **unused) {
    (void)unused;
    enum { ROWS = 3 };
    for (int i = 0; i < 2; i++) {
        const int n = i ? MOST_HIDDEN : 20, s = i ? 2 : 3;
        const size_t values = ROWS * (size_t)n, streams = (size_t)s * (size_t)n;
        struct engram_params p = {.residual = take_random(values * (size_t)s, -5, 5),
                                  .kv = take_random(values * (size_t)(s + 1), -2, 2),
                                  .q_weight = take_random(streams, -1, 2),
                                  .k_weight = take_random(streams, -1, 2),
                                  .fault = (unsigned long long *)(void *)take(2),
                                  .hidden = n,
                                  .streams = s,
                                  .fault_key = 7,
                                  .fault_before = 6,
                                  .eps = 1e-6f};
        memcpy(old, p.residual, values * (size_t)s * 4);
        *p.fault = ~0ull;
        cuda_launch(&card, KERNEL_ENGRAM_ADD, ROWS * s, 0, &p);
        wait();
        for (int row = 0; row < ROWS; row++) check_taken(&p, row, old);
        assert_true(*p.fault == ~0ull);
        ((float *)(uintptr_t)p.kv)[(2 * (s + 1) + s) * n + 1] = INFINITY; /* the value */
        cuda_launch(&card, KERNEL_ENGRAM_ADD, ROWS * s, 0, &p);
        wait();
        assert_true(*p.fault == (7ull << 32 | 2));
        p.residual[(s + s - 1) * n + 3] = NAN; /* a stream of row 1 */
        cuda_launch(&card, KERNEL_ENGRAM_ADD, ROWS * s, 0, &p);
        wait();
        assert_true(*p.fault == (6ull << 32 | 1));
        close_shape();
    }
}

/* Models with one stream: nothing is launched. */
static void test_others(void **unused) {
    (void)unused;
    open_shape(&shapes[3]);
    model.hybrid = (struct hybrid_model){0};
    memcpy(added, card.scratch.x, 5 * 20 * 4);
    cuda_streams_spread(&card);
    cuda_streams_begin(&card, &mixer);
    cuda_streams_target(&card);
    cuda_streams_end(&card);
    cuda_streams_read(&card, &mixer, NULL, 1);
    wait();
    assert_memory_equal(card.scratch.x, added, 5 * 20 * 4);
    close_shape();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_blocks),  cmocka_unit_test(test_sameness),
                                       cmocka_unit_test(test_reading), cmocka_unit_test(test_spread),
                                       cmocka_unit_test(test_faults),  cmocka_unit_test(test_a_block_ahead),
                                       cmocka_unit_test(test_engram),  cmocka_unit_test(test_others)};
    bare_card_open(&card, "streams");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cuda_card_close(&card.driver, &card.card);
    cuda_driver_close(&card.driver);
    return failed;
}
