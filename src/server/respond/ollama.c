#include "server/respond/ollama.h"

#include <stdio.h>
#include "base/clock.h"
#include "base/json.h"
#include "server/frame.h"
#include "server/put.h"

const char *ollama_time(char *text, const struct timespec *time) {
    struct tm tm;
    gmtime_r(&time->tv_sec, &tm);
    size_t n = strftime(text, OLLAMA_TIME_BYTES, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + n, OLLAMA_TIME_BYTES - n, ".%06ldZ", time->tv_nsec / 1000);
    return text;
}

/* The model as the client calls it. */
static json_t *model_name(const struct api_request *request) {
    json_t *asked = json_object_get(request->root, "model");
    return json_string_length(asked) > 0 ? json_incref(asked) : json_string(request->model);
}

/* --- what was said ------------------------------------------------------------------------------- */

struct said {
    struct buffer thought, content;
    json_t *calls; /* list; NULL without memory */
    struct buffer name, arguments;
    char id[40];
};

/* A call that is whole. One that was cut off is left out: its arguments are no object. */
static int add_call(struct said *said, int index) {
    json_t *arguments = json_read_object(said->arguments.data, said->arguments.size);
    if (!arguments) return 0;
    return json_array_append_new(said->calls, json_pack("{s:s, s:{s:i, s:o, s:o}}", "id", said->id, "function", "index",
                                                        index, "name", put_text(&said->name), "arguments", arguments));
}

static int add_piece(struct said *said, const struct message_piece *piece) {
    switch (piece->kind) {
    case MESSAGE_REASONING:
        buffer_add(&said->thought, piece->text, piece->size);
        return 0;
    case MESSAGE_CONTENT:
        buffer_add(&said->content, piece->text, piece->size);
        return 0;
    case MESSAGE_CALL:
        said->name.size = said->arguments.size = 0;
        buffer_add(&said->name, piece->text, piece->size);
        snprintf(said->id, sizeof said->id, "%s", piece->id);
        return 0;
    case MESSAGE_ARGUMENTS:
        buffer_add(&said->arguments, piece->text, piece->size);
        return 0;
    case MESSAGE_CALL_END:
        return add_call(said, piece->call);
    }
    return 0;
}

static void said_free(struct said *said) {
    buffer_free(&said->thought);
    buffer_free(&said->content);
    buffer_free(&said->name);
    buffer_free(&said->arguments);
    json_decref(said->calls);
}

/* The pieces of a message, which are then gone; `message` may be NULL. -1 without memory. */
static int said_take(struct said *said, struct message *message) {
    *said = (struct said){.calls = json_array()};
    int code = said->calls ? 0 : -1;
    for (int i = 0; message && !code && i < message_count(message); i++) {
        struct message_piece piece = message_at(message, i);
        code = add_piece(said, &piece);
    }
    if (message) message_clear(message);
    bool failed = said->thought.failed || said->content.failed || said->name.failed || said->arguments.failed;
    return failed ? -1 : code;
}

/* --- objects ------------------------------------------------------------------------------------- */

/* "message", or what of it a prompt's answer has: into `object`. */
static void put_said(json_t **object, const struct respond_head *head, const struct said *said) {
    bool is_chat = head->request->kind == API_OLLAMA_CHAT;
    json_t *message = is_chat ? json_object() : NULL, **into = is_chat ? &message : object;
    put(into, is_chat ? "content" : "response", put_text(&said->content));
    if (said->thought.size > 0) put(into, "thinking", put_text(&said->thought));
    if (json_array_size(said->calls) > 0) put(into, "tool_calls", json_incref(said->calls));
    if (!is_chat) return;
    put(into, "role", json_string("assistant"));
    put(object, "message", message);
}

/* What every object begins with. The message's pieces are taken; it may be NULL. */
static json_t *begin(const struct respond_head *head, struct message *message, bool ends) {
    struct timespec now;
    struct said said;
    char created[OLLAMA_TIME_BYTES];
    clock_gettime(CLOCK_REALTIME, &now);
    json_t *object = said_take(&said, message) ? NULL : json_object();
    put(&object, "model", model_name(head->request));
    put(&object, "created_at", json_string(ollama_time(created, &now)));
    put_said(&object, head, &said);
    said_free(&said);
    put(&object, "done", json_boolean(ends));
    return object;
}

