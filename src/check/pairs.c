/* What attention takes of a level in pair order (kern.h): to_bf16, pair_dots, pair_sum. */
#include "check/check_priv.h"

#include <float.h>
#include <math.h>
#include <string.h>

static const float unset = -12345.678f;

/* Of sum |ab|: sums of floats. Besides, of each of n products, one step that came out subnormal and counts as 0. */
static double allowed(double size, int n) {
    return 2e-6 * size + n * 4 * 0x1p-126;
}

/* Random ones, of which every eighth round has some at the lower end of the numbers, and every 16th one that is none. */
static uint16_t *make_bf16(struct check *check, int n, int round) {
    uint16_t *out = check_alloc(check, (size_t)n * sizeof *out);
    for (int i = 0; i < n; i++)
        out[i] = f32_to_bf16(random_float(&check->random) * (round % 8 == 5 && i % 3 ? 1e-37f : 1.0f));
    if (round % 16 == 7) out[random_int(&check->random, 0, n - 1)] = f32_to_bf16(round % 32 == 7 ? NAN : INFINITY);
    return out;
}

/* ---- rounding ---- */

static void check_rounding(struct check *check) {
    check_begin(check, "to_bf16", 41, "(same bits)", 1);
    for (int round = 0; round < 400; round++, check->cases++) {
        check_round(check, round);
        const int n = random_int(&check->random, 1, 300);
        uint32_t *x = check_alloc(check, (size_t)n * sizeof *x);
        uint16_t *got = check_alloc(check, (size_t)n * sizeof *got), expected;
        for (int i = 0; i < n; i++) { /* any bits; often halves, subnormal numbers, and what is none */
            x[i] = random_u32(&check->random);
            if (round % 4 == 1) x[i] = (x[i] & 0xffff0000) | 0x8000;
            if (round % 4 == 2) x[i] &= 0x80ffffff;
            if (round % 4 == 3) x[i] |= 0x7f000000;
        }
        check->kern.to_bf16((const float *)x, n, got);
        for (int i = 0; i < n; i++) {
            check->ref.to_bf16((const float *)x + i, 1, &expected);
            check_bits(check, "value", i, bf16_to_f32(got[i]), bf16_to_f32(expected));
        }
    }
    check_end(check);
}

/* ---- scores ---- */

static void check_dot(struct check *check, const struct kern_pair_dots *job, int row, int t, float got) {
    const uint16_t *q = job->q + (size_t)row * job->q_stride, *k = job->k + (size_t)t * job->k_stride;
    double sum = 0, size = 0;
    float expected, alone;
    struct kern_pair_dots one = {.q = q, .n_q = 1, .k = k, .n_k = 1, .dim = job->dim, .out = &expected};
    check->ref.pair_dots(&one);
    one.out = &alone;
    check->kern.pair_dots(&one);
    for (int i = 0; i < job->dim; i++) {
        double product = (double)bf16_to_f32(q[i]) * (double)bf16_to_f32(k[i]);
        sum += product;
        size += fabs(product);
    }
    check_value(check, "dot", row * job->n_k + t, got, (float)sum, allowed(size, job->dim));
    check_bits(check, "dot", row * job->n_k + t, got, expected);
    check_bits(check, "alone", row * job->n_k + t, alone, expected);
}

static void check_dots_round(struct check *check, int round) {
    struct check_random *random = &check->random;
    struct kern_pair_dots job = {
        .n_q = random_int(random, 1, 19), .n_k = random_int(random, 1, 70), .dim = random_int(random, 1, 300)};
    if (round == 1) job.n_q = 16, job.n_k = 64, job.dim = 576;
    job.q_stride = (size_t)(job.dim + random_int(random, 0, 3));
    job.k_stride = (size_t)(job.dim + random_int(random, 0, 64));
    job.out_stride = (size_t)(job.n_k + random_int(random, 0, 3));
    job.next_bytes = (size_t)random_int(random, 0, 1 << 16);
    job.q = make_bf16(check, (int)((size_t)(job.n_q - 1) * job.q_stride) + job.dim, round);
    job.k = make_bf16(check, (int)((size_t)(job.n_k - 1) * job.k_stride) + job.dim, round + 1);
    if (random_int(random, 0, 1)) job.next = job.k; /* asking for memory changes no sum */
    const int count = (int)((size_t)(job.n_q - 1) * job.out_stride) + job.n_k;
    float *got = check_floats(check, count);
    for (int i = 0; i < count; i++) got[i] = unset;
    job.out = got;
    check->kern.pair_dots(&job);
    for (int i = 0; i < count; i++) { /* between the rows nothing is written */
        const int row = i / (int)job.out_stride, t = i % (int)job.out_stride;
        if (t >= job.n_k) check_bits(check, "between rows", i, got[i], unset);
        if (t < job.n_k) check_dot(check, &job, row, t, got[i]);
    }
}

