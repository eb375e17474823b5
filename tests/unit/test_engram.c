/* V4.1's n-gram memory: its hashes against numbers that numpy 2.4.6 and NVIDIA's NeMo AutoModel 0.7 give, and the CPU's stage
 * against a slow version in double, with the tables in memory and in a file. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "backend/cpu/engram.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/numbers.h"
#include "check/random.h"

enum {
    LAYERS = 3,
    TABLES = 2,
    HIDDEN = 200,
    STREAMS = 3,
    WIDE = STREAMS * HIDDEN,
    KV = WIDE + HIDDEN,
    HEADS = 2,
    TOKENS = 4, /* of the longest n-grams */
    COLUMNS = (TOKENS - 1) * HEADS,
    DIM = 64,
    ROWS = 400,
    VOCAB = 50,
    FOLDED = 31,
    PAD = 7,
    LENGTH = 60, /* of a sequence */
    SEQS = 2,
    MAX_ROWS = LENGTH * SEQS,
    PAGE = 4096,
};

static const struct model model = {
    .architecture = "DeepseekV41ForCausalLM",
    .layers = LAYERS,
    .dense_layers = LAYERS,
    .dense_width = 32,
    .hidden = HIDDEN,
    .heads = 2,
    .vocab = VOCAB,
    .context = 128,
    .q_kind = Q_LOW_RANK,
    .q_lora = 8,
    .kv_lora = 24,
    .nope_dim = 24,
    .rope_dim = 8,
    .v_dim = 32,
    .rope = {.theta = 10000, .factor = 1},
    .hybrid = {.window = 16,
               .index_topk = 4,
               .index_heads = 2,
               .index_dim = 16,
               .rope = {.theta = 160000, .factor = 1},
               .o_groups = 2,
               .o_lora = 8,
               .streams = STREAMS,
               .sinkhorn_iterations = 3,
               .mix_eps = 0.02,
               .engram = {.n_layers = TABLES,
                          .layer = {0, 2},
                          .rows = {ROWS, ROWS},
                          .max_tokens = TOKENS,
                          .heads = HEADS,
                          .dim = DIM,
                          .bucket = 20,
                          .folded_vocab = FOLDED,
                          .pad = PAD}},
    .norm_eps = 1e-20,
    .bos = -1,
};

static struct weights weights;
static int32_t folded[VOCAB];
static struct engram_hash hashes;
static struct check_random dice;

/* ---- the hashes ---- */

/* Those of DeepSeek-V4.1-Flash. */
static const struct engram_model flash = {.n_layers = 2,
                                          .layer = {1, 14},
                                          .rows = {384006168, 384016682},
                                          .max_tokens = 4,
                                          .heads = 8,
                                          .dim = 256,
                                          .bucket = 16000000,
                                          .folded_vocab = 99092,
                                          .pad = 2};

static void test_layout(void **state) {
    (void)state;
    static const int64_t multipliers[2][4] = {{76632096046245, 4839876093313, 35959672319349, 73987337458391},
                                              {67716810739261, 51510806800915, 30921347202721, 82619226485591}};
    struct engram_hash h;
    struct mo_error error;
    assert_int_equal(engram_hash_init(&h, &flash, &error), 0);
    assert_int_equal(h.columns, 24);
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 4; k++) assert_true(h.layer[i].multiplier[k] == multipliers[i][k]);
        int64_t rows = 0;
        for (int c = 0; c < 24; c++) {
            assert_true(h.layer[i].first[c] == rows);
            rows += h.layer[i].prime[c];
        }
        assert_true(rows == flash.rows[i]); /* the published tables have a row for each, and no other */
    }
    assert_int_equal(h.layer[0].prime[0], 16000057);
    assert_int_equal(h.layer[0].prime[23], 16000463);
    assert_int_equal(h.layer[1].prime[0], 16000477);
    assert_int_equal(h.layer[1].prime[23], 16000889);
}

