/* tests/fuzz/fuzz_request.c - a request's body is refused with an error that can be sent, or becomes prompts
 * and settings that the scheduler may have. Every body is read as a chat, a completion, by llama.cpp's two and Ollama's
 * two, as Anthropic's messages and OpenAI's responses, and for /tokenize, /detokenize, /apply-template and count_tokens;
 * the tokenizer is a tiny one made here, the chat template one of ours by the body's length. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "byte_tokenizer.h"
#include "require.h"
#include "server/api/fields.h"
#include "server/text_api.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 300, CONTEXT = 2000 };

/* The text side of an engine: all that parsing looks at. */
static const struct engine *make_engine(size_t size) {
    static const char *const TEMPLATES[] = {"deepseek-coder-v2", "deepseek-v3",   "deepseek-v3-0324", "deepseek-r1",
                                            "deepseek-r1-0528",  "deepseek-v3.1", "deepseek-v3.2"};
    static struct engine engine;
    engine.chat = chat_template_by_name(TEMPLATES[size % 7]);
    if (engine.tokenizer) return &engine;
    engine.tokenizer = byte_tokenizer();
    if (grammar_cache_create(&engine.grammars, engine.tokenizer, VOCAB, NULL)) abort();
    engine.model.vocab = VOCAB;
    engine.options.max_model_len = CONTEXT;
    engine.defaults = generation_defaults_none();
    return &engine;
}

static void check_json(json_t *json) {
    char *text = json ? json_dumps(json, 0) : NULL;
    require(text != NULL); /* whatever the client sent, the answer is valid UTF-8 */
    free(text);
    json_decref(json);
}

static void check_error(const struct api_error *error) {
    require(error->status >= 400 && error->status < 600 && error->message[0]);
    check_json(api_error_json(error));
    check_json(api_error_json_plain(error));
    check_json(api_error_anthropic(error));
}

static void check_request(const struct api_request *request, const struct api_model *model) {
    const struct sched_request *s = &request->sched;
    struct mo_error error = {0};
    require(request->model == model->names[0] || request->model == model->names[1]);
    if (request->only_loads) require(api_is_ollama(request->kind) && request->n_prompts == 0 && !request->stream);
    require(request->n >= 1 && (request->n_prompts >= 1 || request->only_loads));
    require(request->n * request->n_prompts <= API_CHOICES_MAX);
    require(sampling_check(&s->sampling, VOCAB, &error) == 0);
    require(s->max_tokens >= 0 && s->min_tokens >= 0 && s->min_indent >= 0 && s->line_limit_s >= 0);
    require(s->max_tokens > 0 || request->echo || api_is_llama(request->kind));
    require(s->cache_salt == 0 || s->cache_salt >> 63);
    for (size_t i = 0; i < json_array_size(request->response_fields); i++) {
        require(json_is_string(json_array_get(request->response_fields, i)));
    }
    require(s->n_logprobs >= -1 && s->n_logprobs <= SCHED_MAX_LOGPROBS);
    require(s->n_stop <= API_STOP_MAX && (request->stream || !request->include_usage));
    for (int i = 0; i < s->n_stop; i++) require(s->stop[i][0] != 0);
    for (int i = 0; i < s->n_stop_tokens; i++) require(s->stop_tokens[i] >= 0 && s->stop_tokens[i] < VOCAB);
    for (int p = 0; p < request->n_prompts; p++) {
        const struct token_list *ids = &request->prompts[p].ids;
        require(ids->n >= 1 && ids->n + (s->max_tokens > 0) <= CONTEXT);
        for (size_t i = 0; i < ids->n; i++) require(ids->ids[i] >= 0 && ids->ids[i] < VOCAB);
    }
}

static void try_request(const struct api_model *model, enum api_kind kind, const char *body, size_t size) {
    struct api_request request;
    struct api_error error;
    int code = api_request_parse(&request, kind, model, body, size, &error);
    require((code != 0) == (error.status != 0));
    if (code)
        check_error(&error);
    else
        check_request(&request, model);
    api_request_free(&request);
}

static void try_text(const struct api_model *model, text_api_function *function, const char *body, size_t size) {
    struct api_error error = {0};
    json_t *root = fields_parse(body, size, &error), *json = root ? function(model, root, &error) : NULL;
    require((json == NULL) == (error.status != 0));
    if (!json) check_error(&error);
    json_decref(json);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"model", "alias"};
    const struct api_model model = {make_engine(size), names, 2, false, false, NULL};
    const char *body = (const char *)data;
    log_set_level(LOG_ERROR); /* look-alikes of special tokens are warned of */
    try_request(&model, API_CHAT, body, size);
    try_request(&model, API_COMPLETION, body, size);
    try_request(&model, API_LLAMA, body, size);
    try_request(&model, API_INFILL, body, size);
    try_request(&model, API_OLLAMA_GENERATE, body, size);
    try_request(&model, API_OLLAMA_CHAT, body, size);
    try_request(&model, API_MESSAGES, body, size);
    try_request(&model, API_RESPONSES, body, size);
    try_text(&model, text_api_tokenize, body, size);
    try_text(&model, text_api_detokenize, body, size);
    try_text(&model, text_api_apply_template, body, size);
    try_text(&model, text_api_count, body, size);
    try_text(&model, text_api_count_responses, body, size);
    return 0;
}
