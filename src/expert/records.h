/* expert/records.h - where each expert lies in a packed file, for store.c. Includes: base, model. */
#ifndef MOEBIUS_EXPERT_RECORDS_H
#define MOEBIUS_EXPERT_RECORDS_H

#include "model/model.h"
#include "model/weights.h"

/* Bytes [offset, offset + bytes) of the file: gate, up and down of one expert. */
struct record {
    int64_t offset;
    size_t bytes;
};

struct records {
    const struct model *model;
    const struct weights *weights;
    const struct checkpoint *checkpoint;
    struct record *list; /* [n] by layer, then by expert: in the order of their offsets */
    int n;
    size_t bytes;      /* of all */
    size_t slot_bytes; /* memory that any of them fits into, read in whole blocks */
};

/* Checks every one of them, and that nothing else lies in between. */
int records_find(struct records *records, const struct model *model, const struct weights *weights,
                 const struct checkpoint *checkpoint, struct mo_error *error);
void records_free(struct records *records); /* accepts a zeroed one */

/* The matrices of a record whose bytes are at `data`. */
void records_place(const struct records *records, int record, const uint8_t *data, struct mlp *mlp);

/* Brings everything of the mapped file that is not in a record into memory. */
void records_touch_rest(const struct records *records);

#endif
