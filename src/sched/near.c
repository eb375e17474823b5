#include "sched/near.h"

#include <assert.h>
#include <stdlib.h>
#include "backend/backend.h"

int near_init(struct near_parts *parts, int n_pages, int n_parts, int window, struct mo_error *error) {
    assert(n_parts > 0 && window > 0);
    *parts = (struct near_parts){.first = -1, .last = -1, .window = window, .n_unused = n_parts};
    parts->place = malloc((size_t)n_pages * sizeof *parts->place);
    parts->pages = calloc((size_t)n_pages, sizeof *parts->pages);
    parts->unused = malloc((size_t)n_parts * sizeof *parts->unused);
    if (!parts->place || !parts->pages || !parts->unused) {
        near_free(parts);
        return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a table of %d pages", n_pages);
    }
    for (int i = 0; i < n_pages; i++) parts->place[i] = -1;
    for (int i = 0; i < n_parts; i++) parts->unused[i] = n_parts - 1 - i;
    return 0;
}

void near_free(struct near_parts *parts) {
    free(parts->place);
    free(parts->pages);
    free(parts->unused);
    *parts = (struct near_parts){0};
}

bool near_has(const struct near_parts *parts, int32_t page) {
    return !parts->place || parts->place[page] >= 0;
}

int near_left(const struct near_parts *parts) {
    return parts->place ? parts->n_unused + parts->n_idle : INT32_MAX;
}

static void idle_remove(struct near_parts *parts, int32_t page) {
    const struct near_page *p = &parts->pages[page];
    *(p->previous < 0 ? &parts->first : &parts->pages[p->previous].next) = p->next;
    *(p->next < 0 ? &parts->last : &parts->pages[p->next].previous) = p->previous;
    parts->n_idle--;
}

void near_lose(struct near_parts *parts) {
    int32_t page = parts->first;
    idle_remove(parts, page);
    parts->unused[parts->n_unused++] = parts->place[page];
    parts->place[page] = -1;
}

static void look(struct near_parts *parts, int32_t page) {
    if (parts->pages[page].users++ > 0) return;
    if (parts->place[page] >= 0) {
        idle_remove(parts, page);
    } else {
        if (parts->n_unused == 0) near_lose(parts);
        parts->place[page] = parts->unused[--parts->n_unused];
    }
}

void near_begin(struct near_parts *parts, int32_t page) {
    if (!parts->place) return;
    look(parts, page);
    parts->pages[page].is_common = false;
}

void near_share(struct near_parts *parts, int32_t page) {
    if (!parts->place) return;
    assert(parts->place[page] >= 0);
    look(parts, page);
    parts->pages[page].is_common = true;
}

void near_meet(struct near_parts *parts, int32_t page) {
    if (parts->place) parts->pages[page].is_common = true;
}

static void idle_add(struct near_parts *parts, int32_t page, bool is_first) {
    struct near_page *p = &parts->pages[page];
    p->previous = is_first ? -1 : parts->last;
    p->next = is_first ? parts->first : -1;
    *(p->previous < 0 ? &parts->first : &parts->pages[p->previous].next) = page;
    *(p->next < 0 ? &parts->last : &parts->pages[p->next].previous) = page;
    parts->n_idle++;
}

void near_leave(struct near_parts *parts, int32_t page, bool ends) {
    if (!parts->place) return;
    struct near_page *p = &parts->pages[page];
    assert(p->users > 0);
    if (--p->users == 0) idle_add(parts, page, !ends && !p->is_common);
}

int near_first(const struct near_parts *parts, int n_tokens) {
    int begin = n_tokens / KV_PAGE_TOKENS * KV_PAGE_TOKENS, oldest = begin + 1 - parts->window;
    if (!parts->place || oldest <= 0) return 0;
    int first = oldest / KV_PAGE_TOKENS, before = begin / KV_PAGE_TOKENS - 1; /* whose sums it goes on from */
    return first < before ? first : before;
}
