/* Answers as Anthropic's POST /v1/messages gives them: a message of blocks, whole or told block by block. */
#include <string.h>
#include "base/json.h"
#include "server/dialect.h"
#include "server/frame.h"
#include "server/put.h"

/* --- the message --------------------------------------------------------------------------------- */

/* Tokens found in the cache are counted apart, as the API does; all three together are the prompt. */
static json_t *usage(const struct choice *choice) {
    json_t *json = json_object();
    put(&json, "input_tokens", json_integer(choice->n_prompt - choice->n_cached));
    put(&json, "cache_creation_input_tokens", json_integer(0));
    put(&json, "cache_read_input_tokens", json_integer(choice->n_cached));
    put(&json, "output_tokens", json_integer(choice->n_generated));
    put(&json, "output_tokens_details", json_pack("{s:i}", "thinking_tokens", choice->n_reasoning));
    return json;
}

static const char *stop_reason(const struct choice *choice) {
    const struct api_request *request = choice->request;
    bool is_full = choice->n_prompt + choice->n_generated >= request->context;
    if (choice->finish == FINISH_LENGTH) {
        return is_full && choice->n_generated < request->sched.max_tokens ? "model_context_window_exceeded"
                                                                          : "max_tokens";
    }
    if (message_has_called(&choice->message)) return "tool_use";
    return choice_stop_string(choice) ? "stop_sequence" : "end_turn";
}

static void put_stop(json_t **json, const struct choice *choice) {
    bool has_ended = choice->finish != FINISH_NONE;
    const char *reason = has_ended ? stop_reason(choice) : NULL;
    bool is_string = reason && !strcmp(reason, "stop_sequence");
    put(json, "stop_reason", reason ? json_string(reason) : json_null());
    put(json, "stop_sequence", is_string ? json_string(choice_stop_string(choice)) : json_null());
}

static json_t *message(const struct respond_head *head, const struct choice *choice, json_t *content) {
    json_t *json = json_object();
    put(&json, "id", json_string(head->id));
    put(&json, "type", json_string("message"));
    put(&json, "role", json_string("assistant"));
    put(&json, "model", json_string(head->request->model));
    put(&json, "content", content);
    put_stop(&json, choice);
    put(&json, "usage", usage(choice));
    return json;
}

/* --- blocks -------------------------------------------------------------------------------------- */

/* Arguments that the end cut off are no JSON: the call is shown without any. */
static json_t *call_input(const struct part *part) {
    json_t *input = json_read_object(part->text.data, part->text.size);
    return input ? input : json_object();
}

/* `is_new`: as it is told when it begins, with nothing in it. Thoughts are not signed here. */
static json_t *block(const struct part *part, bool is_new) {
    json_t *json = json_object();
    if (part->kind == PART_CALL) {
        put(&json, "type", json_string("tool_use"));
        put(&json, "id", json_string(part->call_id));
        put(&json, "name", json_string(part->name));
        put(&json, "input", is_new ? json_object() : call_input(part));
        return json;
    }
    bool is_thought = part->kind == PART_REASONING;
    const char *type = is_thought ? "thinking" : "text";
    put(&json, "type", json_string(type));
    put(&json, type, is_new ? json_string("") : put_text(&part->text));
    if (is_thought) put(&json, "signature", json_string(""));
    return json;
}

static int add(struct parts *parts, const char *event, json_t *json) {
    return frame_add(parts->out, event, json);
}

static int add_delta(struct parts *parts, const struct part *part, const char *type, const char *key, json_t *text) {
    return add(parts, "content_block_delta",
               json_pack("{s:s, s:i, s:{s:s, s:o}}", "type", "content_block_delta", "index", parts_index(parts, part),
                         "delta", "type", type, key, text));
}

static int block_begin(void *context, struct parts *parts, const struct part *part) {
    (void)context;
    return add(parts, "content_block_start",
               json_pack("{s:s, s:i, s:o}", "type", "content_block_start", "index", parts_index(parts, part),
                         "content_block", block(part, true)));
}

static int block_grow(void *context, struct parts *parts, const struct part *part, const char *text, size_t size) {
    (void)context;
    json_t *json = json_stringn(text, size);
    if (part->kind == PART_CALL) return add_delta(parts, part, "input_json_delta", "partial_json", json);
    if (part->kind == PART_REASONING) return add_delta(parts, part, "thinking_delta", "thinking", json);
    return add_delta(parts, part, "text_delta", "text", json);
}

static int block_end(void *context, struct parts *parts, const struct part *part) {
    (void)context;
    int code = 0;
    if (part->kind == PART_REASONING) code = add_delta(parts, part, "signature_delta", "signature", json_string(""));
    if (code) return code;
    return add(parts, "content_block_stop",
               json_pack("{s:s, s:i}", "type", "content_block_stop", "index", parts_index(parts, part)));
}

static const struct parts_writer WRITER = {block_begin, block_grow, block_end, NULL};

/* --- whole, and streamed ------------------------------------------------------------------------- */

static json_t *messages_whole(const struct respond_head *head, struct choice *choice, int n_choices) {
    (void)n_choices; /* one */
    struct parts *parts = &choice->parts;
    json_t *content = json_array();
    int code = choice_take_parts(choice, &WRITER);
    if (!code) code = parts_finish(parts, &WRITER);
    for (int i = 0; i < parts->n && !code; i++) put_last(&content, block(&parts->list[i], false));
    if (!code) return message(head, choice, content);
    json_decref(content);
    return NULL;
}

static int begin(struct parts *parts, const struct respond_head *head, const struct choice *choice) {
    struct choice begun = *choice; /* it may have ended already, which is not told yet */
    begun.finish = FINISH_NONE;
    parts->has_begun = true;
    return add(parts, "message_start",
               json_pack("{s:s, s:o}", "type", "message_start", "message", message(head, &begun, json_array())));
}

static int end(struct parts *parts, const struct choice *choice) {
    json_t *delta = json_object();
    put_stop(&delta, choice);
    int code = add(parts, "message_delta",
                   json_pack("{s:s, s:o, s:o}", "type", "message_delta", "delta", delta, "usage", usage(choice)));
    return code ? code : add(parts, "message_stop", json_pack("{s:s}", "type", "message_stop"));
}

static int messages_stream(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    struct parts *parts = &choice->parts;
    parts->out = out;
    int code = parts->has_begun ? 0 : begin(parts, head, choice);
    if (!code) code = choice_take_parts(choice, &WRITER);
    if (code || choice->finish == FINISH_NONE) return code;
    code = parts_finish(parts, &WRITER);
    return code ? code : end(parts, choice);
}

static int messages_stream_error(struct buffer *out, const struct respond_head *head, struct choice *choices,
                                 const struct api_error *error) {
    (void)head, (void)choices;
    return frame_add(out, "error", api_error_anthropic(error));
}

static int messages_stream_ping(struct buffer *out, const struct respond_head *head) {
    (void)head;
    return frame_add(out, "ping", json_pack("{s:s}", "type", "ping"));
}

const struct dialect dialect_messages = {
    .id_prefix = "msg_",
    .stream_type = "text/event-stream",
    .error = api_error_anthropic,
    .whole = messages_whole,
    .stream = messages_stream,
    .stream_error = messages_stream_error,
    .stream_ping = messages_stream_ping,
};
