/* cmd/bench/measure.h - times the forward pass by hand, as `logits` drives it: prompts in chunks, and steps of several
 * sequences.
 *
 * Every sequence of a step has its own pages, but for the whole pages of its first `depth` tokens: these are computed once,
 * for all of them. A step ends with the most likely token of every row; the sequences then go on with their own
 * next token, so that each run does the same work. Where the backend runs ahead, as the scheduler lets it, the next step begins
 * before the last one's tokens are read, and a step's time is that between two ends. */
#ifndef MOEBIUS_CMD_BENCH_MEASURE_H
#define MOEBIUS_CMD_BENCH_MEASURE_H

#include "backend/cuda/probe.h"
#include "base/energy.h"
#include "cmd/bench/bytes.h"
#include "cmd/bench/experts.h"
#include "cmd/bench/machine.h"
#include "cmd/bench/tokens.h"
#include "engine/engine.h"

enum { BENCH_LIST_MAX = 32 };
struct bench_list {
    int values[BENCH_LIST_MAX], n;
};

/* What to measure. */
struct bench_plan {
    int generate, repeat;
    struct bench_list prompt, batch, depth;
};

enum { BENCH_BEFORE = ENGRAM_MAX_TOKENS - 1 };

/* A step's batch and what it points to. */
struct bench_step {
    struct batch rows;
    int32_t *token;         /* [max_batch] */
    struct batch_seq *seqs; /* [max_batch] */
    int32_t *before;        /* [max_batch][BENCH_BEFORE] what seqs look back at */
};

struct bench {
    const struct bench_plan *plan;
    struct engine *engine; /* not owned */
    struct bench_tokens tokens;
    struct bench_bytes bytes;
    int max_batch, first_own_page; /* pages before it hold sequence 0: the prompt, and what is shared */
    int filled;                    /* tokens of sequence 0 that the cache holds in those pages */
    int32_t *page;                 /* 0, 1, 2, ...: sequence 0 alone */
    int32_t *table;                /* [max_batch][pages a sequence] */
    int32_t *token, *logits_row;   /* [max_num_batched_tokens] */
    struct bench_step steps[2];    /* of decode: one may begin while the other is at work */
    struct pick *pick;             /* [max_batch] the most likely token, where the backend picks */
    double *samples;               /* [max(repeat, generate)] */
    /* Which experts a step visits is looked up in steps of their own: on a GPU a look inside makes a step another one. */
    bool looks_apart;
    struct energy energy; /* meters, cmd/bench/energy.h */
};

struct bench_decode {
    int batch, depth;
    struct bench_spread tokens_per_s; /* of all sequences together; over steps */
    double bytes_per_step, gb_per_s;
    double read_gb_s;     /* what the memory gave just before and after */
    int kernels;          /* a GPU's, in a step; 0: not known */
    struct joules joules; /* a token */
    struct bench_experts experts;
};

/* Refuses what does not fit in the engine's context, cache or batch, naming the flags. */
int bench_open(struct bench *bench, const struct bench_plan *plan, struct engine *engine, struct mo_error *error);
void bench_close(struct bench *bench); /* accepts a zeroed one */

/* Brings weights and scratch into memory. */
int bench_warm_up(struct bench *bench, struct mo_error *error);
/* Seconds from a prompt of that many tokens to its first token, and what one of its tokens takes. */
struct bench_prompt {
    struct bench_spread seconds;
    struct joules joules;
    struct bench_experts experts;
};
int bench_time_prompt(struct bench *bench, int tokens, struct bench_prompt *result, struct mo_error *error);
/* plan->generate steps of `batch` sequences that have `depth` tokens each. */
int bench_time_decode(struct bench *bench, int batch, int depth, struct bench_decode *result, struct mo_error *error);
/* GPU: takes the first of those steps apart; `timed`: each kernel is timed. */
int bench_profile_decode(struct bench *bench, int batch, int depth, bool timed, struct cuda_profile *profile,
                         struct mo_error *error);

#endif
