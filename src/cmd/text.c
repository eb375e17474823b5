#include "cmd/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "model/checkpoint.h"

enum { MODEL_PATH_BYTES = 4096 };

int cmd_text_open(struct tokenizer **tokenizer, const struct text_source *source, struct mo_error *error) {
    char path[MODEL_PATH_BYTES];
    struct checkpoint checkpoint = {0};
    const struct find_request request = {
        .model = source->model, .revision = source->revision, .hub = &source->hub, .need = FIND_TEXT};
    int code = find_model(&request, path, sizeof path, error);
    if (!code) code = checkpoint_open_files(&checkpoint, path, error);
    if (!code) code = tokenizer_load(tokenizer, &checkpoint, error);
    checkpoint_close(&checkpoint);
    return code;
}

int cmd_text_print(const char *text, size_t size, struct mo_error *error) {
    json_t *string = json_stringn(text, size);
    if (!string) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the answer");
    int failed = json_dumpf(string, stdout, JSON_ENCODE_ANY);
    json_decref(string);
    return failed ? mo_error_set(error, MO_E_IO, "cannot write the answer: %s", strerror(errno)) : 0;
}

void cmd_text_print_ids(const int32_t *ids, size_t n) {
    putchar('[');
    for (size_t i = 0; i < n; i++) printf("%s%d", i ? ", " : "", (int)ids[i]);
    putchar(']');
}

static int line_answer(const struct tokenizer *tokenizer, const char *text, size_t size, cmd_text_line *answer,
                       struct mo_error *error) {
    json_t *line = NULL;
    int code = json_parse(text, size, "the line", &line, error);
    if (!code && !json_is_object(line)) code = mo_error_set(error, MO_E_INVALID, "expected a JSON object");
    if (!code) code = answer(tokenizer, line, error);
    json_decref(line);
    if (code) return code;
    putchar('\n');
    return fflush(stdout) ? mo_error_set(error, MO_E_IO, "cannot write the answer: %s", strerror(errno)) : 0;
}

static int lines_answer(const struct tokenizer *tokenizer, FILE *in, const char *name, cmd_text_line *answer,
                        struct mo_error *error) {
    char *text = NULL;
    size_t capacity = 0, number = 0;
    ssize_t size;
    int code = 0;
    while (!code && (size = getline(&text, &capacity, in)) >= 0) {
        number++;
        code = line_answer(tokenizer, text, (size_t)size, answer, error);
    }
    if (code) mo_error_prefix(error, "%s:%zu", name, number);
    if (!code && ferror(in)) code = mo_error_set(error, MO_E_IO, "%s: cannot read: %s", name, strerror(errno));
    free(text);
    return code;
}

static int file_answer(const struct tokenizer *tokenizer, const char *file, cmd_text_line *answer,
                       struct mo_error *error) {
    if (!file || strcmp(file, "-") == 0) return lines_answer(tokenizer, stdin, "stdin", answer, error);
    FILE *in = fopen(file, "r");
    if (!in) return mo_error_set(error, MO_E_IO, "%s: cannot open: %s", file, strerror(errno));
    int code = lines_answer(tokenizer, in, file, answer, error);
    fclose(in);
    return code;
}

void cmd_text_flags(struct text_source *source, struct cli_flag flags[TEXT_FLAGS_MAX]) {
    flags[0] = (struct cli_flag){.names = "--model,-m",
                                 .type = CLI_STRING,
                                 .target = &source->model,
                                 .value = "MODEL",
                                 .help = "the model, instead of as first argument"};
    size_t n = 1 + find_model_flags(&source->hub, &source->model, &source->revision, flags + 1);
    flags[n] = (struct cli_flag){0};
}

int cmd_text_lines(const struct cli_command *command, int argc, char **argv, cmd_text_line *answer) {
    struct text_source source = {0};
    struct cli_flag flags[TEXT_FLAGS_MAX];
    const char *positionals[2];
    int n = 0;
    struct mo_error error = {0};
    cmd_text_flags(&source, flags);
    struct cli_command full = *command;
    full.flags = flags;
    full.max_positionals = 2;
    int code = cli_parse(&full, argc, argv, positionals, &n, &error);
    if (code > 0) return 0;
    int used = 0;
    if (!code && !source.model && n > 0) source.model = positionals[used++];
    if (!code && !source.model) code = mo_error_set(&error, MO_E_INVALID, "MODEL is missing (--help explains)");
    if (!code && n - used > 1)
        code = mo_error_set(&error, MO_E_INVALID, "unexpected argument \"%s\"", positionals[used + 1]);
    if (code) return cli_fail(command->name, &error);
    struct tokenizer *tokenizer = NULL;
    code = cmd_text_open(&tokenizer, &source, &error);
    if (!code) code = file_answer(tokenizer, n > used ? positionals[used] : NULL, answer, &error);
    tokenizer_free(tokenizer);
    if (!code) return 0;
    int status = cli_fail(command->name, &error);
    return error.code == MO_E_INVALID ? 1 : status;
}
