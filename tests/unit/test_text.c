/* The tokenizer on a small vocabulary of our own: merging, added tokens, pre-tokenizer steps, decoding,
 * refusals. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/utf8.h"
#include "text/fim.h"
#include "text/pretokenize.h"
#include "text_fixture.h"

#define EXPECT(tokenizer, text, special, ...)                                                                          \
    do {                                                                                                               \
        const int32_t expected_[] = {__VA_ARGS__};                                                                     \
        expect_ids(tokenizer, text, sizeof(text) - 1, special, expected_, sizeof expected_ / sizeof *expected_);       \
    } while (0)

enum { HANG_S = 120 };

static void test_merges(void **state) {
    (void)state;
    struct tokenizer *t = fixture_default();
    expect_ids(t, "", 0, true, NULL, 0);
    EXPECT(t, "hello", true, ID_HELL, 'o');
    EXPECT(t, "hell the", true, ID_HELL, ID_THE);
    EXPECT(t, "abc", true, ID_AB, 'c'); /* both pairs can merge: the lower rank does */
    EXPECT(t, "bc", true, ID_BC);
    EXPECT(t, "aaaaa", true, ID_AA, ID_AAA); /* equal ranks: leftmost first */
    EXPECT(t, "he\0he", true, ID_HE, 0, ID_HE);
    EXPECT(t, "\xC3\xA9", true, 0xC3, 0xA9);
    tokenizer_free(t);
}

static void test_merges_as_pairs(void **state) {
    (void)state;
    json_t *root = fixture_json();
    json_t *merges = json_object_get(fixture_model(root), "merges");
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const char *text = json_string_value(json_array_get(merges, i)), *space = strchr(text, ' ');
        json_t *pair = json_pack("[s%, s]", text, (size_t)(space - text), space + 1);
        json_array_set_new(merges, i, pair);
    }
    struct tokenizer *t = fixture_load(root, NULL);
    EXPECT(t, "hello the abc", true, ID_HELL, 'o', ID_THE, ' ', ID_AB, 'c');
    tokenizer_free(t);
}

/* Merging as the definition has it: the lowest rank anywhere, leftmost first, one at a time. */
static size_t merge_naive(const char *text, size_t n, int32_t *ids) {
    static const int32_t rules[][3] = {{'h', 'e', ID_HE}, {'l', 'l', ID_LL},     {ID_HE, ID_LL, ID_HELL},
                                       {' ', 't', ID_T},  {ID_T, ID_HE, ID_THE}, {'a', 'b', ID_AB},
                                       {'b', 'c', ID_BC}, {'a', 'a', ID_AA},     {ID_AA, 'a', ID_AAA}};
    for (size_t i = 0; i < n; i++) ids[i] = (uint8_t)text[i];
    for (size_t rule = 0; rule < sizeof rules / sizeof *rules;) {
        bool merged = false;
        for (size_t i = 0; i + 1 < n && !merged; i++) {
            if (ids[i] != rules[rule][0] || ids[i + 1] != rules[rule][1]) continue;
            ids[i] = rules[rule][2];
            memmove(ids + i + 1, ids + i + 2, (n - i - 2) * sizeof *ids);
            n--;
            merged = true;
        }
        rule = merged ? 0 : rule + 1; /* a merge can make room for one of a lower rank */
    }
    return n;
}

static void test_merges_of_any_length(void **state) {
    (void)state;
    json_t *root = fixture_json();
    json_object_set_new(json_object_get(root, "pre_tokenizer"), "use_regex", json_false()); /* one piece a text */
    struct tokenizer *t = fixture_load(root, NULL);
    char text[200];
    int32_t ids[200];
    uint32_t random = 1;
    for (int round = 0; round < 2000; round++) {
        size_t n = 1 + (size_t)round % (sizeof text - 1); /* short and long pieces take different ways */
        for (size_t i = 0; i < n; i++) {
            random = random * 1664525u + 1013904223u;
            text[i] = "aaaabbcchel the"[random >> 16 & 15 ? (random >> 16 & 15) - 1 : 0];
        }
        text[n] = 0;
        expect_ids(t, text, n, true, ids, merge_naive(text, n, ids));
    }
    tokenizer_free(t);
}

