/* backend/engram_lookup.h - which rows of V4.1's n-gram tables a step looks up, and what they say (model/engram.h). The tables of the
 * published model are 100 GB each and lie in the model's files. A token wants 24 rows of each, some hundred bytes and their scales,
 * anywhere. So the tables are the one part of the files that is not read ahead by the system (MADV_RANDOM: a fault reads its own page and
 * no more), and all rows of a step are asked for when it begins (MADV_WILLNEED): hundreds of reads are under way at once, and whoever
 * comes too early waits for the rest of one read. Pages that are there already cost a look into the page cache each; to ask first
 * (mincore) would be as much of a call, and is answered for files only that one may write to.
 * Includes: backend.h, model/engram.h. */
#ifndef MOEBIUS_BACKEND_ENGRAM_LOOKUP_H
#define MOEBIUS_BACKEND_ENGRAM_LOOKUP_H

#include "backend/backend.h"
#include "model/engram.h"

struct engram_lookup {
    const struct model *model;
    const struct weights *weights; /* folded, and the tables */
    struct engram_hash hash;
    int max_rows;
    int32_t *rows; /* [tables][max_rows][hash.columns], the caller's; of the step that began last */
};

/* The model has tables. Their part of the mapped files is read in single pages from now on. */
int engram_lookup_open(struct engram_lookup *lookup, const struct model *model, const struct weights *weights,
                       int max_rows, int32_t *rows, struct mo_error *error);
/* Finds the rows of table `which` that row `row` of a batch looks up, row number row - seq->first_row of sequence `seq`, and has them
 * read. The batch's tokens are known. Any thread. */
void engram_lookup_find(const struct engram_lookup *lookup, const struct batch *batch, const struct batch_seq *seq,
                        int which, int row);
/* Values of hashes [first, first + n) of those rows: out [n][dim]. Any thread. */
void engram_lookup_values(const struct engram_lookup *lookup, int which, int row, int first, int n, float *out);

#endif
