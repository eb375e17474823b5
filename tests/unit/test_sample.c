/* Sampling against a slow and obvious reference, its order of filters, its generator, its log-probabilities.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "sched/philox.h"
#include "sched/sample.h"

enum { MAX_VOCAB = 3000 };

static uint64_t test_state;

static uint64_t test_random(void) {
    test_state += 0x9E3779B97F4A7C15u;
    uint64_t x = test_state;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static int random_below(int n) {
    return (int)(test_random() % (uint64_t)n);
}

static float random_float(float low, float high) {
    return low + (high - low) * (float)(test_random() >> 40) * 0x1p-24f;
}

/* ---- the reference: sort everything, cut, renormalise, cut ---- */

struct ranked {
    float weight;
    int32_t id;
};

static int by_rank(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    return x->id < y->id ? -1 : 1;
}

static int reference_top_p(const struct ranked *list, int n, double p) {
    double sum = 0, mass = 0;
    for (int i = 0; i < n; i++) sum += (double)list[i].weight;
    for (int i = 0; i < n; i++) {
        mass += (double)list[i].weight;
        if (mass >= p * sum) return i + 1;
    }
    return n;
}

static void reference_adjust(const struct sampling *s, const struct token_counts *counts, float *value, int vocab) {
    for (int i = 0; i < s->n_bias; i++) value[s->bias[i].token] += s->bias[i].bias;
    for (int i = 0; counts && counts->generated && i < vocab; i++) {
        bool seen = counts->generated[i] > 0;
        if ((seen && !s->repetition_last_n) || counts->prompt[i]) {
            if (value[i] > 0)
                value[i] = value[i] / s->repetition_penalty;
            else
                value[i] = value[i] * s->repetition_penalty;
        }
        if (seen) value[i] -= s->presence_penalty + s->frequency_penalty * (float)counts->generated[i];
    }
}

/* The kept tokens by falling rank; returns how many. */
static int reference_keep(const struct sampling *s, const float *logits, const struct token_counts *counts, int vocab,
                          struct ranked *list) {
    static float value[200000];
    memcpy(value, logits, (size_t)vocab * sizeof *value);
    reference_adjust(s, counts, value, vocab);
    int best = -1;
    for (int i = 0; i < vocab; i++) {
        if (!isnan(value[i]) && (best < 0 || value[i] > value[best])) best = i;
    }
    if (best < 0) best = 0;
    if (s->temperature == 0 || !isfinite(value[best])) {
        list[0] = (struct ranked){1, best};
        return 1;
    }
    int n = 0;
    for (int i = 0; i < vocab; i++) {
        float weight = expf((value[i] - value[best]) / s->temperature);
        if (weight > 0) list[n++] = (struct ranked){weight, i};
    }
    qsort(list, (size_t)n, sizeof *list, by_rank);
    int kept = 0;
    while (kept < n && list[kept].weight >= s->min_p) kept++;
    if (s->top_k > 0 && s->top_k < kept) kept = s->top_k;
    if (s->top_p < 1) kept = reference_top_p(list, kept, (double)s->top_p);
    return kept;
}

static int32_t reference_sample(const struct sampling *s, const float *logits, const struct token_counts *counts,
                                uint32_t choice, uint32_t position, int vocab) {
    static struct ranked list[200000];
    int n = reference_keep(s, logits, counts, vocab, list);
    qsort(list, (size_t)n, sizeof *list, by_id);
    double total = 0, sum = 0, unit = sample_random(s->seed, choice, position) / 4294967296.0;
    for (int i = 0; i < n; i++) total += (double)list[i].weight;
    for (int i = 0; i < n; i++) {
        sum += (double)list[i].weight;
        if (sum > unit * total) return list[i].id;
    }
    return list[n - 1].id;
}

/* ---- random cases ---- */

struct fixture {
    struct sample_scratch scratch;
    float logits[MAX_VOCAB], before[MAX_VOCAB];
    int32_t generated[MAX_VOCAB];
    uint8_t prompt[MAX_VOCAB];
    struct logit_bias bias[8];
};