static void test_rows(void **state) {
    (void)state;
    static const int32_t last[2][4] = {{0, 2, 2, 2}, {4711, 99091, 1, 0}};
    static const int32_t first[2][4] = {{5702652, 24393184, 39183301, 61503783},
                                        {8205142, 29149940, 41285137, 58661844}};
    static const int32_t other[4] = {9639813, 16155464, 35332168, 56454825};
    struct engram_hash h;
    struct mo_error error;
    int32_t rows[24];
    assert_int_equal(engram_hash_init(&h, &flash, &error), 0);
    for (int i = 0; i < 2; i++) {
        engram_hash_rows(&h, 0, last[i], rows);
        assert_memory_equal(rows, first[i], sizeof first[i]);
    }
    assert_int_equal(rows[23], 380239432);
    engram_hash_rows(&h, 1, last[1], rows);
    assert_memory_equal(rows, other, sizeof other);
    assert_int_equal(rows[23], 374410367);
}

/* Seeds of one word, of none, and small primes. */
static void test_small(void **state) {
    (void)state;
    const struct engram_model tiny = {.n_layers = 2,
                                      .layer = {0, 900},
                                      .rows = {17, 100},
                                      .max_tokens = 3,
                                      .heads = 2,
                                      .bucket = 2,
                                      .folded_vocab = 7};
    static const int32_t primes[2][4] = {{2, 3, 5, 7}, {11, 13, 17, 19}};
    static const int64_t multipliers[2][3] = {{839276373626933875, 355477604520660829, 53987722132071145},
                                              {471550523177725615, 667238729714585029, 1099131080476010703}};
    struct engram_model small = tiny;
    struct engram_hash h;
    struct mo_error error;
    assert_int_equal(engram_hash_init(&h, &tiny, &error), 0);
    for (int i = 0; i < 2; i++) {
        assert_memory_equal(h.layer[i].prime, primes[i], sizeof primes[i]);
        for (int k = 0; k < 3; k++) assert_true(h.layer[i].multiplier[k] == multipliers[i][k]);
    }
    small.rows[0] = 16;
    assert_int_equal(engram_hash_init(&h, &small, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "engram_num_embeddings"));
    assert_non_null(strstr(error.message, "expected 17"));
    assert_non_null(strstr(error.message, "found 16"));
}

/* ---- weights ---- */

static float *numbers(size_t n, float scale) {
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = random_float(&dice) * scale;
    return x;
}

/* Random bytes that are numbers in FP8, and scales around 1. */
static struct mat fp8_table(void) {
    uint8_t *data = malloc((size_t)ROWS * DIM), *scales = malloc((size_t)ROWS * DIM / FP8_ROW_GROUP);
    assert_true(data && scales);
    for (int i = 0; i < ROWS * DIM; i++) data[i] = f32_to_e4m3(random_float(&dice) * 4);
    for (int i = 0; i < ROWS * DIM / FP8_ROW_GROUP; i++) scales[i] = (uint8_t)(124 + i % 4);
    return (struct mat){
        .format = MAT_FP8, .rows = ROWS, .cols = DIM, .data = data, .has_scales8 = true, .scales8 = scales};
}

static struct mat matrix(enum mat_format format, int rows, int cols, float scale) {
    const size_t n = (size_t)rows * (size_t)cols;
    float *values = numbers(n, scale);
    uint16_t *halves = malloc(n * sizeof *halves);
    struct mat w = {.format = format, .rows = rows, .cols = cols, .data = values};
    assert_non_null(halves);
    if (format == MAT_F32) {
        free(halves);
        return w;
    }
    assert_int_equal(format, MAT_BF16);
    for (size_t i = 0; i < n; i++) halves[i] = f32_to_bf16(values[i]);
    free(values);
    w.data = halves;
    return w;
}

