#include "sched/kv.h"

#include <assert.h>
#include <stdlib.h>
#include "backend/backend.h"

/* ---- free pages ---- */

static void free_push(struct kv_pages *kv, int32_t page, bool is_first) {
    struct kv_page *p = &kv->pages[page];
    p->previous = is_first ? -1 : kv->last;
    p->next = is_first ? kv->first : -1;
    *(p->previous < 0 ? &kv->first : &kv->pages[p->previous].next) = page;
    *(p->next < 0 ? &kv->last : &kv->pages[p->next].previous) = page;
    kv->n_free++;
}

static void free_remove(struct kv_pages *kv, int32_t page) {
    struct kv_page *p = &kv->pages[page];
    *(p->previous < 0 ? &kv->first : &kv->pages[p->previous].next) = p->next;
    *(p->next < 0 ? &kv->last : &kv->pages[p->next].previous) = p->previous;
    kv->n_free--;
}

int kv_pages_init(struct kv_pages *kv, int n_pages, struct mo_error *error) {
    assert(n_pages > 0);
    *kv = (struct kv_pages){.n_pages = n_pages, .first = -1, .last = -1};
    kv->pages = calloc((size_t)n_pages, sizeof *kv->pages);
    if (!kv->pages) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a table of %d pages", n_pages);
    for (int32_t i = 0; i < n_pages; i++) free_push(kv, i, false);
    return prefix_init(&kv->tree, n_pages, error);
}

int kv_pages_limit_near(struct kv_pages *kv, int n_near, int window, struct mo_error *error) {
    return near_init(&kv->near, kv->n_pages, n_near, window, error);
}

void kv_pages_free(struct kv_pages *kv) {
    near_free(&kv->near);
    prefix_free(&kv->tree);
    free(kv->pages);
    *kv = (struct kv_pages){0};
}

/* ---- a sequence's pages ---- */

int kv_pages_for(int n_tokens) {
    assert(n_tokens >= 0);
    return n_tokens / KV_PAGE_TOKENS + (n_tokens % KV_PAGE_TOKENS != 0);
}

int kv_pages_left(const struct kv_pages *kv) {
    int near = near_left(&kv->near);
    return near < kv->n_free ? near : kv->n_free;
}

int kv_seq_init(struct kv_seq *seq, int max_tokens, uint64_t root, struct mo_error *error) {
    *seq = (struct kv_seq){.capacity = kv_pages_for(max_tokens), .serial = root, .root = root};
    if (seq->capacity == 0) return 0;
    seq->pages = malloc((size_t)seq->capacity * sizeof *seq->pages);
    if (!seq->pages) {
        return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a sequence of %d tokens", max_tokens);
    }
    return 0;
}

void kv_seq_free(struct kv_pages *kv, struct kv_seq *seq) {
    kv_seq_release(kv, seq);
    free(seq->pages);
    *seq = (struct kv_seq){0};
}

static void leave(struct kv_pages *kv, int32_t page) {
    assert(kv->pages[page].users > 0);
    if (--kv->pages[page].users == 0) free_push(kv, page, prefix_serial(&kv->tree, page) == 0);
}

void kv_seq_release(struct kv_pages *kv, struct kv_seq *seq) {
    for (int i = seq->first_near; i < seq->n_pages; i++) near_leave(&kv->near, seq->pages[i], true);
    seq->first_near = 0;
    /* The last page first: a page is found by way of those before it, so they have to be there longer. */
    while (seq->n_pages > 0) leave(kv, seq->pages[--seq->n_pages]);
    seq->n_known = 0;
    seq->serial = seq->root;
}

static void use(struct kv_pages *kv, struct kv_seq *seq, int32_t page) {
    if (kv->pages[page].users++ == 0) free_remove(kv, page);
    seq->pages[seq->n_pages++] = page;
}

int kv_seq_grow(struct kv_pages *kv, struct kv_seq *seq, int n_tokens) {
    int n_pages = kv_pages_for(n_tokens);
    assert(n_pages <= seq->capacity);
    if (n_pages - seq->n_pages > kv_pages_left(kv)) return MO_E_LIMIT;
    while (seq->n_pages < n_pages) {
        int32_t page = kv->first;
        prefix_remove(&kv->tree, page);
        use(kv, seq, page);
        near_begin(&kv->near, page);
    }
    return 0;
}