static void test_ignore_merges(void **state) {
    (void)state;
    json_t *root = fixture_json();
    json_object_set_new(json_object_get(fixture_model(root), "vocab"), "Ġzzz", json_integer(FIXTURE_SIZE));
    struct tokenizer *t = fixture_load(json_deep_copy(root), NULL);
    EXPECT(t, "a zzz", true, 'a', ' ', 'z', 'z', 'z');
    tokenizer_free(t);
    json_object_set_new(fixture_model(root), "ignore_merges", json_true());
    t = fixture_load(root, NULL);
    EXPECT(t, "a zzz", true, 'a', FIXTURE_SIZE);
    EXPECT(t, "hello", true, ID_HELL, 'o');
    tokenizer_free(t);
}

static void test_added_tokens(void **state) {
    (void)state;
    struct tokenizer *t = fixture_default();
    EXPECT(t, "a<｜User｜>b", true, 'a', ID_USER, 'b');
    EXPECT(t, " <｜User｜> ", true, ' ', ID_USER, ' ');
    EXPECT(t, "<｜User｜", true, '<', 0xEF, 0xBD, 0x9C, 'U', 's', 'e', 'r', 0xEF, 0xBD, 0x9C);
    EXPECT(t, "<｜User｜>", false, '<', 0xEF, 0xBD, 0x9C, 'U', 's', 'e', 'r', 0xEF, 0xBD, 0x9C, '>');
    /* "x>" is cut out before "<x>" and "<x>y" are looked for. */
    EXPECT(t, "<x>y", true, '<', ID_FIRST, 'y');
    tokenizer_free(t);
    json_t *root = fixture_json();
    json_array_remove(json_object_get(root, "added_tokens"), ID_FIRST - FIXTURE_ADDED);
    t = fixture_load(root, NULL);
    EXPECT(t, "<x>y<x>z", true, ID_LONG, ID_SHORT, 'z'); /* longest */
    EXPECT(t, "<<x>", true, '<', ID_SHORT);
    tokenizer_free(t);
}

static void test_ranges(void **state) {
    (void)state;
    struct tokenizer *t = fixture_default();
    const char text[] = "<｜User｜><｜User｜>he<｜User｜>";
    const size_t user = strlen("<｜User｜>");
    /* The first lies inside a range, the second only partly, the third outside. */
    const struct text_range ranges[] = {{0, user}, {user + 1, 2 * user + 2}};
    struct token_list ids = {0};
    struct mo_error error = {0};
    assert_int_equal(tokenizer_encode_ranges(t, text, sizeof text - 1, ranges, 2, &ids, &error), 0);
    assert_int_equal(ids.ids[0], ID_USER);
    for (size_t i = 1; i < ids.n; i++) assert_true(ids.ids[i] < FIXTURE_ADDED);
    /* What lies between tokens is one text, whatever the ranges say: "he" is one token across a border. */
    ids.n = 0;
    const struct text_range halves[] = {{0, 1}, {1, 2}};
    assert_int_equal(tokenizer_encode_ranges(t, "he", 2, halves, 2, &ids, &error), 0);
    assert_int_equal(ids.n, 1);
    assert_int_equal(ids.ids[0], ID_HE);
    token_list_free(&ids);
    tokenizer_free(t);
}

static void test_invalid_input(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t valid;
    } cases[] = {{"abc\xFF", 3}, {"\xC3", 0}, {"a\xED\xA0\x80", 1}, {"\xC0\x80", 0}, {"12345678\xF4\x90\x80\x80", 8}};
    struct tokenizer *t = fixture_default();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct token_list ids = {0};
        struct mo_error error = {0};
        char word[32];
        snprintf(word, sizeof word, "at byte %zu", cases[i].valid);
        assert_int_equal(tokenizer_encode(t, cases[i].text, strlen(cases[i].text), true, &ids, &error), MO_E_INVALID);
        assert_non_null(strstr(error.message, word));
        assert_int_equal(ids.n, 0);
        token_list_free(&ids);
    }
    tokenizer_free(t);
}

