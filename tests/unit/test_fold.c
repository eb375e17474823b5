/* Spellings folded together: rule by rule, on a vocabulary of our own, and whole vocabularies against what Python's tokenizers 0.23 make
 * of them by the reference's own steps. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "engine/fold.h"
#include "text/fold.h"
#include "text_fixture.h"

/* Added tokens behind those of the fixture. */
/* clang-format off */
static const char *const TEXTS[] = {
    "The", "THE", " the", "\u00e9clair", "ECLAIR", "e\u0301clair", /* case, accents, spaces at the ends */
    "\ufb01n", "fin", "\uff26IN",                                  /* compatibility forms */
    "a \t\r\nb", "A B", "a  b",                                    /* blanks in the middle */
    "\u3000", "\u00a0\t", "\n",                                    /* a lone space, as blanks have it */
    "\u0301", "\u0301 ",                                           /* nothing is left: as it is; or a space is */
    "\u2028", "\u2028\v",                                          /* white space that is no blank */
    "\ue000", "x\ue000", "x ",                                     /* what stands for a lone space meanwhile */
    "\uac00", "\u1100\u1161",                                      /* Hangul */
    "\ufffd", "\u00ef\u00bf\u00bd",                                /* its name, and letters that spell it */
    "x\u0130", "xi", "\u03a3", "\u03c3", "x\u1e9e", "x\u00df",      /* lower case */
};
/* clang-format on */
enum { N_TEXTS = sizeof TEXTS / sizeof *TEXTS };

static struct tokenizer *load_texts(void) {
    json_t *root = fixture_json(), *added = json_object_get(root, "added_tokens");
    for (int i = 0; i < N_TEXTS; i++)
        json_array_append_new(added, json_pack("{s:i, s:s}", "id", FIXTURE_SIZE + i, "content", TEXTS[i]));
    return fixture_load(root, NULL);
}

static int32_t of(const int32_t *folded, const char *text) {
    for (int i = 0; i < N_TEXTS; i++) {
        if (!strcmp(TEXTS[i], text)) return folded[FIXTURE_SIZE + i];
    }
    fail_msg("no token \"%s\"", text);
    return -1;
}

static void test_rules(void **state) {
    (void)state;
    static const struct {
        const char *a, *b;
        bool same;
    } pairs[] = {
        {"The", "THE", true},
        {"The", " the", true},
        {"\u00e9clair", "ECLAIR", true},
        {"e\u0301clair", "ECLAIR", true},
        {"\ufb01n", "fin", true},
        {"\uff26IN", "fin", true},
        {"a \t\r\nb", "A B", true},
        {"a  b", "A B", true},
        {"\u3000", "\n", true},
        {"\u00a0\t", "\n", true},
        {"\u0301", "\n", false},
        {"\u0301 ", "\n", true},
        {"\u2028", "\n", false},
        {"\u2028", "\u2028\v", false},
        {"\ue000", "\n", true},
        {"x\ue000", "x ", false},
        {"\uac00", "\u1100\u1161", true},
        {"\ufffd", "\u00ef\u00bf\u00bd", false},
        {"x\u0130", "xi", true},
        {"\u03a3", "\u03c3", true},
        {"x\u1e9e", "x\u00df", true},
        {"xi", "fin", false},
    };
    struct tokenizer *t = load_texts();
    int32_t folded[FIXTURE_SIZE + N_TEXTS];
    struct mo_error error;
    int count, seen = 0;
    assert_int_equal(tokenizer_size(t), FIXTURE_SIZE + N_TEXTS);
    assert_int_equal(fold_tokens(t, folded, &count, &error), 0);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if ((of(folded, pairs[i].a) == of(folded, pairs[i].b)) != pairs[i].same)
            fail_msg("pair %zu: \"%s\" and \"%s\"", i, pairs[i].a, pairs[i].b);
    }
    assert_int_equal(folded['A'], folded['a']);
    assert_int_equal(folded[' '], folded['\n']);
    assert_int_equal(folded[ID_T], folded['t']);
    assert_int_equal(folded[ID_THE], of(folded, "The"));
    assert_int_not_equal(folded[0xC3], folded[0xA9]);
    assert_int_equal(of(folded, "x "), folded['x']);
    for (int i = 0; i < tokenizer_size(t); i++) { /* in the order of their first tokens */
        assert_in_range(folded[i], 0, seen);
        seen += folded[i] == seen;
    }
    assert_int_equal(count, seen);
    tokenizer_free(t);
}

/* An id that no token has is like any other such id, and like nothing else. */
static void test_gaps(void **state) {
    (void)state;
    json_t *root = fixture_json();
    json_array_append_new(json_object_get(root, "added_tokens"),
                          json_pack("{s:i, s:s}", "id", FIXTURE_SIZE + 2, "content", "last"));
    struct tokenizer *t = fixture_load(root, NULL);
    int32_t folded[FIXTURE_SIZE + 3];
    struct mo_error error;
    int count;
    assert_int_equal(fold_tokens(t, folded, &count, &error), 0);
    assert_int_equal(folded[FIXTURE_SIZE], folded[FIXTURE_SIZE + 1]);
    for (int i = 0; i < FIXTURE_SIZE; i++) assert_int_not_equal(folded[i], folded[FIXTURE_SIZE]);
    tokenizer_free(t);
}

