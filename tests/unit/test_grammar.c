/* Grammars: masks against reading every token anew, counters near and far, states that are forgotten, what is refused.
 * tests/test_grammar.py holds the texts themselves against other libraries; this program's "walk" is how it gets them. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "grammar/cache.h"
#include "grammar_walk.h"
#include "text_fixture.h"

static struct tokenizer *tokenizer;
static struct vocabulary *vocabulary;

static int setup(void **state) {
    (void)state;
    struct mo_error error = {0};
    tokenizer = fixture_default();
    return vocabulary_create(&vocabulary, tokenizer, FIXTURE_SIZE, &error);
}

static int teardown(void **state) {
    (void)state;
    vocabulary_free(vocabulary);
    tokenizer_free(tokenizer);
    return 0;
}

static struct grammar *compile(enum grammar_kind kind, const char *text) {
    struct grammar *grammar = NULL;
    struct mo_error error = {0};
    if (grammar_compile(&grammar, kind, text, strlen(text), vocabulary, &error))
        fail_msg("%s: %s", text, error.message);
    return grammar;
}

static void refused(enum grammar_kind kind, const char *text, const char *word) {
    struct grammar *grammar = NULL;
    struct mo_error error = {0};
    int code = grammar_compile(&grammar, kind, text, strlen(text), vocabulary, &error);
    if (!code) fail_msg("%s was not refused", text);
    assert_true(code == MO_E_INVALID || code == MO_E_UNSUPPORTED);
    if (!strstr(error.message, word)) fail_msg("\"%s\" does not speak of \"%s\"", error.message, word);
}

/* --- the vocabulary's tree ----------------------------------------------------------------------- */

static void test_vocabulary(void **state) {
    (void)state;
    int seen[FIXTURE_SIZE] = {0};
    char path[16] = {0};
    assert_int_equal(vocabulary->longest, 4);
    for (int i = 0; i < vocabulary->n_nodes; i++) {
        const struct vocabulary_node *node = &vocabulary->nodes[i];
        path[node->depth - 1] = (char)node->byte;
        assert_true(node->end > i && node->end <= vocabulary->n_nodes);
        if (node->end < vocabulary->n_nodes) assert_true(vocabulary->nodes[node->end].depth <= node->depth);
        if (node->token < 0) continue;
        size_t size;
        const char *bytes = tokenizer_token_bytes(tokenizer, node->token, &size);
        assert_int_equal(size, node->depth);
        assert_memory_equal(bytes, path, size);
        seen[node->token]++;
    }
    for (int id = 0; id < FIXTURE_SIZE; id++) { /* bytes that no text has stand for marks, which are no tokens here */
        bool is_text = id < VOCABULARY_FIRST_MARK || (id >= 256 && id < FIXTURE_ADDED);
        assert_int_equal(seen[id], is_text);
    }
}

/* --- masks --------------------------------------------------------------------------------------- */

/* The mask behind tokens [n] allows exactly the tokens that can be read there. */
static void check_mask(struct grammar *grammar, const struct grammar_cursor *behind, int32_t *tokens, int n,
                       const uint64_t *mask) {
    for (int32_t id = 0; id < FIXTURE_SIZE; id++) {
        struct grammar_cursor cursor = *behind;
        tokens[n] = id;
        bool reads = id < FIXTURE_ADDED && grammar_follow(grammar, &cursor, tokens, n + 1, NULL) == 0;
        if (reads != (mask[id >> 6] >> (id & 63) & 1)) fail_msg("token %d behind %d tokens: the mask is wrong", id, n);
    }
}

static void test_masks(void **state) {
    (void)state;
    static const struct {
        enum grammar_kind kind;
        const char *text;
    } GRAMMARS[] = {
        {GRAMMAR_JSON_OBJECT, ""},
        {GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\", \"minLength\": 9, \"maxLength\": 12}"},
        {GRAMMAR_JSON_SCHEMA,
         "{\"type\": \"array\", \"items\": {\"type\": \"string\", \"maxLength\": 7}, \"maxItems\": 9}"},
        {GRAMMAR_JSON_SCHEMA, "{\"properties\": {\"aa\": {\"type\": \"integer\"}, \"abc\": {\"$ref\": \"#\"}}}"},
        {GRAMMAR_REGEX, "(aa|aaa|b){5,40}(he)?(ll| the){0,3}"},
        {GRAMMAR_REGEX, "(a{1,3}b?){2,30}"},
        {GRAMMAR_CHOICE, "[\"aaa\", \"aab\", \"hell\", \"hello\", \" the\"]"},
        {GRAMMAR_GBNF, "root ::= \"a\" root \"b\" | \"c\""},
    };
    for (size_t g = 0; g < sizeof GRAMMARS / sizeof *GRAMMARS; g++) {
        struct grammar *grammar = compile(GRAMMARS[g].kind, GRAMMARS[g].text);
        uint64_t random = 7;
        for (int walk = 0; walk < 12; walk++) {
            int32_t tokens[64];
            struct grammar_cursor cursor = {0};
            for (int n = 0; n < 60; n++) {
                const uint64_t *mask;
                uint64_t copy[(FIXTURE_SIZE + 63) / 64];
                assert_int_equal(grammar_follow(grammar, &cursor, tokens, n, NULL), 0);
                if (grammar_must_end(grammar, &cursor)) break;
                assert_int_equal(grammar_mask(grammar, &cursor, &mask, NULL), 0);
                memcpy(copy, mask, sizeof copy);
                if (n % 3 == walk % 3) check_mask(grammar, &cursor, tokens, n, copy);
                int32_t id = 0;
                for (int tries = 0; tries == 0 || !(copy[id >> 6] >> (id & 63) & 1); tries++) {
                    random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
                    id = (int32_t)((random >> 33) % FIXTURE_SIZE);
                    if (tries > 100000) fail_msg("no token is allowed");
                }
                tokens[n] = id;
            }
        }
        grammar_release(grammar);
    }
}

