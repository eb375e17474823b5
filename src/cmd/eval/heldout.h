/* cmd/eval/heldout.h - one model on the held-out documents: how well it predicts them, fills in a line, writes a function. */
#ifndef MOEBIUS_CMD_EVAL_HELDOUT_H
#define MOEBIUS_CMD_EVAL_HELDOUT_H

#include "cmd/eval/documents.h"
#include "cmd/eval/result.h"

/* bos and up to 2048 tokens of every document; then lines and functions as cmd/eval/cases.h draws them. */
int eval_heldout(struct engine *engine, const struct eval_plan *plan, const struct eval_documents *documents,
                 struct eval_result *result, struct mo_error *error);

#endif