/* FNV-1a over 32-bit words, little-endian. */
static uint64_t digest(const int32_t *folded, int n) {
    uint64_t hash = 0xcbf29ce484222325;
    for (int i = 0; i < n; i++) {
        for (int byte = 0; byte < 4; byte++) hash = (hash ^ ((uint32_t)folded[i] >> 8 * byte & 0xFF)) * 0x100000001b3;
    }
    return hash;
}

static struct tokenizer *load_file(const char *path) {
    struct tokenizer *t;
    struct mo_error error;
    char *json;
    size_t size;
    if (file_read(path, 1 << 28, &json, &size, &error)) fail_msg("%s", error.message);
    if (tokenizer_parse(&t, json, size, NULL, 0, path, &error)) fail_msg("%s", error.message);
    free(json);
    return t;
}

static void check_vocabulary(const char *path, int count, uint64_t expected) {
    struct tokenizer *t = load_file(path);
    struct mo_error error;
    int found;
    int32_t *folded = malloc((size_t)tokenizer_size(t) * sizeof *folded);
    assert_non_null(folded);
    assert_int_equal(fold_tokens(t, folded, &found, &error), 0);
    assert_int_equal(found, count);
    assert_true(digest(folded, tokenizer_size(t)) == expected);
    free(folded);
    tokenizer_free(t);
}

static void test_vocabularies(void **state) {
    (void)state;
    check_vocabulary("tests/golden/tokenizer/tokenizer.json", 225, 0x22c18d89429bb55c);
    check_vocabulary("models/demo/tokenizer.json", 4661, 0x97c786059add3edc);
}

/* Other people's, where they are. */
static void test_published(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int count;
        uint64_t digest;
    } all[] = {{"deepseek-v2", 69711, 0xf9b788c5a9a39180}, {"deepseek-v3", 98627, 0xa41ee0e295b5e30f}};
    const char *shared = getenv("MOEBIUS_TEST_DATA");
    int found = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/tokenizers/%s/tokenizer.json", shared ? shared : "../shared", all[i].name);
        if (!file_exists(path)) continue;
        check_vocabulary(path, all[i].count, all[i].digest);
        found++;
    }
    if (found) return;
    printf("left out: no tokenizers in $MOEBIUS_TEST_DATA, nor in ../shared\n");
    skip();
}

/* What an engine gives its weights: with a tokenizer, without, and with the wrong one. */
static void test_engine(void **state) {
    (void)state;
    enum { VOCAB = 300, SPELLINGS = 225, IDS = 256 };
    struct tokenizer *t = load_file("tests/golden/tokenizer/tokenizer.json");
    struct engine *engine = calloc(1, sizeof *engine);
    struct mo_error error;
    int32_t folded[IDS];
    int count;
    assert_non_null(engine);
    struct engram_model *engram = &engine->model.hybrid.engram;
    assert_int_equal(fold_tokens(t, folded, &count, &error), 0);
    engine->weights.arena = arena_create();
    engine->model.vocab = VOCAB;
    assert_int_equal(engine_fold_tokens(engine, &error), 0);
    assert_null(engine->weights.folded); /* the model has no n-gram memory */

    *engram = (struct engram_model){.n_layers = 1, .folded_vocab = SPELLINGS, .pad = 2};
    assert_int_equal(engine_fold_tokens(engine, &error), MO_E_NOT_FOUND);
    assert_non_null(strstr(error.message, "tokenizer.json"));
    engine->model.synthetic = true; /* it means nothing anyway */
    assert_int_equal(engine_fold_tokens(engine, &error), 0);
    for (int id = 0; id < VOCAB; id++) assert_int_equal(engine->weights.folded[id], id % SPELLINGS);
    engine->tokenizer = t;
    assert_int_equal(engine_fold_tokens(engine, &error), 0);
    for (int id = 0; id < VOCAB; id++) assert_int_equal(engine->weights.folded[id], folded[id < IDS ? id : 2]);

    engram->pad = IDS;
    assert_int_equal(engine_fold_tokens(engine, &error), MO_E_CORRUPT);
    assert_non_null(strstr(error.message, "256"));
    *engram = (struct engram_model){.n_layers = 1, .folded_vocab = 99092};
    assert_int_equal(engine_fold_tokens(engine, &error), MO_E_CORRUPT);
    assert_non_null(strstr(error.message, "225"));
    assert_non_null(strstr(error.message, "99092"));
    arena_destroy(engine->weights.arena);
    tokenizer_free(t);
    free(engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules),     cmocka_unit_test(test_gaps),   cmocka_unit_test(test_vocabularies),
        cmocka_unit_test(test_published), cmocka_unit_test(test_engine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
