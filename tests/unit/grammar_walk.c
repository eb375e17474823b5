#include "grammar_walk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/file.h"
#include "text_fixture.h"

enum { FILE_BYTES_MAX = 64 << 20 };

bool grammar_accepts(struct grammar *grammar, const char *text, size_t size) {
    struct grammar_cursor cursor = {0};
    int32_t *tokens = calloc(size + 1, sizeof *tokens);
    for (size_t i = 0; i < size; i++) tokens[i] = (uint8_t)text[i];
    int code = grammar_follow(grammar, &cursor, tokens, (int)size, NULL);
    free(tokens);
    return !code && grammar_may_end(grammar, &cursor);
}

/* A text on its way. */
struct walk {
    struct grammar *grammar;
    const struct vocabulary *vocabulary;
    int32_t *tokens, *allowed; /* [n_max], [vocabulary's] */
    int n, n_max;
    uint64_t random;
    json_t *times;
};

static uint32_t draw(struct walk *walk) {
    walk->random = walk->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(walk->random >> 33);
}

static bool closes(const struct tokenizer *tokenizer, int32_t token) {
    size_t size;
    const char *bytes = tokenizer_token_bytes(tokenizer, token, &size);
    return size == 1 && strchr("\"]}", bytes[0]);
}

/* Any allowed token; now and then one that ends something, or strings would seldom end. */
static int32_t choose(struct walk *walk, const uint64_t *mask) {
    int n = 0, n_closing = 0;
    bool may_close = draw(walk) % 4 == 0;
    for (int32_t i = 0; i < walk->vocabulary->n_tokens; i++) {
        if (mask[i >> 6] >> (i & 63) & 1) walk->allowed[n++] = i;
    }
    for (int i = 0; may_close && i < n; i++) {
        if (closes(walk->vocabulary->tokenizer, walk->allowed[i])) walk->allowed[n_closing++] = walk->allowed[i];
    }
    if (n_closing) n = n_closing;
    return n ? walk->allowed[draw(walk) % (uint32_t)n] : -1;
}

/* Whether the text has come to an end. */
static bool take_walk(struct walk *walk, struct mo_error *error) {
    struct grammar_cursor cursor = {0};
    for (walk->n = 0; walk->n < walk->n_max;) {
        const uint64_t *mask;
        double start_s = clock_now_s();
        if (grammar_follow(walk->grammar, &cursor, walk->tokens, walk->n, error)) return false;
        if (grammar_must_end(walk->grammar, &cursor)) return true;
        if (grammar_mask(walk->grammar, &cursor, &mask, error)) return false;
        json_array_append_new(walk->times, json_real((clock_now_s() - start_s) * 1e3));
        if (grammar_may_end(walk->grammar, &cursor) && draw(walk) % 4 == 0) return true;
        int32_t token = choose(walk, mask);
        if (token < 0) return grammar_may_end(walk->grammar, &cursor);
        walk->tokens[walk->n++] = token;
    }
    return false;
}

static json_t *text_of(const struct walk *walk) {
    char *text = NULL;
    size_t size = 0;
    struct mo_error error = {0};
    if (tokenizer_decode(walk->vocabulary->tokenizer, walk->tokens, (size_t)walk->n, false, &text, &size, &error))
        abort();
    json_t *json = json_stringn(text, size);
    free(text);
    return json;
}

static int64_t number_of(const json_t *request, const char *key, int64_t missing) {
    const json_t *value = json_object_get(request, key);
    return value ? json_integer_value(value) : missing;
}

static void take_walks(struct grammar *grammar, const struct vocabulary *vocabulary, const json_t *request,
                       json_t *answer) {
    struct walk walk = {.grammar = grammar, .vocabulary = vocabulary};
    struct mo_error error = {0};
    json_t *texts = json_array();
    int unfinished = 0;
    walk.n_max = (int)number_of(request, "tokens", 2000);
    walk.random = (uint64_t)number_of(request, "seed", 1);
    walk.tokens = calloc((size_t)walk.n_max, sizeof *walk.tokens);
    walk.allowed = calloc((size_t)vocabulary->n_tokens, sizeof *walk.allowed);
    for (int64_t i = 0; i < number_of(request, "walks", 0) && !error.code; i++) {
        const char *key = i ? "later_ms" : "first_ms";
        walk.times = json_object_get(answer, key);
        if (!walk.times) json_object_set_new(answer, key, walk.times = json_array());
        if (take_walk(&walk, &error))
            json_array_append_new(texts, text_of(&walk));
        else
            unfinished++;
    }
    if (error.code) json_object_set_new(answer, "error", json_string(error.message));
    json_object_set_new(answer, "texts", texts);
    json_object_set_new(answer, "unfinished", json_integer(unfinished));
    free(walk.tokens);
    free(walk.allowed);
}

static json_t *answer_of(const struct vocabulary *vocabulary, const json_t *request) {
    static const char *const KINDS[] = {"json_schema", "json_object", "regex", "choice", "gbnf", "calls"};
    const json_t *text = json_object_get(request, "text"), *tries = json_object_get(request, "try");
    json_t *answer = json_object();
    struct grammar *grammar;
    struct mo_error error = {0};
    int kind = 0;
    while (strcmp(json_string_value(json_object_get(request, "kind")), KINDS[kind])) kind++;
    double start_s = clock_now_s();
    if (grammar_compile(&grammar, (enum grammar_kind)kind, json_string_value(text), json_string_length(text),
                        vocabulary, &error)) {
        json_object_set_new(answer, "error", json_string(error.message));
        return answer;
    }
    json_object_set_new(answer, "compile_ms", json_real((clock_now_s() - start_s) * 1e3));
    json_t *accepts = json_array();
    for (size_t i = 0; i < json_array_size(tries); i++) {
        const json_t *one = json_array_get(tries, i);
        bool good = grammar_accepts(grammar, json_string_value(one), json_string_length(one));
        json_array_append_new(accepts, json_boolean(good));
    }
    json_object_set_new(answer, "accepts", accepts);
    take_walks(grammar, vocabulary, request, answer);
    grammar_release(grammar);
    return answer;
}

static struct tokenizer *load(const char *path) {
    struct mo_error error = {0};
    struct tokenizer *tokenizer = NULL;
    char *text = NULL;
    size_t size;
    if (!path) return fixture_default();
    int code = file_read(path, FILE_BYTES_MAX, &text, &size, &error);
    if (!code) code = tokenizer_parse(&tokenizer, text, size, NULL, 0, path, &error);
    if (code) fprintf(stderr, "%s\n", error.message);
    free(text);
    return tokenizer;
}

int grammar_walk_lines(const char *tokenizer_path) {
    struct tokenizer *tokenizer = load(tokenizer_path);
    struct vocabulary *vocabulary = NULL;
    struct mo_error error = {0};
    char *line = NULL;
    size_t capacity = 0;
    if (!tokenizer || vocabulary_create(&vocabulary, tokenizer, tokenizer_size(tokenizer), &error)) return 1;
    for (ssize_t n; (n = getline(&line, &capacity, stdin)) > 0;) {
        json_t *request = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, NULL);
        json_t *answer = answer_of(vocabulary, request);
        json_dumpf(answer, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(answer);
        json_decref(request);
    }
    free(line);
    vocabulary_free(vocabulary);
    tokenizer_free(tokenizer);
    return 0;
}
