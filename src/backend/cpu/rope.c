#include <math.h>
#include "backend/cpu/cpu.h"

/* Angles in double: at position 163,839 an fp32 angle is already off by 1e-3. */
static void rotation_at(const double *frequency, int pairs, int pos, float magnitude, float *out) {
    for (int i = 0; i < pairs; i++) {
        double angle = pos * frequency[i];
        out[2 * i] = (float)cos(angle) * magnitude;
        out[2 * i + 1] = (float)sin(angle) * magnitude;
    }
}

void cpu_rope_prepare(struct cpu *cpu) {
    int pairs = cpu->model->rope_dim / 2;
    for (int row = 0; row < cpu->batch->n_rows; row++) {
        size_t at = (size_t)row * (size_t)pairs * 2;
        rotation_at(cpu->frequency, pairs, cpu->pos[row], cpu->magnitude, cpu->rotation + at);
        if (cpu->far_rotation) cpu_rope_far(cpu, cpu->pos[row], cpu->far_rotation + at);
    }
}

void cpu_rope_far(const struct cpu *cpu, int pos, float *rotation) {
    rotation_at(cpu->far_frequency, cpu->model->rope_dim / 2, pos, 1, rotation);
}

const float *cpu_rope_of(const struct cpu *cpu, int layer, int row) {
    const float *rotation = cpu->model->hybrid.ratio[layer] ? cpu->far_rotation : cpu->rotation;
    return rotation + (size_t)row * (size_t)cpu->model->rope_dim;
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
void cpu_rope_turn(const float *rotation, int rope_dim, float *pairs) {
    for (int i = 0; i < rope_dim; i += 2) {
        float a = pairs[i], b = pairs[i + 1], c = rotation[i], s = rotation[i + 1];
        pairs[i] = a * c - b * s;
        pairs[i + 1] = a * s + b * c;
    }
}

void cpu_rope_turn_back(const float *rotation, int rope_dim, float *pairs) {
    for (int i = 0; i < rope_dim; i += 2) {
        float a = pairs[i], b = pairs[i + 1], c = rotation[i], s = rotation[i + 1];
        pairs[i] = a * c + b * s;
        pairs[i + 1] = b * c - a * s;
    }
}

void cpu_rope_apply(const struct cpu *cpu, int row, float *pairs) {
    int n = cpu->model->rope_dim;
    cpu_rope_turn(cpu->rotation + (size_t)row * (size_t)n, n, pairs);
}