static void random_logits(float *logits, int vocab) {
    int shape = random_below(6);
    for (int i = 0; i < vocab; i++) {
        float x = random_float(-6, 6);
        if (shape == 1) x = (float)random_below(5); /* many ties */
        if (shape == 2) x = 1.5f;                   /* nothing but ties */
        if (shape == 3) x *= 30;
        if (shape == 4) x = (float)(i % 97) * 0.1f;
        if (shape == 5 && random_below(4) == 0) x = random_below(3) ? -INFINITY : NAN;
        logits[i] = x;
    }
}

static void random_sampling(struct sampling *s, struct fixture *f, int vocab) {
    static const float temperatures[] = {0, 1e-6f, 0.1f, 0.7f, 1, 1.3f, 3, 100};
    sampling_init(s);
    s->temperature = temperatures[random_below(8)];
    if (random_below(2)) s->top_p = random_below(8) ? random_float(0.01f, 0.999f) : 1e-9f;
    if (random_below(3) == 0) s->min_p = random_below(8) ? random_float(0, 0.5f) : 1;
    if (random_below(2)) s->top_k = 1 + random_below(random_below(2) ? 20 : vocab + 5);
    if (random_below(4) == 0) s->repetition_penalty = random_float(0.5f, 2);
    if (random_below(4) == 0) s->repetition_last_n = 1 + random_below(64);
    if (random_below(4) == 0) s->presence_penalty = random_float(-2, 2);
    if (random_below(4) == 0) s->frequency_penalty = random_float(-2, 2);
    s->seed = test_random();
    s->bias = f->bias;
    s->n_bias = random_below(2) ? random_below(9) : 0;
    for (int i = 0; i < s->n_bias; i++) {
        f->bias[i] = (struct logit_bias){random_below(vocab), random_below(4) ? random_float(-9, 9) : -100};
    }
}

static void test_reference(void **state) {
    (void)state;
    static struct fixture f;
    int differs_from_greedy = 0;
    for (int round = 0; round < 20000; round++) {
        int vocab = 1 + random_below(round % 10 ? 200 : MAX_VOCAB);
        struct sampling s;
        random_sampling(&s, &f, vocab);
        random_logits(f.logits, vocab);
        memcpy(f.before, f.logits, sizeof f.before);
        for (int i = 0; i < vocab; i++) {
            f.generated[i] = random_below(4) ? 0 : random_below(5);
            f.prompt[i] = random_below(3) == 0;
        }
        struct token_counts counts = {f.generated, f.prompt};
        const struct token_counts *maybe = random_below(4) ? &counts : NULL;
        uint32_t choice = (uint32_t)random_below(4), position = (uint32_t)random_below(1000);
        assert_int_equal(sample_scratch_init(&f.scratch, vocab, NULL), 0);
        int32_t token = sample_token(&s, f.logits, maybe, choice, position, &f.scratch);
        sample_scratch_free(&f.scratch);
        assert_int_equal(token, reference_sample(&s, f.logits, maybe, choice, position, vocab));
        assert_memory_equal(f.logits, f.before, sizeof f.before);
        differs_from_greedy += token != sample_argmax(f.logits, vocab);
    }
    assert_true(differs_from_greedy > 4000); /* the cases are not all trivial */
}

/* The set of tokens that can be drawn, as a mask, found by drawing often. */
static unsigned support(const struct sampling *s, const float *logits, const struct token_counts *counts, int vocab) {
    struct sample_scratch scratch;
    unsigned mask = 0;
    assert_int_equal(sample_scratch_init(&scratch, vocab, NULL), 0);
    for (uint32_t i = 0; i < 2000; i++) mask |= 1u << sample_token(s, logits, counts, 0, i, &scratch);
    sample_scratch_free(&scratch);
    return mask;
}

static void set_probabilities(float *logits, const double *p, int n) {
    for (int i = 0; i < n; i++) logits[i] = (float)log(p[i]);
}

