/* cmd/run_batch/report.h - what `run-batch` counts, and how it says so: a line while it works, on a terminal, and a summary.
 * Includes: base, sched. */
#ifndef MOEBIUS_CMD_RUN_BATCH_REPORT_H
#define MOEBIUS_CMD_RUN_BATCH_REPORT_H

#include <stdbool.h>
#include "base/error.h"
#include "sched/sched.h"

struct batch_report {
    int n_requests;                          /* in the input */
    int n_kept;                              /* answered by a run before this one */
    int n_done;                              /* answered by this one */
    int n_errors;                            /* of both, those that are errors */
    char first_error[512];                   /* of this run */
    int64_t n_prompt, n_cached, n_generated; /* tokens of this run's answers */
    double start_s, shown_s, total_s;        /* of the clock; total: at the end */
    bool is_terminal, is_shown;              /* the line */
    struct sched_stats before;
};

void batch_report_begin(struct batch_report *report, struct sched *sched);
/* Counts an answer that is an error; `custom_id` is NULL where the line has none. */
void batch_report_error(struct batch_report *report, const char *custom_id, const char *why);
/* Draws the line anew, if it is time. */
void batch_report_show(struct batch_report *report, struct sched *sched);
/* Wipes the line; the clock stops. */
void batch_report_end(struct batch_report *report);

/* The summary: a sentence on standard error, or JSON on standard output. */
int batch_report_print(const struct batch_report *report, const char *output, bool json, struct mo_error *error);

#endif
