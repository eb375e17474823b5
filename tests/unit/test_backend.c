/* The forward pass with several sequences in one batch: what a row computes must not depend on its company. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "forward.h"

enum { MAX_ROWS = 256, PAGES = 40, TOKENS = 150 };

/* A golden checkpoint, opened. */
struct fixture {
    struct model model;
    struct checkpoint checkpoint;
    struct weights weights;
    int32_t *folded;      /* V4.1 [vocab] */
    enum compute compute; /* fast unless a test says otherwise */
};

/* What engine/fold.c has from the tokenizer. */
static void fixture_fold(struct fixture *f) {
    const int vocab = f->model.vocab, n = f->model.hybrid.engram.folded_vocab;
    f->folded = calloc((size_t)vocab, sizeof *f->folded);
    for (int id = 0; id < vocab && n; id++) f->folded[id] = id % n;
    f->weights.folded = f->folded;
}

static void fixture_open(struct fixture *f, const char *name) {
    struct mo_error error = {0};
    char path[256];
    snprintf(path, sizeof path, "tests/golden/data/%s", name);
    f->compute = COMPUTE_FAST;
    int code = checkpoint_open(&f->checkpoint, path, &error);
    if (!code) code = model_load(&f->model, &f->checkpoint, &error);
    if (!code) code = weights_bind(&f->weights, &f->model, &f->checkpoint, 1, &error);
    if (code) fail_msg("%s", error.message);
    fixture_fold(f);
}

static void fixture_close(struct fixture *f) {
    free(f->folded);
    weights_free(&f->weights);
    checkpoint_close(&f->checkpoint);
}

static struct backend *open_backend(const struct fixture *f, enum attention attention, enum kv_format kv, int threads) {
    struct backend_options options = {.threads = threads,
                                      .max_rows = MAX_ROWS,
                                      .max_logits = MAX_ROWS,
                                      .max_seqs = 8,
                                      .n_pages = PAGES,
                                      .kv = kv,
                                      .compute = f->compute,
                                      .attention = attention};
    struct backend *backend;
    struct mo_error error = {0};
    if (cpu_backend_open(&backend, &f->model, &f->weights, &options, &error)) fail_msg("%s", error.message);
    return backend;
}

static int32_t token_of(const struct fixture *f, int seq, int pos) {
    return (int32_t)(((unsigned)seq * 7919u + (unsigned)pos * 104729u + 17u) % (unsigned)f->model.vocab);
}

/* One step of sequences `seq[i]` at `first[i]`, `n[i]` rows each; logits of every row into out [rows][vocab]. */
static void step(struct backend *backend, const struct fixture *f, int n_seqs, const int *seq, const int *first,
                 const int *n, int32_t pages[][4], float *out) {
    enum { BEFORE = ENGRAM_MAX_TOKENS - 1 };
    int32_t token[MAX_ROWS], wanted[MAX_ROWS], before[8][BEFORE];
    struct batch_seq seqs[8];
    int rows = 0;
    for (int i = 0; i < n_seqs; i++) {
        seqs[i] = (struct batch_seq){rows, n[i], first[i], pages[i], before[i] + BEFORE};
        for (int k = 1; k <= BEFORE; k++) before[i][BEFORE - k] = first[i] < k ? -1 : token_of(f, seq[i], first[i] - k);
        for (int t = 0; t < n[i]; t++, rows++) {
            token[rows] = token_of(f, seq[i], first[i] + t);
            wanted[rows] = rows;
        }
    }
    struct batch batch = {rows, token, n_seqs, seqs, rows, wanted, NULL};
    struct mo_error error = {0};
    if (forward(backend, &f->model, &batch, NULL, &error)) fail_msg("%s", error.message);
    memcpy(out, backend->ops->logits(backend), (size_t)rows * (size_t)f->model.vocab * sizeof(float));
}

/* Sequence `seq` alone, all `n` tokens, in chunks of `chunk`: out [n][vocab]. */
static void alone(const struct fixture *f, enum attention attention, enum kv_format kv, int seq, int n, int chunk,
                  float *out) {
    struct backend *backend = open_backend(f, attention, kv, 2);
    int32_t pages[1][4] = {{5, 3, 8, 1}};
    for (int at = 0; at < n; at += chunk) {
        int rows = n - at < chunk ? n - at : chunk;
        step(backend, f, 1, &seq, &at, &rows, pages, out + (size_t)at * (size_t)f->model.vocab);
    }
    backend->ops->close(backend);
}