/* Each maximal ill-formed part is one U+FFFD. */
static const struct {
    const char *bytes, *text;
} LOSSY[] = {
    {"a\xFFz", "a\uFFFDz"},
    {"\xC3", "\uFFFD"},
    {"\xE4\xB8", "\uFFFD"},
    {"\xE4\xB8z", "\uFFFDz"},
    {"\xF0\x9F\x98", "\uFFFD"},
    {"\xF0\x9F\x98\xF0\x9F\x98\x80", "\uFFFD\U0001F600"},
    {"\xE4\xB8\xC3\xA9", "\uFFFD\u00E9"},
    {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
    {"\xC0\xAF", "\uFFFD\uFFFD"},
    {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
    {"\xF0\x8F\xBF\xBF", "\uFFFD\uFFFD\uFFFD\uFFFD"},
    {"\xE0\x80", "\uFFFD\uFFFD"},
    {"\xF1\x80\x80\xE1\x80\xC2z", "\uFFFD\uFFFD\uFFFDz"},
    {"\x80\xBF", "\uFFFD\uFFFD"},
    {"h\xC3\xA9 \xE4\xB8\xAD \xF0\x9F\x98\x80", "h\u00E9 \u4E2D \U0001F600"},
};

static void test_decode(void **state) {
    (void)state;
    struct tokenizer *t = fixture_default();
    for (size_t i = 0; i < sizeof LOSSY / sizeof *LOSSY; i++) {
        int32_t ids[32];
        size_t n = strlen(LOSSY[i].bytes), size;
        for (size_t j = 0; j < n; j++) ids[j] = (uint8_t)LOSSY[i].bytes[j];
        char *text;
        struct mo_error error = {0};
        assert_int_equal(tokenizer_decode(t, ids, n, true, &text, &size, &error), 0);
        assert_string_equal(text, LOSSY[i].text);
        assert_int_equal(size, strlen(LOSSY[i].text));
        free(text);
    }
    tokenizer_free(t);
}

static void test_decode_special(void **state) {
    (void)state;
    struct tokenizer *t = fixture_default();
    const int32_t ids[] = {ID_BOS, ID_HE, 100000, -1, ID_USER, 0, ID_EOS};
    char *text;
    size_t size;
    struct mo_error error = {0};
    assert_int_equal(tokenizer_decode(t, ids, 7, true, &text, &size, &error), 0);
    assert_int_equal(size, strlen("he<｜User｜>") + 1);
    assert_memory_equal(text, "he<｜User｜>\0", size + 1);
    free(text);
    assert_int_equal(tokenizer_decode(t, ids, 6, false, &text, &size, &error), 0);
    assert_memory_equal(text, "<｜begin▁of▁sentence｜>he<｜User｜>\0", size + 1);
    free(text);
    assert_true(tokenizer_is_special(t, ID_EOS));
    assert_false(tokenizer_is_special(t, ID_USER));
    assert_false(tokenizer_is_special(t, 100000));
    assert_null(tokenizer_token_bytes(t, 100000, &size));
    assert_int_equal(tokenizer_size(t), FIXTURE_SIZE);
    tokenizer_free(t);
}

/* Token by token: what has come out is always whole code points, and in the end the same as decoding at once.
 */
static void test_stream(void **state) {
    (void)state;
    struct tokenizer *t = fixture_default();
    for (size_t i = 0; i < sizeof LOSSY / sizeof *LOSSY; i++) {
        struct text_stream stream;
        char out[256], *piece;
        size_t size = 0, n;
        text_stream_init(&stream, t, true);
        for (const char *byte = LOSSY[i].bytes; *byte; byte++) {
            n = text_stream_bound(&stream, (uint8_t)*byte);
            piece = malloc(n); /* of exactly the promised size, for the sanitizer */
            n = text_stream_push(&stream, (uint8_t)*byte, piece);
            assert_int_equal(utf8_valid_prefix((const uint8_t *)piece, n), n);
            memcpy(out + size, piece, n);
            size += n;
            free(piece);
            assert_int_equal(text_stream_push(&stream, ID_BOS, out + size), 0); /* dropped, and no border */
        }
        size += text_stream_finish(&stream, out + size);
        assert_int_equal(size, strlen(LOSSY[i].text));
        assert_memory_equal(out, LOSSY[i].text, size);
        assert_int_equal(text_stream_finish(&stream, out), 0);
    }
    tokenizer_free(t);
}

/* Collects pieces with "|" between them. */
struct pieces {
    char text[256];
    size_t size;
};

static int piece_collect(void *context, const uint8_t *piece, size_t n, struct mo_error *error) {
    (void)error;
    struct pieces *pieces = context;
    pieces->size += (size_t)snprintf(pieces->text + pieces->size, sizeof pieces->text - pieces->size, "%s%.*s",
                                     pieces->size ? "|" : "", (int)n, (const char *)piece);
    return 0;
}

/* Runs a list of steps, as JSON, and ByteLevel without its own expression. */
static void expect_pieces(const char *steps, const char *text, const char *expected) {
    char json[1024];
    struct mo_error error = {0};
    json_t *root;
    struct pretokenizer pretokenizer;
    struct pieces pieces = {0};
    snprintf(json, sizeof json, "{\"type\": \"Sequence\", \"pretokenizers\": [%s]}", steps);
    assert_int_equal(json_parse(json, strlen(json), "steps", &root, &error), 0);
    if (pretokenizer_parse(&pretokenizer, root, "steps", &error)) fail_msg("%s", error.message);
    struct regex_scratch *scratch = regex_scratch_create(strlen(text));
    int code =
        pretokenizer_run(&pretokenizer, scratch, (const uint8_t *)text, strlen(text), piece_collect, &pieces, &error);
    if (code) fail_msg("%s", error.message);
    assert_string_equal(pieces.text, expected);
    regex_scratch_destroy(scratch);
    pretokenizer_free(&pretokenizer);
    json_decref(root);
}

#define BYTE_LEVEL(regex) "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": " regex "}"
#define SPLIT(kind, pattern, behavior, invert)                                                                         \
    "{\"type\": \"Split\", \"pattern\": {\"" kind "\": \"" pattern "\"}, \"behavior\": \"" behavior                    \
    "\", \"invert\": " invert "}, "

static void test_split_behaviors(void **state) {
    (void)state;
    static const struct {
        const char *steps, *expected;
    } cases[] = {
        {SPLIT("Regex", "-", "Isolated", "false"), "the|-|final|-|-|count|-"},
        {SPLIT("String", "-", "Removed", "false"), "the|final|count"},
        {SPLIT("String", "-", "MergedWithPrevious", "false"), "the-|final-|-|count-"},
        {SPLIT("String", "-", "MergedWithNext", "false"), "the|-final|-|-count|-"},
        {SPLIT("Regex", "-", "Contiguous", "false"), "the|-|final|--|count|-"},
        {SPLIT("Regex", "[a-z]+", "Removed", "true"), "the|final|count"},
        {SPLIT("String", "-", "MergedWithNext", "true"), "the-|final-|-|count-"},
        {SPLIT("String", "-", "MergedWithPrevious", "true"), "the|-final|-|-count|-"},
        {SPLIT("Regex", "-+", "Isolated", "true"), "the|-|final|--|count|-"},
        {SPLIT("Regex", "(?=[fc])", "Isolated", "false"), "the-|final--|count-"},
        {SPLIT("Regex", "-", "Isolated", "false") SPLIT("Regex", "^.", "Isolated", "false"),
         "t|he|-|f|inal|-|-|c|ount|-"}, /* the second step sees the pieces of the first */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char steps[768];
        snprintf(steps, sizeof steps, "%s%s", cases[i].steps, BYTE_LEVEL("false"));
        expect_pieces(steps, "the-final--count-", cases[i].expected);
    }
}

static void test_steps(void **state) {
    (void)state;
    expect_pieces(BYTE_LEVEL("true"), "I'll go  to 10 x\n\n", "I|'ll| go| | to| 10| x|\n\n");
    expect_pieces("{\"type\": \"Digits\", \"individual_digits\": true}, " BYTE_LEVEL("false"), "a12½Ⅷb", "a|1|2|½|Ⅷ|b");
    expect_pieces("{\"type\": \"Digits\", \"individual_digits\": false}, " BYTE_LEVEL("false"), "a12½b3", "a|12½|b|3");
    expect_pieces(SPLIT("Regex", "\\\\s+$", "Isolated", "false") BYTE_LEVEL("false"), "a  \n b \n", "a|  |\n b| \n");
    expect_pieces("{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"use_regex\": true}", "ab c", " ab| c");
    expect_pieces("{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"use_regex\": false}", "ab c", " ab c");
    expect_pieces("{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"use_regex\": false}", " ab", " ab");
}

static bool is_white_space(uint32_t code) {
    static const uint32_t others[] = {0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        if (code == others[i]) return true;
    }
    return (code >= 9 && code <= 13) || (code >= 0x2000 && code <= 0x200A);
}

static size_t utf8_put(uint32_t code, char *out) {
    if (code < 0x80) return out[0] = (char)code, 1;
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xF0u) | code);
    return n;
}

