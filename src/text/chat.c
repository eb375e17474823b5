#include "text/chat.h"

#include <stdlib.h>
#include <string.h>
#include "base/json_spell.h"
#include "text/calls.h"
#include "text/chat_priv.h"

enum { MARKERS_MAX = 4 };

struct chat_template {
    const char *name;
    void (*render)(struct chat_job *job);
    const char *markers[MARKERS_MAX]; /* a checkpoint's template is this one if it has all of these */
};

/* In order: the first row that fits counts, so a row stands before those whose markers it has too. */
static const struct chat_template TEMPLATES[] = {
    {"deepseek-coder-v2",
     chat_render_coder_v2,
     {"'User: ' + message['content']", "'Assistant: ' + message['content'] + eos_token"}},
    {"deepseek-v3.1", chat_render_v3_1, {"is_first_sp", "'<｜Assistant｜></think>'", "not thinking"}},
    {"deepseek-v3.1-terminus",
     chat_render_v3_1_terminus,
     {"'<｜Assistant｜></think>'", "is_last_user or ns.is_only_sys", "not ns.is_prefix", "not thinking"}},
    {"deepseek-v3.2", chat_render_v3_2, {"｜DSML｜", "function_calls>", "invoke name=", "function_results"}},
    {"deepseek-v4.1", chat_render_v4_1, {"｜DSML｜", " calls", "tool_result>", "range 1-100"}},
    {"deepseek-v4-0731", chat_render_v4_0731, {"｜DSML｜", "tool_calls>", "tool_result>", "Beyond maximum"}},
    {"deepseek-v4", chat_render_v4, {"｜DSML｜", "tool_calls>", "tool_result>", "invoke name="}},
    {"deepseek-r1", chat_render_r1, {"is_first_sp", "'<｜Assistant｜><think>"}},
    {"deepseek-r1-0528", chat_render_r1_0528, {"is_first_sp", "is_last_user", "content.split('</think>')[-1]"}},
    {"deepseek-v3-0324", chat_render_v3_0324, {"is_first_sp", "is_last_user"}},
    {"deepseek-v3", chat_render_v3, {"is_first_sp", "message['content'] is none", "is_output_first"}},
};

/* A template that has one of these, which the row's own markers do not ask for, is a later or rewritten one (copies that print the
 * tools) and must not be taken for the one that it grew from. */
static const char *const FOREIGN_MARKERS[] = {"tools", "is_only_sys", "is_prefix", "enable_thinking"};

/* What config.json calls models whose release has no template. (V3.2-Exp is called as V3.2 is, and has one. V4-Flash-0731 is called
 * as V4 is: its module says which it is.) */
static const struct {
    const char *architecture, *name;
} WITHOUT_TEMPLATE[] = {{"DeepseekV32ForCausalLM", "deepseek-v3.2"},
                        {"DeepseekV4ForCausalLM", "deepseek-v4"},
                        {"DeepseekV41ForCausalLM", "deepseek-v4.1"}};

#define N_TEMPLATES (sizeof TEMPLATES / sizeof *TEMPLATES)
#define N_FOREIGN (sizeof FOREIGN_MARKERS / sizeof *FOREIGN_MARKERS)

const struct chat_template *chat_template_by_name(const char *name) {
    for (size_t i = 0; i < N_TEMPLATES; i++) {
        if (strcmp(name, TEMPLATES[i].name) == 0) return &TEMPLATES[i];
    }
    return NULL;
}

static bool has_markers(const struct chat_template *chat, const char *jinja) {
    for (int i = 0; i < MARKERS_MAX && chat->markers[i]; i++) {
        if (!strstr(jinja, chat->markers[i])) return false;
    }
    return true;
}

static bool asks_for(const struct chat_template *chat, const char *word) {
    for (int i = 0; i < MARKERS_MAX && chat->markers[i]; i++) {
        if (strstr(chat->markers[i], word)) return true;
    }
    return false;
}

/* Releases with DSML have no Jinja template: every copy is somebody's, and means the same. */
static bool is_foreign(const struct chat_template *chat, const char *jinja) {
    if (chat_calls_are_dsml(chat_template_calls(chat))) return false;
    for (size_t i = 0; i < N_FOREIGN; i++) {
        if (strstr(jinja, FOREIGN_MARKERS[i]) && !asks_for(chat, FOREIGN_MARKERS[i])) return true;
    }
    return false;
}

const struct chat_template *chat_template_detect(const char *jinja) {
    for (size_t i = 0; i < N_TEMPLATES; i++) {
        if (has_markers(&TEMPLATES[i], jinja) && !is_foreign(&TEMPLATES[i], jinja)) return &TEMPLATES[i];
    }
    return NULL;
}

const char *chat_template_name(const struct chat_template *chat) {
    return chat->name;
}

bool chat_template_reasons(const struct chat_template *chat) {
    return chat->render == chat_render_r1_0528;
}

