/* Special tokens as people type them: DeepSeek's have a full-width bar and a low block (U+FF5C, U+2581) where
 * a keyboard has "|" and "_". Typed so they are plain text to the model, which is seldom what was meant. */
#include "text/tokenizer_priv.h"

#include <string.h>

/* Reads one byte of the folded text; returns how many bytes of the text it stands for. */
static size_t fold_one(const char *text, size_t n, char *out) {
    bool bar = n >= 3 && memcmp(text, "\xEF\xBD\x9C", 3) == 0, low = n >= 3 && memcmp(text, "\xE2\x96\x81", 3) == 0;
    *out = bar ? '|' : low ? '_' : text[0];
    return bar || low ? 3 : 1;
}

static size_t fold(const char *text, size_t n, char *out, size_t out_max) {
    size_t size = 0;
    for (size_t at = 0; at < n && size < out_max;) at += fold_one(text + at, n - at, &out[size++]);
    return size;
}

int lookalikes_build(struct tokenizer *tokenizer, struct mo_error *error) {
    size_t n = (size_t)tokenizer->added[0].n + tokenizer->added[1].n;
    int code = added_set_reserve(&tokenizer->lookalikes, tokenizer->arena, n, error);
    if (code) return code;
    for (int pass = 0; pass < 2; pass++) {
        const struct added_set *set = &tokenizer->added[pass];
        for (uint32_t i = 0; i < set->n; i++) {
            char folded[ADDED_BYTES_MAX];
            size_t size = fold(set->tokens[i].text, set->tokens[i].size, folded, sizeof folded);
            if (size == set->tokens[i].size) continue; /* typed as it is */
            const char *kept = arena_strndup(tokenizer->arena, folded, size);
            if (!kept) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for added tokens");
            added_set_add(&tokenizer->lookalikes, kept, size, set->tokens[i].id);
        }
    }
    added_set_sort(&tokenizer->lookalikes);
    return 0;
}

const char *tokenizer_lookalike(const struct tokenizer *tokenizer, const char *text, size_t size) {
    const struct added_set *set = &tokenizer->lookalikes;
    char window[ADDED_BYTES_MAX];
    for (size_t at = 0; set->n && at < size;) {
        char byte;
        size_t step = fold_one(text + at, size - at, &byte);
        if (set->first[(uint8_t)byte] < set->first[(uint8_t)byte + 1]) {
            size_t n = fold(text + at, size - at, window, set->size_max);
            const struct added_token *found = added_set_prefix(set, window, n);
            if (found) {
                const struct text_token *token = &tokenizer->tokens[found->id];
                bool genuine = size - at >= token->size && memcmp(text + at, token->bytes, token->size) == 0;
                if (!genuine) return token->bytes;
                step = token->size;
            }
        }
        at += step;
    }
    return NULL;
}
