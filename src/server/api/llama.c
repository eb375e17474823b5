/* server/api/llama.c - the fields of llama.cpp's POST /completion and /infill: its names for what the other endpoints have too,
 * its samplers, and what editors want. */
#include <limits.h>
#include <math.h>
#include <string.h>
#include <sys/random.h>
#include "sched/prefix.h"
#include "server/api/parts.h"

enum { SAMPLERS_MAX = 64, MS_MAX = 1000000000 };

/* --- sampling ------------------------------------------------------------------------------------ */

/* llama.cpp's documented values, where the model's files name none. */
void api_llama_defaults(const struct engine *engine, struct sampling *s) {
    const struct generation_defaults *d = &engine->defaults;
    if (isnan(d->temperature)) s->temperature = 0.8f;
    if (isnan(d->top_p)) s->top_p = 0.95f;
    if (isnan(d->min_p)) s->min_p = 0.05f;
    if (d->top_k < 0) s->top_k = 40;
}

/* Samplers that are not here, with the values that ask for nothing. */
static const struct {
    const char *name;
    double min, max;
} MISSING[] = {
    {"dry_multiplier", 0, 0}, {"xtc_probability", -1e30, 0}, {"mirostat", 0, 0},
    {"typical_p", 1, 1e30},   {"dynatemp_range", 0, 0},      {"top_n_sigma", -1e30, 0},
};

static void refuse_missing(struct fields *f) {
    for (size_t i = 0; i < sizeof MISSING / sizeof *MISSING; i++) {
        double value = fields_number(f, MISSING[i].name, -1e30, 1e30, MISSING[i].min);
        if (fields_failed(f) || (value >= MISSING[i].min && value <= MISSING[i].max)) continue;
        api_error_set(f->error, 400, MISSING[i].name, "unsupported_parameter", "%s: there is no such sampler here",
                      MISSING[i].name);
    }
    if (json_array_size(fields_array(f, "lora")) > 0) {
        api_error_set(f->error, 400, "lora", "unsupported_parameter", "lora: there are no adapters here");
    }
}

static void penalties_off(struct sampling *s) {
    s->repetition_penalty = 1;
    s->presence_penalty = s->frequency_penalty = 0;
}

/* Whether "samplers" names this one: in a list, or by its letter in a string. */
static bool lists(const json_t *samplers, const char *name, char letter) {
    if (json_is_string(samplers)) {
        return memchr(json_string_value(samplers), letter, json_string_length(samplers)) != NULL;
    }
    for (size_t i = 0; i < json_array_size(samplers); i++) {
        const char *found = json_string_value(json_array_get(samplers, i));
        if (found && strcmp(found, name) == 0) return true;
    }
    return false;
}

/* Samplers that "samplers" does not name are off; their order is always the same here. "infill" leaves the tokens that are likely
 * and joins those that begin alike: the likeliest token stands for it. */
static void keep_listed(struct fields *f, struct sampling *s) {
    const json_t *samplers = fields_get(f, "samplers");
    if (!samplers) return;
    if (!json_is_string(samplers) && (!json_is_array(samplers) || json_array_size(samplers) > SAMPLERS_MAX)) {
        api_error_field(f->error, "samplers", "samplers must be a string or a list of at most %d names, found %s",
                        SAMPLERS_MAX, json_type_name(samplers));
        return;
    }
    bool has_temperature = lists(samplers, "temperature", 't');
    if (!lists(samplers, "penalties", 'e')) penalties_off(s);
    if (!lists(samplers, "top_k", 'k')) s->top_k = 0;
    if (!lists(samplers, "top_p", 'p')) s->top_p = 1;
    if (!lists(samplers, "min_p", 'm')) s->min_p = 0;
    if (!has_temperature) s->temperature = lists(samplers, "infill", 'i') ? 0 : 1;
}

void api_llama_sampling(struct api_job *job) {
    struct fields *f = &job->fields;
    struct sampling *s = &job->request->sched.sampling;
    s->repetition_penalty = (float)fields_number(f, "repeat_penalty", 0.01, 100, (double)s->repetition_penalty);
    if (fields_int(f, "repeat_last_n", -1, INT_MAX, 64) == 0) penalties_off(s); /* else: over everything */
    if (s->temperature < 0) s->temperature = 0;
    refuse_missing(f);
    keep_listed(f, s);
}

/* --- the rest ------------------------------------------------------------------------------------ */

static void parse_response_fields(struct api_job *job) {
    struct fields *f = &job->fields;
    const json_t *list = fields_array(f, "response_fields");
    size_t n = json_array_size(list);
    if (n > API_FIELDS_MAX) {
        api_error_field(f->error, "response_fields", "response_fields: at most %d names, found %zu", API_FIELDS_MAX, n);
    }
    for (size_t i = 0; i < n && !fields_failed(f); i++) {
        const json_t *name = json_array_get(list, i);
        if (json_is_string(name)) continue;
        api_error_field(f->error, "response_fields", "response_fields must be a list of strings, found %s in it",
                        json_type_name(name));
    }
    job->request->response_fields = n > 0 ? list : NULL;
}

/* Without the cache: a salt that nobody else has. */
static void parse_cache(struct api_job *job) {
    struct fields *f = &job->fields;
    uint64_t salt;
    if (fields_bool(f, "cache_prompt", true)) return;
    if (getrandom(&salt, sizeof salt, 0) != sizeof salt) {
        api_error_set(f->error, 500, NULL, "internal_error", "the system has no random numbers");
        return;
    }
    job->request->sched.cache_salt = salt | PREFIX_SALTED;
    job->request->sched.leaves_no_file = true;
}

static void parse_limits(struct api_job *job) {
    struct fields *f = &job->fields;
    struct sched_request *sched = &job->request->sched;
    int64_t n = fields_int(f, "n_predict", INT_MIN, INT_MAX, fields_int(f, "max_tokens", INT_MIN, INT_MAX, -1));
    double limit_ms = fields_number(f, "t_max_predict_ms", -1, MS_MAX, 0);
    job->request->n_predict = sched->max_tokens = n < 0 ? -1 : (int)n;
    sched->min_indent = (int)fields_int(f, "n_indent", 0, INT_MAX, 0);
    sched->line_limit_s = limit_ms > 0 ? 1e-3 * limit_ms : 0;
    fields_number(f, "t_max_prompt_ms", -1, MS_MAX,
                  0);                          /* a prompt is never given up half way; nor is it by llama.cpp */
    fields_int(f, "id_slot", -1, INT_MAX, -1); /* there are none */
}

void api_llama_parse(struct api_job *job) {
    struct fields *f = &job->fields;
    struct api_request *request = job->request;
    int64_t n_probs = fields_int(f, "n_probs", 0, api_policy_of(job->model)->max_logprobs, 0);
    request->sched.n_logprobs = n_probs > 0 ? (int)n_probs : -1;
    request->include_usage = false; /* every end says it */
    request->return_tokens = fields_bool(f, "return_tokens", false) || request->stream;
    parse_limits(job);
    parse_cache(job);
    parse_response_fields(job);
    if (request->kind == API_INFILL)
        api_infill_parse(job);
    else
        api_prompts_parse(job);
}
