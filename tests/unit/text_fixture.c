#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "text_fixture.h"

/* GPT-2's letter for a byte, in UTF-8. */
static const char *letter_of(int byte, char out[3]) {
    bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    int code = byte;
    if (!printable) {
        code = byte <= 0x20 ? 0x100 + byte : byte <= 0xA0 ? 0x121 + byte - 0x7F : 0x143;
    }
    if (code < 0x80) {
        out[0] = (char)code;
        out[1] = 0;
    } else {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        out[2] = 0;
    }
    return out;
}

static const char *const MERGES[FIXTURE_MERGES] = {"h e", "l l", "he ll", "Ġ t", "Ġt he", "a b", "b c", "a a", "aa a"};

static const struct {
    const char *content;
    bool special, normalized;
} ADDED[FIXTURE_SIZE - FIXTURE_ADDED] = {
    {"<｜begin▁of▁sentence｜>", true, false},
    {"<｜end▁of▁sentence｜>", true, false},
    {"<｜User｜>", false, true},
    {"<｜Assistant｜>", false, true},
    {"<｜fim▁begin｜>", false, true},
    {"<｜fim▁hole｜>", false, true},
    {"<｜fim▁end｜>", false, true},
    {"<x>", false, true},
    {"<x>y", false, true},
    {"x>", false, false},
};

json_t *fixture_json(void) {
    json_t *vocab = json_object(), *merges = json_array(), *added = json_array();
    char letter[3];
    for (int byte = 0; byte < 256; byte++) json_object_set_new(vocab, letter_of(byte, letter), json_integer(byte));
    for (int i = 0; i < FIXTURE_MERGES; i++) {
        char joined[16];
        const char *space = strchr(MERGES[i], ' ');
        snprintf(joined, sizeof joined, "%.*s%s", (int)(space - MERGES[i]), MERGES[i], space + 1);
        json_object_set_new(vocab, joined, json_integer(256 + i));
        json_array_append_new(merges, json_string(MERGES[i]));
    }
    for (int i = 0; i < FIXTURE_SIZE - FIXTURE_ADDED; i++) {
        json_array_append_new(added,
                              json_pack("{s:i, s:s, s:b, s:b}", "id", FIXTURE_ADDED + i, "content", ADDED[i].content,
                                        "special", ADDED[i].special, "normalized", ADDED[i].normalized));
    }
    json_t *root = json_pack("{s:o, s:{s:s, s:b, s:b}, s:{s:s}, s:{s:s, s:o, s:o}}", "added_tokens", added,
                             "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "use_regex", 1, "decoder",
                             "type", "ByteLevel", "model", "type", "BPE", "vocab", vocab, "merges", merges);
    assert_non_null(root);
    return root;
}

json_t *fixture_model(json_t *root) {
    return json_object_get(root, "model");
}

static int load(struct tokenizer **tokenizer, json_t *root, const char *config, struct mo_error *error) {
    char *text = json_dumps(root, 0);
    assert_non_null(text);
    json_decref(root);
    int code = tokenizer_parse(tokenizer, text, strlen(text), config, config ? strlen(config) : 0, "test.json", error);
    free(text);
    return code;
}

struct tokenizer *fixture_load(json_t *root, const char *config) {
    struct tokenizer *tokenizer;
    struct mo_error error = {0};
    if (load(&tokenizer, root, config, &error)) fail_msg("%s", error.message);
    return tokenizer;
}

struct tokenizer *fixture_default(void) {
    return fixture_load(fixture_json(), "{\"bos_token\": \"<｜begin▁of▁sentence｜>\", \"add_bos_token\": true, "
                                        "\"eos_token\": {\"content\": \"<｜end▁of▁sentence｜>\"}}");
}

void fixture_refused(json_t *root, const char *config, const char *word) {
    struct tokenizer *tokenizer;
    struct mo_error error = {0};
    int code = load(&tokenizer, root, config, &error);
    if (code >= 0) fail_msg("accepted; expected an error with \"%s\"", word);
    assert_null(tokenizer);
    assert_int_equal(error.code, code);
    if (!strstr(error.message, word)) fail_msg("the message lacks \"%s\": %s", word, error.message);
    if (!strstr(error.message, "test.json")) fail_msg("the message does not name the file: %s", error.message);
}

void expect_ids(const struct tokenizer *tokenizer, const char *text, size_t size, bool special, const int32_t *ids,
                size_t n) {
    struct token_list list = {0};
    struct mo_error error = {0};
    if (tokenizer_encode(tokenizer, text, size, special, &list, &error)) fail_msg("%s", error.message);
    for (size_t i = 0; i < n && i < list.n; i++) {
        if (list.ids[i] != ids[i]) fail_msg("\"%s\": id %zu is %d, expected %d", text, i, list.ids[i], ids[i]);
    }
    if (list.n != n) fail_msg("\"%s\": %zu ids, expected %zu", text, list.n, n);
    token_list_free(&list);
}
