/* grammar/cache.h - the grammars of the last requests: a program asks again and again for the same shape, and finds its
 * states and masks made. Also the vocabulary's tree, made when the first grammar is asked for. Any thread.
 * Includes: grammar/grammar.h. */
#ifndef MOEBIUS_GRAMMAR_CACHE_H
#define MOEBIUS_GRAMMAR_CACHE_H

#include "grammar/grammar.h"

enum { GRAMMAR_CACHE_MAX = 16 };

struct grammar_cache;

/* `n_tokens`: the model's vocabulary. The tokenizer outlives this, and this the grammars. */
int grammar_cache_create(struct grammar_cache **cache, const struct tokenizer *tokenizer, int n_tokens,
                         struct mo_error *error);
void grammar_cache_free(struct grammar_cache *cache); /* accepts NULL */

/* Memory to leave for the states and masks of so many grammars, of which `n_answers` at once may be in use. More than
 * GRAMMAR_CACHE_MAX are not reckoned with: that they all grow to their limit is no case to keep memory free for. */
size_t grammar_cache_bytes(int n_grammars, int n_answers);

/* grammar_compile's, or one that is there. The caller's reference. */
int grammar_cache_get(struct grammar_cache *cache, enum grammar_kind kind, const char *text, size_t size,
                      struct grammar **grammar, struct mo_error *error);

#endif
