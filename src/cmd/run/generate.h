/* cmd/run/generate.h - one answer on the command line: submits a request to a started engine and hands its text over as
 * it comes. Ctrl-C stops the answer. */
#ifndef MOEBIUS_CMD_RUN_GENERATE_H
#define MOEBIUS_CMD_RUN_GENERATE_H

#include "engine/engine.h"

struct generation {
    int n_prompt, n_generated;
    double first_token_s, total_s; /* from submission */
    enum finish_reason finish;
    char *text; /* [text_size] the whole answer, malloc'd, the caller's */
    size_t text_size;
};

/* `request` lacks callback and context, which are set here. `print`: text goes to stdout as it comes. */
int generate(struct engine *engine, struct sched_request *request, bool print, struct generation *out,
             struct mo_error *error);
/* "12 prompt tokens, 345.6 t/s; ...": the line after an answer, on stderr. */
void generation_print_timings(const struct generation *generation);

/* Ctrl-C from now on stops a running generate() instead of the program; outside of one it does what it always does. */
void generate_catch_interrupt(void);
/* Whether the last generate() was stopped by it. */
bool generate_was_interrupted(void);

#endif
