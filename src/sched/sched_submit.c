/* sched/sched_submit.c - the inbox: a request is checked, copied and left for the engine thread. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/utf8.h"
#include "sched/sched_state.h"

static int check_tokens(const char *name, const int32_t *tokens, int n, int vocab, struct mo_error *error) {
    for (int i = 0; i < n; i++) {
        if (tokens[i] >= 0 && tokens[i] < vocab) continue;
        return mo_error_set(error, MO_E_INVALID, "%s: token %d at index %d is not in the vocabulary (0 to %d)", name,
                            tokens[i], i, vocab - 1);
    }
    return 0;
}

static int check_stop(const struct sched *sched, const struct sched_request *request, struct mo_error *error) {
    if (request->n_stop > 0 && !sched->options.tokenizer) {
        return mo_error_set(error, MO_E_INVALID, "stop: stop strings need a tokenizer, and none is loaded");
    }
    for (int i = 0; i < request->n_stop; i++) {
        const char *text = request->stop[i];
        size_t size = strlen(text);
        if (size == 0) return mo_error_set(error, MO_E_INVALID, "stop: string %d is empty", i);
        if (utf8_valid_prefix((const uint8_t *)text, size) != size) {
            return mo_error_set(error, MO_E_INVALID, "stop: string %d is not valid UTF-8", i);
        }
    }
    return 0;
}

static int check_fields(const struct sched *sched, const struct sched_request *request, struct mo_error *error) {
    int vocab = sched->options.model->vocab;
    if (request->n_prompt < 1) return mo_error_set(error, MO_E_INVALID, "prompt: it is empty");
    if (request->max_tokens < 0) {
        return mo_error_set(error, MO_E_INVALID, "max_tokens must be 0 or more, found %d", request->max_tokens);
    }
    if (request->min_tokens < 0) {
        return mo_error_set(error, MO_E_INVALID, "min_tokens must be 0 or more, found %d", request->min_tokens);
    }
    int most = SCHED_MAX_LOGPROBS < vocab ? SCHED_MAX_LOGPROBS : vocab;
    if (request->n_logprobs < -1 || request->n_logprobs > most) {
        return mo_error_set(error, MO_E_INVALID, "logprobs must be from 0 to %d, found %d", most, request->n_logprobs);
    }
    if (check_tokens("prompt", request->prompt, request->n_prompt, vocab, error)) return MO_E_INVALID;
    if (check_tokens("stop_token_ids", request->stop_tokens, request->n_stop_tokens, vocab, error)) {
        return MO_E_INVALID;
    }
    if (check_stop(sched, request, error)) return MO_E_INVALID;
    assert(!request->grammar || sched->options.tokenizer);
    if ((request->min_indent > 0 || request->line_limit_s > 0) && !sched->options.tokenizer) {
        return mo_error_set(error, MO_E_INVALID, "limits that look at lines need a tokenizer, and none is loaded");
    }
    assert(request->cache_salt == 0 || request->cache_salt >= PREFIX_SALTED);
    return sampling_check(&request->sampling, vocab, error);
}

/* Tokens of prompt and answer together, as far as the context goes. */
static int total_tokens(const struct sched *sched, const struct sched_request *request) {
    int left = sched->options.max_model_len - request->n_prompt;
    return request->n_prompt + (request->max_tokens < left ? request->max_tokens : left);
}

/* Positions that get a row in the cache: the last generated token needs none. */
static int cached_tokens(const struct sched *sched, const struct sched_request *request) {
    int total = total_tokens(sched, request);
    return total > request->n_prompt ? total - 1 : total;
}

