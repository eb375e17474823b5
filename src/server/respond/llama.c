#include "server/respond/llama.h"

#include <stdlib.h>
#include <string.h>
#include "server/frame.h"
#include "server/put.h"

/* --- times --------------------------------------------------------------------------------------- */

static void put_rate(json_t **object, const char *per_token, const char *per_second, int n, double seconds) {
    put(object, per_token, put_number(n > 0 ? 1e3 * seconds / n : 0));
    put(object, per_second, put_number(seconds > 0 ? n / seconds : 0));
}

json_t *respond_timings(const struct choice *choice) {
    json_t *timings = json_object();
    int n_computed = choice->n_prompt - choice->n_cached;
    put(&timings, "cache_n", json_integer(choice->n_cached));
    put(&timings, "prompt_n", json_integer(n_computed));
    put(&timings, "prompt_ms", put_number(1e3 * choice->prompt_s));
    put_rate(&timings, "prompt_per_token_ms", "prompt_per_second", n_computed, choice->prompt_s);
    put(&timings, "predicted_n", json_integer(choice->n_generated));
    put(&timings, "predicted_ms", put_number(1e3 * choice->answer_s));
    put_rate(&timings, "predicted_per_token_ms", "predicted_per_second", choice->n_generated, choice->answer_s);
    return timings;
}

/* --- settings ------------------------------------------------------------------------------------ */

static json_t *stop_list(const struct sched_request *sched) {
    json_t *list = json_array();
    for (int i = 0; i < sched->n_stop; i++) put_last(&list, json_string(sched->stop[i]));
    return list;
}

/* Those that change something. */
static json_t *samplers(const struct sampling *s) {
    json_t *list = json_array();
    if (sampling_has_penalties(s)) put_last(&list, json_string("penalties"));
    if (s->min_p > 0) put_last(&list, json_string("min_p"));
    if (s->top_k > 0) put_last(&list, json_string("top_k"));
    if (s->top_p < 1) put_last(&list, json_string("top_p"));
    put_last(&list, json_string("temperature"));
    return list;
}

json_t *respond_llama_settings(const struct api_request *request) {
    const struct sched_request *sched = &request->sched;
    const struct sampling *s = &sched->sampling;
    json_t *settings = json_object();
    put(&settings, "n_ctx", json_integer(request->context));
    put(&settings, "model", json_string(request->model));
    put(&settings, "n_predict", json_integer(request->n_predict));
    put(&settings, "max_tokens", json_integer(request->n_predict));
    put(&settings, "seed", json_integer((json_int_t)s->seed));
    put(&settings, "temperature", put_number((double)s->temperature));
    put(&settings, "top_k", json_integer(s->top_k));
    put(&settings, "top_p", put_number((double)s->top_p));
    put(&settings, "min_p", put_number((double)s->min_p));
    put(&settings, "repeat_penalty", put_number((double)s->repetition_penalty));
    put(&settings, "presence_penalty", put_number((double)s->presence_penalty));
    put(&settings, "frequency_penalty", put_number((double)s->frequency_penalty));
    put(&settings, "samplers", samplers(s));
    put(&settings, "stop", stop_list(sched));
    put(&settings, "ignore_eos", json_boolean(sched->ignore_eos));
    put(&settings, "stream", json_boolean(request->stream));
    put(&settings, "n_probs", json_integer(sched->n_logprobs > 0 ? sched->n_logprobs : 0));
    put(&settings, "n_indent", json_integer(sched->min_indent));
    put(&settings, "t_max_predict_ms", put_number(1e3 * sched->line_limit_s));
    put(&settings, "timings_per_token", json_boolean(request->timings));
    return settings;
}

/* --- answers ------------------------------------------------------------------------------------- */

static bool wants(const struct api_request *request, const char *field) {
    if (!request->response_fields) return true;
    for (size_t i = 0; i < json_array_size(request->response_fields); i++) {
        if (strcmp(json_string_value(json_array_get(request->response_fields, i)), field) == 0) return true;
    }
    return false;
}

/* The value at a path of keys with slashes between them, or NULL. */
static json_t *at_path(json_t *object, const char *path) {
    char key[64];
    while (object && *path) {
        size_t n = strcspn(path, "/");
        if (n >= sizeof key) return NULL;
        memcpy(key, path, n);
        key[n] = 0;
        object = json_object_get(object, key);
        path += n + (path[n] == '/');
    }
    return object;
}

