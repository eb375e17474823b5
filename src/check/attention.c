/* The sums of attention: dots, weighted_sum, relu_sum, softmax_step and its exponential. */
#include "check/check_priv.h"

#include <math.h>
#include <string.h>

/* ---- scores ---- */

static const float unset = -12345.678f;

/* In tile order each factor is two parts, which leave 2^-17 of it, and the product of the second parts, 2^-16 of all, is left
 * out: 2^-15 together. */
static double allowed_share(const struct check *check) {
    return 2e-6 + (check->kern.tile_order ? 0x1p-15 : 0);
}

/* What it may lose at each of n products besides: a part below 2^-126 (times what it meets, below 4 here), three products that
 * small, and a share of the step's sums. */
static double allowed_underflow(const struct check *check, int n) {
    return check->kern.tile_order ? n * 16 * 0x1p-126 : 0;
}

/* Every eighth round has factors at the lower end of the numbers. */
static float factor_size(int round) {
    return round % 8 == 5 ? 1e-37f : 1.0f;
}

struct dots_case {
    float *q, *k;
    int n_q, n_k, dim, q_stride, k_stride, out_stride;
    const void *next; /* asking for memory changes no sum, whatever lies there */
    size_t next_bytes;
};

static struct dots_case make_dots_case(struct check *check, int round) {
    struct check_random *random = &check->random;
    struct dots_case c = {
        .n_q = random_int(random, 1, 19), .n_k = random_int(random, 1, 70), .dim = random_int(random, 1, 300)};
    if (round == 1) c.n_q = 16, c.n_k = 64, c.dim = 576;
    if (round == 2) c.n_q = 18, c.n_k = 66, c.dim = 1100; /* more than any kernel takes at once */
    c.q_stride = c.dim + random_int(random, 0, 3);
    c.k_stride = c.dim + random_int(random, 0, 64);
    c.out_stride = c.n_k + random_int(random, 0, 3);
    c.next_bytes = (size_t)random_int(random, 0, 1 << 16);
    int q_count = (c.n_q - 1) * c.q_stride + c.dim, k_count = (c.n_k - 1) * c.k_stride + c.dim;
    c.q = check_floats(check, q_count);
    c.k = check_floats(check, k_count);
    if (random_int(random, 0, 1)) c.next = c.k;
    for (int i = 0; i < q_count; i++) c.q[i] = random_float(random) * factor_size(round);
    for (int i = 0; i < k_count; i++) c.k[i] = random_float(random);
    return c;
}

/* One score: its value, and the bits of the plain C kernel. */
static void check_dot(struct check *check, const struct dots_case *c, int row, int t, float got) {
    const float *q = c->q + row * c->q_stride, *k = c->k + t * c->k_stride;
    double sum = 0, size = 1e-30;
    float expected;
    check->ref.dots(&(struct kern_dots){.q = q, .n_q = 1, .k = k, .n_k = 1, .dim = c->dim, .out = &expected});
    for (int i = 0; i < c->dim; i++) {
        double product = (double)q[i] * (double)k[i];
        sum += product;
        size += fabs(product);
    }
    check_value(check, "dot", row * c->n_k + t, got, (float)sum,
                allowed_share(check) * size + allowed_underflow(check, c->dim));
    check_bits(check, "dot", row * c->n_k + t, got, expected);
}

static void check_dots_case(struct check *check, const struct dots_case *c) {
    int count = (c->n_q - 1) * c->out_stride + c->n_k;
    float *got = check_floats(check, count), *alone = check_floats(check, count);
    for (int i = 0; i < count; i++) got[i] = alone[i] = unset;
    check->kern.dots(&(struct kern_dots){.q = c->q,
                                         .q_stride = (size_t)c->q_stride,
                                         .n_q = c->n_q,
                                         .k = c->k,
                                         .k_stride = (size_t)c->k_stride,
                                         .n_k = c->n_k,
                                         .dim = c->dim,
                                         .out = got,
                                         .out_stride = (size_t)c->out_stride,
                                         .next = c->next,
                                         .next_bytes = c->next_bytes});
    for (int i = 0; i < c->n_q; i++) /* a query alone, a key alone */
        for (int t = 0; t < c->n_k; t++)
            check->kern.dots(&(struct kern_dots){.q = c->q + i * c->q_stride,
                                                 .n_q = 1,
                                                 .k = c->k + t * c->k_stride,
                                                 .n_k = 1,
                                                 .dim = c->dim,
                                                 .out = alone + i * c->out_stride + t});
    for (int i = 0; i < count; i++) { /* between the rows nothing is written */
        check_bits(check, "alone", i, got[i], alone[i]);
        if (i % c->out_stride >= c->n_k) check_bits(check, "between rows", i, got[i], unset);
    }
    for (int i = 0; i < c->n_q; i++)
        for (int t = 0; t < c->n_k; t++) check_dot(check, c, i, t, got[i * c->out_stride + t]);
}