void kv_seq_pass(struct kv_pages *kv, struct kv_seq *seq, int n_tokens) {
    int first = near_first(&kv->near, n_tokens);
    for (; seq->first_near < first; seq->first_near++) near_leave(&kv->near, seq->pages[seq->first_near], false);
}

/* ---- pages found by their tokens ---- */

/* Pages from `had` on have been added, and computed: the sequence looks at the last ones now. */
static void look_at_last(struct kv_pages *kv, struct kv_seq *seq, int had) {
    int first = near_first(&kv->near, seq->n_pages * KV_PAGE_TOKENS);
    for (int i = first > had ? first : had; i < seq->n_pages; i++) near_share(&kv->near, seq->pages[i]);
    for (int i = seq->first_near; i < had && i < first; i++) near_leave(&kv->near, seq->pages[i], false);
    seq->first_near = first > seq->first_near ? first : seq->first_near;
}

/* Pages of a walk through the tree from page `first` on, whose parent is `serial`: up to which a sequence could share them. `behind`
 * of the pages before them have a near part that it looks at. */
static int find_end(const struct kv_pages *kv, uint64_t serial, const int32_t *tokens, int n_tokens, int first,
                    int behind, int *n_used) {
    int end = first, n_near = behind, used = 0;
    *n_used = 0;
    for (int n = first; n < n_tokens / KV_PAGE_TOKENS; n++) {
        int32_t page = prefix_find(&kv->tree, serial, tokens + (size_t)n * KV_PAGE_TOKENS);
        if (page < 0) break;
        used += kv->pages[page].users > 0;
        serial = prefix_serial(&kv->tree, page);
        n_near = near_has(&kv->near, page) ? n_near + 1 : 0;
        if (n + 1 - near_first(&kv->near, (n + 1) * KV_PAGE_TOKENS) > n_near) continue;
        end = n + 1;
        *n_used = used;
    }
    return end;
}

int kv_find(const struct kv_pages *kv, uint64_t root, const int32_t *tokens, int n_tokens, int *n_used) {
    return find_end(kv, root, tokens, n_tokens, 0, 0, n_used);
}

int kv_seq_share(struct kv_pages *kv, struct kv_seq *seq, const int32_t *tokens, int n_tokens) {
    assert(seq->n_pages == seq->n_known && n_tokens / KV_PAGE_TOKENS <= seq->capacity);
    int n_used, had = seq->n_pages;
    int end = find_end(kv, seq->serial, tokens, n_tokens, had, had - seq->first_near, &n_used);
    while (seq->n_pages < end) {
        int32_t page = prefix_find(&kv->tree, seq->serial, tokens + (size_t)seq->n_pages * KV_PAGE_TOKENS);
        use(kv, seq, page);
        seq->serial = prefix_serial(&kv->tree, page);
    }
    look_at_last(kv, seq, had);
    return seq->n_known = seq->n_pages;
}

/* If it is free: counts as just left, or, where it cannot be found any more, is the first to be taken. */
static void renew(struct kv_pages *kv, int32_t page) {
    if (kv->pages[page].users > 0) return;
    free_remove(kv, page);
    free_push(kv, page, prefix_serial(&kv->tree, page) == 0);
}

/* `own` has been computed, and `same` already holds the same tokens: the first is the one to find, unless it has lost its near part,
 * without which no sequence goes on from it. */
static void meet(struct kv_pages *kv, int32_t own, int32_t same) {
    if (!near_has(&kv->near, same) && near_has(&kv->near, own)) prefix_move(&kv->tree, same, own);
    near_meet(&kv->near, own);
    renew(kv, same);
}

void kv_seq_publish(struct kv_pages *kv, struct kv_seq *seq, const int32_t *tokens, int n_tokens) {
    for (; seq->n_known < n_tokens / KV_PAGE_TOKENS; seq->n_known++) {
        const int32_t *own = tokens + (size_t)seq->n_known * KV_PAGE_TOKENS;
        int32_t page = seq->pages[seq->n_known], same = prefix_find(&kv->tree, seq->serial, own);
        uint64_t serial = same >= 0 ? prefix_serial(&kv->tree, same) : prefix_add(&kv->tree, page, seq->serial, own);
        if (same >= 0) meet(kv, page, same);
        seq->serial = serial;
    }
}
