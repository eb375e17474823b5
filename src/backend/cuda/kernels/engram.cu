/* V4.1's n-gram memory: what a stream takes of a row's value, by how well its key goes with the stream. As backend/cpu/engram.c has it,
 * source included. */
#include "device.cuh"
#include "../params_streams.h"

/* Of a stream, of its key, of both with their weights, and of the value. */
struct engram_sums {
    float x, key, fit, value;
};

DEVICE void add_columns(const struct engram_params *p, int stream, const float *x, const float *kv, int k,
                        struct engram_sums *sum) {
    const size_t at = (size_t)stream * (size_t)p->hidden + (size_t)k;
    struct floats4 a = *(const struct floats4 *)(x + k), b = *(const struct floats4 *)(kv + at);
    struct floats4 q = *(const struct floats4 *)(p->q_weight + at), w = *(const struct floats4 *)(p->k_weight + at);
    struct floats4 v = *(const struct floats4 *)(kv + (size_t)p->streams * (size_t)p->hidden + (size_t)k);
    UNROLL
    for (int c = 0; c < 4; c++) {
        sum->x = fmaf(a.v[c], a.v[c], sum->x);
        sum->key = fmaf(b.v[c], b.v[c], sum->key);
        sum->fit = fmaf(a.v[c], b.v[c] * (q.v[c] * w.v[c]), sum->fit);
        sum->value = fmaf(v.v[c], v.v[c], sum->value);
    }
}

/* The block's sum, the same for all its threads: warps in ascending order. A barrier comes before it and after it. */
DEVICE float block_sum(float value, float *part) {
    value = warp_sum(value);
    if (LANE == 0) part[WARP] = value;
    barrier();
    value = 0;
    for (int i = 0; i < BLOCK_WARPS; i++) value += part[i];
    barrier();
    return value;
}

DEVICE float gate_of(const struct engram_params *p, const struct engram_sums *sum) {
    float n = (float)p->hidden;
    float norms = inverse_root(divide(sum->x, n) + p->eps) * inverse_root(divide(sum->key, n) + p->eps);
    float fit = sum->fit * norms * inverse_root(n), size = fmaxf(fabsf(fit), 1e-6f), root = size * inverse_root(size);
    return divide_roughly(1.0f, 1.0f + expf(fit < 0 ? root : -root));
}

KERNEL(engram_add, engram_params) {
    SHARED float part[BLOCK_WARPS];
    int row = BLOCK / p.streams, stream = BLOCK % p.streams;
    after_previous();
    float *x = p.residual + (size_t)BLOCK * (size_t)p.hidden;
    const float *kv = p.kv + (size_t)row * (size_t)(p.streams + 1) * (size_t)p.hidden;
    const float *value = kv + (size_t)p.streams * (size_t)p.hidden;
    struct engram_sums sum = {0, 0, 0, 0};
    for (int k = THREAD * 4; k < p.hidden; k += BLOCK_THREADS * 4) add_columns(&p, stream, x, kv, k, &sum);
    sum.x = block_sum(sum.x, part);
    sum.key = block_sum(sum.key, part);
    sum.fit = block_sum(sum.fit, part);
    sum.value = block_sum(sum.value, part);
    if (THREAD == 0 && !is_finite(sum.x)) {
        note_fault(p.fault, p.fault_before, row);
    } else if (THREAD == 0 && !(is_finite(sum.key) && is_finite(sum.value))) {
        note_fault(p.fault, p.fault_key, row);
    }
    float gate = gate_of(&p, &sum);
    for (int k = THREAD * 4; k < p.hidden; k += BLOCK_THREADS * 4) {
        struct floats4 to = *(const struct floats4 *)(x + k), from = *(const struct floats4 *)(value + k);
        UNROLL
        for (int c = 0; c < 4; c++) to.v[c] = fmaf(gate, from.v[c], to.v[c]);
        *(struct floats4 *)(x + k) = to;
    }
}
