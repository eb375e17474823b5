#include "server/api.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>
#include "sched/prefix.h"
#include "server/api_translate.h"
#include "server/api_parts.h"

/* --- names and limits ---------------------------------------------------------------------------- */

/* A name without a tag is that name with the tag "latest", as Ollama has it; its clients add it. */
static bool is_same_model(const char *asked, const char *served) {
    static const char LATEST[] = ":latest";
    size_t n = strlen(asked) < strlen(served) ? strlen(asked) : strlen(served);
    if (strncmp(asked, served, n) != 0) return false;
    const char *rest = asked[n] ? asked + n : served + n;
    return *rest == 0 || strcmp(rest, LATEST) == 0;
}

const char *api_model_name(const struct api_model *model, const json_t *field, struct api_error *error) {
    bool is_empty = json_is_string(field) && json_string_length(field) == 0; /* llama.vscode without a name */
    if (!field || json_is_null(field) || is_empty) return model->names[0];
    if (!json_is_string(field)) {
        api_error_field(error, "model", "model must be a string, found %s", fields_type_name(field));
        return NULL;
    }
    for (int i = 0; i < model->n_names; i++) {
        if (is_same_model(json_string_value(field), model->names[i])) return model->names[i];
    }
    if (model->any_name && json_string_length(field) <= API_NAME_BYTES_MAX) return model->names[0];
    api_error_set(error, 404, "model", "model_not_found", "the model \"%.200s\" does not exist; this server has \"%s\"",
                  json_string_value(field), model->names[0]);
    return NULL;
}

int api_context_error(const struct api_model *model, size_t n_prompt, int max_tokens, const char *param,
                      struct api_error *error) {
    int context = model->engine->options.max_model_len;
    if (max_tokens > 0) {
        return api_error_set(error, 400, param, "context_length_exceeded",
                             "This model's maximum context length is %d tokens. However, you requested %zu tokens "
                             "(%zu in the prompt, %d for the answer: max_tokens). Please shorten one of them.",
                             context, n_prompt + (size_t)max_tokens, n_prompt, max_tokens);
    }
    return api_error_set(error, 400, param, "context_length_exceeded",
                         "This model's maximum context length is %d tokens. However, your prompt has %zu tokens, which "
                         "leaves no room for an answer. Please shorten it.",
                         context, n_prompt);
}

/* --- fields that chat and completions share ------------------------------------------------------ */

/* Fields whose meaning would be lost if they were ignored. `neutral` is a string value that asks for nothing.
 */
static const struct {
    const char *name, *neutral;
} UNSUPPORTED[] = {
    {"tools", NULL},
    {"tool_choice", "none"},
    {"functions", NULL},
    {"function_call", "none"},
    {"structural_tag", NULL},
    {"prompt_logprobs", NULL},
    {"allowed_token_ids", NULL},
    {"bad_words", NULL},
    {"truncate_prompt_tokens", NULL},
    {"prompt_embeds", NULL},
    {"use_beam_search", NULL},
    {"chat_template", NULL},
    {"audio", NULL},
};

static bool asks_for_nothing(const json_t *value, const char *neutral) {
    if (json_is_false(value)) return true;
    if (json_is_array(value)) return json_array_size(value) == 0;
    return neutral && json_is_string(value) && strcmp(json_string_value(value), neutral) == 0;
}

static void refuse_unsupported(struct fields *fields, enum api_kind kind) {
    for (size_t i = 0; i < sizeof UNSUPPORTED / sizeof *UNSUPPORTED; i++) {
        const char *name = UNSUPPORTED[i].name;
        const json_t *value = fields_get(fields, name);
        if (!value || asks_for_nothing(value, UNSUPPORTED[i].neutral)) continue;
        if (api_is_chat(kind) && !strncmp(name, "tool", 4)) continue; /* api_tools.c */
        api_error_set(fields->error, 400, name, "unsupported_parameter", "%s is not supported yet", name);
        return;
    }
}

/* Ranges of sampling values are sampling_check's; the limits here only keep the conversion to float defined.
 */
static float number(struct fields *fields, const char *key, float value) {
    return (float)fields_number(fields, key, -1e30, 1e30, (double)value);
}