/* GGUF's: activations are rounded to 8 bits. */
static struct mat q8_matrix(int rows, int cols) {
    const size_t blocks = (size_t)rows * (size_t)cols / 32;
    uint8_t *data = malloc(blocks * 34);
    assert_non_null(data);
    for (size_t b = 0; b < blocks; b++) {
        const uint16_t scale = f32_to_f16(0.002f);
        memcpy(data + b * 34, &scale, sizeof scale);
        for (int i = 0; i < 32; i++) data[b * 34 + 2 + (size_t)i] = (uint8_t)(int8_t)random_int(&dice, -100, 100);
    }
    return (struct mat){.format = MAT_Q8_0, .rows = rows, .cols = cols, .data = data};
}

static int open_weights(void **state) {
    (void)state;
    struct mo_error error;
    random_seed(&dice, 41);
    weights = (struct weights){.embed = matrix(MAT_F32, VOCAB, HIDDEN, 1), .folded = folded};
    weights.layers = calloc(LAYERS, sizeof *weights.layers);
    assert_non_null(weights.layers);
    for (int i = 0; i < VOCAB; i++) folded[i] = i * 3 % FOLDED;
    for (int i = 0; i < LAYERS; i += 2) {
        struct engram *e = &weights.layers[i].engram;
        e->table = i ? matrix(MAT_F32, ROWS, DIM, 1) : fp8_table();
        e->kv = matrix(MAT_F32, KV, COLUMNS * DIM, 0.2f);
        e->q_weight = numbers(WIDE, 1);
        e->k_weight = numbers(WIDE, 3);
    }
    return engram_hash_init(&hashes, &model.hybrid.engram, &error);
}

static void free_matrix(const struct mat *w) {
    free((void *)(uintptr_t)w->data);
    free((void *)(uintptr_t)w->scales8);
}

static int close_weights(void **state) {
    (void)state;
    for (int i = 0; i < LAYERS; i += 2) {
        const struct engram *e = &weights.layers[i].engram;
        free_matrix(&e->table);
        free_matrix(&e->kv);
        free((void *)(uintptr_t)e->q_weight);
        free((void *)(uintptr_t)e->k_weight);
    }
    free_matrix(&weights.embed);
    free(weights.layers);
    return 0;
}

/* ---- the stage ---- */

/* Sequence s: its tokens repeat now and then. */
static void list_tokens(int s, int32_t tokens[LENGTH]) {
    for (int i = 0; i < LENGTH; i++) tokens[i] = (i * i + 11 * s + i / 9) % VOCAB;
}

static struct backend *open_backend(int threads, enum compute compute) {
    const struct backend_options options = {.threads = threads,
                                            .max_rows = MAX_ROWS,
                                            .max_logits = 1,
                                            .max_seqs = SEQS,
                                            .n_pages = 2,
                                            .kv = KV_F32,
                                            .compute = compute,
                                            .attention = ATTENTION_ABSORBED};
    struct backend *backend;
    struct mo_error error;
    if (cpu_backend_open(&backend, &model, &weights, &options, &error)) fail_msg("%s", error.message);
    return backend;
}

/* A step of n[s] tokens of each sequence, from position first[s] on: streams after the last layer go to out [SEQS][LENGTH][WIDE]. */
static int step(struct backend *b, const int *first, const int *n, float *out, struct mo_error *error) {
    static const int32_t pages[2] = {0, 1};
    static int32_t tokens[SEQS][LENGTH], row_token[MAX_ROWS];
    struct batch_seq seqs[SEQS];
    struct batch batch = {.token = row_token, .seqs = seqs};
    for (int s = 0; s < SEQS; s++) {
        list_tokens(s, tokens[s]);
        if (!n[s]) continue;
        seqs[batch.n_seqs++] = (struct batch_seq){batch.n_rows, n[s], first[s], pages, tokens[s] + first[s]};
        memcpy(row_token + batch.n_rows, tokens[s] + first[s], (size_t)n[s] * sizeof **tokens);
        batch.n_rows += n[s];
    }
    b->ops->begin(b, &batch);
    b->ops->embed(b);
    for (int layer = 0; layer < LAYERS; layer++) engram_add((struct cpu *)b, layer);
    const float *streams = b->ops->streams(b);
    for (int s = 0, row = 0; s < SEQS; row += n[s++]) {
        memcpy(out + ((size_t)s * LENGTH + (size_t)first[s]) * WIDE, streams + (size_t)row * WIDE,
               (size_t)n[s] * WIDE * sizeof *out);
    }
    return b->ops->end(b, error);
}

