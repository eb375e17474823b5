/* server/api/anthropic.c - Anthropic's POST /v1/messages as a chat's request. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json_spell.h"
#include "server/api/translate.h"
#include "server/put.h"

/* Lines that change with every request, put in front of the instructions by a client for its maker's books: the model has no
 * use for them, and behind them nothing could be found in the cache. */
static const char BOOKKEEPING[] = "x-anthropic-billing-header:";

/* --- blocks -------------------------------------------------------------------------------------- */

static bool is_text(const json_t *block) {
    return !strcmp(fields_type_of(block), "text") && json_is_string(json_object_get(block, "text"));
}

static bool is_bookkeeping(const json_t *text) {
    const char *value = json_string_value(text);
    return value && !strncmp(value, BOOKKEEPING, sizeof BOOKKEEPING - 1);
}

static int refuse_block(struct api_error *error, const char *param, const char *where, const json_t *block) {
    if (!json_is_object(block) || !fields_type_of(block)[0]) {
        return api_error_field(error, param, "%s: expected a block with a type, found %s", where,
                               json_type_name(block));
    }
    return api_error_field(error, param,
                           "%s: a block of type \"%.40s\" cannot be read here: this model takes text only", where,
                           fields_type_of(block));
}

/* A text block, or what stands for one: the name of a tool that was found. A new reference; NULL with an error. */
static json_t *text_part(const json_t *block, const char *param, const char *where, struct api_error *error) {
    const json_t *name = json_object_get(block, "tool_name");
    bool is_reference = !strcmp(fields_type_of(block), "tool_reference") && json_is_string(name);
    if (is_text(block)) return put_share(block);
    json_t *part = is_reference ? json_pack("{s:s, s:O}", "type", "text", "text", name) : NULL;
    if (!is_reference) {
        refuse_block(error, param, where, block);
    } else if (!part) {
        api_error_no_memory(error);
    }
    return part;
}

/* A string, or a list of text blocks: the same as a chat's content; instructions without bookkeeping. NULL with an error. */
static json_t *text_content(const json_t *content, const char *param, const char *where, struct api_error *error) {
    bool is_instruction = !strcmp(param, "system");
    if (json_is_string(content)) return put_share(content);
    if (!json_is_array(content)) {
        api_error_field(error, param, "%s must be a string or a list of blocks, found %s", where,
                        json_type_name(content));
        return NULL;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *block = json_array_get(content, i);
        json_t *part = text_part(block, param, where, error);
        if (!part) {
            json_decref(list);
            return NULL;
        }
        if (!is_instruction || !is_bookkeeping(json_object_get(block, "text")))
            put_last(&list, part);
        else
            json_decref(part);
    }
    if (!list) api_error_no_memory(error);
    return list;
}

/* --- messages ------------------------------------------------------------------------------------ */

struct reader {
    struct turns turns;
    struct api_error *error;
    json_t *found;  /* an object with the names of tools that results refer to */
    char where[64]; /* "messages[3].content[1]" */
};

/* The chat's form has arguments as text: spaced as models write them, so that the next turn finds them in the cache. */
static void take_call(struct reader *reader, const json_t *block) {
    const char *id = json_string_value(json_object_get(block, "id"));
    const char *name = json_string_value(json_object_get(block, "name"));
    const json_t *input = json_object_get(block, "input");
    if (!id || !name || !json_is_object(input)) {
        api_error_field(reader->error, "messages",
                        "%s: expected a tool_use block to have id, name (strings) and input (an object)",
                        reader->where);
        return;
    }
    struct buffer text = {0};
    json_spell(&text, input);
    turns_add_call(&reader->turns, id, name, put_text(&text));
    buffer_free(&text);
}

/* Tools that wait until they are looked for are there from now on. */
static void note_found(struct reader *reader, const json_t *content) {
    for (size_t i = 0; i < json_array_size(content); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(content, i), "tool_name"));
        if (name) put(&reader->found, name, json_true());
    }
}

static void take_result(struct reader *reader, const json_t *block) {
    const char *id = json_string_value(json_object_get(block, "tool_use_id"));
    const json_t *content = json_object_get(block, "content");
    if (!id) {
        api_error_field(reader->error, "messages", "%s: expected a tool_result block to have a tool_use_id",
                        reader->where);
        return;
    }
    bool is_empty = !content || json_is_null(content);
    json_t *text = is_empty ? json_string("") : text_content(content, "messages", reader->where, reader->error);
    if (reader->error->status) return;
    turns_add_result(&reader->turns, id, text);
    note_found(reader, content);
}