/* llama.cpp's have 32 bits, and two that stand for a random one; Ollama's too have -1. */
static void parse_seed(struct api_job *job) {
    struct fields *f = &job->fields;
    bool is_llama = api_is_llama(job->request->kind);
    int64_t seed = fields_int(f, "seed", INT64_MIN, INT64_MAX, 0);
    uint64_t random = 0;
    bool is_none = (is_llama && (seed == -1 || seed == UINT32_MAX)) || (api_is_ollama(job->request->kind) && seed < 0);
    if (!fields_get(f, "seed") || is_none) {
        if (getrandom(&random, sizeof random, 0) != sizeof random) {
            api_error_set(f->error, 500, NULL, "internal_error", "the system has no random numbers; give a seed");
        }
        seed = (int64_t)(is_llama ? random & UINT32_MAX : random);
    }
    job->request->sched.sampling.seed = (uint64_t)seed;
}

static void parse_sampling(struct api_job *job) {
    struct fields *f = &job->fields;
    struct sampling *s = &job->request->sched.sampling;
    bool is_llama = api_is_llama(job->request->kind);
    engine_sampling(job->model->engine, s);
    if (is_llama) api_llama_defaults(job->model->engine, s);
    if (api_is_ollama(job->request->kind)) api_ollama_defaults(job->model->engine, s);
    s->temperature = number(f, "temperature", s->temperature);
    s->top_p = number(f, "top_p", s->top_p);
    s->min_p = number(f, "min_p", s->min_p);
    s->top_k = (int)fields_int(f, "top_k", -1, INT_MAX, s->top_k);
    s->repetition_penalty = number(f, "repetition_penalty", s->repetition_penalty);
    s->presence_penalty = number(f, "presence_penalty", s->presence_penalty);
    s->frequency_penalty = number(f, "frequency_penalty", s->frequency_penalty);
    parse_seed(job);
    if (is_llama) api_llama_sampling(job);
    if (api_is_ollama(job->request->kind)) api_ollama_sampling(job);
}

/* The id in a key of logit_bias, or -1. */
static int32_t token_of_key(const char *key, int vocab) {
    char *end;
    long id = key[0] >= '0' && key[0] <= '9' ? strtol(key, &end, 10) : -1;
    return id >= 0 && *end == 0 && id < vocab ? (int32_t)id : -1;
}

/* One entry, if it is good; `shown` stands for a token that is none. */
static void add_bias(struct api_job *job, int32_t token, const char *shown, const json_t *value) {
    struct fields *f = &job->fields;
    struct sampling *s = &job->request->sched.sampling;
    double bias = json_number_value(value);
    if (token < 0) {
        api_error_field(f->error, "logit_bias", "logit_bias: expected token ids from 0 to %d as keys, found \"%.40s\"",
                        job->model->engine->model.vocab - 1, shown);
    } else if (!json_is_number(value) || !(bias >= -100 && bias <= 100)) {
        api_error_field(f->error, "logit_bias", "logit_bias: expected -100 to 100 for token %d", token);
    }
    if (!fields_failed(f)) job->request->bias[s->n_bias++] = (struct logit_bias){token, (float)bias};
}

static void add_bias_object(struct api_job *job, const json_t *object) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        if (fields_failed(&job->fields)) return;
        add_bias(job, token_of_key(key, job->model->engine->model.vocab), key, value);
    }
}

/* llama.cpp's: [[id, bias], ...], where false bans. */
static void add_bias_list(struct api_job *job, const json_t *list) {
    json_t *ban = json_integer(-100);
    for (size_t i = 0; i < json_array_size(list) && !fields_failed(&job->fields); i++) {
        const json_t *entry = json_array_get(list, i), *value = json_array_get(entry, 1);
        int32_t token =
            fields_token(&job->fields, json_array_get(entry, 0), "logit_bias", job->model->engine->model.vocab);
        if (!fields_failed(&job->fields)) add_bias(job, token, "", json_is_false(value) ? ban : value);
    }
    json_decref(ban);
}

