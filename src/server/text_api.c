#include "server/text_api.h"

#include <stdlib.h>
#include "server/api/parts.h"
#include "base/utf8.h"

enum {
    TOKENS_MAX = API_JSON_VALUES_MAX, /* that an answer lists */
    TEXT_BYTES_MAX = 32 << 20,        /* that tokens become: each may be a line of blanks */
};

static int need_tokenizer(const struct api_model *model, struct api_error *error) {
    if (model->engine->tokenizer) return 0;
    return api_error_field(error, NULL, "this model has no tokenizer.json: only token ids can be used");
}

/* A token as text; bytes that are no text alone are shown as a list (llama.cpp) or as U+FFFD (vLLM). */
static json_t *piece(const struct tokenizer *tokenizer, int32_t id, bool as_list) {
    size_t size, text_size;
    const char *bytes = tokenizer_token_bytes(tokenizer, id, &size);
    if (utf8_valid_prefix((const uint8_t *)bytes, size) == size) return json_stringn(bytes ? bytes : "", size);
    if (as_list) {
        json_t *list = json_array();
        for (size_t i = 0; i < size; i++) json_array_append_new(list, json_integer((unsigned char)bytes[i]));
        return list;
    }
    char *text;
    if (tokenizer_decode(tokenizer, &id, 1, false, &text, &text_size, NULL)) return NULL;
    json_t *json = json_stringn(text, text_size);
    free(text);
    return json;
}

static json_t *ids_json(const struct token_list *ids) {
    json_t *list = json_array();
    for (size_t i = 0; i < ids->n; i++) json_array_append_new(list, json_integer(ids->ids[i]));
    return list;
}

static json_t *vllm_shape(const struct api_model *model, const struct token_list *ids, bool strings) {
    json_t *texts = strings ? json_array() : json_null();
    for (size_t i = 0; strings && i < ids->n; i++) {
        json_array_append_new(texts, piece(model->engine->tokenizer, ids->ids[i], false));
    }
    return json_pack("{s:I, s:i, s:o, s:o}", "count", (json_int_t)ids->n, "max_model_len",
                     model->engine->options.max_model_len, "tokens", ids_json(ids), "token_strs", texts);
}

static json_t *llama_shape(const struct api_model *model, const struct token_list *ids, bool pieces) {
    if (!pieces) return json_pack("{s:o}", "tokens", ids_json(ids));
    json_t *list = json_array();
    for (size_t i = 0; i < ids->n; i++) {
        json_array_append_new(list, json_pack("{s:i, s:o}", "id", (int)ids->ids[i], "piece",
                                              piece(model->engine->tokenizer, ids->ids[i], true)));
    }
    return json_pack("{s:o}", "tokens", list);
}

static int encode_messages(struct fields *f, const struct api_model *model, const json_t *messages,
                           struct token_list *ids, struct mo_error *cause) {
    const struct engine *engine = model->engine;
    json_t *variables = api_template_variables(f, model, api_tools_read(f));
    bool generation = fields_bool(f, "add_generation_prompt", true);
    json_t *copy = fields_failed(f) ? NULL : api_messages_copy(messages, engine->chat, f->error);
    int code = copy ? engine_encode_chat(engine, copy, generation, variables, ids, cause) : 0;
    json_decref(copy);
    json_decref(variables);
    return code;
}

static json_t *tokenize(struct fields *f, const struct api_model *model, struct token_list *ids) {
    const struct engine *engine = model->engine;
    struct mo_error cause = {0};
    const json_t *messages = fields_array(f, "messages"), *content = fields_string(f, "content");
    const json_t *prompt = fields_string(f, "prompt");
    bool special = fields_bool(f, "parse_special", true), pieces = fields_bool(f, "with_pieces", false);
    bool bos = fields_bool(f, content ? "add_special" : "add_special_tokens", !content);
    bool strings = fields_bool(f, "return_token_strs", false);
    const json_t *text = content ? content : prompt;
    int code = 0;
    if (fields_failed(f)) return NULL;
    if (messages) {
        code = encode_messages(f, model, messages, ids, &cause);
    } else if (!text) {
        api_error_field(f->error, "prompt", "one of prompt, messages, content is needed");
    } else if (special) {
        code = api_text_encode(engine, json_string_value(text), json_string_length(text), bos, ids, &cause);
    } else {
        if (bos && tokenizer_bos(engine->tokenizer) >= 0)
            code = token_list_push(ids, tokenizer_bos(engine->tokenizer), &cause);
        if (!code)
            code = tokenizer_encode(engine->tokenizer, json_string_value(text), json_string_length(text), false, ids,
                                    &cause);
    }
    if (code) api_error_from(f->error, &cause, messages ? "messages" : content ? "content" : "prompt");
    if (fields_failed(f)) return NULL;
    if (ids->n > TOKENS_MAX) {
        api_error_field(f->error,
                        messages  ? "messages"
                        : content ? "content"
                                  : "prompt",
                        "at most %d tokens can be listed, and this text has %zu", TOKENS_MAX, ids->n);
        return NULL;
    }
    return content && !messages ? llama_shape(model, ids, pieces) : vllm_shape(model, ids, strings);
}

