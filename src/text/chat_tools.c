#include "text/chat_tools.h"

#include <stdlib.h>
#include <string.h>
#include "base/json_spell.h"
#include "text/calls.h"
#include "text/chat_priv.h"

/* --- the list of functions: no released Jinja template prints it, so these are the forms that others use ------------ */

/* V3.1's model card. */
static void put_bare(struct chat_job *job, const json_t *tools) {
    chat_own(job, "## Tools\nYou have access to the following tools:\n");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = json_object_get(json_array_get(tools, i), "function");
        chat_own(job, "\n### ");
        chat_put_json(job, json_object_get(function, "name"));
        chat_own(job, "\nDescription: ");
        chat_put_json(job, json_object_get(function, "description"));
        chat_own(job, "\n\nParameters: ");
        const json_t *parameters = json_object_get(function, "parameters");
        if (parameters) {
            chat_put_value(job, parameters);
        } else {
            chat_own(job, "{}");
        }
        chat_own(job, "\n");
    }
    chat_own(job, "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n" CALLS_BEGIN CALL_BEGIN
                  "tool_call_name" CALL_SEPARATOR "tool_call_arguments" CALL_END "{additional_tool_calls}" CALLS_END
                  "\n\nWhere:\n"
                  "- `tool_call_name` must be an exact match to one of the available tools\n"
                  "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
                  "- For multiple tool calls, chain them directly without separators or spaces\n");
}

/* vLLM's for V3-0324; what the plain form begins with is the same. */
static void put_signatures(struct chat_job *job, const json_t *tools) {
    chat_own(job, "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                  "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        chat_put_value(job, json_array_get(tools, i));
        chat_own(job, "\n");
    }
    chat_own(job, "</tools>\n\n");
}

void chat_put_tools(struct chat_job *job, enum chat_calls form) {
    const json_t *tools = json_object_get(job->kwargs, "tools");
    if (form == CHAT_CALLS_BARE) {
        put_bare(job, tools);
        return;
    }
    put_signatures(job, tools);
    if (form == CHAT_CALLS_PLAIN) {
        chat_own(job, "For each function call, return a json object with function name and arguments within "
                      "<tool_call></tool_call> XML tags:\n" PLAIN_BEGIN
                      "\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n" PLAIN_END);
    } else {
        chat_own(job, "For function call returns, you should first print " CALLS_BEGIN "\n\n"
                      "For each function call, you should return object like:\n" CALL_BEGIN FENCED_KIND CALL_SEPARATOR
                      "<function_name>" FENCED_OPEN "<function_arguments_in_json_format>" FENCED_CLOSE CALL_END "\n\n"
                      "At the end of function call returns, you should print " CALLS_END "<｜end▁of▁sentence｜>");
    }
}

bool chat_has_tools(const struct chat_job *job) {
    return json_array_size(json_object_get(job->kwargs, "tools")) > 0;
}

/* --- messages with calls ------------------------------------------------------------------------- */

static int refuse(struct mo_error *error, size_t index, const char *what) {
    return mo_error_set(error, MO_E_INVALID, "messages[%zu]: %s", index, what);
}

static int no_memory(struct mo_error *error) {
    return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the messages");
}

/* Arguments as a text of JSON, which some send as JSON. */
static int settle_arguments(json_t *function, size_t index, struct mo_error *error) {
    const json_t *arguments = json_object_get(function, "arguments");
    if (json_is_string(arguments)) return 0;
    bool is_none = !arguments || json_is_null(arguments);
    if (!is_none && !json_is_object(arguments)) {
        return refuse(error, index, "expected the \"function.arguments\" of a tool call to be a string of JSON");
    }
    struct buffer text = {0};
    if (is_none)
        buffer_add_text(&text, "{}");
    else
        json_spell(&text, arguments);
    int code = text.failed ? -1 : json_object_set_new(function, "arguments", json_stringn(text.data, text.size));
    buffer_free(&text);
    return code ? no_memory(error) : 0;
}