static double largest_difference(const float *a, const float *b, size_t n) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)a[i] - (double)b[i]));
    return largest;
}

/* Three ragged sequences whose chunks meet in one batch, over scattered pages; absorbed attention: same bits as alone. */
static void check_company(const char *name, enum kv_format kv) {
    static const int seqs[3] = {0, 1, 2}, lengths[3] = {TOKENS, 70, 33};
    static const int splits[4][3] = {
        {64, 1, 0}, {13, 68, 1}, {72, 1, 31}, {1, 0, 1}}; /* each column sums to a length */
    struct fixture f;
    fixture_open(&f, name);
    size_t vocab = (size_t)f.model.vocab;
    float *expected = calloc(3 * TOKENS * vocab, sizeof *expected), *got = calloc(MAX_ROWS * vocab, sizeof *got);
    for (int s = 0; s < 3; s++)
        alone(&f, ATTENTION_ABSORBED, kv, s, lengths[s], TOKENS, expected + (size_t)s * TOKENS * vocab);
    struct backend *backend = open_backend(&f, ATTENTION_ABSORBED, kv, 2);
    int32_t pages[3][4] = {{9, 0, 30, 2}, {7, 39, 4, 11}, {20, 21, 22, 23}};
    int first[3] = {0, 0, 0};
    for (int i = 0; i < 4; i++) {
        int in[3], at[3], n[3], n_seqs = 0;
        int32_t tables[3][4];
        for (int s = 0; s < 3; s++) {
            if (!splits[i][s]) continue;
            in[n_seqs] = seqs[s], at[n_seqs] = first[s], n[n_seqs] = splits[i][s];
            memcpy(tables[n_seqs++], pages[s], sizeof pages[s]);
        }
        step(backend, &f, n_seqs, in, at, n, tables, got);
        const float *row = got;
        for (int j = 0; j < n_seqs; j++) {
            const float *want = expected + ((size_t)in[j] * TOKENS + (size_t)at[j]) * vocab;
            size_t count = (size_t)n[j] * vocab;
            if (memcmp(row, want, count * sizeof *row)) {
                fail_msg("%s: step %d, sequence %d: differs by %g", name, i, in[j],
                         largest_difference(row, want, count));
            }
            row += count;
            first[in[j]] += n[j];
        }
    }
    assert_int_equal(first[0] + first[1] + first[2], lengths[0] + lengths[1] + lengths[2]);
    backend->ops->close(backend);
    free(expected);
    free(got);
    fixture_close(&f);
}

static void test_company_lite(void **state) {
    (void)state;
    check_company("v2lite-tiny", KV_F32);
    check_company("v2lite-tiny", KV_BF16);
}
static void test_company_v3_fp8(void **state) {
    (void)state;
    check_company("v3-tiny-fp8", KV_FP8);
}
static void test_company_awq(void **state) {
    (void)state;
    check_company("v2lite-tiny-awq", KV_BF16);
}

/* Rows that see few tokens, and rows for which an indexer chooses, in one batch. */
static void test_company_sparse(void **state) {
    (void)state;
    check_company("v32-tiny", KV_F32);
    check_company("v32-tiny", KV_BF16);
    check_company("v32-tiny", KV_FP8);
}

/* V4.1: besides, choices that layers share, some of them among candidates, and n-grams of tokens that steps before had. */
static void test_company_v41(void **state) {
    (void)state;
    check_company("v41-tiny", KV_BF16);
    check_company("v41-tiny-fp8", KV_FP8);
}