/* \s and \S are exactly Unicode's White_Space and its complement, in and out of classes. */
static void test_white_space(void **state) {
    (void)state;
    static const char *const patterns[] = {"\\s", "[\\s]", "[^\\S]"}, *const others[] = {"\\S", "[\\S]", "[^\\s]"};
    char *text = malloc(0x110000 * 4), *rest = malloc(0x110000 * 4);
    size_t size = 0, rest_size = 0;
    for (uint32_t code = 0; code <= 0x10FFFF; code = code < 0x11000 ? code + 1 : code + 0x101) {
        if (code == 0xD800) code = 0xE000;
        char bytes[4];
        size_t n = utf8_put(code, bytes);
        memcpy(text + size, bytes, n);
        size += n;
        if (is_white_space(code)) continue;
        memcpy(rest + rest_size, bytes, n);
        rest_size += n;
    }
    for (int i = 0; i < 6; i++) {
        json_t *root = fixture_json();
        json_object_set_new(fixture_model(root), "merges", json_array());
        json_t *split = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                                  i < 3 ? patterns[i] : others[i - 3], "behavior", "Removed", "invert", i >= 3);
        json_t *level = json_deep_copy(json_object_get(root, "pre_tokenizer"));
        json_object_set_new(root, "pre_tokenizer",
                            json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", split, level));
        struct tokenizer *t = fixture_load(root, NULL);
        struct token_list ids = {0};
        struct mo_error error = {0};
        char *back;
        size_t back_size;
        assert_int_equal(tokenizer_encode(t, text, size, false, &ids, &error), 0);
        assert_int_equal(tokenizer_decode(t, ids.ids, ids.n, false, &back, &back_size, &error), 0);
        assert_int_equal(back_size, rest_size);
        assert_memory_equal(back, rest, rest_size);
        free(back);
        token_list_free(&ids);
        tokenizer_free(t);
    }
    free(text);
    free(rest);
}

