/* backend/cuda/kernels/merge.cuh - putting splits of attention together: one step at a time, ascending, with the same
 * operations wherever it is done. Includes: device.cuh. */
#ifndef MOEBIUS_CUDA_MERGE_CUH
#define MOEBIUS_CUDA_MERGE_CUH

#include "device.cuh"

/* A running softmax: sums are relative to `max`. */
struct softmax {
    float max, sum;
};

/* Takes in another part; returns in keep and take what both parts' values are multiplied with. A part that saw no token
 * (max -inf) changes nothing. */
DEVICE void softmax_merge(struct softmax *into, float max, float sum, float *keep, float *take) {
    float larger = fmaxf(into->max, max);
    *keep = into->max == larger ? 1.0f : expf(into->max - larger); /* exp(-inf) is 0 */
    *take = max == larger ? 1.0f : expf(max - larger);
    into->sum = fmaf(into->sum, *keep, sum * *take);
    into->max = larger;
}

/* The finished values [c, c + n) of (row, head), n <= 4. */
DEVICE void merge_slots(const struct merge_source *m, int row, int head, int c, int n, float *out) {
    struct softmax state = {0, 0};
    size_t width = (size_t)m->kv_lora + 2;
    int slots = m->slot_count[row];
    for (int s = 0; s < slots; s++) {
        const float *part = m->partial + ((size_t)(m->slot_first[row] + s) * (size_t)m->heads + (size_t)head) * width;
        float keep = 0, take = 1;
        if (s == 0) {
            state.max = part[m->kv_lora];
            state.sum = part[m->kv_lora + 1];
        } else {
            softmax_merge(&state, part[m->kv_lora], part[m->kv_lora + 1], &keep, &take);
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            if (i < n) out[i] = fmaf(out[i], keep, part[c + i] * take);
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) out[i] = divide(out[i], state.sum);
}

#endif
