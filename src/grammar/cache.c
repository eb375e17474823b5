#include "grammar/cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct grammar *grammar;
    enum grammar_kind kind;
    char *text; /* [size] */
    size_t size;
    uint64_t used; /* when it was last asked for */
};

struct grammar_cache {
    pthread_mutex_t lock;
    const struct tokenizer *tokenizer;
    int n_tokens;
    struct vocabulary *vocabulary;
    struct entry entries[GRAMMAR_CACHE_MAX];
    uint64_t now;
};

int grammar_cache_create(struct grammar_cache **out, const struct tokenizer *tokenizer, int n_tokens,
                         struct mo_error *error) {
    struct grammar_cache *cache = calloc(1, sizeof *cache);
    if (!cache) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for grammars");
    pthread_mutex_init(&cache->lock, NULL);
    cache->tokenizer = tokenizer;
    cache->n_tokens = n_tokens;
    *out = cache;
    return 0;
}

static void entry_clear(struct entry *entry) {
    grammar_release(entry->grammar);
    free(entry->text);
    *entry = (struct entry){0};
}

void grammar_cache_free(struct grammar_cache *cache) {
    if (!cache) return;
    for (int i = 0; i < GRAMMAR_CACHE_MAX; i++) entry_clear(&cache->entries[i]);
    vocabulary_free(cache->vocabulary);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

size_t grammar_cache_bytes(int n_grammars, int n_answers) {
    int busy = n_answers < n_grammars ? n_answers : n_grammars;
    return (size_t)busy * GRAMMAR_STATES_MAX + (size_t)(n_grammars - busy) * GRAMMAR_STATES_IDLE;
}

static struct grammar *find_locked(struct grammar_cache *cache, enum grammar_kind kind, const char *text, size_t size) {
    for (int i = 0; i < GRAMMAR_CACHE_MAX; i++) {
        struct entry *e = &cache->entries[i];
        if (!e->grammar || e->kind != kind || e->size != size || memcmp(e->text, text, size)) continue;
        e->used = ++cache->now;
        return grammar_keep(e->grammar);
    }
    return NULL;
}

/* In the place of the one that was asked for longest ago. Without memory it is not kept, and nothing else happens. */
static void add_locked(struct grammar_cache *cache, enum grammar_kind kind, const char *text, size_t size,
                       struct grammar *grammar) {
    struct entry *oldest = &cache->entries[0];
    for (int i = 1; i < GRAMMAR_CACHE_MAX; i++) {
        if (cache->entries[i].used < oldest->used) oldest = &cache->entries[i];
    }
    char *copy = malloc(size + 1);
    if (!copy) return;
    if (size) memcpy(copy, text, size);
    entry_clear(oldest);
    *oldest = (struct entry){grammar_keep(grammar), kind, copy, size, ++cache->now};
}

int grammar_cache_get(struct grammar_cache *cache, enum grammar_kind kind, const char *text, size_t size,
                      struct grammar **grammar, struct mo_error *error) {
    int code = 0;
    pthread_mutex_lock(&cache->lock);
    for (int i = 0; i < GRAMMAR_CACHE_MAX; i++) {
        if (cache->entries[i].grammar) grammar_trim(cache->entries[i].grammar);
    }
    *grammar = find_locked(cache, kind, text, size);
    if (!*grammar && !cache->vocabulary) {
        code = vocabulary_create(&cache->vocabulary, cache->tokenizer, cache->n_tokens, error);
    }
    pthread_mutex_unlock(&cache->lock);
    if (*grammar || code) return code;

    code = grammar_compile(grammar, kind, text, size, cache->vocabulary, error);
    if (code) return code;
    pthread_mutex_lock(&cache->lock);
    struct grammar *known = find_locked(cache, kind, text, size); /* somebody else's was first */
    if (known) {
        grammar_release(*grammar);
        *grammar = known;
    } else {
        add_locked(cache, kind, text, size, *grammar);
    }
    pthread_mutex_unlock(&cache->lock);
    return 0;
}
