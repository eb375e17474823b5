/* tests/fuzz/fuzz_grammar.c - a schema, an expression, a list of choices, rules or functions (the first byte says which) is refused with
 * a message, or allows tokens that it can then read, and nothing else; JSON that has come to its end is JSON. */
#include <stdint.h>
#include "byte_tokenizer.h"
#include "grammar/grammar.h"
#include "require.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 300, WALKS = 3, TOKENS_MAX = 80, N_KINDS = 6 };

static const struct vocabulary *vocabulary;

static uint32_t draw(uint64_t *random) {
    *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*random >> 33);
}

static bool is_allowed(const uint64_t *mask, int32_t token) {
    return mask[token >> 6] >> (token & 63) & 1;
}

/* Any token of the mask, oftener one that ends something. */
static int32_t choose(const uint64_t *mask, uint64_t *random) {
    static const char CLOSING[] = "\"}]";
    for (int i = 0; i < 3; i++) {
        if (draw(random) % 8 == 0 && is_allowed(mask, CLOSING[i])) return CLOSING[i];
    }
    int32_t token = (int32_t)(draw(random) % VOCAB);
    for (int i = 0; i < VOCAB && !is_allowed(mask, token); i++) token = (token + 1) % VOCAB;
    return is_allowed(mask, token) ? token : -1;
}

/* What the mask leaves out cannot be read. */
static void try_forbidden(struct grammar *grammar, const struct grammar_cursor *cursor, const uint64_t *mask,
                          int32_t *tokens, int n, uint64_t *random) {
    struct grammar_cursor probe = *cursor;
    int32_t token = (int32_t)(draw(random) % FIRST_SPECIAL);
    if (is_allowed(mask, token)) return;
    tokens[n] = token;
    require(grammar_follow(grammar, &probe, tokens, n + 1, NULL) != 0);
}

static void check_end(enum grammar_kind kind, const int32_t *tokens, int n) {
    char text[TOKENS_MAX];
    for (int i = 0; i < n; i++) text[i] = (char)tokens[i];
    if (kind != GRAMMAR_JSON_SCHEMA && kind != GRAMMAR_JSON_OBJECT) return;
    if (memmem(text, (size_t)n, "\\u0000", 6))
        return; /* only a schema's own names have it, and jansson no such names */
    json_t *json = json_loadb(text, (size_t)n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    require(json != NULL);
    json_decref(json);
}

static void walk(struct grammar *grammar, enum grammar_kind kind, uint64_t *random) {
    struct grammar_cursor cursor = {0};
    int32_t tokens[TOKENS_MAX + 1];
    for (int n = 0; n < TOKENS_MAX; n++) {
        const uint64_t *mask;
        int code = grammar_follow(grammar, &cursor, tokens, n, NULL);
        if (!code && grammar_may_end(grammar, &cursor)) check_end(kind, tokens, n);
        if (!code && grammar_must_end(grammar, &cursor)) return;
        if (!code) code = grammar_mask(grammar, &cursor, &mask, NULL);
        require(code == 0 || code == MO_E_LIMIT || code == MO_E_UNSUPPORTED);
        if (code) return;
        uint64_t copy[(VOCAB + 63) / 64];
        memcpy(copy, mask, sizeof copy);
        try_forbidden(grammar, &cursor, copy, tokens, n, random);
        tokens[n] = choose(copy, random);
        if (tokens[n] < 0) return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct grammar *grammar = NULL;
    struct mo_error error = {0};
    if (!vocabulary) require(vocabulary_create((struct vocabulary **)&vocabulary, byte_tokenizer(), VOCAB, NULL) == 0);
    if (size == 0) return 0;
    enum grammar_kind kind = (enum grammar_kind)((data[0] - '0') % N_KINDS);
    if (data[0] < '0') return 0;
    uint64_t random = size;
    int code = grammar_compile(&grammar, kind, (const char *)data + 1, size - 1, vocabulary, &error);
    require((code == 0) == (grammar != NULL) && (code == 0 || (error.code == code && error.message[0])));
    require(code == 0 || code == MO_E_INVALID || code == MO_E_UNSUPPORTED);
    for (int i = 0; grammar && i < WALKS; i++) walk(grammar, kind, &random);
    grammar_release(grammar);
    return 0;
}
