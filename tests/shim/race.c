/* tests/shim/race.c - finds data races in the GPU's kernels: two accesses of one place, at least one a write, that nothing
 * puts in order. The kernels are compiled with -fsanitize=thread, which puts a call before each access to memory; those calls
 * end here (race_hooks.c) instead of in the sanitizer's own library, which knows nothing of warps and blocks.
 *
 * For each four bytes (or byte, where a kernel takes it apart) a cell keeps the last write, the last atomic operation and the
 * reads since. An access must come after those that it conflicts with. What makes an order is what CUDA's and PTX's documents
 * promise, and nothing else:
 *   - one thread after another's: a __syncthreads that both came to, a __syncwarp if they are of one warp. A shuffle, mma or
 *     ldmatrix lets lanes meet, but is no memory barrier: it makes no order;
 *   - one block after another's: what was before a __threadfence in thread t, t then does an atomic operation; another thread
 *     does one on the same word later, and then a __threadfence. Barriers on either side pass this on to the whole block. Without
 *     one of the fences there is no order;
 *   - a copy by cp.async belongs to nobody until its thread has waited for it; from then on it is as if that thread had
 *     written just then;
 *   - a kernel comes after the one before it; where it may begin early, what a thread of it does before it has waited for that
 *     one's end (griddepcontrol.wait) does not. Weights may be read then.
 * And what lies in memory that the card was not given is nobody's: an address of the host's, which a card does not reach.
 * Two atomic operations never conflict; one and a plain access do, unless the plain one comes after the latest of them (which
 * has seen all others).
 *
 * What it does not see: what a run did not reach; values (two threads that write the same value are a race here); an order that
 * is there by chance in every run (lanes and blocks are shuffled, but the atomic operations of a run have one order); fences with
 * flags in shared memory, and flags that are read without an atomic operation (both are reported as races). */
#include "race.h"
#include "fibre.h"
#include "race_hooks.h"
#include "race_order.h"
#include "race_report.h"

#include <stdbool.h>
#include <stdlib.h>

enum { PAGE_BITS = 12, PAGE_CELLS = (1 << PAGE_BITS) / 4, CACHE = 512, THREADS_MAX = 1024 };

/* --- who read --------------------------------------------------------------------------------------------------------- */

/* Readers of a place: a chain, the latest block first. Equal chains are one, so that what all blocks read costs little. */
struct readers {
    uint32_t older, moment, pc;
    enum crowd crowd;
};
static struct readers *chains;
static uint32_t n_chains, chains_room, *chain_table, chain_slots;
static uint32_t last_chain; /* the one looked for last: mostly the next word wants the same */

static uint32_t hash_chain(const struct readers *r) {
    uint64_t h = (r->older * 0x9e3779b97f4a7c15u) ^ (r->moment * 0xbf58476d1ce4e5b9u) ^ (r->pc * 0x94d049bb133111ebu);
    return (uint32_t)((h ^ h >> 29) * 0xff51afd7ed558ccdu >> 32) + r->crowd;
}

static uint32_t *chain_slot(const struct readers *r) {
    uint32_t i = hash_chain(r) & (chain_slots - 1);
    for (; chain_table[i]; i = (i + 1) & (chain_slots - 1)) {
        const struct readers *c = &chains[chain_table[i]];
        if (c->older == r->older && c->moment == r->moment && c->pc == r->pc && c->crowd == r->crowd) break;
    }
    return &chain_table[i];
}

static void clear_chains(uint32_t slots) {
    free(chain_table);
    chain_slots = slots;
    chain_table = calloc(slots, sizeof *chain_table);
    if (!chain_table) abort();
}

static uint32_t chain(uint32_t older, uint32_t moment, uint32_t pc, enum crowd crowd) {
    struct readers r = {older, moment, pc, crowd};
    if (last_chain < n_chains && !memcmp(&chains[last_chain], &r, sizeof r)) return last_chain;
    if (2 * n_chains >= chain_slots) {
        clear_chains(2 * chain_slots);
        for (uint32_t i = 1; i < n_chains; i++) *chain_slot(&chains[i]) = i;
    }
    uint32_t *slot = chain_slot(&r);
    if (*slot) return last_chain = *slot;
    chains = order_grow(chains, n_chains, &chains_room, sizeof *chains);
    chains[n_chains] = r;
    return last_chain = *slot = n_chains++;
}

