/* server/api/responses.c - OpenAI's POST /v1/responses as a chat's request. */
#include <stdio.h>
#include <string.h>
#include "server/api/translate.h"
#include "server/put.h"

/* What a function is called in the chat: its name, or "space::name". The caller's. */
static json_t *full_name(const json_t *space, const json_t *name) {
    if (!json_is_string(space) || json_string_length(space) == 0) return put_share(name);
    return json_sprintf("%s::%s", json_string_value(space), json_string_value(name));
}

static bool is_one_of(const char *name, const char *const *names) {
    while (*names && strcmp(name, *names) != 0) names++;
    return *names != NULL;
}

/* --- input --------------------------------------------------------------------------------------- */

/* A part as a chat's text part, or NULL with an error. */
static json_t *text_part(const json_t *part, const char *where, struct api_error *error) {
    static const char *const TEXTS[] = {"input_text", "output_text", "text", NULL};
    const char *type = fields_type_of(part);
    const json_t *text = json_object_get(part, !strcmp(type, "refusal") ? "refusal" : "text");
    bool is_text = is_one_of(type, TEXTS) || !strcmp(type, "refusal");
    if (is_text && json_is_string(text)) return json_pack("{s:s, s:O}", "type", "text", "text", text);
    if (is_text || !type[0]) {
        api_error_field(error, "input", "%s: expected parts with a type and a text", where);
    } else {
        api_error_field(error, "input", "%s: a part of type \"%.40s\" cannot be read here: this model takes text only",
                        where, type);
    }
    return NULL;
}

/* A string, or a list of parts: the same as a chat's content. NULL with an error. */
static json_t *text_content(const json_t *content, const char *where, struct api_error *error) {
    if (json_is_string(content)) return put_share(content);
    if (!json_is_array(content)) {
        api_error_field(error, "input", "%s must be a string or a list of parts, found %s", where,
                        json_type_name(content));
        return NULL;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(content) && !error->status; i++) {
        put_last(&list, text_part(json_array_get(content, i), where, error));
    }
    if (!list && !error->status) api_error_no_memory(error);
    if (!error->status) return list;
    json_decref(list);
    return NULL;
}

static void take_message(struct turns *turns, const json_t *item, const char *where, struct api_error *error) {
    static const char *const ROLES[] = {"user", "system", "developer", "assistant", NULL};
    const char *role = json_string_value(json_object_get(item, "role"));
    if (!role || !is_one_of(role, ROLES)) {
        api_error_field(error, "input",
                        "%s: role must be \"user\", \"assistant\", \"system\" or \"developer\", found %s%.40s", where,
                        role ? "" : "none", role ? role : "");
        return;
    }
    json_t *content = text_content(json_object_get(item, "content"), where, error);
    if (!error->status) turns_add(turns, role, content);
}

static void take_call(struct turns *turns, const json_t *item, const char *where, struct api_error *error) {
    const char *id = json_string_value(json_object_get(item, "call_id"));
    const char *name = json_string_value(json_object_get(item, "name"));
    const json_t *arguments = json_object_get(item, "arguments");
    if (!id || !name || !json_is_string(arguments)) {
        api_error_field(error, "input", "%s: expected a function_call to have call_id, name and arguments (strings)",
                        where);
        return;
    }
    json_t *whole = full_name(json_object_get(item, "namespace"), json_object_get(item, "name"));
    if (whole)
        turns_add_call(turns, id, json_string_value(whole), put_share(arguments));
    else
        api_error_no_memory(error);
    json_decref(whole);
}

static void take_output(struct turns *turns, const json_t *item, const char *where, struct api_error *error) {
    const char *id = json_string_value(json_object_get(item, "call_id"));
    if (!id) {
        api_error_field(error, "input", "%s: expected a function_call_output to have a call_id", where);
        return;
    }
    json_t *content = text_content(json_object_get(item, "output"), where, error);
    if (!error->status) turns_add_result(turns, id, content);
}

/* Its text; a summary is none. */
static void take_reasoning(struct turns *turns, const json_t *item) {
    const json_t *content = json_object_get(item, "content");
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *text = json_object_get(json_array_get(content, i), "text");
        if (json_is_string(text)) turns_add_thought(turns, text);
    }
}

