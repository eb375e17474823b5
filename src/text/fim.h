/* text/fim.h - fill in the middle, by token id: bos <fim begin> prefix <fim hole> suffix <fim end>. Prefix
 * and suffix are encoded as plain text, so nothing in them can become a special token. */
#ifndef MOEBIUS_TEXT_FIM_H
#define MOEBIUS_TEXT_FIM_H

#include "text/tokenizer.h"

/* Whether the tokenizer has all three tokens. */
bool fim_supported(const struct tokenizer *tokenizer);
/* MO_E_UNSUPPORTED names the missing token. BOS is written if the tokenizer has one. */
int fim_encode(const struct tokenizer *tokenizer, const char *prefix, size_t prefix_size, const char *suffix,
               size_t suffix_size, struct token_list *out, struct mo_error *error);
/* The same of tokens: the prefix is what `before` [n_before] hold, one after another. */
struct token_span {
    const int32_t *ids; /* [n] */
    size_t n;
};
int fim_assemble(const struct tokenizer *tokenizer, const struct token_span *before, int n_before,
                 struct token_span after, struct token_list *out, struct mo_error *error);
/* The three ids, for stopping: returns how many were written (0 or 3). */
int fim_ids(const struct tokenizer *tokenizer, int32_t ids[3]);

#endif