static void check_dots(struct check *check) {
    check_begin(check, "dots", 39, "of sum |kq|", allowed_share(check));
    for (int round = 0; round < 150; round++, check->cases++) {
        check_round(check, round);
        struct dots_case c = make_dots_case(check, round);
        check_dots_case(check, &c);
    }
    check_end(check);
}

/* ---- values ---- */

struct sum_case {
    bool page; /* page_sum, not weighted_sum */
    float *acc, *keep, *p, *v;
    int m, n_t, n_c, acc_stride, p_stride, v_stride;
};

/* Rows [i0, i1) into `out`, which stands for acc. */
static void run_weighted_sum(const struct kern *with, const struct sum_case *c, float *out, int i0, int i1) {
    (c->page ? with->page_sum : with->weighted_sum)(
        out + i0 * c->acc_stride, (size_t)c->acc_stride, c->keep ? c->keep + i0 : NULL, c->p + i0 * c->p_stride,
        (size_t)c->p_stride, c->v, (size_t)c->v_stride, i1 - i0, c->n_t, c->n_c);
}

static void check_sum(struct check *check, const struct sum_case *c, int row, int column, float got) {
    double start = (double)c->acc[row * c->acc_stride + column];
    double sum = c->keep ? start * (double)c->keep[row] : 0, size = fabs(sum) + 1e-30;
    for (int t = 0; t < c->n_t; t++) {
        double product = (double)c->p[row * c->p_stride + t] * (double)c->v[t * c->v_stride + column];
        sum += product;
        size += fabs(product);
    }
    check_value(check, "acc", row * c->acc_stride + column, got, (float)sum,
                c->page ? allowed_share(check) * size + allowed_underflow(check, c->n_t) : 2e-6 * size);
}

static void check_sum_case(struct check *check, const struct sum_case *c) {
    int count = (c->m - 1) * c->acc_stride + c->n_c;
    float *expected = check_copy(check, c->acc, count), *got = check_copy(check, c->acc, count),
          *alone = check_copy(check, c->acc, count);
    run_weighted_sum(&check->ref, c, expected, 0, c->m);
    run_weighted_sum(&check->kern, c, got, 0, c->m);
    for (int i = 0; i < c->m; i++) run_weighted_sum(&check->kern, c, alone, i, i + 1);
    for (int i = 0; i < count; i++) {
        int row = i / c->acc_stride, column = i % c->acc_stride;
        if (column >= c->n_c) { /* between the rows nothing is written */
            check_bits(check, "between rows", i, got[i], c->acc[i]);
            continue;
        }
        check_sum(check, c, row, column, got[i]);
        check_bits(check, "acc", i, got[i], expected[i]);
        check_bits(check, "row alone", i, alone[i], got[i]);
    }
}

static struct sum_case make_sum_case(struct check *check, int round) {
    struct check_random *random = &check->random;
    struct sum_case c = {
        .m = random_int(random, 1, 19), .n_t = random_int(random, 0, 70), .n_c = random_int(random, 1, 300)};
    if (round == 1) c.m = 16, c.n_t = 64, c.n_c = 512;
    if (round == 2) c.m = 130, c.n_t = 66, c.n_c = 70; /* more than any kernel takes at once */
    c.acc_stride = c.n_c + random_int(random, 0, 3);
    c.p_stride = c.n_t + random_int(random, 0, 3);
    c.v_stride = c.n_c + random_int(random, 0, 64);
    int acc_count = (c.m - 1) * c.acc_stride + c.n_c, v_count = c.n_t ? (c.n_t - 1) * c.v_stride + c.n_c : 0;
    int p_count = (c.m - 1) * c.p_stride + c.n_t;
    c.acc = check_floats(check, acc_count);
    c.p = check_floats(check, p_count);
    c.v = check_floats(check, v_count);
    c.keep = round % 3 ? check_floats(check, c.m) : NULL;
    for (int i = 0; i < acc_count; i++)
        c.acc[i] = round % 3 ? random_float(random) : NAN; /* overwritten without keep */
    for (int i = 0; i < p_count; i++) c.p[i] = fabsf(random_float(random)) * factor_size(round);
    for (int i = 0; i < v_count; i++) c.v[i] = random_float(random);
    for (int i = 0; c.keep && i < c.m; i++) c.keep[i] = fabsf(random_float(random));
    return c;
}