static void take_block(struct reader *reader, const char *role, const json_t *block) {
    const char *type = fields_type_of(block);
    bool is_answer = !strcmp(role, "assistant"), is_user = !strcmp(role, "user");
    if (is_text(block)) {
        turns_add(&reader->turns, role, put_share(json_object_get(block, "text")));
    } else if (is_answer && !strcmp(type, "tool_use")) {
        take_call(reader, block);
    } else if (is_user && !strcmp(type, "tool_result")) {
        take_result(reader, block);
    } else if (is_answer && !strcmp(type, "thinking")) {
        const json_t *text = json_object_get(block, "thinking");
        if (json_is_string(text)) turns_add_thought(&reader->turns, text);
    } else if (!is_answer || strcmp(type, "redacted_thinking") != 0) {
        refuse_block(reader->error, "messages", reader->where, block);
    }
}

static const char *role_of(struct reader *reader, const json_t *message, size_t index) {
    static const char *const ROLES[] = {"user", "assistant", "system"};
    const char *role = json_string_value(json_object_get(message, "role"));
    for (size_t i = 0; role && i < sizeof ROLES / sizeof *ROLES; i++) {
        if (!strcmp(role, ROLES[i])) return ROLES[i];
    }
    api_error_field(reader->error, "messages", "messages[%zu]: role must be \"user\" or \"assistant\", found %s%.40s",
                    index, role ? "" : "none", role ? role : "");
    return NULL;
}

static void take_message(struct reader *reader, const json_t *message, size_t index) {
    const char *role = role_of(reader, message, index);
    const json_t *content = json_object_get(message, "content");
    if (!role) return;
    if (json_is_string(content)) {
        turns_add(&reader->turns, role, put_share(content));
        return;
    }
    if (!json_is_array(content) || json_array_size(content) == 0) {
        api_error_field(reader->error, "messages",
                        "messages[%zu]: content must be a string or a list of blocks that is not empty, found %s",
                        index, json_is_array(content) ? "an empty list" : json_type_name(content));
    }
    for (size_t i = 0; i < json_array_size(content) && !reader->error->status; i++) {
        snprintf(reader->where, sizeof reader->where, "messages[%zu].content[%zu]", index, i);
        take_block(reader, role, json_array_get(content, i));
    }
}

/* Instructions come first. */
static void read_system(struct reader *reader, const json_t *system) {
    if (!system || is_bookkeeping(system)) return;
    json_t *content = text_content(system, "system", "system", reader->error);
    bool is_empty = json_is_array(content) && json_array_size(content) == 0;
    if (reader->error->status || is_empty) {
        json_decref(content);
        return;
    }
    turns_add(&reader->turns, "system", content);
}

static void read_messages(struct reader *reader, struct fields *f) {
    const json_t *messages = fields_array(f, "messages");
    if (json_array_size(messages) == 0 && !fields_failed(f)) {
        api_error_field(f->error, "messages", messages ? "messages is empty" : "messages is missing");
    }
    read_system(reader, fields_get(f, "system"));
    for (size_t i = 0; i < json_array_size(messages) && !fields_failed(f); i++) {
        take_message(reader, json_array_get(messages, i), i);
    }
    turns_go_on(&reader->turns);
    turns_free(&reader->turns);
    if (!(reader->turns.messages && reader->found) && !fields_failed(f)) api_error_no_memory(f->error);
}

/* --- tools --------------------------------------------------------------------------------------- */

static bool waits(const json_t *tool, const json_t *found) {
    const char *name = json_string_value(json_object_get(tool, "name"));
    return json_is_true(json_object_get(tool, "defer_loading")) && !(name && json_object_get(found, name));
}

static json_t *read_tools(struct fields *f, const json_t *tools, const json_t *found) {
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(tools) && !fields_failed(f); i++) {
        struct fields tool = {json_array_get(tools, i), f->error};
        const char *type = fields_type_of(tool.object);
        if (type[0] && strcmp(type, "custom") != 0) {
            api_error_set(f->error, 400, "tools", "unsupported_parameter",
                          "tools[%zu]: a tool of type \"%.60s\" is run by a server, and not by this one: only tools "
                          "with an input_schema are known here",
                          i, type);
        } else if (!fields_string(&tool, "name") || !fields_object(&tool, "input_schema")) {
            if (!fields_failed(f)) {
                api_error_field(f->error, "tools", "tools[%zu]: expected name (a string) and input_schema (an object)",
                                i);
            }
        } else if (!waits(tool.object, found)) {
            put_last(&list, turns_tool(fields_get(&tool, "name"), fields_string(&tool, "description"),
                                       fields_get(&tool, "input_schema"), fields_get(&tool, "strict")));
        }
    }
    return list;
}

