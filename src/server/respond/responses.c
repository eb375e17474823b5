/* Answers as OpenAI's POST /v1/responses gives them: a response with a list of items, whole or in numbered events. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "server/dialect.h"
#include "server/frame.h"
#include "server/put.h"

/* What the writer of parts works on. */
struct view {
    const struct respond_head *head;
    const struct choice *choice;
};

/* --- items --------------------------------------------------------------------------------------- */

struct item_id {
    char text[64];
};

/* The response's own, with the part's number: the same whenever it is asked for. */
static struct item_id item_id(const struct view *view, const struct part *part) {
    static const char *const PREFIXES[] = {[PART_REASONING] = "rs", [PART_TEXT] = "msg", [PART_CALL] = "fc"};
    const char *digits = strchr(view->head->id, '_');
    struct item_id id;
    snprintf(id.text, sizeof id.text, "%s_%s%04x", PREFIXES[part->kind], digits ? digits + 1 : "",
             (unsigned)parts_index(&view->choice->parts, part));
    return id;
}

static const char *item_status(const struct view *view, const struct part *part) {
    const struct parts *parts = &view->choice->parts;
    bool is_cut_off = parts->is_over && parts_index(parts, part) == parts->n - 1;
    if (part->is_open) return "in_progress";
    return is_cut_off && view->choice->finish == FINISH_LENGTH ? "incomplete" : "completed";
}

/* What an item of text or reasoning has in it. */
static json_t *content(const struct part *part, bool is_new) {
    json_t *json = json_object();
    put(&json, "type", json_string(part->kind == PART_REASONING ? "reasoning_text" : "output_text"));
    put(&json, "text", is_new ? json_string("") : put_text(&part->text));
    if (part->kind == PART_TEXT) {
        put(&json, "annotations", json_array());
        put(&json, "logprobs", json_array());
    }
    return json;
}

/* The namespace that has the function of this name in the chat, and what it is called there; or NULL. */
static const json_t *find_space(const json_t *tools, const char *name, const json_t **inner) {
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i), *space = json_object_get(tool, "name");
        const json_t *members = json_object_get(tool, "tools");
        size_t n = json_string_length(space);
        bool may_be = n > 0 && !strncmp(name, json_string_value(space), n) && !strncmp(name + n, "::", 2);
        for (size_t k = 0; may_be && k < json_array_size(members); k++) {
            *inner = json_object_get(json_array_get(members, k), "name");
            if (json_is_string(*inner) && !strcmp(name + n + 2, json_string_value(*inner))) return space;
        }
    }
    return NULL;
}

/* A function's name goes back as it was given: alone, or with its namespace. */
static void put_name(json_t **json, const struct respond_head *head, const char *name) {
    const json_t *inner, *space = find_space(json_object_get(head->request->given, "tools"), name, &inner);
    if (space) put(json, "namespace", put_share(space));
    put(json, "name", space ? put_share(inner) : json_string(name));
}

static json_t *item(const struct view *view, const struct part *part) {
    static const char *const TYPES[] = {
        [PART_REASONING] = "reasoning", [PART_TEXT] = "message", [PART_CALL] = "function_call"};
    json_t *json = json_object();
    put(&json, "id", json_string(item_id(view, part).text));
    put(&json, "type", json_string(TYPES[part->kind]));
    put(&json, "status", json_string(item_status(view, part)));
    if (part->kind == PART_CALL) {
        put(&json, "call_id", json_string(part->call_id));
        put_name(&json, view->head, part->name);
        put(&json, "arguments", put_text(&part->text));
        return json;
    }
    if (part->kind == PART_REASONING) put(&json, "summary", json_array());
    if (part->kind == PART_TEXT) put(&json, "role", json_string("assistant"));
    put(&json, "content", part->is_open ? json_array() : json_pack("[o]", content(part, false)));
    return json;
}

static json_t *items(const struct view *view) {
    const struct parts *parts = &view->choice->parts;
    json_t *list = json_array();
    for (int i = 0; i < parts->n; i++) put_last(&list, item(view, &parts->list[i]));
    return list;
}

/* --- the response -------------------------------------------------------------------------------- */