static void check_dots(struct check *check) {
    check_begin(check, "pair_dots", 42, "of sum |kq|", 2e-6);
    for (int round = 0; round < 150; round++, check->cases++) {
        check_round(check, round);
        check_dots_round(check, round);
    }
    check_end(check);
}

/* ---- values ---- */

/* The sum in double, of weights as they are rounded. */
static void check_sum(struct check *check, const struct kern_pair_sum *job, int row, int c, float before, float got) {
    double sum = job->keep ? (double)before * (double)job->keep[row] : 0, size = fabs(sum);
    for (int t = 0; t < job->n_t; t++) {
        uint16_t p;
        check->ref.to_bf16(job->p + (size_t)row * job->p_stride + t, 1, &p);
        double product = (double)bf16_to_f32(p) * (double)bf16_to_f32(job->v[(size_t)t * job->v_stride + (size_t)c]);
        sum += product;
        size += fabs(product);
    }
    check_value(check, "acc", row * job->n_c + c, got, (float)sum, allowed(size, job->n_t + 1));
}

/* Rows [i0, i1) by a table's kernel into `out`, which stands for acc. */
static void run_sum(const struct kern *with, struct kern_pair_sum job, float *out, int i0, int i1) {
    job.acc = out + (size_t)i0 * job.acc_stride;
    job.keep = job.keep ? job.keep + i0 : NULL;
    job.p += (size_t)i0 * job.p_stride;
    job.m = i1 - i0;
    with->pair_sum(&job);
}

static struct kern_pair_sum make_sum(struct check *check, int round) {
    struct check_random *random = &check->random;
    struct kern_pair_sum job = {
        .m = random_int(random, 1, 19), .n_t = random_int(random, 0, 70), .n_c = random_int(random, 1, 300)};
    if (round == 1) job.m = 16, job.n_t = 64, job.n_c = 512;
    if (round == 2) job.m = 70, job.n_t = 131, job.n_c = 70; /* more than any kernel takes at once */
    job.acc_stride = (size_t)(job.n_c + random_int(random, 0, 3));
    job.p_stride = (size_t)(job.n_t + random_int(random, 0, 3));
    job.v_stride = (size_t)(job.n_c + random_int(random, 0, 64));
    const int acc_count = (int)((size_t)(job.m - 1) * job.acc_stride) + job.n_c;
    const int p_count = (int)((size_t)(job.m - 1) * job.p_stride) + job.n_t;
    float *acc = check_floats(check, acc_count), *p = check_floats(check, p_count);
    float *keep = round % 3 ? check_floats(check, job.m) : NULL;
    for (int i = 0; i < acc_count; i++) acc[i] = keep ? random_float(random) : NAN; /* overwritten without keep */
    for (int i = 0; i < p_count; i++) p[i] = fabsf(random_float(random)) * (round % 8 == 6 ? 1e-37f : 1.0f);
    for (int i = 0; keep && i < job.m; i++) keep[i] = fabsf(random_float(random));
    job.acc = acc;
    job.p = p;
    job.keep = keep;
    job.v = make_bf16(check, job.n_t ? (int)((size_t)(job.n_t - 1) * job.v_stride) + job.n_c : 1, round);
    return job;
}

static void check_sum_round(struct check *check, int round) {
    const struct kern_pair_sum job = make_sum(check, round);
    const int stride = (int)job.acc_stride, count = (job.m - 1) * stride + job.n_c;
    float *expected = check_copy(check, job.acc, count), *got = check_copy(check, job.acc, count),
          *alone = check_copy(check, job.acc, count);
    run_sum(&check->ref, job, expected, 0, job.m);
    run_sum(&check->kern, job, got, 0, job.m);
    for (int i = 0; i < job.m; i++) run_sum(&check->kern, job, alone, i, i + 1);
    for (int i = 0; i < count; i++) { /* between the rows nothing is written */
        if (i % stride < job.n_c) check_sum(check, &job, i / stride, i % stride, job.acc[i], got[i]);
        check_bits(check, "acc", i, got[i], i % stride < job.n_c ? expected[i] : job.acc[i]);
        check_bits(check, "row alone", i, alone[i], got[i]);
    }
}

static void check_sums(struct check *check) {
    check_begin(check, "pair_sum", 43, "of sum |pv|", 2e-6);
    for (int round = 0; round < 150; round++, check->cases++) {
        check_round(check, round);
        check_sum_round(check, round);
    }
    check_end(check);
}

void check_pairs(struct check *check) {
    if (!check->kern.pair_order) return;
    check_rounding(check);
    check_dots(check);
    check_sums(check);
}
