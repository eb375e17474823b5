/* cmd/eval/answers.h - many prompts continued at once, greedily, by the engine's scheduler. The calling thread is the engine
 * thread, and all requests are there from the first step on: so the same requests are batched the same way every time. */
#ifndef MOEBIUS_CMD_EVAL_ANSWERS_H
#define MOEBIUS_CMD_EVAL_ANSWERS_H

#include "base/buffer.h"
#include "engine/engine.h"

struct eval_answer {
    struct token_list prompt; /* at least one id */
    int max_tokens;
    const char *stop; /* ends the answer and is cut off it; or NULL */
    /* Whether more text would change nothing; NULL: never. */
    bool (*is_enough)(const struct eval_answer *answer);
    const void *context; /* for is_enough */

    struct buffer text;
    bool is_ended; /* by the model itself, with an end token */

    uint64_t id;
    enum finish_reason finish;
    bool is_cancelled;
    struct eval_run *run;
};

/* Runs all of them to their end; `label` is for the progress line. The engine thread must not have been started. */
int eval_answers_run(struct engine *engine, struct eval_answer *answers, int n, const char *label,
                     struct mo_error *error);
void eval_answers_free(struct eval_answer *answers, int n); /* what they hold, and the array; accepts NULL */

#endif
