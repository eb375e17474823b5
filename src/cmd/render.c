#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/json.h"
#include "cmd/cmd.h"
#include "cmd/text.h"
#include "text/chat.h"

enum { REQUEST_BYTES_MAX = 64 << 20 };

struct options {
    struct text_source source;
    const char *messages, *chat_template;
    bool json;
};

static int prompt_print(const struct tokenizer *tokenizer, const struct chat_prompt *prompt, bool json,
                        struct mo_error *error) {
    struct token_list ids = {0};
    int code = 0;
    if (json) {
        code = tokenizer_encode_ranges(tokenizer, prompt->text, prompt->size, prompt->ranges, prompt->n_ranges, &ids,
                                       error);
        if (code) goto done;
        printf("{\"text\": ");
        code = cmd_text_print(prompt->text, prompt->size, error);
        printf(", \"ids\": ");
        cmd_text_print_ids(ids.ids, ids.n);
        printf("}\n");
    } else {
        fwrite(prompt->text, 1, prompt->size, stdout);
    }
    if (!code && (fflush(stdout) || ferror(stdout))) {
        code = mo_error_set(error, MO_E_IO, "cannot write the prompt: %s", strerror(errno));
    }
done:
    token_list_free(&ids);
    return code;
}

static int request_render(const struct tokenizer *tokenizer, const struct chat_template *chat, const json_t *request,
                          const char *where, struct chat_prompt *prompt, struct mo_error *error) {
    bool add_generation_prompt = true;
    if (!json_is_object(request)) return mo_error_set(error, MO_E_INVALID, "%s: expected a JSON object", where);
    int code = json_get_bool(request, "add_generation_prompt", JSON_OPTIONAL_KEY, where, &add_generation_prompt, error);
    if (code) return code;
    size_t size;
    const char *bos = tokenizer_token_bytes(tokenizer, tokenizer_bos(tokenizer), &size);
    const char *eos = tokenizer_token_bytes(tokenizer, tokenizer_eos(tokenizer), &size);
    code = chat_render(chat, json_object_get(request, "messages"), add_generation_prompt,
                       json_object_get(request, "chat_template_kwargs"), bos, eos, prompt, error);
    if (code) mo_error_prefix(error, "%s", where);
    return code;
}

static int render(const struct options *options, struct mo_error *error) {
    struct tokenizer *tokenizer = NULL;
    const struct chat_template *chat;
    struct chat_prompt prompt = {0};
    json_t *request = NULL;
    int code = cmd_text_open(&tokenizer, &options->source, error);
    if (!code) code = chat_template_choose(&chat, options->chat_template, tokenizer, error);
    if (!code) code = json_parse_file(options->messages, REQUEST_BYTES_MAX, &request, error);
    if (!code) code = request_render(tokenizer, chat, request, options->messages, &prompt, error);
    if (!code) code = prompt_print(tokenizer, &prompt, options->json, error);
    chat_prompt_free(&prompt);
    json_decref(request);
    tokenizer_free(tokenizer);
    return code;
}

int cmd_render(int argc, char **argv) {
    struct options options = {0};
    struct cli_flag shared[TEXT_FLAGS_MAX];
    cmd_text_flags(&options.source, shared);
    const struct cli_flag flags[] = {
        {.names = "--messages",
         .type = CLI_STRING,
         .target = &options.messages,
         .value = "FILE",
         .help = "a chat request in JSON (\"-\" is stdin): messages, tools,\nadd_generation_prompt (default "
                 "true), chat_template_kwargs"},
        {.names = "--chat-template",
         .type = CLI_STRING,
         .target = &options.chat_template,
         .value = "NAME",
         .help = "instead of the model's own: deepseek-coder-v2, deepseek-v3,\ndeepseek-v3-0324, "
                 "deepseek-r1, deepseek-r1-0528, deepseek-v3.1,\ndeepseek-v3.1-terminus, deepseek-v3.2,\ndeepseek-v4, "
                 "deepseek-v4-0731, deepseek-v4.1"},
        {.names = "--json",
         .type = CLI_FLAG,
         .target = &options.json,
         .help = "print {\"text\": ..., \"ids\": [...]}: the ids are those that the\nengine gets, with no "
                 "special token out of a message's text"},
        {0},
    };
    const struct cli_command command = {
        .name = "render",
        .arguments = "MODEL --messages FILE [flags]",
        .about = "Prints the prompt that a chat request becomes: the exact bytes of the model's chat template.\n"
                 "Only the tokenizer files of MODEL are needed. \"tools\" is one of the chat_template_kwargs.",
        .examples = "  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' | moebius render "
                    "./model --messages -",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
    };
    struct mo_error error = {0};
    const char *positional = NULL;
    int n = 0, code = cli_parse(&command, argc, argv, &positional, &n, &error);
    if (code > 0) return 0;
    if (!code && n && options.source.model)
        code = mo_error_set(&error, MO_E_INVALID, "unexpected argument \"%s\"", positional);
    if (!code && n) options.source.model = positional;
    if (!code && !options.source.model) code = mo_error_set(&error, MO_E_INVALID, "MODEL is missing (--help explains)");
    if (!code && !options.messages)
        code = mo_error_set(&error, MO_E_INVALID, "--messages FILE is missing (--help explains)");
    if (code) return cli_fail(command.name, &error);
    code = render(&options, &error);
    if (!code) return 0;
    cli_fail(command.name, &error);
    return 1;
}