/* A text far from the limit of a counter has the mask of any other. */
static void test_near(void **state) {
    (void)state;
    struct grammar *grammar = compile(GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\", \"maxLength\": 1000}");
    struct grammar_cursor cursor = {0};
    int32_t tokens[1010];
    const uint64_t *far = NULL, *mask;
    tokens[0] = '"';
    for (int n = 1; n <= 1001; n++) {
        assert_int_equal(grammar_follow(grammar, &cursor, tokens, n, NULL), 0);
        assert_int_equal(grammar_mask(grammar, &cursor, &mask, NULL), 0);
        if (n == 1) far = mask;
        if (n < 970) assert_ptr_equal(mask, far);
        if (n > 999) assert_ptr_not_equal(mask, far);
        tokens[n] = 'x';
    }
    assert_int_not_equal(grammar_follow(grammar, &cursor, tokens, 1002, NULL), 0); /* one character too many */
    grammar_release(grammar);
}

/* Two long texts whose states do not fit together: the first is found again when the other has pushed it out. */
static void test_forgetting(void **state) {
    (void)state;
    enum { N = 60000 };
    struct grammar *grammar = compile(GRAMMAR_JSON_SCHEMA, "{\"type\": \"array\", \"items\": {\"type\": \"string\", "
                                                           "\"maxLength\": 100000}, \"maxItems\": 5}");
    int32_t *tokens[2] = {malloc(N * sizeof(int32_t)), malloc(N * sizeof(int32_t))};
    struct grammar_cursor cursors[2] = {{0}, {0}};
    for (int i = 0; i < N; i++) tokens[0][i] = tokens[1][i] = 'x';
    memcpy(tokens[0], (int32_t[]){'[', '"'}, 8);
    memcpy(tokens[1], (int32_t[]){'[', '"', '"', ',', '"'}, 20);
    uint32_t first = 0;
    for (int turn = 0; turn < 3; turn++) {
        const uint64_t *mask;
        int t = turn % 2;
        assert_int_equal(grammar_follow(grammar, &cursors[t], tokens[t], N - 3 + turn, NULL), 0);
        assert_int_equal(grammar_mask(grammar, &cursors[t], &mask, NULL), 0);
        assert_true(mask['"' >> 6] >> ('"' & 63) & 1);
        assert_false(mask['\n' >> 6] >> ('\n' & 63) & 1);
        if (turn == 0) first = cursors[t].generation;
    }
    assert_true(cursors[0].generation > first); /* else nothing was forgotten */
    free(tokens[0]);
    free(tokens[1]);
    grammar_release(grammar);
}

/* --- refusals and limits ------------------------------------------------------------------------- */

