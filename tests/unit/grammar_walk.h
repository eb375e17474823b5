/* grammar_walk.h - texts that a grammar allows, taken at random, and what becomes of given texts: as a program that reads
 * requests from standard input, so that a test in Python can hold the answers against other people's libraries. */
#ifndef MOEBIUS_TESTS_GRAMMAR_WALK_H
#define MOEBIUS_TESTS_GRAMMAR_WALK_H

#include "grammar/grammar.h"

/* Whether the whole text is one that the grammar allows; the vocabulary has each byte as a token of that number. */
bool grammar_accepts(struct grammar *grammar, const char *text, size_t size);

/* One JSON object a line: {kind, text, walks, seed, tokens, try: [texts]} -> {error} or {texts, unfinished, accepts,
 * compile_ms, first_ms, later_ms}. `tokenizer_path` NULL: the fixture. first_ms and later_ms hold what each token's mask took
 * in the first walk, and in all others. */
int grammar_walk_lines(const char *tokenizer_path);

#endif
