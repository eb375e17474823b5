/* cmd/text.h - what tokenize, detokenize and render share: MODEL to a tokenizer, and JSON lines in, JSON
 * lines out. */
#ifndef MOEBIUS_CMD_TEXT_H
#define MOEBIUS_CMD_TEXT_H

#include <jansson.h>
#include "cli/cli.h"
#include "find/find.h"
#include "text/tokenizer.h"

/* MODEL, of which the tokenizer's files are all that is needed. */
struct text_source {
    const char *model, *revision;
    struct find_flags hub;
};
int cmd_text_open(struct tokenizer **tokenizer, const struct text_source *source, struct mo_error *error);
/* Its flags and an end into flags [TEXT_FLAGS_MAX]. */
enum { TEXT_FLAGS_MAX = FIND_FLAGS_MAX + 2 };
void cmd_text_flags(struct text_source *source, struct cli_flag flags[TEXT_FLAGS_MAX]);

/* Takes one parsed line (an object) and prints its answer without the line's end. */
typedef int cmd_text_line(const struct tokenizer *tokenizer, const json_t *line, struct mo_error *error);

/* Runs a command whose arguments are MODEL [FILE]: `answer` for every line of FILE, or of stdin. Adds the
 * common flags to `command`. Returns the exit status. */
int cmd_text_lines(const struct cli_command *command, int argc, char **argv, cmd_text_line *answer);

/* Prints a JSON string: UTF-8 as it is, escapes only where JSON asks for them. */
int cmd_text_print(const char *text, size_t size, struct mo_error *error);
/* Prints a JSON array of ids. */
void cmd_text_print_ids(const int32_t *ids, size_t n);

#endif