bool chat_template_may_reason(const struct chat_template *chat) {
    return chat->render == chat_render_r1 || chat->render == chat_render_r1_0528;
}

enum chat_calls chat_template_calls(const struct chat_template *chat) {
    if (chat->render == chat_render_coder_v2) return CHAT_CALLS_PLAIN;
    if (chat->render == chat_render_v3_2) return CHAT_CALLS_DSML;
    if (chat->render == chat_render_v4 || chat->render == chat_render_v4_0731) return CHAT_CALLS_DSML_V4;
    if (chat->render == chat_render_v4_1) return CHAT_CALLS_DSML_V4_1;
    bool is_bare = chat->render == chat_render_v3_1 || chat->render == chat_render_v3_1_terminus;
    return is_bare ? CHAT_CALLS_BARE : CHAT_CALLS_FENCED;
}

const char *chat_template_gap(const struct chat_template *chat) {
    enum chat_calls form = chat_template_calls(chat);
    return form == CHAT_CALLS_DSML_V4 || form == CHAT_CALLS_DSML_V4_1 ? "\n\n" : "\n";
}

bool chat_template_places_system(const struct chat_template *chat) {
    return chat->render == chat_render_v4_1;
}

bool chat_calls_are_dsml(enum chat_calls form) {
    return chat_calls_tags(form) != NULL;
}

#define TAGS(block, call, parameter)                                                                                   \
    {                                                                                                                  \
        "<" DSML block ">", "</" DSML block ">", "<" DSML call " name=\"", "</" DSML call ">",                         \
            "<" DSML parameter " name=\"", "</" DSML parameter ">"                                                     \
    }

const struct dsml_tags *chat_calls_tags(enum chat_calls form) {
    static const struct dsml_tags v3_2 = TAGS("function_calls", "invoke", "parameter");
    static const struct dsml_tags v4 = TAGS("tool_calls", "invoke", "parameter");
    static const struct dsml_tags v4_1 = TAGS(" calls", " invoke", " parameter");
    switch (form) {
    case CHAT_CALLS_DSML:
        return &v3_2;
    case CHAT_CALLS_DSML_V4:
        return &v4;
    case CHAT_CALLS_DSML_V4_1:
        return &v4_1;
    default:
        return NULL;
    }
}

const char *chat_template_names(void) {
    return "deepseek-coder-v2, deepseek-v3, deepseek-v3-0324, deepseek-r1, deepseek-r1-0528, deepseek-v3.1, "
           "deepseek-v3.1-terminus, deepseek-v3.2, deepseek-v4, deepseek-v4-0731, deepseek-v4.1";
}

static const struct chat_template *of_architecture(const char *architecture) {
    for (size_t i = 0; i < sizeof WITHOUT_TEMPLATE / sizeof *WITHOUT_TEMPLATE; i++) {
        if (!strcmp(architecture, WITHOUT_TEMPLATE[i].architecture))
            return chat_template_by_name(WITHOUT_TEMPLATE[i].name);
    }
    return NULL;
}

int chat_template_choose(const struct chat_template **chat, const char *name, const struct tokenizer *tokenizer,
                         struct mo_error *error) {
    const char *jinja = tokenizer_chat_template(tokenizer), *text = jinja ? jinja : tokenizer_chat_module(tokenizer);
    if (name) {
        *chat = chat_template_by_name(name);
        if (*chat) return 0;
        return mo_error_set(error, MO_E_INVALID, "--chat-template: expected one of %s, found \"%.100s\"",
                            chat_template_names(), name);
    }
    *chat = text ? chat_template_detect(text) : of_architecture(tokenizer_architecture(tokenizer));
    if (*chat) return 0;
    return mo_error_set(error, MO_E_UNSUPPORTED, "the model %s: choose one with --chat-template NAME (%s)",
                        text ? "has a chat template that is not known here" : "has no chat template",
                        chat_template_names());
}

void chat_prompt_free(struct chat_prompt *prompt) {
    free(prompt->text);
    free(prompt->ranges);
    *prompt = (struct chat_prompt){0};
}

static void fail(struct chat_job *job, int code) {
    if (!job->code) job->code = code;
}

void chat_no_memory(struct chat_job *job) {
    fail(job, mo_error_set(job->error, MO_E_NO_MEMORY, "out of memory for the prompt"));
}

void chat_refuse(struct chat_job *job, const struct chat_message *message, const char *what) {
    if (job->code) return;
    fail(job, mo_error_set(job->error, MO_E_INVALID, "messages[%zu]: %s", message->index, what));
}

void chat_refuse_variable(struct chat_job *job, const char *what) {
    if (!job->code) fail(job, mo_error_set(job->error, MO_E_INVALID, "%s", what));
}

static enum chat_role role_parse(const char *name) {
    static const char *const names[] = {"system", "user", "assistant", "tool", "developer", "latest_reminder"};
    for (unsigned i = 0; name && i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) return (enum chat_role)(1u << i);
    }
    return 0;
}