/* The readers of a place with one more. Those of this block that come before it need not be remembered beside it. */
static uint32_t add_reader(uint32_t readers, uint32_t moment, int thread, uint32_t pc) {
    if (!readers) return chain(0, moment, pc, ONE);
    struct readers *top = &chains[readers];
    const struct moment *then = order_moment(top->moment);
    if (top->moment == moment && top->crowd == ONE) return readers;
    if (then->block != order_block()) return chain(readers, moment, pc, ONE);
    if (order_is_past(then, top->crowd, thread)) return chain(top->older, moment, pc, ONE);
    enum crowd crowd = then->thread / 32 == thread / 32 && top->crowd != MANY_WARPS ? LANES : MANY_WARPS;
    return crowd == top->crowd ? readers : chain(top->older, top->moment, top->pc, crowd);
}

/* --- cells ------------------------------------------------------------------------------------------------------------ */

/* Moments (and where) of the last write and atomic operation, and the readers since the write. */
struct cell {
    uint32_t write, write_pc, atomic, atomic_pc, readers;
    uint32_t bytes; /* where its four bytes have cells of their own: the first one's number */
};
struct page {
    uintptr_t key;
    uint64_t version; /* cells of another launch, or of another block's shared memory, are void */
    struct cell *cells;
};

static struct page *pages; /* open addressing */
static size_t n_pages, page_slots;
static struct page *page_cache[CACHE];
static struct cell *byte_cells;
static uint32_t n_byte_cells, byte_cells_room;
static uint64_t launches, blocks_begun;

static struct span {
    uintptr_t at;
    size_t bytes;
} stacks, params;

static bool is_in(const struct span *span, uintptr_t at) {
    return at - span->at < span->bytes;
}

static bool is_shared(uintptr_t at) {
    const struct span dynamic = {(uintptr_t)shim_shared, SHIM_SHARED_BYTES};
    const struct span own = {(uintptr_t)shim_own_first, (size_t)(shim_own_end - shim_own_first)};
    return is_in(&dynamic, at) || is_in(&own, at);
}

static struct page *page_slot(uintptr_t key) {
    size_t i = (size_t)(key * 0x9e3779b97f4a7c15u >> 20) & (page_slots - 1);
    while (pages[i].cells && pages[i].key != key) i = (i + 1) & (page_slots - 1);
    return &pages[i];
}

static void grow_pages(void) {
    struct page *old = pages;
    size_t n = page_slots;
    page_slots = n ? 2 * n : 1024;
    pages = calloc(page_slots, sizeof *pages);
    if (!pages) abort();
    for (size_t i = 0; i < n; i++) {
        if (old[i].cells) *page_slot(old[i].key) = old[i];
    }
    free(old);
    memset(page_cache, 0, sizeof page_cache);
}

static struct page *find_page(uintptr_t key) {
    struct page *page = page_cache[key % CACHE];
    if (page && page->key == key) return page;
    if (2 * n_pages >= page_slots) grow_pages();
    page = page_slot(key);
    if (!page->cells) {
        page->key = key;
        page->version = 0;
        page->cells = malloc(PAGE_CELLS * sizeof *page->cells);
        if (!page->cells) abort();
        n_pages++;
    }
    return page_cache[key % CACHE] = page;
}

/* A page may hold both shared memory and other things of the library's: nobody but kernels' shared memory is watched there. */
static struct cell *cell_at(uintptr_t at) {
    struct page *page = find_page(at >> PAGE_BITS);
    uint64_t version = is_shared(at) ? blocks_begun << 1 | 1 : launches << 1;
    if (page->version != version) {
        memset(page->cells, 0, PAGE_CELLS * sizeof *page->cells);
        page->version = version;
    }
    return &page->cells[at % (1 << PAGE_BITS) / 4];
}

