#include "expert/store.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "base/clock.h"
#include "expert/records.h"

enum {
    NOWHERE = -1,
    STORE_FADE = 16 * STORE_HALF_LIFE, /* less than that is nothing */
    CHECKED_BYTES = 64 << 10,
};

enum slot_state { SLOT_EMPTY, SLOT_READING, SLOT_READY };

struct slot {
    enum slot_state state;
    int record; /* unless it is empty */
    int pins;
    bool is_predicted; /* read ahead, and its layer's turn has not come yet */
    struct stream_read read;
};

/* What is known of a record besides its place in the file. */
struct resident {
    int slot; /* or NOWHERE */
    uint64_t
        needed_at; /* the visit that needs it, or during which it was predicted; 0: none, or it has been released */
    float weight;  /* as of its layer's visit `visit` */
    uint32_t visit;
    struct mlp mlp; /* data: in the slot */
};

/* A layer: its visits, counted, and as a record's weight counts them; and the slot that it would give away first. Between two
 * visits the order of its records stays as it is, so that slot is looked for when something has changed, not for every read. */
struct turn {
    uint32_t visits;
    float weight;
    bool is_known;
    struct slot *lightest; /* NULL: none of rank 3 */
};

struct store {
    const struct model *model;
    const struct checkpoint *checkpoint;
    struct records records;
    struct resident *residents; /* [records.n] */
    uint64_t n_visits;
    struct turn *turns;     /* [layers] */
    int last_layer;         /* that was visited */
    float fade[STORE_FADE]; /* [n]: what n visits leave of a weight */

    struct slot *slots;  /* [n_slots] */
    int n_slots, n_used; /* slots that ever held something: the others come first */
    int n_empty;
    uint8_t *memory;       /* [n_slots][records.slot_bytes] */
    struct stream *stream; /* NULL: nothing is read (store_open_empty) */
    int n_predicted;       /* slots that are_predicted */

    _Atomic uint64_t hits, misses, predicted, used, wasted, wait_ns;
    struct store_stats before; /* store_stats_begin */
};

/* ---- what stays ---- */

static int record_of(const struct store *store, int layer, int expert) {
    assert(layer >= store->model->dense_layers && layer < store->model->layers);
    assert(expert >= 0 && expert < store->model->experts);
    return (layer - store->model->dense_layers) * store->model->experts + expert;
}

static int layer_of(const struct store *store, int record) {
    return store->model->dense_layers + record / store->model->experts;
}

static float weight_now(const struct store *store, int record) {
    const struct resident *r = &store->residents[record];
    uint32_t visits = store->turns[layer_of(store, record)].visits - r->visit;
    return visits < STORE_FADE ? r->weight * store->fade[visits] : 0;
}

/* 1 for a record that every visit needed, exactly: so prompts find equals. */
static float share_now(const struct store *store, int record) {
    float weight = weight_now(store, record);
    return weight > 0 ? weight / store->turns[layer_of(store, record)].weight : 0;
}

/* Layers from `layer` until this record's turn comes again. */
static int distance(const struct store *store, int record, int layer) {
    int layers = store->model->layers, ahead = layer_of(store, record) - layer;
    return ahead > 0 ? ahead : ahead + layers;
}

/* How gladly a slot is given away, the highest first. What is needed by this visit or the next is spared. */
static int rank_of(const struct store *store, const struct slot *slot) {
    if (slot->state == SLOT_EMPTY) return 4;
    if (slot->pins) return 0;
    if (slot->is_predicted || slot->state == SLOT_READING) return 1;
    return store->residents[slot->record].needed_at == store->n_visits ? 2 : 3;
}

/* Whether a goes before b, which has the same rank; `layer` is at work. */
static bool is_lighter(const struct store *store, const struct slot *a, const struct slot *b, int layer) {
    float x = share_now(store, a->record), y = share_now(store, b->record);
    int ahead = distance(store, a->record, layer) - distance(store, b->record, layer);
    return x != y ? x < y : ahead ? ahead > 0 : a->record > b->record;
}

