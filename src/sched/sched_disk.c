/* sched/sched_disk.c - pages between the memory and the cache on disk (cache/disk.h).
 *
 * Out: a page that has been computed is noted, and copied into a slot for the disk's thread with one of the next steps: one a
 * step, or as many as a step of many rows could fill, which took far longer than copying them. A page that is needed for something else
 * before its turn is forgotten.
 *
 * In: a sequence that is let in shares what is in memory. If the disk has more, and reading is quicker than computing, its pages
 * are read while others compute: it runs, without rows, and each page that has come is copied in and known from then on as
 * if a step had computed it. So age, preemption and the end of a sequence need no other rules. What has not come in the time
 * that computing would have taken is computed. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "sched/sched_state.h"

_Static_assert((int)PAGE_TOKENS_MAX == (int)KV_PAGE_TOKENS, "a file holds a page");

/* Reading may take this long, and the time of computing besides; where that is not known yet, the latter. */
static const double LOAD_LEAST_S = 1, LOAD_UNKNOWN_S = 30;

/* ---- addresses ---- */

void seq_addresses_grow(struct seq *seq, int n_pages) {
    for (; seq->addresses && seq->n_addresses < n_pages; seq->n_addresses++) {
        const int32_t *tokens = seq->tokens + (size_t)seq->n_addresses * KV_PAGE_TOKENS;
        seq->addresses[1 + seq->n_addresses] = page_address_next(&seq->addresses[seq->n_addresses], tokens);
    }
}

void seq_use_pages(struct sched *sched, const struct seq *seq) {
    if (seq->addresses && sched->options.disk) disk_use(sched->options.disk, seq->addresses + 1, seq->kv.n_known);
}

/* ---- pages that the disk does not have ---- */

int sched_disk_open(struct sched *sched, struct mo_error *error) {
    size_t n = (size_t)sched->options.n_pages;
    sched->unsaved_first = sched->unsaved_last = -1;
    if (!sched->options.disk) return 0;
    assert(sched->options.prefix_caching && sched->options.backend->ops->page_out);
    sched->unsaved = calloc(n, sizeof *sched->unsaved);
    if (!sched->unsaved) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a list of %zu pages", n);
    return 0;
}

static void unsaved_remove(struct sched *sched, int32_t page) {
    struct unsaved *u = &sched->unsaved[page];
    if (!u->listed) return;
    *(u->previous < 0 ? &sched->unsaved_first : &sched->unsaved[u->previous].next) = u->next;
    *(u->next < 0 ? &sched->unsaved_last : &sched->unsaved[u->next].previous) = u->previous;
    u->listed = false;
}

static void unsaved_add(struct sched *sched, const struct seq *seq, int index) {
    int32_t page = seq->kv.pages[index];
    struct unsaved *u = &sched->unsaved[page];
    uint64_t serial = prefix_serial(&sched->kv.tree, page);
    if (serial == 0 || (u->listed && u->serial == serial)) return; /* known by another page, or listed */
    unsaved_remove(sched, page);
    *u = (struct unsaved){.listed = true,
                          .serial = serial,
                          .root = seq->kv.root,
                          .depth = (uint32_t)index,
                          .parent = seq->addresses[index],
                          .address = seq->addresses[index + 1],
                          .previous = sched->unsaved_last,
                          .next = -1};
    *(u->previous < 0 ? &sched->unsaved_first : &sched->unsaved[u->previous].next) = page;
    sched->unsaved_last = page;
}

/* From the first page that is not on disk: one that has gone from there is written again before those behind it. */
void seq_note_pages(struct sched *sched, struct seq *seq) {
    if (!sched->options.disk || !seq->addresses) return;
    int n = seq->kv.n_known;
    seq_addresses_grow(seq, n);
    for (int i = disk_find(sched->options.disk, seq->addresses + 1, n); i < n; i++) unsaved_add(sched, seq, i);
}

/* A card that does not copy any more will say so at its next step; here it only ends the copying. */
static void give_up(struct sched *sched, const struct mo_error *error) {
    log_warn("%s: the prefix cache on disk is not used any more", error->message);
    sched->disk_failed = true;
}

/* A page that is still there and that the disk wants; -1: none. */
static int32_t next_unsaved(struct sched *sched) {
    while (sched->unsaved_first >= 0) {
        int32_t page = sched->unsaved_first;
        const struct unsaved *u = &sched->unsaved[page];
        bool there = prefix_serial(&sched->kv.tree, page) == u->serial && near_has(&sched->kv.near, page);
        bool wanted = disk_wants(sched->options.disk, &u->address, &u->parent, u->depth);
        if (there && wanted) return page;
        if (wanted) stats_forgotten(sched);
        unsaved_remove(sched, page);
    }
    return -1;
}

static bool save_one(struct sched *sched) {
    struct backend *backend = sched->options.backend;
    struct mo_error error = {0};
    int32_t page = sched->disk_failed ? -1 : next_unsaved(sched);
    void *to = page >= 0 ? disk_put_begin(sched->options.disk) : NULL;
    if (!to) return false;
    const struct unsaved *u = &sched->unsaved[page];
    struct page_id id = {.parent = u->parent, .address = u->address, .root = u->root, .depth = u->depth};
    memcpy(id.tokens, sched->kv.tree.tokens + (size_t)page * KV_PAGE_TOKENS, sizeof id.tokens);
    unsaved_remove(sched, page);
    int code = backend->ops->page_out(backend, page, to, &error);
    disk_put_end(sched->options.disk, code ? NULL : &id);
    if (code) give_up(sched, &error);
    return code == 0;
}

