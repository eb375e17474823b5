/* cmd/eval/score.h - how probable a text is to a model: windows of tokens, each computed from position 0 in chunks, with the
 * logits of every row. Drives the backend directly, like `logits`; nothing else may run meanwhile. */
#ifndef MOEBIUS_CMD_EVAL_SCORE_H
#define MOEBIUS_CMD_EVAL_SCORE_H

#include "base/progress.h"
#include "engine/engine.h"

struct eval_scorer {
    struct engine *engine;
    int32_t bos;               /* -1: none, then a window's first token is not predicted */
    int window;                /* most ids of a window */
    int32_t *pages;            /* [pages of a window] 0, 1, 2, ... */
    int32_t *inputs, *wanted;  /* [window] */
    struct progress *progress; /* in tokens; NULL: none */
    int64_t done;              /* tokens, for the progress line */
};

/* `window` 0: 2048, or the context if that is shorter. A window that is longer than the context is refused. */
int eval_scorer_open(struct eval_scorer *scorer, struct engine *engine, int window, struct mo_error *error);
void eval_scorer_close(struct eval_scorer *scorer); /* accepts a zeroed one */

/* Called for every predicted token in order, with the logits [vocab] that predicted it. */
typedef int eval_score_row(void *context, const float *logits, int32_t next, struct mo_error *error);

/* One window: ids [n], n <= window. */
int eval_score(struct eval_scorer *scorer, const int32_t *ids, int n, eval_score_row *row, void *context,
               struct mo_error *error);

/* What the tokens of a text add up to. */
struct eval_sums {
    double nats;           /* negative log likelihood */
    int64_t tokens, right; /* right: the model's first choice was the next token */
    int64_t bytes;         /* of those tokens */
};
void eval_sums_add(struct eval_sums *sums, const struct engine *engine, const float *logits, int32_t next);
double eval_bits_per_byte(const struct eval_sums *sums);

/* Log of the sum of the exponentials of logits [vocab]. */
double eval_log_sum(const float *logits, int vocab);

#endif