static void check_weighted_sum(struct check *check, bool page) {
    check_begin(check, page ? "page_sum" : "weighted_sum", 40, "of sum |pv|", page ? allowed_share(check) : 2e-6);
    for (int round = 0; round < 150; round++, check->cases++) {
        check_round(check, round);
        struct sum_case c = make_sum_case(check, round);
        c.page = page;
        check_sum_case(check, &c);
    }
    check_end(check);
}

/* ---- the indexer ---- */

struct relu_case {
    float *w, *s; /* [heads], [heads][stride] */
    int heads, n, stride;
};

static struct relu_case make_relu_case(struct check *check, int round) {
    struct check_random *random = &check->random;
    struct relu_case c = {.heads = random_int(random, 1, 19), .n = random_int(random, 1, 150)};
    if (round == 1) c.heads = 64, c.n = 64;
    c.stride = c.n + random_int(random, 0, 3);
    int count = (c.heads - 1) * c.stride + c.n;
    c.w = check_floats(check, c.heads);
    c.s = check_floats(check, count);
    for (int h = 0; h < c.heads; h++) c.w[h] = random_float(random);
    for (int i = 0; i < count; i++) c.s[i] = random_float(random);
    if (round % 8 == 2) c.s[random_int(random, 0, count - 1)] = NAN;
    if (round % 8 == 3) c.s[random_int(random, 0, count - 1)] = INFINITY;
    if (round % 8 == 4) c.s[random_int(random, 0, count - 1)] = -INFINITY;
    if (round % 8 == 5) c.s[random_int(random, 0, count - 1)] = -0.0f;
    return c;
}

static void check_relu_value(struct check *check, const struct relu_case *c, int t, float got) {
    double sum = 0, size = 1e-30;
    for (int h = 0; h < c->heads; h++) {
        double score = (double)c->s[h * c->stride + t], product = (double)c->w[h] * (score < 0 ? 0 : score);
        sum += product;
        size += fabs(product);
    }
    check_value(check, "score", t, got, (float)sum, 2e-6 * size);
}

static void check_relu_sum(struct check *check) {
    check_begin(check, "relu_sum", 41, "of sum |ws|", 2e-6);
    for (int round = 0; round < 150; round++, check->cases++) {
        check_round(check, round);
        struct relu_case c = make_relu_case(check, round);
        float *got = check_floats(check, c.n), *expected = check_floats(check, c.n), *alone = check_floats(check, c.n);
        check->kern.relu_sum(c.w, c.s, (size_t)c.stride, c.heads, c.n, got);
        check->ref.relu_sum(c.w, c.s, (size_t)c.stride, c.heads, c.n, expected);
        for (int t = 0; t < c.n; t++) {
            check->kern.relu_sum(c.w, c.s + t, (size_t)c.stride, c.heads, 1, alone + t);
            check_relu_value(check, &c, t, got[t]);
            check_bits(check, "score", t, got[t], expected[t]);
            check_bits(check, "alone", t, alone[t], got[t]);
        }
    }
    check_end(check);
}

/* ---- softmax ---- */

struct softmax_case {
    int n;
    float *s; /* [n] */
    float scale, max, sum;
};

static void check_share(struct check *check, const char *what, int index, float got, double expected, double share) {
    check_value(check, what, index, got, (float)expected, share * fabs(expected) + 2e-38);
}

