#include "text/fim.h"

static const char *const FIM_TOKENS[3] = {"<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"};

int fim_ids(const struct tokenizer *tokenizer, int32_t ids[3]) {
    for (int i = 0; i < 3; i++) {
        ids[i] = tokenizer_added_id(tokenizer, FIM_TOKENS[i]);
        if (ids[i] < 0) return 0;
    }
    return 3;
}

bool fim_supported(const struct tokenizer *tokenizer) {
    int32_t ids[3];
    return fim_ids(tokenizer, ids) == 3;
}

static int parts_encode(const struct tokenizer *tokenizer, const int32_t ids[3], const char *const texts[2],
                        const size_t sizes[2], struct token_list *out, struct mo_error *error) {
    int code = 0;
    if (tokenizer_bos(tokenizer) >= 0) code = token_list_push(out, tokenizer_bos(tokenizer), error);
    for (int i = 0; !code && i < 2; i++) {
        code = token_list_push(out, ids[i], error);
        if (!code) code = tokenizer_encode(tokenizer, texts[i], sizes[i], false, out, error);
    }
    return code ? code : token_list_push(out, ids[2], error);
}

int fim_encode(const struct tokenizer *tokenizer, const char *prefix, size_t prefix_size, const char *suffix,
               size_t suffix_size, struct token_list *out, struct mo_error *error) {
    int32_t ids[3];
    for (int i = 0; i < 3; i++) {
        ids[i] = tokenizer_added_id(tokenizer, FIM_TOKENS[i]);
        if (ids[i] >= 0) continue;
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "filling in the middle needs the token %s, which this tokenizer lacks", FIM_TOKENS[i]);
    }
    size_t n_before = out->n;
    const char *const texts[2] = {prefix, suffix};
    const size_t sizes[2] = {prefix_size, suffix_size};
    int code = parts_encode(tokenizer, ids, texts, sizes, out, error);
    if (code) out->n = n_before;
    return code;
}