static void test_each_filter(void **state) {
    (void)state;
    float logits[5];
    set_probabilities(logits, (double[]){0.1, 0.4, 0.05, 0.25, 0.2}, 5);
    struct sampling s;
    sampling_init(&s);
    assert_int_equal(support(&s, logits, NULL, 5), 31);
    s.top_k = 2;
    assert_int_equal(support(&s, logits, NULL, 5), 1 << 1 | 1 << 3);
    s.top_k = -1;
    s.top_p = 0.5f;
    assert_int_equal(support(&s, logits, NULL, 5), 1 << 1 | 1 << 3);
    s.top_p = 0.84f;
    assert_int_equal(support(&s, logits, NULL, 5), 1 << 1 | 1 << 3 | 1 << 4);
    s.top_p = 0.86f;
    assert_int_equal(support(&s, logits, NULL, 5), 31 - (1 << 2));
    s.top_p = 0.0001f; /* at least one */
    assert_int_equal(support(&s, logits, NULL, 5), 1 << 1);
    s.top_p = 1;
    s.min_p = 0.49f;
    assert_int_equal(support(&s, logits, NULL, 5), 1 << 1 | 1 << 3 | 1 << 4);
    s.min_p = 1;
    assert_int_equal(support(&s, logits, NULL, 5), 1 << 1);
}

static void test_ties(void **state) {
    (void)state;
    float logits[6] = {0, 2, 2, 2, 2, 1};
    struct sampling s;
    sampling_init(&s);
    s.top_k = 2; /* the lowest ids of the four */
    assert_int_equal(support(&s, logits, NULL, 6), 1 << 1 | 1 << 2);
    s.top_k = 0;
    float even[4] = {3, 3, 3, 3};
    s.top_p = 0.5f; /* two of four have exactly half */
    assert_int_equal(support(&s, even, NULL, 4), 1 << 0 | 1 << 1);
    s.top_p = 0.5000001f;
    assert_int_equal(support(&s, even, NULL, 4), 1 << 0 | 1 << 1 | 1 << 2);
    assert_int_equal(sample_argmax(logits, 6), 1);
    s.temperature = 0;
    assert_int_equal(support(&s, logits, NULL, 6), 1 << 1);
}

static void test_order_of_filters(void **state) {
    (void)state;
    float logits[4];
    set_probabilities(logits, (double[]){0.5, 0.3, 0.1, 0.1}, 4);
    struct sampling s;
    sampling_init(&s);
    s.top_k = 2; /* of what top-k leaves, the first has 0.625: enough for 0.6. Of everything it has 0.5: not
                    enough. */
    s.top_p = 0.6f;
    assert_int_equal(support(&s, logits, NULL, 4), 1 << 0);
    s.top_k = 0;
    assert_int_equal(support(&s, logits, NULL, 4), 1 << 0 | 1 << 1);
    s.min_p = 0.5f; /* leaves 0.5 and 0.3, and likewise comes before top-p */
    assert_int_equal(support(&s, logits, NULL, 4), 1 << 0);
    s.top_p = 1;
    s.min_p = 0.7f; /* temperature before min-p: at 2 the second weighs sqrt(0.6) = 0.77 of the first */
    assert_int_equal(support(&s, logits, NULL, 4), 1 << 0);
    s.temperature = 2;
    assert_int_equal(support(&s, logits, NULL, 4), 1 << 0 | 1 << 1);

    sampling_init(&s); /* bias before penalties: 1 + 3 = 4, halved 2 > 1.9; halved first, 0.5 + 3 = 3.5 > 3.4 */
    s.temperature = 0;
    s.repetition_penalty = 2;
    s.bias = (struct logit_bias[]){{0, 3}};
    s.n_bias = 1;
    int32_t generated[2] = {1, 0};
    uint8_t prompt[2] = {0, 0};
    struct token_counts counts = {generated, prompt};
    assert_int_equal(support(&s, (float[]){1, 1.9f}, &counts, 2), 1 << 0);
    assert_int_equal(support(&s, (float[]){1, 2.1f}, &counts, 2), 1 << 1);
}

