/* server/api/tools.c - tools, tool_choice and parallel_tool_calls: what may be called, and the grammar that holds the answer to it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "server/api/parts.h"
#include "server/put.h"
#include "text/calls.h"
#include "text/chat_tools.h"

enum { TOOLS_MAX = 1024 };

/* --- the list ------------------------------------------------------------------------------------ */

static bool is_name(const json_t *value) {
    static const char LETTERS[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/";
    const char *name = json_string_value(value);
    size_t size = json_string_length(value);
    return name && size > 0 && size <= CALL_NAME_MAX && strspn(name, LETTERS) == size;
}

static const json_t *function_of(const json_t *tool) {
    return json_object_get(tool, "function");
}

static const json_t *find_tool(const json_t *tools, size_t n, const json_t *name) {
    for (size_t i = 0; i < n; i++) {
        if (json_equal(json_object_get(function_of(json_array_get(tools, i)), "name"), name))
            return json_array_get(tools, i);
    }
    return NULL;
}

static bool is_absent_or(const json_t *value, bool is_good) {
    return !value || json_is_null(value) || is_good;
}

/* What is wrong with a tool, or NULL. */
static const char *tool_mistake(const json_t *tool) {
    const json_t *type = json_object_get(tool, "type"), *function = function_of(tool);
    const json_t *description = json_object_get(function, "description");
    const json_t *parameters = json_object_get(function, "parameters"), *strict = json_object_get(function, "strict");
    bool is_function = !type || (json_is_string(type) && !strcmp(json_string_value(type), "function"));
    if (!json_is_object(tool) || !is_function) return "expected {\"type\": \"function\", \"function\": {...}}";
    if (!json_is_object(function)) return "\"function\" is missing or no object";
    if (!is_name(json_object_get(function, "name"))) {
        return "\"function.name\" must be a string of 1 to 128 letters, digits and _ - . : /";
    }
    if (!is_absent_or(description, json_is_string(description))) return "\"function.description\" must be a string";
    if (!is_absent_or(parameters, json_is_object(parameters))) {
        return "\"function.parameters\" must be a JSON schema, an object";
    }
    return is_absent_or(strict, json_is_boolean(strict)) ? NULL : "\"function.strict\" must be true or false";
}

/* A tool, or what names one. */
static void settle(json_t *tool, const char *field, const char *where, struct api_error *error) {
    struct mo_error cause = {0};
    if (error->status || !chat_settle_namespace(tool, &cause)) return;
    mo_error_prefix(&cause, "%s", where);
    api_error_from(error, &cause, field);
}

static void settle_list(json_t *tools, const char *field, const char *name, struct api_error *error) {
    for (size_t i = 0; i < json_array_size(tools); i++) {
        char where[64];
        snprintf(where, sizeof where, "%s[%zu]", name, i);
        settle(json_array_get(tools, i), field, where, error);
    }
}

void api_tools_settle(json_t *root, struct api_error *error) {
    json_t *choice = json_object_get(root, "tool_choice"), *allowed = json_object_get(choice, "allowed_tools");
    settle_list(json_object_get(root, "tools"), "tools", "tools", error);
    settle_list(json_object_get(allowed, "tools"), "tool_choice", "allowed_tools: tools", error);
    settle(choice, "tool_choice", "tool_choice", error);
}

const json_t *api_tools_read(struct fields *f) {
    const json_t *tools = fields_array(f, "tools");
    size_t n = json_array_size(tools);
    if (n > TOOLS_MAX) api_error_field(f->error, "tools", "tools: at most %d, found %zu", TOOLS_MAX, n);
    for (size_t i = 0; i < n && !fields_failed(f); i++) {
        const json_t *tool = json_array_get(tools, i), *name = json_object_get(function_of(tool), "name");
        const char *mistake = tool_mistake(tool);
        if (mistake) {
            api_error_field(f->error, "tools", "tools[%zu]: %s", i, mistake);
        } else if (find_tool(tools, i, name)) {
            api_error_field(f->error, "tools", "tools[%zu]: a second function \"%s\"", i, json_string_value(name));
        }
    }
    return n > 0 && !fields_failed(f) ? tools : NULL;
}

/* --- which of them ------------------------------------------------------------------------------- */

/* The one of `tools` that {"type": "function", "function": {"name": ...}} names; NULL with an error. */
static const json_t *find_named(struct fields *f, const json_t *named, const json_t *tools) {
    const json_t *name = json_object_get(function_of(named), "name");
    if (strcmp(fields_type_of(named), "function") != 0 || !json_is_string(name)) {
        api_error_field(f->error, "tool_choice",
                        "tool_choice: expected \"none\", \"auto\", \"required\", \"allowed_tools\" or "
                        "{\"type\": \"function\", \"function\": {\"name\": ...}}");
        return NULL;
    }
    const json_t *tool = find_tool(tools, json_array_size(tools), name);
    if (!tool) {
        api_error_field(f->error, "tool_choice", "tool_choice: there is no function \"%.128s\" in tools",
                        json_string_value(name));
    }
    return tool;
}

static void parse_named(struct api_job *job, const json_t *choice, const json_t *tools) {
    job->named_tool = find_named(&job->fields, choice, tools);
    job->must_call = true;
}

/* OpenAI's: the model is told of all tools, so that what it was told stays in the cache, and may call some. */
static void parse_allowed(struct api_job *job, const json_t *choice, const json_t *tools) {
    struct fields *f = &job->fields;
    const json_t *allowed = json_object_get(choice, "allowed_tools"), *list = json_object_get(allowed, "tools");
    const char *mode = json_string_value(json_object_get(allowed, "mode"));
    size_t n = json_array_size(list);
    bool must = mode && !strcmp(mode, "required");
    if ((!must && (!mode || strcmp(mode, "auto") != 0)) || n == 0 || n > TOOLS_MAX) {
        api_error_field(
            f->error, "tool_choice",
            "tool_choice: allowed_tools: expected {\"mode\": \"auto\" or \"required\", \"tools\": [...]} with 1 "
            "to %d tools",
            TOOLS_MAX);
    }
    for (size_t i = 0; i < n && !fields_failed(f); i++) find_named(f, json_array_get(list, i), tools);
    job->allowed_tools = list;
    job->must_call = must;
}

void api_tools_parse(struct api_job *job) {
    struct fields *f = &job->fields;
    const json_t *choice = fields_get(f, "tool_choice"), *tools = api_tools_read(f);
    const char *word = json_string_value(choice);
    bool is_none = word && !strcmp(word, "none"), is_auto = !choice || (word && !strcmp(word, "auto"));
    job->many_calls = fields_bool(f, "parallel_tool_calls", true);
    if (fields_failed(f)) return;
    if (word && !strcmp(word, "required")) {
        job->must_call = true;
    } else if (!strcmp(fields_type_of(choice), "allowed_tools")) {
        parse_allowed(job, choice, tools);
    } else if (!is_none && !is_auto) {
        parse_named(job, choice, tools);
    }
    if (job->must_call && !tools && !fields_failed(f)) {
        api_error_field(f->error, "tool_choice", "tool_choice asks for a call, but there are no tools");
    }
    if (!is_none) job->request->message.tools = tools;
}

/* --- to a grammar -------------------------------------------------------------------------------- */

static json_t *function_for_grammar(const json_t *tool) {
    const json_t *function = function_of(tool), *parameters = json_object_get(function, "parameters");
    json_t *schema = json_is_object(parameters)
                         ? put_share(parameters)
                         : json_pack("{s:s, s:{}}", "type", "object", "properties"); /* OpenAI's meaning of none */
    return json_pack("{s:O, s:o, s:b}", "name", json_object_get(function, "name"), "parameters", schema, "strict",
                     json_is_true(json_object_get(function, "strict")));
}

static bool may_call(const struct api_job *job, const json_t *tool) {
    const json_t *allowed = job->allowed_tools, *name = json_object_get(function_of(tool), "name");
    if (job->named_tool) return job->named_tool == tool;
    return !allowed || find_tool(allowed, json_array_size(allowed), name);
}

/* The text of a GRAMMAR_CALLS. malloc'd; NULL without memory. */
static char *grammar_text(const struct api_job *job, const json_t *content) {
    const struct message_rules *rules = &job->request->message;
    json_t *functions = json_array();
    for (size_t i = 0; i < json_array_size(rules->tools); i++) {
        const json_t *tool = json_array_get(rules->tools, i);
        if (may_call(job, tool)) put_last(&functions, function_for_grammar(tool));
    }
    json_t *root = json_pack("{s:i, s:b, s:b, s:b, s:o, s:O*}", "form", (int)rules->form, "must", job->must_call,
                             "many", job->many_calls && !job->named_tool, "thinks",
                             rules->thought == MESSAGE_MAYBE_THOUGHT, "tools", functions, "content", content);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

void api_tools_compile(struct api_job *job, const json_t *content) {
    const struct engine *engine = job->model->engine;
    struct mo_error cause = {0};
    if (!engine->grammars) {
        api_error_field(job->fields.error, "tools", "tools need a tokenizer, and this model has none");
        return;
    }
    char *text = grammar_text(job, content);
    if (!text) {
        api_error_no_memory(job->fields.error);
        return;
    }
    int code =
        grammar_cache_get(engine->grammars, GRAMMAR_CALLS, text, strlen(text), &job->request->sched.grammar, &cause);
    free(text);
    if (!code) return;
    mo_error_prefix(&cause, "tools");
    api_error_from(job->fields.error, &cause, "tools");
}
