/* server/api/ollama.c - the fields of Ollama's POST /api/generate and /api/chat: `options` holds what steers the choice of
 * tokens, by Ollama's names and with its defaults; the rest becomes the fields of a completion or a chat. */
#include <limits.h>
#include <math.h>
#include <string.h>
#include "server/api/parts.h"
#include "server/put.h"
#include "text/fim.h"

/* --- options ------------------------------------------------------------------------------------- */

/* Ollama's documented values, where the model's files name none. */
void api_ollama_defaults(const struct engine *engine, struct sampling *s) {
    const struct generation_defaults *d = &engine->defaults;
    if (isnan(d->temperature)) s->temperature = 0.8f;
    if (isnan(d->top_p)) s->top_p = 0.9f;
    if (isnan(d->repetition_penalty)) s->repetition_penalty = 1.1f;
    if (d->top_k < 0) s->top_k = 40;
    s->repetition_last_n = 64;
}

void api_ollama_sampling(struct api_job *job) {
    struct fields *f = &job->fields;
    struct sampling *s = &job->request->sched.sampling;
    s->repetition_penalty = (float)fields_number(f, "repeat_penalty", 0.01, 100, (double)s->repetition_penalty);
    int last_n = (int)fields_int(f, "repeat_last_n", -1, INT_MAX, s->repetition_last_n);
    if (last_n == 0) s->repetition_penalty = 1;
    s->repetition_last_n = last_n < 0 ? 0 : last_n;
}

/* Samplers that are not here, with the value that asks for nothing. */
static const struct {
    const char *name;
    double neutral;
} MISSING[] = {{"mirostat", 0}, {"typical_p", 1}, {"tfs_z", 1}};

static void refuse_samplers(struct fields *f) {
    for (size_t i = 0; i < sizeof MISSING / sizeof *MISSING; i++) {
        double value = fields_number(f, MISSING[i].name, -1e30, 1e30, MISSING[i].neutral);
        if (fields_failed(f) || value == MISSING[i].neutral) continue;
        api_error_set(f->error, 400, MISSING[i].name, "unsupported_parameter", "%s: there is no such sampler here",
                      MISSING[i].name);
    }
}

/* How a model is loaded was settled when the server started; the types are still looked at. num_ctx too is no more than a
 * wish: the context is what the server says, and what does not fit in it is refused, never cut. */
static void pass_load_options(struct fields *f) {
    static const char *const COUNTS[] = {"num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread"};
    static const char *const SWITCHES[] = {"numa", "low_vram", "use_mmap", "use_mlock"};
    for (size_t i = 0; i < sizeof COUNTS / sizeof *COUNTS; i++) fields_int(f, COUNTS[i], INT64_MIN, INT64_MAX, 0);
    for (size_t i = 0; i < sizeof SWITCHES / sizeof *SWITCHES; i++) fields_bool(f, SWITCHES[i], false);
}

static void parse_options(struct api_job *job) {
    struct api_job inner = *job;
    inner.fields.object = fields_object(&job->fields, "options");
    struct fields *f = &inner.fields;
    api_settings_parse(&inner);
    refuse_samplers(f);
    pass_load_options(f);
    int64_t n = fields_int(f, "num_predict", INT_MIN, INT_MAX, -1);
    job->request->n_predict = n <= 0 ? -1 : (int)n; /* 0 is no limit either */
}

/* --- fields of both ------------------------------------------------------------------------------- */

/* The model stays loaded whatever is said. */
static void pass_keep_alive(struct fields *f) {
    const json_t *value = fields_get(f, "keep_alive");
    if (!value || json_is_number(value) || json_is_string(value)) return;
    api_error_field(f->error, "keep_alive", "keep_alive must be a number or a string, found %s", json_type_name(value));
}

static void parse_logprobs(struct api_job *job) {
    bool wanted = fields_bool(&job->fields, "logprobs", false);
    int64_t top = fields_int(&job->fields, "top_logprobs", 0, api_policy_of(job->model)->max_logprobs, 0);
    job->request->sched.n_logprobs = wanted ? (int)top : -1;
}

/* --- chats --------------------------------------------------------------------------------------- */

static void set(struct api_job *job, const char *key, json_t *value) {
    if (value && json_object_set_new(job->request->root, key, value) == 0) return;
    if (!fields_failed(&job->fields)) api_error_no_memory(job->fields.error);
}

