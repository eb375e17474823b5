#include "server/choice.h"

#include <string.h>
#include "server/put.h"

void choice_init(struct choice *choice, int index, const struct api_request *request, const struct api_prompt *prompt,
                 const struct tokenizer *tokenizer) {
    *choice = (struct choice){.index = index,
                              .request = request,
                              .prompt = prompt,
                              .tokenizer = tokenizer,
                              .stop_index = -1,
                              .stop_token = -1,
                              .n_prompt = (int)prompt->ids.n};
    message_init(&choice->message, &request->message);
    if (tokenizer) text_stream_init(&choice->offsets, tokenizer, false);
}

void choice_free(struct choice *choice) {
    message_free(&choice->message);
    buffer_free(&choice->text);
    parts_free(&choice->parts);
    json_decref(choice->logprobs);
    json_decref(choice->tokens);
}

static int add_token(struct choice *choice, int32_t token) {
    if (!choice->tokens) choice->tokens = json_array();
    return json_array_append_new(choice->tokens, json_integer(token));
}

static int add_text(struct choice *choice, const struct token_event *event) {
    struct message *message = &choice->message;
    if (!api_has_message(choice->request->kind)) {
        buffer_add(&choice->text, event->text, event->text_size);
        return choice->text.failed ? -1 : 0;
    }
    bool is_thought = message_is_thinking(message);
    if (message_push(message, event->text, event->text_size)) return -1;
    if (is_thought)
        choice->n_reasoning = message_is_thinking(message) || message_has_thought(message) ? event->n_generated : 0;
    return event->finish == FINISH_NONE ? 0 : message_finish(message);
}

int choice_take(struct choice *choice, const struct token_event *event) {
    if (!choice->started && choice->request->echo) {
        buffer_add(&choice->text, choice->prompt->text, choice->prompt->text_size);
    }
    choice->started = true;
    int code = add_text(choice, event);
    choice->n_generated = event->n_generated;
    choice->n_cached = event->n_cached;
    choice->prompt_s = event->prompt_s;
    choice->answer_s = event->answer_s;
    choice->has_break = choice->has_break || memchr(event->text, '\n', event->text_size);
    choice->finish = event->finish;
    choice->stop_index = event->stop_index;
    choice->stop_token = event->stop_token;
    if (code) return -1;
    bool is_new = event->token >= 0 && !event->is_prompt;
    if (is_new && choice->request->return_tokens && add_token(choice, event->token)) return -1;
    if (choice->request->sched.n_logprobs < 0 || event->token < 0) return 0;
    return choice_add_logprobs(choice, event);
}

json_t *choice_take_text(struct choice *choice) {
    json_t *text = put_text(&choice->text);
    choice->text.size = 0;
    return text;
}

static int add_piece(struct parts *parts, const struct parts_writer *writer, const struct message_piece *piece) {
    switch (piece->kind) {
    case MESSAGE_REASONING:
        return parts_add(parts, writer, PART_REASONING, piece->text, piece->size);
    case MESSAGE_CONTENT:
        return parts_add(parts, writer, PART_TEXT, piece->text, piece->size);
    case MESSAGE_CALL:
        return parts_add_call(parts, writer, piece->id, piece->text, piece->size);
    case MESSAGE_ARGUMENTS:
        return parts_add(parts, writer, PART_CALL, piece->text, piece->size);
    case MESSAGE_CALL_END:
        return parts_end(parts, writer);
    }
    return 0;
}

int choice_take_parts(struct choice *choice, const struct parts_writer *writer) {
    int code = 0;
    for (int i = 0; i < message_count(&choice->message) && !code; i++) {
        struct message_piece piece = message_at(&choice->message, i);
        code = add_piece(&choice->parts, writer, &piece);
    }
    message_clear(&choice->message);
    return code;
}

json_t *choice_take_logprobs(struct choice *choice) {
    json_t *logprobs = choice->logprobs ? choice->logprobs : json_null();
    choice->logprobs = NULL;
    return logprobs;
}

json_t *choice_prompt_tokens(const struct choice *choice) {
    const struct token_list *prompt = &choice->prompt->ids;
    json_t *list = json_array();
    for (size_t i = 0; i < prompt->n && list; i++) put_last(&list, json_integer(prompt->ids[i]));
    return list;
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
