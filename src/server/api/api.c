#include "server/api/api.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "server/api/parts.h"
#include "server/api/translate.h"

/* --- names and limits ---------------------------------------------------------------------------- */

const struct api_policy *api_policy_of(const struct api_model *model) {
    static const struct api_policy none = {.max_logprobs = SCHED_MAX_LOGPROBS};
    return model->policy ? model->policy : &none;
}

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
        api_error_field(error, "model", "model must be a string, found %s", json_type_name(field));
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

/* Tokens of a prompt that are counted: what is far too long is refused before all of it is encoded, which takes seconds, and other
 * long requests wait for that. */
static size_t counted_tokens(const struct api_job *job) {
    enum { CONTEXTS = 4, TOKENS = 1 << 16 };
    return CONTEXTS * (size_t)job->model->engine->options.max_model_len + TOKENS;
}

/* What the API says when a prompt has no room. */
static int context_error(const struct api_model *model, size_t n_prompt, int max_tokens, const char *param,
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
        if (api_is_chat(kind) && !strncmp(name, "tool", 4)) continue; /* api/tools.c */
        api_error_set(fields->error, 400, name, "unsupported_parameter", "%s is not supported yet", name);
        return;
    }
}

/* --- the whole ----------------------------------------------------------------------------------- */

static void parse_stream(struct api_job *job) {
    struct fields *f = &job->fields;
    job->request->stream = fields_bool(f, "stream", false);
    job->request->timings = fields_bool(f, "timings_per_token", false);
    const json_t *options = fields_object(f, "stream_options");
    job->request->include_usage = api_policy_of(job->model)->includes_usage;
    if (!options) return;
    if (!job->request->stream) {
        api_error_field(f->error, "stream_options", "stream_options may only be given with \"stream\": true");
        return;
    }
    struct fields inner = {options, f->error};
    job->request->include_usage |= fields_bool(&inner, "include_usage", false);
    job->request->usage_per_chunk = fields_bool(&inner, "continuous_usage_stats", false) && job->request->include_usage;
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
    for (size_t i = 0; i < n && !fields_failed(&job->fields) && !api_is_count(job->request->kind); i++) {
        job->request->prompts[i].ids.limit = counted_tokens(job);
    }
    return !fields_failed(&job->fields);
}

static const char *prompt_param(const struct api_request *request) {
    return request->kind == API_RESPONSES ? "input" : api_is_chat(request->kind) ? "messages" : "prompt";
}

void api_prompt_failed(struct api_job *job, const struct api_prompt *prompt, const struct mo_error *cause,
                       const char *param) {
    size_t context = (size_t)job->model->engine->options.max_model_len;
    if (!prompt->ids.is_full) {
        api_error_from(job->fields.error, cause, param);
    } else if (job->request->kind == API_MESSAGES) {
        api_error_set(job->fields.error, 400, param, "context_length_exceeded", "prompt is too long: %s > %zu maximum",
                      cause->message, context - 1);
    } else {
        api_error_set(
            job->fields.error, 400, prompt_param(job->request), "context_length_exceeded",
            "This model's maximum context length is %zu tokens. However, your prompt has %s. Please shorten it.",
            context, cause->message);
    }
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

/* What the server allows an answer to have: less than what is asked for is no error, as with vLLM and llama.cpp. */
static void limit_answer(struct api_job *job) {
    struct api_request *request = job->request;
    int most = job->model->engine->defaults.max_tokens;
    if (most > 0 && request->sched.max_tokens > most) request->sched.max_tokens = most;
    if (most > 0 && (request->n_predict < 0 || request->n_predict > most)) request->n_predict = most;
}

/* Every prompt and its answer must fit; without max_tokens a chat's answer takes what is left. */
static void check_context(struct api_job *job) {
    struct api_request *request = job->request;
    size_t context = (size_t)job->model->engine->options.max_model_len;
    const char *param = prompt_param(request);
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
        context_error(job->model, n, takes_rest || scores_only ? 0 : request->sched.max_tokens, param,
                      job->fields.error);
        return;
    }
    int most = job->model->engine->defaults.max_tokens;
    if (request->sched.max_tokens < 0) request->sched.max_tokens = most > 0 ? most : (int)context;
}

static void parse_settings(struct api_job *job) {
    refuse_unsupported(&job->fields, job->request->kind);
    parse_stream(job);
    parse_n(job);
    api_settings_parse(job);
    if (api_is_chat(job->request->kind)) api_tools_parse(job);
    api_structured_parse(job);
}

/* The conversation is tokens by now, and may be megabytes: a request that waits does not keep it. */
static void drop_conversation(struct api_request *request) {
    static const char *const NAMES[] = {"messages", "input"};
    fields_drop(request->root, NAMES, 2);
    fields_drop(request->given, NAMES, 2);
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
    if (api_is_chat(request->kind)) drop_conversation(request);
    limit_answer(job);
    if (!api_is_count(request->kind)) check_context(job);
    api_stop_add_fim(job);
    api_structured_place(job);
}

/* The body, or its translation; `given` keeps what was translated. */
static void take_body(struct api_request *request, const struct api_model *model, json_t *root,
                      struct api_error *error) {
    if (!api_is_translated(request->kind)) {
        request->root = root;
        return;
    }
    request->given = root;
    bool is_responses = request->kind == API_RESPONSES || request->kind == API_RESPONSES_COUNT;
    const struct chat_template *chat = model->engine->chat;
    bool places_system = chat && chat_template_places_system(chat);
    request->root = is_responses ? api_responses_to_chat(root, places_system, error)
                                 : api_anthropic_to_chat(root, request->kind == API_COUNT, places_system, error);
}

int api_request_parse(struct api_request *request, enum api_kind kind, const struct api_model *model, const char *body,
                      size_t size, struct api_error *error) {
    *request = (struct api_request){0};
    *error = (struct api_error){0};
    json_t *root = fields_parse(body, size, error);
    return root ? api_request_read(request, kind, model, root, error) : -1;
}

int api_request_read(struct api_request *request, enum api_kind kind, const struct api_model *model, json_t *root,
                     struct api_error *error) {
    *request = (struct api_request){.kind = kind, .context = model->engine->options.max_model_len};
    *error = (struct api_error){0};
    take_body(request, model, root, error);
    if (!request->root) return -1;
    api_tools_settle(request->root, error);
    if (error->status) return -1;
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