static void test_refusals(void **state) {
    (void)state;
    static const char *const SCHEMAS[][2] = {
        {"{\"properties\": {\"a\": {\"not\": {}}}}", "#/properties/a: the keyword \"not\""},
        {"{\"type\": \"array\", \"uniqueItems\": true}", "\"uniqueItems\""},
        {"{\"type\": \"integer\", \"multipleOf\": 5}", "\"multipleOf\""},
        {"{\"type\": \"text\"}", "\"text\" is no type"},
        {"{\"type\": \"string\", \"format\": \"iri\"}", "\"iri\""},
        {"{\"type\": \"string\", \"pattern\": \"a(?=b)\"}", "#/pattern: looking ahead"},
        {"{\"type\": \"string\", \"pattern\": \"a\", \"maxLength\": 5}", "only one of"},
        {"{\"$ref\": \"#/$defs/gone\"}", "\"#/$defs/gone\" is not in this schema"},
        {"{\"$ref\": \"other.json\"}", "not in this schema"},
        {"{\"$ref\": \"#\"}", "begins with itself"},
        {"{\"anyOf\": [{\"type\": \"null\"}, {\"$ref\": \"#\"}]}", "begins with itself"},
        {"{\"properties\": {\"a\": {\"$ref\": \"#\"}}, \"required\": [\"a\"]}", "no text can satisfy"},
        {"{\"properties\": {\"a\": false}, \"required\": [\"a\"]}", "no text can satisfy"},
        {"{\"type\": \"integer\", \"minimum\": 5, \"maximum\": 4}", "no text can satisfy"},
        {"{\"type\": \"number\", \"minimum\": 0.5}", "must be whole"},
        {"{\"allOf\": [{\"pattern\": \"a\"}, {\"pattern\": \"b\"}]}", "both have \"pattern\""},
        {"{\"$ref\": \"#/$defs/a\", \"minimum\": 1, \"$defs\": {\"a\": {\"$ref\": \"#/$defs/a\", \"maximum\": 2}}}",
         "too many schemas to merge"},
        {"{\"enum\": []}", "enum"},
        {"[1]", "expected a schema"},
        {"{\"type\": ", "not valid JSON"},
        {"{\"type\": \"array\", \"minItems\": -1}", "expected a count"},
    };
    for (size_t i = 0; i < sizeof SCHEMAS / sizeof *SCHEMAS; i++) {
        refused(GRAMMAR_JSON_SCHEMA, SCHEMAS[i][0], SCHEMAS[i][1]);
    }
    static const char *const REGEXES[][2] = {
        {"a(b", "not closed"}, {"a)b", "not opened"},        {"[a", "not closed"}, {"\\1", "escape"},
        {"*a", "nothing"},     {"a{3,2}", "wrong order"},    {"(?i)a", "flags"},   {"a^b", "^ and $"},
        {"[b-a]", "range"},    {"a{1,99999999}", "repetit"}, {"", "empty text"},   {"\\p{L}", "escape"},
    };
    for (size_t i = 0; i < sizeof REGEXES / sizeof *REGEXES; i++) refused(GRAMMAR_REGEX, REGEXES[i][0], REGEXES[i][1]);
    static const char *const RULES[][2] = {
        {"root ::= a", "no rule \"a\""}, {"a ::= \"x\"", "no rule \"root\""}, {"root ::= root \"x\" | \"y\"", "itself"},
        {"root ::= (\"x\"", "closed"},   {"root = \"x\"", "NAME ::="},        {"root ::= \"x", "closed"},
    };
    for (size_t i = 0; i < sizeof RULES / sizeof *RULES; i++) refused(GRAMMAR_GBNF, RULES[i][0], RULES[i][1]);
    refused(GRAMMAR_CHOICE, "[]", "not empty");
    refused(GRAMMAR_CHOICE, "[\"a\", 1]", "strings");
}

static char *nested(int depth) {
    static const char OPEN[] = "{\"items\":", CLOSE[] = "}";
    char *text = malloc((size_t)depth * (sizeof OPEN + sizeof CLOSE) + 16), *at = text;
    for (int i = 0; i < depth; i++) at += sprintf(at, "%s", OPEN);
    at += sprintf(at, "true");
    for (int i = 0; i < depth; i++) at += sprintf(at, "%s", CLOSE);
    return text;
}

/* Two lists of the same `n` numbers, one the other way round, that hold at once so many times. */
static char *merged_lists(int n, int times) {
    char *text = malloc((size_t)n * 16 + (size_t)times * 32 + 64), *at = text;
    for (int list = 0; list < 2; list++) {
        at += sprintf(at, "%s:{\"enum\":[-1", list ? "]},\"b\"" : "{\"$defs\":{\"a\"");
        for (int i = 0; i < n; i++) at += sprintf(at, ",%d", list ? n - i : i + 1);
    }
    at += sprintf(at, "]}},\"allOf\":[true");
    for (int i = 0; i < times; i++) at += sprintf(at, ",{\"$ref\":\"#/$defs/%c\"}", 'a' + i % 2);
    sprintf(at, "]}");
    return text;
}

