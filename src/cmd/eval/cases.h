/* cmd/eval/cases.h - lines of the held-out text that a model is asked to write: which ones, the prompt around them, and
 * where a function that it wrote ends. Everything here is a pure function of text, count and seed.
 *
 * A masked line has at least 8 characters that are not blank and occurs once in its file. The prompt has whole lines of
 * up to 2400 bytes before it and after it.
 * A `def` line holds the whole signature: from `def` (or `async def`) to the colon at its end, brackets closed. The prompt
 * has whole lines of up to 4800 bytes, of which it is the last. */
#ifndef MOEBIUS_CMD_EVAL_CASES_H
#define MOEBIUS_CMD_EVAL_CASES_H

#include <stdbool.h>
#include <stdint.h>
#include "cmd/eval/documents.h"
#include "text/tokenizer.h"

enum eval_kind { EVAL_LINE, EVAL_DEF };

struct eval_case {
    const struct eval_document *document;
    size_t begin, end; /* the line, without the newline after it */
};

struct eval_cases {
    struct eval_case *items; /* [n] */
    int n, capacity;
};

/* Draws up to `count` different lines, each with the same chance; a smaller count gives the first of them. */
int eval_cases_draw(struct eval_cases *cases, const struct eval_documents *documents, enum eval_kind kind, int count,
                    uint64_t seed, struct mo_error *error);
void eval_cases_free(struct eval_cases *cases); /* accepts a zeroed one */

/* Appends the ids of a prompt. Text is left out at the far ends, by halves, until it has at most `max_tokens`; if
 * nothing helps, `out` stays empty. */
int eval_case_prompt(const struct eval_case *one, enum eval_kind kind, const struct tokenizer *tokenizer,
                     int max_tokens, struct token_list *out, struct mo_error *error);

/* Columns of blanks that a line begins with; a tab goes on to the next multiple of 8. */
int eval_indent(const char *line, size_t size);

/* Bytes of `text`, which follows a def line of `indent` columns, that belong to the function: up to the first line that
 * is not blank and not deeper than the def; else, if `is_ended`, all; else up to the last whole line. *is_closed tells
 * whether such a line was found, so that more text would change nothing. */
size_t eval_function_end(const char *text, size_t size, int indent, bool is_ended, bool *is_closed);

/* Lines that are not blank. */
int eval_count_lines(const char *text, size_t size);

#endif