/* In double, but for the scaled scores and their distances from the maximum, which a float must hold. */
static void check_softmax_values(struct check *check, const struct softmax_case *c, const float *got, float keep,
                                 float got_sum) {
    float top = c->max;
    for (int i = 0; i < c->n; i++)
        if (c->s[i] * c->scale > top) top = c->s[i] * c->scale;
    if (top == -INFINITY) top = 0;
    double kept = exp((double)(c->max - top)), total = (double)c->sum * kept;
    for (int i = 0; i < c->n; i++) {
        double value = exp((double)(c->s[i] * c->scale - top));
        total += value;
        check_share(check, "s", i, got[i], value, 1e-6);
    }
    check_share(check, "keep", 0, keep, kept, 1e-6);
    check_share(check, "sum", 0, got_sum, total, 4e-6);
}

static void check_softmax_case(struct check *check, const struct softmax_case *c) {
    float *got = check_copy(check, c->s, c->n), *expected = check_copy(check, c->s, c->n);
    float got_max = c->max, got_sum = c->sum, expected_max = c->max, expected_sum = c->sum;
    float keep = check->kern.softmax_step(got, c->n, c->scale, &got_max, &got_sum);
    float expected_keep = check->ref.softmax_step(expected, c->n, c->scale, &expected_max, &expected_sum);
    for (int i = 0; i < c->n; i++) check_bits(check, "s", i, got[i], expected[i]);
    check_bits(check, "max", 0, got_max, expected_max);
    check_bits(check, "keep", 0, keep, expected_keep);
    check_bits(check, "sum", 0, got_sum, expected_sum);
    check_softmax_values(check, c, got, keep, got_sum);
}

static struct softmax_case make_softmax_case(struct check *check, int round) {
    struct check_random *random = &check->random;
    struct softmax_case c = {.n = random_int(random, 1, 130)};
    bool masked = round % 8 == 1, all = round % 8 == 3, zeros = round % 8 == 6;
    float spread = round % 8 == 4 ? 300.0f : 8.0f;
    c.s = check_floats(check, c.n);
    for (int i = 0; i < c.n; i++) {
        c.s[i] = random_float(random) * spread;
        if (all || (masked && random_u32(random) % 3 == 0)) c.s[i] = -INFINITY;
        if (zeros) c.s[i] = random_u32(random) & 1 ? 0.0f : -0.0f; /* which of them is the maximum? */
    }
    if (round % 8 == 2) c.s[random_int(random, 0, c.n - 1)] = NAN;
    if (round % 8 == 5) c.s[random_int(random, 0, c.n - 1)] = INFINITY;
    bool first = random_u32(random) & 1;
    c.max = first ? -INFINITY : zeros ? -0.0f : random_float(random) * spread;
    c.sum = first ? 0 : fabsf(random_float(random));
    c.scale = 0.1f + fabsf(random_float(random));
    return c;
}

static void check_softmax(struct check *check) {
    check_begin(check, "softmax_step", 50, "relative", 1e-6);
    for (int round = 0; round < 2000; round++, check->cases++) {
        check_round(check, round);
        struct softmax_case c = make_softmax_case(check, round);
        check_softmax_case(check, &c);
    }
    check_end(check);
}

/* softmax_step with the maximum held at 0 is e^s: all of its range against the C library in double. */
static void check_exp(struct check *check) {
    enum { POINTS = 4096, ROUNDS = 64 };
    check_begin(check, "exp", 0, "relative", 2e-7);
    for (int round = 0; round < ROUNDS; round++, check->cases++) {
        check_round(check, round);
        float *x = check_floats(check, POINTS), max = 0, sum = 0, expected_max = 0, expected_sum = 0;
        for (int i = 0; i < POINTS; i++) x[i] = -87.33f * (float)(i * ROUNDS + round) / (POINTS * ROUNDS);
        float *got = check_copy(check, x, POINTS), *expected = check_copy(check, x, POINTS);
        check->ref.softmax_step(expected, POINTS, 1, &expected_max, &expected_sum);
        check->kern.softmax_step(got, POINTS, 1, &max, &sum);
        for (int i = 0; i < POINTS; i++) {
            double value = exp((double)x[i]);
            check_value(check, "exp", i, got[i], (float)value, 2e-7 * value);
            check_bits(check, "exp", i, got[i], expected[i]);
        }
    }
    check_end(check);
}

void check_attention(struct check *check) {
    check_dots(check);
    check_weighted_sum(check, false);
    if (check->kern.page_sum != check->kern.weighted_sum) check_weighted_sum(check, true);
    check_relu_sum(check);
    check_softmax(check);
    check_exp(check);
}