static json_t *with_split(const char *pattern) {
    json_t *root = fixture_json();
    json_t *level = json_deep_copy(json_object_get(root, "pre_tokenizer"));
    json_object_set_new(level, "use_regex", json_false());
    json_t *split = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern, "behavior",
                              "Isolated", "invert", 0);
    json_object_set_new(root, "pre_tokenizer",
                        json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", split, level));
    return root;
}

static void test_regex_refused(void **state) {
    (void)state;
    static const char *const patterns[][2] = {
        {"(", "does not compile"},
        {"[a", "does not compile"},
        {"\\p{Nonsense}", "does not compile"},
        {"\\w+", "\\w"},
        {"\\bx", "\\b"},
        {"\\h", "\\h"},
        {"[a[bc]]", "[ inside [ ]"},
        {"[a&&b]", "&&"},
        {"(?m)^a", "(?m"},
        {"(?R)", "(?R"},
        {"(*FAIL)", "(*"},
        {"\\p{N}{1,3}+", "}+"},
        {"a{,3}", "{,"},
        {"a\\", "\\"},
        {"\\C", "\\C"},
    };
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        fixture_refused(with_split(patterns[i][0]), NULL, patterns[i][1]);
    }
}

/* Hostile texts: no time that grows with the square of the length, and exponential expressions end in an
 * error. */