/* What `think` asks for: 1, 0, or -1 if it asks for nothing. */
static int parse_think(struct fields *f) {
    static const char *const LEVELS[] = {"low", "medium", "high", "max"};
    const json_t *think = fields_get(f, "think");
    if (!think) return -1;
    if (json_is_boolean(think)) return json_is_true(think);
    for (size_t i = 0; json_is_string(think) && i < sizeof LEVELS / sizeof *LEVELS; i++) {
        if (!strcmp(json_string_value(think), LEVELS[i])) return 1;
    }
    api_error_field(f->error, "think", "think must be true, false, \"low\", \"medium\", \"high\" or \"max\"");
    return -1;
}

/* The body is a chat's by now. A model that thinks whatever it is told has its thoughts left out where none are wanted. */
static void parse_as_chat(struct api_job *job, int think) {
    const json_t *level = fields_get(&job->fields, "think");
    if (!json_is_string(level)) level = NULL;
    if (think >= 0) {
        set(job, "chat_template_kwargs", json_pack("{s:b, s:O*}", "thinking", think, "reasoning_effort", level));
    }
    if (think == 0) set(job, "include_reasoning", json_false());
    if (fields_failed(&job->fields)) return;
    api_chat_parse(job);
    bool thinks = job->request->message.thought != MESSAGE_NO_THOUGHT || job->model->keeps_thoughts;
    if (think != 1 || thinks || fields_failed(&job->fields)) return;
    api_error_field(job->fields.error, "think", "\"%s\" does not support thinking", job->request->model);
}

/* Ollama takes a message without a content for an empty one, writes no tool calls as null, and has an empty content beside
 * those that there are. */
static void settle_message(struct fields *f, json_t *message, size_t index) {
    const json_t *content = json_object_get(message, "content");
    const json_t *thought = json_object_get(message, "thinking");
    bool calls = json_array_size(json_object_get(message, "tool_calls")) > 0;
    if (json_is_string(thought)) json_object_set_new(message, "reasoning_content", put_share(thought));
    if (json_array_size(json_object_get(message, "images")) > 0) {
        api_error_field(f->error, "messages", "messages[%zu]: this model takes no images", index);
    }
    if (calls && json_is_string(content) && json_string_length(content) == 0) {
        json_object_set_new(message, "content", json_null());
    } else if (!calls && (!content || json_is_null(content))) {
        json_object_set_new(message, "content", json_string(""));
    }
}

/* The caller's; NULL without memory. */
static json_t *settled(struct fields *f, const json_t *messages) {
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = put_copy(json_array_get(messages, i));
        settle_message(f, message, i);
        put_last(&list, message);
    }
    return list;
}

static void parse_chat(struct api_job *job) {
    struct fields *f = &job->fields;
    const json_t *messages = fields_array(f, "messages");
    int think = parse_think(f);
    size_t n = json_array_size(messages);
    job->request->only_loads = n == 0;
    if (fields_failed(f) || n == 0) return;
    const json_t *last = json_array_get(messages, n - 1);
    const char *role = json_string_value(json_object_get(last, "role"));
    bool is_answer = role && !strcmp(role, "assistant") && json_array_size(json_object_get(last, "tool_calls")) == 0;
    set(job, "continue_final_message", json_boolean(is_answer)); /* Ollama goes on with an answer that is last */
    set(job, "messages", settled(f, messages));
    parse_as_chat(job, think);
}

/* --- prompts ------------------------------------------------------------------------------------- */

/* Editors write the marks of a hole themselves and leave the rest to Ollama's template for such models, which is empty. */
static bool has_hole(const struct engine *engine, const json_t *prompt) {
    int32_t ids[3];
    size_t size;
    if (!engine->tokenizer || !fim_ids(engine->tokenizer, ids)) return false;
    const char *mark = tokenizer_token_bytes(engine->tokenizer, ids[1], &size);
    return memmem(json_string_value(prompt), json_string_length(prompt), mark, size) != NULL;
}

/* The conversation so far, as an earlier answer gave it, before the prompt at hand: there is one BOS, and where a template is
 * used the last answer is closed as it would close it. */