/* A record of this layer came, went, is needed, or no longer. */
static void note_change(struct store *store, int layer) {
    if (layer < store->model->layers) store->turns[layer].is_known = false;
}

/* ---- slots ---- */

static struct slot *slot_of(struct store *store, int record) {
    int slot = store->residents[record].slot;
    return slot == NOWHERE ? NULL : &store->slots[slot];
}

static void count(_Atomic uint64_t *counter, uint64_t n) {
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static void end_prediction(struct store *store, struct slot *slot, bool used) {
    if (!slot->is_predicted) return;
    slot->is_predicted = false;
    store->n_predicted--;
    note_change(store, layer_of(store, slot->record));
    count(used ? &store->used : &store->wasted, 1);
}

static void empty(struct store *store, struct slot *slot) {
    assert(!slot->pins);
    if (slot->state == SLOT_EMPTY) return;
    end_prediction(store, slot, false);
    store->residents[slot->record].slot = NOWHERE;
    slot->state = SLOT_EMPTY;
    store->n_empty++;
    note_change(store, layer_of(store, slot->record));
}

/* Waits for a slot's read. After a failure it stays as it is. */
static int settle(struct store *store, struct slot *slot, struct mo_error *error) {
    int code = store->stream ? stream_wait(store->stream, &slot->read, error) : 0;
    if (!code) slot->state = SLOT_READY;
    note_change(store, layer_of(store, slot->record));
    return code;
}

/* Notes what has become of a read that nobody waits for. */
static void refresh(struct store *store, struct slot *slot) {
    if (slot->state != SLOT_READING || slot->pins || !stream_is_done(store->stream, &slot->read)) return;
    if (settle(store, slot, NULL)) empty(store, slot);
}

static struct slot *find_lightest(struct store *store, int layer) {
    struct slot *best = NULL;
    int first = record_of(store, layer, 0);
    for (int i = first; i < first + store->model->experts; i++) {
        struct slot *slot = slot_of(store, i);
        if (slot) refresh(store, slot);
        if (!slot || rank_of(store, slot) != 3) continue;
        if (!best || is_lighter(store, slot, best, layer)) best = slot;
    }
    return best;
}

/* Of rank 3, while `layer` is at work; or NULL. */
static struct slot *choose_lightest(struct store *store, int layer) {
    struct slot *best = NULL;
    for (int l = store->model->dense_layers; l < store->model->layers; l++) {
        struct turn *turn = &store->turns[l];
        if (!turn->is_known) turn->lightest = find_lightest(store, l);
        turn->is_known = true;
        if (!turn->lightest) continue;
        assert(rank_of(store, turn->lightest) == 3);
        if (!best || is_lighter(store, turn->lightest, best, layer)) best = turn->lightest;
    }
    return best;
}

/* The slot to use next, or NULL where none has `least` rank. */
static struct slot *choose_slot(struct store *store, int layer, int least) {
    struct slot *best = NULL;
    int best_rank = least - 1;
    if (store->n_used < store->n_slots) return &store->slots[store->n_used++];
    if (store->n_empty == 0) best = choose_lightest(store, layer);
    if (best || (store->n_empty == 0 && least == 3)) return best;
    for (int i = 0; i < store->n_slots; i++) {
        struct slot *slot = &store->slots[i];
        refresh(store, slot);
        int rank = rank_of(store, slot);
        if (rank < best_rank || rank < least) continue;
        if (best && rank == best_rank && (rank == 4 || !is_lighter(store, slot, best, layer))) continue;
        best = slot;
        best_rank = rank;
    }
    return best;
}

/* A slot with nothing in it, or NULL. */
static struct slot *free_slot(struct store *store, int layer, int least) {
    struct slot *slot = choose_slot(store, layer, least);
    if (!slot) return NULL;
    if (slot->state == SLOT_READING) {
        stream_drop(store->stream, &slot->read);
        settle(store, slot, NULL);
    }
    empty(store, slot);
    return slot;
}

static void begin_read(struct store *store, struct slot *slot, int record, enum stream_need need) {
    slot->state = SLOT_READING;
    slot->record = record;
    store->n_empty--;
    store->residents[record].slot = (int)(slot - store->slots);
    if (!store->stream) return;
    const struct record *r = &store->records.list[record];
    uint8_t *to = store->memory + (size_t)(slot - store->slots) * store->records.slot_bytes;
    records_place(&store->records, record, to, &store->residents[record].mlp);
    slot->read = (struct stream_read){.parts = r->parts,
                                      .n_parts = r->n_parts,
                                      .to = to,
                                      .layer = layer_of(store, record),
                                      .expert = record % store->model->experts};
    stream_begin(store->stream, &slot->read, need);
}

/* ---- a visit ---- */

/* Predictions for this layer that did not come true: what has not begun is left out. */
static void end_predictions(struct store *store, int layer) {
    int first = record_of(store, layer, 0);
    for (int i = first; i < first + store->model->experts && store->n_predicted; i++) {
        struct slot *slot = slot_of(store, i);
        if (!slot || !slot->is_predicted || store->residents[i].needed_at == store->n_visits) continue;
        end_prediction(store, slot, false);
        if (slot->state == SLOT_READING) stream_drop(store->stream, &slot->read);
        refresh(store, slot);
    }
}

int store_visit(struct store *store, int layer, const int *experts, int n) {
    struct turn *turn = &store->turns[layer];
    note_change(store, store->last_layer); /* what was needed there, and predicted for the next, is no longer */
    note_change(store, store->last_layer + 1);
    *turn = (struct turn){.visits = turn->visits + 1, .weight = 1 + turn->weight * store->fade[1]};
    store->last_layer = layer;
    store->n_visits++;
    for (int i = 0; i < n; i++) {
        int record = record_of(store, layer, experts[i]);
        struct resident *r = &store->residents[record];
        r->weight = 1 + weight_now(store, record);
        r->visit = turn->visits;
        r->needed_at = store->n_visits;
    }
    end_predictions(store, layer);
    return n <= store->n_slots ? n : store->n_slots / 2;
}

/* The slot where a record is, or will be. A read that was given up half-way is waited for, and then begins anew. */
static struct slot *find_slot(struct store *store, int record) {
    struct slot *slot = slot_of(store, record);
    if (slot && slot->state == SLOT_READING && slot->read.is_dropped) settle(store, slot, NULL);
    if (slot) refresh(store, slot);
    return slot_of(store, record);
}

void store_ask(struct store *store, int layer, int expert) {
    int record = record_of(store, layer, expert);
    struct slot *slot = find_slot(store, record);
    if (!slot) {
        slot = free_slot(store, layer, 1);
        assert(slot && "no more is asked for than store_visit allows");
        begin_read(store, slot, record, STREAM_NOW);
    } else if (slot->state == SLOT_READING) {
        stream_hurry(store->stream, &slot->read);
    }
    end_prediction(store, slot, true);
    slot->pins++;
    note_change(store, layer);
    count(slot->state == SLOT_READY ? &store->hits : &store->misses, 1);
}

bool store_is_there(struct store *store, int layer, int expert) {
    struct slot *slot = slot_of(store, record_of(store, layer, expert));
    assert(slot && slot->pins);
    return slot->state == SLOT_READY || stream_is_done(store->stream, &slot->read);
}

int store_wait(struct store *store, int layer, int expert, struct mo_error *error) {
    struct slot *slot = slot_of(store, record_of(store, layer, expert));
    assert(slot && slot->pins);
    if (slot->state == SLOT_READY) return 0;
    double start = clock_now_s();
    int code = settle(store, slot, error);
    count(&store->wait_ns, (uint64_t)((clock_now_s() - start) * 1e9));
    return code;
}

const struct mlp *store_expert(const struct store *store, int layer, int expert) {
    const struct resident *r = &store->residents[record_of(store, layer, expert)];
    assert(r->slot != NOWHERE && store->slots[r->slot].pins && store->slots[r->slot].state == SLOT_READY);
    return &r->mlp;
}

/* What failed, or was never waited for, stays "reading": the next who asks for it looks. */
void store_release(struct store *store, int layer, int expert) {
    int record = record_of(store, layer, expert);
    struct slot *slot = slot_of(store, record);
    assert(slot && slot->pins);
    slot->pins--;
    store->residents[record].needed_at = 0;
    note_change(store, layer);
}

static void read_ahead(struct store *store, int layer, int record) {
    if (slot_of(store, record) || store->n_predicted >= store->n_slots / 4) return;
    struct slot *slot = free_slot(store, layer - 1, 3);
    if (!slot) return;
    begin_read(store, slot, record, STREAM_PREDICTED);
    slot->is_predicted = true;
    store->n_predicted++;
    count(&store->predicted, 1);
}

void store_predict(struct store *store, int layer, const int32_t *experts, int n) {
    for (int i = 0; i < n; i++) store->residents[record_of(store, layer, experts[i])].needed_at = store->n_visits;
    note_change(store, layer);
    for (int i = 0; i < n; i++) read_ahead(store, layer, record_of(store, layer, experts[i]));
}

/* ---- numbers ---- */

void store_stats_get(struct store *store, struct store_stats *stats) {
    const struct store_stats *before = &store->before;
    struct stream_stats stream = {0};
    if (store->stream) stream_stats_get(store->stream, &stream);
    *stats = (struct store_stats){
        .hits = atomic_load(&store->hits) - before->hits,
        .misses = atomic_load(&store->misses) - before->misses,
        .read_bytes = stream.bytes - before->read_bytes,
        .predicted = atomic_load(&store->predicted) - before->predicted,
        .used = atomic_load(&store->used) - before->used,
        .wasted = atomic_load(&store->wasted) - before->wasted,
        .wait_s = (double)atomic_load(&store->wait_ns) * 1e-9 - before->wait_s,
        .read_s = stream.busy_s - before->read_s,
        .is_direct = stream.is_direct,
    };
}

void store_stats_begin(struct store *store) {
    struct store_stats now;
    store->before = (struct store_stats){0};
    store_stats_get(store, &now);
    store->before = now;
}

int store_records(const struct store *store) {
    return store->records.n;
}

size_t store_record_bytes(const struct store *store) {
    return store->records.bytes;
}

size_t store_slot_bytes(const struct store *store) {
    return store->records.slot_bytes;
}

size_t store_rest_bytes(const struct store *store) {
    return store->records.rest_bytes;
}

int store_slots(const struct store *store) {
    return store->n_slots;
}

/* ---- life ---- */

static struct store *make_store(const struct model *model, struct mo_error *error) {
    struct store *store = calloc(1, sizeof *store);
    if (!store) {
        mo_error_set(error, MO_E_NO_MEMORY, "no memory for the experts");
        return NULL;
    }
    store->model = model;
    for (int i = 0; i < STORE_FADE; i++) store->fade[i] = exp2f(-(float)i / STORE_HALF_LIFE);
    return store;
}

int store_open(struct store **out, const struct model *model, const struct weights *weights,
               const struct checkpoint *checkpoint, struct mo_error *error) {
    struct store *store = make_store(model, error);
    if (!store) return MO_E_NO_MEMORY;
    store->checkpoint = checkpoint;
    int code = records_find(&store->records, model, weights, checkpoint, error);
    if (code) {
        store_close(store);
        return code;
    }
    *out = store;
    return 0;
}

/* Writes to every page, as a server wants it: what cannot be had is missing now and not under load. */
static int take_memory(struct store *store, struct mo_error *error) {
    size_t bytes = (size_t)store->n_slots * store->records.slot_bytes;
    if (madvise(store->memory, bytes, MADV_POPULATE_WRITE) == 0 || errno == EINVAL) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY, "--expert-cache: no memory for %.2f GiB (%s)", (double)bytes / (1 << 30),
                        strerror(errno));
}