static void test_hostile_texts(void **state) {
    (void)state;
    enum { N = 2000000 };
    char *text = malloc(N + 1);
    struct token_list ids = {0};
    struct mo_error error = {0};
    alarm(HANG_S);
    struct tokenizer *t = fixture_default();
    memset(text, 'a', N);
    text[N] = '1';
    assert_int_equal(tokenizer_encode(t, text, N, true, &ids, &error), 0); /* one piece */
    assert_int_equal(ids.ids[0], ID_AA);
    memset(text, '<', N);
    assert_int_equal(tokenizer_encode(t, text, N, true, &ids, &error), 0);
    tokenizer_free(t);
    memset(text, ' ', N);
    t = fixture_load(with_split("\\s+$"), NULL);
    assert_int_equal(tokenizer_encode(t, text, N + 1, true, &ids, &error), 0);
    tokenizer_free(t);
    memset(text, 'a', N);
    t = fixture_load(with_split("(a+)+[bc]"), NULL);
    size_t n_before = ids.n;
    assert_int_equal(tokenizer_encode(t, text, 60, true, &ids, &error), MO_E_LIMIT);
    assert_int_equal(ids.n, n_before);
    tokenizer_free(t);
    alarm(0);
    token_list_free(&ids);
    free(text);
}

/* `path` is keys with "." between them; the last one is set to the JSON `value`, or removed if that is NULL.
 */
static json_t *bent(const char *path, const char *value) {
    json_t *root = fixture_json(), *at = root;
    char keys[128];
    snprintf(keys, sizeof keys, "%s", path);
    char *key = keys;
    for (char *dot; (dot = strchr(key, '.')); key = dot + 1) {
        *dot = 0;
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
    }
    json_t *new_value = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    assert_true(!value || new_value);
    if (json_is_array(at)) {
        json_array_set_new(at, (size_t)atoi(key), new_value);
    } else if (new_value) {
        json_object_set_new(at, key, new_value);
    } else {
        json_object_del(at, key);
    }
    return root;
}

static void test_malformed(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"model", NULL, "\"model\""},
        {"model", "[]", "\"model\""},
        {"model.type", "\"Unigram\"", "Unigram"},
        {"model.vocab", "[1]", "model.vocab"},
        {"model.vocab.a", "\"x\"", "integer"},
        {"model.vocab.a", "-1", "-1"},
        {"model.vocab.a", "98", "id 98 has two tokens"},
        {"model.vocab.a", "4000000000", "4000000000"},
        {"model.vocab.a", "99999999999999999", "99999999999999999"},
        {"model.vocab.a", "1e30", "integer"},
        {"model.vocab.a", NULL, "left part"},
        {"model.vocab.he", NULL, "result"},
        {"model.vocab.", "300", "empty"},
        {"model.merges", "{}", "model.merges"},
        {"model.merges.3", "\"ab\"", "merges[3]"},
        {"model.merges.3", "\"a b c\"", "merges[3]"},
        {"model.merges.3", "[\"a\"]", "merges[3]"},
        {"model.merges.3", "[\"a\", 1]", "merges[3]"},
        {"model.merges.3", "\"a zz\"", "right part"},
        {"model.merges.3", "\"z z\"", "result"},
        {"model.dropout", "0.1", "dropout"},
        {"model.dropout", "\"x\"", "dropout"},
        {"model.continuing_subword_prefix", "\"##\"", "continuing_subword_prefix"},
        {"model.end_of_word_suffix", "\"</w>\"", "end_of_word_suffix"},
        {"model.ignore_merges", "1", "ignore_merges"},
        {"added_tokens", "{}", "added_tokens"},
        {"added_tokens.0", "7", "added_tokens[0]"},
        {"added_tokens.0.id", "\"0\"", "integer"},
        {"added_tokens.0.id", "-5", "-5"},
        {"added_tokens.0.id", "97", "disagrees"},
        {"added_tokens.0.id", "266", "disagrees"},
        {"added_tokens.0.id", "1000000000", "1000000000"},
        {"added_tokens.0.content", "\"\"", "empty"},
        {"added_tokens.0.content", "\"a\"", "disagrees"},
        {"added_tokens.0.content", "\"<x>\"", "twice"},
        {"added_tokens.0.content", "null", "content"},
        {"added_tokens.0.lstrip", "true", "lstrip"},
        {"added_tokens.0.special", "\"yes\"", "special"},
        {"normalizer", "{\"type\": \"NFC\"}", "normalizer"},
        {"decoder", "null", "decoder"},
        {"decoder", "{\"type\": \"WordPiece\"}", "WordPiece"},
        {"pre_tokenizer", "null", "pre_tokenizer"},
        {"pre_tokenizer", "{\"type\": \"Metaspace\"}", "Metaspace"},
        {"pre_tokenizer", "{\"type\": \"Digits\", \"individual_digits\": true}", "ByteLevel"},
        {"pre_tokenizer", "{\"type\": \"Digits\"}", "individual_digits"},
        {"pre_tokenizer", "{\"type\": \"Split\", \"behavior\": \"Sideways\"}", "Sideways"},
        {"pre_tokenizer", "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"invert\": false}", "pattern"},
        {"pre_tokenizer.add_prefix_space", "3", "add_prefix_space"},
        {"pre_tokenizer.type", "\"Sequence\"", "pretokenizers"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture_refused(bent(cases[i][0], cases[i][1]), NULL, cases[i][2]);
    }
}

