#include "grammar/vocabulary.h"

#include <stdlib.h>
#include <string.h>
#include "text/calls.h"

static const char *const MARKS[VOCABULARY_MARKS] = {CALLS_BEGIN, CALLS_END,   CALL_BEGIN, CALL_SEPARATOR,
                                                    CALL_END,    THINK_BEGIN, THINK_END,  DSML};
static const char MARK_BYTES[VOCABULARY_MARKS] = {'\xf8', '\xf9', '\xfa', '\xfb', '\xfc', '\xfd', '\xfe', '\xff'};

/* A token and its bytes, for sorting. */
struct entry {
    const char *bytes; /* [size] */
    size_t size;
    int32_t id;
};

static int compare(const void *left, const void *right) {
    const struct entry *a = left, *b = right;
    size_t shared = a->size < b->size ? a->size : b->size;
    int order = memcmp(a->bytes, b->bytes, shared);
    if (order) return order;
    if (a->size != b->size) return a->size < b->size ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

/* Bytes that stand for marks are no text's. */
static bool is_text(const char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if ((uint8_t)bytes[i] >= VOCABULARY_FIRST_MARK) return false;
    }
    return size > 0 && size <= UINT16_MAX;
}

static int collect(const struct vocabulary *v, struct entry *entries) {
    const struct tokenizer *tokenizer = v->tokenizer;
    int n = 0, known = tokenizer_size(tokenizer) < v->n_tokens ? tokenizer_size(tokenizer) : v->n_tokens;
    for (int32_t id = 0; id < known; id++) {
        struct entry entry = {.id = id};
        entry.bytes = tokenizer_token_bytes(tokenizer, id, &entry.size);
        bool is_plain = is_text(entry.bytes, entry.size) && !tokenizer_is_special(tokenizer, id);
        if (is_plain && tokenizer_added_id(tokenizer, entry.bytes) != id) entries[n++] = entry;
    }
    for (int k = 0; k < VOCABULARY_MARKS; k++) {
        if (v->marks[k] >= 0) entries[n++] = (struct entry){&MARK_BYTES[k], 1, v->marks[k]};
    }
    qsort(entries, (size_t)n, sizeof *entries, compare);
    return n;
}

static void find_marks(struct vocabulary *v) {
    for (int k = 0; k < VOCABULARY_MARKS; k++) {
        int32_t id = tokenizer_added_id(v->tokenizer, MARKS[k]);
        v->marks[k] = id < v->n_tokens ? id : -1;
    }
}

static size_t shared_prefix(const struct entry *a, const struct entry *b) {
    size_t n = 0;
    while (n < a->size && n < b->size && a->bytes[n] == b->bytes[n]) n++;
    return n;
}

/* `open` [longest] holds the nodes from the root to the last one. Of tokens with the same bytes the first stays. */
static void add(struct vocabulary *v, int32_t *open, size_t *n_open, const struct entry *entry, size_t shared) {
    while (*n_open > shared) v->nodes[open[--*n_open]].end = v->n_nodes;
    for (size_t i = shared; i < entry->size; i++) {
        open[(*n_open)++] = v->n_nodes;
        v->nodes[v->n_nodes++] = (struct vocabulary_node){-1, 0, (uint16_t)(i + 1), (uint8_t)entry->bytes[i]};
    }
    struct vocabulary_node *last = &v->nodes[open[*n_open - 1]];
    if (last->token < 0) last->token = entry->id;
}

static bool build(struct vocabulary *v, const struct entry *entries, int n) {
    size_t n_nodes = 0, n_open = 0;
    for (int i = 0; i < n; i++) {
        n_nodes += entries[i].size - (i ? shared_prefix(&entries[i - 1], &entries[i]) : 0);
        if ((int)entries[i].size > v->longest) v->longest = (int)entries[i].size;
    }
    int32_t *open = calloc((size_t)v->longest + 1, sizeof *open);
    v->nodes = calloc(n_nodes + 1, sizeof *v->nodes);
    for (int i = 0; open && v->nodes && i < n; i++) {
        add(v, open, &n_open, &entries[i], i ? shared_prefix(&entries[i - 1], &entries[i]) : 0);
    }
    while (n_open > 0) v->nodes[open[--n_open]].end = v->n_nodes;
    bool built = open && v->nodes;
    free(open);
    return built;
}

int vocabulary_create(struct vocabulary **out, const struct tokenizer *tokenizer, int n_tokens,
                      struct mo_error *error) {
    struct entry *entries = calloc((size_t)n_tokens + VOCABULARY_MARKS, sizeof *entries);
    struct vocabulary *v = calloc(1, sizeof *v);
    if (!entries || !v) goto fail;
    *v = (struct vocabulary){.tokenizer = tokenizer, .n_tokens = n_tokens};
    find_marks(v);
    if (!build(v, entries, collect(v, entries))) goto fail;
    free(entries);
    *out = v;
    return 0;
fail:
    free(entries);
    vocabulary_free(v);
    return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a tree of %d tokens", n_tokens);
}

void vocabulary_free(struct vocabulary *vocabulary) {
    if (vocabulary) free(vocabulary->nodes);
    free(vocabulary);
}

const char *vocabulary_bytes(const struct vocabulary *v, int32_t token, size_t *size) {
    for (int k = 0; k < VOCABULARY_MARKS; k++) {
        if (v->marks[k] != token) continue;
        *size = 1;
        return &MARK_BYTES[k];
    }
    return tokenizer_token_bytes(v->tokenizer, token, size);
}

uint8_t vocabulary_mark(const struct vocabulary *v, const char *mark) {
    for (int k = 0; k < VOCABULARY_MARKS; k++) {
        if (strcmp(mark, MARKS[k]) == 0 && v->marks[k] >= 0) return (uint8_t)MARK_BYTES[k];
    }
    return 0;
}