static bool is_given(const json_t *value) {
    return value && !json_is_null(value);
}

/* Puts its namespace into the name, where it may be already. */
static int set_full_name(json_t *function, const char *space, const char *name, struct mo_error *error) {
    const char *gap = strstr(name, "::"), *bare = gap ? gap + 2 : name;
    bool fits = !gap || (strlen(space) == (size_t)(gap - name) && !strncmp(name, space, strlen(space)));
    if (!fits) {
        return mo_error_set(error, MO_E_INVALID, "the function \"%.128s\" is not in the namespace \"%.128s\"", name,
                            space);
    }
    if (!*space || strstr(space, "::") || strstr(bare, "::")) {
        return mo_error_set(error, MO_E_INVALID,
                            "expected a namespace and a name without \"::\", found \"%.128s\" and \"%.128s\"", space,
                            bare);
    }
    json_t *whole = json_sprintf("%s::%s", space, bare);
    return !whole || json_object_set_new(function, "name", whole) ? no_memory(error) : 0;
}

static int add_description(json_t *function, const json_t *space, struct mo_error *error) {
    const char *of_space = json_string_value(json_object_get(space, "description"));
    const char *own = json_string_value(json_object_get(function, "description"));
    if (!of_space || !*of_space) return 0;
    json_t *both = json_sprintf("%s\n%s", of_space, own ? own : "");
    return !both || json_object_set_new(function, "description", both) ? no_memory(error) : 0;
}

int chat_settle_namespace(json_t *tool, struct mo_error *error) {
    json_t *function = json_object_get(tool, "function"), *space = json_object_get(tool, "namespace");
    const char *name = json_string_value(json_object_get(function, "name"));
    if (!is_given(space)) space = json_object_get(function, "namespace");
    if (!name || strlen(name) != json_string_length(json_object_get(function, "name")) || !is_given(space)) return 0;
    const json_t *said = json_is_object(space) ? json_object_get(space, "name") : space;
    if (!json_is_string(said)) {
        return mo_error_set(error, MO_E_INVALID, "expected \"namespace\" to be a name, or an object with a \"name\"");
    }
    int code = set_full_name(function, json_string_value(said), name, error);
    if (!code) code = add_description(function, space, error);
    if (code) return code;
    json_object_del(tool, "namespace");
    json_object_del(function, "namespace");
    return 0;
}

static int settle_call(json_t *call, size_t index, struct mo_error *error) {
    json_t *function = json_object_get(call, "function");
    const json_t *type = json_object_get(call, "type");
    if (!json_is_object(function) || !json_is_string(json_object_get(function, "name"))) {
        return refuse(error, index,
                      "expected every tool call to be {\"id\": ..., \"type\": \"function\", \"function\": "
                      "{\"name\": ..., \"arguments\": ...}}");
    }
    if (!type || json_is_null(type)) {
        if (json_object_set_new(call, "type", json_string("function"))) return no_memory(error);
    } else if (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0) {
        return refuse(error, index, "expected the \"type\" of every tool call to be \"function\"");
    }
    int code = chat_settle_namespace(call, error);
    return code ? mo_error_prefix(error, "messages[%zu]", index) : settle_arguments(function, index, error);
}

/* V3's first template prints calls only where the content is null, and R1-0528's cannot have null. */
static int settle_content(const struct chat_template *chat, json_t *message, bool calls, struct mo_error *error) {
    bool is_first = chat && chat_template_by_name("deepseek-v3") == chat;
    bool is_0528 = chat && chat_template_by_name("deepseek-r1-0528") == chat;
    const json_t *content = json_object_get(message, "content");
    bool is_null = !content || json_is_null(content);
    int code = 0;
    if (calls && (is_first || (is_null && !is_0528))) {
        code = json_object_set_new(message, "content", json_null());
    } else if (is_null) {
        code = json_object_set_new(message, "content", json_string(""));
    }
    return code ? no_memory(error) : 0;
}