/* Hostile input is refused in bounded time, or ends its own text with an error. */
static void test_limits(void **state) {
    (void)state;
    char *text = nested(90);
    grammar_release(compile(GRAMMAR_JSON_SCHEMA, text));
    free(text);
    text = nested(1000);
    refused(GRAMMAR_JSON_SCHEMA, text, "too deep");
    free(text);
    text = malloc(GRAMMAR_TEXT_MAX + 2);
    memset(text, 'a', GRAMMAR_TEXT_MAX + 1);
    text[GRAMMAR_TEXT_MAX + 1] = 0;
    refused(GRAMMAR_REGEX, text, "too large");
    free(text);
    refused(GRAMMAR_REGEX, "((((a?){0,1000}){0,1000}){0,1000}){1,1000}b", "too many ways");
    size_t size = 0, most = 64 << 10;
    text = malloc(most);
    for (int i = 0; i < 1100; i++) size += (size_t)snprintf(text + size, most - size, "r%d ::= \"x\"\n", i);
    refused(GRAMMAR_GBNF, text, "too many rules"); /* it went on for ever */
    free(text);
    text = merged_lists(1000, 400); /* six seconds */
    refused(GRAMMAR_JSON_SCHEMA, text, "too long to compare and to merge");
    free(text);

    struct grammar *grammar = compile(GRAMMAR_REGEX, "((a|aa){0,1000}){0,1000}b");
    struct grammar_cursor cursor = {0};
    struct mo_error error = {0};
    int32_t tokens[1000];
    int code = 0;
    for (int i = 0; i < 1000; i++) tokens[i] = 'a';
    for (int n = 1; n < 1000 && !code; n++) code = grammar_follow(grammar, &cursor, tokens, n, &error);
    assert_int_equal(code, MO_E_LIMIT);
    assert_non_null(strstr(error.message, "too many ways"));
    grammar_release(grammar);
}

static void test_utf8(void **state) {
    (void)state;
    static const char *const GOOD[] = {"\"\xc2\x80\"", "\"\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\"",
                                       "\"\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"", "\"\x7f\""};
    static const char *const WRONG[] = {
        "\"\xc0\x80\"",         "\"\x80\"", "\"\xe0\x9f\xbf\"", "\"\xed\xa0\x80\"", "\"\xf0\x8f\xbf\xbf\"",
        "\"\xf4\x90\x80\x80\"", "\"\xf8\"", "\"\xc2\""};
    struct grammar *string = compile(GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\"}");
    for (size_t i = 0; i < sizeof GOOD / sizeof *GOOD; i++)
        assert_true(grammar_accepts(string, GOOD[i], strlen(GOOD[i])));
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
        assert_false(grammar_accepts(string, WRONG[i], strlen(WRONG[i])));
    }
    grammar_release(string);
    struct grammar *counted = compile(GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\", \"maxLength\": 1}");
    assert_true(grammar_accepts(counted, "\"\xf0\x9f\x98\x80\"", 6)); /* characters count, not bytes */
    assert_true(grammar_accepts(counted, "\"\\ud83d\\ude00\"", 14));
    assert_false(grammar_accepts(counted, "\"ab\"", 4));
    grammar_release(counted);
}

/* --- the cache ----------------------------------------------------------------------------------- */

static void test_cache(void **state) {
    (void)state;
    struct grammar_cache *cache;
    struct grammar *first, *again, *other;
    struct mo_error error = {0};
    assert_int_equal(grammar_cache_create(&cache, tokenizer, FIXTURE_SIZE, &error), 0);
    assert_int_equal(grammar_cache_get(cache, GRAMMAR_REGEX, "a+", 2, &first, &error), 0);
    assert_int_equal(grammar_cache_get(cache, GRAMMAR_REGEX, "a+", 2, &again, &error), 0);
    assert_ptr_equal(first, again);
    assert_int_equal(grammar_cache_get(cache, GRAMMAR_GBNF, "a+", 2, &other, &error), MO_E_INVALID);
    for (int i = 0; i < GRAMMAR_CACHE_MAX; i++) {
        char text[8];
        int n = snprintf(text, sizeof text, "b%d", i);
        assert_int_equal(grammar_cache_get(cache, GRAMMAR_REGEX, text, (size_t)n, &other, &error), 0);
        grammar_release(other);
    }
    assert_int_equal(grammar_cache_get(cache, GRAMMAR_REGEX, "a+", 2, &other, &error), 0);
    assert_ptr_not_equal(other, first);            /* the others have taken its place */
    assert_true(grammar_accepts(first, "aaa", 3)); /* and whoever has it keeps it */
    assert_false(grammar_accepts(first, "", 0));
    grammar_release(first);
    grammar_release(again);
    grammar_release(other);
    grammar_cache_free(cache);
    assert_int_equal(grammar_cache_bytes(0, 8), 0);
    assert_int_equal(grammar_cache_bytes(1, 8), GRAMMAR_STATES_MAX);
    assert_int_equal(grammar_cache_bytes(16, 8), 8 * (GRAMMAR_STATES_MAX + GRAMMAR_STATES_IDLE));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vocabulary), cmocka_unit_test(test_masks),    cmocka_unit_test(test_near),
        cmocka_unit_test(test_forgetting), cmocka_unit_test(test_refusals), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_utf8),       cmocka_unit_test(test_cache),
    };
    if (argc > 1 && !strcmp(argv[1], "walk")) return grammar_walk_lines(argc > 2 ? argv[2] : NULL);
    return cmocka_run_group_tests(tests, setup, teardown);
}
