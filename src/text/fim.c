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

/* The three ids, or an error that names the missing one. */
static int need_ids(const struct tokenizer *tokenizer, int32_t ids[3], struct mo_error *error) {
    for (int i = 0; i < 3; i++) {
        ids[i] = tokenizer_added_id(tokenizer, FIM_TOKENS[i]);
        if (ids[i] >= 0) continue;
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "filling in the middle needs the token %s, which this tokenizer lacks", FIM_TOKENS[i]);
    }
    return 0;
}

static int push_span(struct token_list *out, struct token_span span, struct mo_error *error) {
    int code = 0;
    for (size_t i = 0; i < span.n && !code; i++) code = token_list_push(out, span.ids[i], error);
    return code;
}

int fim_assemble(const struct tokenizer *tokenizer, const struct token_span *before, int n_before,
                 struct token_span after, struct token_list *out, struct mo_error *error) {
    int32_t ids[3], bos = tokenizer_bos(tokenizer);
    size_t n = out->n;
    int code = need_ids(tokenizer, ids, error);
    if (code) return code;
    if (bos >= 0) code = token_list_push(out, bos, error);
    if (!code) code = token_list_push(out, ids[0], error);
    for (int i = 0; i < n_before && !code; i++) code = push_span(out, before[i], error);
    if (!code) code = token_list_push(out, ids[1], error);
    if (!code) code = push_span(out, after, error);
    if (!code) code = token_list_push(out, ids[2], error);
    if (code) out->n = n;
    return code;
}

int fim_encode(const struct tokenizer *tokenizer, const char *prefix, size_t prefix_size, const char *suffix,
               size_t suffix_size, struct token_list *out, struct mo_error *error) {
    int32_t ids[3];
    struct token_list before = {0}, after = {0};
    int code = need_ids(tokenizer, ids, error); /* before a long text is encoded */
    if (!code) code = tokenizer_encode(tokenizer, prefix, prefix_size, false, &before, error);
    if (!code) code = tokenizer_encode(tokenizer, suffix, suffix_size, false, &after, error);
    if (!code) {
        const struct token_span first = {before.ids, before.n}, second = {after.ids, after.n};
        code = fim_assemble(tokenizer, &first, 1, second, out, error);
    }
    token_list_free(&before);
    token_list_free(&after);
    return code;
}
