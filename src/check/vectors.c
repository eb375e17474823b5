/* Kernels of one row: 8-bit activations, norm, activation function, addition. */
#include "check/check_priv.h"

#include <math.h>
#include <string.h>

static void fill_floats(struct check *check, float *x, int n, float size) {
    for (int i = 0; i < n; i++) x[i] = random_float(&check->random) * size;
}

/* ---- 8-bit activations ---- */

static float random_activation(struct check_random *random, int round) {
    if (round % 8 == 1) return random_float(random) * 1e-39f;
    if (round % 8 == 2) return random_float(random) * 1e37f;
    if (round % 8 == 3) return (float)random_int(random, -127, 127) * 0.5f; /* ties */
    if (round % 8 == 4 && random_u32(random) % 50 == 0) return random_u32(random) & 1 ? NAN : -INFINITY;
    if (round % 8 == 5) return 0;
    return random_float(random) * expf(random_float(random) * 3);
}

static void check_quantize_case(struct check *check, const float *x, int n, int group) {
    int padded = (n + Q8_GROUP_MAX - 1) / Q8_GROUP_MAX * Q8_GROUP_MAX, groups = padded / group;
    struct q8_row expected = check_make_q8(check, x, n, group), got = check_make_q8(check, x, n, group);
    memset(got.q, 99, (size_t)padded);
    memset(got.sum, 99, (size_t)groups * sizeof *got.sum);
    memset(got.scale, 99, (size_t)groups * sizeof *got.scale);
    check->kern.quantize(x, n, group, &got);
    for (int i = 0; i < padded; i++) check_bits(check, "q", i, got.q[i], expected.q[i]);
    for (int i = 0; i < groups; i++) {
        check_bits(check, "sum", i, (float)got.sum[i], (float)expected.sum[i]);
        check_bits(check, "scale", i, got.scale[i], expected.scale[i]);
    }
    for (int i = 0; i < n; i++) { /* and it means what it should: half a step beside x at most */
        float step = got.scale[i / group], value = (float)got.q[i] * step;
        if (isfinite(step) && !(fabsf(value - x[i]) <= step * 0.5001f + 0x1p-100f))
            check_fault(check, "x[%d] = %g became %g", i, (double)x[i], (double)value);
    }
}

static void check_quantize(struct check *check) {
    check_begin(check, "quantize", 20, "(same bits)", 1);
    for (int round = 0; round < 400; round++, check->cases++) {
        check_round(check, round);
        int n = random_int(&check->random, 1, 300);
        float *x = check_floats(check, n);
        for (int i = 0; i < n; i++) x[i] = random_activation(&check->random, round);
        check_quantize_case(check, x, n, Q8_GROUP_MIN << round % 3);
    }
    check_end(check);
}

/* ---- norm, activation, addition ---- */

static void check_rms_values(struct check *check, int n, const float *x, const float *weight, const float *out,
                             float mean) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    check_value(check, "mean", 0, mean, (float)(sum / n), 4e-6 * sum / n + 1e-40);
    for (int i = 0; i < n; i++) {
        double value = (double)x[i] / sqrt(sum / n + 1e-6) * (double)weight[i];
        if (isinf(sum)) value = (double)x[i] * (1 / sum); /* Inf / Inf and Inf * 0: NaN either way */
        check_value(check, "out", i, out[i], (float)value, 4e-6 * fabs(value) + 1e-40);
    }
}

static void check_rms_norm(struct check *check) {
    struct check_random *random = &check->random;
    check_begin(check, "rms_norm", 60, "relative", 4e-6);
    for (int round = 0; round < 200; round++, check->cases++) {
        check_round(check, round);
        int n = round == 0 ? 5120 : random_int(random, 1, 300), in_place = round % 2;
        float *x = check_floats(check, n), *weight = check_floats(check, n), *expected = check_floats(check, n);
        float *out = in_place ? x : check_floats(check, n);
        fill_floats(check, x, n, round % 5 == 1 ? 1e-20f : round % 5 == 2 ? 1e15f : 3.0f);
        fill_floats(check, weight, n, 1);
        if (round % 5 == 3) x[random_int(random, 0, n - 1)] = round % 2 ? NAN : INFINITY;
        float *before = check_copy(check, x, n);
        float expected_mean = check->ref.rms_norm(x, weight, n, 1e-6f, expected);
        float mean = check->kern.rms_norm(x, weight, n, 1e-6f, out);
        for (int i = 0; i < n; i++) check_bits(check, "out", i, out[i], expected[i]);
        check_bits(check, "mean", 0, mean, expected_mean);
        check_rms_values(check, n, before, weight, out, mean);
    }
    check_end(check);
}

static void check_silu_mul(struct check *check) {
    struct check_random *random = &check->random;
    check_begin(check, "silu_mul", 70, "relative", 1e-6);
    for (int round = 0; round < 200; round++, check->cases++) {
        check_round(check, round);
        int n = random_int(random, 1, 300);
        float *gate = check_floats(check, n), *up = check_floats(check, n);
        fill_floats(check, gate, n, round % 4 == 1 ? 60.0f : round % 4 == 2 ? 1e30f : 4.0f);
        fill_floats(check, up, n, 2);
        if (round % 4 == 3) gate[random_int(random, 0, n - 1)] = NAN;
        if (round % 4 == 3) gate[random_int(random, 0, n - 1)] = INFINITY;
        float *before = check_copy(check, gate, n), *expected = check_copy(check, gate, n);
        check->ref.silu_mul(expected, up, n);
        check->kern.silu_mul(gate, up, n);
        for (int i = 0; i < n; i++) {
            double value = (double)before[i] / (1 + exp(-(double)before[i])) * (double)up[i];
            check_value(check, "gate", i, gate[i], (float)value, 1e-6 * fabs(value) + 1e-33);
            check_bits(check, "gate", i, gate[i], expected[i]);
        }
    }
    check_end(check);
}

static void check_add_scaled(struct check *check) {
    check_begin(check, "add_scaled", 80, "of |x| + |ay|", 2e-7);
    for (int round = 0; round < 200; round++, check->cases++) {
        check_round(check, round);
        int n = random_int(&check->random, 1, 300);
        float *x = check_floats(check, n), *y = check_floats(check, n), a = random_float(&check->random);
        fill_floats(check, x, n, 1);
        fill_floats(check, y, n, 1);
        float *before = check_copy(check, x, n), *expected = check_copy(check, x, n);
        check->ref.add_scaled(expected, a, y, n);
        check->kern.add_scaled(x, a, y, n);
        for (int i = 0; i < n; i++) {
            double product = (double)a * (double)y[i], start = (double)before[i];
            check_value(check, "x", i, x[i], (float)(start + product), 2e-7 * (fabs(start) + fabs(product)));
            check_bits(check, "x", i, x[i], expected[i]);
        }
    }
    check_end(check);
}

void check_vectors(struct check *check) {
    check_quantize(check);
    check_rms_norm(check);
    check_silu_mul(check);
    check_add_scaled(check);
}