/* A page that went out and came back elsewhere brings its index keys along. */
static void test_page_travels(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, "v32-tiny");
    struct backend *backend = open_backend(&f, ATTENTION_ABSORBED, KV_FP8, 2);
    int seq = 0, first = 0, rows = 64, one = 1, last = 64;
    int32_t pages[1][4] = {{5, 3}}, moved[1][4] = {{17, 4}};
    size_t vocab = (size_t)f.model.vocab;
    float *whole = calloc(64 * vocab, sizeof *whole), *want = calloc(vocab, sizeof *want),
          *got = calloc(vocab, sizeof *got);
    void *page = malloc(kv_pool_bytes(&f.model, KV_FP8, 1, 1));
    step(backend, &f, 1, &seq, &first, &rows, pages, whole);
    step(backend, &f, 1, &seq, &last, &one, pages, want);
    assert_int_equal(backend->ops->page_out(backend, 5, page, NULL), 0);
    backend->ops->close(backend);
    backend = open_backend(&f, ATTENTION_ABSORBED, KV_FP8, 2);
    assert_int_equal(backend->ops->page_in(backend, 17, page, NULL), 0);
    step(backend, &f, 1, &seq, &last, &one, moved, got);
    assert_memory_equal(got, want, vocab * sizeof *got);
    backend->ops->close(backend);
    free(page);
    free(whole);
    free(want);
    free(got);
    fixture_close(&f);
}

/* Chunk sizes do not matter either, bit for bit; and in fp32 the expanded form agrees. */
static void test_chunks_and_forms(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, "v2-tiny");
    size_t n = TOKENS * (size_t)f.model.vocab;
    float *whole = calloc(n, sizeof *whole), *other = calloc(n, sizeof *other);
    for (int i = 0; i < 8; i++) { /* either way to compute, the default's caches and fp32's */
        const int chunk = i % 4 == 0 ? TOKENS : i % 4 == 1 ? 1 : i % 4 == 2 ? 7 : 64;
        const enum kv_format kv = i < 4 ? KV_BF16 : KV_F32;
        f.compute = i < 4 ? COMPUTE_FAST : COMPUTE_F32;
        alone(&f, ATTENTION_ABSORBED, kv, 0, TOKENS, chunk, chunk == TOKENS ? whole : other);
        if (chunk == TOKENS) continue;
        assert_memory_equal(whole, other, n * sizeof *whole);
        if (f.compute != COMPUTE_F32) continue;
        alone(&f, ATTENTION_EXPANDED, KV_F32, 0, TOKENS, chunk, other);
        assert_true(largest_difference(whole, other, n) < 1e-4);
    }
    free(whole);
    free(other);
    fixture_close(&f);
}

/* The number of threads does not change a bit. */
static void test_threads(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, "v3-tiny");
    size_t n = 100 * (size_t)f.model.vocab;
    float *one = calloc(n, sizeof *one), *three = calloc(n, sizeof *three);
    int seq = 4, first = 0, rows = 100;
    int32_t pages[1][4] = {{1, 2, 3, 4}};
    struct backend *a = open_backend(&f, ATTENTION_AUTO, KV_BF16, 1), *b = open_backend(&f, ATTENTION_AUTO, KV_BF16, 3);
    step(a, &f, 1, &seq, &first, &rows, pages, one);
    step(b, &f, 1, &seq, &first, &rows, pages, three);
    assert_memory_equal(one, three, n * sizeof *one);
    a->ops->close(a);
    b->ops->close(b);
    free(one);
    free(three);
    fixture_close(&f);
}

/* The rows of the cache, byte by byte: sizes of the published models, and what fp8 costs. */
static void test_cache_rows(void **state) {
    (void)state;
    struct model lite = {.layers = 27, .kv_lora = 512, .rope_dim = 64},
                 v3 = {.layers = 61, .kv_lora = 512, .rope_dim = 64};
    assert_int_equal(kv_row_bytes(&lite, KV_BF16) * 27, 31104);
    assert_int_equal(kv_row_bytes(&lite, KV_FP8), 656);
    assert_int_equal(kv_row_bytes(&lite, KV_FP8) * 27, 17712);
    assert_int_equal(kv_row_bytes(&v3, KV_FP8) * 61, 40016);
    assert_int_equal(kv_pool_bytes(&v3, KV_F32, 3, 0), 61 * 3 * 64 * 576 * 4);
    v3.index_dim = 128; /* V3.2 */
    assert_int_equal(kv_row_bytes(&v3, KV_BF16), 1152 + 256);
    assert_int_equal(kv_row_bytes(&v3, KV_FP8), 656 + 132);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_company_lite),   cmocka_unit_test(test_company_v3_fp8),
        cmocka_unit_test(test_company_awq),    cmocka_unit_test(test_chunks_and_forms),
        cmocka_unit_test(test_threads),        cmocka_unit_test(test_cache_rows),
        cmocka_unit_test(test_company_sparse), cmocka_unit_test(test_company_v41),
        cmocka_unit_test(test_page_travels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
