/* A scheduler over the fake backend, and owners that write down what they are told. */
#ifndef TESTS_UNIT_SCHED_WORLD_H
#define TESTS_UNIT_SCHED_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "../sim/fake_backend.h"
#include "sched/sched.h"

enum { MAX_EVENTS = 1000 };

/* What the owner of a request was told. */
struct owner {
    int32_t tokens[MAX_EVENTS], prompt[MAX_EVENTS];
    float logprobs[MAX_EVENTS], prompt_logprobs[MAX_EVENTS];
    int n_tokens, n_prompt, n_ends;
    double prompt_s, answer_s;
    char text[4096], last_text[256];
    size_t text_size;
    enum finish_reason finish;
    char stop_string[32];
    int32_t stop_token;
    char error[1024];
    int pages_free_at_end;
    struct world *world;
};

struct world {
    struct fake_backend fake;
    struct model model;
    struct tokenizer *tokenizer;
    struct sched_options options;
    struct sched *sched;
    double now_s;
};

static inline double world_clock(void *context) {
    return ((struct world *)context)->now_s;
}

static inline void on_event(const struct sched_event *event) {
    struct owner *owner = event->context;
    assert_int_equal(owner->n_ends, 0);
    if (event->is_prompt) {
        owner->prompt[owner->n_prompt] = event->token;
        owner->prompt_logprobs[owner->n_prompt++] = event->logprob;
    } else if (event->token >= 0) {
        owner->tokens[owner->n_tokens] = event->token;
        owner->logprobs[owner->n_tokens++] = event->logprob;
    }
    memcpy(owner->text + owner->text_size, event->text, event->text_size);
    owner->text_size += event->text_size;
    snprintf(owner->last_text, sizeof owner->last_text, "%.*s", (int)event->text_size, event->text);
    if (event->finish == FINISH_NONE) return;
    struct sched_stats stats;
    sched_stats_get(owner->world->sched, &stats);
    owner->pages_free_at_end = stats.pages_free;
    owner->n_ends++;
    owner->finish = event->finish;
    owner->stop_token = event->stop_token;
    owner->prompt_s = event->prompt_s;
    owner->answer_s = event->answer_s;
    if (event->stop_string) snprintf(owner->stop_string, sizeof owner->stop_string, "%s", event->stop_string);
    if (event->error) snprintf(owner->error, sizeof owner->error, "%s", event->error->message);
}

static const int32_t world_eos[] = {FAKE_EOS};

static inline struct sched_options world_options(void) {
    return (struct sched_options){.max_model_len = 300,
                                  .max_num_seqs = 4,
                                  .max_num_batched_tokens = 16,
                                  .max_logits = 8,
                                  .n_pages = 16,
                                  .eos = world_eos,
                                  .n_eos = 1};
}

static inline void world_open(struct world *world, struct sched_options options) {
    struct mo_error error = {0};
    memset(world, 0, sizeof *world);
    const char *json = FAKE_TOKENIZER_JSON;
    if (tokenizer_parse(&world->tokenizer, json, strlen(json), NULL, 0, "test", &error)) fail_msg("%s", error.message);
    fake_open(&world->fake, FAKE_VOCAB, options.n_pages, options.max_num_batched_tokens, options.max_logits,
              options.max_num_seqs);
    world->model = fake_model(FAKE_VOCAB);
    if (options.n_near) { /* pages have near parts, and these are fewer */
        world->fake.sums_up = true;
        world->fake.n_near = options.n_near;
        world->model.hybrid.window = world->fake.window = 64;
    }
    options.backend = &world->fake.base;
    options.model = &world->model;
    options.tokenizer = world->tokenizer;
    options.clock = world_clock;
    options.clock_context = world;
    world->options = options;
    if (sched_create(&world->sched, &options, &error)) fail_msg("%s", error.message);
}

static inline void world_close(struct world *world) {
    sched_destroy(world->sched);
    assert_int_equal(world->fake.n_faults, 0);
    fake_close(&world->fake);
    tokenizer_free(world->tokenizer);
}

static inline struct sched_request request_of(struct world *world, struct owner *owner, const int32_t *prompt,
                                              int n_prompt, int max_tokens) {
    memset(owner, 0, sizeof *owner);
    owner->world = world;
    struct sched_request request = {.prompt = prompt, .n_prompt = n_prompt, .max_tokens = max_tokens};
    sampling_init(&request.sampling);
    request.sampling.temperature = 0;
    request.n_logprobs = -1;
    request.callback = on_event;
    request.context = owner;
    return request;
}

static inline uint64_t submit(struct world *world, const struct sched_request *request) {
    struct mo_error error = {0};
    uint64_t id = 0;
    if (sched_submit(world->sched, request, &id, &error)) fail_msg("%s", error.message);
    return id;
}

static inline void run(struct world *world) {
    for (int i = 0; i < 10000; i++) {
        if (!sched_step(world->sched)) return;
        world->now_s += 0.01;
    }
    fail_msg("it never ends");
}

static inline struct sched_stats stats_of(struct world *world) {
    struct sched_stats stats;
    sched_stats_get(world->sched, &stats);
    return stats;
}

/* Greedy tokens of the fake model after `prompt`, without a scheduler. */
static inline void expect_greedy(const struct owner *owner, const int32_t *prompt, int n_prompt) {
    float logits[FAKE_VOCAB];
    uint64_t hash = 0;
    for (int i = 0; i < n_prompt; i++) hash = fake_hash_add(hash, prompt[i]);
    for (int i = 0; i < owner->n_tokens; i++) {
        fake_logits(hash, FAKE_VOCAB, logits);
        assert_int_equal(owner->tokens[i], sample_argmax(logits, FAKE_VOCAB));
        hash = fake_hash_add(hash, owner->tokens[i]);
    }
}

static inline void fill_prompt(int32_t *prompt, int n, int seed) {
    for (int i = 0; i < n; i++) prompt[i] = (int32_t)(fake_mix((uint64_t)(seed * 1000 + i)) % FAKE_VOCAB);
}

#endif
