/* cmd/run_batch/output.h - the answers of `run-batch`, so that none is lost: each is appended to OUT.partial as it comes, in one write
 * and now and then on the disk for certain; when all are there, OUT gets them in the order of the requests. A run that was
 * ended in any way leaves OUT.partial, and the next one goes on from there.
 *
 * What is no file (standard output, a pipe, a device) gets the lines as they come; then nothing is kept.
 * Includes: base, cmd/run_batch/input.h. */
#ifndef MOEBIUS_CMD_RUN_BATCH_OUTPUT_H
#define MOEBIUS_CMD_RUN_BATCH_OUTPUT_H

#include "cmd/run_batch/input.h"

enum { BATCH_PATH_MAX = 4096, BATCH_PARTIAL_MAX = BATCH_PATH_MAX + 16 };

struct batch_output {
    int fd;
    bool is_stream;                  /* no file */
    char path[BATCH_PATH_MAX];       /* of OUT: a link's file, not the link */
    char partial[BATCH_PARTIAL_MAX]; /* of OUT.partial, or of the stream for messages */
    int64_t size;                    /* of OUT.partial */
    double synced_s;                 /* of the clock */
    bool is_open, is_dirty, overwrites;
    bool is_ours; /* OUT.partial, locked */
};

/* What a run that was ended has left. */
struct batch_kept {
    int n, n_errors; /* answers to requests of the input; of them, errors */
    int n_strange;   /* lines that answer something else: another model's, other requests' */
};

/* Refuses an OUT that is there unless `overwrites`, and an OUT.partial at which another process works. `path` "-": standard
 * output. */
int batch_output_open(struct batch_output *output, const char *path, bool overwrites, struct mo_error *error);
/* Finds the entries' answers in OUT.partial, and cuts off a line that was not written to its end. Answers that say that the
 * engine failed do not count. */
int batch_output_resume(struct batch_output *output, struct batch_input *input, struct batch_kept *kept,
                        struct mo_error *error);
/* Appends a line [size], its newline included: all of it or nothing. */
int batch_output_add(struct batch_output *output, struct batch_entry *entry, const char *text, size_t size,
                     struct mo_error *error);
/* All entries have their answers: OUT.partial becomes OUT, unless something that is not to be overwritten has come by that name. */
int batch_output_finish(struct batch_output *output, const struct batch_input *input, struct mo_error *error);
/* Leaves OUT.partial, unless it is empty. Accepts a zeroed one. */
void batch_output_close(struct batch_output *output);

#endif