static void test_penalties(void **state) {
    (void)state;
    int32_t generated[3] = {0, 3, 0};
    uint8_t prompt[3] = {1, 0, 0};
    struct token_counts counts = {generated, prompt};
    struct sampling s;
    sampling_init(&s);
    s.temperature = 0;
    s.repetition_penalty = 2; /* prompt and generated: positive halved, negative doubled */
    assert_int_equal(support(&s, (float[]){3, 2.8f, 1.6f}, &counts, 3), 1 << 2);
    assert_int_equal(support(&s, (float[]){3, 2.8f, 1.45f}, &counts, 3), 1 << 0);
    assert_int_equal(support(&s, (float[]){-1, -1, -1.9f}, &counts, 3), 1 << 2);
    assert_int_equal(support(&s, (float[]){-1, -1, -2.1f}, &counts, 3), 1 << 0);
    s.repetition_last_n = 5; /* only those that are marked as the latest */
    assert_int_equal(support(&s, (float[]){3, 2.8f, 1.6f}, &counts, 3), 1 << 1);
    s.repetition_last_n = 0;
    s.repetition_penalty = 1;
    s.presence_penalty = 0.5f; /* generated only, once */
    assert_int_equal(support(&s, (float[]){2, 2.4f, 0}, &counts, 3), 1 << 0);
    assert_int_equal(support(&s, (float[]){2, 2.6f, 0}, &counts, 3), 1 << 1);
    s.presence_penalty = 0;
    s.frequency_penalty = 0.5f; /* generated only, each time */
    assert_int_equal(support(&s, (float[]){2, 3.4f, 0}, &counts, 3), 1 << 0);
    assert_int_equal(support(&s, (float[]){2, 3.6f, 0}, &counts, 3), 1 << 1);
    s.frequency_penalty = -1; /* encourages */
    assert_int_equal(support(&s, (float[]){2, -0.9f, 0}, &counts, 3), 1 << 1);
    assert_int_equal(support(&s, (float[]){2, 3, 0}, NULL, 3), 1 << 1);
}

static void test_bias(void **state) {
    (void)state;
    float logits[3] = {1, 5, 2};
    struct sampling s;
    sampling_init(&s);
    s.bias = (struct logit_bias[]){{1, -100}, {0, -60}, {0, -40}};
    s.n_bias = 3;
    assert_int_equal(support(&s, logits, NULL, 3), 1 << 2);
    s.bias = (struct logit_bias[]){{0, 100}};
    s.n_bias = 1;
    assert_int_equal(support(&s, logits, NULL, 3), 1 << 0);
}

static void test_bad_logits(void **state) {
    (void)state;
    struct sampling s;
    sampling_init(&s);
    s.top_p = 0.9f;
    s.top_k = 2;
    assert_int_equal(support(&s, (float[]){NAN, NAN, NAN}, NULL, 3), 1 << 0);
    assert_int_equal(support(&s, (float[]){NAN, -INFINITY, 1}, NULL, 3), 1 << 2);
    assert_int_equal(support(&s, (float[]){-INFINITY, -INFINITY}, NULL, 2), 1 << 0);
    assert_int_equal(support(&s, (float[]){0, INFINITY, 3}, NULL, 3), 1 << 1);
    s.temperature = 1e-38f; /* differences overflow */
    assert_int_equal(support(&s, (float[]){3e38f, -3e38f, 1}, NULL, 3), 1 << 0);
}

static void test_frequencies(void **state) {
    (void)state;
    enum { N = 200000, VOCAB = 8 };
    float logits[VOCAB];
    double p[VOCAB] = {0.3, 0.02, 0.1, 0.18, 0.05, 0.25, 0.07, 0.03}, chi = 0, kept = 0;
    set_probabilities(logits, p, VOCAB);
    struct sampling s;
    sampling_init(&s);
    s.seed = 7;
    s.top_k = 6;
    int count[VOCAB] = {0};
    struct sample_scratch scratch;
    assert_int_equal(sample_scratch_init(&scratch, VOCAB, NULL), 0);
    for (uint32_t i = 0; i < N; i++) count[sample_token(&s, logits, NULL, i % 5, i / 5, &scratch)]++;
    sample_scratch_free(&scratch);
    p[1] = p[7] = 0;
    for (int i = 0; i < VOCAB; i++) kept += p[i];
    for (int i = 0; i < VOCAB; i++) {
        double expected = N * p[i] / kept;
        if (p[i] == 0)
            assert_int_equal(count[i], 0);
        else
            chi += (count[i] - expected) * (count[i] - expected) / expected;
    }
    assert_true(chi < 25); /* 5 degrees of freedom: 1 in 10,000 */
}

/* ---- the generator ---- */

static void test_philox_vectors(void **state) {
    (void)state; /* the known answers that Random123 publishes for philox4x32-10 */
    static const uint32_t cases[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
         0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
         0x24126ea1},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        philox_4x32(cases[i], cases[i] + 4, out);
        assert_memory_equal(out, cases[i] + 6, sizeof out);
    }
    assert_int_equal(sample_random(0, 0, 0), 0x6627e8d5);
}

