/* server/api/stop.c - the fields that say where an answer ends. */
#include <stdlib.h>
#include <string.h>
#include "server/api/parts.h"
#include "text/fim.h"

enum { FIM_IDS = 3 }; /* what fim_ids writes */

/* --- strings ------------------------------------------------------------------------------------- */

static void add_stop_string(struct api_job *job, const json_t *value, size_t *total) {
    struct sched_request *sched = &job->request->sched;
    struct api_error *error = job->fields.error;
    size_t size = json_string_length(value);
    *total += size;
    if (!json_is_string(value)) {
        api_error_field(error, "stop", "stop must be a string or a list of strings, found %s in it",
                        json_type_name(value));
    } else if (size == 0 || memchr(json_string_value(value), 0, size)) {
        api_error_field(error, "stop", "stop: string %d is empty or holds a NUL", sched->n_stop);
    } else if (size > API_STOP_BYTES_MAX) {
        api_error_field(error, "stop", "stop: at most %d bytes in a string, found %zu in string %d", API_STOP_BYTES_MAX,
                        size, sched->n_stop);
    } else if (*total > API_STOPS_BYTES_MAX) {
        api_error_field(error, "stop", "stop: at most %d bytes in all strings together", API_STOPS_BYTES_MAX);
    } else {
        job->request->stop[sched->n_stop++] = json_string_value(value);
    }
}

static void parse_strings(struct api_job *job) {
    const json_t *value = fields_get(&job->fields, "stop");
    if (!value) return;
    size_t n = json_is_array(value) ? json_array_size(value) : 1, total = 0;
    if (n > API_STOP_MAX) {
        api_error_field(job->fields.error, "stop", "stop: at most %d strings, found %zu", API_STOP_MAX, n);
        return;
    }
    job->request->stop = calloc(n + 1, sizeof *job->request->stop);
    if (!job->request->stop) {
        api_error_no_memory(job->fields.error);
        return;
    }
    job->request->sched.stop = job->request->stop;
    for (size_t i = 0; i < n && !fields_failed(&job->fields); i++) {
        add_stop_string(job, json_is_array(value) ? json_array_get(value, i) : value, &total);
    }
}

/* --- tokens -------------------------------------------------------------------------------------- */

/* One entry of stop_token_ids; a repeated one adds nothing. */
static void take_id(struct api_job *job, const json_t *value, bool *seen) {
    struct api_request *request = job->request;
    int32_t id = fields_token(&job->fields, value, "stop_token_ids", job->model->engine->model.vocab);
    if (fields_failed(&job->fields) || seen[id]) return;
    if (request->sched.n_stop_tokens == API_STOP_TOKENS_MAX) {
        api_error_field(job->fields.error, "stop_token_ids", "stop_token_ids: at most %d different tokens",
                        API_STOP_TOKENS_MAX);
        return;
    }
    seen[id] = true;
    request->stop_tokens[request->sched.n_stop_tokens++] = id;
}

static void parse_ids(struct api_job *job) {
    struct fields *f = &job->fields;
    struct api_request *request = job->request;
    const json_t *ids = fields_array(f, "stop_token_ids");
    size_t n = json_array_size(ids);
    if (n > API_STOP_IDS_MAX) {
        api_error_field(f->error, "stop_token_ids", "stop_token_ids: at most %d tokens, found %zu", API_STOP_IDS_MAX,
                        n);
    }
    if (fields_failed(f)) return;
    bool *seen = calloc((size_t)job->model->engine->model.vocab, sizeof *seen);
    request->stop_tokens = calloc(API_STOP_TOKENS_MAX + API_STOP_MAX + FIM_IDS, sizeof *request->stop_tokens);
    if (!seen || !request->stop_tokens) api_error_no_memory(f->error);
    request->sched.stop_tokens = request->stop_tokens;
    for (size_t i = 0; i < n && !fields_failed(f); i++) take_id(job, json_array_get(ids, i), seen);
    request->n_named_stop_tokens = request->sched.n_stop_tokens;
    free(seen);
}

static void add_token(struct api_request *request, int32_t id) {
    for (int i = 0; i < request->sched.n_stop_tokens; i++) {
        if (request->stop_tokens[i] == id) return;
    }
    request->stop_tokens[request->sched.n_stop_tokens++] = id;
}

/* Special tokens leave no text behind, so a stop string that spells one must also stop by id. Editors send
 * them. */
static void add_spelled_tokens(struct api_job *job) {
    const struct tokenizer *tokenizer = job->model->engine->tokenizer;
    for (int i = 0; tokenizer && i < job->request->sched.n_stop; i++) {
        int32_t id = tokenizer_added_id(tokenizer, job->request->stop[i]);
        if (id >= 0) add_token(job->request, id);
    }
}

/* A model that was asked to fill a hole is done when it opens the next one. */
void api_stop_add_fim(struct api_job *job) {
    struct api_request *request = job->request;
    int32_t ids[FIM_IDS];
    int n = job->model->engine->tokenizer ? fim_ids(job->model->engine->tokenizer, ids) : 0;
    bool is_fim = false;
    if (api_is_chat(request->kind) || request->sched.ignore_eos) return;
    for (int p = 0; p < request->n_prompts; p++) {
        const struct token_list *prompt = &request->prompts[p].ids;
        for (size_t i = 0; n && i < prompt->n && !is_fim; i++) is_fim = prompt->ids[i] == ids[1];
    }
    for (int i = 0; is_fim && i < n; i++) add_token(request, ids[i]);
}

void api_stop_parse(struct api_job *job) {
    struct fields *f = &job->fields;
    struct sched_request *sched = &job->request->sched;
    sched->ignore_eos = fields_bool(f, "ignore_eos", false);
    sched->include_stop = fields_bool(f, "include_stop_str_in_output", false);
    sched->keep_special = !fields_bool(f, "skip_special_tokens", true);
    parse_strings(job);
    parse_ids(job);
    if (!fields_failed(f)) add_spelled_tokens(job);
}