static json_t *detokenize(struct fields *f, const struct api_model *model, struct token_list *ids) {
    const json_t *tokens = fields_array(f, "tokens");
    struct mo_error cause = {0};
    int code = 0;
    if (!tokens && !fields_failed(f)) api_error_field(f->error, "tokens", "tokens is missing");
    for (size_t i = 0; i < json_array_size(tokens) && !code && !fields_failed(f); i++) {
        int32_t id = fields_token(f, json_array_get(tokens, i), "tokens", model->engine->model.vocab);
        code = token_list_push(ids, id, &cause);
    }
    if (fields_failed(f)) return NULL;
    char *text = NULL;
    size_t size = 0;
    if (!code) code = tokenizer_decode(model->engine->tokenizer, ids->ids, ids->n, false, &text, &size, &cause);
    if (!code && size > TEXT_BYTES_MAX) {
        code = mo_error_set(&cause, MO_E_INVALID, "tokens: their text has %zu bytes, at most %d are told at once", size,
                            TEXT_BYTES_MAX);
    }
    if (code) {
        free(text);
        api_error_from(f->error, &cause, "tokens");
        return NULL;
    }
    json_t *answer = json_pack("{s:o, s:o}", "prompt", json_stringn(text, size), "content", json_stringn(text, size));
    free(text);
    return answer;
}

/* The chat's prompt as text, which reads back as the same tokens. */
static json_t *apply_template(struct fields *f, const struct api_model *model, struct token_list *ids) {
    const json_t *messages = fields_array(f, "messages");
    struct mo_error cause = {0};
    char *text = NULL;
    size_t size = 0;
    if (json_array_size(messages) == 0 && !fields_failed(f)) {
        api_error_field(f->error, "messages", messages ? "messages is empty" : "messages is missing");
    }
    if (fields_failed(f)) return NULL;
    int code = encode_messages(f, model, messages, ids, &cause);
    if (fields_failed(f)) return NULL;
    if (!code) code = tokenizer_decode(model->engine->tokenizer, ids->ids, ids->n, false, &text, &size, &cause);
    if (code) {
        api_error_from(f->error, &cause, "messages");
        return NULL;
    }
    json_t *answer = json_pack("{s:o}", "prompt", json_stringn(text, size));
    free(text);
    return answer;
}

/* --- a body to an answer ------------------------------------------------------------------------- */

typedef json_t *text_function(struct fields *f, const struct api_model *model, struct token_list *ids);

static json_t *answer_body(text_function *function, const struct api_model *model, json_t *body,
                           struct api_error *error) {
    if (need_tokenizer(model, error)) return NULL;
    struct fields fields = {body, error};
    struct token_list ids = {0};
    json_t *answer = NULL;
    api_tools_settle(body, error);
    if (!error->status && api_model_name(model, fields_get(&fields, "model"), error))
        answer = function(&fields, model, &ids);
    if (!answer && !error->status) api_error_no_memory(error);
    token_list_free(&ids);
    return answer;
}

json_t *text_api_tokenize(const struct api_model *model, json_t *body, struct api_error *error) {
    return answer_body(tokenize, model, body, error);
}

json_t *text_api_detokenize(const struct api_model *model, json_t *body, struct api_error *error) {
    return answer_body(detokenize, model, body, error);
}

json_t *text_api_apply_template(const struct api_model *model, json_t *body, struct api_error *error) {
    return answer_body(apply_template, model, body, error);
}

/* Parsed as the request that it may become, so that what is counted is what will be computed. */
static json_t *count(enum api_kind kind, const struct api_model *model, json_t *body, const char *object,
                     struct api_error *error) {
    struct api_request request;
    int code = api_request_read(&request, kind, model, json_incref(body), error);
    json_t *answer =
        code ? NULL : json_pack("{s:s*, s:I}", "object", object, "input_tokens", (json_int_t)request.prompts[0].ids.n);
    if (!code && !answer) api_error_no_memory(error);
    api_request_free(&request);
    return answer;
}

json_t *text_api_count(const struct api_model *model, json_t *body, struct api_error *error) {
    return count(API_COUNT, model, body, NULL, error);
}

json_t *text_api_count_responses(const struct api_model *model, json_t *body, struct api_error *error) {
    return count(API_RESPONSES_COUNT, model, body, "response.input_tokens", error);
}
