#include "sched/sample.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "sched/philox.h"

void sampling_init(struct sampling *sampling) {
    *sampling = (struct sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

static int check_range(const char *name, float value, float low, float high, struct mo_error *error) {
    if (value >= low && value <= high) return 0; /* false for NaN */
    return mo_error_set(error, MO_E_INVALID, "%s must be from %g to %g, found %g", name, (double)low, (double)high,
                        (double)value);
}

static int check_bias(const struct sampling *sampling, int vocab, struct mo_error *error) {
    for (int i = 0; i < sampling->n_bias; i++) {
        const struct logit_bias *bias = &sampling->bias[i];
        if (bias->token < 0 || bias->token >= vocab) {
            return mo_error_set(error, MO_E_INVALID, "logit_bias: token %d is not in the vocabulary (0 to %d)",
                                bias->token, vocab - 1);
        }
        if (check_range("logit_bias", bias->bias, -100, 100, error)) return MO_E_INVALID;
    }
    return 0;
}

int sampling_check(const struct sampling *sampling, int vocab, struct mo_error *error) {
    const struct sampling *s = sampling;
    if (check_range("temperature", s->temperature, 0, 100, error)) return MO_E_INVALID;
    if (!(s->top_p > 0 && s->top_p <= 1)) {
        return mo_error_set(error, MO_E_INVALID, "top_p must be above 0 and at most 1, found %g", (double)s->top_p);
    }
    if (check_range("min_p", s->min_p, 0, 1, error)) return MO_E_INVALID;
    if (s->top_k < -1) {
        return mo_error_set(error, MO_E_INVALID, "top_k must be -1 or 0 (off) or a count, found %d", s->top_k);
    }
    if (!(s->repetition_penalty > 0 && s->repetition_penalty <= 100)) {
        return mo_error_set(error, MO_E_INVALID, "repetition_penalty must be above 0 and at most 100, found %g",
                            (double)s->repetition_penalty);
    }
    if (s->repetition_last_n < 0) {
        return mo_error_set(error, MO_E_INVALID, "repetition_last_n must be at least 0, found %d",
                            s->repetition_last_n);
    }
    if (check_range("presence_penalty", s->presence_penalty, -2, 2, error)) return MO_E_INVALID;
    if (check_range("frequency_penalty", s->frequency_penalty, -2, 2, error)) return MO_E_INVALID;
    return check_bias(sampling, vocab, error);
}

bool sampling_has_penalties(const struct sampling *sampling) {
    return sampling->repetition_penalty != 1 || sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;
}

int sample_scratch_init(struct sample_scratch *scratch, int vocab, struct mo_error *error) {
    *scratch = (struct sample_scratch){.vocab = vocab};
    scratch->value = calloc((size_t)vocab, sizeof *scratch->value);
    scratch->order = calloc((size_t)vocab, sizeof *scratch->order);
    if (scratch->value && scratch->order) return 0;
    sample_scratch_free(scratch);
    return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for sampling from %d tokens", vocab);
}

void sample_scratch_free(struct sample_scratch *scratch) {
    free(scratch->value);
    free(scratch->order);
    *scratch = (struct sample_scratch){0};
}

uint32_t sample_random(uint64_t seed, uint32_t choice, uint32_t position) {
    uint32_t out[4];
    philox_4x32((uint32_t[4]){position, choice, 0, 0}, (uint32_t[2]){(uint32_t)seed, (uint32_t)(seed >> 32)}, out);
    return out[0];
}

int32_t sample_argmax(const float *logits, int vocab) {
    int32_t best = 0;
    float best_logit = -INFINITY; /* NaN compares false: never chosen */
    for (int32_t i = 0; i < vocab; i++) {
        if (logits[i] > best_logit) best = i, best_logit = logits[i];
    }
    return best;
}

static float penalised(const struct sampling *s, float logit, int32_t generated, bool in_prompt) {
    if ((generated > 0 && s->repetition_last_n == 0) || in_prompt) {
        logit = logit > 0 ? logit / s->repetition_penalty : logit * s->repetition_penalty;
    }
    if (generated > 0) logit -= s->presence_penalty + s->frequency_penalty * (float)generated;
    return logit;
}

static bool is_allowed(const uint64_t *allowed, int32_t id) {
    return allowed[id >> 6] >> (id & 63) & 1;
}

static void forbid(const uint64_t *allowed, float *value, int vocab) {
    for (int32_t i = 0; i < vocab; i++) {
        if (!is_allowed(allowed, i)) value[i] = -INFINITY;
    }
}

/* The best of the allowed tokens before anything was added: a bias may have banned all of them. */
static int32_t best_allowed(const uint64_t *allowed, const float *logits, float *value, int vocab) {
    memcpy(value, logits, (size_t)vocab * sizeof *value);
    forbid(allowed, value, vocab);
    int32_t best = sample_argmax(value, vocab);
    for (int32_t i = 0; !is_allowed(allowed, best) && i < vocab; i++) best = i;
    return best;
}

/* Bias, then penalties, into `value` [vocab]. */
static void adjust_logits(const struct sampling *sampling, const float *logits, const struct token_counts *counts,
                          float *value, int vocab) {
    memcpy(value, logits, (size_t)vocab * sizeof *value);
    for (int i = 0; i < sampling->n_bias; i++) value[sampling->bias[i].token] += sampling->bias[i].bias;
    if (!counts || !counts->generated || !sampling_has_penalties(sampling)) return;
    for (int i = 0; i < vocab; i++) {
        if (counts->generated[i] > 0 || counts->prompt[i]) {
            value[i] = penalised(sampling, value[i], counts->generated[i], counts->prompt[i]);
        }
    }
}

/* e^x for x <= 0, within three units of the last place; NaN and what is below -87 give 0. Plain IEEE operations in a fixed
 * order: backend/cuda/kernels/pick.cuh does the same ones, and gets the same bits. */
static inline float weight_of(float x) {
    uint32_t kept = 0u - (uint32_t)(x > -87.0f), bits; /* a mask instead of branches: compilers make vectors of it */
    memcpy(&bits, &x, sizeof bits);
    bits &= kept;
    memcpy(&x, &bits, sizeof x);
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds to an integer */
    float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  /* the first product is exact */
    float p = 1.98756915e-4f, power;
    p = p * r + 1.39819995e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666657e-1f;
    p = p * r + 0.5f;
    p = (p * (r * r) + r) + 1.0f;
    bits = (uint32_t)((int32_t)n + 127) << 23;
    memcpy(&power, &bits, sizeof power);
    p *= power;
    memcpy(&bits, &p, sizeof bits);
    bits &= kept;
    memcpy(&p, &bits, sizeof p);
    return p;
}

/* Logits to weights exp((logit - largest) / temperature) in place: the probabilities, up to a factor. */
static void weigh(float *value, int vocab, float largest, float temperature) {
    enum { BLOCK = 16 }; /* of a known size, so that compilers make vectors of it */
    int i = 0;
    for (; i + BLOCK <= vocab; i += BLOCK) {
        for (int j = 0; j < BLOCK; j++) value[i + j] = weight_of((value[i + j] - largest) / temperature);
    }
    for (; i < vocab; i++) value[i] = weight_of((value[i] - largest) / temperature);
}

/* Weights are added up as whole numbers, so that the order of adding has no say. 2^22 of them (the most that a vocabulary
 * has) stay below 2^63; what is lighter than 2^-40 of the best is never drawn. */
static uint64_t mass_of(float weight) {
    return (uint64_t)(int64_t)(weight * 0x1p40f); /* signed: one instruction */
}

/* Every filter keeps a head of one order: weight falling, ties by id rising. So its result is one place in
 * that order: the last token that is kept. */
struct cut {
    float weight;
    int32_t id;
};

static bool cut_keeps(struct cut cut, float weight, int32_t id) {
    return (weight > cut.weight) | ((weight == cut.weight) & (id <= cut.id));
}

/* Puts the elements of order [low, high) that come before one of them, the pivot, to its left. Returns its
 * place. The pivot's place is scattered, so that no shape of input is always unlucky. */
static int partition(const float *weight, int32_t *order, int low, int high) {
    uint32_t scattered = ((uint32_t)low * 0x9E3779B9u) ^ ((uint32_t)high * 0x85EBCA6Bu);
    int pivot_at = low + (int)((scattered ^ scattered >> 15) % (uint32_t)(high - low));
    int32_t pivot = order[pivot_at];
    struct cut before = {weight[pivot], pivot};
    order[pivot_at] = order[high - 1];
    int n = low;
    for (int i = low; i < high - 1; i++) {
        int32_t id = order[i]; /* swap always, count sometimes: a branch here would be a coin toss */
        order[i] = order[n];
        order[n] = id;
        n += cut_keeps(before, weight[id], id);
    }
    order[high - 1] = order[n];
    order[n] = pivot;
    return n;
}

/* Moves the k best of order [n] to its front; the k-th best is then at k - 1. */
static void select_count(const float *weight, int32_t *order, int n, int k) {
    int low = 0, high = n;
    while (high - low > 1) {
        int place = partition(weight, order, low, high);
        if (place == k - 1) return;
        if (place >= k)
            high = place;
        else
            low = place + 1;
    }
}

/* Moves to the front of order [n] the fewest best ones that weigh `target` together, which they all do. Returns how many;
 * the last of them is the lightest. */
static int select_mass(const float *weight, int32_t *order, int n, uint64_t target) {
    int low = 0, high = n;
    uint64_t mass = 0; /* of order [0, low), which is less than the target */
    while (low < high) {
        int place = partition(weight, order, low, high);
        uint64_t left = mass;
        for (int i = low; i < place; i++) left += mass_of(weight[order[i]]);
        uint64_t with_pivot = left + mass_of(weight[order[place]]);
        if (left >= target)
            high = place;
        else if (with_pivot >= target)
            return place + 1;
        else
            low = place + 1, mass = with_pivot;
    }
    return low;
}

static uint64_t sum_masses(const float *weight, const int32_t *order, int n) {
    uint64_t sum = 0;
    for (int i = 0; i < n; i++) sum += mass_of(weight[order[i]]);
    return sum;
}

/* n tokens lighter than an n-th of what may go away weigh less than that together, so the nucleus is among the rest. */
static int drop_light(const float *weight, int32_t *order, int n, uint64_t floor) {
    int kept = 0;
    for (int i = 0; i < n; i++) {
        int32_t id = order[i];
        order[kept] = id;
        kept += mass_of(weight[id]) >= floor;
    }
    return kept;
}

/* A weight that the k-th best token has or exceeds: that of the k-th best of the blocks' best. 0 where that
 * says nothing. It spares select_count nearly the whole vocabulary. */
static float floor_of_count(const float *weight, int32_t *order, int vocab, int k) {
    enum { BLOCK = 128 };
    int n = vocab / BLOCK;
    if (k > n) return 0;
    for (int i = 0; i < n; i++) order[i] = i * BLOCK + sample_argmax(weight + i * BLOCK, BLOCK);
    select_count(weight, order, n, k);
    return weight[order[k - 1]];
}

/* The tokens of at least `floor`, by id. */
static int collect(const float *weight, int32_t *order, int vocab, float floor) {
    int n = 0;
    for (int32_t i = 0; i < vocab; i++) {
        order[n] = i;
        n += (weight[i] > 0) & (weight[i] >= floor);
    }
    return n;
}

static struct cut filter(const struct sampling *sampling, const float *weight, int32_t *order, int vocab) {
    struct cut cut = {sampling->min_p, INT32_MAX}; /* the best weighs 1, so min_p is a weight */
    int k = sampling->top_k > 0 && sampling->top_k < vocab ? sampling->top_k : 0;
    if (k == 0 && sampling->top_p >= 1) return cut;

    float floor = k > 0 ? floor_of_count(weight, order, vocab, k) : 0;
    if (floor > cut.weight) cut.weight = floor;
    int n = collect(weight, order, vocab, cut.weight);
    if (k > 0 && k < n) {
        select_count(weight, order, n, k);
        n = k;
        cut = (struct cut){weight[order[n - 1]], order[n - 1]};
    }
    if (sampling->top_p < 1) {
        uint64_t sum = sum_masses(weight, order, n), target = (uint64_t)ceil((double)sampling->top_p * (double)sum);
        n = drop_light(weight, order, n, (sum - target) / (uint64_t)n);
        n = select_mass(weight, order, n, target);
        cut = (struct cut){weight[order[n - 1]], order[n - 1]};
    }
    return cut;
}

static uint64_t mass_kept(const float *weight, struct cut cut, int32_t id) {
    return cut_keeps(cut, weight[id], id) ? mass_of(weight[id]) : 0;
}

/* The draw walks the kept tokens by id: the order of selection has no say. It stops at the first one at which more than
 * random / 2^32 of the whole is behind. */
static int32_t draw(const float *weight, int vocab, struct cut cut, uint32_t random) {
    uint64_t total = 0, sum = 0;
    for (int32_t i = 0; i < vocab; i++) total += mass_kept(weight, cut, i);
    uint64_t target = (total >> 32) * random + ((total & 0xffffffff) * random >> 32) + 1;
    for (int32_t i = 0; i < vocab - 1; i++) {
        sum += mass_kept(weight, cut, i);
        if (sum >= target) return i;
    }
    return vocab - 1;
}

int32_t sample_drawn(const struct sampling *sampling, const float *logits, const struct token_counts *counts,
                     uint32_t random, struct sample_scratch *scratch) {
    int vocab = scratch->vocab;
    float *value = scratch->value;
    adjust_logits(sampling, logits, counts, value, vocab);
    if (sampling->allowed) forbid(sampling->allowed, value, vocab);
    int32_t best = sample_argmax(value, vocab);
    if (sampling->allowed && !isfinite(value[best])) return best_allowed(sampling->allowed, logits, value, vocab);
    if (sampling->temperature == 0 || !isfinite(value[best])) return best;

    weigh(value, vocab, value[best], sampling->temperature);
    struct cut cut = filter(sampling, value, scratch->order, vocab);
    return draw(value, vocab, cut, random);
}

int32_t sample_token(const struct sampling *sampling, const float *logits, const struct token_counts *counts,
                     uint32_t choice, uint32_t position, struct sample_scratch *scratch) {
    uint32_t random = sampling->temperature == 0 ? 0 : sample_random(sampling->seed, choice, position);
    return sample_drawn(sampling, logits, counts, random, scratch);
}

/* Puts (token, logit) into the falling list top [*n], which holds `capacity`: the last falls out. Equals stay
 * in order of arrival. */
static void top_insert(struct token_logprob *top, int *n, int capacity, int32_t token, float logit) {
    if (*n == capacity && !(capacity > 0 && logit > top[capacity - 1].logprob)) return;
    int i = *n < capacity ? (*n)++ : capacity - 1;
    for (; i > 0 && logit > top[i - 1].logprob; i--) top[i] = top[i - 1];
    top[i] = (struct token_logprob){token, logit};
}

float sample_logprobs(const float *logits, int vocab, int32_t token, int n_top, struct token_logprob *top) {
    assert(n_top <= vocab);
    float largest = logits[sample_argmax(logits, vocab)];
    double sum = 0;
    int n = 0;
    for (int32_t i = 0; i < vocab; i++) {
        sum += (double)expf(logits[i] - largest);
        top_insert(top, &n, n_top, i, logits[i]);
    }
    double log_sum = log(sum) + (double)largest;
    for (int i = 0; i < n_top; i++) top[i].logprob = (float)((double)top[i].logprob - log_sum);
    return (float)((double)logits[token] - log_sum);
}