static int check_size(const struct sched *sched, const struct sched_request *request, struct mo_error *error) {
    int longest = sched->options.max_model_len - (request->max_tokens > 0);
    if (request->n_prompt > longest) {
        return mo_error_set(
            error, MO_E_LIMIT, "the prompt has %d tokens; the context of %d (max_model_len) has room for %d%s",
            request->n_prompt, sched->options.max_model_len, longest, request->max_tokens > 0 ? " and an answer" : "");
    }
    int tokens = cached_tokens(sched, request), pages = kv_pages_for(tokens);
    if (pages > sched->options.n_pages) {
        return mo_error_set(error, MO_E_LIMIT,
                            "%d tokens of prompt and answer need %d pages of the cache, which has %d (%d tokens)",
                            tokens, pages, sched->options.n_pages, sched->options.n_pages * KV_PAGE_TOKENS);
    }
    return 0;
}

/* Takes memory from one block; without a block it only counts. */
struct carver {
    char *block;
    size_t used;
};

static void *carve(struct carver *carver, size_t count, size_t size) {
    char *place = carver->block ? carver->block + carver->used : NULL;
    carver->used += (count * size + 15) / 16 * 16;
    return place;
}

static size_t longest_stop(const struct sched_request *request) {
    size_t longest = 0;
    for (int i = 0; i < request->n_stop; i++) {
        size_t size = strlen(request->stop[i]);
        if (size > longest) longest = size;
    }
    return longest;
}

/* Gives `seq` its arrays; returns the bytes that they and the sequence itself take. */
static size_t seq_place(const struct sched *sched, const struct sched_request *request, struct seq *seq, char *block) {
    struct carver carver = {block, 0};
    size_t vocab = (size_t)sched->options.model->vocab, longest = longest_stop(request);
    carve(&carver, 1, sizeof *seq);
    seq->tokens = carve(&carver, (size_t)seq->max_total, sizeof *seq->tokens);
    if (sched->options.disk && !request->leaves_no_file) {
        int n_pages = 1 + cached_tokens(sched, request) / KV_PAGE_TOKENS;
        seq->addresses = carve(&carver, (size_t)n_pages, sizeof *seq->addresses);
    }
    seq->bias = carve(&carver, (size_t)(seq->n_bias + seq->n_banned), sizeof *seq->bias);
    seq->request.stop_tokens = carve(&carver, (size_t)request->n_stop_tokens, sizeof(int32_t));
    if (sampling_has_penalties(&request->sampling)) {
        seq->counts.generated = carve(&carver, vocab, sizeof *seq->counts.generated);
        seq->counts.prompt = carve(&carver, vocab, sizeof *seq->counts.prompt);
    }
    seq->stop.strings = carve(&carver, (size_t)request->n_stop, sizeof *seq->stop.strings);
    seq->stop.sizes = carve(&carver, (size_t)request->n_stop, sizeof *seq->stop.sizes);
    for (int i = 0; i < request->n_stop; i++) {
        char *copy = carve(&carver, strlen(request->stop[i]) + 1, 1);
        if (!copy) continue;
        strcpy(copy, request->stop[i]);
        ((const char **)(uintptr_t)seq->stop.strings)[i] = copy;
        ((size_t *)(uintptr_t)seq->stop.sizes)[i] = strlen(copy);
    }
    seq->stop.held = carve(&carver, longest, 1);
    seq->text = carve(&carver, longest + sched->token_text_size + 4, 1);
    return carver.used;
}

static void fill_bias(const struct sched *sched, struct seq *seq, const struct sched_request *request) {
    struct logit_bias *bias = seq->bias;
    for (int i = 0; i < request->sampling.n_bias; i++) *bias++ = request->sampling.bias[i];
    if (!request->ignore_eos) {
        for (int i = 0; i < sched->n_eos; i++) *bias++ = (struct logit_bias){sched->eos[i], -INFINITY};
    }
    for (int i = 0; i < request->n_stop_tokens; i++) {
        *bias++ = (struct logit_bias){request->stop_tokens[i], -INFINITY};
    }
    seq->request.sampling.bias = seq->bias;
}

