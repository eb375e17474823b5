/* cmd/eval/text.h - one model on one text: how probable it is, and how far its predictions are from stored ones. */
#ifndef MOEBIUS_CMD_EVAL_TEXT_H
#define MOEBIUS_CMD_EVAL_TEXT_H

#include "cmd/eval/result.h"

/* `text` [size] is plan->text's content. It is cut into windows of tokens, each computed by itself after bos, so that
 * every token is counted once. Fills text, n_windows, window and, with plan->reference, divergence. */
int eval_text(struct engine *engine, const struct eval_plan *plan, const char *text, size_t size,
              struct eval_result *result, struct mo_error *error);

#endif
