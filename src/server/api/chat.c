/* server/api/chat.c - the fields of POST /v1/chat/completions. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "server/api/parts.h"
#include "base/buffer.h"
#include "server/put.h"
#include "text/calls.h"
#include "text/chat_tools.h"

/* --- messages ------------------------------------------------------------------------------------ */

/* A list of text parts becomes one string, with the gap between them. */
static json_t *join_parts(const json_t *parts, const char *gap, size_t message, struct api_error *error) {
    struct buffer text = {0};
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const char *type = json_is_string(part) ? "text" : fields_type_of(part);
        bool is_refusal = !strcmp(type, "refusal"); /* an answer of OpenAI's own models, sent back */
        const json_t *piece = json_is_string(part) ? part : json_object_get(part, is_refusal ? type : "text");
        if (!json_is_string(piece) || (!is_refusal && strcmp(type, "text") && strcmp(type, "input_text"))) {
            api_error_field(error, "messages",
                            "messages[%zu]: content part %zu is not a text part: only text is supported", message, i);
            buffer_free(&text);
            return NULL;
        }
        if (i) buffer_add_text(&text, gap);
        buffer_add(&text, json_string_value(piece), json_string_length(piece));
    }
    json_t *joined = put_text(&text);
    if (!joined) api_error_no_memory(error);
    buffer_free(&text);
    return joined;
}

static json_t *message_copy(const json_t *message, const char *gap, size_t index, struct api_error *error) {
    const json_t *content = json_object_get(message, "content");
    const char *role = json_string_value(json_object_get(message, "role"));
    if (!json_is_object(message)) {
        api_error_field(error, "messages", "messages[%zu]: expected an object, found %s", index,
                        json_type_name(message));
        return NULL;
    }
    json_t *copy = put_copy(message);
    int code = copy ? 0 : -1;
    if (!code && role &&
        strcmp(role, "developer") == 0) { /* OpenAI's, who instructs; V3.2's format and V4's have one who asks */
        code = json_object_set_new(copy, "role", json_string("system"));
    }
    /* DeepSeek's module for V4 takes these from a system's or developer's message, where its API puts what a request has beside the
     * messages; to the API itself they mean nothing in a message. */
    static const char *const OF_THE_MODULE[] = {"task", "tools", "response_format"};
    for (size_t i = 0; i < sizeof OF_THE_MODULE / sizeof *OF_THE_MODULE; i++) json_object_del(copy, OF_THE_MODULE[i]);
    if (!code && !content && role && !strcmp(role, "assistant")) { /* as some clients write an empty answer */
        code = json_object_set_new(copy, "content", json_null());
    }
    if (!code && json_is_array(content)) {
        json_t *joined = join_parts(content, gap, index, error);
        code = joined ? json_object_set_new(copy, "content", joined) : -1;
    }
    if (!code) return copy;
    json_decref(copy);
    if (!error->status) api_error_no_memory(error);
    return NULL;
}

static json_t *copy_messages(const json_t *messages, const char *gap, struct api_error *error) {
    json_t *copies = json_array();
    if (!copies) api_error_no_memory(error);
    for (size_t i = 0; copies && i < json_array_size(messages); i++) {
        json_t *copy = message_copy(json_array_get(messages, i), gap, i, error);
        if (copy && json_array_append_new(copies, copy) == 0) continue;
        json_decref(copies);
        if (!error->status) api_error_no_memory(error);
        return NULL;
    }
    return copies;
}

json_t *api_messages_copy(const json_t *messages, const struct chat_template *chat, struct api_error *error) {
    struct mo_error cause = {0};
    json_t *copies = copy_messages(messages, chat ? chat_template_gap(chat) : "\n", error);
    if (!copies || chat_settle_calls(chat, copies, &cause) == 0) return copies;
    api_error_from(error, &cause, "messages");
    json_decref(copies);
    return NULL;
}

/* --- the prompt ---------------------------------------------------------------------------------- */

static const json_t *last_message(const json_t *messages) {
    size_t n = json_array_size(messages);
    return n ? json_array_get(messages, n - 1) : NULL;
}

static bool last_is_assistant(const json_t *messages) {
    const char *role = json_string_value(json_object_get(last_message(messages), "role"));
    return role && strcmp(role, "assistant") == 0;
}

/* Whether the answer continues the last message: vLLM's field, or DeepSeek's mark on the message. */
static bool continues_last(struct api_job *job, const json_t *messages) {
    struct fields *f = &job->fields;
    const json_t *last = last_message(messages);
    bool by_field = fields_bool(f, "continue_final_message", false);
    bool by_mark = json_is_true(json_object_get(last, "prefix"));
    if (fields_failed(f) || (!by_field && !by_mark)) return false;
    if (!last_is_assistant(messages)) {
        api_error_field(f->error, by_field ? "continue_final_message" : "messages",
                        "only an assistant's message can be continued, and the last one is none");
    } else if (by_field && json_is_true(fields_get(f, "add_generation_prompt"))) {
        api_error_field(f->error, "continue_final_message",
                        "continue_final_message and add_generation_prompt cannot both be true");
    }
    return true;
}