static struct cell *byte_cells_of(struct cell *cell) {
    if (!cell->bytes) {
        if (n_byte_cells + 4 > byte_cells_room)
            byte_cells = order_grow(byte_cells, byte_cells_room, &byte_cells_room, sizeof *byte_cells);
        for (uint32_t i = 0; i < 4; i++) byte_cells[n_byte_cells + i] = *cell;
        cell->bytes = n_byte_cells;
        n_byte_cells += 4;
    }
    return &byte_cells[cell->bytes];
}

/* --- accesses --------------------------------------------------------------------------------------------------------- */

struct access {
    enum race_kind kind;
    int thread;
    uintptr_t at;
    uint32_t moment, pc;
};

static void complain(const struct access *a, enum race_kind earlier, uint32_t moment, uint32_t pc) {
    const struct moment *then = order_moment(moment);
    struct race_side mine = {a->kind, order_block(), a->thread, a->pc};
    struct race_side theirs = {then->is_copy ? RACE_COPY : earlier, then->block, then->thread, pc};
    race_report(&mine, &theirs, is_shared(a->at));
}

static void check_order(const struct access *a, enum race_kind earlier, uint32_t moment, uint32_t pc,
                        enum crowd crowd) {
    if (!moment || (moment == a->moment && crowd == ONE)) return;
    if (!order_is_before(order_moment(moment), crowd, a->thread)) complain(a, earlier, moment, pc);
}

static void check_readers(const struct access *a, uint32_t readers) {
    for (; readers; readers = chains[readers].older) {
        const struct readers *r = &chains[readers];
        check_order(a, RACE_READ, r->moment, r->pc, r->crowd);
    }
}

static void touch(struct cell *cell, const struct access *a) {
    check_order(a, RACE_WRITE, cell->write, cell->write_pc, ONE);
    if (a->kind != RACE_ATOMIC) check_order(a, RACE_ATOMIC, cell->atomic, cell->atomic_pc, ONE);
    if (a->kind == RACE_READ) {
        cell->readers = add_reader(cell->readers, a->moment, a->thread, a->pc);
        return;
    }
    check_readers(a, cell->readers);
    if (a->kind == RACE_ATOMIC) {
        cell->atomic = a->moment;
        cell->atomic_pc = a->pc;
        return;
    }
    *cell = (struct cell){.write = a->moment, .write_pc = a->pc, .bytes = cell->bytes};
}

static void touch_all(struct access a, const void *from, size_t bytes) {
    uintptr_t at = (uintptr_t)from, end = at + bytes;
    for (uintptr_t word = at & ~(uintptr_t)3; word < end; word += 4) {
        struct cell *cell = cell_at(word);
        bool is_whole = word >= at && word + 4 <= end;
        a.at = word;
        if (is_whole && !cell->bytes) {
            touch(cell, &a);
            continue;
        }
        struct cell *own = byte_cells_of(cell);
        for (uintptr_t i = 0; i < 4; i++) {
            if (word + i >= at && word + i < end) touch(&own[i], &a);
        }
    }
}

static bool begins_early, has_waited[THREADS_MAX]; /* for the end of the kernel before */

void race_after_previous(void) {
    has_waited[shim_thread] = true;
}

/* This library, from first to last, by the linker's own names. */
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));

/* Is it memory that no card reaches? Kernels' own constants lie in this library. */
static void check_place(enum race_kind kind, int thread, const void *at, const void *pc) {
    if (is_shared((uintptr_t)at) || shim_is_cards(at) || ((const char *)at >= __ehdr_start && (const char *)at < _end))
        return;
    struct race_side mine = {kind, order_block(), thread, race_place(pc)}, theirs = {.kind = RACE_HOST};
    race_report(&mine, &theirs, false);
}

static void touch_as(enum race_kind kind, int thread, const void *at, size_t bytes, const void *pc) {
    struct access a = {kind, thread, 0, order_now(thread), race_place(pc)};
    check_place(kind, thread, at, pc);
    if (begins_early && !has_waited[thread] && !is_shared((uintptr_t)at)) {
        struct race_side mine = {kind, order_block(), thread, a.pc}, theirs = {.kind = RACE_KERNEL};
        race_report(&mine, &theirs, false);
    }
    touch_all(a, at, bytes);
}