static json_t *usage(const struct choice *choice) {
    json_int_t prompt = choice->n_prompt, answer = choice->n_generated;
    return json_pack("{s:I, s:{s:i, s:i}, s:I, s:{s:i}, s:I}", "input_tokens", prompt, "input_tokens_details",
                     "cached_tokens", choice->n_cached, "cache_write_tokens", 0, "output_tokens", answer,
                     "output_tokens_details", "reasoning_tokens", choice->n_reasoning, "total_tokens", prompt + answer);
}

/* What the request said, or what stands for its saying nothing; `otherwise` is taken over. */
static void put_given(json_t **json, const struct respond_head *head, const char *key, json_t *otherwise) {
    const json_t *given = json_object_get(head->request->given, key);
    bool is_there = given && !json_is_null(given);
    put(json, key, is_there ? put_share(given) : otherwise);
    if (is_there) json_decref(otherwise);
}

/* A float as people write it. */
static json_t *number(float value) {
    return json_real(round((double)value * 1e6) / 1e6);
}

static void put_settings(json_t **json, const struct respond_head *head) {
    const struct sampling *sampling = &head->request->sched.sampling;
    put_given(json, head, "instructions", json_null());
    put_given(json, head, "max_output_tokens", json_null());
    put_given(json, head, "metadata", json_object());
    put_given(json, head, "parallel_tool_calls", json_true());
    put_given(json, head, "reasoning", json_pack("{s:n, s:n}", "effort", "summary"));
    put_given(json, head, "temperature", number(sampling->temperature));
    put_given(json, head, "text", json_pack("{s:{s:s}}", "format", "type", "text"));
    put_given(json, head, "tool_choice", json_string("auto"));
    put_given(json, head, "tools", json_array());
    put_given(json, head, "top_p", number(sampling->top_p));
    put_given(json, head, "truncation", json_string("disabled"));
    put_given(json, head, "user", json_null());
    put(json, "background", json_false());
    put(json, "previous_response_id", json_null());
    put(json, "store", json_false());
}

static json_t *response(const struct view *view, const char *status, const struct api_error *error) {
    const struct respond_head *head = view->head;
    bool is_incomplete = !strcmp(status, "incomplete");
    json_t *json = json_object();
    put(&json, "id", json_string(head->id));
    put(&json, "object", json_string("response"));
    put(&json, "created_at", json_integer((json_int_t)head->created));
    put(&json, "status", json_string(status));
    put(&json, "error",
        error ? json_pack("{s:s, s:s}", "code", "server_error", "message", error->message) : json_null());
    put(&json, "incomplete_details", is_incomplete ? json_pack("{s:s}", "reason", "max_output_tokens") : json_null());
    put(&json, "model", json_string(head->request->model));
    put(&json, "output", items(view));
    put(&json, "usage", strcmp(status, "in_progress") != 0 ? usage(view->choice) : json_null());
    put_settings(&json, head);
    return json;
}

static const char *end_status(const struct choice *choice) {
    return choice->finish == FINISH_LENGTH ? "incomplete" : "completed";
}

/* --- events -------------------------------------------------------------------------------------- */

/* Takes `json` over; it gets its type and number. */
static int add(struct parts *parts, const char *type, json_t *json) {
    put(&json, "type", json_string(type));
    put(&json, "sequence_number", json_integer(parts->n_events++));
    return frame_add(parts->out, type, json);
}

/* Of a part: where it stands, and more. */
static json_t *at_part(const struct view *view, const struct part *part) {
    json_t *json = json_object();
    put(&json, "item_id", json_string(item_id(view, part).text));
    put(&json, "output_index", json_integer(parts_index(&view->choice->parts, part)));
    if (part->kind != PART_CALL) put(&json, "content_index", json_integer(0));
    return json;
}

static int add_item(const struct view *view, struct parts *parts, const struct part *part, const char *type) {
    return add(parts, type,
               json_pack("{s:i, s:o}", "output_index", parts_index(parts, part), "item", item(view, part)));
}

