/* cmd/eval/result.h - one row of `moebius eval`: the settings an engine was opened with, and what was measured. The row loop is
 * in cmd/eval/eval.c: a new kind of row is a field of eval_setting, a line in eval_setting_apply, and a key in cmd/eval/report.c. */
#ifndef MOEBIUS_CMD_EVAL_RESULT_H
#define MOEBIUS_CMD_EVAL_RESULT_H

#include "engine/engine.h"
#include "cmd/eval/score.h"

struct eval_setting {
    const char *quantization; /* as in engine_options: "auto" as stored */
    int kv;                   /* as in engine_options: 0 auto, else enum kv_format + 1 */
    int compute;              /* enum compute */
};

/* What is measured, from the command line. */
struct eval_plan {
    const char *heldout;
    int n_lines, n_functions;
    uint64_t seed;
    const char *answers;                 /* file for questions and answers, or NULL */
    const char *text, *save, *reference; /* text NULL: the held-out documents are measured */
    int window;                          /* 0: default */
    int save_format;                     /* enum eval_logits_format */
};

struct eval_share {
    int tried, right;
    char reason[256]; /* why nothing was tried */
};

/* Stored logits against this row's, over all tokens; in nats. */
struct eval_divergence {
    double mean, p99, max;
    double top1_agreement, reference_nats; /* of a token */
};

struct eval_result {
    const char *weights, *kv, *compute; /* in words */
    char hash[65];
    double seconds;
    struct eval_sums text;
    int n_documents, n_windows, window;
    struct eval_share lines, functions;
    char python[32]; /* version; "": it was not asked */
    json_t *answers; /* an array that every question and answer is added to, or NULL */
    struct eval_divergence divergence;
};

#endif
