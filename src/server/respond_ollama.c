#include "server/respond_ollama.h"

#include <stdio.h>
#include "base/clock.h"

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

/* What every object begins with. `text` is taken over. */
static json_t *begin(const struct respond_head *head, json_t *text, bool ends) {
    struct timespec now;
    char created[OLLAMA_TIME_BYTES];
    clock_gettime(CLOCK_REALTIME, &now);
    bool is_chat = head->request->kind == API_OLLAMA_CHAT;
    if (is_chat) text = json_pack("{s:s, s:o}", "role", "assistant", "content", text);
    return json_pack("{s:o, s:s, s:o, s:b}", "model", model_name(head->request), "created_at",
                     ollama_time(created, &now), is_chat ? "message" : "response", text, "done", ends);
}

/* `more` is taken over. */
static json_t *with(json_t *object, json_t *more) {
    int code = object && more ? json_object_update(object, more) : -1;
    json_decref(more);
    if (!code) return object;
    json_decref(object);
    return NULL;
}

static json_t *add_logprobs(struct choice *choice, json_t *object) {
    if (!choice->logprobs) return object;
    json_t *all = choice_take_logprobs(choice);
    json_t *more = json_pack("{s:O}", "logprobs", json_object_get(all, "content"));
    json_decref(all);
    return with(object, more);
}

json_t *respond_ollama_piece(const struct respond_head *head, struct choice *choice) {
    return add_logprobs(choice, begin(head, choice_take_text(choice), false));
}

json_t *respond_ollama_ping(const struct respond_head *head) {
    return begin(head, json_string(""), false);
}

/* At least one where there is something to divide by it. */
static json_int_t nanoseconds(double seconds, int n) {
    json_int_t ns = (json_int_t)(1e9 * seconds);
    return ns < 1 && n > 0 ? 1 : ns < 0 ? 0 : ns;
}

/* "loading" is all that is neither prompt nor answer: the wait for a place. */
static json_t *metrics(const struct respond_head *head, const struct choice *choice) {
    double total_s = clock_now_s() - head->started_s;
    double load_s = total_s - choice->prompt_s - choice->answer_s;
    return json_pack("{s:I, s:I, s:i, s:I, s:i, s:I}", "total_duration", nanoseconds(total_s, 1), "load_duration",
                     nanoseconds(load_s, 0), "prompt_eval_count", choice->n_prompt, "prompt_eval_duration",
                     nanoseconds(choice->prompt_s, choice->n_prompt), "eval_count", choice->n_generated,
                     "eval_duration", nanoseconds(choice->answer_s, choice->n_generated));
}

/* Ids of the prompt and of what was generated: the next request's `context`. */
static json_t *context(struct choice *choice) {
    const struct token_list *prompt = &choice->prompt->ids;
    json_t *list = json_array(), *answer = choice_take_tokens(choice);
    int code = list && answer ? 0 : -1;
    for (size_t i = 0; i < prompt->n && !code; i++) code = json_array_append_new(list, json_integer(prompt->ids[i]));
    if (!code) code = json_array_extend(list, answer);
    json_decref(answer);
    if (!code) return list;
    json_decref(list);
    return NULL;
}

json_t *respond_ollama_end(const struct respond_head *head, struct choice *choice) {
    const char *reason = choice->finish == FINISH_LENGTH ? "length" : "stop";
    json_t *object = begin(head, choice_take_text(choice), true);
    object = add_logprobs(choice, with(object, json_pack("{s:s}", "done_reason", reason)));
    bool has_context = head->request->kind == API_OLLAMA_GENERATE && head->request->return_tokens;
    if (has_context) object = with(object, json_pack("{s:o}", "context", context(choice)));
    return with(object, metrics(head, choice));
}

json_t *respond_ollama_whole(const struct respond_head *head, struct choice *choices) {
    if (!head->request->only_loads) return respond_ollama_end(head, choices);
    return with(begin(head, json_string(""), true), json_pack("{s:s}", "done_reason", "load"));
}