static int add_content(const struct view *view, struct parts *parts, const struct part *part, const char *type,
                       bool is_new) {
    json_t *json = at_part(view, part);
    put(&json, "part", content(part, is_new));
    return add(parts, type, json);
}

static int item_begin(void *context, struct parts *parts, const struct part *part) {
    int code = add_item(context, parts, part, "response.output_item.added");
    if (code || part->kind == PART_CALL) return code;
    return add_content(context, parts, part, "response.content_part.added", true);
}

static int item_grow(void *context, struct parts *parts, const struct part *part, const char *text, size_t size) {
    static const char *const TYPES[] = {[PART_REASONING] = "response.reasoning_text.delta",
                                        [PART_TEXT] = "response.output_text.delta",
                                        [PART_CALL] = "response.function_call_arguments.delta"};
    json_t *json = at_part(context, part);
    put(&json, "delta", json_stringn(text, size));
    if (part->kind == PART_TEXT) put(&json, "logprobs", json_array());
    return add(parts, TYPES[part->kind], json);
}

static int item_end(void *context, struct parts *parts, const struct part *part) {
    static const char *const TYPES[] = {[PART_REASONING] = "response.reasoning_text.done",
                                        [PART_TEXT] = "response.output_text.done",
                                        [PART_CALL] = "response.function_call_arguments.done"};
    json_t *json = at_part(context, part);
    put(&json, part->kind == PART_CALL ? "arguments" : "text", put_text(&part->text));
    if (part->kind == PART_CALL) put_name(&json, ((const struct view *)context)->head, part->name);
    if (part->kind == PART_TEXT) put(&json, "logprobs", json_array());
    int code = add(parts, TYPES[part->kind], json);
    if (!code && part->kind != PART_CALL) {
        code = add_content(context, parts, part, "response.content_part.done", false);
    }
    return code ? code : add_item(context, parts, part, "response.output_item.done");
}

/* --- whole, and streamed ------------------------------------------------------------------------- */

static int add_response(const struct view *view, struct parts *parts, const char *type, const char *status,
                        const struct api_error *error) {
    return add(parts, type, json_pack("{s:o}", "response", response(view, status, error)));
}

static int begin(const struct view *view, struct parts *parts) {
    parts->has_begun = true;
    int code = add_response(view, parts, "response.created", "in_progress", NULL);
    return code ? code : add_response(view, parts, "response.in_progress", "in_progress", NULL);
}

static json_t *responses_whole(const struct respond_head *head, struct choice *choice, int n_choices) {
    (void)n_choices; /* one */
    struct view view = {head, choice};
    const struct parts_writer writer = {item_begin, item_grow, item_end, &view};
    int code = choice_take_parts(choice, &writer);
    if (!code) code = parts_finish(&choice->parts, &writer);
    return code ? NULL : response(&view, end_status(choice), NULL);
}

static int responses_stream(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    struct view view = {head, choice};
    const struct parts_writer writer = {item_begin, item_grow, item_end, &view};
    struct parts *parts = &choice->parts;
    parts->out = out;
    int code = parts->has_begun ? 0 : begin(&view, parts);
    if (!code) code = choice_take_parts(choice, &writer);
    if (code || choice->finish == FINISH_NONE) return code;
    code = parts_finish(parts, &writer);
    if (code) return code;
    bool is_whole = choice->finish != FINISH_LENGTH;
    return add_response(&view, parts, is_whole ? "response.completed" : "response.incomplete", end_status(choice),
                        NULL);
}

/* The response fails: the last event. */
static int responses_stream_error(struct buffer *out, const struct respond_head *head, struct choice *choice,
                                  const struct api_error *error) {
    struct view view = {head, choice};
    struct parts *parts = &choice->parts;
    parts->out = out;
    int code = parts->has_begun ? 0 : begin(&view, parts);
    return code ? code : add_response(&view, parts, "response.failed", "failed", error);
}

const struct dialect dialect_responses = {
    .id_prefix = "resp_",
    .stream_type = "text/event-stream",
    .error = api_error_json,
    .whole = responses_whole,
    .stream = responses_stream,
    .stream_error = responses_stream_error,
    .stream_ping = dialect_stream_ping,
};