/* Nothing lies in them yet. False: no memory. */
static bool make_slots(struct store *store, int n) {
    size_t records = (size_t)store->records.n;
    store->n_slots = store->n_empty = n;
    store->slots = calloc((size_t)n, sizeof *store->slots);
    store->residents = calloc(records, sizeof *store->residents);
    store->turns = calloc((size_t)store->model->layers, sizeof *store->turns);
    for (size_t i = 0; i < records && store->residents; i++) store->residents[i].slot = NOWHERE;
    return store->slots && store->residents && store->turns;
}

int store_open_empty(struct store **out, const struct model *model, int slots, struct mo_error *error) {
    struct store *store = make_store(model, error);
    if (!store) return MO_E_NO_MEMORY;
    store->records.n = (model->layers - model->dense_layers) * model->experts;
    assert(slots >= STORE_MIN_SLOTS && slots <= store->records.n);
    if (!make_slots(store, slots)) {
        store_close(store);
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the places of %d experts", slots);
    }
    *out = store;
    return 0;
}

static int open_slots(struct store *store, size_t bytes, struct mo_error *error) {
    size_t n = bytes / store->records.slot_bytes, records = (size_t)store->records.n;
    if (n < STORE_MIN_SLOTS) {
        return mo_error_set(error, MO_E_INVALID,
                            "--expert-cache: expected room for %d experts of %.6f GiB, found %.6f GiB", STORE_MIN_SLOTS,
                            (double)store->records.slot_bytes / (1 << 30), (double)bytes / (1 << 30));
    }
    bool is_made = make_slots(store, (int)(n < records ? n : records));
    bytes = (size_t)store->n_slots * store->records.slot_bytes;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED) store->memory = memory;
    if (!is_made || !store->memory) {
        return mo_error_set(error, MO_E_NO_MEMORY, "--expert-cache: no memory for %.2f GiB", (double)bytes / (1 << 30));
    }
    madvise(memory, bytes, MADV_HUGEPAGE); /* what cannot be had as such is had in small pages */
    return 0;
}