static json_t *read_choice(struct fields *f, const json_t *choice) {
    const char *type = fields_type_of(choice);
    if (!strcmp(type, "auto") || !strcmp(type, "none")) return json_string(type);
    if (!strcmp(type, "any")) return json_string("required");
    if (!strcmp(type, "tool") && json_is_string(json_object_get(choice, "name"))) {
        return turns_choice(json_object_get(choice, "name"));
    }
    api_error_field(f->error, "tool_choice",
                    "tool_choice: type must be \"auto\", \"any\", \"none\", or \"tool\" with a name");
    return NULL;
}

static void put_tools(struct fields *f, const json_t *found, json_t **chat) {
    const json_t *tools = fields_array(f, "tools"), *choice = fields_object(f, "tool_choice");
    if (tools) put(chat, "tools", read_tools(f, tools, found));
    if (choice && !fields_failed(f)) {
        put(chat, "tool_choice", read_choice(f, choice));
        struct fields inner = {choice, f->error};
        if (fields_bool(&inner, "disable_parallel_tool_use", false)) {
            put(chat, "parallel_tool_calls", json_false());
        }
    }
}

/* --- the rest ------------------------------------------------------------------------------------ */

/* "adaptive" leaves it to the model: one that can think, does. How long is its own affair, if not output_config.effort says more:
 * budget_tokens changes nothing. */
static void put_thinking(struct fields *f, json_t **chat) {
    const json_t *thinking = fields_object(f, "thinking");
    if (!thinking) return;
    struct fields inner = {thinking, f->error};
    const char *type = fields_type_of(thinking);
    bool is_on = !strcmp(type, "enabled") || !strcmp(type, "adaptive");
    fields_int(&inner, "budget_tokens", 0, INT32_MAX, 0);
    if (!is_on && strcmp(type, "disabled") != 0) {
        api_error_field(f->error, "thinking",
                        "thinking: type must be \"enabled\", \"adaptive\" or \"disabled\", found \"%.40s\"", type);
    }
    put(chat, "thinking", json_pack("{s:s}", "type", is_on ? "enabled" : "disabled"));
    struct fields output = {fields_object(f, "output_config"), f->error};
    const json_t *effort = is_on && output.object ? fields_string(&output, "effort") : NULL;
    if (effort) put(chat, "reasoning_effort", put_share(effort));
}

static void put_format(struct fields *f, json_t **chat) {
    const json_t *format = json_object_get(fields_object(f, "output_config"), "format");
    const json_t *schema = json_object_get(format, "schema");
    if (!format || json_is_null(format)) return;
    if (strcmp(fields_type_of(format), "json_schema") != 0 || !json_is_object(schema)) {
        api_error_field(f->error, "output_config",
                        "output_config.format: expected {\"type\": \"json_schema\", \"schema\": {...}}");
        return;
    }
    put(chat, "response_format",
        json_pack("{s:s, s:{s:s, s:O}}", "type", "json_schema", "json_schema", "name", "output", "schema", schema));
}

/* What would be lost if it were passed over. */
static void refuse_rest(struct fields *f) {
    fields_refuse(f, "mcp_servers", "tools are run by the client here");
    fields_refuse(f, "container", "tools are run by the client here");
    fields_int(f, "n", 1, 1, 1);
    fields_object(f, "metadata");
}

/* Names that a chat has too, for something else or of another type. */
static const char *const OURS[] = {
    "messages", "system",       "stop_sequences", "metadata",       "thinking",
    "tools",    "tool_choice",  "output_config",  "stream_options", "n",
    "logprobs", "top_logprobs", "mcp_servers",    "container",      "max_completion_tokens"};

json_t *api_anthropic_to_chat(const json_t *body, bool only_counts, bool places_system, struct api_error *error) {
    static const char *const UNCOUNTED[] = {"max_tokens", "stream"};
    struct fields f = {body, error};
    json_t *chat = put_copy(body);
    if (!only_counts && !fields_get(&f, "max_tokens")) {
        api_error_field(error, "max_tokens", "max_tokens is missing: how many tokens the answer may have");
    }
    const json_t *stops = fields_array(&f, "stop_sequences");
    fields_drop(chat, OURS, sizeof OURS / sizeof *OURS);
    if (only_counts) fields_drop(chat, UNCOUNTED, sizeof UNCOUNTED / sizeof *UNCOUNTED);
    refuse_rest(&f);
    struct reader reader = {
        .turns = {.messages = json_array(), .places_system = places_system}, .error = error, .found = json_object()};
    read_messages(&reader, &f);
    put(&chat, "messages", reader.turns.messages);
    if (stops) put(&chat, "stop", put_share(stops));
    put_tools(&f, reader.found, &chat);
    json_decref(reader.found);
    put_thinking(&f, &chat);
    put_format(&f, &chat);
    if (!chat && !fields_failed(&f)) api_error_no_memory(error);
    if (!fields_failed(&f)) return chat;
    json_decref(chat);
    return NULL;
}