static void test_cut_anywhere(void **state) {
    (void)state;
    json_t *root = fixture_json();
    char *text = json_dumps(root, 0);
    size_t size = strlen(text);
    json_decref(root);
    for (size_t n = 0; n < size; n += 1 + size / 200) {
        struct tokenizer *t;
        struct mo_error error = {0};
        char *cut = malloc(n ? n : 1); /* of exactly this size, for the sanitizer */
        memcpy(cut, text, n);
        assert_int_equal(tokenizer_parse(&t, cut, n, NULL, 0, "test.json", &error), MO_E_INVALID);
        assert_null(t);
        assert_non_null(strstr(error.message, "test.json"));
        free(cut);
    }
    free(text);
}

static void test_incomplete_alphabet(void **state) {
    (void)state;
    struct tokenizer *t = fixture_load(bent("model.vocab.z", NULL), NULL);
    struct token_list ids = {0};
    struct mo_error error = {0};
    assert_int_equal(tokenizer_encode(t, "az", 2, true, &ids, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "0x7A"));
    assert_int_equal(ids.n, 0);
    tokenizer_free(t);
    json_t *root = bent("model.vocab.z", NULL);
    json_object_set_new(fixture_model(root), "unk_token", json_string("a"));
    fixture_refused(root, NULL, "unk_token");
    root = bent("model.vocab.z", NULL);
    json_object_set_new(fixture_model(root), "byte_fallback", json_true());
    fixture_refused(root, NULL, "byte_fallback");
    tokenizer_free(fixture_load(bent("model.unk_token", "\"a\""), NULL)); /* nothing is unknown */
}

