/* server/api/completions.c - the fields of POST /v1/completions. */
#include <limits.h>
#include "server/api/parts.h"
#include "text/fim.h"

static void encode_text(struct api_job *job, const json_t *text, const json_t *suffix, bool bos) {
    const struct engine *engine = job->model->engine;
    struct api_prompt *prompt = &job->request->prompts[job->request->n_prompts++];
    struct mo_error cause = {0};
    prompt->is_text = true;
    prompt->text = json_string_value(text);
    prompt->text_size = json_string_length(text);
    int code = 0;
    if (!suffix) {
        code = api_text_encode(engine, prompt->text, prompt->text_size, bos, &prompt->ids, &cause);
    } else if (!engine->tokenizer) {
        code = mo_error_set(&cause, MO_E_UNSUPPORTED, "suffix needs a tokenizer, and this model has none");
    } else {
        code = fim_encode(engine->tokenizer, prompt->text, prompt->text_size, json_string_value(suffix),
                          json_string_length(suffix), &prompt->ids, &cause);
    }
    if (code) api_prompt_failed(job, prompt, &cause, suffix ? "suffix" : "prompt");
    if (!code && prompt->ids.n == 0) api_error_field(job->fields.error, "prompt", "prompt is empty");
}

static void take_ids(struct api_job *job, const json_t *ids) {
    const struct engine *engine = job->model->engine;
    struct api_prompt *prompt = &job->request->prompts[job->request->n_prompts++];
    struct mo_error cause = {0};
    int code = 0;
    for (size_t i = 0; i < json_array_size(ids) && !code; i++) {
        int32_t id = fields_token(&job->fields, json_array_get(ids, i), "prompt", engine->model.vocab);
        if (fields_failed(&job->fields)) return;
        code = token_list_push(&prompt->ids, id, &cause);
    }
    if (!code && prompt->ids.n == 0) {
        api_error_field(job->fields.error, "prompt", "prompt is empty");
        return;
    }
    if (!code && job->request->echo && engine->tokenizer) {
        code = tokenizer_decode(engine->tokenizer, prompt->ids.ids, prompt->ids.n, !job->request->sched.keep_special,
                                &prompt->decoded, &prompt->text_size, &cause);
        prompt->text = prompt->decoded;
    }
    if (code) api_prompt_failed(job, prompt, &cause, "prompt");
}

/* One of several prompts: a text, or a list of ids. */
static void take_prompt(struct api_job *job, const json_t *value, const json_t *suffix, bool bos) {
    if (json_is_string(value)) {
        encode_text(job, value, suffix, bos);
    } else if (!json_is_array(value)) {
        api_error_field(job->fields.error, "prompt",
                        "prompt must be a string, a list of strings, a list of token ids, or a list of such "
                        "lists; found %s",
                        json_type_name(value));
    } else if (suffix) {
        api_error_field(job->fields.error, "suffix", "suffix needs a prompt of text, not of token ids");
    } else {
        take_ids(job, value);
    }
}

void api_prompts_parse(struct api_job *job) {
    const json_t *prompt = fields_get(&job->fields, "prompt"), *suffix = fields_string(&job->fields, "suffix");
    bool bos = fields_bool(&job->fields, "add_special_tokens", true);
    if (suffix && json_string_length(suffix) == 0) suffix = NULL;
    if (suffix && job->request->echo) {
        api_error_field(job->fields.error, "suffix", "suffix and echo cannot be combined");
    }
    if (!fields_failed(&job->fields) && !prompt) api_error_field(job->fields.error, "prompt", "prompt is missing");
    if (fields_failed(&job->fields)) return;

    bool is_list = json_is_array(prompt) && !json_is_number(json_array_get(prompt, 0));
    size_t n = is_list ? json_array_size(prompt) : 1;
    if (!api_prompts_reserve(job, n)) return;
    for (size_t i = 0; i < n && !fields_failed(&job->fields); i++) {
        take_prompt(job, is_list ? json_array_get(prompt, i) : prompt, suffix, bos);
    }
}

void api_completion_parse(struct api_job *job) {
    struct fields *f = &job->fields;
    struct sched_request *sched = &job->request->sched;
    job->request->echo = fields_bool(f, "echo", false);
    job->request->tokens_as_ids =
        fields_bool(f, "return_tokens_as_token_ids", api_policy_of(job->model)->tokens_as_ids);
    job->request->return_tokens = fields_bool(f, "return_token_ids", false);
    sched->n_logprobs = (int)fields_int(f, "logprobs", 0, api_policy_of(job->model)->max_logprobs, -1);
    sched->prompt_logprobs = job->request->echo && sched->n_logprobs >= 0;
    bool is_limited = job->model->engine->defaults.max_tokens > 0; /* then that is the default, too */
    sched->max_tokens = (int)fields_int(f, "max_tokens", 0, INT_MAX, is_limited ? -1 : 16);
    if (!fields_failed(f) && sched->max_tokens == 0 && !job->request->echo) {
        api_error_field(f->error, "max_tokens", "max_tokens must be at least 1 (0 only with echo), found 0");
    }
    api_prompts_parse(job);
}
