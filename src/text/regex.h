/* text/regex.h - the regular expressions of tokenizer.json. They were written for Oniguruma (Ruby's syntax,
 * Unicode); PCRE2 runs them here, so what the two read differently is rewritten, and what cannot be is
 * refused by name. A compiled expression is immutable; each thread brings its own scratch. Includes: base. */
#ifndef MOEBIUS_TEXT_REGEX_H
#define MOEBIUS_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

struct regex;
struct regex_scratch;

/* With `literal`, the pattern is a plain string. Messages do not name the place: the caller prefixes it. */
int regex_create(struct regex **regex, const char *pattern, size_t size, bool literal, struct mo_error *error);
void regex_destroy(struct regex *regex); /* accepts NULL */

/* For texts of up to `size` bytes: the limit on backtracking grows with it. NULL when out of memory. */
struct regex_scratch *regex_scratch_create(size_t size);
void regex_scratch_destroy(struct regex_scratch *scratch); /* accepts NULL */

/* Finds the first match in text [size] (well-formed UTF-8, the whole subject) that starts at `from` or later.
 * Returns 1 and the bounds, 0 for none, or a negative code (MO_E_LIMIT: too much backtracking). An empty
 * match right at `not_empty_at` is passed over. */
int regex_find(const struct regex *regex, struct regex_scratch *scratch, const uint8_t *text, size_t size, size_t from,
               size_t not_empty_at, size_t *begin, size_t *end, struct mo_error *error);

#endif
