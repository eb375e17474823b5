/* "merges" of tokenizer.json: pairs of tokens in order of rank. */
#include "text/tokenizer_priv.h"

#include <stdlib.h>
#include <string.h>

/* The two sides of a merge, pointing into the JSON. */
struct merge_text {
    const char *left, *right;
    size_t left_size, right_size;
};

/* "a b" or ["a", "b"]. */
static bool merge_split(const json_t *merge, struct merge_text *out) {
    if (json_is_array(merge)) {
        const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
        if (json_array_size(merge) != 2 || !json_is_string(left) || !json_is_string(right)) return false;
        *out = (struct merge_text){json_string_value(left), json_string_value(right), json_string_length(left),
                                   json_string_length(right)};
        return true;
    }
    if (!json_is_string(merge)) return false;
    const char *text = json_string_value(merge);
    size_t size = json_string_length(merge);
    const char *space = memchr(text, ' ', size);
    if (!space) return false;
    *out = (struct merge_text){text, space + 1, (size_t)(space - text), size - (size_t)(space - text) - 1};
    return memchr(out->right, ' ', out->right_size) == NULL;
}

/* The id of both sides written together; -1 if there is none, or no memory. */
static int32_t merged_id(const json_t *vocab, const struct merge_text *merge) {
    char small[256], *joined = small;
    size_t size = merge->left_size + merge->right_size;
    if (size > sizeof small && !(joined = malloc(size))) return -1;
    memcpy(joined, merge->left, merge->left_size);
    memcpy(joined + merge->left_size, merge->right, merge->right_size);
    int32_t id = vocabulary_id(vocab, joined, size);
    if (joined != small) free(joined);
    return id;
}

static int merge_unknown(const struct merge_text *merge, size_t index, const char *part, const char *where,
                         struct mo_error *error) {
    int left = merge->left_size < 50 ? (int)merge->left_size : 50;
    int right = merge->right_size < 50 ? (int)merge->right_size : 50;
    return mo_error_set(error, MO_E_INVALID,
                        "%s: model.merges[%zu]: %s of \"%.*s\" + \"%.*s\" is not in the vocabulary", where, index, part,
                        left, merge->left, right, merge->right);
}

static int merge_add(struct tokenizer *tokenizer, const json_t *vocab, const json_t *item, size_t index,
                     const char *where, struct mo_error *error) {
    struct merge_text merge;
    if (!merge_split(item, &merge)) {
        return mo_error_set(error, MO_E_INVALID, "%s: model.merges[%zu]: expected \"a b\" or [\"a\", \"b\"]", where,
                            index);
    }
    int32_t left = vocabulary_id(vocab, merge.left, merge.left_size);
    int32_t right = vocabulary_id(vocab, merge.right, merge.right_size);
    int32_t merged = merged_id(vocab, &merge);
    if (left < 0) return merge_unknown(&merge, index, "the left part", where, error);
    if (right < 0) return merge_unknown(&merge, index, "the right part", where, error);
    if (merged < 0) return merge_unknown(&merge, index, "the result", where, error);
    bpe_add_merge(&tokenizer->bpe, left, right, merged);
    return 0;
}

int merges_parse(struct tokenizer *tokenizer, const json_t *model, const char *where, struct mo_error *error) {
    const json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges"), *item;
    size_t i;
    if (!json_is_array(merges)) return mo_error_set(error, MO_E_INVALID, "%s: model.merges: expected an array", where);
    int code = bpe_reserve_merges(&tokenizer->bpe, tokenizer->arena, json_array_size(merges), error);
    if (code) return code;
    json_array_foreach(merges, i, item) {
        code = merge_add(tokenizer, vocab, item, i, where, error);
        if (code) return code;
    }
    return 0;
}