static void fill_tokens(struct seq *seq, const struct sched_request *request) {
    memcpy(seq->tokens, request->prompt, (size_t)request->n_prompt * sizeof *seq->tokens);
    seq->n_tokens = request->n_prompt;
    seq->request.prompt = seq->tokens;
    if (request->n_stop_tokens > 0) {
        memcpy((int32_t *)(uintptr_t)seq->request.stop_tokens, request->stop_tokens,
               (size_t)request->n_stop_tokens * sizeof(int32_t));
    }
    bool counts = seq->counts.prompt && request->sampling.repetition_last_n == 0;
    for (int i = 0; counts && i < request->n_prompt; i++) seq->counts.prompt[request->prompt[i]] = 1;
}

static struct seq *seq_create(const struct sched *sched, const struct sched_request *request, struct mo_error *error) {
    struct seq plan = {.request = *request, .max_total = total_tokens(sched, request)};
    plan.n_bias = request->sampling.n_bias;
    plan.n_banned = request->n_stop_tokens + (request->ignore_eos ? 0 : sched->n_eos);

    char *block = calloc(1, seq_place(sched, request, &plan, NULL));
    if (!block) {
        mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a request of %d tokens", plan.max_total);
        return NULL;
    }
    seq_place(sched, request, &plan, block);
    if (kv_seq_init(&plan.kv, cached_tokens(sched, request), request->cache_salt, error)) {
        free(block);
        return NULL;
    }
    struct seq *seq = (struct seq *)block;
    *seq = plan;
    grammar_keep(seq->request.grammar);
    seq->grammar_first = request->grammar_after < 0 ? 0 : -1;
    seq->most_drafts = sched->options.max_drafts;
    seq->request.stop = seq->stop.strings;
    seq->stop.n = request->n_stop;
    seq->stop.include = request->include_stop;
    seq->lines.min_indent = request->min_indent;
    fill_bias(sched, seq, request);
    fill_tokens(seq, request);
    if (seq->addresses) {
        seq->addresses[0] = page_address_root(disk_key(sched->options.disk), request->cache_salt);
        seq_addresses_grow(seq, (request->n_prompt - 1) / KV_PAGE_TOKENS); /* here rather than in the engine's thread */
    }
    if (sched->options.tokenizer) {
        text_stream_init(&seq->stream, sched->options.tokenizer, !request->keep_special);
    }
    return seq;
}

void seq_free(struct sched *sched, struct seq *seq) {
    kv_seq_free(&sched->kv, &seq->kv);
    grammar_release(seq->request.grammar);
    free(seq);
}

struct seq **registry_find(struct sched *sched, uint64_t id) {
    struct seq **link = &sched->registry[id % REGISTRY_BUCKETS];
    while (*link && (*link)->id != id) link = &(*link)->chain;
    return link;
}

int sched_submit(struct sched *sched, const struct sched_request *request, uint64_t *id, struct mo_error *error) {
    assert(request->callback);
    int code = check_fields(sched, request, error);
    if (!code) code = check_size(sched, request, error);
    if (code) return code;
    struct seq *seq = seq_create(sched, request, error);
    if (!seq) return MO_E_NO_MEMORY;
    seq->submitted_s = sched_now(sched);
    seq->started_s = seq->prompted_s = seq->last_token_s = -1;

    pthread_mutex_lock(&sched->lock);
    seq->id = ++sched->last_id;
    if (id) *id = seq->id; /* before the engine thread can know of it: a callback may look at it */
    *registry_find(sched, seq->id) = seq;
    seq_list_push_back(&sched->inbox, seq);
    sched->stats.n_waiting++;
    pthread_cond_signal(&sched->wake);
    pthread_mutex_unlock(&sched->lock);
    return 0;
}

void sched_cancel(struct sched *sched, uint64_t id) {
    pthread_mutex_lock(&sched->lock);
    struct seq *seq = *registry_find(sched, id);
    if (seq && !seq->cancelled) {
        seq->cancelled = true;
        sched->n_cancels++;
        pthread_cond_signal(&sched->wake);
    }
    pthread_mutex_unlock(&sched->lock);
}
