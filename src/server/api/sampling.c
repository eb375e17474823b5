/* server/api/sampling.c - what steers the choice of tokens, for every API that has these fields or others for the same. */
#include <float.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>
#include "sched/prefix.h"
#include "server/api/parts.h"

/* --- numbers ------------------------------------------------------------------------------------- */

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
    if (s->top_p == 0) s->top_p = FLT_MIN; /* OpenAI's range begins there: the likeliest alone */
    s->min_p = number(f, "min_p", s->min_p);
    s->top_k = (int)fields_int(f, "top_k", -1, INT_MAX, s->top_k);
    double penalty =
        fields_number(f, "repeat_penalty", 0.01, 100, (double)s->repetition_penalty); /* llama.cpp's word */
    s->repetition_penalty = number(f, "repetition_penalty", (float)penalty);
    s->presence_penalty = number(f, "presence_penalty", s->presence_penalty);
    s->frequency_penalty = number(f, "frequency_penalty", s->frequency_penalty);
    parse_seed(job);
    if (is_llama) api_llama_sampling(job);
    if (api_is_ollama(job->request->kind)) api_ollama_sampling(job);
}

/* --- logit_bias ---------------------------------------------------------------------------------- */

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

/* vLLM's: who gives the same salt shares the cache, and nobody else. */
static void parse_cache_salt(struct api_job *job) {
    const json_t *salt = fields_string(&job->fields, "cache_salt");
    if (!salt) return;
    size_t size = json_string_length(salt);
    if (size == 0) api_error_field(job->fields.error, "cache_salt", "cache_salt: expected a text, found an empty one");
    job->request->sched.cache_salt = XXH3_64bits(json_string_value(salt), size) | PREFIX_SALTED;
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