/* All of both sequences, in pieces of at most `piece` tokens; the second one is `lag` pieces behind. */
static void run(int threads, enum compute compute, int piece, int lag, float *out) {
    struct backend *b = open_backend(threads, compute);
    struct mo_error error;
    for (int at = 0; at < LENGTH + lag * piece; at += piece) {
        const int first[SEQS] = {smaller(at, LENGTH), larger(at - lag * piece, 0)};
        const int end[SEQS] = {smaller(at + piece, LENGTH), larger(smaller(at + piece - lag * piece, LENGTH), 0)};
        const int n[SEQS] = {end[0] - first[0], end[1] - first[1]};
        if (step(b, first, n, out, &error)) fail_msg("%s", error.message);
    }
    b->ops->close(b);
}

static float whole[SEQS * LENGTH * WIDE], other[SEQS * LENGTH * WIDE];

/* ---- the same in double ---- */

static double mean_square(const double *x) {
    double sum = 0;
    for (int i = 0; i < HIDDEN; i++) sum += x[i] * x[i];
    return sum / HIDDEN;
}

static void slow_kv(const struct engram *w, int which, const int32_t *tokens, int pos, double kv[KV]) {
    float row[COLUMNS * DIM];
    for (int n = 2, c = 0; n <= TOKENS; n++) {
        for (int head = 0; head < HEADS; head++, c++) {
            int64_t mixed = 0;
            for (int back = 0; back < n; back++) {
                const int32_t token = back <= pos ? tokens[pos - back] : PAD;
                mixed ^= folded[token] * hashes.layer[which].multiplier[back];
            }
            const int at = (int)(mixed % hashes.layer[which].prime[c]) + hashes.layer[which].first[c];
            format_decode_rows(&w->table, at, at + 1, row + (size_t)c * DIM);
        }
    }
    for (int r = 0; r < KV; r++) {
        float weight[COLUMNS * DIM];
        format_decode_rows(&w->kv, r, r + 1, weight);
        kv[r] = 0;
        for (int i = 0; i < COLUMNS * DIM; i++) kv[r] += (double)weight[i] * (double)row[i];
    }
}

static void slow_add(int layer, int which, const int32_t *tokens, int pos, double x[STREAMS][HIDDEN]) {
    const struct engram *w = &weights.layers[layer].engram;
    double kv[KV];
    slow_kv(w, which, tokens, pos, kv);
    for (int s = 0; s < STREAMS; s++) {
        const double *key = kv + (size_t)s * HIDDEN;
        double fit = 0;
        for (int i = 0; i < HIDDEN; i++)
            fit += x[s][i] * key[i] * (double)w->q_weight[s * HIDDEN + i] * (double)w->k_weight[s * HIDDEN + i];
        fit /= sqrt(mean_square(x[s])) * sqrt(mean_square(key)) * sqrt(HIDDEN);
        const double gate = 1 / (1 + exp(-copysign(sqrt(fmax(fabs(fit), 1e-6)), fit)));
        for (int i = 0; i < HIDDEN; i++) x[s][i] += gate * kv[WIDE + i];
    }
}

/* How much of a token's streams may be wrong. */
static void check_all(const float *got, double most) {
    int32_t tokens[LENGTH];
    for (int s = 0; s < SEQS; s++) {
        list_tokens(s, tokens);
        for (int pos = 0; pos < LENGTH; pos++) {
            double x[STREAMS][HIDDEN], wrong = 0, all = 0;
            const float *row = got + ((size_t)s * LENGTH + (size_t)pos) * WIDE;
            for (int i = 0; i < WIDE; i++)
                x[i / HIDDEN][i % HIDDEN] =
                    (double)((const float *)weights.embed.data)[tokens[pos] * HIDDEN + i % HIDDEN];
            slow_add(0, 0, tokens, pos, x);
            slow_add(2, 1, tokens, pos, x);
            for (int i = 0; i < WIDE; i++) {
                wrong += pow((double)row[i] - x[i / HIDDEN][i % HIDDEN], 2);
                all += pow(x[i / HIDDEN][i % HIDDEN], 2);
            }
            if (!(sqrt(wrong / all) <= most))
                fail_msg("sequence %d, position %d: off by %g", s, pos, sqrt(wrong / all));
        }
    }
}

