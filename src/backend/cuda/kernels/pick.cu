/* Tokens out of logits. */
#include "pick.cuh"

/* PICK_BLOCKS blocks a row of logits. */
KERNEL(pick, pick_params) {
    DYNAMIC_SHARED(struct pick_scratch, scratch);
    int row = BLOCK / PICK_BLOCKS;
    after_previous();
    if (p.row[row].wanted) pick_token(&p, row, BLOCK % PICK_BLOCKS, scratch);
}
