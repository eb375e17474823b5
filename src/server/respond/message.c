#include "server/respond/message.h"

#include "server/put.h"

static json_t *text_of(const struct message_piece *piece) {
    return json_stringn(piece->text, piece->size);
}

/* vLLM's newer name, which other programs look for, beside DeepSeek's. */
static json_t *reasoning(json_t *object, json_t *text) {
    put(&object, "reasoning_content", text ? json_incref(text) : NULL);
    put(&object, "reasoning", text);
    return object;
}

bool respond_has_delta(const struct message_piece *piece) {
    return piece->kind != MESSAGE_CALL_END;
}

json_t *respond_delta(const struct message_piece *piece) {
    switch (piece->kind) {
    case MESSAGE_REASONING:
        return reasoning(json_object(), text_of(piece));
    case MESSAGE_CALL:
        return json_pack("{s:[{s:i, s:s, s:s, s:{s:o, s:s}}]}", "tool_calls", "index", piece->call, "id", piece->id,
                         "type", "function", "function", "name", text_of(piece), "arguments", "");
    case MESSAGE_ARGUMENTS:
        return json_pack("{s:[{s:i, s:{s:o}}]}", "tool_calls", "index", piece->call, "function", "arguments",
                         text_of(piece));
    default:
        return json_pack("{s:o}", "content", text_of(piece));
    }
}

/* --- whole --------------------------------------------------------------------------------------- */

/* Appends a piece to the text that is there. */
static int add_text(struct buffer *text, const struct message_piece *piece) {
    buffer_add(text, piece->text, piece->size);
    return text->failed ? -1 : 0;
}

static int add_call(json_t *calls, const struct message_piece *piece) {
    json_t *call = json_pack("{s:s, s:s, s:{s:o, s:s}}", "id", piece->id, "type", "function", "function", "name",
                             text_of(piece), "arguments", "");
    return json_array_append_new(calls, call);
}

/* The arguments of the call that was added last: they are one piece. */
static int set_arguments(json_t *calls, const struct message_piece *piece) {
    json_t *call = json_array_get(calls, json_array_size(calls) - 1);
    return json_object_set_new(json_object_get(call, "function"), "arguments", text_of(piece));
}

static int add_piece(const struct message_piece *piece, struct buffer *thought, struct buffer *content, json_t *calls) {
    switch (piece->kind) {
    case MESSAGE_REASONING:
        return add_text(thought, piece);
    case MESSAGE_CONTENT:
        return add_text(content, piece);
    case MESSAGE_CALL:
        return add_call(calls, piece);
    case MESSAGE_ARGUMENTS:
        return set_arguments(calls, piece);
    default:
        return 0;
    }
}

json_t *respond_message(const struct message *message) {
    struct buffer thought = {0}, content = {0};
    json_t *calls = json_array(), *json = NULL;
    int code = calls ? 0 : -1;
    for (int i = 0; !code && i < message_count(message); i++) {
        struct message_piece piece = message_at(message, i);
        code = add_piece(&piece, &thought, &content, calls);
    }
    bool is_null = json_array_size(calls) > 0 && content.size == 0;
    if (!code) {
        json = json_pack("{s:s, s:o}", "role", "assistant", "content", is_null ? json_null() : put_text(&content));
    }
    if (json && message_has_thought(message) && !message->rules.hides_thought) {
        json = reasoning(json, put_text(&thought));
    }
    if (json && json_array_size(calls) > 0) put(&json, "tool_calls", json_incref(calls));
    json_decref(calls);
    buffer_free(&thought);
    buffer_free(&content);
    return json;
}
