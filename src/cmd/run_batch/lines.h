/* cmd/run_batch/lines.h - a file's lines one after the other, of any number, with a bound on the memory that one may take. For
 * `run-batch`. Includes: base. */
#ifndef MOEBIUS_CMD_RUN_BATCH_LINES_H
#define MOEBIUS_CMD_RUN_BATCH_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

/* Fill in the first three, zero the rest. */
struct batch_lines {
    int fd; /* at its beginning */
    const char *path;
    size_t max_bytes; /* of a line */

    char *data;                             /* [capacity], read: [begin, end) */
    size_t begin, end, capacity, n_scanned; /* n_scanned: bytes behind `begin` that are no newline */
    int64_t at;                             /* of `begin` in the file */
    bool at_end;
};

struct batch_line {
    const char *text; /* [size] without its end (a newline, perhaps after a carriage return); until the next call */
    size_t size;
    int64_t at, next; /* where it begins in the file, and where the one after it does */
    bool has_end;     /* false: the file stops before the newline */
    bool is_too_long; /* there is no text: it was longer than max_bytes */
};

/* 1 with a line, 0 at the end of the file, or a negative code. */
int batch_lines_next(struct batch_lines *lines, struct batch_line *line, struct mo_error *error);
/* From the first line again. */
int batch_lines_rewind(struct batch_lines *lines, struct mo_error *error);
void batch_lines_free(struct batch_lines *lines); /* the descriptor stays open */

#endif