static void parse_bias(struct api_job *job) {
    struct fields *f = &job->fields;
    const json_t *given = fields_get(f, "logit_bias");
    bool is_list = api_is_llama(job->request->kind) && json_is_array(given);
    if (!is_list) given = fields_object(f, "logit_bias");
    size_t size = is_list ? json_array_size(given) : json_object_size(given);
    if (size == 0) return;
    if (size > API_BIAS_MAX) {
        api_error_field(f->error, "logit_bias", "logit_bias: at most %d tokens, found %zu", API_BIAS_MAX, size);
        return;
    }
    job->request->bias = calloc(size, sizeof *job->request->bias);
    if (!job->request->bias) {
        api_error_no_memory(f->error);
        return;
    }
    job->request->sched.sampling.bias = job->request->bias;
    if (is_list)
        add_bias_list(job, given);
    else
        add_bias_object(job, given);
}

/* --- the whole ----------------------------------------------------------------------------------- */

static void parse_stream(struct api_job *job) {
    struct fields *f = &job->fields;
    job->request->stream = fields_bool(f, "stream", false);
    job->request->timings = fields_bool(f, "timings_per_token", false);
    const json_t *options = fields_object(f, "stream_options");
    if (!options) return;
    if (!job->request->stream) {
        api_error_field(f->error, "stream_options", "stream_options may only be given with \"stream\": true");
        return;
    }
    struct fields inner = {options, f->error};
    job->request->include_usage = fields_bool(&inner, "include_usage", false);
    job->request->usage_per_chunk = fields_bool(&inner, "continuous_usage_stats", false) && job->request->include_usage;
}

/* vLLM's: who gives the same salt shares the cache, and nobody else. */
static void parse_cache_salt(struct api_job *job) {
    const json_t *salt = fields_string(&job->fields, "cache_salt");
    if (!salt) return;
    size_t size = json_string_length(salt);
    if (size == 0) api_error_field(job->fields.error, "cache_salt", "cache_salt: expected a text, found an empty one");
    job->request->sched.cache_salt = XXH3_64bits(json_string_value(salt), size) | PREFIX_SALTED;
}

static void parse_n(struct api_job *job) {
    struct fields *f = &job->fields;
    const char *key = api_is_llama(job->request->kind) && fields_get(f, "n_cmpl") ? "n_cmpl" : "n";
    job->request->n = (int)fields_int(f, key, 1, API_N_MAX, 1);
    if (fields_int(f, "best_of", 1, INT_MAX, job->request->n) != job->request->n) {
        api_error_field(f->error, "best_of", "best_of is not supported unless it equals n (%d)", job->request->n);
    }
}

bool api_prompts_reserve(struct api_job *job, size_t n) {
    if (n == 0) {
        api_error_field(job->fields.error, "prompt", "prompt is empty");
    } else if (n > API_CHOICES_MAX || n * (size_t)job->request->n > API_CHOICES_MAX) {
        api_error_field(job->fields.error, "prompt", "at most %d answers in one request: %zu prompts, n %d",
                        API_CHOICES_MAX, n, job->request->n);
    } else {
        job->request->prompts = calloc(n, sizeof *job->request->prompts);
        if (!job->request->prompts) api_error_no_memory(job->fields.error);
    }
    return !fields_failed(&job->fields);
}

int api_text_encode(const struct engine *engine, const char *text, size_t size, bool bos, struct token_list *out,
                    struct mo_error *error) {
    if (bos || !engine->tokenizer) return engine_encode_prompt(engine, text, size, out, error);
    return tokenizer_encode(engine->tokenizer, text, size, true, out, error);
}

/* In the words that Anthropic's clients look for: they shorten the conversation then. */
static void prompt_too_long(struct api_job *job, size_t n, size_t context) {
    api_error_set(job->fields.error, 400, "messages", "context_length_exceeded",
                  "prompt is too long: %zu tokens > %zu maximum", n, context - 1);
}

