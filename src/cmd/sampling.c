#include "cmd/sampling.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

void sampling_flags_table(struct sampling_flags *g, struct cli_flag flags[SAMPLING_FLAGS_MAX]) {
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "Sampling (default: the model's own settings)", .type = CLI_HEADING},
        {.names = "--temperature,--temp", .type = CLI_DOUBLE, .target = &g->temperature, .given = &g->has_temperature,
         .max = 100, .value = "X", .help = "0 always takes the likeliest token"},
        {.names = "--top-p", .type = CLI_DOUBLE, .target = &g->top_p, .given = &g->has_top_p, .max = 1, .value = "X",
         .help = "smallest set of tokens with this much probability"},
        {.names = "--top-k", .type = CLI_INT, .target = &g->top_k, .given = &g->has_top_k, .min = -1, .max = 1 << 22,
         .value = "N", .help = "the N likeliest tokens; 0: all"},
        {.names = "--min-p", .type = CLI_DOUBLE, .target = &g->min_p, .given = &g->has_min_p, .max = 1, .value = "X",
         .help = "tokens at least this likely, relative to the best"},
        {.names = "--repetition-penalty,--repeat-penalty", .type = CLI_DOUBLE, .target = &g->repetition,
         .given = &g->has_repetition, .min = 0.001, .max = 100, .value = "X", .help = "over prompt and answer; 1: none"},
        {.names = "--presence-penalty", .type = CLI_DOUBLE, .target = &g->presence, .given = &g->has_presence, .min = -2,
         .max = 2, .value = "X", .help = "once for every token used"},
        {.names = "--frequency-penalty", .type = CLI_DOUBLE, .target = &g->frequency, .given = &g->has_frequency, .min = -2,
         .max = 2, .value = "X", .help = "for every use of a token"},
        {.names = "--logit-bias", .type = CLI_LIST, .target = &g->logit_bias, .value = "ID=BIAS",
         .help = "added to a token's logit; -100 bans, 100 forces; repeatable"},
        {.names = "--seed,-s", .type = CLI_UINT64, .target = &g->seed, .given = &g->has_seed, .value = "N",
         .help = "same seed, same answer (default: a fresh one)"},
    };
    /* clang-format on */
    memcpy(flags, table, sizeof table);
    flags[sizeof table / sizeof *table] = (struct cli_flag){0};
}

static int parse_bias(const char *text, struct logit_bias *out, struct mo_error *error) {
    char *end;
    long token = strtol(text, &end, 10);
    float bias = 0;
    bool good = end != text && *end == '=' && token >= 0 && token <= INT32_MAX;
    const char *number = end + 1;
    if (good) bias = strtof(number, &end);
    if (!good || end == number || *end) {
        return mo_error_set(error, MO_E_INVALID, "--logit-bias: expected ID=BIAS, found \"%s\"", text);
    }
    *out = (struct logit_bias){(int32_t)token, bias};
    return 0;
}

int sampling_flags_apply(struct sampling_flags *g, int vocab, struct sampling *s, struct mo_error *error) {
    if (g->has_temperature) s->temperature = (float)g->temperature;
    if (g->has_top_p) s->top_p = (float)g->top_p;
    if (g->has_top_k) s->top_k = g->top_k;
    if (g->has_min_p) s->min_p = (float)g->min_p;
    if (g->has_repetition) s->repetition_penalty = (float)g->repetition;
    if (g->has_presence) s->presence_penalty = (float)g->presence;
    if (g->has_frequency) s->frequency_penalty = (float)g->frequency;
    for (int i = 0; i < g->logit_bias.n; i++) {
        int code = parse_bias(g->logit_bias.items[i], &g->bias[i], error);
        if (code) return code;
    }
    s->bias = g->bias;
    s->n_bias = g->logit_bias.n;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    s->seed = g->has_seed ? g->seed : (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return sampling_check(s, vocab, error);
}
