/* OpenAI's chats and completions. */
#include "server/dialect.h"
#include "server/frame.h"
#include "server/put.h"
#include "server/respond/llama.h"
#include "server/respond/message.h"

static json_t *finish_reason(const struct choice *choice) {
    if (choice->finish == FINISH_NONE) return json_null();
    if (choice->finish == FINISH_LENGTH) return json_string("length");
    return json_string(message_has_called(&choice->message) ? "tool_calls" : "stop");
}

/* What stopped it, if the request named it: a string, or an id of stop_token_ids. */
static json_t *stop_reason(const struct choice *choice) {
    const struct api_request *request = choice->request;
    const char *stop = choice_stop_string(choice);
    if (stop) return json_string(stop);
    for (int i = 0; i < request->n_named_stop_tokens; i++) {
        if (request->stop_tokens[i] == choice->stop_token) return json_integer(choice->stop_token);
    }
    return json_null();
}

static json_t *usage(const struct respond_head *head, const struct choice *choices, int n_choices) {
    json_int_t prompt = 0, answer = 0, cached = 0, reasoning = 0;
    for (int i = 0; i < n_choices; i++) {
        answer += choices[i].n_generated;
        reasoning += choices[i].n_reasoning;
        if (i % head->request->n) continue; /* the choices of a prompt share it */
        prompt += choices[i].n_prompt;
        cached += choices[i].n_cached;
    }
    return json_pack("{s:I, s:I, s:I, s:{s:I}, s:I, s:I, s:{s:I}}", "prompt_tokens", prompt, "completion_tokens",
                     answer, "total_tokens", prompt + answer, "prompt_tokens_details", "cached_tokens", cached,
                     "prompt_cache_hit_tokens", cached, "prompt_cache_miss_tokens", prompt - cached,
                     "completion_tokens_details", "reasoning_tokens", reasoning);
}

/* `choices` and, if it has one, `usage_json` are taken over. */
static json_t *object(const struct respond_head *head, const char *kind, json_t *choices, bool has_usage,
                      json_t *usage_json) {
    json_t *json = json_pack("{s:s, s:s, s:I, s:s, s:s, s:o}", "id", head->id, "object", kind, "created",
                             (json_int_t)head->created, "model", head->request->model, "system_fingerprint",
                             head->fingerprint, "choices", choices);
    if (has_usage) put(&json, "usage", usage_json);
    return json;
}

static const char *object_name(const struct respond_head *head, bool is_chunk) {
    if (head->request->kind == API_COMPLETION) return "text_completion";
    return is_chunk ? "chat.completion.chunk" : "chat.completion";
}

/* llama.cpp's, for those who ask. */
static json_t *add_timings(const struct respond_head *head, const struct choice *choice, json_t *json) {
    if (head->request->timings) put(&json, "timings", respond_timings(choice));
    return json;
}

static json_t *chunk(const struct respond_head *head, const struct choice *choice, json_t *shown) {
    bool per_chunk = head->request->usage_per_chunk, has_usage = per_chunk || head->request->include_usage;
    json_t *usage_json = per_chunk ? usage(head, choice, 1) : json_null();
    return add_timings(head, choice,
                       object(head, object_name(head, true), json_pack("[o]", shown), has_usage, usage_json));
}

/* vLLM's, for those who ask. `shown` is taken over, and what comes back is the caller's. */
static json_t *add_ids(struct choice *choice, json_t *shown) {
    if (choice->request->return_tokens) put(&shown, "token_ids", choice_take_tokens(choice));
    return shown;
}

static json_t *add_prompt_ids(const struct choice *choice, json_t *shown) {
    if (choice->request->return_tokens) put(&shown, "prompt_token_ids", choice_prompt_tokens(choice));
    return shown;
}

static json_t *completion_choice(struct choice *choice) {
    json_t *shown = json_pack("{s:i, s:o, s:o, s:o, s:o}", "index", choice->index, "text", choice_take_text(choice),
                              "logprobs", choice_take_logprobs(choice), "finish_reason", finish_reason(choice),
                              "stop_reason", stop_reason(choice));
    bool is_first = !choice->head_sent;
    choice->head_sent = true;
    return add_ids(choice, is_first ? add_prompt_ids(choice, shown) : shown);
}

static json_t *chat_choice(struct choice *choice) {
    json_t *message = respond_message(&choice->message);
    message_clear(&choice->message);
    if (!message) return NULL;
    return add_ids(choice, json_pack("{s:i, s:o, s:o, s:o, s:o}", "index", choice->index, "message", message,
                                     "logprobs", choice_take_logprobs(choice), "finish_reason", finish_reason(choice),
                                     "stop_reason", stop_reason(choice)));
}

