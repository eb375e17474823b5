/* server/api/structured.c - the fields that say what an answer must look like: OpenAI's response_format, vLLM's
 * structured_outputs and its older flat spellings, llama.cpp's grammar. */
#include <stdlib.h>
#include <string.h>
#include "server/api/parts.h"

static const struct {
    const char *inside, *flat; /* in structured_outputs; in the body itself */
    enum grammar_kind kind;
} SPELLINGS[] = {
    {"json", "guided_json", GRAMMAR_JSON_SCHEMA},
    {"regex", "guided_regex", GRAMMAR_REGEX},
    {"choice", "guided_choice", GRAMMAR_CHOICE},
    {"grammar", "guided_grammar", GRAMMAR_GBNF},
    {NULL, "json_schema", GRAMMAR_JSON_SCHEMA},
    {"json_object", NULL, GRAMMAR_JSON_OBJECT},
    {NULL, "grammar", GRAMMAR_GBNF},
};
enum { N_SPELLINGS = sizeof SPELLINGS / sizeof *SPELLINGS };

static void set_wish(struct fields *f, struct api_wish *wish, struct api_wish found) {
    if (wish->param) {
        api_error_field(f->error, found.param, "%s and %s cannot be combined: an answer has one shape", wish->where,
                        found.where);
    }
    *wish = found;
}

/* --- the fields ---------------------------------------------------------------------------------- */

static void parse_format(struct fields *f, struct api_wish *wish) {
    const json_t *format = fields_object(f, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));
    if (!format || (type && !strcmp(type, "text"))) return;
    struct api_wish found = {"response_format", "response_format", GRAMMAR_JSON_OBJECT, NULL};
    const json_t *outer = json_object_get(format, "json_schema"), *schema = json_object_get(format, "schema");
    if (type && !strcmp(type, "json_schema")) {
        found.where = "response_format.json_schema";
        found.kind = GRAMMAR_JSON_SCHEMA;
        found.value = json_object_get(outer, "schema");
        if (!found.value || json_is_null(found.value)) {
            api_error_field(f->error, "response_format",
                            "response_format: expected {\"type\": \"json_schema\", \"json_schema\": {\"name\": ..., "
                            "\"schema\": {...}}}, found no schema");
        }
    } else if (!type || strcmp(type, "json_object")) {
        api_error_field(f->error, "response_format",
                        "response_format: type must be \"text\", \"json_object\" or \"json_schema\"");
    } else if (schema && !json_is_null(schema)) { /* llama.cpp's */
        found.kind = GRAMMAR_JSON_SCHEMA;
        found.value = schema;
    }
    set_wish(f, wish, found);
}

/* Ollama's: "json", a schema, or nothing. */
static void parse_plain_format(struct fields *f, struct api_wish *wish) {
    const json_t *format = fields_get(f, "format");
    bool is_text = json_is_string(format);
    bool is_word = is_text && !strcmp(json_string_value(format), "json");
    if (!format || (is_text && json_string_length(format) == 0)) return;
    if (is_word || json_is_object(format)) {
        set_wish(f, wish,
                 (struct api_wish){"format", "format", is_word ? GRAMMAR_JSON_OBJECT : GRAMMAR_JSON_SCHEMA, format});
    } else {
        api_error_field(f->error, "format", "format must be \"json\" or a JSON schema, found %s",
                        is_text ? "another string" : json_type_name(format));
    }
}

/* Keys of structured_outputs that change nothing here. */
static bool is_harmless(const char *key, const json_t *value) {
    static const char *const NAMES[] = {"disable_fallback", "disable_additional_properties", "_backend",
                                        "_backend_was_auto"};
    if (json_is_null(value) || json_is_false(value)) return true;
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        if (!strcmp(key, NAMES[i])) return true;
    }
    return false;
}

static void parse_structured(struct fields *f, struct api_wish *wish) {
    const json_t *object = fields_object(f, "structured_outputs");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        int k = 0;
        while (k < N_SPELLINGS && (!SPELLINGS[k].inside || strcmp(key, SPELLINGS[k].inside))) k++;
        if (k == N_SPELLINGS && !is_harmless(key, value)) {
            api_error_field(f->error, "structured_outputs",
                            "structured_outputs: expected json, regex, choice, grammar or json_object, found \"%.60s\"",
                            key);
        }
        if (fields_failed(f)) return;
        if (k == N_SPELLINGS || json_is_null(value) || json_is_false(value)) continue;
        set_wish(f, wish, (struct api_wish){"structured_outputs", "structured_outputs", SPELLINGS[k].kind, value});
    }
}

