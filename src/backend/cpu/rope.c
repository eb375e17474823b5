#include <math.h>
#include "backend/cpu/cpu.h"

/* Angles in double: at position 163,839 an fp32 angle is already off by 1e-3. */
void cpu_rope_prepare(struct cpu *cpu) {
    int pairs = cpu->model->rope_dim / 2;
    for (int row = 0; row < cpu->batch->n_rows; row++) {
        float *out = cpu->rotation + (size_t)row * (size_t)pairs * 2;
        for (int i = 0; i < pairs; i++) {
            double angle = cpu->pos[row] * cpu->frequency[i];
            out[2 * i] = (float)cos(angle) * cpu->magnitude;
            out[2 * i + 1] = (float)sin(angle) * cpu->magnitude;
        }
    }
}

/* The indexer's: i and i + rope / 2 are pair i. */
void cpu_rope_apply_halves(const struct cpu *cpu, int row, float *values) {
    int n = cpu->model->rope_dim / 2;
    const float *rotation = cpu->rotation + (size_t)row * (size_t)n * 2;
    for (int i = 0; i < n; i++) {
        float a = values[i], b = values[n + i], c = rotation[2 * i], s = rotation[2 * i + 1];
        values[i] = a * c - b * s;
        values[n + i] = a * s + b * c;
    }
}

/* DeepSeek stores rotary dimensions interleaved: 2i and 2i + 1 are pair i. */
void cpu_rope_apply(const struct cpu *cpu, int row, float *pairs) {
    int n = cpu->model->rope_dim / 2;
    const float *rotation = cpu->rotation + (size_t)row * (size_t)n * 2;
    for (int i = 0; i < n; i++) {
        float a = pairs[2 * i], b = pairs[2 * i + 1], c = rotation[2 * i], s = rotation[2 * i + 1];
        pairs[2 * i] = a * c - b * s;
        pairs[2 * i + 1] = a * s + b * c;
    }
}