static void take_item(struct turns *turns, const json_t *item, size_t index, struct api_error *error) {
    const char *type = fields_type_of(item);
    char where[48];
    snprintf(where, sizeof where, "input[%zu]", index);
    if (!json_is_object(item)) {
        api_error_field(error, "input", "%s must be an object, found %s", where, json_type_name(item));
    } else if (!type[0] || !strcmp(type, "message")) {
        take_message(turns, item, where, error);
    } else if (!strcmp(type, "function_call")) {
        take_call(turns, item, where, error);
    } else if (!strcmp(type, "function_call_output")) {
        take_output(turns, item, where, error);
    } else if (!strcmp(type, "reasoning")) {
        take_reasoning(turns, item);
    } else {
        api_error_field(error, "input", "%s: an item of type \"%.60s\" is not known here", where, type);
    }
}

static json_t *read_input(struct fields *f, bool places_system) {
    struct turns turns = {.messages = json_array(), .places_system = places_system};
    const json_t *instructions = fields_string(f, "instructions"), *input = fields_get(f, "input");
    if (instructions) turns_add(&turns, "system", put_share(instructions));
    if (json_is_string(input)) {
        turns_add(&turns, "user", put_share(input));
    } else if (!json_is_array(input) || json_array_size(input) == 0) {
        if (!fields_failed(f)) {
            api_error_field(f->error, "input", "input must be a string or a list of items that is not empty, found %s",
                            json_is_array(input) ? "an empty list" : json_type_name(input));
        }
    }
    for (size_t i = 0; i < json_array_size(input) && !fields_failed(f); i++) {
        take_item(&turns, json_array_get(input, i), i, f->error);
    }
    turns_free(&turns);
    if (!turns.messages && !fields_failed(f)) api_error_no_memory(f->error);
    return turns.messages;
}

/* --- tools --------------------------------------------------------------------------------------- */

static bool is_function(struct fields *tool, const char *where) {
    const char *type = fields_type_of(tool->object);
    if (strcmp(type, "function") != 0) {
        api_error_set(
            tool->error, 400, "tools", "unsupported_parameter",
            "%s: tools of type \"%.60s\" are not supported: only \"function\" is, alone or in a \"namespace\"", where,
            type);
    } else if (!fields_string(tool, "name") && !fields_failed(tool)) {
        api_error_field(tool->error, "tools", "%s: name is missing", where);
    }
    return !fields_failed(tool);
}

/* `space`: the namespace that it is in, or NULL. It is said as in a chat. */
static void add_function(struct fields *f, json_t **list, const json_t *object, const json_t *space,
                         const char *where) {
    struct fields tool = {object, f->error};
    if (!is_function(&tool, where)) return;
    json_t *one = turns_tool(fields_get(&tool, "name"), fields_string(&tool, "description"),
                             fields_object(&tool, "parameters"), fields_get(&tool, "strict"));
    if (space) put(&one, "namespace", put_share(space));
    put_last(list, one);
}

static void add_namespace(struct fields *f, json_t **list, const json_t *object, const char *where) {
    struct fields space = {object, f->error};
    const json_t *name = fields_string(&space, "name"), *tools = fields_array(&space, "tools");
    if (!name && !fields_failed(f)) api_error_field(f->error, "tools", "%s: name is missing", where);
    for (size_t i = 0; i < json_array_size(tools) && !fields_failed(f); i++) {
        add_function(f, list, json_array_get(tools, i), object, where);
    }
}

static json_t *read_tools(struct fields *f, const json_t *tools) {
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(tools) && !fields_failed(f); i++) {
        const json_t *tool = json_array_get(tools, i);
        char where[48];
        snprintf(where, sizeof where, "tools[%zu]", i);
        if (!strcmp(fields_type_of(tool), "namespace")) {
            add_namespace(f, &list, tool, where);
        } else {
            add_function(f, &list, tool, NULL, where);
        }
    }
    return list;
}

/* The names, as a chat's allowed_tools has them; what is no name is left to it to refuse. */
static json_t *read_allowed(const json_t *choice) {
    const json_t *mode = json_object_get(choice, "mode"), *tools = json_object_get(choice, "tools");
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i), *name = json_object_get(tool, "name");
        bool is_function = !strcmp(fields_type_of(tool), "function") && name;
        put_last(&list, is_function ? turns_choice(name) : put_share(tool));
    }
    return json_pack("{s:s, s:{s:o, s:O*}}", "type", "allowed_tools", "allowed_tools", "tools", list, "mode", mode);
}

