/* cmd/run_batch/run.h - the requests of `run-batch` to their answers: as many at once as the engine takes, and as many again behind
 * them, so that it never waits for the next one; in the file's order, so that neighbours with the same beginning find it in the
 * prefix cache. Includes: cmd/run_batch/output.h, cmd/run_batch/report.h, server/api/api.h. */
#ifndef MOEBIUS_CMD_RUN_BATCH_RUN_H
#define MOEBIUS_CMD_RUN_BATCH_RUN_H

#include <stdatomic.h>
#include "cmd/run_batch/output.h"
#include "cmd/run_batch/report.h"
#include "server/api/api.h"

struct batch_job {
    struct api_model model; /* its engine is started */
    const char *fingerprint;
    struct batch_input *input; /* bound */
    struct batch_output *output;
    struct batch_report *report;
    const atomic_bool *stop; /* set by anyone: nothing new begins, what runs is given up */
};

/* Answers what has no answer yet. MO_E_CANCELLED if it was stopped; MO_E_IO and others if it cannot go on. */
int batch_run(const struct batch_job *job, struct mo_error *error);

#endif
