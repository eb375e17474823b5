/* sched/sample.h - logits to a token. In this order: logit_bias, penalties (repetition, presence, frequency), what is
 * allowed at all, temperature, min-p, top-k, top-p; then one draw from a counter-based generator keyed by (seed, choice,
 * position), so a request's tokens do not depend on what else runs. Greedy (temperature 0) takes the largest,
 * ties to the lowest id. Weights come from IEEE operations in one order and are added up as whole numbers, so a backend
 * that picks by itself (backend.h) can get the very same token. Pure functions: any thread. Includes: base. */
#ifndef MOEBIUS_SCHED_SAMPLE_H
#define MOEBIUS_SCHED_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

struct logit_bias {
    int32_t token;
    float bias; /* -100 bans, +100 forces, as in the OpenAI API */
};

struct sampling {
    float temperature;        /* 0: greedy */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    int top_k;                /* 0 or -1: off */
    float repetition_penalty; /* 1: off; over prompt and generated tokens, or ... */
    int repetition_last_n;    /* > 0: ... over that many of them, the latest */
    float presence_penalty;   /* 0: off; over generated tokens */
    float frequency_penalty;  /* 0: off; over generated tokens */
    uint64_t seed;
    const struct logit_bias *bias; /* [n_bias], the request's */
    int n_bias;
    const uint64_t *allowed; /* [vocab] one bit a token, at least one set; NULL: every token */
};

/* All off, temperature 1. */
void sampling_init(struct sampling *sampling);
/* Ranges: 0 <= temperature <= 100, 0 < top_p <= 1, 0 <= min_p <= 1, top_k >= -1, 0 < repetition <= 100,
 * repetition_last_n >= 0, presence and frequency -2 to 2, bias tokens in the vocabulary. The message names the field as the API does.
 */
int sampling_check(const struct sampling *sampling, int vocab, struct mo_error *error);

/* Whether a penalty is on, so that counts are needed. */
bool sampling_has_penalties(const struct sampling *sampling);

/* What a sequence has seen: sparse counts for the penalties. */
struct token_counts {
    int32_t *generated; /* [vocab] times generated; NULL while no penalty is on */
    uint8_t *prompt;    /* [vocab] 1 if in the prompt, or with repetition_last_n among the latest; NULL likewise */
};

struct token_logprob {
    int32_t token;
    float logprob;
};

/* Memory for one sampler at work: [vocab] each. */
struct sample_scratch {
    float *value;
    int32_t *order;
    int vocab;
};
int sample_scratch_init(struct sample_scratch *scratch, int vocab, struct mo_error *error);
void sample_scratch_free(struct sample_scratch *scratch);

/* Chooses a token from `logits` [vocab], which stay unchanged. `choice` and `position` (index of the
 * generated token) key the draw. `counts` may be NULL. */
int32_t sample_token(const struct sampling *sampling, const float *logits, const struct token_counts *counts,
                     uint32_t choice, uint32_t position, struct sample_scratch *scratch);

/* The same with a draw from outside: sample_token draws sample_random(seed, choice, position). */
int32_t sample_drawn(const struct sampling *sampling, const float *logits, const struct token_counts *counts,
                     uint32_t random, struct sample_scratch *scratch);

/* Lowest id of the largest logit. */
int32_t sample_argmax(const float *logits, int vocab);

/* Log-softmax of the raw logits: of `token`, and of the `n_top` best (falling, ties to the lowest id) into
 * top. */
float sample_logprobs(const float *logits, int vocab, int32_t token, int n_top, struct token_logprob *top);

/* 32 random bits, the same on every machine: Philox-style counter function of the key. */
uint32_t sample_random(uint64_t seed, uint32_t choice, uint32_t position);

#endif