void race_access(const void *at, size_t bytes, bool is_write, const void *pc) {
    if (is_in(&stacks, (uintptr_t)at) || is_in(&params, (uintptr_t)at)) return;
    touch_as(is_write ? RACE_WRITE : RACE_READ, shim_thread, at, bytes, pc);
}

/* The path for data that nobody writes does not look whether somebody did: that an order is there is not enough. */
void race_constant(const void *at, size_t bytes, const void *pc) {
    check_place(RACE_CONSTANT, shim_thread, at, pc);
    for (uintptr_t word = (uintptr_t)at; word < (uintptr_t)at + bytes; word += 4) {
        const struct cell *cell = cell_at(word);
        const struct access a = {RACE_CONSTANT, shim_thread, word, 0, race_place(pc)};
        if (cell->bytes) cell = &byte_cells[cell->bytes];
        if (cell->write) complain(&a, RACE_WRITE, cell->write, cell->write_pc);
    }
}

void race_atomic(const void *at, size_t bytes, const void *pc) {
    touch_as(RACE_ATOMIC, shim_thread, at, bytes, pc);
    if (!is_shared((uintptr_t)at)) order_atomic(at, shim_thread);
}

/* Looks at what atomic operations have left. */
void race_acquire(const void *at, size_t bytes, const void *pc) {
    touch_as(RACE_ATOMIC, shim_thread, at, bytes, pc);
    order_acquire(at, shim_thread);
}

void race_tile_row(int thread, const void *row, const void *pc) {
    touch_as(RACE_READ, thread, row, 16, pc);
    touch_as(RACE_READ, thread ^ 1, row, 16, pc);
}

/* It must come after what its thread must come after, and then it is under way. */
void race_copy_begins(const void *to, const void *from, const void *pc) {
    int thread = shim_thread;
    touch_as(RACE_READ, thread, from, 16, pc);
    touch_as(RACE_COPY, thread, to, 16, pc);
    uint32_t copy = order_copy(thread);
    for (uintptr_t at = (uintptr_t)to; at < (uintptr_t)to + 16; at += 4) {
        struct cell *cell = cell_at(at);
        cell->write = copy;
        for (int i = 0; i < 4 && cell->bytes; i++) byte_cells[cell->bytes + (uint32_t)i].write = copy;
    }
}

/* What somebody else has written there meanwhile was reported then. */
void race_copy_arrives(const void *to, const void *from, const void *pc) {
    int thread = shim_thread;
    touch_as(RACE_READ, thread, from, 16, pc);
    uint32_t moment = order_now(thread), copy = order_copy(thread);
    for (uintptr_t at = (uintptr_t)to; at < (uintptr_t)to + 16; at += 4) {
        struct cell *cell = cell_at(at);
        if (cell->write == copy) cell->write = moment;
        for (int i = 0; i < 4 && cell->bytes; i++) {
            struct cell *byte = &byte_cells[cell->bytes + (uint32_t)i];
            if (byte->write == copy) byte->write = moment;
        }
    }
}

/* --- the run ---------------------------------------------------------------------------------------------------------- */

void race_stacks(const void *at, size_t bytes) {
    stacks = (struct span){(uintptr_t)at, bytes};
}

void race_launch(const char *kernel, const void *arguments, size_t params_bytes, int blocks, bool early) {
    race_kernel = kernel;
    begins_early = early;
    params = (struct span){(uintptr_t)arguments, params_bytes};
    order_launch(blocks);
    n_chains = 1;
    last_chain = UINT32_MAX;
    n_byte_cells = 4;
    clear_chains(1024);
    launches++;
    byte_cells = order_grow(byte_cells, n_byte_cells, &byte_cells_room, sizeof *byte_cells);
}

void race_block(int block) {
    blocks_begun++;
    memset(has_waited, 0, sizeof has_waited);
    order_block_begins(block);
}