static void test_config(void **state) {
    (void)state;
    struct tokenizer *t = fixture_default();
    assert_int_equal(tokenizer_bos(t), ID_BOS);
    assert_int_equal(tokenizer_eos(t), ID_EOS);
    assert_true(tokenizer_adds_bos(t));
    assert_null(tokenizer_chat_template(t));
    assert_int_equal(tokenizer_added_id(t, "<x>y"), ID_LONG);
    assert_int_equal(tokenizer_added_id(t, "<x"), -1);
    tokenizer_free(t);
    t = fixture_load(fixture_json(), NULL);
    assert_int_equal(tokenizer_bos(t), -1);
    assert_int_equal(tokenizer_eos(t), -1);
    assert_false(tokenizer_adds_bos(t));
    tokenizer_free(t);
    t = fixture_load(fixture_json(),
                     "{\"eos_token\": null, \"chat_template\": [{\"name\": \"default\", \"template\": \"b\"}, "
                     "{\"name\": \"tool_use\", \"template\": \"a\"}]}");
    assert_string_equal(tokenizer_chat_template(t), "b");
    tokenizer_free(t);
    t = fixture_load(bent("post_processor", "{\"type\": \"TemplateProcessing\", \"single\": "
                                            "[{\"SpecialToken\": {\"id\": \"<x>\", \"type_id\": 0}}]}"),
                     "{\"bos_token\": \"<x>\"}");
    assert_true(tokenizer_adds_bos(t));
    tokenizer_free(t);
    fixture_refused(fixture_json(), "{\"bos_token\": \"<s>\"}", "<s>");
    fixture_refused(fixture_json(), "{\"eos_token\": 3}", "eos_token");
    fixture_refused(fixture_json(), "{\"eos_token\": {}}", "eos_token");
    fixture_refused(fixture_json(), "{\"add_bos_token\": \"yes\"}", "add_bos_token");
    fixture_refused(fixture_json(), "{\"chat_template\": 1}", "chat_template");
    fixture_refused(fixture_json(), "[]", "object");
    fixture_refused(fixture_json(), "{\"eos_token\": ", "tokenizer_config");
}

static void test_fim(void **state) {
    (void)state;
    struct tokenizer *t = fixture_default();
    struct token_list ids = {0};
    struct mo_error error = {0};
    int32_t three[3];
    const char *suffix = "<x>";
    assert_true(fim_supported(t));
    assert_int_equal(fim_encode(t, "he", 2, suffix, strlen(suffix), &ids, &error), 0);
    const int32_t expected[] = {ID_BOS, ID_FIM_BEGIN, ID_HE, ID_FIM_HOLE, '<', 'x', '>', ID_FIM_END};
    assert_int_equal(ids.n, 8);
    assert_memory_equal(ids.ids, expected, sizeof expected);
    assert_int_equal(fim_ids(t, three), 3);
    assert_int_equal(three[0], ID_FIM_BEGIN);
    ids.n = 0;
    assert_int_equal(fim_encode(t, "a", 1, "\xFF", 1, &ids, &error), MO_E_INVALID);
    assert_int_equal(ids.n, 0);
    tokenizer_free(t);
    t = fixture_load(bent("added_tokens.5.content", "\"other\""), NULL);
    assert_false(fim_supported(t));
    assert_int_equal(fim_ids(t, three), 0);
    assert_int_equal(fim_encode(t, "a", 1, "b", 1, &ids, &error), MO_E_UNSUPPORTED);
    assert_non_null(strstr(error.message, "<｜fim▁hole｜>"));
    token_list_free(&ids);
    tokenizer_free(t);
}

static void test_lookalikes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"say <|fim_begin|> here", "<｜fim▁begin｜>"},
        {"<|fim▁hole|>", "<｜fim▁hole｜>"},
        {"<｜fim_end｜>", "<｜fim▁end｜>"},
        {"<<|User|>", "<｜User｜>"},
        {"<｜User｜><|Assistant|>", "<｜Assistant｜>"},
        {"<｜User｜>", NULL},
        {"<x>", NULL},
        {"<|fim_begin|", NULL},
        {"<|fim_", NULL},
        {"", NULL},
    };
    struct tokenizer *t = fixture_default();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *found = tokenizer_lookalike(t, cases[i][0], strlen(cases[i][0]));
        if (cases[i][1]) {
            assert_non_null(found);
            assert_string_equal(found, cases[i][1]);
        } else {
            assert_null(found);
        }
    }
    tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges),
        cmocka_unit_test(test_merges_as_pairs),
        cmocka_unit_test(test_merges_of_any_length),
        cmocka_unit_test(test_ignore_merges),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_invalid_input),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_decode_special),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_split_behaviors),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_white_space),
        cmocka_unit_test(test_regex_refused),
        cmocka_unit_test(test_hostile_texts),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_incomplete_alphabet),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_fim),
        cmocka_unit_test(test_lookalikes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