void sched_save(struct sched *sched, double limit_s) {
    double end_s = sched_now(sched) + limit_s;
    if (!sched->options.disk) return;
    while (sched_now(sched) < end_s) {
        if (save_one(sched)) continue;
        bool waits = !sched->disk_failed && sched->unsaved_first >= 0;
        if (!waits || !disk_put_wait(sched->options.disk, end_s - sched_now(sched))) return;
    }
}

/* ---- pages that the disk has ---- */

/* That computing n pages takes. */
static double compute_s(const struct sched *sched, int n) {
    return sched->row_s > 0 ? sched->row_s * n * KV_PAGE_TOKENS : LOAD_UNKNOWN_S;
}

/* Whether n pages come from the disk sooner than they are computed, as far as that is known. */
static bool is_quicker(const struct sched *sched, int n) {
    return disk_load_s(sched->options.disk, n) < compute_s(sched, n);
}

static void begin(struct sched *sched, struct seq *seq, int first, int n) {
    seq->load = disk_load_begin(sched->options.disk, seq->addresses + 1, seq->tokens, seq->kv.root, first, n);
    seq->load_until_s = sched_now(sched) + LOAD_LEAST_S + compute_s(sched, n);
    seq->load_next = first;
    seq->load_tokens = (first + n) * KV_PAGE_TOKENS;
    sched->n_loads += seq->load != NULL;
}

void seq_load_begin(struct sched *sched, struct seq *seq, int n_tokens) {
    int first = seq->kv.n_pages, n = n_tokens / KV_PAGE_TOKENS - first;
    if (!sched->options.disk || sched->disk_failed || !seq->addresses || n <= 0) return;
    seq_addresses_grow(seq, first + n);
    int found = disk_find(sched->options.disk, seq->addresses + 1 + first, n);
    if (found > 0) disk_use(sched->options.disk, seq->addresses + 1, first + found);
    if (found > 0 && is_quicker(sched, found)) begin(sched, seq, first, found);
    if (seq->n_counted == 0) stats_disk(sched, n * KV_PAGE_TOKENS, 0);
}

void seq_load_end(struct sched *sched, struct seq *seq) {
    if (!seq->load) return;
    disk_load_end(seq->load);
    seq->load = NULL;
    sched->n_loads--;
}

/* What another sequence has brought in the meantime, or computed, is there only once. */
static void share_more(struct sched *sched, struct seq *seq) {
    int n_known = seq->n_computed;
    seq->n_computed = kv_seq_share(&sched->kv, &seq->kv, seq->tokens, seq->load_tokens) * KV_PAGE_TOKENS;
    if (seq->n_counted > 0) return;
    seq->n_cached += seq->n_computed - n_known;
    stats_prefix(sched, 0, seq->n_computed - n_known);
}

/* A page of the load is `from`: false if there is no room for it. */
static bool take_page(struct sched *sched, struct seq *seq, const void *from) {
    struct backend *backend = sched->options.backend;
    struct mo_error error = {0};
    int index = seq->n_computed / KV_PAGE_TOKENS;
    if (seq->load_next++ < index) return true;
    if (kv_seq_grow(&sched->kv, &seq->kv, seq->n_computed + KV_PAGE_TOKENS)) return false;
    if (backend->ops->page_in(backend, seq->kv.pages[index], from, &error)) {
        give_up(sched, &error);
        return false;
    }
    seq->n_computed += KV_PAGE_TOKENS;
    kv_seq_publish(&sched->kv, &seq->kv, seq->tokens, seq->n_computed);
    kv_seq_pass(&sched->kv, &seq->kv, seq->n_computed);
    if (seq->n_counted > 0) return true; /* it was preempted: what it computed before is nobody's gain */
    seq->n_cached += KV_PAGE_TOKENS;
    stats_disk(sched, 0, KV_PAGE_TOKENS);
    return true;
}

/* Takes what has come: at most what the slots hold, so that the others wait for milliseconds. */
static bool take_pages(struct sched *sched, struct seq *seq) {
    const void *page = NULL;
    bool moved = false, good = true;
    share_more(sched, seq);
    for (int i = 0; i < DISK_READ_SLOTS && good && (page = disk_load_page(seq->load)); i++) {
        good = take_page(sched, seq, page);
        if (good) disk_load_take(seq->load);
        moved = true;
    }
    bool waits = seq->n_computed < seq->load_tokens && !disk_load_ended(seq->load);
    if (good && waits && sched_now(sched) < seq->load_until_s) return moved;
    seq_load_end(sched, seq);
    return true;
}

bool sched_move_pages(struct sched *sched) {
    bool moved = false;
    for (int i = 0; i < sched->n_running && sched->n_loads > 0; i++) {
        if (sched->running[i]->load) moved |= take_pages(sched, sched->running[i]);
    }
    int n_saved = 0, most = sched->last_rows / KV_PAGE_TOKENS;
    while (n_saved < (most > 1 ? most : 1) && save_one(sched)) n_saved++;
    return n_saved > 0 || moved;
}
