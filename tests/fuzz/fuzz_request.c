/* tests/fuzz/fuzz_request.c - a request's body is refused with an error that can be sent, or becomes prompts
 * and settings that the scheduler may have. Every body is read as a chat, a completion, by llama.cpp's two, and for
 * /tokenize, /detokenize and /apply-template; the tokenizer is a tiny one made here. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "server/api.h"
#include "server/text_api.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 300, CONTEXT = 2000, FIRST_SPECIAL = 256 };

static const char *const SPECIAL[] = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜fim▁begin｜>",
                                      "<｜fim▁hole｜>", "<｜fim▁end｜>"};
enum { N_SPECIAL = sizeof SPECIAL / sizeof *SPECIAL };

static void require(bool condition) {
    if (!condition) abort();
}

/* GPT-2's letter for a byte: printable ones stand for themselves, the others for code points from 256 on. */
static json_t *byte_letters(void) {
    json_t *vocab = json_object();
    int n_others = 0;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
        int point = printable ? byte : 256 + n_others++;
        char letter[3] = {(char)point, 0, 0};
        if (point >= 0x80) {
            letter[0] = (char)(0xC0 | point >> 6);
            letter[1] = (char)(0x80 | (point & 0x3F));
        }
        json_object_set_new(vocab, letter, json_integer(byte));
    }
    return vocab;
}

static struct tokenizer *make_tokenizer(void) {
    static const char config[] = "{\"add_bos_token\": true, \"bos_token\": \"<｜begin▁of▁sentence｜>\", "
                                 "\"eos_token\": \"<｜end▁of▁sentence｜>\"}";
    json_t *added = json_array();
    for (int i = 0; i < N_SPECIAL; i++) {
        json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", FIRST_SPECIAL + i,
                                               "content", SPECIAL[i], "single_word", 0, "lstrip", 0, "rstrip", 0,
                                               "normalized", 0, "special", i < 2));
    }
    json_t *root =
        json_pack("{s:s, s:o, s:n, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:o, s:[]}}", "version",
                  "1.0", "added_tokens", added, "normalizer", "pre_tokenizer", "type", "ByteLevel", "add_prefix_space",
                  0, "trim_offsets", 1, "use_regex", 0, "decoder", "type", "ByteLevel", "add_prefix_space", 0,
                  "trim_offsets", 1, "use_regex", 0, "model", "type", "BPE", "vocab", byte_letters(), "merges");
    char *text = json_dumps(root, 0);
    struct tokenizer *tokenizer = NULL;
    struct mo_error error = {0};
    if (!text || tokenizer_parse(&tokenizer, text, strlen(text), config, sizeof config - 1, "inline", &error)) {
        fprintf(stderr, "fuzz_request: the tokenizer: %s\n", error.message);
        abort();
    }
    free(text);
    json_decref(root);
    return tokenizer;
}

/* The text side of an engine: all that parsing looks at. */
static const struct engine *make_engine(void) {
    static struct engine engine;
    if (engine.tokenizer) return &engine;
    engine.tokenizer = make_tokenizer();
    engine.chat = chat_template_by_name("deepseek-coder-v2");
    engine.model.vocab = VOCAB;
    engine.options.max_model_len = CONTEXT;
    engine.options.generation_config = 1;
    return &engine;
}

static void check_error(const struct api_error *error) {
    require(error->status >= 400 && error->status < 600 && error->message[0]);
    json_t *json = api_error_json(error);
    char *text = json ? json_dumps(json, 0) : NULL;
    require(text != NULL); /* whatever the client sent, the answer is valid UTF-8 */
    free(text);
    json_decref(json);
}

static void check_request(const struct api_request *request, const struct api_model *model) {
    const struct sched_request *s = &request->sched;
    struct mo_error error = {0};
    require(request->model == model->names[0] || request->model == model->names[1]);
    require(request->n >= 1 && request->n_prompts >= 1 && request->n * request->n_prompts <= API_CHOICES_MAX);
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
    json_t *json = function(model, body, size, &error);
    require((json == NULL) == (error.status != 0));
    if (!json) check_error(&error);
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"model", "alias"};
    const struct api_model model = {make_engine(), names, 2, false};
    const char *body = (const char *)data;
    log_set_level(LOG_ERROR); /* look-alikes of special tokens are warned of */
    try_request(&model, API_CHAT, body, size);
    try_request(&model, API_COMPLETION, body, size);
    try_request(&model, API_LLAMA, body, size);
    try_request(&model, API_INFILL, body, size);
    try_text(&model, text_api_tokenize, body, size);
    try_text(&model, text_api_detokenize, body, size);
    try_text(&model, text_api_apply_template, body, size);
    return 0;
}