/* Chi-square of one byte of a stream of draws, in standard deviations from what chance gives. */
static double byte_deviation(uint32_t (*next)(uint32_t), int shift) {
    enum { N = 1 << 18 };
    int count[256] = {0};
    double chi = 0, expected = N / 256.0;
    for (uint32_t i = 0; i < N; i++) count[next(i) >> shift & 255]++;
    for (int i = 0; i < 256; i++) chi += (count[i] - expected) * (count[i] - expected) / expected;
    return fabs(chi - 255) / sqrt(2 * 255.0);
}

static uint32_t next_position(uint32_t i) {
    return sample_random(42, 0, i);
}
static uint32_t next_choice(uint32_t i) {
    return sample_random(42, i, 3);
}
static uint32_t next_seed(uint32_t i) {
    return sample_random(i, 0, 0);
}
static uint32_t next_high_seed(uint32_t i) {
    return sample_random((uint64_t)i << 32, 1, 1);
}
static uint32_t next_difference(uint32_t i) { /* neighbours are independent */
    return sample_random(42, 0, i) ^ sample_random(42, 0, i + 1);
}
static uint32_t next_across(uint32_t i) {
    return sample_random(i, 0, 5) - sample_random(i + 1, 0, 5);
}

static void test_random_uniform(void **state) {
    (void)state;
    uint32_t (*const streams[])(uint32_t) = {next_position,  next_choice,     next_seed,
                                             next_high_seed, next_difference, next_across};
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        for (int shift = 0; shift < 32; shift += 8) assert_true(byte_deviation(streams[i], shift) < 4.5);
    }
}

static void test_random_avalanche(void **state) {
    (void)state; /* one flipped bit of any part of the key flips half of the bits */
    for (int bit = 0; bit < 128; bit++) {
        int flipped = 0;
        for (uint32_t i = 0; i < 1000; i++) {
            uint64_t seed = i * 77u, seed_flip = bit < 64 ? 1ull << bit : 0;
            uint32_t choice_flip = bit >= 64 && bit < 96 ? 1u << (bit - 64) : 0;
            uint32_t position_flip = bit >= 96 ? 1u << (bit - 96) : 0;
            uint32_t a = sample_random(seed, i, i),
                     b = sample_random(seed ^ seed_flip, i ^ choice_flip, i ^ position_flip);
            flipped += __builtin_popcount(a ^ b);
        }
        assert_in_range(flipped, 15500, 16500); /* 16,000 give or take 89 */
    }
}

static void test_independent_of_order(void **state) {
    (void)state;
    enum { N = 200, VOCAB = 300 };
    float logits[VOCAB], other[VOCAB];
    int32_t forwards[N];
    for (int i = 0; i < VOCAB; i++) logits[i] = random_float(-3, 3), other[i] = random_float(-3, 3);
    struct sampling s, t;
    sampling_init(&s);
    sampling_init(&t);
    s.top_p = 0.95f;
    s.seed = 5;
    t.top_k = 3;
    struct sample_scratch scratch;
    assert_int_equal(sample_scratch_init(&scratch, VOCAB, NULL), 0);
    for (uint32_t i = 0; i < N; i++) forwards[i] = sample_token(&s, logits, NULL, 1, i, &scratch);
    int differ_choice = 0, differ_seed = 0;
    for (uint32_t i = N; i-- > 0;) {
        sample_token(&t, other, NULL, 0, i, &scratch);
        assert_int_equal(sample_token(&s, logits, NULL, 1, i, &scratch), forwards[i]);
        differ_choice += sample_token(&s, logits, NULL, 2, i, &scratch) != forwards[i];
        s.seed = 6;
        differ_seed += sample_token(&s, logits, NULL, 1, i, &scratch) != forwards[i];
        s.seed = 5;
    }
    sample_scratch_free(&scratch);
    assert_true(differ_choice > N / 2 && differ_seed > N / 2);
}

/* ---- log-probabilities, checks, size ---- */