static void put_logprobs(json_t **object, struct choice *choice) {
    if (!choice->logprobs) return;
    json_t *all = choice_take_logprobs(choice);
    put(object, "logprobs", put_share(json_object_get(all, "content")));
    json_decref(all);
}

/* A call is shown when it is whole. */
static bool has_piece(const struct choice *choice) {
    int n = message_count(&choice->message);
    enum message_kind last = n > 0 ? message_at(&choice->message, n - 1).kind : MESSAGE_CALL;
    bool is_open = last == MESSAGE_CALL || last == MESSAGE_ARGUMENTS;
    return n > 0 && (!is_open || choice->finish != FINISH_NONE);
}

static json_t *piece(const struct respond_head *head, struct choice *choice) {
    json_t *object = begin(head, has_piece(choice) ? &choice->message : NULL, false);
    put_logprobs(&object, choice);
    return object;
}

/* At least one where there is something to divide by it. */
static json_int_t nanoseconds(double seconds, int n) {
    json_int_t ns = (json_int_t)(1e9 * seconds);
    return ns < 1 && n > 0 ? 1 : ns < 0 ? 0 : ns;
}

/* "loading" is all that is neither prompt nor answer: the wait for a place. */
static void put_metrics(json_t **object, const struct respond_head *head, const struct choice *choice) {
    double total_s = clock_now_s() - head->started_s;
    double load_s = total_s - choice->prompt_s - choice->answer_s;
    put(object, "total_duration", json_integer(nanoseconds(total_s, 1)));
    put(object, "load_duration", json_integer(nanoseconds(load_s, 0)));
    put(object, "prompt_eval_count", json_integer(choice->n_prompt));
    put(object, "prompt_eval_duration", json_integer(nanoseconds(choice->prompt_s, choice->n_prompt)));
    put(object, "eval_count", json_integer(choice->n_generated));
    put(object, "eval_duration", json_integer(nanoseconds(choice->answer_s, choice->n_generated)));
}

/* Ids of the prompt and of what was generated: the next request's `context`. */
static json_t *context(struct choice *choice) {
    json_t *list = choice_prompt_tokens(choice), *answer = choice_take_tokens(choice);
    int code = list && answer ? json_array_extend(list, answer) : -1;
    json_decref(answer);
    if (!code) return list;
    json_decref(list);
    return NULL;
}

static json_t *end(const struct respond_head *head, struct choice *choice) {
    json_t *object = begin(head, &choice->message, true);
    put(&object, "done_reason", json_string(choice->finish == FINISH_LENGTH ? "length" : "stop"));
    put_logprobs(&object, choice);
    bool has_context = head->request->kind == API_OLLAMA_GENERATE && head->request->return_tokens;
    if (has_context) put(&object, "context", context(choice));
    put_metrics(&object, head, choice);
    return object;
}

static json_t *ollama_whole(const struct respond_head *head, struct choice *choices, int n_choices) {
    (void)n_choices; /* one, or none */
    if (!head->request->only_loads) return end(head, choices);
    json_t *object = begin(head, NULL, true);
    put(&object, "done_reason", json_string("load"));
    return object;
}

/* A call is one object: it waits until it is whole. */
static int ollama_stream(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    bool ends = choice->finish != FINISH_NONE, shows = has_piece(choice) || (choice->logprobs && !ends);
    int code = shows ? frame_add_line(out, piece(head, choice)) : 0;
    if (!code && ends) code = frame_add_line(out, end(head, choice));
    return code;
}

static int ollama_stream_error(struct buffer *out, const struct respond_head *head, struct choice *choices,
                               const struct api_error *error) {
    (void)head, (void)choices;
    return frame_add_line(out, api_error_json_plain(error));
}

/* A piece without text: something that every client understands. */
static int ollama_stream_ping(struct buffer *out, const struct respond_head *head) {
    return frame_add_line(out, begin(head, NULL, false));
}

const struct dialect dialect_ollama = {
    .id_prefix = "cmpl-",
    .stream_type = "application/x-ndjson",
    .error = api_error_json_plain,
    .whole = ollama_whole,
    .stream = ollama_stream,
    .stream_error = ollama_stream_error,
    .stream_ping = ollama_stream_ping,
};
