#include <stdio.h>
#include "base/json.h"
#include "cmd/cmd.h"
#include "cmd/text.h"

static int answer(const struct tokenizer *tokenizer, const json_t *line, struct mo_error *error) {
    const char *text;
    bool special = true;
    int code = json_get_string(line, "text", JSON_REQUIRED_KEY, "the line", &text, error);
    if (!code) code = json_get_bool(line, "special", JSON_OPTIONAL_KEY, "the line", &special, error);
    if (code) return code;
    struct token_list ids = {0};
    size_t size = json_string_length(json_object_get(line, "text")); /* it may hold NUL */
    code = tokenizer_encode(tokenizer, text, size, special, &ids, error);
    if (!code) {
        printf("{\"ids\": ");
        cmd_text_print_ids(ids.ids, ids.n);
        putchar('}');
    }
    token_list_free(&ids);
    return code;
}

int cmd_tokenize(int argc, char **argv) {
    static const struct cli_command command = {
        .name = "tokenize",
        .arguments = "MODEL [FILE]",
        .about = "Turns texts into token ids. Reads JSON lines from FILE or stdin:\n"
                 "  {\"text\": \"...\", \"special\": true|false}\n"
                 "and prints one line for each:\n"
                 "  {\"ids\": [...]}\n"
                 "With \"special\" (the default), added tokens in the text become their ids; without, the "
                 "text is\n"
                 "plain text. No BOS is added. Only the tokenizer files of MODEL are needed.",
        .examples = "  echo '{\"text\": \"Hello\"}' | moebius tokenize ./model",
    };
    return cmd_text_lines(&command, argc, argv, answer);
}