static json_t *read_choice(struct fields *f, const json_t *choice) {
    static const char *const MODES[] = {"auto", "none", "required", NULL};
    const char *mode = json_string_value(choice);
    if (mode && is_one_of(mode, MODES)) return json_string(mode);
    if (!strcmp(fields_type_of(choice), "function") && json_is_string(json_object_get(choice, "name"))) {
        return turns_choice(json_object_get(choice, "name"));
    }
    if (!strcmp(fields_type_of(choice), "allowed_tools")) return read_allowed(choice);
    api_error_field(f->error, "tool_choice",
                    "tool_choice must be \"auto\", \"none\", \"required\", {\"type\": \"function\", \"name\": ...} or "
                    "{\"type\": \"allowed_tools\", \"mode\": ..., \"tools\": [...]}");
    return NULL;
}

/* --- the rest ------------------------------------------------------------------------------------ */

static void put_format(struct fields *f, json_t **chat) {
    const json_t *text = fields_object(f, "text"), *format = json_object_get(text, "format");
    const json_t *name = json_object_get(format, "name"), *schema = json_object_get(format, "schema");
    const char *type = fields_type_of(format);
    if (!format || json_is_null(format) || !strcmp(type, "text")) return;
    if (!strcmp(type, "json_object")) {
        put(chat, "response_format", json_pack("{s:s}", "type", type));
    } else if (!strcmp(type, "json_schema") && json_is_object(schema)) {
        put(chat, "response_format",
            json_pack("{s:s, s:{s:s, s:O}}", "type", type, "json_schema", "name",
                      json_is_string(name) ? json_string_value(name) : "output", "schema", schema));
    } else {
        api_error_field(f->error, "text",
                        "text.format: type must be \"text\", \"json_object\", or \"json_schema\" with a schema");
    }
}

static void put_reasoning(struct fields *f, json_t **chat) {
    struct fields inner = {fields_object(f, "reasoning"), f->error};
    const json_t *effort = inner.object ? fields_string(&inner, "effort") : NULL;
    if (effort) put(chat, "reasoning_effort", put_share(effort));
}

/* What would be lost if it were passed over. */
static void refuse_rest(struct fields *f) {
    fields_refuse(f, "previous_response_id", "answers are not kept here; send the whole conversation as input");
    fields_refuse(f, "conversation", "conversations are not kept here; send the whole of it as input");
    fields_refuse(f, "prompt", "there are no stored prompts here");
    fields_refuse(f, "background", "answers are not kept here");
    const json_t *include = fields_array(f, "include");
    for (size_t i = 0; i < json_array_size(include); i++) {
        const char *name = json_string_value(json_array_get(include, i));
        if (!name || strcmp(name, "message.output_text.logprobs") != 0) continue;
        api_error_set(f->error, 400, "include", "unsupported_parameter",
                      "include: logprobs are not there in responses; ask /v1/chat/completions for them");
    }
    fields_int(f, "top_logprobs", 0, 0, 0);
    fields_int(f, "n", 1, 1, 1);
    fields_object(f, "metadata");
    fields_bool(f, "store", false);
}

json_t *api_responses_to_chat(const json_t *body, bool places_system, struct api_error *error) {
    static const char *const OURS[] = {"input",
                                       "instructions",
                                       "max_output_tokens",
                                       "max_tokens",
                                       "max_completion_tokens",
                                       "tools",
                                       "tool_choice",
                                       "text",
                                       "reasoning",
                                       "reasoning_effort",
                                       "thinking",
                                       "n",
                                       "include",
                                       "logprobs",
                                       "top_logprobs",
                                       "stream_options",
                                       "prompt",
                                       "messages",
                                       "previous_response_id"};
    struct fields f = {body, error};
    json_t *chat = put_copy(body);
    fields_drop(chat, OURS, sizeof OURS / sizeof *OURS);
    refuse_rest(&f);
    put(&chat, "messages", read_input(&f, places_system));
    int64_t most = fields_int(&f, "max_output_tokens", 1, INT32_MAX, 0);
    if (most) put(&chat, "max_tokens", json_integer(most));
    const json_t *tools = fields_array(&f, "tools"), *choice = fields_get(&f, "tool_choice");
    if (tools) put(&chat, "tools", read_tools(&f, tools));
    if (choice && !fields_failed(&f)) put(&chat, "tool_choice", read_choice(&f, choice));
    put_format(&f, &chat);
    put_reasoning(&f, &chat);
    if (!chat && !fields_failed(&f)) api_error_no_memory(error);
    if (!fields_failed(&f)) return chat;
    json_decref(chat);
    return NULL;
}
