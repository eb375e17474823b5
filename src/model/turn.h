/* model/turn.h - turns GGUF's blocks and other people's INT4 and INT8 (format.h) into memory of the weights: what llama.cpp calls repacking.
 * Threads of low priority turn; whoever uses the weights takes over what is done when it suits: the bits of all products are the same
 * before and after.
 * Includes: base, model. */
#ifndef MOEBIUS_MODEL_TURN_H
#define MOEBIUS_MODEL_TURN_H

#include "base/error.h"
#include "model/model.h"
#include "model/weights.h"

/* Which matrices the caller's products read, where they are not all: those of layer `layer`, of its routed expert `expert`; -1: what is
 * no routed expert's. */
struct turn_choice {
    bool (*wanted)(const void *context, int layer, int expert); /* NULL: all */
    const void *context;
};

/* Bytes of all matrices that products read and that can be turned; 0: there are none. Not the embedding, of which single rows are
 * read, and not kv_b, which attention decodes head by head, unless they must be (format.h). *more (may be NULL): what words
 * and INT8 take beyond their bytes in the file. */
int turn_bytes(const struct model *model, const struct weights *weights, struct turn_choice choice, size_t *bytes,
               size_t *more, struct mo_error *error);

struct turner;
/* Takes the memory (weights.made) and starts `threads` threads. Model and weights must outlive the turner. */
int turner_begin(struct turner **turner, const struct model *model, struct weights *weights, struct turn_choice choice,
                 int threads, struct mo_error *error);
/* Makes weights of what is done by now. Nobody may use the weights meanwhile. True when that is all; NULL: there is nothing to do. */
bool turner_adopt(struct turner *turner);
/* Waits for the end, with progress, and adopts all. */
void turner_wait(struct turner *turner);
void turner_end(struct turner *turner); /* stops what runs; accepts NULL */

#endif