static void test_against_double(void **state) {
    (void)state;
    run(2, COMPUTE_F32, LENGTH, 0, whole);
    check_all(whole, 1e-5);
}

/* Whatever the pieces, the company and the threads: the same bits. */
static void test_company(void **state) {
    (void)state;
    static const int pieces[] = {1, 2, 3, 7, 33};
    run(1, COMPUTE_F32, LENGTH, 0, whole);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        memset(other, 0, sizeof other);
        run(1 + (int)i, COMPUTE_F32, pieces[i], i % 2 ? 1 : 0, other);
        assert_memory_equal(other, whole, sizeof whole);
    }
}

/* Other formats of tables and matrices; with 8-bit activations where those are. */
static void test_formats(void **state) {
    (void)state;
    struct engram *e = &weights.layers[2].engram;
    const struct mat table = e->table, kv = e->kv;
    e->table = matrix(MAT_BF16, ROWS, DIM, 1);
    e->kv = matrix(MAT_BF16, KV, COLUMNS * DIM, 0.2f);
    run(3, COMPUTE_FAST, LENGTH, 0, whole);
    check_all(whole, 1e-5);
    free_matrix(&e->kv);
    e->kv = q8_matrix(KV, COLUMNS * DIM);
    run(3, COMPUTE_FAST, LENGTH, 0, whole);
    check_all(whole, 0.02);
    run(2, COMPUTE_FAST, 3, 1, other);
    assert_memory_equal(other, whole, sizeof whole);
    free_matrix(&e->kv);
    free_matrix(&e->table);
    e->table = table;
    e->kv = kv;
}

/* ---- tables in a file ---- */

/* Is this address in a mapping that is read page by page? -1: the system does not say. */
static int is_read_at_random(const void *at) {
    FILE *maps = fopen("/proc/self/smaps", "r");
    char line[4096];
    bool inside = false;
    int found = -1;
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long begin, end;
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2) inside = (uintptr_t)at >= begin && (uintptr_t)at < end;
        if (inside && !strncmp(line, "VmFlags:", 8)) found = strstr(line, " rr") != NULL;
    }
    if (maps) fclose(maps);
    return found;
}

/* Pages of the table, and none of what is around it. */
static void check_advice(const struct file_map *map, const struct mat *table) {
    const uint8_t *begin = table->data, *end = begin + mat_data_bytes(table);
    if (is_read_at_random(map->data) < 0) {
        printf("left out: how the file is read (no flags in /proc/self/smaps)\n");
        return;
    }
    assert_int_equal(is_read_at_random(begin + PAGE), 1);
    assert_int_equal(is_read_at_random(end - PAGE), 1);
    assert_int_equal(is_read_at_random(map->data), 0);
    assert_int_equal(is_read_at_random(end + PAGE / 2), 0);
}

static bool is_in_memory(const uint8_t *at, size_t bytes) {
    unsigned char pages[8];
    const uintptr_t first = (uintptr_t)at / PAGE * PAGE, n = ((uintptr_t)at + bytes - first + PAGE - 1) / PAGE;
    assert_true(n <= sizeof pages);
    assert_int_equal(mincore((void *)first, (uintptr_t)at + bytes - first, pages), 0);
    for (uintptr_t i = 0; i < n; i++) {
        if (!(pages[i] & 1)) return false;
    }
    return true;
}

