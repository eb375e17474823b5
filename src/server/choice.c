#include "server/choice.h"

#include <string.h>

void choice_init(struct choice *choice, int index, const struct api_request *request, const struct api_prompt *prompt,
                 const struct tokenizer *tokenizer) {
    *choice = (struct choice){.index = index,
                              .request = request,
                              .prompt = prompt,
                              .tokenizer = tokenizer,
                              .stop_index = -1,
                              .stop_token = -1,
                              .n_prompt = (int)prompt->ids.n};
    if (tokenizer) text_stream_init(&choice->offsets, tokenizer, false);
}

void choice_free(struct choice *choice) {
    buffer_free(&choice->text);
    parts_free(&choice->parts);
    json_decref(choice->logprobs);
    json_decref(choice->tokens);
}

static int add_token(struct choice *choice, int32_t token) {
    if (!choice->tokens) choice->tokens = json_array();
    return json_array_append_new(choice->tokens, json_integer(token));
}

int choice_take(struct choice *choice, const struct token_event *event) {
    if (!choice->started && choice->request->echo) {
        buffer_add(&choice->text, choice->prompt->text, choice->prompt->text_size);
    }
    choice->started = true;
    buffer_add(&choice->text, event->text, event->text_size);
    choice->n_generated = event->n_generated;
    choice->n_cached = event->n_cached;
    choice->prompt_s = event->prompt_s;
    choice->answer_s = event->answer_s;
    choice->has_break = choice->has_break || memchr(event->text, '\n', event->text_size);
    choice->finish = event->finish;
    choice->stop_index = event->stop_index;
    choice->stop_token = event->stop_token;
    if (choice->text.failed) return -1;
    bool is_new = event->token >= 0 && !event->is_prompt;
    if (is_new && choice->request->return_tokens && add_token(choice, event->token)) return -1;
    if (choice->request->sched.n_logprobs < 0 || event->token < 0) return 0;
    return choice_add_logprobs(choice, event);
}

json_t *choice_take_text(struct choice *choice) {
    json_t *text = json_stringn(choice->text.data ? choice->text.data : "", choice->text.size);
    choice->text.size = 0;
    return text;
}

int choice_take_parts(struct choice *choice, const struct parts_writer *writer) {
    int code = parts_add(&choice->parts, writer, PART_TEXT, choice->text.data, choice->text.size);
    choice->text.size = 0;
    return code;
}

json_t *choice_take_logprobs(struct choice *choice) {
    json_t *logprobs = choice->logprobs ? choice->logprobs : json_null();
    choice->logprobs = NULL;
    return logprobs;
}

json_t *choice_take_tokens(struct choice *choice) {
    json_t *tokens = choice->tokens ? choice->tokens : json_array();
    choice->tokens = NULL;
    return tokens;
}

const char *choice_stop_string(const struct choice *choice) {
    const struct api_request *request = choice->request;
    if (choice->stop_index >= 0) return request->stop[choice->stop_index];
    for (int i = 0; choice->stop_token >= 0 && choice->tokenizer && i < request->sched.n_stop; i++) {
        if (tokenizer_added_id(choice->tokenizer, request->stop[i]) == choice->stop_token) return request->stop[i];
    }
    return NULL;
}