/* The list of calls is the message's own from here on. */
static int settle_assistant(const struct chat_template *chat, json_t *message, size_t index, struct mo_error *error) {
    const json_t *given = json_object_get(message, "tool_calls");
    size_t n = json_array_size(given);
    if (given && !json_is_null(given) && !json_is_array(given)) {
        return refuse(error, index, "expected \"tool_calls\" to be an array");
    }
    if (n == 0) {
        json_object_del(message, "tool_calls");
        bool has_role_only = !json_object_get(message, "content") && !given;
        return has_role_only ? 0 : settle_content(chat, message, false, error);
    }
    json_t *calls = json_deep_copy(given);
    if (!calls || json_object_set_new(message, "tool_calls", calls)) return no_memory(error);
    for (size_t i = 0; i < n; i++) {
        int code = settle_call(json_array_get(calls, i), index, error);
        if (code) return code;
    }
    return settle_content(chat, message, true, error);
}

/* --- results in the order of their calls: the templates do not say which is whose -------------------------------------- */

static size_t count_results(const json_t *messages, size_t from) {
    size_t n = 0;
    const char *role;
    while ((role = json_string_value(json_object_get(json_array_get(messages, from + n), "role"))) &&
           !strcmp(role, "tool"))
        n++;
    return n;
}

/* The results [n] from `from` on by the ids of their calls: {"id": number}, of the same ids the first. The caller's; NULL without
 * memory. */
static json_t *index_results(const json_t *messages, size_t from, size_t n) {
    json_t *index = json_object();
    for (size_t i = 0; i < n && index; i++) {
        const char *id = json_string_value(json_object_get(json_array_get(messages, from + i), "tool_call_id"));
        if (!id || json_object_get(index, id) || json_object_set_new(index, id, json_integer((json_int_t)i)) == 0)
            continue;
        json_decref(index);
        return NULL;
    }
    return index;
}

/* Which of the results [n] is the call's; n: none. */
static size_t result_of(const json_t *index, size_t n, const json_t *call) {
    const char *id = json_string_value(json_object_get(call, "id"));
    const json_t *number = id ? json_object_get(index, id) : NULL;
    return number ? (size_t)json_integer_value(number) : n;
}

/* Nothing happens unless each result is that of another call. */
static int sort_results(json_t *messages, size_t from, const json_t *calls) {
    size_t n = count_results(messages, from), n_sorted = 0;
    json_t *sorted = json_array(), *index = index_results(messages, from, n);
    bool *taken = calloc(n + 1, sizeof *taken);
    int code = sorted && index && taken ? 0 : -1;
    for (size_t i = 0; i < json_array_size(calls) && !code; i++) {
        size_t k = result_of(index, n, json_array_get(calls, i));
        if (k == n || taken[k]) continue;
        taken[k] = true;
        code = json_array_append(sorted, json_array_get(messages, from + k));
        n_sorted++;
    }
    for (size_t i = 0; n_sorted == n && i < n && !code; i++) {
        code = json_array_set(messages, from + i, json_array_get(sorted, i));
    }
    json_decref(sorted);
    json_decref(index);
    free(taken);
    return code;
}

int chat_settle_calls(const struct chat_template *chat, json_t *messages, struct mo_error *error) {
    bool may_have_result = false;
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(message, "role"));
        bool is_tool = role && strcmp(role, "tool") == 0;
        if (is_tool && !may_have_result) {
            return refuse(error, i, "a tool's result must come behind the message that called it");
        }
        bool is_between = may_have_result && role && !strcmp(role, "system"); /* V4.1's speaks there, too */
        if (!role || strcmp(role, "assistant") != 0) {
            may_have_result = is_tool || is_between;
            continue;
        }
        int code = settle_assistant(chat, message, i, error);
        if (code) return code;
        const json_t *calls = json_object_get(message, "tool_calls");
        may_have_result = calls != NULL;
        if (calls && sort_results(messages, i + 1, calls)) return no_memory(error);
    }
    return 0;
}