/* The readers open files by their names: is this one still the one that is mapped? Its header, and some of what follows. */
static int check_file(struct store *store, int file, struct mo_error *error) {
    const struct shard *shard = &store->checkpoint->shards[file];
    size_t bytes = shard->header_bytes + CHECKED_BYTES;
    if (bytes > shard->map.size) bytes = shard->map.size;
    const struct stream_part part = {.file = file, .bytes = bytes};
    struct stream_read read = {.parts = &part, .n_parts = 1};
    read.to = aligned_alloc(STREAM_ALIGN, stream_span(0, bytes));
    if (!read.to) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the header of %s", shard->path);
    stream_begin(store->stream, &read, STREAM_NOW);
    int code = stream_wait(store->stream, &read, error);
    if (!code && memcmp(read.to, shard->map.data, bytes) != 0) {
        code = mo_error_set(error, MO_E_IO, "%s: the file was replaced while it was opened", shard->path);
    }
    free(read.to);
    return code;
}

/* In the order of the checkpoint's shards, as the records count them. */
static int open_stream(struct store *store, stream_pread *read, struct mo_error *error) {
    const struct checkpoint *checkpoint = store->checkpoint;
    const char **paths = calloc((size_t)checkpoint->n_shards, sizeof *paths);
    if (!paths) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d names", checkpoint->n_shards);
    for (int i = 0; i < checkpoint->n_shards; i++) paths[i] = checkpoint->shards[i].path;
    struct stream_options options = {.paths = paths, .n_paths = checkpoint->n_shards, .pread = read};
    int code = stream_open(&store->stream, &options, error);
    for (int i = 0; i < checkpoint->n_shards && !code; i++) code = check_file(store, i, error);
    free(paths);
    return code;
}

int store_start(struct store *store, size_t bytes, bool take, stream_pread *read, struct mo_error *error) {
    int code = open_slots(store, bytes, error);
    if (!code && take) code = take_memory(store, error);
    return code ? code : open_stream(store, read, error);
}

void store_touch_rest(const struct store *store) {
    records_touch_rest(&store->records);
}

void store_close(struct store *store) {
    if (!store) return;
    stream_close(store->stream); /* nobody writes into the slots any more */
    if (store->memory) munmap(store->memory, (size_t)store->n_slots * store->records.slot_bytes);
    records_free(&store->records);
    free(store->slots);
    free(store->residents);
    free(store->turns);
    free(store);
}