/* The rows of one step have come soon after it began, though nobody has touched them. */
static void check_reads_ahead(struct backend *b, const struct mat *table) {
    static const int32_t pages[2] = {0, 1};
    const int32_t token = 3;
    const struct batch_seq seq = {.n_rows = 1, .pages = pages};
    const struct batch batch = {.n_rows = 1, .token = &token, .n_seqs = 1, .seqs = &seq};
    const double start = clock_now_s();
    b->ops->begin(b, &batch);
    const int32_t *rows = ((struct cpu *)b)->engram.lookup.rows + (size_t)MAX_ROWS * COLUMNS;
    for (int c = 0; c < COLUMNS; c++) {
        while (
            !is_in_memory((const uint8_t *)table->data + (size_t)rows[c] * DIM * sizeof(float), DIM * sizeof(float))) {
            if (clock_now_s() - start > 60) fail_msg("row %d was not read", rows[c]);
        }
    }
    assert_int_equal(b->ops->end(b, NULL), 0);
}

static void test_file(void **state) {
    (void)state;
    enum { BEFORE = 100, BYTES = ROWS * DIM * 4 };
    struct mat *table = &weights.layers[2].engram.table;
    const struct mat in_memory = *table;
    char path[] = "/tmp/moebius-engram-XXXXXX";
    static uint8_t bytes[PAGE + BEFORE + BYTES + PAGE];
    struct file_map map;
    struct mo_error error;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    memcpy(bytes + PAGE + BEFORE, in_memory.data, BYTES);
    assert_int_equal(file_write_all(fd, bytes, sizeof bytes), 0);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(file_map_open(&map, path, &error), 0);
    table->data = map.data + PAGE + BEFORE;
    run(1, COMPUTE_F32, LENGTH, 0, other); /* and closes: maps stay as they were asked for */
    run(1, COMPUTE_F32, LENGTH, 0, whole);
    assert_memory_equal(other, whole, sizeof whole);
    check_all(whole, 1e-5);
    check_advice(&map, table);
    struct backend *b = open_backend(2, COMPUTE_F32);
    madvise((void *)(uintptr_t)map.data, map.size, MADV_DONTNEED);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (is_in_memory(table->data, DIM))
        printf("left out: what is read ahead (this file system keeps pages in memory)\n");
    check_reads_ahead(b, table);
    b->ops->close(b);
    file_map_close(&map);
    close(fd);
    unlink(path);
    *table = in_memory;
}

/* ---- numbers that are none ---- */

static void expect_blame(float *value, const char *words) {
    static const int first[SEQS] = {0, 0}, n[SEQS] = {0, 5};
    const float before = *value;
    struct backend *b = open_backend(2, COMPUTE_F32);
    struct mo_error error;
    *value = NAN;
    assert_int_equal(step(b, first, n, other, &error), MO_E_NUMERIC);
    *value = before;
    if (!strstr(error.message, words)) fail_msg("expected \"%s\": %s", words, error.message);
    b->ops->close(b);
}

static void test_blame(void **state) {
    (void)state;
    int32_t tokens[LENGTH], rows[COLUMNS];
    struct engram *e = &weights.layers[2].engram;
    list_tokens(1, tokens);
    const int32_t last[TOKENS] = {folded[tokens[3]], folded[tokens[2]], folded[tokens[1]], folded[tokens[0]]};
    engram_hash_rows(&hashes, 1, last, rows);
    expect_blame((float *)(uintptr_t)e->table.data + (size_t)rows[COLUMNS - 1] * DIM + 1,
                 "in layer 2, stage engram (batch row 3, position 3,");
    expect_blame((float *)(uintptr_t)e->kv.data + (size_t)(KV - 1) * COLUMNS * DIM, "in layer 2, stage engram");
    expect_blame((float *)(uintptr_t)weights.embed.data + (size_t)tokens[0] * HIDDEN, "stage embed");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),         cmocka_unit_test(test_rows),    cmocka_unit_test(test_small),
        cmocka_unit_test(test_against_double), cmocka_unit_test(test_company), cmocka_unit_test(test_formats),
        cmocka_unit_test(test_file),           cmocka_unit_test(test_blame),
    };
    return cmocka_run_group_tests(tests, open_weights, close_weights);
}