static json_t *openai_whole(const struct respond_head *head, struct choice *choices, int n_choices) {
    json_t *list = json_array();
    for (int i = 0; i < n_choices; i++) {
        put_last(&list, head->request->kind == API_CHAT ? chat_choice(&choices[i]) : completion_choice(&choices[i]));
    }
    json_t *json = object(head, object_name(head, false), list, true, usage(head, choices, n_choices));
    if (head->request->kind == API_CHAT) json = add_prompt_ids(choices, json);
    return add_timings(head, choices, json);
}

/* --- streams: a chat's chunks are the role, pieces of the message, logprobs without text, the end -- */

static json_t *role_chunk(const struct respond_head *head, const struct choice *choice) {
    return add_prompt_ids(choice, chunk(head, choice,
                                        json_pack("{s:i, s:{s:s, s:s}, s:n, s:n}", "index", choice->index, "delta",
                                                  "role", "assistant", "content", "", "logprobs", "finish_reason")));
}

/* `delta` is taken over. */
static json_t *delta_chunk(const struct respond_head *head, struct choice *choice, json_t *delta) {
    return chunk(head, choice,
                 add_ids(choice, json_pack("{s:i, s:o, s:o, s:n}", "index", choice->index, "delta", delta, "logprobs",
                                           choice_take_logprobs(choice), "finish_reason")));
}

static json_t *piece_chunk(const struct respond_head *head, struct choice *choice, const struct message_piece *piece) {
    return delta_chunk(head, choice, respond_delta(piece));
}

static json_t *logprobs_chunk(const struct respond_head *head, struct choice *choice) {
    return delta_chunk(head, choice, json_pack("{s:s}", "content", ""));
}

static json_t *end_chunk(const struct respond_head *head, struct choice *choice) {
    return chunk(head, choice,
                 add_ids(choice, json_pack("{s:i, s:{}, s:o, s:o, s:o}", "index", choice->index, "delta", "logprobs",
                                           choice_take_logprobs(choice), "finish_reason", finish_reason(choice),
                                           "stop_reason", stop_reason(choice))));
}

static json_t *usage_chunk(const struct respond_head *head, const struct choice *choices, int n_choices) {
    return object(head, object_name(head, true), json_array(), true, usage(head, choices, n_choices));
}

/* Its pieces; logprobs go with the first. */
static int add_pieces(struct buffer *out, const struct respond_head *head, struct choice *choice, bool *added) {
    int code = 0;
    for (int i = 0; !code && i < message_count(&choice->message); i++) {
        struct message_piece piece = message_at(&choice->message, i);
        if (!respond_has_delta(&piece)) continue;
        code = frame_add(out, NULL, piece_chunk(head, choice, &piece));
        *added = true;
    }
    message_clear(&choice->message);
    return code;
}

static int chat_stream(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    int code = 0;
    bool ends = choice->finish != FINISH_NONE, added = false;
    if (!choice->head_sent) code = frame_add(out, NULL, role_chunk(head, choice));
    choice->head_sent = true;
    if (!code) code = add_pieces(out, head, choice, &added);
    /* a token without text (its end, a mark, or half a character) leaves its logprobs to the chunk that ends */
    if (!code && !added && choice->logprobs && !ends) code = frame_add(out, NULL, logprobs_chunk(head, choice));
    if (!code && ends) code = frame_add(out, NULL, end_chunk(head, choice));
    return code;
}

/* Text, logprobs and the end all in one. */
static int completion_stream(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    if (choice->text.size == 0 && !choice->logprobs && choice->finish == FINISH_NONE) return 0;
    return frame_add(out, NULL, chunk(head, choice, completion_choice(choice)));
}

/* The usage, if asked for, and [DONE]. */
static int openai_stream_end(struct buffer *out, const struct respond_head *head, const struct choice *choices,
                             int n_choices) {
    int code = head->request->include_usage ? frame_add(out, NULL, usage_chunk(head, choices, n_choices)) : 0;
    buffer_add_text(out, "data: [DONE]\n\n");
    return out->failed ? -1 : code;
}

const struct dialect dialect_chat = {
    .id_prefix = "chatcmpl-",
    .stream_type = "text/event-stream",
    .error = api_error_json,
    .whole = openai_whole,
    .stream = chat_stream,
    .stream_end = openai_stream_end,
    .stream_error = dialect_stream_error,
    .stream_ping = dialect_stream_ping,
};

const struct dialect dialect_completion = {
    .id_prefix = "cmpl-",
    .stream_type = "text/event-stream",
    .error = api_error_json,
    .whole = openai_whole,
    .stream = completion_stream,
    .stream_end = openai_stream_end,
    .stream_error = dialect_stream_error,
    .stream_ping = dialect_stream_ping,
};