/* The templates close an assistant's message with eos: without it the message goes on. */
static void open_last(struct api_job *job, struct token_list *ids) {
    int32_t eos = tokenizer_eos(job->model->engine->tokenizer);
    if (ids->n > 0 && eos >= 0 && ids->ids[ids->n - 1] == eos) {
        ids->n--;
    } else {
        api_error_field(job->fields.error, "messages", "this model's chat template cannot continue a message");
    }
}

/* Models think or do not; to V4's it says how much, too, and to V4.1's by a number if one likes. */
static void think_by_effort(json_t **variables) {
    const json_t *effort = json_object_get(*variables, "reasoning_effort");
    const char *word = json_string_value(effort);
    if ((!word && !json_is_integer(effort)) || json_object_get(*variables, "thinking")) return;
    put(variables, "thinking", json_boolean(!word || (strcmp(word, "none") != 0 && strcmp(word, "minimal") != 0)));
}

/* OpenAI's, where DeepSeek's own word is not there. */
static void add_effort(struct fields *f, json_t **variables) {
    const json_t *effort = fields_get(f, "reasoning_effort");
    if (!json_is_number(effort)) effort = fields_string(f, "reasoning_effort");
    if (effort && !json_object_get(*variables, "reasoning_effort"))
        put(variables, "reasoning_effort", put_share(effort));
    think_by_effort(variables);
}

/* The schema of the answer, for a template that tells it (V3.2's, V4's, V4.1's). */
static void add_format(struct fields *f, json_t **variables) {
    const json_t *shape = json_object_get(fields_get(f, "response_format"), "json_schema");
    const json_t *schema = json_object_get(shape, "schema");
    if (!json_is_object(schema) || json_object_get(*variables, "response_format")) return;
    put(variables, "response_format", put_share(schema));
}

/* What other families' templates call it. */
static void rename_thinking(json_t **variables) {
    const json_t *enabled = json_object_get(*variables, "enable_thinking");
    if (enabled && !json_object_get(*variables, "thinking")) put(variables, "thinking", put_share(enabled));
}

/* DeepSeek's "thinking": {"type": "enabled"}, as a template's variable. */
static void add_thinking(struct fields *f, json_t **variables) {
    const json_t *thinking = fields_object(f, "thinking");
    struct fields inner = {thinking, f->error};
    const json_t *type = thinking ? fields_string(&inner, "type") : NULL;
    bool on = type && !strcmp(json_string_value(type), "enabled");
    if (type && !on && strcmp(json_string_value(type), "disabled") != 0) {
        api_error_field(f->error, "thinking", "thinking: type must be \"enabled\" or \"disabled\"");
    }
    if (type && !json_object_get(*variables, "thinking")) put(variables, "thinking", json_boolean(on));
}

/* What the server says for all requests, by the names that they have here; what a request says in any way goes before it. */
static void add_defaults(const json_t *defaults, json_t **variables) {
    json_t *copy = defaults ? put_copy(defaults) : NULL;
    if (!copy) return;
    rename_thinking(&copy);
    think_by_effort(&copy);
    json_object_del(copy, "tools");
    json_object_update_missing(*variables, copy);
    json_decref(copy);
}

json_t *api_template_variables(struct fields *f, const struct api_model *model, const json_t *tools) {
    const json_t *kwargs = fields_object(f, "chat_template_kwargs");
    json_t *variables = kwargs ? put_copy(kwargs) : json_object();
    json_object_del(variables, "tools"); /* only those that were checked */
    if (tools) put(&variables, "tools", put_share(tools));
    rename_thinking(&variables);
    add_thinking(f, &variables);
    add_effort(f, &variables);
    add_format(f, &variables);
    add_defaults(api_policy_of(model)->template_variables, &variables);
    if (!variables && !fields_failed(f)) api_error_no_memory(f->error);
    if (!fields_failed(f)) return variables;
    json_decref(variables);
    return NULL;
}

/* --- how the answer is read ---------------------------------------------------------------------- */

/* Where a grammar waits for the end of a thought that the model opens by itself, that is done for it: it cannot be left out. (The
 * grammar of tools has the thought in it.) */
static void open_thought(struct api_job *job, struct token_list *ids) {
    const struct engine *engine = job->model->engine;
    struct mo_error cause = {0};
    int32_t begin = tokenizer_added_id(engine->tokenizer, THINK_BEGIN);
    if (!job->request->sched.grammar || !chat_template_reasons(engine->chat) || begin < 0) return;
    if (engine_reasoning_end(engine, ids) < 0) return;
    if (token_list_push(ids, begin, &cause)) api_error_from(job->fields.error, &cause, NULL);
}

