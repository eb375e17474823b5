/* expert/store.h - routed experts in a bounded amount of memory: those that are used stay, the others are read from the
 * model's files when they are needed. What is computed with them is the same in every bit as with all of them in memory.
 *
 * A record is one expert of one layer: its three matrices, wherever they lie (records.h). The memory is
 * slots of the largest record. Who computes a layer says which experts it needs (store_visit), pins as many as the slots
 * allow (store_ask; twice the answer of store_visit at once), waits for those that are on their way, computes, and releases.
 *
 * What stays. Each record has a weight: one for every visit of its layer that needed it, halved every STORE_HALF_LIFE visits; its
 * share is that of what a record has that every visit needed. The slot with the smallest share is taken first; of equals, the one
 * whose layer comes last again. So frequency counts and fades, and a prompt that needs all experts in turn does not push out what
 * it will need again: most of a cache that is too small stays as it is. On the routing of models/demo this finds as much
 * as forgetting the least recently used does where a quarter fits, and two to six of a hundred more where a third or more do.
 *
 * store_predict reads ahead what the next layer will probably need, with what the disk has to spare.
 *
 * One thread (the engine's) owns the store; residency changes in its calls only. store_stats_get: any thread.
 * Includes: base, model, stream.h. */
#ifndef MOEBIUS_EXPERT_STORE_H
#define MOEBIUS_EXPERT_STORE_H

#include "expert/stream.h"
#include "model/model.h"
#include "model/weights.h"

enum {
    STORE_MIN_SLOTS = 2, /* one at work, one on its way */
    STORE_HALF_LIFE = 32,
};

struct store_stats {
    uint64_t hits, misses; /* experts asked for that were there, or not */
    uint64_t read_bytes;
    uint64_t predicted, used, wasted; /* reads ahead: begun, then asked for, or not asked for when their turn came */
    double wait_s;                    /* the engine's thread waited */
    double read_s;                    /* the disk was at work */
    bool is_direct;
};

struct store;

/* Looks where the experts lie. MO_E_UNSUPPORTED says why they cannot be read one by one. All three must outlive the store. */
int store_open(struct store **store, const struct model *model, const struct weights *weights,
               const struct checkpoint *checkpoint, struct mo_error *error);
/* A store of places alone: it keeps and counts as any other, reads nothing, and needs no file. For asking what a cache of so many
 * slots (no more than there are experts) would have done; store_expert and store_predict are not for it. */
int store_open_empty(struct store **store, const struct model *model, int slots, struct mo_error *error);
int store_records(const struct store *store);
size_t store_record_bytes(const struct store *store); /* of all records together, in the files */
size_t store_rest_bytes(const struct store *store);   /* of everything else that is used there */
size_t store_slot_bytes(const struct store *store);
int store_slots(const struct store *store);

/* Takes as many slots as fit into `bytes` (no more than there are records) and starts the readers. `take`: all of the memory at
 * once, so that it cannot be missing later. `pread`: NULL, or for tests. */
int store_start(struct store *store, size_t bytes, bool take, stream_pread *pread, struct mo_error *error);
/* Brings what is mapped around the records into memory: from now on only experts should wait for the disk. */
void store_touch_rest(const struct store *store);
void store_close(struct store *store); /* accepts NULL */

/* A step needs these experts [n] of a layer, in ascending order. Returns how many to ask for at a time: all of them, or half of
 * the slots, so that the next ones can be on their way. */
int store_visit(struct store *store, int layer, const int *experts, int n);
/* Pins one of them, and has it read if it is not there. */
void store_ask(struct store *store, int layer, int expert);
/* Of what was asked for: is it there, wait until it is. */
bool store_is_there(struct store *store, int layer, int expert);
int store_wait(struct store *store, int layer, int expert, struct mo_error *error);
/* Its matrices; good until it is released. */
const struct mlp *store_expert(const struct store *store, int layer, int expert);
void store_release(struct store *store, int layer, int expert);

/* The next layer will probably need these: those that are there are spared until its turn, the others are read ahead as far as
 * there are slots for it, a quarter of all. An expert may be there twice. */
void store_predict(struct store *store, int layer, const int32_t *experts, int n);

void store_stats_get(struct store *store, struct store_stats *stats);
/* Counts from 0 again: what came before was no answer's. */
void store_stats_begin(struct store *store);

#endif