/* Every prompt and its answer must fit; without max_tokens a chat's answer takes what is left. */
static void check_context(struct api_job *job) {
    struct api_request *request = job->request;
    size_t context = (size_t)job->model->engine->options.max_model_len;
    const char *param = request->kind == API_RESPONSES ? "input" : api_is_chat(request->kind) ? "messages" : "prompt";
    bool scores_only = request->sched.max_tokens == 0, takes_rest = request->sched.max_tokens < 0;
    /* n_predict, and the max_tokens of the translated, are the most, not the least. */
    bool is_most = api_is_llama(request->kind) || api_is_ollama(request->kind) || api_is_translated(request->kind);
    if (is_most && !scores_only) takes_rest = true;
    size_t answer = takes_rest ? 1 : (size_t)request->sched.max_tokens;
    for (int i = 0; i < request->n_prompts; i++) {
        size_t n = request->prompts[i].ids.n;
        if (n + answer <= context) continue;
        if (request->kind == API_MESSAGES) {
            prompt_too_long(job, n, context);
            return;
        }
        api_context_error(job->model, n, takes_rest || scores_only ? 0 : request->sched.max_tokens, param,
                          job->fields.error);
        return;
    }
    if (request->sched.max_tokens < 0) request->sched.max_tokens = job->model->engine->options.max_model_len;
}

static void check_sampling(struct api_job *job) {
    struct mo_error cause = {0};
    if (fields_failed(&job->fields)) return;
    if (sampling_check(&job->request->sched.sampling, job->model->engine->model.vocab, &cause)) {
        api_error_from(job->fields.error, &cause, NULL);
    }
}

void api_settings_parse(struct api_job *job) {
    parse_cache_salt(job);
    parse_sampling(job);
    parse_bias(job);
    api_stop_parse(job);
    check_sampling(job);
}

static void parse_settings(struct api_job *job) {
    refuse_unsupported(&job->fields, job->request->kind);
    parse_stream(job);
    parse_n(job);
    api_settings_parse(job);
    if (api_is_chat(job->request->kind)) api_tools_parse(job);
    api_structured_parse(job);
}

static void parse_all(struct api_job *job) {
    struct api_request *request = job->request;
    bool is_ollama = api_is_ollama(request->kind);
    request->model = api_model_name(job->model, fields_get(&job->fields, "model"), job->fields.error);
    if (!is_ollama) parse_settings(job); /* cheap things first: a long prompt is encoded only for a good request */
    if (fields_failed(&job->fields)) return;
    if (is_ollama)
        api_ollama_parse(job);
    else if (api_is_chat(request->kind))
        api_chat_parse(job);
    else if (request->kind == API_COMPLETION)
        api_completion_parse(job);
    else
        api_llama_parse(job);
    request->sched.min_tokens = (int)fields_int(&job->fields, "min_tokens", 0, INT_MAX, 0);
    if (fields_failed(&job->fields)) return;
    if (request->kind != API_COUNT) check_context(job);
    api_stop_add_fim(job);
    api_structured_place(job);
}

/* The body, or its translation; `given` keeps what was translated. */
static void parse_body(struct api_request *request, const char *body, size_t size, struct api_error *error) {
    json_t *root = fields_parse(body, size, error);
    if (!root || !api_is_translated(request->kind)) {
        request->root = root;
        return;
    }
    request->given = root;
    request->root = request->kind == API_RESPONSES ? api_responses_to_chat(root, error)
                                                   : api_anthropic_to_chat(root, request->kind == API_COUNT, error);
}

int api_request_parse(struct api_request *request, enum api_kind kind, const struct api_model *model, const char *body,
                      size_t size, struct api_error *error) {
    *request = (struct api_request){.kind = kind, .context = model->engine->options.max_model_len};
    *error = (struct api_error){0};
    parse_body(request, body, size, error);
    if (!request->root) return -1;
    struct api_job job = {.model = model, .request = request, .fields = {request->root, error}};
    parse_all(&job);
    return error->status ? -1 : 0;
}

void api_request_free(struct api_request *request) {
    for (int i = 0; i < request->n_prompts; i++) {
        token_list_free(&request->prompts[i].ids);
        free(request->prompts[i].decoded);
    }
    free(request->prompts);
    grammar_release(request->sched.grammar);
    free(request->bias);
    free(request->stop);
    free(request->stop_tokens);
    json_decref(request->root);
    json_decref(request->given);
    *request = (struct api_request){0};
}