static enum message_thought thought_of(const struct engine *engine, const struct token_list *ids) {
    int32_t begin = tokenizer_added_id(engine->tokenizer, THINK_BEGIN);
    bool opens_itself = chat_template_reasons(engine->chat), is_open = engine_reasoning_end(engine, ids) >= 0;
    if (is_open && (!opens_itself || ids->ids[ids->n - 1] == begin)) return MESSAGE_THOUGHT_FIRST;
    return chat_template_may_reason(engine->chat) ? MESSAGE_MAYBE_THOUGHT : MESSAGE_NO_THOUGHT;
}

/* A tokenizer may call its marks special: then they have to be asked for. */
static bool hides_marks(const struct tokenizer *tokenizer) {
    static const char *const MARKS[] = {THINK_BEGIN,    THINK_END, CALLS_BEGIN, CALL_BEGIN,
                                        CALL_SEPARATOR, CALL_END,  CALLS_END,   DSML};
    bool hides = false;
    for (size_t i = 0; i < sizeof MARKS / sizeof *MARKS; i++) {
        int32_t id = tokenizer_added_id(tokenizer, MARKS[i]);
        hides = hides || (id >= 0 && tokenizer_is_special(tokenizer, id));
    }
    return hides;
}

/* llama.cpp's reasoning_format: "none" leaves thoughts in the text. Calls are only looked for behind them, so with tools they are
 * split off all the same. */
static bool splits_thoughts(struct api_job *job) {
    const json_t *format = fields_string(&job->fields, "reasoning_format");
    const char *word = json_string_value(format);
    bool is_none = word && !strcmp(word, "none");
    if (word && !is_none && strcmp(word, "auto") && strcmp(word, "deepseek") && strcmp(word, "deepseek-legacy")) {
        api_error_field(job->fields.error, "reasoning_format",
                        "reasoning_format must be \"auto\", \"deepseek\" or \"none\"");
    }
    if (!word) is_none = job->model->keeps_thoughts;
    return !is_none || job->request->message.tools;
}

static void set_rules(struct api_job *job, const struct token_list *ids) {
    const struct engine *engine = job->model->engine;
    struct message_rules *rules = &job->request->message;
    bool splits = splits_thoughts(job);
    rules->form = chat_template_calls(engine->chat);
    rules->hides_thought = !fields_bool(&job->fields, "include_reasoning", true);
    rules->thought = splits ? thought_of(engine, ids) : MESSAGE_NO_THOUGHT;
    bool has_marks = rules->thought != MESSAGE_NO_THOUGHT || rules->tools;
    if (has_marks && hides_marks(engine->tokenizer)) job->request->sched.keep_special = true;
}

static void encode_messages(struct api_job *job, const json_t *messages) {
    const struct engine *engine = job->model->engine;
    struct api_prompt *prompt = &job->request->prompts[0];
    struct mo_error cause = {0};
    bool continues = continues_last(job, messages);
    bool generation = fields_bool(&job->fields, "add_generation_prompt", true) && !continues;
    json_t *variables = api_template_variables(&job->fields, job->model, job->request->message.tools);
    json_t *copy = variables ? api_messages_copy(messages, engine->chat, job->fields.error) : NULL;
    int code = copy ? engine_encode_chat(engine, copy, generation, variables, &prompt->ids, &cause) : 0;
    json_decref(copy);
    json_decref(variables);
    if (!copy) return;
    if (code) {
        api_prompt_failed(job, prompt, &cause, "messages");
    } else if (continues) {
        open_last(job, &prompt->ids);
    } else {
        open_thought(job, &prompt->ids);
    }
    if (!fields_failed(&job->fields)) set_rules(job, &prompt->ids);
}

static void parse_messages(struct api_job *job) {
    const json_t *messages = fields_array(&job->fields, "messages");
    if (fields_failed(&job->fields)) return;
    if (json_array_size(messages) == 0) {
        api_error_field(job->fields.error, "messages", messages ? "messages is empty" : "messages is missing");
        return;
    }
    if (!api_prompts_reserve(job, 1)) return;
    job->request->n_prompts = 1;
    encode_messages(job, messages);
}

static void parse_logprobs(struct api_job *job) {
    struct fields *f = &job->fields;
    bool wanted = fields_bool(f, "logprobs", false);
    int64_t top = fields_int(f, "top_logprobs", 0, api_policy_of(job->model)->max_logprobs, 0);
    if (top > 0 && !wanted && !fields_failed(f)) {
        api_error_field(f->error, "top_logprobs", "top_logprobs may only be given with \"logprobs\": true");
    }
    job->request->sched.n_logprobs = wanted ? (int)top : -1;
    job->request->tokens_as_ids =
        fields_bool(f, "return_tokens_as_token_ids", api_policy_of(job->model)->tokens_as_ids);
    if (job->request->kind == API_CHAT) job->request->return_tokens = fields_bool(f, "return_token_ids", false);
}

void api_chat_parse(struct api_job *job) {
    struct fields *f = &job->fields;
    int64_t old_name = fields_int(f, "max_tokens", 1, INT_MAX, -1);
    job->request->sched.max_tokens = (int)fields_int(f, "max_completion_tokens", 1, INT_MAX, old_name);
    parse_logprobs(job);
    parse_messages(job);
}
