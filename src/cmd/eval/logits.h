/* cmd/eval/logits.h - the logits of a text in a file, so that another day, another cache or another program can be compared
 * with them. Little-endian:
 *
 *     64 bytes                 struct eval_logits_header
 *     int32 [n_tokens]         the ids of the whole text
 *     f16 or f32 [n_rows][vocab]   the logits that predicted them: of every token, or, without bos, of all but the first
 *                              of each window
 *
 * In f16 a row is stored less its largest logit: the same probabilities, and most digits where they matter. */
#ifndef MOEBIUS_CMD_EVAL_LOGITS_H
#define MOEBIUS_CMD_EVAL_LOGITS_H

#include <stdio.h>
#include "base/file.h"

enum eval_logits_format { EVAL_LOGITS_F16, EVAL_LOGITS_F32 };

struct eval_logits_header {
    char magic[8]; /* "moelogit" */
    uint32_t version, format, vocab, window;
    int32_t bos; /* -1: none */
    uint32_t unused;
    uint64_t n_tokens, n_rows;
    uint8_t reserved[16];
};

/* What a text and a model decide: it must be equal to be compared. */
struct eval_logits_shape {
    const int32_t *ids; /* [n_tokens] */
    uint64_t n_tokens, n_rows;
    int vocab, window;
    int32_t bos;
};

struct eval_logits_writer {
    FILE *file;
    const char *path;  /* as it was asked for; outlives the writer */
    char *target;      /* what `beside` is renamed to; NULL: a pipe or a device, which is written to in place */
    char beside[4200]; /* "": nothing to remove */
    int vocab;
    enum eval_logits_format format;
    uint16_t *half; /* [vocab] */
};

/* Writes the header and the ids to a file beside `path`. */
int eval_logits_create(struct eval_logits_writer *writer, const char *path, const struct eval_logits_shape *shape,
                       enum eval_logits_format format, struct mo_error *error);
int eval_logits_write(struct eval_logits_writer *writer, const float *row, struct mo_error *error);
/* Syncs, and renames it to the path that was asked for. */
int eval_logits_finish(struct eval_logits_writer *writer, struct mo_error *error);
/* Without eval_logits_finish, nothing is left behind. Accepts a zeroed one. */
void eval_logits_abandon(struct eval_logits_writer *writer);

struct eval_logits_reader {
    struct file_map map;
    struct eval_logits_header header;
    const uint8_t *rows;
    uint64_t next; /* row */
};

/* MO_E_CORRUPT for a file that is not whole; MO_E_INVALID, with both numbers, if it is of another text or vocabulary. */
int eval_logits_open(struct eval_logits_reader *reader, const char *path, const struct eval_logits_shape *shape,
                     struct mo_error *error);
/* The next row, widened: [vocab]. There are shape.n_rows. */
void eval_logits_read(struct eval_logits_reader *reader, float *row);
void eval_logits_close(struct eval_logits_reader *reader); /* accepts a zeroed one */

/* Rounds to the nearest, ties to even; too large becomes the largest finite value. */
uint16_t eval_f32_to_f16(float value);

#endif
