/* text_fixture.h - a small tokenizer, built in memory, that tests of the text folder may bend before they
 * load it. */
#ifndef MOEBIUS_TESTS_TEXT_FIXTURE_H
#define MOEBIUS_TESTS_TEXT_FIXTURE_H

#include "base/json.h"
#include "text/tokenizer.h"

/* Ids: byte b is b; then FIXTURE_MERGES merged tokens; then the added tokens of fixture_added. */
enum { FIXTURE_MERGES = 9, FIXTURE_ADDED = 256 + FIXTURE_MERGES };
enum {
    ID_HE = 256,
    ID_LL,
    ID_HELL,
    ID_T,   /* " t" */
    ID_THE, /* " the" */
    ID_AB,
    ID_BC,
    ID_AA,
    ID_AAA,
    ID_BOS = FIXTURE_ADDED,
    ID_EOS,
    ID_USER,
    ID_ASSISTANT,
    ID_FIM_BEGIN,
    ID_FIM_HOLE,
    ID_FIM_END,
    ID_SHORT, /* "<x>", matched in the second pass */
    ID_LONG,  /* "<x>y" */
    ID_FIRST, /* "x>", matched in the first pass */
    FIXTURE_SIZE,
};

/* The tokenizer.json; the caller's. */
json_t *fixture_json(void);
/* Its parts, to be bent. */
json_t *fixture_model(json_t *root);

/* Loads `root` (and drops it) with an optional config; fails the test if that is refused. */
struct tokenizer *fixture_load(json_t *root, const char *config);
/* The usual one, with BOS and EOS configured. */
struct tokenizer *fixture_default(void);
/* Loading `root` (dropped) must fail, with a message that holds `word`. */
void fixture_refused(json_t *root, const char *config, const char *word);

/* The text must encode to exactly these ids. */
void expect_ids(const struct tokenizer *tokenizer, const char *text, size_t size, bool special, const int32_t *ids,
                size_t n);

#endif