static void test_logprobs(void **state) {
    (void)state;
    static float logits[MAX_VOCAB];
    static struct ranked list[MAX_VOCAB];
    struct token_logprob top[MAX_VOCAB];
    for (int round = 0; round < 500; round++) {
        int vocab = 1 + random_below(round % 10 ? 50 : MAX_VOCAB), n_top = random_below(vocab < 20 ? vocab + 1 : 21);
        double sum = 0;
        for (int i = 0; i < vocab; i++) {
            logits[i] = random_below(2) ? random_float(-20, 20) : (float)random_below(4) + 17;
            list[i] = (struct ranked){logits[i], i};
            sum += exp((double)logits[i]);
        }
        qsort(list, (size_t)vocab, sizeof *list, by_rank);
        int32_t token = random_below(vocab);
        float logprob = sample_logprobs(logits, vocab, token, n_top, top);
        assert_true(fabs((double)logprob - ((double)logits[token] - log(sum))) < 1e-5);
        for (int i = 0; i < n_top; i++) {
            assert_int_equal(top[i].token, list[i].id);
            assert_true(fabs((double)top[i].logprob - ((double)list[i].weight - log(sum))) < 1e-5);
            if (top[i].token == token) assert_true(top[i].logprob == logprob);
        }
    }
}

static void expect_refused(const struct sampling *s, const char *word) {
    struct mo_error error = {0};
    assert_int_equal(sampling_check(s, 100, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, word));
}

#define REFUSED(field, bad)                                                                                            \
    do {                                                                                                               \
        struct sampling s_;                                                                                            \
        sampling_init(&s_);                                                                                            \
        s_.field = bad;                                                                                                \
        expect_refused(&s_, #field);                                                                                   \
    } while (0)

static void test_check(void **state) {
    (void)state;
    struct sampling s;
    sampling_init(&s);
    assert_int_equal(sampling_check(&s, 100, NULL), 0);
    s = (struct sampling){100, 1e-6f, 1, -1, 100, INT32_MAX, -2, 2, 0, NULL, 0, NULL};
    assert_int_equal(sampling_check(&s, 100, NULL), 0);
    REFUSED(temperature, -0.1f);
    REFUSED(temperature, 100.5f);
    REFUSED(temperature, NAN);
    REFUSED(top_p, 0);
    REFUSED(top_p, 1.01f);
    REFUSED(top_p, NAN);
    REFUSED(min_p, -0.01f);
    REFUSED(min_p, 1.5f);
    REFUSED(top_k, -2);
    REFUSED(repetition_penalty, 0);
    REFUSED(repetition_penalty, INFINITY);
    REFUSED(repetition_last_n, -1);
    REFUSED(presence_penalty, 2.5f);
    REFUSED(frequency_penalty, -2.5f);
    for (int i = 0; i < 4; i++) {
        struct logit_bias bias[4] = {{-1, 0}, {100, 0}, {5, 101}, {5, NAN}};
        sampling_init(&s);
        s.bias = &bias[i];
        s.n_bias = 1;
        expect_refused(&s, "logit_bias");
    }
}

/* A real vocabulary in orders that are bad for careless selection; quadratic work would take minutes. */
static void test_large_vocabulary(void **state) {
    (void)state;
    enum { VOCAB = 102400 };
    static float logits[VOCAB];
    struct sample_scratch scratch;
    assert_int_equal(sample_scratch_init(&scratch, VOCAB, NULL), 0);
    for (int shape = 0; shape < 5; shape++) {
        for (int i = 0; i < VOCAB; i++) {
            float up = (float)i / VOCAB;
            const float shapes[5] = {1, up, -up, fabsf(up - 0.5f), random_float(-8, 8)};
            logits[i] = shapes[shape];
        }
        for (int filter = 0; filter < 3; filter++) {
            struct sampling s;
            sampling_init(&s);
            if (filter != 1) s.top_k = 50;
            if (filter != 0) s.top_p = 0.9f;
            for (uint32_t i = 0; i < 3; i++) {
                int32_t token = sample_token(&s, logits, NULL, 0, i, &scratch);
                assert_int_equal(token, reference_sample(&s, logits, NULL, 0, i, VOCAB));
            }
        }
    }
    sample_scratch_free(&scratch);
}

int main(void) {
    test_state = 20240607;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_each_filter),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_order_of_filters),
        cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_bias),
        cmocka_unit_test(test_bad_logits),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_philox_vectors),
        cmocka_unit_test(test_random_uniform),
        cmocka_unit_test(test_random_avalanche),
        cmocka_unit_test(test_independent_of_order),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_large_vocabulary),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