struct chat_message chat_message_at(struct chat_job *job, size_t index, int roles) {
    struct chat_message message = {json_array_get(job->messages, index), index, 0};
    const json_t *role = json_object_get(message.json, "role");
    if (!json_is_object(message.json)) {
        chat_refuse(job, &message, "expected an object");
    } else if (!json_is_string(role)) {
        chat_refuse(job, &message, "\"role\" is missing or not a string");
    } else if (!((int)role_parse(json_string_value(role)) & roles)) {
        if (job->code) return message;
        fail(job, mo_error_set(job->error, MO_E_INVALID, "messages[%zu]: role \"%.40s\" is unknown to this template",
                               index, json_string_value(role)));
    } else {
        message.role = role_parse(json_string_value(role));
    }
    return message;
}

bool chat_content_is_null(const struct chat_message *message) {
    return json_is_null(json_object_get(message->json, "content"));
}

struct chat_string chat_content(struct chat_job *job, const struct chat_message *message) {
    const json_t *content = json_object_get(message->json, "content");
    if (json_is_string(content)) return (struct chat_string){json_string_value(content), json_string_length(content)};
    chat_refuse(job, message, !content ? "\"content\" is missing" : "expected \"content\" to be a string");
    return (struct chat_string){0};
}

/* Makes room for one more range. */
static bool ranges_reserve(struct chat_job *job) {
    if (job->out->n_ranges < job->ranges_capacity) return true;
    size_t capacity = job->ranges_capacity ? 2 * job->ranges_capacity : 64;
    struct text_range *ranges = realloc(job->out->ranges, capacity * sizeof *ranges);
    if (!ranges) return false;
    job->out->ranges = ranges;
    job->ranges_capacity = capacity;
    return true;
}

static bool text_reserve(struct chat_job *job, size_t n) {
    size_t need = job->out->size + n + 1;
    if (need <= job->text_capacity) return true;
    size_t capacity = need < 1024 ? 2048 : 2 * need;
    char *text = realloc(job->out->text, capacity);
    if (!text) return false;
    job->out->text = text;
    job->text_capacity = capacity;
    return true;
}

void chat_put(struct chat_job *job, struct chat_string string) {
    if (job->code || string.size == 0) return;
    if (!text_reserve(job, string.size)) {
        chat_no_memory(job);
        return;
    }
    memcpy(job->out->text + job->out->size, string.text, string.size);
    job->out->size += string.size;
}

void chat_put_json(struct chat_job *job, const json_t *text) {
    chat_put(job, (struct chat_string){json_string_value(text), json_string_length(text)});
}

void chat_put_value(struct chat_job *job, const json_t *value) {
    struct buffer text = {0};
    json_spell(&text, value);
    if (text.failed) chat_no_memory(job);
    chat_put(job, (struct chat_string){text.data, text.size});
    buffer_free(&text);
}

void chat_own(struct chat_job *job, const char *text) {
    struct chat_prompt *out = job->out;
    size_t begin = out->size;
    if (job->code || !text[0]) return;
    if (!ranges_reserve(job)) {
        chat_no_memory(job);
        return;
    }
    chat_put(job, (struct chat_string){text, strlen(text)});
    bool joins = out->n_ranges && out->ranges[out->n_ranges - 1].end == begin;
    if (joins) {
        out->ranges[out->n_ranges - 1].end = out->size;
    } else {
        out->ranges[out->n_ranges++] = (struct text_range){begin, out->size};
    }
}

bool chat_truth(const json_t *value) {
    if (!value || json_is_null(value) || json_is_false(value)) return false;
    if (json_is_number(value)) return json_number_value(value) != 0;
    if (json_is_string(value)) return json_string_length(value) > 0;
    if (json_is_array(value)) return json_array_size(value) > 0;
    if (json_is_object(value)) return json_object_size(value) > 0;
    return true;
}

int chat_render(const struct chat_template *chat, const json_t *messages, bool add_generation_prompt,
                const json_t *kwargs, const char *bos, const char *eos, struct chat_prompt *out,
                struct mo_error *error) {
    *out = (struct chat_prompt){0};
    if (!json_is_array(messages)) return mo_error_set(error, MO_E_INVALID, "expected \"messages\" to be an array");
    if (kwargs && !json_is_null(kwargs) && !json_is_object(kwargs)) {
        return mo_error_set(error, MO_E_INVALID, "expected \"chat_template_kwargs\" to be an object");
    }
    struct chat_job job = {
        .messages = messages,
        .kwargs = json_is_object(kwargs) ? kwargs : NULL,
        .add_generation_prompt = add_generation_prompt,
        .bos = bos ? bos : "",
        .eos = eos ? eos : "",
        .out = out,
        .error = error,
    };
    if (text_reserve(&job, 0)) {
        chat->render(&job);
    } else {
        job.code = mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the prompt");
    }
    if (job.code) {
        chat_prompt_free(out);
    } else {
        out->text[out->size] = 0;
    }
    return job.code;
}
