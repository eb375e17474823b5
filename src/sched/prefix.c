#include "sched/prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "backend/backend.h"

enum { TOKEN_BYTES = KV_PAGE_TOKENS * sizeof(int32_t) };

static int32_t *tokens_of(const struct prefix_tree *tree, int32_t page) {
    return tree->tokens + (size_t)page * KV_PAGE_TOKENS;
}

static int32_t *bucket_of(const struct prefix_tree *tree, uint64_t parent, const int32_t *tokens) {
    return &tree->buckets[XXH3_64bits_withSeed(tokens, TOKEN_BYTES, parent) & (tree->n_buckets - 1)];
}

int prefix_init(struct prefix_tree *tree, int n_pages, struct mo_error *error) {
    *tree = (struct prefix_tree){.n_buckets = 1};
    while (tree->n_buckets < (uint32_t)n_pages) tree->n_buckets *= 2;
    tree->pages = calloc((size_t)n_pages, sizeof *tree->pages);
    tree->tokens = malloc((size_t)n_pages * TOKEN_BYTES);
    tree->buckets = malloc(tree->n_buckets * sizeof *tree->buckets);
    if (!tree->pages || !tree->tokens || !tree->buckets) {
        prefix_free(tree);
        return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the prefixes of %d pages", n_pages);
    }
    for (uint32_t i = 0; i < tree->n_buckets; i++) tree->buckets[i] = -1;
    return 0;
}

void prefix_free(struct prefix_tree *tree) {
    free(tree->pages);
    free(tree->tokens);
    free(tree->buckets);
    *tree = (struct prefix_tree){0};
}

int32_t prefix_find(const struct prefix_tree *tree, uint64_t parent, const int32_t *tokens) {
    int32_t page = *bucket_of(tree, parent, tokens);
    while (page >= 0 &&
           (tree->pages[page].parent != parent || memcmp(tokens_of(tree, page), tokens, TOKEN_BYTES) != 0)) {
        page = tree->pages[page].next;
    }
    return page;
}

uint64_t prefix_add(struct prefix_tree *tree, int32_t page, uint64_t parent, const int32_t *tokens) {
    struct prefix_page *entry = &tree->pages[page];
    int32_t *bucket = bucket_of(tree, parent, tokens);
    assert(entry->serial == 0);
    *entry = (struct prefix_page){++tree->last_serial, parent, *bucket};
    *bucket = page;
    memcpy(tokens_of(tree, page), tokens, TOKEN_BYTES);
    return entry->serial;
}

void prefix_remove(struct prefix_tree *tree, int32_t page) {
    struct prefix_page *entry = &tree->pages[page];
    if (entry->serial == 0) return;
    int32_t *link = bucket_of(tree, entry->parent, tokens_of(tree, page));
    while (*link != page) link = &tree->pages[*link].next;
    *link = entry->next;
    *entry = (struct prefix_page){0};
}

void prefix_move(struct prefix_tree *tree, int32_t from, int32_t to) {
    struct prefix_page entry = tree->pages[from];
    assert(entry.serial != 0 && tree->pages[to].serial == 0);
    memcpy(tokens_of(tree, to), tokens_of(tree, from), TOKEN_BYTES);
    int32_t *link = bucket_of(tree, entry.parent, tokens_of(tree, to));
    while (*link != from) link = &tree->pages[*link].next;
    *link = to;
    tree->pages[to] = entry;
    tree->pages[from] = (struct prefix_page){0};
}

uint64_t prefix_serial(const struct prefix_tree *tree, int32_t page) {
    return tree->pages[page].serial;
}
