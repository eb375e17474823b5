/* The template of Coder-V2 and V2: plain words for the roles. It knows no functions: the list of them stands with the first system
 * message, calls and results in tags that many models know, results as the user's. */
#include <string.h>
#include "text/calls.h"
#include "text/chat_priv.h"

/* A message with calls: what it says, a line end, and the calls as the model writes them. */
static void put_calls(struct chat_job *job, const struct chat_message *message, const json_t *calls) {
    struct chat_string content = {0};
    if (!chat_content_is_null(message)) content = chat_content(job, message);
    chat_put(job, content);
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function");
        if (i || content.size) chat_own(job, "\n");
        chat_own(job, PLAIN_BEGIN PLAIN_OPEN);
        chat_put_json(job, json_object_get(function, "name"));
        chat_own(job, PLAIN_BETWEEN);
        chat_put_json(job, json_object_get(function, "arguments"));
        chat_own(job, PLAIN_CLOSE PLAIN_END);
    }
}

/* Results that stand together are one message. */
static void put_result(struct chat_job *job, const struct chat_message *message, bool is_next) {
    chat_own(job, is_next ? "\n<tool_response>\n" : "User: <tool_response>\n");
    chat_put(job, chat_content(job, message));
    chat_own(job, "\n</tool_response>");
}

static bool is_result(const struct chat_job *job, size_t index) {
    const char *role = json_string_value(json_object_get(json_array_get(job->messages, index), "role"));
    return role && !strcmp(role, "tool");
}

void chat_render_coder_v2(struct chat_job *job) {
    bool tells_tools = chat_has_tools(job);
    chat_own(job, job->bos);
    for (size_t i = 0; i < json_array_size(job->messages) && !job->code; i++) {
        struct chat_message message = chat_message_at(job, i, CHAT_SYSTEM | CHAT_USER | CHAT_ASSISTANT | CHAT_TOOL);
        const json_t *calls = json_object_get(message.json, "tool_calls");
        if (!message.role) return;
        if (tells_tools && message.role != CHAT_SYSTEM) {
            chat_put_tools(job, CHAT_CALLS_PLAIN);
            chat_own(job, "\n\n");
            tells_tools = false;
        }
        if (message.role == CHAT_USER) chat_own(job, "User: ");
        if (message.role == CHAT_ASSISTANT) chat_own(job, "Assistant: ");
        if (message.role == CHAT_TOOL) {
            put_result(job, &message, i > 0 && is_result(job, i - 1));
            if (is_result(job, i + 1)) continue;
        } else if (message.role == CHAT_ASSISTANT && json_array_size(calls) > 0) {
            put_calls(job, &message, calls);
        } else {
            chat_put(job, chat_content(job, &message));
        }
        chat_own(job, message.role == CHAT_ASSISTANT ? job->eos : "\n\n");
    }
    if (tells_tools) chat_put_tools(job, CHAT_CALLS_PLAIN), chat_own(job, "\n\n");
    if (job->add_generation_prompt) chat_own(job, "Assistant:");
}
