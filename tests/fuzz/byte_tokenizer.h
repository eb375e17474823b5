/* byte_tokenizer.h - a tokenizer for fuzz targets: a token for every byte (its number), then some special ones. */
#ifndef TESTS_FUZZ_BYTE_TOKENIZER_H
#define TESTS_FUZZ_BYTE_TOKENIZER_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "text/tokenizer.h"

enum { FIRST_SPECIAL = 256 };

static const char *const SPECIAL[] = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜fim▁begin｜>",
                                      "<｜fim▁hole｜>", "<｜fim▁end｜>"};
enum { N_SPECIAL = sizeof SPECIAL / sizeof *SPECIAL };

/* GPT-2's letter for a byte: printable ones stand for themselves, the others for code points from 256 on. */
static inline json_t *byte_letters(void) {
    json_t *vocab = json_object();
    int n_others = 0;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
        int point = printable ? byte : 256 + n_others++;
        char letter[3] = {(char)point, 0, 0};
        if (point >= 0x80) {
            letter[0] = (char)(0xC0 | point >> 6);
            letter[1] = (char)(0x80 | (point & 0x3F));
        }
        json_object_set_new(vocab, letter, json_integer(byte));
    }
    return vocab;
}

static inline struct tokenizer *byte_tokenizer(void) {
    static const char config[] = "{\"add_bos_token\": true, \"bos_token\": \"<｜begin▁of▁sentence｜>\", "
                                 "\"eos_token\": \"<｜end▁of▁sentence｜>\"}";
    json_t *added = json_array();
    for (int i = 0; i < N_SPECIAL; i++) {
        json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", FIRST_SPECIAL + i,
                                               "content", SPECIAL[i], "single_word", 0, "lstrip", 0, "rstrip", 0,
                                               "normalized", 0, "special", i < 2));
    }
    json_t *root =
        json_pack("{s:s, s:o, s:n, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:o, s:[]}}", "version",
                  "1.0", "added_tokens", added, "normalizer", "pre_tokenizer", "type", "ByteLevel", "add_prefix_space",
                  0, "trim_offsets", 1, "use_regex", 0, "decoder", "type", "ByteLevel", "add_prefix_space", 0,
                  "trim_offsets", 1, "use_regex", 0, "model", "type", "BPE", "vocab", byte_letters(), "merges");
    char *text = json_dumps(root, 0);
    struct tokenizer *tokenizer = NULL;
    struct mo_error error = {0};
    if (!text || tokenizer_parse(&tokenizer, text, strlen(text), config, sizeof config - 1, "inline", &error)) {
        fprintf(stderr, "the tokenizer: %s\n", error.message);
        abort();
    }
    free(text);
    json_decref(root);
    return tokenizer;
}

#endif