static void parse_flat(struct fields *f, struct api_wish *wish) {
    for (int k = 0; k < N_SPELLINGS; k++) {
        const char *name = SPELLINGS[k].flat;
        const json_t *value = name ? fields_get(f, name) : NULL;
        bool is_empty = json_is_string(value) && json_string_length(value) == 0; /* llama.cpp's default */
        if (value && !is_empty) set_wish(f, wish, (struct api_wish){name, name, SPELLINGS[k].kind, value});
    }
    if (fields_get(f, "guided_whitespace_pattern")) {
        api_error_set(f->error, 400, "guided_whitespace_pattern", "unsupported_parameter",
                      "guided_whitespace_pattern is not supported");
    }
}

/* --- to a grammar -------------------------------------------------------------------------------- */

/* A schema may be JSON or a text that holds it, and lists are JSON; the rest is text. malloc'd; NULL with an error. */
static char *wish_text(struct fields *f, const struct api_wish *wish, size_t *size) {
    bool takes_json = wish->kind == GRAMMAR_JSON_SCHEMA || wish->kind == GRAMMAR_CHOICE;
    if (!json_is_string(wish->value) && !takes_json && wish->kind != GRAMMAR_JSON_OBJECT) {
        api_error_field(f->error, wish->param, "%s must be a string, found %s", wish->where,
                        json_type_name(wish->value));
        return NULL;
    }
    char *text;
    if (wish->kind == GRAMMAR_JSON_OBJECT) {
        text = strdup("");
        *size = 0;
    } else if (json_is_string(wish->value)) {
        *size = json_string_length(wish->value);
        text = malloc(*size + 1);
        if (text) memcpy(text, json_string_value(wish->value), *size + 1);
    } else {
        text = json_dumps(wish->value, JSON_COMPACT | JSON_ENCODE_ANY);
        *size = text ? strlen(text) : 0;
    }
    if (!text) api_error_no_memory(f->error);
    return text;
}

static void compile(struct api_job *job, const struct api_wish *wish) {
    struct fields *f = &job->fields;
    struct mo_error cause = {0};
    size_t size;
    if (!job->model->engine->grammars) {
        api_error_field(f->error, wish->param, "%s needs a tokenizer, and this model has none", wish->where);
        return;
    }
    char *text = wish_text(f, wish, &size);
    if (!text) return;
    int code =
        grammar_cache_get(job->model->engine->grammars, wish->kind, text, size, &job->request->sched.grammar, &cause);
    free(text);
    if (!code) return;
    mo_error_prefix(&cause, "%s", wish->where);
    api_error_from(f->error, &cause, wish->param);
}

/* Beside tools: the schema of what is said instead of a call. A new reference; NULL with an error. */
static json_t *content_schema(struct fields *f, const struct api_wish *wish) {
    json_t *schema = NULL;
    if (wish->kind == GRAMMAR_JSON_OBJECT) {
        schema = json_pack("{s:s}", "type", "object");
    } else if (wish->kind == GRAMMAR_JSON_SCHEMA && json_is_string(wish->value)) {
        schema = json_loads(json_string_value(wish->value), JSON_DECODE_ANY, NULL);
    } else if (wish->kind == GRAMMAR_JSON_SCHEMA) {
        schema = json_incref((json_t *)(uintptr_t)wish->value);
    }
    if (!schema) {
        api_error_field(f->error, wish->param, "%s beside tools must be a JSON schema, or \"json_object\"",
                        wish->where);
    }
    return schema;
}

static void parse_wish(struct api_job *job, struct api_wish *wish) {
    struct fields *f = &job->fields;
    if (api_is_ollama(job->request->kind)) {
        parse_plain_format(f, wish);
        return;
    }
    parse_format(f, wish);
    parse_structured(f, wish);
    parse_flat(f, wish);
}

/* Beside tools its grammar waits until it is known how the prompt ends (api_structured_place). */
void api_structured_parse(struct api_job *job) {
    parse_wish(job, &job->wish);
    bool is_now = job->wish.param && !job->request->message.tools;
    if (is_now && !fields_failed(&job->fields)) compile(job, &job->wish);
}

static void compile_beside_tools(struct api_job *job) {
    json_t *content = job->wish.param ? content_schema(&job->fields, &job->wish) : NULL;
    if (!fields_failed(&job->fields)) api_tools_compile(job, content);
    json_decref(content);
}

void api_structured_place(struct api_job *job) {
    struct api_request *request = job->request;
    const struct message_rules *rules = &request->message;
    bool has_thought_in_it = rules->tools && rules->thought == MESSAGE_MAYBE_THOUGHT;
    if (rules->tools) compile_beside_tools(job);
    for (int i = 0; request->sched.grammar && i < request->n_prompts; i++) {
        struct api_prompt *prompt = &request->prompts[i];
        prompt->grammar_after = has_thought_in_it ? -1 : engine_reasoning_end(job->model->engine, &prompt->ids);
    }
}