static void put_context(struct api_job *job) {
    const json_t *context = fields_array(&job->fields, "context");
    if (fields_failed(&job->fields) || json_array_size(context) == 0) return;
    const struct tokenizer *tokenizer = job->model->engine->tokenizer;
    struct token_list *ids = &job->request->prompts[0].ids, all = {0};
    struct mo_error cause = {0};
    int32_t bos = tokenizer ? tokenizer_bos(tokenizer) : -1, eos = tokenizer ? tokenizer_eos(tokenizer) : -1;
    int code = 0;
    for (size_t i = 0; i < json_array_size(context) && !code; i++) {
        int32_t id = fields_token(&job->fields, json_array_get(context, i), "context", job->model->engine->model.vocab);
        code = token_list_push(&all, id, &cause);
    }
    bool is_open = job->model->engine->chat && all.n > 0 && eos >= 0 && all.ids[all.n - 1] != eos;
    if (!code && is_open) code = token_list_push(&all, eos, &cause);
    size_t first = ids->n > 0 && ids->ids[0] == bos ? 1 : 0;
    for (size_t i = first; i < ids->n && !code; i++) code = token_list_push(&all, ids->ids[i], &cause);
    if (code) api_error_from(job->fields.error, &cause, "context");
    token_list_free(ids);
    *ids = all;
}

/* A prompt that is a user's message. */
static void parse_templated(struct api_job *job, const json_t *prompt, const json_t *system, int think) {
    json_t *messages = json_array();
    if (json_string_length(system) > 0) {
        put_last(&messages, json_pack("{s:s, s:O}", "role", "system", "content", system));
    }
    put_last(&messages, json_pack("{s:s, s:O}", "role", "user", "content", prompt));
    set(job, "messages", messages);
    parse_as_chat(job, think);
}

/* A prompt that is taken as it is, or as what stands before a hole. */
static void parse_plain(struct api_job *job, bool is_hole, const json_t *system, int think) {
    struct fields *f = &job->fields;
    if (think == 1) api_error_field(f->error, "think", "think needs a prompt that goes through the chat template");
    if (!is_hole && json_string_length(system) > 0) {
        api_error_field(f->error, "system", "system needs a chat template, and this model has none");
    }
    if (is_hole && json_array_size(fields_array(f, "context")) > 0) {
        api_error_field(f->error, "context", "a hole is filled without a context: put it into the prompt");
    }
    parse_logprobs(job);
    api_prompts_parse(job);
}

static void parse_generate(struct api_job *job) {
    struct fields *f = &job->fields;
    const struct engine *engine = job->model->engine;
    const json_t *prompt = fields_string(f, "prompt"), *suffix = fields_string(f, "suffix");
    const json_t *system = fields_string(f, "system");
    bool is_raw = fields_bool(f, "raw", false), fills = json_string_length(suffix) > 0;
    int think = parse_think(f);
    fields_refuse(f, "template", "the model's own is used");
    if (is_raw && (json_string_length(system) > 0 || json_array_size(fields_array(f, "context")) > 0)) {
        api_error_field(f->error, "raw", "raw mode does not support template, system, or context");
    }
    job->request->only_loads = json_string_length(prompt) == 0 && !fills;
    if (fields_failed(f) || job->request->only_loads) return;
    if (!prompt) set(job, "prompt", json_string("")); /* the file begins with the hole */
    bool is_hole = fills || (!is_raw && has_hole(engine, prompt));
    if (is_hole || is_raw || !engine->chat)
        parse_plain(job, is_hole, system, think);
    else
        parse_templated(job, prompt, system, think);
    job->request->return_tokens = !is_hole && !is_raw;
    put_context(job);
}

void api_ollama_parse(struct api_job *job) {
    static const char *const NOT_OURS[] = {"max_tokens",         "max_completion_tokens",  "chat_template_kwargs",
                                           "thinking",           "continue_final_message", "add_generation_prompt",
                                           "add_special_tokens", "include_reasoning",      "reasoning_format"};
    struct fields *f = &job->fields;
    struct api_request *request = job->request;
    fields_drop(request->root, NOT_OURS, sizeof NOT_OURS / sizeof *NOT_OURS);
    if (!json_is_true(json_object_get(request->root, "logprobs"))) json_object_del(request->root, "top_logprobs");
    fields_refuse(f, "images", "this model takes no images");
    if (request->kind == API_OLLAMA_CHAT)
        api_tools_parse(job);
    else
        fields_refuse(f, "tools", "only chats have tools");
    pass_keep_alive(f);
    request->n = 1;
    request->stream = fields_bool(f, "stream", true);
    parse_options(job);
    api_structured_parse(job);
    if (fields_failed(f)) return;
    if (request->kind == API_OLLAMA_CHAT)
        parse_chat(job);
    else
        parse_generate(job);
    if (request->only_loads) request->stream = false; /* Ollama answers that with one object */
    request->sched.max_tokens = request->n_predict;
}