/* response_fields: only those, each under its whole path. */
static json_t *only_wanted(const struct api_request *request, json_t *whole) {
    if (!whole || !request->response_fields) return whole;
    json_t *chosen = json_object();
    for (size_t i = 0; i < json_array_size(request->response_fields); i++) {
        const char *path = json_string_value(json_array_get(request->response_fields, i));
        json_t *value = at_path(whole, path);
        if (value && value != whole) put(&chosen, path, json_incref(value));
    }
    json_decref(whole);
    return chosen;
}

/* The prompt as text, special tokens and all. */
static json_t *prompt_text(const struct choice *choice) {
    const struct token_list *ids = &choice->prompt->ids;
    char *text = NULL;
    size_t size = 0;
    if (!choice->tokenizer) return json_string("");
    if (tokenizer_decode(choice->tokenizer, ids->ids, ids->n, false, &text, &size, NULL)) return NULL;
    json_t *json = json_stringn(text, size);
    free(text);
    return json;
}

/* The prompt did not fit, or the answer ended where the context does. */
static bool is_truncated(const struct choice *choice) {
    const struct api_request *request = choice->request;
    int n_predict = request->n_predict;
    bool is_full = choice->n_prompt + choice->n_generated >= request->context;
    return choice->prompt->is_cut ||
           (is_full && choice->finish == FINISH_LENGTH && (n_predict < 0 || choice->n_generated < n_predict));
}

static const char *stop_type(const struct choice *choice) {
    if (choice->finish == FINISH_LENGTH) return "limit";
    return choice_stop_string(choice) ? "word" : "eos";
}

static json_t *begin(struct choice *choice, bool ends) {
    json_t *object = json_object();
    put(&object, "index", json_integer(choice->index));
    put(&object, "content", choice_take_text(choice));
    put(&object, "tokens", choice_take_tokens(choice));
    put(&object, "id_slot", json_integer(0));
    put(&object, "stop", json_boolean(ends));
    put(&object, "tokens_predicted", json_integer(choice->n_generated));
    put(&object, "tokens_evaluated", json_integer(choice->n_prompt));
    if (choice->logprobs) put(&object, "completion_probabilities", choice_take_logprobs(choice));
    return object;
}

static json_t *piece(const struct respond_head *head, struct choice *choice) {
    json_t *object = begin(choice, false);
    if (head->request->timings) put(&object, "timings", respond_timings(choice));
    return object;
}

static json_t *end(const struct respond_head *head, struct choice *choice) {
    const struct api_request *request = head->request;
    const char *word = choice_stop_string(choice);
    json_t *object = begin(choice, true);
    put(&object, "model", json_string(request->model));
    put(&object, "generation_settings", respond_llama_settings(request));
    if (wants(request, "prompt")) put(&object, "prompt", prompt_text(choice));
    put(&object, "has_new_line", json_boolean(choice->has_break));
    put(&object, "truncated", json_boolean(is_truncated(choice)));
    put(&object, "stop_type", json_string(stop_type(choice)));
    put(&object, "stopping_word", json_string(word ? word : ""));
    put(&object, "tokens_cached", json_integer(choice->n_cached));
    put(&object, "timings", respond_timings(choice));
    return only_wanted(request, object);
}

static json_t *llama_whole(const struct respond_head *head, struct choice *choices, int n_choices) {
    if (n_choices == 1) return end(head, choices);
    json_t *list = json_array();
    for (int i = 0; i < n_choices; i++) put_last(&list, end(head, &choices[i]));
    return list;
}

/* Pieces, then an end without text. */
static int llama_stream(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    int code = choice->text.size > 0 ? frame_add(out, NULL, piece(head, choice)) : 0;
    if (!code && choice->finish != FINISH_NONE) code = frame_add(out, NULL, end(head, choice));
    return code;
}

const struct dialect dialect_llama = {
    .id_prefix = "cmpl-",
    .stream_type = "text/event-stream",
    .error = api_error_json,
    .whole = llama_whole,
    .stream = llama_stream,
    .stream_error = dialect_stream_error,
    .stream_ping = dialect_stream_ping,
};
