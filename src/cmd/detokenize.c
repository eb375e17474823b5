#include <stdio.h>
#include <stdlib.h>
#include "base/json.h"
#include "cmd/cmd.h"
#include "cmd/text.h"

static int ids_read(const json_t *line, struct token_list *ids, struct mo_error *error) {
    const json_t *list = json_object_get(line, "ids"), *item;
    size_t i;
    if (!json_is_array(list)) return mo_error_set(error, MO_E_INVALID, "the line: expected an array \"ids\"");
    json_array_foreach(list, i, item) {
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX) {
            return mo_error_set(error, MO_E_INVALID, "the line: ids[%zu]: expected a whole number from 0 to %d", i,
                                INT32_MAX);
        }
        int code = token_list_push(ids, (int32_t)id, error);
        if (code) return code;
    }
    return 0;
}

static int answer(const struct tokenizer *tokenizer, const json_t *line, struct mo_error *error) {
    struct token_list ids = {0};
    bool skip = true;
    char *text = NULL;
    size_t size = 0;
    int code = json_get_bool(line, "skip_special_tokens", JSON_OPTIONAL_KEY, "the line", &skip, error);
    if (!code) code = ids_read(line, &ids, error);
    if (!code) code = tokenizer_decode(tokenizer, ids.ids, ids.n, skip, &text, &size, error);
    if (!code) {
        printf("{\"text\": ");
        code = cmd_text_print(text, size, error);
        putchar('}');
    }
    free(text);
    token_list_free(&ids);
    return code;
}

int cmd_detokenize(int argc, char **argv) {
    static const struct cli_command command = {
        .name = "detokenize",
        .arguments = "MODEL [FILE]",
        .about = "Turns token ids into text. Reads JSON lines from FILE or stdin:\n"
                 "  {\"ids\": [...], \"skip_special_tokens\": true|false}\n"
                 "and prints one line for each:\n"
                 "  {\"text\": \"...\"}\n"
                 "Ids without a token are left out, and so are special tokens unless told otherwise; bytes "
                 "that are\n"
                 "not UTF-8 become U+FFFD. Only the tokenizer files of MODEL are needed.",
        .examples = "  echo '{\"ids\": [17464, 11, 1843]}' | moebius detokenize ./model",
    };
    return cmd_text_lines(&command, argc, argv, answer);
}
