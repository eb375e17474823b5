#include "server/respond.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include "base/clock.h"
#include "server/respond_llama.h"
#include "server/respond_message.h"
#include "server/respond_ollama.h"
#include "server/respond_anthropic.h"
#include "server/respond_responses.h"

static const char *id_prefix(enum api_kind kind) {
    if (kind == API_MESSAGES) return "msg_";
    if (kind == API_RESPONSES) return "resp_";
    return kind == API_CHAT ? "chatcmpl-" : "cmpl-";
}

void respond_head_init(struct respond_head *head, const struct api_request *request, const char *fingerprint) {
    uint64_t random[2] = {0};
    if (getrandom(random, sizeof random, 0) < 0) random[0] = (uint64_t)(uintptr_t)head; /* ids need not be secret */
    *head = (struct respond_head){
        .created = time(NULL), .started_s = clock_now_s(), .fingerprint = fingerprint, .request = request};
    snprintf(head->id, sizeof head->id, "%s%016" PRIx64 "%016" PRIx64, id_prefix(request->kind), random[0], random[1]);
}

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

/* `choices` and `usage_json` (may be NULL: the key is left out) are taken over. */
static json_t *object(const struct respond_head *head, const char *kind, json_t *choices, json_t *usage_json) {
    json_t *json = json_pack("{s:s, s:s, s:I, s:s, s:s, s:o}", "id", head->id, "object", kind, "created",
                             (json_int_t)head->created, "model", head->request->model, "system_fingerprint",
                             head->fingerprint, "choices", choices);
    if (json && usage_json) {
        json_object_set_new(json, "usage", usage_json);
    } else {
        json_decref(usage_json);
    }
    return json;
}

static const char *object_name(const struct respond_head *head, bool is_chunk) {
    if (head->request->kind == API_COMPLETION) return "text_completion";
    return is_chunk ? "chat.completion.chunk" : "chat.completion";
}

/* llama.cpp's, for those who ask. */
static json_t *add_timings(const struct respond_head *head, const struct choice *choice, json_t *json) {
    if (json && head->request->timings) json_object_set_new(json, "timings", respond_timings(choice));
    return json;
}

static json_t *chunk(const struct respond_head *head, const struct choice *choice, json_t *shown) {
    bool per_chunk = head->request->usage_per_chunk;
    json_t *usage_json = per_chunk ? usage(head, choice, 1) : head->request->include_usage ? json_null() : NULL;
    return add_timings(head, choice, object(head, object_name(head, true), json_pack("[o]", shown), usage_json));
}

static json_t *completion_choice(struct choice *choice) {
    return json_pack("{s:i, s:o, s:o, s:o, s:o}", "index", choice->index, "text", choice_take_text(choice), "logprobs",
                     choice_take_logprobs(choice), "finish_reason", finish_reason(choice), "stop_reason",
                     stop_reason(choice));
}

static json_t *chat_choice(struct choice *choice) {
    json_t *message = respond_message(&choice->message);
    message_clear(&choice->message);
    if (!message) return NULL;
    return json_pack("{s:i, s:o, s:o, s:o, s:o}", "index", choice->index, "message", message, "logprobs",
                     choice_take_logprobs(choice), "finish_reason", finish_reason(choice), "stop_reason",
                     stop_reason(choice));
}

json_t *respond_whole(const struct respond_head *head, struct choice *choices, int n_choices) {
    if (api_is_llama(head->request->kind)) return respond_llama_whole(head, choices, n_choices);
    if (api_is_ollama(head->request->kind)) return respond_ollama_whole(head, choices);
    if (head->request->kind == API_MESSAGES) return respond_anthropic_whole(head, choices);
    if (head->request->kind == API_RESPONSES) return respond_responses_whole(head, choices);
    json_t *list = json_array();
    for (int i = 0; i < n_choices; i++) {
        json_array_append_new(list, head->request->kind == API_CHAT ? chat_choice(&choices[i])
                                                                    : completion_choice(&choices[i]));
    }
    if (list && json_array_size(list) != (size_t)n_choices) {
        json_decref(list);
        return NULL;
    }
    return add_timings(head, choices, object(head, object_name(head, false), list, usage(head, choices, n_choices)));
}

json_t *respond_chunk(const struct respond_head *head, struct choice *choice) {
    return chunk(head, choice, completion_choice(choice));
}

json_t *respond_chat_role(const struct respond_head *head, const struct choice *choice) {
    return chunk(head, choice,
                 json_pack("{s:i, s:{s:s, s:s}, s:n, s:n}", "index", choice->index, "delta", "role", "assistant",
                           "content", "", "logprobs", "finish_reason"));
}

/* `delta` is taken over. */
static json_t *delta_chunk(const struct respond_head *head, struct choice *choice, json_t *delta) {
    return chunk(head, choice,
                 json_pack("{s:i, s:o, s:o, s:n}", "index", choice->index, "delta", delta, "logprobs",
                           choice_take_logprobs(choice), "finish_reason"));
}

json_t *respond_chat_piece(const struct respond_head *head, struct choice *choice, const struct message_piece *piece) {
    return delta_chunk(head, choice, respond_delta(piece));
}

json_t *respond_chat_logprobs(const struct respond_head *head, struct choice *choice) {
    return delta_chunk(head, choice, json_pack("{s:s}", "content", ""));
}

json_t *respond_chat_end(const struct respond_head *head, struct choice *choice) {
    return chunk(head, choice,
                 json_pack("{s:i, s:{}, s:o, s:o, s:o}", "index", choice->index, "delta", "logprobs",
                           choice_take_logprobs(choice), "finish_reason", finish_reason(choice), "stop_reason",
                           stop_reason(choice)));
}

json_t *respond_error(const struct respond_head *head, const struct api_error *error) {
    if (api_is_ollama(head->request->kind)) return api_error_json_plain(error);
    return head->request->kind == API_MESSAGES ? api_error_anthropic(error) : api_error_json(error);
}

json_t *respond_usage_chunk(const struct respond_head *head, const struct choice *choices, int n_choices) {
    return object(head, object_name(head, true), json_array(), usage(head, choices, n_choices));
}
