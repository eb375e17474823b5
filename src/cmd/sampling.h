/* cmd/sampling.h - the sampling flags that run and chat share. */
#ifndef MOEBIUS_CMD_SAMPLING_H
#define MOEBIUS_CMD_SAMPLING_H

#include "cli/cli.h"
#include "sched/sample.h"

struct sampling_flags {
    double temperature, top_p, min_p, repetition, presence, frequency;
    int top_k;
    uint64_t seed;
    bool has_temperature, has_top_p, has_min_p, has_top_k, has_repetition, has_presence, has_frequency, has_seed;
    struct cli_list logit_bias; /* ID=BIAS */
    struct logit_bias bias[CLI_LIST_MAX];
};

enum { SAMPLING_FLAGS_MAX = 16 };
void sampling_flags_table(struct sampling_flags *given, struct cli_flag flags[SAMPLING_FLAGS_MAX]);
/* Lays what was given over `sampling` (the model's defaults) and checks the ranges. Without --seed, a fresh one. */
int sampling_flags_apply(struct sampling_flags *given, int vocab, struct sampling *sampling, struct mo_error *error);

#endif
