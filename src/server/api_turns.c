/* server/api_turns.c - a chat's messages from protocols that cut them otherwise: there, an answer and its calls are pieces in a
 * row; here, they are one message. */
#include "server/api_translate.h"
#include "server/put.h"

static void add(struct turns *turns, json_t *message) {
    turns->assistant = NULL;
    put_last(&turns->messages, message);
}

void turns_add(struct turns *turns, const char *role, json_t *content) {
    json_t *message = json_object();
    put(&message, "role", json_string(role));
    put(&message, "content", content);
    add(turns, message);
}

/* Its content is null until there is some, as templates tell a bare call. */
static json_t *open_answer(struct turns *turns) {
    if (turns->assistant) return turns->assistant;
    turns_add(turns, "assistant", json_null());
    if (turns->messages) turns->assistant = json_array_get(turns->messages, json_array_size(turns->messages) - 1);
    return turns->assistant;
}

static void fail(struct turns *turns) {
    json_decref(turns->messages);
    *turns = (struct turns){0};
}

/* Texts are kept as a list of parts, which the chat joins. */
void turns_add_answer(struct turns *turns, json_t *content) {
    json_t *message = open_answer(turns);
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

void turns_add_call(struct turns *turns, const char *id, const char *name, json_t *arguments) {
    json_t *message = open_answer(turns);
    json_t *list = json_object_get(message, "tool_calls");
    json_t *call = arguments ? json_pack("{s:s, s:s, s:{s:s, s:O}}", "id", id, "type", "function", "function", "name",
                                         name, "arguments", arguments)
                             : NULL;
    json_decref(arguments);
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
    json_t *message = json_object();
    put(&message, "role", json_string("tool"));
    put(&message, "tool_call_id", json_string(id));
    put(&message, "content", content);
    add(turns, message);
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
