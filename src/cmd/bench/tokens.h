/* cmd/bench/tokens.h - what `bench` feeds to the model. Text, when the model has a tokenizer: it visits experts as work does.
 * Else random ids, the same in every run. Sequences differ from one another. */
#ifndef MOEBIUS_CMD_BENCH_TOKENS_H
#define MOEBIUS_CMD_BENCH_TOKENS_H

#include "text/tokenizer.h"

struct bench_tokens {
    struct token_list text; /* empty: random ids */
    int32_t bos;            /* -1: none */
    int vocab;
};

/* `tokenizer` may be NULL. */
int bench_tokens_open(struct bench_tokens *tokens, const struct tokenizer *tokenizer, int vocab,
                      struct mo_error *error);
void bench_tokens_close(struct bench_tokens *tokens); /* accepts a zeroed one */

int32_t bench_token(const struct bench_tokens *tokens, int seq, int pos);
const char *bench_tokens_kind(const struct bench_tokens *tokens); /* "text" or "random ids" */

#endif
