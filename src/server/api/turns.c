/* server/api/turns.c - a chat's messages from protocols that cut them otherwise: there, what one side says comes in pieces;
 * here, it is one message. */
#include <string.h>
#include "server/api/translate.h"
#include "server/put.h"

void turns_free(struct turns *turns) {
    json_decref(turns->thought);
    turns->thought = NULL;
}

static void fail(struct turns *turns) {
    turns_free(turns);
    json_decref(turns->messages);
    *turns = (struct turns){0};
}

/* A thought goes to the answer that it comes before, or nowhere. */
static void settle_thought(struct turns *turns, json_t *message, const char *role) {
    if (!turns->thought) return;
    bool is_answer = message && !strcmp(role, "assistant");
    int code = is_answer ? json_object_set(message, "reasoning_content", turns->thought) : 0;
    turns_free(turns);
    if (code) fail(turns);
}

/* A new last message, or NULL. */
static json_t *add_message(struct turns *turns, const char *role) {
    turns->open = NULL;
    put_last(&turns->messages, json_pack("{s:s, s:n}", "role", role, "content"));
    return turns->messages ? json_array_get(turns->messages, json_array_size(turns->messages) - 1) : NULL;
}

/* The message that `role` is speaking. Its content is null until there is some, as templates tell a bare call. */
static json_t *open_message(struct turns *turns, const char *role) {
    if (turns->open && !strcmp(turns->speaker, role)) return turns->open;
    json_t *message = add_message(turns, role);
    settle_thought(turns, message, role);
    turns->open = turns->messages ? message : NULL;
    turns->speaker = role;
    return turns->open;
}

/* An answer that has begun thinks on. */
void turns_add_thought(struct turns *turns, const json_t *text) {
    bool is_open = turns->open && !strcmp(turns->speaker, "assistant");
    const json_t *before = is_open ? json_object_get(turns->open, "reasoning_content") : turns->thought;
    struct buffer whole = {0};
    if (before) buffer_add(&whole, json_string_value(before), json_string_length(before));
    buffer_add(&whole, json_string_value(text), json_string_length(text));
    json_t *thought = put_text(&whole);
    buffer_free(&whole);
    if (!thought) {
        fail(turns);
    } else if (!is_open) {
        turns_free(turns);
        turns->thought = thought;
    } else if (json_object_set_new(turns->open, "reasoning_content", thought)) {
        fail(turns);
    }
}

/* Texts are kept as a list of parts, which the chat joins. */
static void add_content(struct turns *turns, json_t *message, json_t *content) {
    json_t *list = json_object_get(message, "content");
    int code = message && content ? 0 : -1;
    if (!code && !json_is_array(list)) {
        list = json_array();
        code = json_object_set_new(message, "content", list);
    }
    if (!code && json_is_array(content)) {
        code = json_array_extend(list, content);
    } else if (!code) {
        code = json_array_append_new(list, json_pack("{s:s, s:O}", "type", "text", "text", content));
    }
    json_decref(content);
    if (code) fail(turns);
}

/* Most templates gather instructions at the front. One that comes later is said where it stands, to the user's side: in front, it
 * would push all that the cache holds out of its place. */
void turns_add(struct turns *turns, const char *role, json_t *content) {
    bool is_answer = !strcmp(role, "assistant");
    bool is_instruction = !is_answer && strcmp(role, "user") != 0;
    if (is_instruction && (!turns->has_begun || turns->places_system)) {
        add_content(turns, add_message(turns, "system"), content);
        return;
    }
    turns->has_begun = true;
    add_content(turns, open_message(turns, is_answer ? "assistant" : "user"), content);
}

void turns_add_call(struct turns *turns, const char *id, const char *name, json_t *arguments) {
    json_t *message = open_message(turns, "assistant");
    json_t *list = json_object_get(message, "tool_calls");
    json_t *call = arguments ? json_pack("{s:s, s:s, s:{s:s, s:O}}", "id", id, "type", "function", "function", "name",
                                         name, "arguments", arguments)
                             : NULL;
    json_decref(arguments);
    turns->has_begun = true;
    int code = message ? 0 : -1;
    if (!code && !list) {
        list = json_array();
        code = json_object_set_new(message, "tool_calls", list);
    }
    if (code) {
        json_decref(call);
    } else {
        code = json_array_append_new(list, call);
    }
    if (code) fail(turns);
}

void turns_add_result(struct turns *turns, const char *id, json_t *content) {
    json_t *message = add_message(turns, "tool");
    turns->has_begun = true;
    if (message && json_object_set_new(message, "tool_call_id", json_string(id))) message = NULL;
    add_content(turns, message, content);
}

void turns_go_on(struct turns *turns) {
    bool is_answer = turns->open && !strcmp(turns->speaker, "assistant");
    if (!is_answer || json_object_get(turns->open, "tool_calls")) return;
    if (json_object_set_new(turns->open, "prefix", json_true())) fail(turns);
}

json_t *turns_tool(const json_t *name, const json_t *description, const json_t *parameters, const json_t *strict) {
    json_t *function = json_object();
    put(&function, "name", put_share(name));
    if (description) put(&function, "description", put_share(description));
    if (parameters) put(&function, "parameters", put_share(parameters));
    if (strict) put(&function, "strict", put_share(strict));
    return json_pack("{s:s, s:o}", "type", "function", "function", function);
}

json_t *turns_choice(const json_t *name) {
    return json_pack("{s:s, s:{s:O}}", "type", "function", "function", "name", name);
}
